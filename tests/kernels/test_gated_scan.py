"""The gated cells in numba against their definition, and the definition against torch.nn."""

import pytest
import torch
from torch import Tensor, nn

from recurra.kernels import explain, gated_scan, use_backend
from recurra.kernels.gated_scan import FORMS, OP
from recurra.kernels.gated_scan.gradients import before, gates_again
from recurra.kernels.registry import installed

CELLS = [*FORMS, "lstm projected"]
# Relative to the norm. float32: sums of tens of terms; bfloat16: y and the saved gates are rounded to 8 bits.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
numba = pytest.mark.skipif(not installed("numba"), reason="numba is not installed")


def draw(cell: str, batch: int, steps: int, heads: int, width: int, dtype=torch.float64, seed: int = 0, bias=True):
    """(cell, tensors): wx, r, bias, projection and the states of one call, all leaves."""
    generator = torch.Generator().manual_seed(seed)
    name, *projected = cell.split()
    form, old = FORMS[name], max(width - 2, 1) if projected else width

    def normal(*shape: int, scale: float = 1) -> Tensor:
        drawn = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return drawn.to(dtype).requires_grad_()

    tensors = {"wx": normal(batch, steps, form.gates, heads, width)}
    tensors["r"] = normal(form.gates, heads, width, old, scale=old**-0.5)
    tensors["bias"] = normal(form.biases, heads, width) if bias else None
    tensors["projection"] = normal(heads, old, width, scale=width**-0.5) if projected else None
    for state in form.states:
        tensors[state] = normal(batch, heads, old if state == "h" else width)
    if name == "slstm":
        with torch.no_grad():
            tensors["n"].abs_().add_(1)[: batch // 2] = 0  # 1 and more, or a fresh start
            tensors["c"][: batch // 2] = 0
    return name, tensors


def outputs(name: str, tensors: dict, **options) -> list[Tensor]:
    state = tuple(tensors[s] for s in FORMS[name].states)
    fixed = {"projection": tensors["projection"], **options}
    y, last = gated_scan(name, tensors["wx"], tensors["r"], tensors["bias"], state, **fixed)
    return [y, *last]


def with_gradients(name: str, tensors: dict, *, seed: int = 1, **options) -> tuple[list[Tensor], list[Tensor]]:
    found = outputs(name, tensors, **options)
    generator = torch.Generator().manual_seed(seed)
    pulled = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in found]
    leaves = [t for t in tensors.values() if t is not None]
    return found, list(torch.autograd.grad(found, leaves, pulled))


def widened(tensors: dict) -> dict:
    return {k: None if t is None else t.detach().double().requires_grad_() for k, t in tensors.items()}


def assert_near(got: list[Tensor], want: list[Tensor], tolerance: float, *, together: bool = False) -> None:
    """Relative to each tensor's norm, or to that of all `together`."""
    errors = torch.stack([(g.detach().double() - w.detach()).norm() for g, w in zip(got, want, strict=True)])
    norms = torch.stack([w.detach().double().norm() for w in want])
    if together:
        errors, norms = errors.norm()[None], norms.norm()[None]
    assert all(g.shape == w.shape for g, w in zip(got, want, strict=True))
    assert (errors <= tolerance * norms + 1e-30).all(), errors / norms


@numba
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("save", ["gates", "recompute"])
def test_numba_is_the_definition(cell, dtype, save):
    lengths, reset = torch.tensor([4, 0, 7, 2, 7]), torch.rand(5, 7, generator=torch.Generator().manual_seed(2)) < 0.3
    calls = [
        ((5, 7, 1, 20), {}, True),
        ((5, 7, 3, 5), {"lengths": lengths, "reset": reset}, True),
        ((5, 7, 3, 5), {"lengths": lengths, "reset": reset, "reverse": True}, False),
        ((2, 3, 1, 9), {"reverse": True}, True),
    ]
    for sizes, options, bias in calls:
        name, tensors = draw(cell, *sizes, dtype, bias=bias)
        got, gradients = with_gradients(name, tensors, backend="numba", save=save, **options)
        wide = widened(tensors)
        want = outputs(name, wide, backend="reference", **options)
        generator = torch.Generator().manual_seed(1)
        pulled = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in got]
        leaves = [t for t in wide.values() if t is not None]
        expected = torch.autograd.grad(want, leaves, [p.double() for p in pulled])
        assert_near(got, want, TOLERANCE[dtype])
        # A gradient that is small beside the others carries their rounding to 16 bit.
        assert_near(gradients, expected, 2 * TOLERANCE[dtype], together=dtype.itemsize == 2)


