"""Coil maps: the authors' numbers, sigpy's, and what must hold for any."""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from recurra.core.testing import Golden, Tolerance, assert_close, golden, golden_files
from recurra.mri.data.maps import MapsFile
from recurra.mri.data.phantom import phantom_slice
from recurra.mri.operators import ifft, rss
from recurra.mri.preprocess import quantile_scale
from recurra.mri.sensitivity import (
    acs_rectangle,
    espirit_maps,
    map_support,
    rss_maps,
    unit_maps,
)


def as_complex(stored: Tensor) -> Tensor:
    """Stored (1, coil, height, width, 2) or (coil, height, width, 2) as (coil, height, width)."""
    values = torch.view_as_complex(stored.contiguous())
    return values.reshape(values.shape[-3:])


@pytest.mark.parity
@pytest.mark.parametrize("path", golden_files("mri", "sensitivity*"), ids=lambda path: path.stem)
class TestParity:
    # Maps are defined up to the eigenvalue threshold: they are compared where both have support, at 1e-3.
    espirit = Tolerance(1e-3, 1e-3)

    def mask(self, pair: Golden, name: str) -> Tensor:
        mask = pair.inputs[name].bool()[..., 0]
        return mask.reshape(mask.shape[-2:])

    def test_rss(self, path: Path) -> None:
        pair = golden(path)
        kspace, acs = as_complex(pair.inputs["kspace"]), self.mask(pair, "acs")
        assert_close(rss_maps(kspace, acs), as_complex(pair.outputs["direct_rss"]), pair.tolerance)
        if "direct_rss_gauss" in pair.outputs:
            told = re.search(r"gaussian_sigma ([\d.]+)", pair.notes)
            sigma = float(told[1].rstrip(".")) if told else 0.7
            maps = rss_maps(kspace, acs, gaussian_sigma=sigma)
            assert_close(maps, as_complex(pair.outputs["direct_rss_gauss"]), pair.tolerance)

    def test_sigpy_espirit(self, path: Path) -> None:
        pair = golden(path)
        config = pair.config["sigpy"]
        kspace = as_complex(pair.inputs["kspace"])
        everything = torch.ones(kspace.shape[-2:], dtype=torch.bool)
        for key, crop in zip(("sigpy_espirit", "sigpy_espirit_crop"), config["crops"], strict=True):
            maps = espirit_maps(
                kspace,
                everything,
                calib_width=config["calib_width"],
                threshold=config["thresh"],
                kernel_width=config["kernel_width"],
                max_iter=config["max_iter"],
                crop=crop,
            )
            self.compare(maps, as_complex(pair.outputs[key]))

    def test_direct_espirit(self, path: Path) -> None:
        pair = golden(path)
        config = pair.config["espirit"]
        maps = espirit_maps(
            as_complex(pair.inputs["kspace"]),
            self.mask(pair, "acs2"),
            calib_width=None,
            threshold=config["threshold"],
            kernel_width=config["kernel_size"],
            max_iter=config["max_iter"],
            crop=config["crop"],
            magnitude_only=True,
        )
        self.compare(maps, as_complex(pair.outputs["direct_espirit"]))

    def compare(self, maps: Tensor, expected: Tensor) -> None:
        both = (map_support(maps) > 0) & (map_support(expected) > 0)
        assert both.sum() > 0.95 * max((map_support(expected) > 0).sum(), (map_support(maps) > 0).sum())
        assert_close(maps[:, both], expected[:, both], self.espirit)

    def test_scaling(self, path: Path) -> None:
        pair = golden(path)
        magnitude = as_complex(pair.inputs["y"]).abs()
        for key, expected in pair.outputs.items():
            if key.startswith("direct_scaling_"):
                told = key.removeprefix("direct_scaling_")
                scale = quantile_scale(magnitude, None if told == "None" else float(told))
                assert_close(scale, expected.reshape(()), pair.tolerance, name=key)


@pytest.fixture(scope="module")
def phantom() -> tuple[Tensor, Tensor, Tensor]:
    kspace, maps, image = phantom_slice(72, 60, 5, 21, noise=1e-4)
    return torch.from_numpy(kspace), torch.from_numpy(maps), torch.from_numpy(image)


