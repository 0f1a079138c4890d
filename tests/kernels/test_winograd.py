"""Winograd's convolution against the direct sum."""

import pytest
import torch

from recurra.kernels import explain, winograd_conv, winograd_weight
from recurra.kernels.winograd.reference import direct

# Float64: rounding of the transforms. Float32: README.md, measured 1.5e-6 to 2.5e-6 at 128 channels.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6}


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("padding", ["replicate", "zeros"])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 13, 18, 8), (1, 4, 4, 20), (1, 1, 5, 3), (1, 3, 2, 1), (0, 4, 4, 2)])
def test_is_the_convolution(backend, dtype, padding, dilation, shape):
    torch.manual_seed(0)
    x, bias = torch.randn(shape, dtype=dtype), torch.randn(6, dtype=dtype)
    kernel = torch.randn(6, shape[-1], 3, 3, dtype=dtype)
    weight = winograd_weight(kernel)
    for relu, offset in ((True, bias), (False, None)):
        y = winograd_conv(x, weight, offset, dilation=dilation, padding=padding, relu=relu, backend=backend)
        exact = direct(
            x.double(), kernel.double(), None if offset is None else offset.double(), dilation, padding, relu
        )
        assert y.dtype == dtype
        scale = exact.abs().max().item() if exact.numel() else 1
        torch.testing.assert_close(y.double(), exact, atol=TOLERANCE[dtype] * scale, rtol=0)


def test_every_value_is_written_and_runs_are_equal():
    x, weight = torch.randn(1, 37, 21, 16), winograd_weight(torch.randn(24, 16, 3, 3))
    outs = [torch.full((1, 37, 21, 24), torch.nan) for _ in range(2)]
    for out in outs:
        assert winograd_conv(x, weight, None, out=out, backend="numba") is out
    assert outs[0].isfinite().all()
    assert torch.equal(*outs)


def test_blocks_of_tiles_do_not_mix():
    # More tiles than one block, then a NaN image through the same buffers, then the first again.
    x, weight = torch.randn(1, 90, 90, 32), winograd_weight(torch.randn(32, 32, 3, 3))
    first = winograd_conv(x, weight, None, backend="numba")
    winograd_conv(torch.full_like(x, torch.nan), weight, None, backend="numba")
    assert torch.equal(winograd_conv(x, weight, None, backend="numba"), first)
    small = winograd_conv(x[:, :10, :10].contiguous(), weight, None, backend="numba")
    assert torch.equal(small[:, :7, :7], first[:, :7, :7])


def test_several_threads_give_the_numbers_of_one():
    x, weight = torch.randn(1, 64, 64, 32), winograd_weight(torch.randn(32, 32, 3, 3))
    one = winograd_conv(x, weight, None, backend="numba")
    torch.set_num_threads(2)
    try:
        torch.testing.assert_close(winograd_conv(x, weight, None, backend="numba"), one, atol=1e-4, rtol=1e-4)
    finally:
        torch.set_num_threads(1)


def test_explain_and_refusals():
    x, weight = torch.randn(1, 8, 8, 4), winograd_weight(torch.randn(3, 4, 3, 3))
    assert explain(winograd_conv, x, weight, None).backend == "numba"
    with pytest.raises(ValueError, match=r"^weight has shape \(3, 4, 5, 5\); expected \(filter, channel, 3, 3\)$"):
        winograd_weight(torch.randn(3, 4, 5, 5))
    with pytest.raises(ValueError, match=r"do not fit; expected \(batch, height, width, channel\)"):
        winograd_conv(torch.randn(1, 8, 8, 5), weight, None)
    with pytest.raises(ValueError, match=r"^padding must be one of replicate, zeros; got 'reflect'$"):
        winograd_conv(x, weight, None, padding="reflect")
    with pytest.raises(ValueError, match=r"^out has shape \(1, 8, 8, 4\); expected \(1, 8, 8, 3\)"):
        winograd_conv(x, weight, None, out=torch.empty(1, 8, 8, 4))
    with pytest.raises(ValueError, match=r"numba serves float32 or float64 throughout"):
        winograd_conv(x.half(), weight.half(), None, backend="numba")
