"""The frame of differentiable operations, seen through the linear scan and an operation made for the purpose."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

from recurra.kernels import linear_scan, opaque, use_backend
from recurra.kernels.definition import Definition
from recurra.kernels.kernel_op import KernelOp
from recurra.kernels.linear_scan import OP
from recurra.kernels.registry import Backend


def draw(*shape: int, seed: int = 0, grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_(grad)


class Options(NamedTuple):
    power: int
    negated: bool
    label: str


class Inputs(NamedTuple):
    x: Tensor
    y: Tensor | None


class Spy:
    """A kernel that notes its calls: x**power * y, with y = 1 where absent."""

    def __init__(self) -> None:
        self.saving: list[bool] = []
        self.wanted: list[tuple[bool, ...]] = []
        self.options: list[Any] = []

    def forward(self, options: Any, inputs: Any, saving: bool) -> list[Tensor]:
        self.saving.append(saving)
        self.options.append(options)
        power = inputs.x**options.power
        product = power.clone() if inputs.y is None else power * inputs.y
        return [-product if options.negated else product, *([power] if saving else [])]

    def backward(self, options: Any, inputs: Any, results: Any, gradients: Any, wanted: Any) -> list[Tensor | None]:
        self.wanted.append(tuple(wanted))
        d = -gradients[0] if options.negated else gradients[0]
        dx = options.power * inputs.x ** (options.power - 1) * d
        return [dx if inputs.y is None else dx * inputs.y, None if inputs.y is None else results[1] * d]


def formula(options: Any, inputs: Any) -> tuple[Tensor]:
    product = inputs.x**options.power if inputs.y is None else inputs.x**options.power * inputs.y
    return (-product if options.negated else product,)


def shapes(options: Any, inputs: Any, saving: bool) -> list[Tensor]:
    return [torch.empty_like(inputs.x), *([torch.empty_like(inputs.x)] if saving else [])]


def prepare(x: Tensor, y: Tensor | None = None, *, power: int = 2, negated: bool = False) -> tuple[Options, Inputs]:
    return Options(power, negated, "label"), Inputs(x, y)


SPY = Spy()
SPIED = KernelOp(
    "power_product_of_the_tests",
    "recurra.kernels.nothing",
    Definition(Options, Inputs, prepare, formula, shapes, lambda options: 1),
    [
        Backend("reference", lambda o, i: None, lambda o, i: 2.0, formula),
        Backend("spy", lambda o, i: None, lambda o, i: 1.0),
    ],
)


@pytest.fixture(autouse=True)
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    fresh = Spy()
    monkeypatch.setattr(SPIED, "kernel", lambda name: fresh)
    return fresh


def test_nothing_is_saved_where_no_gradient_can_follow(spy):
    x = draw(3)
    SPIED(x.detach())
    with torch.no_grad():
        SPIED(x)
    with torch.inference_mode():
        SPIED(x)
    assert spy.saving == [False] * 3
    SPIED(x)
    assert spy.saving[-1] is True


def test_backward_knows_what_is_wanted(spy):
    x, y = draw(3), draw(3, seed=1, grad=False)
    SPIED(x, y)[0].sum().backward()
    assert spy.wanted == [(True, False)]


@pytest.mark.parametrize("given", [True, False])
def test_first_and_second_gradients(given):
    leaves = [draw(3), draw(3, seed=1)][: 1 + given]

    def function(*values: Tensor) -> Tensor:
        return SPIED(*values, power=3, negated=True)[0]

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_third_derivative():
    x = draw(3)
    first = torch.autograd.grad(SPIED(x, power=4)[0].sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), x, create_graph=True)[0]
    third = torch.autograd.grad(second.sum(), x)[0]
    torch.testing.assert_close(third, 24 * x.detach())


def test_a_tensor_given_twice_gets_both_gradients():
    x = draw(3)
    for again in (False, True):
        (dx,) = torch.autograd.grad(SPIED(x, x)[0].sum(), x, create_graph=again)
        torch.testing.assert_close(dx.detach(), 3 * x.detach() ** 2)


@pytest.mark.parametrize("backend", ["spy", "reference", "auto"])
@pytest.mark.parametrize("given", [True, False])
def test_custom_operations_are_registered_as_torch_asks(backend, given):
    options, inputs = prepare(draw(3), draw(3, seed=1) if given else None)
    tensors, text = [t for t in inputs if t is not None], opaque.encode(options, inputs)
    torch.library.opcheck(SPIED.forward_op, (text, tensors, backend, True))
    results = [t.detach() for t in SPIED.forward_op(text, tensors, backend, True)]
    torch.library.opcheck(SPIED.backward_op, (text, tensors, results, [draw(3, seed=2)]))

    def function(*values: Tensor) -> Tensor:
        return SPIED.forward_op(text, list(values), backend, True)[0]

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_options_survive_the_custom_operation(spy):
    options = Options(-3, True, "a label")
    text = opaque.encode(options, Inputs(draw(2), None))
    SPIED.forward_op(text, [draw(2)], "spy", False)
    assert spy.options == [options]
    assert [type(value) for value in spy.options[0]] == [int, bool, str]


def test_the_backward_pass_is_of_the_backend_that_ran_though_another_is_asked_for_by_then():
    a, b = draw(2, 5, 3), draw(2, 5, 3, seed=1)
    compiled = torch.compile(lambda a, b: linear_scan(a, b)[0], fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(linear_scan(a, b, backend="reference")[0].sum(), [a, b])
    for first, then in (("reference", "numba"), ("numba", "reference")):
        with use_backend(first):
            h = compiled(a, b)
        with use_backend(then):
            found = torch.autograd.grad(h.sum(), [a, b])
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_an_output_left_unused_has_no_part_in_the_gradient(backend):
    a, b, h0 = draw(2, 5, 3), draw(2, 5, 3, seed=1), draw(2, 3, seed=2)
    whole = linear_scan(a, b, h0, backend=backend)[0]
    only_last = torch.autograd.grad(linear_scan(a, b, h0, backend=backend)[1].sum(), [a, b, h0])
    from_whole = torch.autograd.grad(whole[:, -1].sum(), [a, b, h0])
    for got, want in zip(only_last, from_whole, strict=True):
        torch.testing.assert_close(got, want)


def test_transforms_of_functions():
    a, b = draw(4, 2, 5, 3, grad=False), draw(4, 2, 5, 3, seed=1, grad=False)
    each = torch.stack([linear_scan(x, y)[0] for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(torch.vmap(lambda x, y: linear_scan(x, y)[0])(a, b), each)
    leaf = b[0].clone().requires_grad_()
    linear_scan(a[0], leaf)[0].pow(2).sum().backward()
    torch.testing.assert_close(torch.func.grad(lambda y: linear_scan(a[0], y)[0].pow(2).sum())(b[0]), leaf.grad)


def test_a_backend_that_cannot_serve_says_why_and_is_passed_over(monkeypatch):
    numba = OP.backends["numba"]
    refusing = Backend("numba", lambda o, i: "it is away", numba.cost)
    monkeypatch.setitem(OP.backends, "numba", refusing)
    with pytest.raises(ValueError, match=r"^backend 'numba' cannot serve linear_scan: it is away$"):
        linear_scan(draw(3), draw(2, 5, 3), backend="numba")
    assert linear_scan(draw(3), draw(2, 5, 3))[0].shape == (2, 5, 3)


def test_recomputed_activations_give_the_same_gradient():
    a, b = draw(2, 5, 3), draw(2, 5, 3, seed=1)
    expected = torch.autograd.grad(linear_scan(a, b, backend="numba")[0].pow(2).sum(), [a, b])
    h, _ = torch.utils.checkpoint.checkpoint(lambda a, b: linear_scan(a, b, backend="numba"), a, b, use_reentrant=False)
    for got, want in zip(torch.autograd.grad(h.pow(2).sum(), [a, b]), expected, strict=True):
        assert torch.equal(got, want)
