"""The look that every figure shares: on its paper, in its ink, without pyplot."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from recurra.core.figures import DPI, INK, PAPER, color_bar, heading, new_figure, png, save, titled


def ink(pixels: np.ndarray) -> np.ndarray:
    """Rows and columns where something is drawn."""
    return np.argwhere(np.abs(pixels[..., :3] - to_rgb(PAPER)).max(axis=-1) > 0.5)


def test_import_needs_no_matplotlib() -> None:
    code = "import sys, recurra.core.figures; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_blank_paper_of_the_size_asked_for() -> None:
    pixels = imread(io.BytesIO(png(new_figure((2.0, 1.0)))))
    assert pixels.shape[:2] == (DPI, 2 * DPI)
    assert not len(ink(pixels))


def test_heading_is_where_it_is_told() -> None:
    figure = new_figure((2.0, 2.0))
    heading(figure, None, 0.5)
    heading(figure, "", 0.5)
    assert not len(ink(imread(io.BytesIO(png(figure)))))
    heading(figure, "H", 0.5, align="center")
    rows, columns = ink(imread(io.BytesIO(png(figure)))).T
    assert abs(rows.mean() - 0.5 * DPI) < 4
    assert abs(columns.mean() - DPI) < 4


def test_names_and_scale_are_in_the_ink() -> None:
    figure = new_figure((2.0, 2.0))
    axes = titled(figure.add_axes((0.5, 0.1, 0.4, 0.6)), "name", "caption")
    bar = figure.add_axes((0.4, 0.1, 0.05, 0.6))
    color_bar(figure, bar, axes.imshow(np.eye(2)), "label")
    assert [text.get_text() for text in axes.texts] == ["name", "caption"]
    assert {text.get_color() for text in (*axes.texts, bar.yaxis.label, *bar.get_yticklabels())} == {INK}
    assert bar.yaxis.get_label_position() == "left"


def test_what_is_saved_is_the_png(tmp_path: Path) -> None:
    figure = new_figure((1.0, 1.0))
    assert save(figure, tmp_path / "new" / "a.png").read_bytes() == png(figure)
    assert [path.name for path in tmp_path.glob("**/*.png*")] == ["a.png"]
