"""Pictures of reconstructions as PNG files: one image, or several beside the target with their error maps."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recurra.core.figures import color_bar, heading, new_figure, save, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

PANEL = 3.2  # inches, height of one image


def preview_png(path: Path, image: np.ndarray, *, title: str | None = None) -> Path:
    """Writes one slice as a grey picture, the brightest 0.2 % of it saturated.

    Args:
        path: The PNG file.
        image: (height, width), real or complex.
        title: Written above the picture.

    Returns:
        `path`.
    """
    image = _magnitude("image", image)
    header = 0.34 if title else 0.0
    tall = 1.5 * PANEL
    figure = new_figure((tall * image.shape[1] / image.shape[0], tall + header))
    _show(figure.add_axes((0, 0, 1, tall / (tall + header))), image, _white_level(image))
    heading(figure, title, 0.5 * header, size=9.0, align="center")
    return save(figure, path)


def error_map_png(
    path: Path,
    target: np.ndarray,
    reconstructions: Mapping[str, np.ndarray],
    *,
    captions: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Path:
    """Writes the target and the reconstructions in one row and their absolute errors below, all on common scales.

    Args:
        path: The PNG file.
        target: (height, width), real or complex.
        reconstructions: Name to image of the target's size and scale, in the order of the columns.
        captions: Name to a line below the name, such as "31.2 dB, SSIM 0.91".
        title: Written above everything.

    Returns:
        `path`.
    """
    target = _magnitude("target", target)
    images = {name: _magnitude(name, image) for name, image in reconstructions.items()}
    if not images:
        raise ValueError("reconstructions is empty; expected at least one image to compare with the target")
    for name, image in images.items():
        if image.shape != target.shape:
            raise ValueError(f"{name} has shape {image.shape}; expected the target's, {target.shape}")
    return save(_comparison(target, images, captions or {}, title), path)


def _comparison(
    target: np.ndarray, images: Mapping[str, np.ndarray], captions: Mapping[str, str], title: str | None
) -> "Figure":
    """Two rows of panels; below the target there is no error to show, so the colour bar stands there."""
    columns, header = len(images) + 1, 0.85 if title else 0.5
    width = max(PANEL * target.shape[1] / target.shape[0], 0.6 * PANEL)
    size = (columns * (width + 0.06), 2 * (PANEL + 0.06) + header)
    figure = new_figure(size)
    grid = figure.add_gridspec(
        2, columns, left=0, right=1, bottom=0, top=1 - header / size[1], wspace=0.02, hspace=0.02
    )
    white = _white_level(target)
    percent = 100 / (float(target.max()) or 1.0)
    errors = {name: percent * np.abs(image - target) for name, image in images.items()}
    limit = _white_level(np.stack(list(errors.values())))
    _show(titled(figure.add_subplot(grid[0, 0]), "target"), target, white)
    for column, (name, image) in enumerate(images.items(), start=1):
        _show(titled(figure.add_subplot(grid[0, column]), name, captions.get(name, "")), image, white)
        drawn = _show(figure.add_subplot(grid[1, column]), errors[name], limit, colors="inferno")
    place = grid[1, 0].get_position(figure)
    bar = figure.add_axes((place.x1 - 0.3 / size[0], place.y0 + 0.3 / size[1], 0.14 / size[0], (PANEL - 0.6) / size[1]))
    color_bar(figure, bar, drawn, "absolute error, % of the target's maximum")
    heading(figure, title, 0.08)
    return figure


def _show(axes: "Axes", image: np.ndarray, limit: float, *, colors: str = "gray") -> "AxesImage":
    axes.set_axis_off()
    return axes.imshow(image, cmap=colors, vmin=0, vmax=limit or 1.0, interpolation="nearest")


def _white_level(image: np.ndarray) -> float:
    """The value that is drawn at full brightness: few bright pixels must not darken the rest."""
    return float(np.quantile(image, 0.998))


def _magnitude(name: str, image: np.ndarray) -> np.ndarray:
    if image.ndim != 2 or 0 in image.shape:
        raise ValueError(f"{name} has shape {image.shape}; expected one slice, (height, width)")
    if not np.isfinite(image).all():
        raise ValueError(f"{name} has values that are not finite; expected a finite image")
    return np.asarray(np.abs(image))
