"""The memory over time: every backend against the definition, the definition against torch's convolution."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from recurra.kernels import explain, memory_conv, opaque
from recurra.kernels.memory_conv import OP

D = torch.float64
# Of values of order one and sums of some ten products: a few roundings; 16 bit is rounded once, after float32.
TOLERANCE = {D: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
KERNELS = ["numba", "triton"]
# Widths of the buffers, outputs, channels a group, taps, taps before the present step, dilation, steps.
FORMS = {
    "causal": ((5,), 5, 1, 4, 3, 1, 11),
    "bidirectional": ((33,), 33, 1, 7, 3, 1, 9),
    "dilated": ((5,), 5, 1, 5, 2, 3, 10),
    "dense": ((4, 4, 4), 4, 3, 3, 1, 2, 9),
    "dual": ((16,), 16, 4, 3, 1, 1, 5),
    "uneven buffers": ((3, 4, 5), 8, 3, 4, 0, 3, 8),
    "one tap": ((3,), 6, 1, 1, 0, 1, 3),
    "wider than the sequence": ((5,), 5, 1, 9, 8, 16, 3),
}
# What takes more than one block of channels, of steps and of taps on a CPU.
LONG = {
    "bidirectional, long": ((70,), 70, 1, 39, 19, 1, 230),
    "dense, long": ((35, 35), 35, 2, 9, 4, 2, 450),
    "dual, long": ((40,), 40, 4, 20, 19, 1, 100),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    # So that the interpreter meets several blocks of steps and taps, full and not, in sequences that it can do.
    module = importlib.import_module("recurra.kernels.memory_conv.triton")
    for name, value in (("ROWS", 4), ("TAPS", 3), ("GROUPS", 2)):
        monkeypatch.setattr(module, name, value)


def problem(form, dtype=D, *, ragged=False, past=False, batch=2):
    widths, outputs, members, taps, left, dilation, steps = {**FORMS, **LONG}[form]
    generator = torch.Generator().manual_seed(taps)

    def draw(*shape):
        return torch.randn(shape, dtype=D, generator=generator).to(dtype).requires_grad_()

    leaves = [draw(outputs, members, taps), *(draw(batch, steps, width) for width in widths)]
    options = {"left": left, "right": taps - 1 - left, "dilation": dilation}
    if ragged:
        options["lengths"] = torch.tensor([steps - 1, 0, steps])[:batch]
    if past:
        leaves.append(draw(batch, left * dilation, sum(widths)))
    return leaves, options


def run(leaves, options, backend, *, past=False):
    buffers = leaves[1:-1] if past else leaves[1:]
    return memory_conv(buffers, leaves[0], past=leaves[-1] if past else None, backend=backend, **options)


def compare(form, backend, **given):
    leaves, options = problem(form, **given)
    past = given.get("past", False)
    y, exact = run(leaves, options, backend, past=past), run(leaves, options, "reference", past=past)
    weights = torch.randn_like(exact)
    found, expected = torch.autograd.grad(y, leaves, weights), torch.autograd.grad(exact, leaves, weights)
    for got, want in zip((y, *found), (exact, *expected), strict=True):
        torch.testing.assert_close(got, want, atol=TOLERANCE[D], rtol=TOLERANCE[D])


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("form", [*FORMS, *LONG])
def test_numba_agrees_with_the_definition(form, ragged, past, poisoned_memory):
    with poisoned_memory():
        compare(form, "numba", ragged=ragged, past=past, batch=3)


@pytest.mark.parametrize(
    ("form", "ragged", "past"),
    [
        ("causal", False, True),
        ("bidirectional", True, False),
        ("dilated", True, True),
        ("dense", False, False),
        ("dual", False, False),
        ("uneven buffers", True, True),
        ("one tap", False, False),
        ("wider than the sequence", False, True),
    ],
)
def test_triton_agrees_with_the_definition(form, ragged, past, poisoned_memory):
    with poisoned_memory():
        compare(form, "triton", ragged=ragged, past=past, batch=2)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_dtypes_against_float64(dtype, backend):
    leaves, options = problem("dense", dtype)
    wide = [leaf.detach().to(D).requires_grad_() for leaf in leaves]
    y, exact = run(leaves, options, backend), run(wide, options, "reference")
    assert y.dtype == dtype
    weights = torch.randn_like(y)
    found, expected = torch.autograd.grad(y, leaves, weights), torch.autograd.grad(exact, wide, weights.to(D))
    for got, want in zip((y, *found), (exact, *expected), strict=True):
        scale = want.abs().max().clamp_min(1)
        torch.testing.assert_close(got.to(D) / scale, want / scale, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("form", [*FORMS, *LONG])
def test_the_definition_is_torchs_convolution(form):
    leaves, options = problem(form)
    left, right = options["left"] * options["dilation"], options["right"] * options["dilation"]
    x = F.pad(torch.cat(leaves[1:], 2).mT, (left, right))
    groups = x.shape[1] // leaves[0].shape[1]
    exact = F.conv1d(x, leaves[0], dilation=options["dilation"], groups=groups).mT
    y = run(leaves, options, "reference")
    torch.testing.assert_close(y, exact, atol=1e-12, rtol=1e-12)
    weights = torch.randn_like(y)
    pairs = zip(torch.autograd.grad(y, leaves, weights), torch.autograd.grad(exact, leaves, weights), strict=True)
    for got, want in pairs:
        torch.testing.assert_close(got, want, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_frame_by_frame_with_the_past(backend):
    leaves, options = problem("causal")
    with torch.no_grad():
        whole, past, parts = run(leaves, options, backend), torch.zeros(2, 3, 5, dtype=D), []
        for frame in leaves[1].split((1, 2, 1, 7), 1):
            parts.append(memory_conv(frame, leaves[0], past=past, backend=backend, **options))
            past = torch.cat([past, frame], 1)[:, -3:]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_nan_stays_where_it_is(backend):
    leaves, options = problem("bidirectional", ragged=True)
    dirty = [leaf.detach().clone() for leaf in leaves]
    dirty[1][0, -1] = dirty[1][1] = torch.nan  # padding
    dirty = [leaf.requires_grad_() for leaf in dirty]
    y, clean = run(dirty, options, backend), run(leaves, options, "reference")
    torch.testing.assert_close(y, clean, atol=1e-12, rtol=1e-12)
    for got, want in zip(torch.autograd.grad(y.sum(), dirty), torch.autograd.grad(clean.sum(), leaves), strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)
    # A value that is no number is seen by the steps within whose window it lies, and by no other.
    x = torch.zeros(1, 40, 1, dtype=D)
    x[0, 12] = torch.nan
    y = memory_conv(x, torch.ones(1, 1, 7, dtype=D), left=4, right=2, backend=backend)
    assert y[0, :, 0].isnan().nonzero().flatten().tolist() == list(range(10, 17))


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@pytest.mark.parametrize(("batch", "steps"), [(0, 4), (2, 0), (2, 1)])
def test_few_or_no_steps(batch, steps, backend):
    x, weight = (
        torch.randn(batch, steps, 3, dtype=D, requires_grad=True),
        torch.randn(3, 1, 4, dtype=D, requires_grad=True),
    )
    past = torch.randn(batch, 2, 3, dtype=D, requires_grad=True)
    y = memory_conv(x, weight, left=2, right=1, past=past, backend=backend)
    assert y.shape == x.shape
    expected = (
        (past[:, 0] * weight[:, 0, 0] + past[:, 1] * weight[:, 0, 1] + x[:, 0] * weight[:, 0, 2]) if steps else None
    )
    for gradient, leaf in zip(torch.autograd.grad(y.sum(), (x, weight, past)), (x, weight, past), strict=True):
        assert gradient.shape == leaf.shape
        assert gradient.isfinite().all()
    if steps:
        torch.testing.assert_close(y[:, 0], expected)


@pytest.mark.parametrize("backend", KERNELS)
def test_strided_and_expanded_inputs(backend):
    leaves, options = problem("dense")
    expected = run(leaves, options, "reference")
    strided = [leaf.detach().transpose(0, 2).contiguous().transpose(0, 2) for leaf in leaves]
    assert not strided[1].is_contiguous()
    torch.testing.assert_close(run(strided, options, backend), expected.detach(), atol=1e-12, rtol=1e-12)
    expanded = [leaves[0].detach(), *(leaf.detach()[:1].expand(2, -1, -1) for leaf in leaves[1:])]
    torch.testing.assert_close(run(expanded, options, backend)[1], expected[0].detach(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_first_and_second_derivatives(backend):
    leaves, options = problem("dual", past=True, batch=1)
    leaves = [leaves[0], leaves[1].detach()[:, :3].requires_grad_(), leaves[2]]
    assert torch.autograd.gradcheck(lambda *x: run(x, options, backend, past=True), leaves)
    assert torch.autograd.gradgradcheck(lambda *x: run(x, options, backend, past=True), leaves)


def test_only_what_is_wanted():
    leaves, options = problem("dense")
    for wanted in leaves:
        for leaf in leaves:
            leaf.requires_grad_(leaf is wanted)
        found = torch.autograd.grad(run(leaves, options, "numba").sum(), wanted)
        expected = torch.autograd.grad(run(leaves, options, "reference").sum(), wanted)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_as_an_operation_of_the_compilers():
    leaves, options = problem("dense", torch.float32)
    result = torch.compile(lambda *x: run(x, options, "numba"), backend="aot_eager", fullgraph=True)(*leaves)
    torch.testing.assert_close(result, run(leaves, options, "reference"), atol=1e-5, rtol=1e-5)
    given, inputs = OP.definition.prepare(leaves[1:], leaves[0], **options)
    tensors = [x.detach().requires_grad_() for x in inputs if x is not None]
    torch.library.opcheck(OP.forward_op, (opaque.encode(given, inputs), tensors, "numba", True))


def test_two_runs_and_any_number_of_threads_agree_bit_for_bit():
    leaves, options = problem("bidirectional, long", torch.float32)
    weights = torch.randn(2, 230, 70)
    runs = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        y = run(leaves, options, "numba")
        runs.append((y, *torch.autograd.grad(y, leaves, weights)))
    torch.set_num_threads(1)
    for other in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[0], other, strict=True))


def test_the_kernel_is_chosen_and_refuses_in_words():
    x = torch.randn(1, 400, 64)
    assert explain(memory_conv, x, torch.randn(64, 1, 39), left=19, right=19).backend == "numba"
    many = explain(memory_conv, [x] * 9, torch.randn(64, 9, 3), left=1, right=1)
    assert many.rejected["triton"] == "triton serves up to 8 buffers; got 9, concatenate some"


def test_compiled_for_hopper(ahead_of_time):
    cases = []
    for element, taps, rest, buffers in (("fp32", 39, False, 1), ("bf16", 20, True, 2), ("bf16", 39, True, 8)):
        pointers = dict.fromkeys([*(f"x{i}" for i in range(8)), "past"], f"*{element}") | {"lengths": "*i64"}
        counts = [
            *(f"n{i}" for i in range(8)),
            *["steps", "shift", "dilation", "before", "channels", "outputs", "members", "share"],
        ]
        constants = {"BUFFERS": buffers, "PAST": rest, "RAGGED": rest, "WINDOW": taps, "WIDE": "tl.float32"}
        constants |= {"ROWS": 8, "TAPS": 8, "LANES": 128}
        for name, more, extra, constant in (
            (
                "window_kernel",
                {"weight": f"*{element}", "y": f"*{element}"},
                ("y_steps", "first", "y_width"),
                {"CUT": True},
            ),
            ("weight_kernel", {"dy": f"*{element}", "partial": "*fp32"}, ("batches",), {"GROUPS": 32}),
        ):
            cases.append(
                {
                    "module": "recurra.kernels.memory_conv.triton", "function": name, "num_warps": 4,
                    "signature": pointers | more | dict.fromkeys([*counts, *extra], "i32"),
                    "constants": constants | constant,
                }
            )  # fmt: skip
    for case, found in zip(cases, ahead_of_time(cases), strict=True):
        assert found["stack"] == found["local"] == found["shared"] == 0, (case["function"], found)
        # Three programs of 128 threads on a processor of 65536 registers, with any number of buffers.
        assert found["registers"] <= 168, (case["function"], found)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", LONG)
def test_on_a_gpu(form, dtype, monkeypatch):
    module = importlib.import_module("recurra.kernels.memory_conv.triton")
    for name, value in (("ROWS", 8), ("TAPS", 8), ("GROUPS", 32)):
        monkeypatch.setattr(module, name, value)
    leaves, options = problem(form, dtype, ragged=True, past=True, batch=3)
    moved = [leaf.detach().to("cuda").requires_grad_() for leaf in leaves]
    wide = [leaf.detach().to(D).requires_grad_() for leaf in leaves]
    y = run(moved, options | {"lengths": options["lengths"].to("cuda")}, "triton", past=True)
    exact = run(wide, options, "reference", past=True)
    weights = torch.randn_like(y)
    found, expected = torch.autograd.grad(y, moved, weights), torch.autograd.grad(exact, wide, weights.cpu().to(D))
    for got, want in zip((y, *found), (exact, *expected), strict=True):
        scale = want.abs().max().clamp_min(1)
        torch.testing.assert_close(got.cpu().to(D) / scale, want / scale, atol=TOLERANCE[dtype], rtol=0)
