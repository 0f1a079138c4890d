"""Completed k-space against images that are known, and the masks that show what is missing."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.mri.masks import MASKS
from recurra.mri.operators import fft, ifft
from recurra.mri.partial_fourier import complete
from recurra.mri.sampling import partial_range

Axis = Literal["rows", "columns"]


def magnitude(height: int, width: int) -> torch.Tensor:
    """Ellipses, in float64."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, dtype=torch.float64),
        torch.linspace(-1, 1, width, dtype=torch.float64),
        indexing="ij",
    )
    body = [(0, 0, 0.8, 0.7, 1), (0.05, 0, 0.7, 0.6, -0.6), (0.2, 0.25, 0.15, 0.2, 0.5), (-0.3, -0.2, 0.2, 0.1, 0.4)]
    return sum(
        (v * (((y - b) / h) ** 2 + ((x - a) / w) ** 2 < 1) for b, a, h, w, v in body), torch.zeros_like(y)
    ).double()


def smooth_phase(height: int, width: int) -> torch.Tensor:
    y = torch.linspace(-1, 1, height, dtype=torch.float64)[:, None]
    x = torch.linspace(-1, 1, width, dtype=torch.float64)
    return torch.polar(torch.ones(()).double(), 0.5 + 1.5 * y - 0.8 * x * y + 1.2 * x**2)


def kept(size: int, eighths: int, side: str) -> range:
    lines = round(size * eighths / 8)
    return range(lines) if side == "first" else range(size - lines, size)


def db(found: torch.Tensor, truth: torch.Tensor) -> float:
    error = ((found.abs() - truth.abs()) ** 2).mean()
    return float(10 * torch.log10(truth.abs().max() ** 2 / error))


@pytest.mark.parametrize("side", ["first", "last"])
@pytest.mark.parametrize("axis", ["rows", "columns"])
@pytest.mark.parametrize("shape", [(96, 80), (81, 95)])
# Measured on the worst of these: homodyne gains 11.9, 9.2, 6.3 dB for 5/8, 6/8, 7/8; pocs 15.9, 17.4, 16.3 dB.
@pytest.mark.parametrize(("eighths", "homodyne", "pocs"), [(5, 11, 15), (6, 8, 16), (7, 5, 15)])
def test_smooth_phase_is_completed(
    eighths: int, homodyne: float, pocs: float, shape: tuple[int, int], axis: Axis, side: str
) -> None:
    image = magnitude(*shape) * smooth_phase(*shape)
    lines: Any = {axis: kept(shape[axis == "columns"], eighths, side)}
    zero = db(complete(image, method="zero", **lines), image)
    assert zero < 35
    assert db(complete(image, method="homodyne", **lines), image) > zero + homodyne
    assert db(complete(image, method="pocs", **lines), image) > zero + pocs


@given(
    height=st.integers(24, 40),
    width=st.integers(24, 40),
    axis=st.sampled_from(["rows", "columns"]),
    side=st.sampled_from(["first", "last"]),
    eighths=st.integers(5, 7),
    sign=st.sampled_from([1, -1, 1j]),
)
@settings(max_examples=40, deadline=None)
def test_a_real_image_is_recovered(height: int, width: int, axis: Any, side: str, eighths: int, sign: complex) -> None:
    """Whatever its constant phase; only the highest frequency of an even matrix has no mirror to take it from."""
    image = magnitude(height, width) * sign
    lines: Any = {axis: kept((height, width)[axis == "columns"], eighths, side)}
    highest = torch.ones(height, width)
    if side == "last":
        cut = torch.arange(width) if axis == "columns" else torch.arange(height)[:, None]
        highest = torch.where((cut == 0) & (cut.numel() % 2 == 0), 0, highest)
    image = ifft(fft(image + 0j) * highest)
    # The phase is lost where the coarse image crosses zero within rounding, 1e-16; the worst seen is 1e-9.
    torch.testing.assert_close(complete(image, method="homodyne", **lines), image, atol=1e-7, rtol=0)