@numba
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("width", [16, 33, 67, 130])
def test_widths_about_a_tile_of_registers(cell, width):
    name, tensors = draw(cell, 3, 2, 1, width, torch.float32)
    got, gradients = with_gradients(name, tensors, backend="numba")
    want, expected = with_gradients(name, widened(tensors), backend="reference")
    # Exponents multiply the rounding of slstm.
    scale = 3 if cell == "slstm" else 1
    assert_near(got, want, scale * 1e-6)
    assert_near(gradients, [g.double() for g in expected], scale * 2e-6)


@numba
@pytest.mark.parametrize("cell", ["gru", "mgu", "lstm projected"])
def test_more_sequences_than_run_side_by_side(cell):
    lengths = torch.arange(131) % 4
    name, tensors = draw(cell, 131, 3, 2, 4)
    got, gradients = with_gradients(name, tensors, backend="numba", lengths=lengths)
    want, expected = with_gradients(name, tensors, backend="reference", lengths=lengths)
    assert_near(got, want, 1e-13)
    assert_near(gradients, expected, 1e-13)


@numba
def test_threads_do_not_change_a_bit():
    name, tensors = draw("gru", 6, 100, 2, 48, torch.float32)
    found = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        try:
            found.append(with_gradients(name, tensors, backend="numba"))
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(found[1][0], found[2][0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found[1][1], found[2][1], strict=True))
    assert_near(found[1][0], [t.double() for t in found[0][0]], 1e-6)


@numba
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("save", ["gates", "recompute"])
def test_nothing_is_read_or_left_unwritten(cell, save, poisoned_memory):
    lengths = torch.tensor([3, 0, 5])
    for options in ({}, {"lengths": lengths}, {"lengths": lengths, "reverse": True}):
        name, tensors = draw(cell, 3, 5, 2, 7, torch.float32)
        if options:
            with torch.no_grad():
                tensors["wx"][torch.arange(5) >= lengths[:, None]] = torch.nan
        with poisoned_memory():
            got, gradients = with_gradients(name, tensors, backend="numba", save=save, **options)
        assert all(t.isfinite().all() for t in got + gradients)
        if options:
            padding = torch.arange(5) >= lengths[:, None]
            assert not got[0][padding].any()
            assert not gradients[0][padding].any()


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_the_definition(cell):
    name, tensors = draw(cell, 2, 5, 2, 3)
    if name == "elman_relu":
        name = "elman_tanh"  # finite differences step over the kink; test_numba_is_the_definition has its gradient
    if name == "slstm":
        with torch.no_grad():
            tensors["n"].clamp_(min=1.5)  # the fresh start is not differentiable in n
    names = [k for k, t in tensors.items() if t is not None]

    def run(*leaves: Tensor) -> list[Tensor]:
        return outputs(name, {**tensors, **dict(zip(names, leaves, strict=True))}, backend="reference")

    leaves = tuple(tensors[k] for k in names)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@numba
@pytest.mark.parametrize("cell", ["gru", "lstm projected", "slstm"])
@pytest.mark.parametrize("save", ["gates", "recompute"])
def test_numba_can_be_differentiated_twice(cell, save):
    def twice(backend: str) -> tuple[Tensor, ...]:
        name, tensors = draw(cell, 2, 5, 2, 3)
        leaves = [t for t in tensors.values() if t is not None]
        found = outputs(name, tensors, backend=backend, save=save)
        first = torch.autograd.grad(sum(t.sin().sum() for t in found), leaves, create_graph=True)
        return torch.autograd.grad(sum(t.cos().sum() for t in first), leaves)

    assert_near(list(twice("numba")), list(twice("reference")), 1e-12)


