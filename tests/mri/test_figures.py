"""Pictures: what the pixels show, and that no half-written file is ever seen."""

from pathlib import Path

import numpy as np
import pytest

from recurra.mri.figures import error_map_png, preview_png


def disk() -> np.ndarray:
    y, x = np.mgrid[-1:1:60j, -1:1:48j]
    return np.where(x**2 + y**2 < 0.7, 2.0 + x, 0.0)


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(path))[..., :3]


def test_preview_shows_the_image_and_nothing_else(tmp_path: Path) -> None:
    image = disk()
    picture = pixels(preview_png(tmp_path / "a.png", image * np.exp(0.7j)))
    rows = np.linspace(0, len(picture) - 1, 60).round().astype(int)
    columns = np.linspace(0, picture.shape[1] - 1, 48).round().astype(int)
    shown = picture[np.ix_(rows, columns)]
    assert np.array_equal(shown[..., 0], shown[..., 1])  # grey
    assert np.corrcoef(shown[..., 0].ravel(), image.ravel())[0, 1] > 0.98
    assert shown.max() == 1.0
    assert abs(picture.shape[0] / picture.shape[1] - 60 / 48) < 0.01
    titled = pixels(preview_png(tmp_path / "b.png", image, title="knee.h5, slice 3 of 30"))
    assert titled.shape[0] > picture.shape[0]
    assert titled[: titled.shape[0] - picture.shape[0]].max() > 0.5  # the title's ink


def test_a_few_bright_pixels_do_not_darken_the_rest(tmp_path: Path) -> None:
    image = disk()
    plain = pixels(preview_png(tmp_path / "a.png", image))
    image[30, 24] = 1000.0
    assert abs(pixels(preview_png(tmp_path / "b.png", image)).mean() - plain.mean()) < 0.02


def test_error_map_is_brighter_where_the_error_is(tmp_path: Path) -> None:
    target = disk()
    wrong = target.copy()
    wrong[10:20, 10:20] += 1.0
    path = error_map_png(tmp_path / "a.png", target, {"bad": wrong, "good": target + 0.0}, captions={"bad": "20 dB"})
    picture = pixels(path)
    height, width = picture.shape[:2]
    below = picture[height * 11 // 20 :]
    third = width // 3
    assert below[:, third : 2 * third].sum() > 3 * below[:, 2 * third + 5 :].sum()
    assert below[:, :third].max() > 0.5  # the colour bar and its labels
    assert width > 2.5 * third


def test_more_reconstructions_make_a_wider_picture(tmp_path: Path) -> None:
    target = disk()
    one = pixels(error_map_png(tmp_path / "a.png", target, {"a": target}))
    three = pixels(error_map_png(tmp_path / "b.png", target, {"a": target, "b": 0 * target, "c": target}, title="t"))
    assert three.shape[1] == pytest.approx(2 * one.shape[1], abs=4)
    assert three.shape[0] > one.shape[0]


def test_images_of_zeros_are_drawn(tmp_path: Path) -> None:
    assert preview_png(tmp_path / "a.png", np.zeros((8, 8))).is_file()
    assert error_map_png(tmp_path / "b.png", np.zeros((8, 8)), {"x": np.zeros((8, 8))}).is_file()


def test_writes_aside_then_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"before")

    def full_disk(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space left"):
        preview_png(path, disk())
    assert path.read_bytes() == b"before"
    assert [item.name for item in tmp_path.iterdir()] == ["a.png"]


def test_does_not_touch_pyplot(tmp_path: Path) -> None:
    import sys

    before = "matplotlib.pyplot" in sys.modules
    preview_png(tmp_path / "a.png", disk())
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_refusals(tmp_path: Path) -> None:
    image = disk()
    with pytest.raises(ValueError, match=r"^image has shape \(1, 60, 48\); expected one slice, \(height, width\)$"):
        preview_png(tmp_path / "a.png", image[None])
    with pytest.raises(ValueError, match="not finite"):
        preview_png(tmp_path / "a.png", np.where(image > 2, np.nan, image))
    with pytest.raises(ValueError, match=r"^CIRIM has shape \(60, 47\); expected the target's, \(60, 48\)$"):
        error_map_png(tmp_path / "a.png", image, {"CIRIM": image[:, 1:]})
    with pytest.raises(ValueError, match="reconstructions is empty"):
        error_map_png(tmp_path / "a.png", image, {})
    assert not list(tmp_path.iterdir())
