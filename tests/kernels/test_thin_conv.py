"""The convolution to a few filters against torch's."""

import pytest
import torch

from recurra.kernels import explain, thin_conv


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("padding", ["replicate", "zeros"])
@pytest.mark.parametrize("filters", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(2, 9, 7, 20), (1, 1, 1, 3), (1, 1, 4, 5), (1, 9, 2, 64), (0, 3, 3, 2)])
def test_is_the_convolution(dtype, padding, filters, shape):
    torch.manual_seed(0)
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(filters, 3, 3, shape[-1], dtype=dtype)
    for bias in (None, torch.randn(filters, dtype=dtype)):
        wide = None if bias is None else bias.double()
        exact = thin_conv(x.double(), weight.double(), wide, padding=padding, backend="reference")
        y = thin_conv(x, weight, bias, padding=padding, backend="numba")
        assert y.dtype == dtype
        # Float32: sums of 576 products of standard normal numbers, about 24 in size.
        torch.testing.assert_close(y.double(), exact, atol=1e-13 if dtype == torch.float64 else 3e-5, rtol=0)
        assert torch.equal(y, thin_conv(x, weight, bias, padding=padding, backend="numba"))


def test_nan_stays_in_its_neighbourhood():
    x, weight = torch.randn(1, 6, 6, 8), torch.randn(2, 3, 3, 8)
    x[0, 2, 3, 5] = torch.nan
    found = thin_conv(x, weight, None, backend="numba").isnan()[0, ..., 0]
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(found, expected)


def test_several_threads_give_the_numbers_of_one():
    x, weight = torch.randn(1, 200, 64, 32), torch.randn(2, 3, 3, 32)
    one = thin_conv(x, weight, None, backend="numba")
    torch.set_num_threads(2)
    try:
        assert torch.equal(thin_conv(x, weight, None, backend="numba"), one)
    finally:
        torch.set_num_threads(1)


def test_explain_and_refusals():
    x, weight = torch.randn(1, 8, 8, 4), torch.randn(2, 3, 3, 4)
    assert explain(thin_conv, x, weight).backend == "numba"
    with pytest.raises(ValueError, match=r"do not fit; expected \(batch, height, width, channel\) and \(filter, 3, 3"):
        thin_conv(x, torch.randn(2, 4, 3, 3), None)
    with pytest.raises(ValueError, match=r"^padding must be one of replicate, zeros; got 'reflect'$"):
        thin_conv(x, weight, None, padding="reflect")
    with pytest.raises(ValueError, match="numba serves float32 or float64 throughout"):
        thin_conv(x.half(), weight.half(), None, backend="numba")
