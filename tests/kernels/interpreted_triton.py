"""Cases that test_triton.py runs in a process with TRITON_INTERPRET=1."""

import pytest
import torch

from recurra.kernels import conv_cell_pointwise, explain
from recurra.kernels.conv_cell_pointwise import reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 3.2e-2}


@pytest.mark.parametrize("cell", reference.GATES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("hidden", [True, False])
def test_agrees_with_the_definition(cell, dtype, channels_last, hidden):
    torch.manual_seed(0)
    gates = reference.GATES[cell]

    def draw(channels: int) -> torch.Tensor:
        # 2 * 5 * 11 * 13 values: more than one block of 1024, the last not full.
        t = torch.randn(2, channels, 11, 13, dtype=torch.float64).to(dtype)
        return t.contiguous(memory_format=torch.channels_last) if channels_last else t

    gi, h = draw(5 * gates), draw(5)
    if not hidden and cell in ("gru", "mgu"):
        pytest.skip("gru and mgu need both parts")
    gh = draw(5 * gates) if cell != "indrnn" and hidden else None
    u = torch.randn(1, 5, 1, 1, dtype=torch.float64).to(dtype) if cell == "indrnn" else None
    leaves = [t.requires_grad_() for t in (gi, gh, h, u) if t is not None]
    wide = [None if t is None else t.detach().double().requires_grad_() for t in (gi, gh, h, u)]
    exact = reference.forward(cell, *wide)
    y = conv_cell_pointwise(cell, gi, gh, h, u=u, backend="triton")
    assert y.stride() == h.stride()
    torch.testing.assert_close(y.double(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    d = torch.randn_like(h)
    want = torch.autograd.grad(exact, [t for t in wide if t is not None], d.double())
    for got, expected in zip(torch.autograd.grad(y, leaves, d), want, strict=True):
        tolerance = 20 * TOLERANCE[dtype]
        torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


def test_double_backward_and_empty_batch():
    gi, h = torch.randn(1, 6, 3, dtype=torch.float64), torch.randn(1, 2, 3, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (gi, gi.clone(), h)]
    assert torch.autograd.gradgradcheck(lambda a, b, c: conv_cell_pointwise("gru", a, b, c, backend="triton"), leaves)
    assert conv_cell_pointwise("gru", gi[:0], gi[:0], h[:0], backend="triton").shape == (0, 2, 3)


def test_the_interpreter_is_never_chosen():
    x, h = torch.randn(1, 6, 3), torch.randn(1, 2, 3)
    choice = explain(conv_cell_pointwise, "gru", x, x, h)
    assert choice.backend != "triton"
    assert conv_cell_pointwise("gru", x, x, h, backend="triton").shape == h.shape
