"""What the pictures of forecasts share: pages of panels, axes of time and of names, legends beside the data."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recurra.core.figures import INK, PAPER, heading, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

Array = NDArray[Any]


def page(
    rows: int,
    columns: int,
    size: tuple[float, float],
    title: str | None,
    *,
    legend: bool = True,
    left: float = 0.75,
    gaps: tuple[float, float] = (0.75, 0.6),
    foot: float = 0.55,
    right: float = 0.3,
) -> "tuple[Figure, list[SubplotSpec]]":
    """A figure of panels, and their places row by row.

    Args:
        rows: of panels.
        columns: of panels.
        size: of a panel, inches (width, height).
        title: written above everything.
        legend: leave room for one at the foot.
        left: inches for the labels of the first column.
        gaps: inches between columns and between rows.
        foot: inches for the labels of the last row.
        right: inches beside the last column.
    """
    across, down = gaps
    above, below = (0.75 if title else 0.4), foot + (0.4 if legend else 0.0)
    width = columns * size[0] + (columns - 1) * across + left + right
    height = rows * size[1] + (rows - 1) * down + above + below
    figure = new_figure((width, height))
    heading(figure, title, 0.12)
    grid = figure.add_gridspec(
        rows,
        columns,
        left=left / width,
        right=1 - right / width,
        bottom=below / height,
        top=1 - above / height,
        wspace=across / size[0],
        hspace=down / size[1],
    )
    return figure, [grid[row, column] for row in range(rows) for column in range(columns)]


def plain(axes: "Axes", *, grid: bool = True) -> "Axes":
    """The axes in the colours of the page."""
    axes.set_facecolor(PAPER)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=INK, alpha=0.5)
    axes.tick_params(colors=INK, labelsize=8, length=2.5)
    if grid:
        axes.grid(color=INK, alpha=0.12, lw=0.5)
        axes.set_axisbelow(True)
    return axes


def time_axis(stamps: Any) -> tuple[Array, str]:
    """Stamps as matplotlib takes them, wall-clock time where they have a zone, and what to write below the axis."""
    zone = getattr(stamps, "tz", None)
    if zone is not None:
        return np.asarray(stamps.tz_localize(None)), f"local time, {zone}"
    if hasattr(stamps, "to_timestamp"):
        stamps = stamps.to_timestamp()
    values = np.asarray(stamps)
    return values, "" if values.dtype.kind in "mM" else "step"


def calendar(axes: "Axes", x: Array, label: str) -> None:
    """Ticks at round dates, the year written once."""
    if x.dtype.kind == "M":
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=4, maxticks=9)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        axes.xaxis.get_offset_text().set(color=INK, fontsize=8)
    axes.set_xlabel(label, color=INK, fontsize=8)


def named(axes: "Axes", names: Sequence[str], *, rows: bool = True, columns: bool = False) -> None:
    """Names of the rows, of the columns, or of both; of many, every so many."""
    ticks = list(range(0, len(names), -(-len(names) // 16)))
    labels = [name if len(name) <= 12 else f"{name[:11]}…" for name in (names[tick] for tick in ticks)]
    axes.set_yticks(ticks, labels if rows else [""] * len(ticks), fontsize=7)
    if columns:
        axes.set_xticks(ticks, labels, fontsize=7, rotation=90)


def scale_bar(figure: "Figure", axes: "Axes", drawn: "ScalarMappable", label: str = "") -> None:
    """The scale of what is drawn, to the right of it."""
    bar = figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.02)
    bar.set_label(label, color=INK, fontsize=7)
    bar.ax.tick_params(colors=INK, labelsize=7, length=2)
    bar.ax.yaxis.get_offset_text().set(color=INK, fontsize=7)
    bar.outline.set_visible(False)


def shade(color: str, strength: float) -> tuple[float, float, float]:
    """The colour on the paper, opaque: a legend shows it as the picture does."""
    from matplotlib.colors import to_rgb

    ink, paper = np.array(to_rgb(color)), np.array(to_rgb(PAPER))
    red, green, blue = (paper + strength * (ink - paper)).tolist()
    return red, green, blue


def edges(x: Array) -> Array:
    """Borders of cells whose middles are given."""
    if len(x) == 1:
        one = np.timedelta64(12, "h") if x.dtype.kind == "M" else 0.5
        return np.array([x[0] - one, x[0] + one])
    half = (x[1:] - x[:-1]) / 2
    return np.concatenate([x[:1] - half[:1], x[:-1] + half, x[-1:] + half[-1:]])


def legend(figure: "Figure", first: Sequence[str] = ()) -> None:
    """What is drawn in all panels, once each, below them; `first` are the names that come first."""
    found: dict[str, Any] = dict.fromkeys(first)
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found[label] = found.get(label) or handle
    found = {label: handle for label, handle in found.items() if handle is not None}
    if not found:
        return
    # A letter is a fifteenth of an inch wide, the line before it an inch with what is around.
    wide = 0.9 + max(len(label) for label in found) / 15
    columns = max(1, min(len(found), int(figure.get_figwidth() / wide)))
    figure.legend(
        list(found.values()),
        list(found),
        loc="lower center",
        ncols=columns,
        frameon=False,
        labelcolor=INK,
        fontsize=8,
    )
