"""A gated layer by the scan and by torch's own, and the choice between them."""

import itertools

import pytest
import torch
from torch import Tensor

from recurra.kernels import explain, gated_layer, gated_scan, use_backend
from recurra.kernels.gated_layer import native
from recurra.kernels.gated_scan import FORMS
from recurra.kernels.registry import installed

CELLS = [*native.KINDS, "lstm projected"]


def draw(cell: str, *, batch=2, steps=5, inputs=6, width=4, heads=1, dtype=torch.float64, bias=True) -> dict:
    name, *projected = cell.split()
    generator, form, old = torch.Generator().manual_seed(0), FORMS[name], 3 if projected else width

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return {
        "cell": name,
        "x": normal(batch, steps, inputs),
        "weight": normal(form.gates, heads, width, inputs),
        "r": normal(form.gates, heads, width, old),
        "bias": normal(form.biases, heads, width) if bias else None,
        "state": tuple(normal(batch, heads, old if state == "h" else width) for state in form.states),
        "projection": normal(heads, old, width) if projected else None,
    }


def leaves(given: dict) -> list[Tensor]:
    return [t for t in [*given.values(), *(given["state"] or ())] if isinstance(t, Tensor)]


def derivatives(given: dict, **options) -> list[Tensor]:
    y, last = gated_layer(**given, **options)
    found = [y, *last]
    first = torch.autograd.grad(sum(t.sin().sum() for t in found), leaves(given), create_graph=True)
    second = torch.autograd.grad(sum(t.cos().sum() for t in first), leaves(given))
    return [*found, *first, *second]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_torch_is_the_scan_and_both_derivatives(cell, reverse, bias):
    given = draw(cell, bias=bias)
    expected = derivatives(given, reverse=reverse, backend="reference")
    for backend in ("torch", "scan"):
        torch.testing.assert_close(derivatives(given, reverse=reverse, backend=backend), expected)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_in_fewer_bits(cell, dtype):
    given = draw(cell, dtype=dtype) | {"state": None}
    exact = {k: v.detach().double() if isinstance(v, Tensor) else v for k, v in given.items()}
    with torch.no_grad():
        y, last = gated_layer(**given, backend="torch")
        expected, end = gated_layer(**exact, backend="reference")
    assert y.dtype == dtype
    assert all(t.dtype == torch.float32 for t in last)
    for got, want in zip((y, *last), (expected, *end), strict=True):
        assert (got - want).norm() <= {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype] * want.norm()


def test_the_backward_pass_can_be_taken_twice():
    given = draw("lstm")
    y, _ = gated_layer(**given, backend="torch")
    once, again = (torch.autograd.grad(y.sum(), leaves(given)[:3], retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_an_unused_result_has_no_part_in_the_gradient():
    given = draw("lstm")
    for take in (lambda y, last: last[1], lambda y, last: y):
        found = [
            torch.autograd.grad(take(*gated_layer(**given, backend=b)).sum(), leaves(given)) for b in ("torch", "scan")
        ]
        torch.testing.assert_close(found[0], found[1])


def test_inputs_changed_in_place_are_refused():
    given = draw("gru")
    x = given["x"].detach().clone()
    y, _ = gated_layer(**{**given, "x": x}, backend="torch")
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_scan_is_a_product_and_gated_scan():
    given = draw("slstm", heads=2)
    lengths, reset = torch.tensor([3, 5]), torch.tensor([[0, 1, 0, 0, 1]] * 2, dtype=torch.bool)
    y, last = gated_layer(**given, lengths=lengths, reset=reset, reverse=True)
    wx = torch.einsum("gndi,bti->btgnd", given["weight"], given["x"])
    fixed = {"lengths": lengths, "reset": reset, "reverse": True}
    expected, end = gated_scan("slstm", wx, given["r"], given["bias"], given["state"], **fixed)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(last, end)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cell": "mgu"}, "torch has no mgu"),
        ({"heads": 2}, "torch's layers are dense; these have 2 heads"),
        ({"reset": torch.zeros(2, 5, dtype=torch.bool)}, "torch's layers know no reset"),
        ({"lengths": torch.tensor([3, 5])}, "torch packs sequences of several lengths, which leaves its fused layers"),
        ({"save": "recompute"}, "torch's layers keep their gates"),
        ({"steps": 0}, "torch's layers take no empty sequences"),
        ({"dtype": torch.bfloat16}, "torch would round the carried state to torch.bfloat16"),
        ({"dtype": torch.float16}, "torch's layers take one dtype, on a CPU not float16"),
    ],
)
def test_what_torch_cannot_serve(change, why):
    sizes = {k: change[k] for k in ("heads", "steps", "dtype") if k in change}
    given = draw(change.get("cell", "gru"), **sizes) | {
        k: v for k, v in change.items() if k in ("reset", "lengths", "save")
    }
    if change.get("dtype") == torch.bfloat16:
        given["state"] = tuple(s.detach().float() for s in given["state"])
    with pytest.raises(ValueError, match=why):
        gated_layer(**given, backend="torch")
    choice = explain("gated_layer", **given)
    assert choice.backend == "scan"
    assert choice.rejected["torch"].startswith(why)
    y, last = gated_layer(**given)
    assert y.shape == (2, given["x"].shape[1], given["weight"].shape[1], 4)
    assert all(t.isfinite().all() for t in (y, *last))


