"""Figures in one look, drawn without pyplot: no window system, no global state, nothing to close."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from recurra.core.files import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

PAPER, INK = "#101216", "#e8e6e1"
DPI = 150


def new_figure(size: tuple[float, float]) -> "Figure":
    """An empty figure of (width, height) inches, to be drawn by Agg."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=DPI, facecolor=PAPER)


def heading(
    figure: "Figure", text: str | None, below: float, *, size: float = 11.0, align: Literal["top", "center"] = "top"
) -> None:
    """Writes a title over the whole figure, if there is one.

    Args:
        figure: where.
        text: the title.
        below: inches from the upper edge to the text.
        size: of the letters, in points.
        align: what of the text lies there.
    """
    if text:
        height = 1 - below / figure.get_figheight()
        figure.text(0.5, height, text, ha="center", va=align, color=INK, fontsize=size)


def titled(axes: "Axes", name: str, caption: str = "") -> "Axes":
    """The axes, with a name and a smaller line below it written above them."""
    axes.text(0.5, 1.08, name, transform=axes.transAxes, ha="center", color=INK, fontsize=10)
    axes.text(0.5, 1.025, caption, transform=axes.transAxes, ha="center", color=INK, fontsize=8, alpha=0.8)
    return axes


def color_bar(figure: "Figure", axes: "Axes", drawn: "ScalarMappable", label: str) -> None:
    """Fills the axes with the scale of what is drawn, ticks and label on the left."""
    figure.colorbar(drawn, cax=axes, label=label, ticklocation="left")
    axes.yaxis.label.set(color=INK, fontsize=8)
    axes.tick_params(colors=INK, labelsize=8, length=2)


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", facecolor=PAPER)
    return encoded.getvalue()


def save(figure: "Figure", path: Path) -> Path:
    """The path, at which the figure is now a PNG file.

    Raises:
        OSError: it cannot be written.
    """
    with writing(path) as part:
        part.write_bytes(png(figure))
    return path
