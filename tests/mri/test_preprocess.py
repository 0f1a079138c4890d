"""The preparation of a slice: direct's numbers, and what holds for any slice."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recurra.core.testing import assert_close, golden, golden_files
from recurra.mri.data.phantom import phantom_slice
from recurra.mri.masks import Equispaced, EquispacedFraction, Magic, MagicFraction, MaskGenerator, Random, file_seed
from recurra.mri.operators import fft, ifft, rss
from recurra.mri.preprocess import (
    Preprocess,
    acs_of_mask,
    compress_coils,
    normalize_atommic,
    padding_mask,
    quantile_scale,
)
from recurra.mri.sensitivity import espirit_maps

# The names of direct's generators; a number of lines in the place of a fraction makes its Cartesian* masks.
DIRECT: dict[str, type[MaskGenerator]] = {
    "FastMRIRandomMaskFunc": Random,
    "FastMRIEquispacedMaskFunc": EquispacedFraction,
    "FastMRIMagicMaskFunc": MagicFraction,
    "CartesianRandomMaskFunc": Random,
    "CartesianEquispacedMaskFunc": EquispacedFraction,
    "CartesianMagicMaskFunc": MagicFraction,
}
CONVENTIONS = {
    "centered orthonormal": "centered-ortho",
    "uncentered orthonormal": "uncentered-ortho",
    "centered backward": "centered-backward",
    "uncentered backward": "uncentered-backward",
}


def kspace(height: int = 48, width: int = 40, coils: int = 4, seed: int = 1, noise: float = 0.01) -> Tensor:
    return torch.from_numpy(phantom_slice(height, width, coils, seed, noise=noise)[0])


@pytest.mark.parity
@pytest.mark.parametrize("path", golden_files("mri", "pipeline_direct*"), ids=lambda path: path.stem)
def test_the_pipeline_of_direct(path: Path) -> None:
    pair = golden(path)
    config = pair.config
    raw = torch.view_as_complex(pair.inputs["kspace"].contiguous())
    preprocess = Preprocess(
        fft=CONVENTIONS[config.get("fft", "centered orthonormal")],  # type: ignore[arg-type]
        maps={"RSS_ESTIMATE": "rss", "UNIT": "unit"}[config.get("sensitivity_maps", "RSS_ESTIMATE")],  # type: ignore[arg-type]
        gaussian_sigma=config.get("gaussian"),
        padding_eps=config.get("padding_eps", 0.001),
        quantile=config.get("scale_percentile"),
    )
    generator = DIRECT[config["mask"]](config["accelerations"], config["center_fractions"])
    found = preprocess(raw, generator=generator, seed=file_seed(config["filename"]))
    expected = {
        name: value[..., 0] if "mask" in name and value.shape[-1] == 1 else value
        for name, value in pair.outputs.items()
    }
    shape = raw.shape[1:]
    assert torch.equal(found.mask.expand(1, *shape), expected["sampling_mask"].bool().reshape(1, *shape))
    assert torch.equal(found.acs.expand(1, *shape), expected["acs_mask"].bool().reshape(1, *shape))
    padding = padding_mask(raw, preprocess.padding_eps)
    assert padding is not None
    assert torch.equal(padding, expected["padding"].bool().reshape(shape))
    assert_close(found.scale, expected["scaling_factor"].reshape(()), pair.tolerance, name="scaling_factor")
    assert_close(found.kspace, expected["masked_kspace"], pair.tolerance, name="masked_kspace")
    assert_close(found.sensitivity, expected["sensitivity_map"], pair.tolerance, name="sensitivity_map")
    assert_close(found.target, expected["target"], pair.tolerance, name="target")
    full = torch.where(padding, 0, raw) / found.scale
    assert_close(full, expected["kspace"], pair.tolerance, name="kspace")


@given(scale=st.floats(1e-8, 1e8), kind=st.sampled_from(["quantile", "max_image"]))
@settings(max_examples=15, deadline=None)
def test_the_scale_of_the_scanner_does_not_matter(scale: float, kind: Any) -> None:
    preprocess = Preprocess(scaling=kind)
    first = preprocess(kspace(), generator=Random([4], [0.2]), seed=3)
    second = preprocess(kspace() * scale, generator=Random([4], [0.2]), seed=3)
    torch.testing.assert_close(first.kspace, second.kspace, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(first.target, second.target, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(second.scale, first.scale * scale, rtol=1e-4, atol=0.0)


def test_scalings() -> None:
    masked = kspace()
    assert Preprocess(scaling="none")(masked).scale == 1
    assert Preprocess(scaling="max_image")(masked).scale == ifft(masked).abs().max()
    zero = Preprocess()(torch.zeros(2, 16, 16, dtype=torch.complex64))
    assert zero.scale == 1
    assert not zero.kspace.any()


@pytest.mark.parametrize("count", [10, 100, 997])
@pytest.mark.parametrize("quantile", [0.5, 0.99])
def test_the_quantile_is_the_nth_largest_of_the_coils_that_measured(count: int, quantile: float) -> None:
    values = torch.rand(3, 1, count)
    values[1] = 0
    expected = values[[0, 2]].flatten().sort(descending=True).values[int((1 - quantile) * 2 * count)]
    assert quantile_scale(values, quantile) == expected


def test_padded_columns_are_zero_and_not_sampled() -> None:
    found = Preprocess(padding_eps=0.0)(kspace(), generator=Random([2], [0.3]), seed=1, padding=(4, 36))
    assert not found.mask[..., :4].any()
    assert not found.mask[..., 36:].any()
    assert not found.kspace[..., :4].any()
    own = Preprocess()(kspace(), mask=np.ones((1, 40), bool), padding=(4, 36))
    assert own.mask[0, 0].tolist() == [False] * 4 + [True] * 32 + [False] * 4


def test_the_files_own_mask_and_its_calibration_lines() -> None:
    mask = np.zeros((1, 40), bool)
    mask[:, ::4] = mask[:, 14:26] = True
    found = Preprocess(padding_eps=0.0)(kspace(), mask=mask, generator=Random([8], [0.1]), seed=0)
    np.testing.assert_array_equal(found.mask[0], mask)
    assert found.acs[0, 0].nonzero()[:, 0].tolist() == list(range(14, 26))
    fewer = Preprocess(padding_eps=0.0)(kspace(), mask=mask, acs_lines=6)
    assert fewer.acs[0, 0].nonzero()[:, 0].tolist() == list(range(17, 23))


def test_the_calibration_samples_of_a_plane() -> None:
    mask = torch.rand(48, 40, generator=torch.Generator().manual_seed(0)) < 0.1
    mask[18:30, 13:27] = True
    acs = acs_of_mask(mask, 48)
    assert mask[acs].all()
    assert acs.sum() >= 12 * 13


def test_given_maps_are_used_and_their_size_is_checked() -> None:
    maps = torch.ones(4, 48, 40, dtype=torch.complex64)
    assert torch.equal(Preprocess()(kspace(), sensitivity=maps).sensitivity, maps)
    line = "coil maps have shape (4, 48, 41); the k-space has (4, 48, 40)"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        Preprocess()(kspace(), sensitivity=torch.ones(4, 48, 41, dtype=torch.complex64))


def test_a_single_coil_has_the_unit_map() -> None:
    for maps in ("rss", "espirit", "unit"):
        found = Preprocess(maps=maps)(kspace(coils=1))  # type: ignore[arg-type]
        assert torch.equal(found.sensitivity, torch.ones(1, 48, 40, dtype=torch.complex64))


def test_maps_come_from_a_calibration_scan_where_there_is_one() -> None:
    raw = kspace()
    mask = np.zeros((1, 40), bool)
    mask[:, ::3] = True  # no calibration lines of its own
    lines = torch.zeros_like(raw)
    lines[..., 14:26] = raw[..., 14:26]
    steps = Preprocess(padding_eps=0.0, maps="espirit")
    found = steps(raw, mask=mask, calibration=lines.numpy())
    acs = torch.zeros(1, 40, dtype=torch.bool)
    acs[:, 14:26] = True
    torch.testing.assert_close(found.sensitivity, espirit_maps(raw, acs))
    with pytest.raises(ValueError, match="ESPIRiT maps need"):
        steps(raw, mask=mask)


@pytest.mark.parametrize("lines", [6, 8, 10, 12, 24])
def test_maps_from_few_calibration_lines_have_no_holes(lines: int) -> None:
    kspace, maps, image = phantom_slice(128, 128, 8, (0, 0))
    acs = torch.zeros(1, 128, dtype=torch.bool)
    acs[:, 64 - lines // 2 : 64 + lines // 2] = True
    found = Preprocess().estimate_maps(torch.as_tensor(kspace).to(torch.complex64), acs)
    inside = torch.as_tensor(image).abs() > 0.1 * np.abs(image).max()
    assert (found.abs().sum(0) > 0)[inside].all()
    exact = torch.as_tensor(maps)
    alignment = (found.conj() * exact).sum(0).abs() / exact.abs().pow(2).sum(0).sqrt().clamp_min(1e-9)
    assert alignment[inside].mean() > 0.995


def test_the_input_is_not_changed() -> None:
    raw = kspace()
    before = raw.clone()
    Preprocess(coil_compression=2)(raw, generator=Random([4], [0.2]), seed=0, padding=(4, 36))
    assert torch.equal(raw, before)


class TestCoilCompression:
    def acs(self) -> Tensor:
        acs = torch.zeros(1, 40, dtype=torch.bool)
        acs[:, 10:30] = True
        return acs

    def test_as_many_coils_keep_the_image(self) -> None:
        raw = kspace()
        torch.testing.assert_close(rss(ifft(compress_coils(raw, self.acs(), 4))[None]), rss(ifft(raw)[None]))

    @pytest.mark.parametrize("plane", [False, True])
    def test_half_as_many_lose_little(self, plane: bool) -> None:
        raw = kspace(coils=8, noise=0.001)
        acs = self.acs()
        if plane:
            acs = acs.expand(48, -1).clone()
            acs[:14] = acs[34:] = False
        compressed = compress_coils(raw, acs, 4)
        assert compressed.shape == (4, 48, 40)
        kept = compressed.abs().square().sum() / raw.abs().square().sum()
        assert 0.8 < kept <= 1.0001

    def test_it_commutes_with_a_mask_of_columns(self) -> None:
        raw = kspace()
        mask = Random([3], [0.5])((48, 40), seed=1)
        sampling = torch.from_numpy(mask.sampling)
        first = compress_coils(raw, self.acs(), 2) * sampling
        second = compress_coils(torch.where(sampling | self.acs(), raw, 0), self.acs(), 2) * sampling
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-3)

    def test_in_the_pipeline(self) -> None:
        found = Preprocess(coil_compression=2)(kspace(), generator=Random([4], [0.3]), seed=0)
        assert found.kspace.shape == found.sensitivity.shape == (2, 48, 40)
        line = "coil_compression and given coil maps exclude each other; leave one of them out"
        with pytest.raises(ValueError, match=line):
            Preprocess(coil_compression=2)(kspace(), sensitivity=torch.ones(4, 48, 40, dtype=torch.complex64))


@pytest.mark.parametrize("kind", ["max", "minmax"])
def test_atommic_normalisation(kind: Any) -> None:
    raw = kspace()
    normalized, offset, scale = normalize_atommic(raw, kind)
    images = ifft(normalized)
    torch.testing.assert_close(images * scale + offset, ifft(raw), atol=1e-5, rtol=1e-4)
    if kind == "max":
        assert images.abs().max() == pytest.approx(1.0, rel=1e-4)
        assert offset == 0


def test_conventions_differ_by_where_the_image_is() -> None:
    raw = kspace()
    upright = Preprocess()(raw).target
    for convention in ("recentered-ortho", "uncentered-ortho"):
        target = Preprocess(fft=convention)(raw).target  # type: ignore[arg-type]
        expected = torch.fft.ifftshift(upright) if convention.startswith("un") else upright
        torch.testing.assert_close(target, expected, atol=1e-4, rtol=1e-3)
    assert fft(ifft(raw)).shape == raw.shape


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: Preprocess()(kspace(), mask=np.ones((1, 41), bool)),
            "the mask has shape (1, 41); k-space of 48 x 40 needs (1, 40) or (48, 40)",
        ),
        (
            lambda: Preprocess()(kspace(), mask=np.zeros((1, 40), bool)),
            "the mask keeps no sample; expected at least one that is true",
        ),
        (
            lambda: Preprocess()(kspace(), generator=Equispaced([4], [0.0]), seed=0),
            "coil maps need calibration samples; the mask has none fully sampled in the centre. "
            "Use a larger center fraction or give the maps",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make: Any, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        make()


def test_magic_masks_serve_too() -> None:
    assert Preprocess()(kspace(), generator=Magic([4], [0.2]), seed=0).acceleration == 4


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("maps", "grappa", "maps must be one of espirit, rss, unit; got 'grappa'"),
        ("scaling", "max", "scaling must be one of quantile, max_image, none; got 'max'"),
    ],
)
def test_unknown_choices_are_refused(field: str, value: str, line: str) -> None:
    steps = Preprocess()
    object.__setattr__(steps, field, value)  # the constructor's own types are checked in tests before its body is
    with pytest.raises(ValueError, match=f"^{line}$"):
        steps.__post_init__()
