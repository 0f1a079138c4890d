"""The two-dimensional scan: every backend against the definition, the definition against what is known of it."""

import importlib

import pytest
import torch

from recurra.kernels import explain, linear_scan, opaque, ssm2d_scan
from recurra.kernels.ssm2d_scan import OP

D = torch.float64
# Of values of order one: a few roundings of the result's dtype; 16 bit is rounded once, after arithmetic in float32.
TOLERANCE = {D: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
KERNELS = ["numba", "triton"]
# More rows than columns and fewer; widths below, at and above the kernels' 16; coefficients along every axis.
SIZES = [(2, 3, 5, 4), (1, 6, 2, 17), (2, 2, 3, 16), (1, 1, 1, 1)]
FORMS = {
    "fixed": lambda b, v, t, n: [(n,)] * 4,
    "full": lambda b, v, t, n: [(b, v, t, n)] * 4,
    "mixed": lambda b, v, t, n: [(t, n), (v, 1, n), (b, 1, 1, n), (1,)],
}


def problem(size, form="fixed", dtype=D, *, borders=True):
    batch, rows, columns, width = size
    generator = torch.Generator().manual_seed(sum(size))

    def draw(*shape):
        return torch.randn(shape, dtype=D, generator=generator).to(dtype).requires_grad_()

    a = [(0.4 * torch.tanh(draw(*shape).detach())).requires_grad_() for shape in FORMS[form](*size)]
    edge = [
        draw(batch, rows, width),
        draw(batch, rows, width),
        draw(batch, columns, width),
        draw(batch, columns, width),
    ]
    return [*a, draw(*size), draw(*size), *(edge if borders else [])]


def run(leaves, backend):
    left, top = (leaves[6:8], leaves[8:10]) if len(leaves) > 6 else (None, None)
    return ssm2d_scan(*leaves[:6], left, top, backend=backend)


def gradients(outputs, leaves, weights):
    return torch.autograd.grad(outputs, leaves, [w.to(o.dtype) for w, o in zip(weights, outputs, strict=True)])


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_definition(size, form, backend, poisoned_memory):
    leaves = problem(size, form)
    weights = [torch.randn(size, dtype=D) for _ in "hg"]
    with poisoned_memory():
        outputs = run(leaves, backend)
        found = gradients(outputs, leaves, weights)
    exact = run(leaves, "reference")
    for got, want in zip((*outputs, *found), (*exact, *gradients(exact, leaves, weights)), strict=True):
        torch.testing.assert_close(got, want, atol=TOLERANCE[D], rtol=TOLERANCE[D])


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_dtypes_against_float64(dtype, backend):
    leaves = problem((2, 4, 6, 5), dtype=dtype)
    wide = [leaf.detach().to(D).requires_grad_() for leaf in leaves]
    weights = [torch.randn(2, 4, 6, 5).to(dtype) for _ in "hg"]
    outputs, exact = run(leaves, backend), run(wide, "reference")
    assert all(output.dtype == dtype for output in outputs)
    pairs = zip(
        (*outputs, *gradients(outputs, leaves, weights)), (*exact, *gradients(exact, wide, weights)), strict=True
    )
    for got, want in pairs:
        # Sums of many terms, of which 16 bit keeps eight bits.
        scale = want.abs().max().clamp_min(1)
        torch.testing.assert_close(got.to(D) / scale, want / scale, atol=TOLERANCE[dtype], rtol=0)


def test_bfloat16_carries_its_state_in_float32():
    # 1 / 3 of bfloat16, carried in bfloat16, would stop growing at 256.
    ones = torch.ones(1, 1, 600, 1, dtype=torch.bfloat16)
    a, none = torch.ones(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)
    for backend in ("reference", "numba"):
        h, _ = ssm2d_scan(a, none, none, none, ones, ones, backend=backend)
        assert h[0, 0, -1, 0] == 600


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_uncoupled_states_are_scans_of_their_own(backend):
    a1, _, _, a4, b1, b2, h_left, g_left, h_top, g_top = problem((2, 4, 7, 3))
    none = torch.zeros(3, dtype=D)
    h, g = ssm2d_scan(a1, none, none, a4, b1, b2, (h_left, g_left), (h_top, g_top), backend=backend)
    along, _ = linear_scan(a1, b1.flatten(0, 1), h_left.flatten(0, 1))
    down, _ = linear_scan(a4, b2.transpose(1, 2).flatten(0, 1), g_top.flatten(0, 1))
    torch.testing.assert_close(h.flatten(0, 1), along, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(g, down.unflatten(0, (2, 7)).transpose(1, 2), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_fixed_coefficients_are_a_convolution_with_the_impulse_response(backend):
    rows, columns = 4, 5
    a1, a2, a3, a4, b1, b2 = problem((1, rows, columns, 2), borders=False)
    impulse = torch.zeros(2, rows, columns, 2, dtype=D)
    impulse[0, 0, 0] = 1
    from_b1 = ssm2d_scan(a1, a2, a3, a4, impulse[:1], impulse[1:], backend="reference")
    from_b2 = ssm2d_scan(a1, a2, a3, a4, impulse[1:], impulse[:1], backend="reference")
    found = ssm2d_scan(a1, a2, a3, a4, b1, b2, backend=backend)
    for state, first, second in zip(found, from_b1, from_b2, strict=True):
        expected = torch.zeros(1, rows, columns, 2, dtype=D)
        for v in range(rows):
            for t in range(columns):
                for b, response in ((b1, first), (b2, second)):
                    expected[:, v:, t:] += b[:, v, t, None, None] * response[:, : rows - v, : columns - t]
        torch.testing.assert_close(state, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_a_cut_along_either_axis_changes_nothing(backend):
    leaves = problem((2, 5, 6, 3), "full")
    a, (b1, b2), left, top = leaves[:4], leaves[4:6], leaves[6:8], leaves[8:10]
    h, g = run(leaves, backend)
    first = ssm2d_scan(*(x[:, :, :4] for x in (*a, b1, b2)), left, [x[:, :4] for x in top], backend=backend)
    last = [x[:, :, -1] for x in first]
    h_rest, g_rest = ssm2d_scan(*(x[:, :, 4:] for x in (*a, b1, b2)), last, [x[:, 4:] for x in top], backend=backend)
    torch.testing.assert_close(torch.cat([first[0], h_rest], 2), h, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(torch.cat([first[1], g_rest], 2), g, atol=1e-12, rtol=1e-12)
    above = [x[:, 1] for x in (h, g)]
    h_rest, _ = ssm2d_scan(*(x[:, 2:] for x in (*a, b1, b2)), [x[:, 2:] for x in left], above, backend=backend)
    torch.testing.assert_close(h_rest, h[:, 2:], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@pytest.mark.parametrize("size", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_nothing_to_do(size, backend):
    leaves = problem(size)
    outputs = run(leaves, backend)
    assert [o.shape for o in outputs] == [size, size]
    for gradient, leaf in zip(gradients(outputs, leaves, outputs), leaves, strict=True):
        assert gradient.shape == leaf.shape
        assert not gradient.any()


@pytest.mark.parametrize("backend", KERNELS)
def test_strided_and_expanded_inputs(backend):
    leaves = [leaf.detach() for leaf in problem((2, 3, 4, 5))]
    expected = run(leaves, "reference")
    strided = [leaf.mT.contiguous().mT if leaf.dim() > 1 else torch.stack([leaf, leaf], 1)[:, 0] for leaf in leaves]
    assert not strided[4].is_contiguous()
    for got, want in zip(run(strided, backend), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)
    leaves[4] = leaves[4][:, :1].expand(2, 3, 4, 5)
    for got, want in zip(run(leaves, backend), run([x.contiguous() for x in leaves], "reference"), strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_first_and_second_derivatives(backend):
    leaves = problem((1, 2, 3, 2))
    assert torch.autograd.gradcheck(lambda *x: run(x, backend), leaves)
    assert torch.autograd.gradgradcheck(lambda *x: run(x, backend), leaves)


def test_derivatives_in_the_interpreter():
    leaves = problem((1, 2, 2, 1))
    assert torch.autograd.gradcheck(lambda *x: run(x, "triton"), leaves)


def test_as_an_operation_of_the_compilers():
    leaves = problem((2, 3, 4, 5), dtype=torch.float32)
    result = torch.compile(lambda *x: run(x, "numba"), backend="aot_eager", fullgraph=True)(*leaves)
    for got, want in zip(result, run(leaves, "reference"), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    options, inputs = OP.definition.prepare(*(leaf.detach() for leaf in leaves[:6]))
    tensors = [x.detach().requires_grad_() for x in inputs]
    torch.library.opcheck(OP.forward_op, (opaque.encode(options, inputs), tensors, "numba", True))


def test_two_runs_agree_bit_for_bit():
    leaves = problem((3, 6, 9, 20), dtype=torch.float32)
    weights = [torch.randn(3, 6, 9, 20) for _ in "hg"]
    first, second = (gradients(run(leaves, "numba"), leaves, weights) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_the_kernel_is_chosen():
    leaves = problem((1, 21, 96, 16), dtype=torch.float32)
    choice = explain(ssm2d_scan, *leaves[:6])
    assert choice.backend == "numba"
    assert "expected" in choice.rejected["reference"]


def test_more_rows_and_columns_than_a_tile(monkeypatch):
    monkeypatch.setattr(importlib.import_module("recurra.kernels.ssm2d_scan.triton"), "TILE", 32)
    leaves = problem((1, 2, 37, 2), "full")
    weights = [torch.randn(1, 2, 37, 2, dtype=D) for _ in "hg"]
    outputs, exact = run(leaves, "triton"), run(leaves, "reference")
    for got, want in zip(
        (*outputs, *gradients(outputs, leaves, weights)), (*exact, *gradients(exact, leaves, weights)), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)


def test_compiled_for_hopper(ahead_of_time):
    places = [f"a{k}_{axis}" for k in range(1, 5) for axis in "bvt"]
    counts = dict.fromkeys([*places, "cell_v", "cell_t", "rows", "columns", "width"], "i32")
    kernels = {
        "forward_kernel": ("a1 a2 a3 a4 b1 b2 left_h left_g h g", "above_h above_g", {}),
        "adjoint_kernel": ("a1 a2 a3 a4 dh dg", "d_above_h d_above_g p q", {}),
        "coefficients_kernel": (
            "h g left_h left_g top_h top_g", "p q da1 da2 da3 da4", {f"FULL{k}": k % 2 == 0 for k in range(1, 5)},
        ),
    }  # fmt: skip
    cases = []
    for name, (narrow, wide, more) in kernels.items():
        for element in ("fp32", "bf16"):
            pointers = dict.fromkeys(narrow.split(), f"*{element}") | dict.fromkeys(wide.split(), "*fp32")
            integers = counts if "p q da1" not in wide else dict.fromkeys(("rows", "columns", "width"), "i32")
            constants = {"WIDE": "tl.float32", "COLUMNS": 64 if more else 128, "WIDTH": 16} | more
            cases.append(
                {
                    "module": "recurra.kernels.ssm2d_scan.triton", "function": name,
                    "signature": pointers | integers, "constants": constants, "num_warps": 8,
                }
            )  # fmt: skip
    for case, found in zip(cases, ahead_of_time(cases), strict=True):
        assert found["stack"] == found["local"] == 0, (case["function"], found)
        # Programs of the scans are fewer than processors; of the third kernel two fit one, of 65536 registers.
        assert found["registers"] <= (128 if case["function"] == "coefficients_kernel" else 255), found
        assert found["shared"] <= 16384


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(3, 21, 96, 16), (2, 200, 30, 33)])
def test_on_a_gpu(size, form, dtype):
    leaves = [leaf.detach().to("cuda").requires_grad_() for leaf in problem(size, form, dtype)]
    wide = [leaf.detach().to(D).requires_grad_() for leaf in leaves]
    weights = [torch.randn(size, device="cuda").to(dtype) for _ in "hg"]
    outputs, exact = run(leaves, "triton"), run([x.cpu() for x in wide], "reference")
    found, expected = (
        gradients(outputs, leaves, weights),
        torch.autograd.grad(exact, wide, [w.cpu().to(D) for w in weights]),
    )
    for got, want in zip((*outputs, *found), (*exact, *expected), strict=True):
        scale = want.abs().max().clamp_min(1)
        torch.testing.assert_close(got.cpu().to(D) / scale.cpu(), (want / scale).cpu(), atol=TOLERANCE[dtype], rtol=0)
