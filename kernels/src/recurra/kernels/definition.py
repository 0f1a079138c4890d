"""What an operation computes, apart from how: its definition, and what a kernel offers in its place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Kernel(Protocol):
    """What a backend's module offers."""

    def forward(self, options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
        """The outputs; where `saving`, after them what the backward pass wants, as the operation's `shapes` says."""

    def backward(
        self, options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """One gradient an input; None where it is not wanted."""


@dataclass(frozen=True)
class Definition:
    """An operation apart from its backends.

    Attributes:
        options: NamedTuple of str, bool and int: what is no tensor.
        inputs: NamedTuple of tensors, None where absent.
        prepare: (options, inputs) of a call with the public function's arguments, checked.
        formula: (options, inputs) -> outputs, in plain torch, differentiable as often as wished.
        shapes: (options, inputs, saving) -> uninitialised outputs, and after them whatever is saved.
        outputs: (options) -> number of outputs.
    """

    options: Any
    inputs: Any
    prepare: Callable[..., tuple[Any, Any]]
    formula: Callable[[Any, Any], Sequence[Tensor]]
    shapes: Callable[[Any, Any, bool], Sequence[Tensor]]
    outputs: Callable[[Any], int]

    def derivative(self, options: Any, inputs: Sequence[Tensor | None], gradients: Sequence[Tensor]) -> list[Any]:
        """Gradients of the inputs by the definition, themselves differentiable where grad mode is on."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            leaves = [alias(t) for t in inputs if t is not None and differentiable(t)]
            rest = iter(leaves)
            given = [next(rest) if differentiable(t) else t for t in inputs]
            outputs = self.formula(options, self.inputs(*given))
            pairs = [(y, d) for y, d in zip(outputs, gradients, strict=True) if y.requires_grad]
            ys, ds = [y for y, _ in pairs], [d for _, d in pairs]
            found = iter(torch.autograd.grad(ys, leaves, ds, create_graph=again, allow_unused=True))
        return [next(found) if differentiable(t) else None for t in inputs]


def alias(value: Tensor) -> Tensor:
    """The tensor under a name of its own, with a gradient: what is given twice gets its two gradients apart."""
    return value.view_as(value) if value.requires_grad else value.detach().requires_grad_()


def differentiable(value: Tensor | None) -> bool:
    """Whether there is a tensor of a type that has gradients."""
    return value is not None and (value.is_floating_point() or value.is_complex())
