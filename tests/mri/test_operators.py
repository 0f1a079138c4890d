from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recurra.core.testing import assert_close
from recurra.mri import operators
from recurra.mri.operators import FFTConvention

CONVENTIONS = get_args(FFTConvention)
TOLERANCE = {torch.complex64: 1e-5, torch.complex128: 1e-12}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def inner(x: Tensor, y: Tensor) -> Tensor:
    return (x.conj() * y).sum()


sizes = st.lists(st.integers(1, 7), min_size=3, max_size=3).map(tuple)
conventions = st.sampled_from(CONVENTIONS)


@settings(deadline=None, max_examples=60)
@given(conventions, sizes, st.integers(1, 3), st.sampled_from(list(TOLERANCE)))
def test_ifft_undoes_fft(convention: Any, shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    x = randn(2, *shape, dtype=dtype)
    k = operators.fft(x, convention, dim)
    assert k.dtype == dtype
    assert_close(operators.ifft(k, convention, dim), x, atol=TOLERANCE[dtype])


@settings(deadline=None, max_examples=60)
@given(conventions, sizes, st.integers(1, 3), st.sampled_from(list(TOLERANCE)))
def test_ifft_is_the_adjoint_of_fft_up_to_scale(
    convention: Any, shape: tuple[int, ...], dim: int, dtype: torch.dtype
) -> None:
    x, k = randn(*shape, dtype=dtype), randn(*shape, seed=1, dtype=dtype)
    points = torch.tensor(shape[-dim:]).prod()
    scale = {"ortho": 1.0, "backward": float(points), "forward": 1 / float(points)}[convention.split("-")[1]]
    left = inner(operators.fft(x, convention, dim), k)
    right = scale * inner(x, operators.ifft(k, convention, dim))
    assert_close(left, right, atol=100 * TOLERANCE[dtype] * max(scale, 1))


@settings(deadline=None, max_examples=40)
@given(sizes, st.integers(1, 4), st.sampled_from(list(TOLERANCE)))
def test_sense_reduce_is_the_adjoint_of_expand(shape: tuple[int, ...], coils: int, dtype: torch.dtype) -> None:
    batch, height, width = shape
    maps = randn(batch, coils, height, width, dtype=dtype)
    x, z = randn(batch, height, width, seed=1, dtype=dtype), randn(batch, coils, height, width, seed=2, dtype=dtype)
    left = inner(operators.sense_expand(x, maps), z)
    assert_close(left, inner(x, operators.sense_reduce(z, maps)), atol=1000 * TOLERANCE[dtype])


def test_centered_fft_has_its_zero_frequency_in_the_middle() -> None:
    for shape in ((6, 8), (5, 7)):
        middle = shape[0] // 2, shape[1] // 2
        k = operators.fft(torch.ones(1, *shape, dtype=torch.complex128), "centered-ortho")
        assert k.abs().argmax() == middle[0] * shape[1] + middle[1]
        assert_close(k.abs().max(), (shape[0] * shape[1]) ** 0.5, rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (6, 7)])
def test_recentered_fft_is_the_uncentered_one_with_the_image_in_the_middle(shape: tuple[int, int]) -> None:
    k = randn(2, *shape)
    plain = operators.ifft(k, "uncentered-ortho")
    recentered = operators.ifft(k, "recentered-ortho")
    assert_close(recentered, torch.fft.fftshift(plain, dim=(-2, -1)), atol=1e-12)
    # The same as a centred transform whose k-space is taken to the corner first.
    assert_close(recentered, operators.ifft(torch.fft.fftshift(k, dim=(-2, -1)), "centered-ortho"), atol=1e-12)
    assert_close(operators.fft(recentered, "recentered-ortho"), k, atol=1e-12)


def test_unknown_convention_is_named() -> None:
    name: Any = "centred"
    with pytest.raises((ValueError, TypeError), match="centred"):
        operators.fft(randn(2, 2), name)


@settings(deadline=None, max_examples=40)
@given(conventions, st.integers(2, 6), st.integers(2, 6), st.booleans())
def test_data_gradient_is_a_gradient(convention: Any, height: int, width: int, columns: bool) -> None:
    x = randn(2, height, width).requires_grad_()
    maps, y = randn(2, 3, height, width, seed=1), randn(2, 3, height, width, seed=2)
    mask = torch.rand(1, 1, 1 if columns else height, width, generator=torch.Generator().manual_seed(3)) < 0.5
    error = torch.where(mask, operators.fft(operators.sense_expand(x, maps), convention) - y, 0)
    # Half the squared error; with an orthonormal transform its adjoint is its inverse.
    (0.5 * error.abs().square().sum()).backward()
    scale = {"ortho": 1.0, "backward": height * width, "forward": 1 / (height * width)}[convention.split("-")[1]]
    assert x.grad is not None
    gradient = operators.data_gradient(x.detach(), y, maps, mask, convention)
    assert_close(scale * gradient, x.grad, atol=1e-10, rtol=1e-10)


def test_data_gradient_never_reads_what_was_not_sampled() -> None:
    maps, y = randn(1, 2, 4, 5), randn(1, 2, 4, 5, seed=1)
    mask = torch.tensor([True, False, True, False, True])[None, None, None]
    x = randn(1, 4, 5, seed=2)
    poisoned = torch.where(mask, y, torch.nan)
    clean = operators.data_gradient(x, y, maps, mask)
    assert_close(operators.data_gradient(x, poisoned, maps, mask), clean)


@pytest.mark.parametrize("function", [operators.rss, operators.rss_components, operators.atommic_rss_complex])
def test_rss_of_one_coil(function: Any) -> None:
    z = randn(2, 1, 3, 4)
    expected = z[:, 0].abs().sqrt() if function is operators.atommic_rss_complex else z[:, 0].abs()
    assert_close(function(z).abs(), expected, atol=1e-12)


def test_rss_components_have_the_right_magnitude() -> None:
    z = randn(2, 3, 4, 5)
    assert_close(operators.rss_components(z).abs(), operators.rss(z), atol=1e-12)


def test_rss_and_division_have_gradients_where_all_coils_are_zero() -> None:
    z = randn(1, 3, 2, 2)
    z[..., 0, 0] = 0
    z.requires_grad_()
    maps = operators.divide_nonzero(z, operators.rss(z))
    assert maps[..., 0, 0].eq(0).all()
    assert_close(operators.rss(maps)[0, 1], torch.ones(2), atol=1e-12)
    maps.abs().sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_crop_takes_the_middle() -> None:
    x = torch.arange(30).reshape(5, 6)
    assert operators.center_crop(x, (3, 2)).tolist() == [[8, 9], [14, 15], [20, 21]]
    assert operators.center_crop(x, (5, 6)).equal(x)
    with pytest.raises(ValueError, match=r"^cannot crop an image of 5 x 6 to 6 x 2$"):
        operators.center_crop(x, (6, 2))


def test_channels_round_trip_and_widen_half_precision() -> None:
    x = randn(2, 3, 4, dtype=torch.complex64)
    assert operators.from_channels(operators.to_channels(x)).equal(x)
    half = operators.from_channels(operators.to_channels(x).bfloat16())
    assert half.dtype == torch.complex64
    assert_close(half, x, rtol=0.01, atol=0.01)
