"""The elementwise scans: kernels and time-parallel form against the definition, and the definition against calculus."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from recurra.kernels import chunks, elementwise_scan, explain
from recurra.kernels.elementwise_scan import OP, ROWS

# Largest difference over largest value: of the order of sums over the longest sequences below.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 1.6e-2}
CELLS = list(ROWS)
FORMS = [
    {},
    {"reverse": True},
    {"lengths": True},
    {"lengths": True, "reverse": True},
    {"reset": True},
    {"reset": True, "lengths": True, "reverse": True},
]


def draw(cell: str, *, batch: int = 3, steps: int = 17, width: int = 5, dtype=torch.float64, grad: bool = True):
    """Inputs, parameters and initial state of a cell."""
    generator = torch.Generator().manual_seed(0)
    rows, states = ROWS[cell], 2 if cell == "diag_lstm_cifg" else 1
    shapes = [(batch, steps, *rows[:1], width), (*rows[1:], width), *[(batch, width)] * states]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[1] *= 0.7
    return [t.to(dtype).requires_grad_(grad) for t in tensors]


def borders(form: dict, batch: int, steps: int) -> dict:
    """Keyword arguments of a form: ragged lengths with an empty sequence, random episode borders."""
    arguments = dict(form)
    if form.get("lengths"):
        arguments["lengths"] = torch.tensor([steps, 0, max(steps - 4, 0)] * 2)[:batch]
    if form.get("reset"):
        arguments["reset"] = torch.rand(batch, steps, generator=torch.Generator().manual_seed(1)) < 0.3
    return arguments


def everything(cell: str, tensors: list[Tensor], backend: str, **arguments) -> list[Tensor]:
    """y, the last state and all gradients of a random weighing of both."""
    y, state = elementwise_scan(cell, tensors[0], tensors[1], tuple(tensors[2:]), backend=backend, **arguments)
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.dtype) for v in (y, *state)]
    # Of no step, the definition does not use all of its inputs.
    gradients = torch.autograd.grad((y, *state), tensors, weights, allow_unused=True)
    return [y, *state, *(torch.zeros_like(t) if g is None else g for g, t in zip(gradients, tensors, strict=True))]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest over all tensors of the largest difference relative to the largest value."""
    assert [(f.shape, f.dtype) for f in found] == [(e.shape, e.dtype) for e in expected]
    pairs = [(f.detach().double(), e.detach().double()) for f, e in zip(found, expected, strict=True) if e.numel()]
    assert all(torch.isfinite(f).all() for f, _ in pairs)
    return max([float((f - e).abs().max() / (e.abs().max() + 1e-30)) for f, e in pairs], default=0.0)


@pytest.fixture(autouse=True)
def _numba() -> None:
    pytest.importorskip("numba")