@pytest.mark.parametrize("backend", ["reference", pytest.param("numba", marks=numba)])
@pytest.mark.parametrize(
    ("cell", "make"),
    [
        ("gru", nn.GRU),
        ("lstm", nn.LSTM),
        ("lstm", lambda i, h: nn.LSTM(i, h, proj_size=2)),
        ("elman_tanh", nn.RNN),
        ("elman_relu", lambda i, h: nn.RNN(i, h, nonlinearity="relu")),
    ],
)
def test_torch_nn_gives_the_same(backend, cell, make):
    torch.manual_seed(0)
    layer, x, form = make(3, 5).double(), torch.randn(7, 2, 3, dtype=torch.float64), FORMS[cell]
    w_ih, w_hh, b_ih, b_hh, *w_hr = layer.parameters()
    first, second = b_ih.view(-1, 1, 5), b_hh.view(-1, 1, 5)
    bias = first + second
    if cell == "gru":
        bias = torch.cat([bias[:2], first[2:], second[2:]])
    wx = (x.transpose(0, 1) @ w_ih.t()).view(2, 7, form.gates, 1, 5)
    projection = w_hr[0][None] if w_hr else None
    y, last = gated_scan(cell, wx, w_hh.view(form.gates, 1, 5, -1), bias, projection=projection, backend=backend)
    expected, final = layer(x)
    final = final if isinstance(final, tuple) else (final,)
    torch.testing.assert_close(y.squeeze(2).transpose(0, 1), expected, atol=1e-14, rtol=1e-12)
    for got, want in zip(last, final, strict=True):
        torch.testing.assert_close(got.squeeze(1), want[0], atol=1e-14, rtol=1e-12)
    for got, want in zip(
        torch.autograd.grad(y.sin().sum(), layer.parameters(), retain_graph=True),
        torch.autograd.grad(expected.sin().sum(), layer.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(got, want, atol=1e-13, rtol=1e-11)


@pytest.mark.parametrize("backend", ["reference", pytest.param("numba", marks=numba)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exponential_gates_far_out(backend, dtype):
    name, tensors = draw("slstm", 2, 30, 1, 4, dtype)
    with torch.no_grad():
        tensors["wx"].mul_(60)
        tensors["c"].zero_()
        tensors["n"].zero_()
    got, gradients = with_gradients(name, tensors, backend=backend)
    assert all(t.isfinite().all() for t in got + gradients)
    assert got[0].abs().max() <= 1 + 1e-6
    want, expected = with_gradients(name, widened(tensors), backend="reference")
    assert_near(got, want, 3e-6)
    assert_near(gradients, [g.double() for g in expected], 1e-4)


@numba
def test_saved_gates_can_be_computed_again():
    for cell in ("gru", "gru_before", "mgu", "mgu_after", "lstm"):
        name, tensors = draw(cell, 2, 4, 2, 3)
        state = tuple(tensors[s] for s in FORMS[name].states)
        options, inputs = OP.definition.prepare(name, tensors["wx"], tensors["r"], tensors["bias"], state)
        results = OP.kernel("numba").forward(options, inputs, True)
        old = before(results[0], inputs.h, inputs, reverse=False)
        torch.testing.assert_close(gates_again(options, inputs, old), results[1 + len(state)], atol=1e-14, rtol=0)


@numba
def test_choice_falls_on_numba():
    name, tensors = draw("gru", 2, 4, 1, 3)
    with use_backend("reference"):
        expected = outputs(name, tensors)
    assert_near(outputs(name, tensors), expected, 1e-14)
    assert explain("gated_scan", "gru", tensors["wx"], tensors["r"]).backend == "numba"
