"""The CUDA kernels of the convolutional cells: in the interpreter, compiled for Hopper, and on a GPU."""

import os
from itertools import product

import pytest
import torch

from recurra.kernels import conv_cell_pointwise, explain
from recurra.kernels.conv_cell_pointwise import reference

pytest.importorskip("triton")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels run on the GPU here")
anywhere = pytest.mark.gpu if torch.cuda.is_available() else interpreted

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 3.2e-2}
# Of values of order one; what is stored in 16 bit is rounded once.
ON_A_GPU = {torch.float32: 1e-5, torch.bfloat16: 3.2e-2, torch.float16: 4e-3}
POINTERS = {
    "forward_kernel": ["gi", "gh", "h", "out"],
    "backward_kernel": ["d", "gi", "gh", "h", "dgi", "dgh", "dh"],
}


@anywhere
# gru and mgu need both parts.
@pytest.mark.parametrize(
    ("cell", "hidden"), [(c, h) for c in reference.GATES for h in (True, False) if h or c not in ("gru", "mgu")]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_agrees_with_the_definition(cell, dtype, channels_last, hidden):
    torch.manual_seed(0)
    gates = reference.GATES[cell]

    def draw(channels: int) -> torch.Tensor:
        # 2 * 5 * 11 * 13 values: more than one block of 1024, the last not full.
        t = torch.randn(2, channels, 11, 13, dtype=torch.float64).to(dtype)
        return t.contiguous(memory_format=torch.channels_last) if channels_last else t

    gi, h = draw(5 * gates), draw(5)
    gh = draw(5 * gates) if cell != "indrnn" and hidden else None
    u = torch.randn(1, 5, 1, 1, dtype=torch.float64).to(dtype) if cell == "indrnn" else None
    leaves = [t.requires_grad_() for t in (gi, gh, h, u) if t is not None]
    wide = [None if t is None else t.detach().double().requires_grad_() for t in (gi, gh, h, u)]
    exact = reference.new_state(cell, *wide)
    y = conv_cell_pointwise(cell, gi, gh, h, u=u, backend="triton")
    assert y.stride() == h.stride()
    torch.testing.assert_close(y.double(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    d = torch.randn_like(h)
    want = torch.autograd.grad(exact, [t for t in wide if t is not None], d.double())
    for got, expected in zip(torch.autograd.grad(y, leaves, d), want, strict=True):
        tolerance = 20 * TOLERANCE[dtype]
        torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


@anywhere
def test_double_backward_and_empty_batch():
    gi, h = torch.randn(1, 6, 3, dtype=torch.float64), torch.randn(1, 2, 3, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (gi, gi.clone(), h)]
    assert torch.autograd.gradgradcheck(lambda a, b, c: conv_cell_pointwise("gru", a, b, c, backend="triton"), leaves)
    assert conv_cell_pointwise("gru", gi[:0], gi[:0], h[:0], backend="triton").shape == (0, 2, 3)


@interpreted
def test_the_interpreter_is_never_chosen():
    x, h = torch.randn(1, 6, 3), torch.randn(1, 2, 3)
    choice = explain(conv_cell_pointwise, "gru", x, x, h)
    assert choice.backend != "triton"
    assert conv_cell_pointwise("gru", x, x, h, backend="triton").shape == h.shape


@pytest.fixture(scope="session")
def resources(ahead_of_time):
    """What each kernel needs of a Hopper GPU, by its name and type of numbers: one entry a cell."""

    def cases(name, element):
        signature = dict.fromkeys(POINTERS[name], f"*{element}") | dict.fromkeys(("total", "inner", "period"), "i64")
        return [
            {
                "module": "recurra.kernels.conv_cell_pointwise.triton", "function": name, "signature": signature,
                "constants": {"CELL": cell, "HIDDEN": cell != 2, "LAST": True, "WIDE": "tl.float32", "BLOCK": 1024},
                "num_warps": 4,
            }
            for cell in range(5)
        ]  # fmt: skip

    kinds = list(product(POINTERS, ("fp32", "bf16")))
    found = iter(ahead_of_time([case for kind in kinds for case in cases(*kind)]))
    return {kind: [next(found) for _ in range(5)] for kind in kinds}


@pytest.mark.parametrize("element", ["fp32", "bf16"])
@pytest.mark.parametrize("name", POINTERS)
def test_no_register_spills_on_hopper(name, element, resources):
    for found in resources[name, element]:
        assert found["stack"] == found["local"] == 0
        assert found["shared"] <= 4096
        assert found["registers"] <= 168


@pytest.mark.gpu
@pytest.mark.parametrize("cell", reference.GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(cell, dtype):
    torch.manual_seed(0)
    gates = reference.GATES[cell]
    gi, gh, h = (torch.randn(2, c * 16, 133, 131, device="cuda").to(dtype) for c in (gates, gates, 1))
    gh, u = (None, torch.randn(16, device="cuda").to(dtype)) if cell == "indrnn" else (gh, None)
    leaves = [t.requires_grad_() for t in (gi, gh, h, u) if t is not None]
    wide = [t.detach().cpu().double().requires_grad_() for t in leaves]
    rest = iter(wide)
    given = [None if t is None else next(rest) for t in (gi, gh, h, u)]
    exact = conv_cell_pointwise(cell, *given[:3], u=given[3], backend="reference")
    y = conv_cell_pointwise(cell, gi, gh, h, u=u, backend="triton")
    d = torch.randn_like(h)
    found = (y, *torch.autograd.grad(y, leaves, d))
    for got, want in zip(found, (exact, *torch.autograd.grad(exact, wide, d.cpu().double())), strict=True):
        # Of sums over all places too.
        scale = want.abs().max().clamp_min(1)
        torch.testing.assert_close(got.cpu().double() / scale, want / scale, atol=ON_A_GPU[dtype], rtol=0)
    assert torch.equal(conv_cell_pointwise(cell, gi, gh, h, u=u, backend="triton"), y)