def test_pocs_recovers_a_real_image() -> None:
    image = magnitude(81, 95) + 0j
    torch.testing.assert_close(
        complete(image, columns=range(59), method="pocs", iterations=60), image, atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("method", ["zero", "homodyne", "pocs"])
@pytest.mark.parametrize(
    "lines",
    [
        {},
        {"rows": range(24), "columns": range(21)},
        {"rows": range(2, 23)},  # short on both sides: no line lacks its mirror but the first, which has none
        {"columns": range(3, 18)},
    ],
)
def test_nothing_is_done_where_nothing_is_missing(method: Any, lines: Any) -> None:
    image = torch.randn(24, 21, dtype=torch.complex64)
    assert complete(image, method=method, **lines) is image


def test_pocs_keeps_what_was_measured() -> None:
    image = torch.randn(2, 24, 21, dtype=torch.complex128)
    found = complete(image, rows=range(5, 24), columns=range(15), method="pocs")
    torch.testing.assert_close(fft(found)[:, 5:, :15], fft(image)[:, 5:, :15])


def test_what_was_not_measured_is_not_used() -> None:
    """A network fills the other side with something of its own."""
    image = magnitude(32, 32) * smooth_phase(32, 32)
    other = fft(image)
    other[:, 22:] = 5
    for method in ("zero", "homodyne", "pocs"):
        torch.testing.assert_close(
            complete(ifft(other), columns=range(22), method=method),  # type: ignore[arg-type]
            complete(image, columns=range(22), method=method),  # type: ignore[arg-type]
        )


def test_both_axes_at_once() -> None:
    image = magnitude(96, 80) * smooth_phase(96, 80)
    lines: Any = {"rows": range(24, 96), "columns": range(60)}
    zero, homodyne, pocs = (db(complete(image, method=m, **lines), image) for m in ("zero", "homodyne", "pocs"))
    # Measured: 26.3, 31.7 and 34.4 dB. A sixteenth of k-space lacks its mirror too.
    assert homodyne > zero + 4
    assert pocs > zero + 6


@pytest.mark.parametrize("method", ["zero", "homodyne", "pocs"])
def test_batches_and_precisions(method: Any) -> None:
    images = torch.stack([magnitude(32, 40) * smooth_phase(32, 40), 1e-5 * torch.randn(32, 40) * (1 + 0j)])
    both = complete(images[None], columns=range(26), method=method)
    assert both.shape == (1, 2, 32, 40)
    for one, image in zip(both[0], images, strict=True):
        torch.testing.assert_close(one, complete(image, columns=range(26), method=method))
    single = complete(images.to(torch.complex64), columns=range(26), method=method)
    assert single.dtype == torch.complex64
    torch.testing.assert_close(single[0].to(torch.complex128), both[0, 0], atol=2e-5, rtol=0)
    assert not complete(torch.zeros(8, 16, dtype=torch.complex64), columns=range(12), method=method).any()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"columns": range(1, 22), "rows": range(13)},
            "rows 0 to 12 of 24 were measured, 1 of them about the centre; completing k-space needs at least 4 there. "
            "Use zero filling",
        ),
        (
            {"columns": range(30, 40)},
            "columns 30 to 39 of 40 were measured, 0 of them about the centre; completing k-space needs at least 4 "
            "there. Use zero filling",
        ),
        ({"columns": range(0, 41)}, "columns measured must be a range within 0 to 40; got range(0, 41)"),
        ({"columns": range(0, 40, 2)}, "columns measured must be a range within 0 to 40; got range(0, 40, 2)"),
        ({"columns": range(3, 3)}, "columns measured must be a range within 0 to 40; got range(3, 3)"),
        ({"columns": range(30), "iterations": 0}, "iterations must be a whole number from 1 on; got 0"),
    ],
)
def test_what_is_refused(options: Any, line: str) -> None:
    image = torch.randn(24, 40, dtype=torch.complex64)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole line is compared
        complete(image, **options)
    assert str(caught.value) == line


class TestPartialRange:
    @pytest.mark.parametrize("size", [320, 321])
    @pytest.mark.parametrize("eighths", [5, 6, 7])
    @pytest.mark.parametrize("side", ["first", "last"])
    @pytest.mark.parametrize("acceleration", [1, 2, 4])
    def test_every_nth_line_with_a_centre(self, size: int, eighths: int, side: str, acceleration: int) -> None:
        mask = np.zeros((1, size), bool)
        mask[:, (acceleration > 1) :: acceleration] = True
        mask[:, size // 2 - 12 : size // 2 + 12] = True
        lines = kept(size, eighths, side)
        mask[:, : lines.start] = mask[:, lines.stop :] = False
        found = partial_range(mask, "columns")
        assert found is not None
        # up to the last line of the pattern on the short side, to the end of the matrix on the long one
        assert 0 <= found.start - lines.start < acceleration
        assert 0 <= lines.stop - found.stop < acceleration
        if acceleration > 1:
            assert (found.start == 0) if side == "first" else (found.stop == size)
        assert partial_range(mask, "rows") is None
        turned = np.repeat(mask.T, 5, 1)
        assert partial_range(turned, "rows") == found
        assert partial_range(turned, "columns") is None

    @pytest.mark.parametrize("name", sorted(set(MASKS) - {"calgary_campinas", "mixed"}))
    def test_symmetric_patterns_are_none(self, name: str) -> None:
        for seed in range(5):
            plane = MASKS[name]([4], [0.08])((80, 72), seed=seed).sampling
            for axis in ("rows", "columns"):
                assert partial_range(plane, axis) is None, (name, seed)  # type: ignore[arg-type]

    def test_padding_is_none(self) -> None:
        """A matrix of 372 of which 322 were measured, one more before the centre than after it."""
        mask = np.zeros((1, 372), bool)
        mask[:, 25:347] = True
        assert partial_range(mask, "columns") is None
        assert partial_range(np.zeros((4, 8), bool), "rows") is None