@pytest.mark.parametrize("shape", [(40, 36), (41, 37)])
def test_espirit_equals_sigpy(shape: tuple[int, int]) -> None:
    app = pytest.importorskip("sigpy.mri.app")
    kspace = phantom_slice(*shape, 3, 8, noise=0.002)[0]
    expected = app.EspiritCalib(kspace, calib_width=20, show_pbar=False, crop=0.8).run()
    everything = torch.ones(1, shape[1], dtype=torch.bool)
    maps = espirit_maps(torch.from_numpy(kspace), everything, calib_width=20, crop=0.8)
    both = (np.abs(expected).sum(0) > 0) & (map_support(maps).numpy() > 0)
    assert both.mean() > 0.2
    assert np.mean((np.abs(expected).sum(0) > 0) != (map_support(maps).numpy() > 0)) < 0.01
    np.testing.assert_allclose(maps[:, both], expected[:, both], atol=1e-3)


@pytest.mark.parametrize("kind", ["espirit", "rss"])
def test_maps_explain_the_coil_images(kind: str, phantom: tuple[Tensor, Tensor, Tensor]) -> None:
    kspace, _, image = phantom
    acs = torch.zeros(1, 60, dtype=torch.bool)
    acs[:, 18:42] = True
    maps = espirit_maps(kspace, acs) if kind == "espirit" else rss_maps(kspace, acs)
    inside = image.abs() > 0.05
    images = ifft(kspace)
    left_over = images - maps * (maps.conj() * images).sum(0)
    error = (left_over[:, inside].abs().square().sum() / images[:, inside].abs().square().sum()).sqrt()
    assert error < (0.02 if kind == "espirit" else 0.1)


def test_chunks_of_rows_change_nothing(phantom: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    kspace = phantom[0]
    everything = torch.ones(1, 60, dtype=torch.bool)
    whole = espirit_maps(kspace, everything)
    monkeypatch.setattr("recurra.mri.sensitivity._CHUNK", 5 * 25 * 60)
    torch.testing.assert_close(espirit_maps(kspace, everything), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["espirit", "rss"])
def test_maps_of_the_plain_transform_fit_its_images(kind: str, phantom: tuple[Tensor, Tensor, Tensor]) -> None:
    kspace = phantom[0]
    acs = torch.ones(1, 60, dtype=torch.bool)
    make = espirit_maps if kind == "espirit" else rss_maps
    for convention in ("centered-ortho", "uncentered-ortho", "recentered-ortho", "uncentered-backward"):
        maps, images = make(kspace, acs, convention), ifft(kspace, convention)
        explained = rss((maps * (maps.conj() * images).sum(0))[None])[0]
        strong = rss(images[None])[0] > 0.3 * rss(images[None]).max()
        assert (explained / rss(images[None])[0])[strong].min() > 0.9, convention


def test_maps_scale_and_phase_are_those_of_the_first_coil(phantom: tuple[Tensor, Tensor, Tensor]) -> None:
    kspace = phantom[0]
    everything = torch.ones(1, 60, dtype=torch.bool)
    maps = espirit_maps(kspace, everything)
    scaled = espirit_maps(kspace * (3e-6 * torch.exp(torch.tensor(1j))), everything)
    torch.testing.assert_close(maps, scaled, atol=2e-3, rtol=1e-3)
    inside = map_support(maps) > 0
    assert maps[0].imag.abs().max() < 1e-5
    assert maps[0].real[inside].min() >= 0
    torch.testing.assert_close(map_support(maps)[inside], torch.ones(int(inside.sum())), atol=1e-4, rtol=0)


def test_empty_kspace_has_empty_maps() -> None:
    nothing = torch.zeros(3, 32, 32, dtype=torch.complex64)
    acs = torch.ones(1, 32, dtype=torch.bool)
    assert not rss_maps(nothing, acs).any()
    assert not espirit_maps(nothing, acs).any()


def test_unit_maps() -> None:
    maps = unit_maps(torch.zeros(4, 8, 9, dtype=torch.complex64))
    assert maps.dtype == torch.complex64
    torch.testing.assert_close(map_support(maps), torch.ones(8, 9))


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (slice(10, 30), slice(8, 24), (20, 16)),
        (slice(None), slice(11, 22), (40, 11)),
        (slice(19, 22), slice(0, 32), (3, 32)),
    ],
)
def test_the_calibration_rectangle(rows: slice, columns: slice, expected: tuple[int, int]) -> None:
    mask = torch.zeros(40, 32, dtype=torch.bool)
    mask[::3, ::3] = True
    mask[rows, columns] = True
    found = acs_rectangle(mask, 40)
    assert min(found) == min(expected)
    top, left = 20 - found[0] // 2, 16 - found[1] // 2
    assert mask[top : top + found[0], left : left + found[1]].all()