def test_a_backend_of_the_scan_may_be_asked_for():
    given = draw("gru")
    expected = derivatives(given, backend="reference")
    with use_backend("reference"):
        assert explain("gated_layer", **given).backend == "scan"
        assert all(torch.equal(a, b) for a, b in zip(derivatives(given), expected, strict=True))
    with pytest.raises(ValueError, match="backend of gated_layer must be one of scan, torch; got 'nobody'"):
        gated_layer(**given, backend="nobody")


@pytest.mark.parametrize("name", ["weight", "r", "bias", "projection", "state"])
def test_one_line_for_what_does_not_fit(name):
    given = draw("lstm projected")
    cut = {"state": lambda t: t[:1], "weight": lambda t: t[..., :-1]}.get(name, lambda t: t[:, :, :-1])
    given[name] = cut(given[name])
    for backend in ("torch", "scan", None):
        with pytest.raises(ValueError, match=rf"^{name}.*") as caught:
            gated_layer(**given, backend=backend)
        assert "\n" not in str(caught.value)


def test_autocast_is_the_scans():
    given = draw("gru", dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert explain("gated_layer", **given).backend == "scan"
        y, (h,) = gated_layer(**given)
    assert y.dtype == torch.bfloat16
    assert h.dtype == torch.float32


@pytest.mark.skipif(not installed("numba"), reason="the thresholds are those of numba")
def test_choice_by_measured_costs():
    def chosen(cell: str, batch: int, steps: int, width: int, *, training=False, dtype=torch.float32) -> str | None:
        given = draw(cell, batch=batch, steps=steps, inputs=width, width=width, dtype=dtype) | {"state": None}
        with torch.set_grad_enabled(training):
            return explain("gated_layer", **given).backend

    for (batch, width), training in itertools.product([(1, 64), (1, 256), (16, 128), (64, 128)], [False, True]):
        assert chosen("gru", batch, 200, width, training=training) == "scan"
    assert chosen("lstm", 16, 100, 64) == "torch"
    assert chosen("lstm", 16, 100, 256, dtype=torch.bfloat16) == "torch"


def test_compilers_see_the_scan():
    given = draw("lstm", dtype=torch.float32)
    fixed = {k: v for k, v in given.items() if k not in ("x", "cell")}

    def run(x: Tensor) -> Tensor:
        return gated_layer("lstm", x, **fixed)[0]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps in (5, 7):
        x = draw("lstm", steps=steps, dtype=torch.float32)["x"]
        torch.testing.assert_close(compiled(x), run(x))
        got, want = (torch.autograd.grad(f(x).sin().sum(), [x, given["weight"]]) for f in (compiled, run))
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