@pytest.mark.parametrize("backend", ["numba", "parallel"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("cell", CELLS)
def test_agrees_with_the_definition(cell, dtype, backend, poisoned_memory):
    for form in FORMS:
        tensors, arguments = draw(cell, dtype=dtype), borders(form, 3, 17)
        expected = everything(cell, tensors, "reference", **arguments)
        with poisoned_memory():
            found = everything(cell, tensors, backend, **arguments)
        assert difference(found, expected) < TOLERANCE[dtype], form


@pytest.mark.parametrize("backend", ["numba", "parallel"])
@pytest.mark.parametrize(
    ("batch", "steps", "width"), [(0, 5, 3), (2, 0, 3), (2, 5, 0), (1, 1, 1), (2, 65, 33), (1, 2, 7)]
)
def test_awkward_sizes(batch, steps, width, backend):
    for cell in CELLS:
        tensors = draw(cell, batch=batch, steps=steps, width=width)
        arguments = borders({"lengths": True, "reset": True}, batch, steps)
        found = everything(cell, tensors, backend, **arguments)
        assert difference(found, everything(cell, tensors, "reference", **arguments)) < 1e-13


@pytest.mark.parametrize("backend", ["numba", "parallel"])
@pytest.mark.parametrize("cell", CELLS)
def test_padding_is_never_read(cell, backend):
    tensors, lengths = draw(cell), torch.tensor([17, 0, 13])
    for reverse in (False, True):
        clean = everything(cell, tensors, backend, lengths=lengths, reverse=reverse)
        with torch.no_grad():
            spoiled = [t.clone() for t in tensors]
            spoiled[0][1], spoiled[0][2, 13:] = torch.nan, torch.nan
        found = everything(cell, [t.requires_grad_() for t in spoiled], backend, lengths=lengths, reverse=reverse)
        assert all(torch.equal(f, c) for f, c in zip(found, clean, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_layouts_and_threads_change_nothing(cell):
    tensors = draw(cell, batch=2, steps=40, width=2048, dtype=torch.float32)
    expected = everything(cell, tensors, "numba")
    moved = [t.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for t in tensors[:1]]
    found = everything(cell, [*moved, *tensors[1:]], "numba")
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    torch.set_num_threads(3)  # more than rows: the width is split
    try:
        found = everything(cell, tensors, "numba")
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_the_definition(cell):
    tensors = draw(cell, batch=2, steps=5, width=3)
    arguments = borders({"lengths": True, "reset": True, "reverse": True}, 2, 5)

    def of(*given: Tensor) -> tuple[Tensor, ...]:
        y, state = elementwise_scan(cell, given[0], given[1], given[2:], backend="reference", **arguments)
        return y, *state

    assert gradcheck(of, tensors)
    assert gradgradcheck(of, tensors)


@pytest.mark.parametrize("backend", ["numba", "parallel"])
@pytest.mark.parametrize("cell", ["indrnn_tanh", "diag_lstm_cifg"])
def test_second_derivatives(cell, backend):
    tensors = draw(cell, batch=2, steps=4, width=2)

    def of(*given: Tensor) -> tuple[Tensor, ...]:
        y, state = elementwise_scan(cell, given[0], given[1], given[2:], backend=backend)
        return y, *state

    assert gradcheck(of, tensors, atol=1e-6)
    assert gradgradcheck(of, tensors)


@pytest.mark.parametrize("backend", ["reference", "numba", "parallel"])
def test_relu_at_zero_has_no_gradient(backend):
    x, u = torch.zeros(1, 3, 2, dtype=torch.float64, requires_grad=True), torch.ones(2, dtype=torch.float64)
    y, _ = elementwise_scan("indrnn_relu", x, u, backend=backend)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


def test_what_is_not_a_number_stays_so():
    x, u = torch.ones(1, 6, 2), torch.ones(2)
    x[0, 2, 0], x[0, 4, 1] = torch.nan, -torch.inf
    for backend in ("reference", "numba", "parallel"):
        y, _ = elementwise_scan("indrnn_relu", x, u, backend=backend)
        assert y[0, 2:, 0].isnan().all()
        assert y[0, :, 1].tolist() == [1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize("backend", ["numba", "parallel"])
@pytest.mark.parametrize("cell", ["indrnn_relu", "diag_lstm_cifg"])
def test_serves_compilers(cell, backend):
    from recurra.kernels.opaque import encode

    wx, params, *state = draw(cell, batch=2, steps=4, width=3)
    options, inputs = OP.definition.prepare(cell, wx, params, tuple(state), lengths=torch.tensor([4, 2]))
    given = encode(options, inputs), [t for t in inputs if t is not None], backend, True
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OP.forward_op, given, test_utils=tests)


@pytest.mark.parametrize("cell", CELLS)
def test_splitting_time_changes_nothing(cell):
    wx, params, *state = draw(cell, steps=65, grad=False)
    for backend, exact in (("reference", True), ("numba", True), ("parallel", False)):
        whole, last = elementwise_scan(cell, wx, params, tuple(state), backend=backend)
        for k in (1, 2, 63, 64):
            head, middle = elementwise_scan(cell, wx[:, :k], params, tuple(state), backend=backend)
            tail, end = elementwise_scan(cell, wx[:, k:], params, middle, backend=backend)
            found = [torch.cat([head, tail], 1), *end]
            assert difference(found, [whole, *last]) <= (0 if exact else 1e-13)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_chunks(monkeypatch):
    # Chunks of three steps stand for those of fifty, which take minutes to compile.
    monkeypatch.setattr(chunks, "CHUNK", 3)
    x = torch.zeros(2, 5, 4)
    if reason := explain("elementwise_scan", "indrnn_tanh", x, x[0, 0]).rejected.get("compiled", ""):
        assert "expected" in reason, reason
    counts = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]
    cell = "indrnn_tanh"
    for batch, steps, width in ((2, 5, 4), (4, 9, 6), (3, 1, 5), (5, 3, 3), (2, 30, 64)):
        for form in FORMS:
            tensors = draw(cell, batch=batch, steps=steps, width=width, dtype=torch.float32)
            arguments = borders(form, batch, steps)
            expected = everything(cell, tensors, "reference", **arguments)
            assert difference(everything(cell, tensors, "compiled", **arguments), expected) < 3e-6
    assert counts["unique_graphs"] - before <= 4


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("cell", ["diag_gru", "diag_lstm_cifg"])
def test_compiled_chunks_of_gated_cells(cell, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 3)
    tensors = draw(cell, batch=3, steps=7, width=5, dtype=torch.float32)
    if reason := explain("elementwise_scan", cell, *tensors[:2]).rejected.get("compiled", ""):
        assert "expected" in reason, reason
    for form in FORMS:
        arguments = borders(form, 3, 7)
        expected = everything(cell, tensors, "reference", **arguments)
        assert difference(everything(cell, tensors, "compiled", **arguments), expected) < 3e-6


def test_automatic_choice():
    x, u = torch.zeros(1, 1000, 64), torch.zeros(64)
    choice = explain("elementwise_scan", "indrnn_relu", x, u)
    assert choice.backend == "numba"
    assert set(choice.rejected) >= {"reference", "compiled", "parallel"}


def test_without_numba_long_sequences_are_not_left_to_the_loop():
    code = """
import importlib.util, torch
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba" else real(name, *rest)
from recurra.kernels import explain
short, long = torch.zeros(64, 4, 64), torch.zeros(4, 8000, 64, requires_grad=True)
print(explain("elementwise_scan", "diag_gru", short[:, :, None].expand(-1, -1, 3, -1), torch.zeros(3, 64)).backend)
choice = explain("elementwise_scan", "indrnn_relu", long, torch.zeros(64))
print(choice.backend, choice.rejected["numba"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = result.stdout.splitlines()
    assert first == "reference"
    assert second.startswith("compiled numba is not installed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "indrnn"}, "cell must be one of indrnn_relu, .*; got 'indrnn'"),
        ({"wx": torch.zeros(2, 3, 4, 5)}, r"wx has shape \(2, 3, 4, 5\); expected \(batch, time, width\)"),
        ({"wx": torch.zeros(2, 3, 5, dtype=torch.int64)}, "wx is torch.int64; expected one of torch.float64"),
        ({"params": torch.zeros(4)}, r"params has shape \(4,\); expected \(5,\)"),
        ({"params": torch.zeros(5, dtype=torch.float64)}, "params is torch.float64"),
        ({"state": (torch.zeros(2, 4),)}, r"state h has shape \(2, 4\); expected \(2, 5\)"),
        ({"state": (torch.zeros(2, 5),) * 2}, r"state has 2 tensors; expected \(h,\)"),
        ({"lengths": torch.tensor([4, 1])}, "lengths go from 1 to 4; expected 0 to 3"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    arguments = {"cell": "indrnn_relu", "wx": torch.zeros(2, 3, 5), "params": torch.zeros(5)} | change
    with pytest.raises(ValueError, match=message) as error:
        elementwise_scan(**arguments)
    assert "\n" not in str(error.value)


def test_sums_of_parameters_are_the_same_in_every_run():
    tensors = draw("diag_gru", batch=7, steps=100, width=65, dtype=torch.float32)
    first, second = (everything("diag_gru", tensors, "numba") for _ in range(2))
    assert all(np.array_equal(f.detach().numpy(), s.detach().numpy()) for f, s in zip(first, second, strict=True))