@pytest.mark.parametrize("width", [31, 32])
@pytest.mark.parametrize("count", [0, 1, 5, 8, 31])
def test_the_calibration_columns_of_a_line(width: int, count: int) -> None:
    line = torch.zeros(1, width, dtype=torch.bool)
    start = (width - count + 1) // 2
    line[:, start : start + count] = True
    rows, columns = acs_rectangle(line, 20)
    assert rows == 20
    left = width // 2 - columns // 2
    assert line[0, left : left + columns].all()
    assert count - 1 <= columns <= count


class TestMapsFile:
    shape = (2, 3, 16, 12)

    def write(self, path: Path, maps: Any, name: str = "sensitivity") -> str:
        with h5py.File(path, "w") as file:
            file[name] = maps
        return str(path)

    @pytest.mark.parametrize("shape", [(2, 3, 16, 12), (3, 16, 12)])
    def test_one_for_all_slices_or_one_each(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        maps = np.random.default_rng(0).normal(size=(*shape, 2)).view(complex)[..., 0]
        where = self.write(tmp_path / "m.h5", maps, "coils")
        found = MapsFile(where + ":coils", self.shape)(1)
        np.testing.assert_allclose(found, maps[1] if maps.ndim == 4 else maps, rtol=1e-6)
        assert found.dtype == torch.complex64

    @pytest.mark.parametrize(
        ("maps", "line"),
        [
            (
                np.zeros((3, 16, 10), complex),
                "dataset 'sensitivity' has shape (3, 16, 10); the k-space needs (3, 16, 12) (coil, height, width) or "
                "(2, 3, 16, 12) (slice, coil, height, width)",
            ),
            (np.zeros((3, 16, 12), int), "dataset 'sensitivity' has type int64; expected complex numbers"),
            (np.full((3, 16, 12), np.nan), "dataset 'sensitivity' has NaN or infinite values; expected numbers"),
        ],
    )
    def test_bad_maps(self, maps: Any, line: str, tmp_path: Path) -> None:
        where = self.write(tmp_path / "m.h5", maps)
        with pytest.raises(ValueError, match=f"^{re.escape(f'{where}: {line}')}$"):
            MapsFile(where, self.shape)

    def test_a_missing_dataset_is_named(self, tmp_path: Path) -> None:
        where = self.write(tmp_path / "m.h5", np.zeros(3), "other")
        with pytest.raises(ValueError, match=re.escape(f"{where}: no dataset 'x'; the file has other")):
            MapsFile(where + ":x", self.shape)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (
            4,
            "ESPIRiT maps need at least 6 x 6 calibration samples; the mask has 24 x 4 (height x width) fully sampled "
            "in the centre. Use a larger center fraction, maps=rss, or give the maps",
        ),
        (
            0,
            "ESPIRiT maps need at least 6 x 6 calibration samples; the mask has 24 x 0 (height x width) fully sampled "
            "in the centre. Use a larger center fraction, maps=rss, or give the maps",
        ),
    ],
)
def test_too_few_calibration_lines(columns: int, line: str, phantom: tuple[Tensor, Tensor, Tensor]) -> None:
    acs = torch.zeros(1, 60, dtype=torch.bool)
    acs[:, 30 - columns // 2 : 30 - columns // 2 + columns] = True
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        espirit_maps(phantom[0], acs)


def test_rss_maps_without_calibration_samples(phantom: tuple[Tensor, Tensor, Tensor]) -> None:
    line = (
        "coil maps need calibration samples; the mask has none fully sampled in the centre. "
        "Use a larger center fraction or give the maps"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        rss_maps(phantom[0], torch.zeros(1, 60, dtype=torch.bool))
