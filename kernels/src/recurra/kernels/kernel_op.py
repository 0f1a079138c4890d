"""Differentiable operations out of kernels.

A kernel is a module with `forward` and `backward`. An eager call runs it in an autograd function; compilers and
exporters see a custom operation instead, opaque to them, that chooses its backend when it runs. Second and higher
derivatives go through the definition, whichever backend ran the forward pass, and so do torch.func's transforms.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from recurra.kernels import opaque
from recurra.kernels.opaque import alias, dense, differentiable
from recurra.kernels.registry import Backend, Choice, Op, requested


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


def kernel(module: str) -> Kernel:
    """The module of a backend, imported at first use: importing recurra.kernels imports neither numba nor triton."""
    loaded: Any = importlib.import_module(module)
    return loaded  # type: ignore[no-any-return]


def training(inputs: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass may follow a call with these inputs."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


class KernelOp(Op):
    """An operation whose backends are plain torch (`fn` given) or kernels (`fn` None, module `package.NAME`)."""

    def __init__(self, name: str, package: str, definition: Definition, backends: list[Backend]) -> None:
        super().__init__(name, backends)
        self.definition, self.package = definition, package
        self.forward_op, self.backward_op = opaque.register(self)

    def __call__(self, *args: Any, backend: str | None = None, **kwargs: Any) -> tuple[Tensor, ...]:
        """Outputs of the operation by the backend that `registry` chooses."""
        options, inputs = self.definition.prepare(*args, **kwargs)
        with opaque.without_autocast(inputs):
            return self._call(options, inputs, backend)

    def _call(self, options: Any, inputs: Any, backend: str | None) -> tuple[Tensor, ...]:
        if torch._C._are_functorch_transforms_active():
            return tuple(self.definition.formula(options, inputs))  # vmap, jvp and the like need plain operations
        saving = training(inputs)
        if torch.compiler.is_compiling():
            # The tracer cannot read context variables: unless told here, the choice is made when the program runs.
            name = backend or (None if torch.compiler.is_dynamo_compiling() else requested()) or "auto"
            if name == "reference":
                return tuple(self.definition.formula(options, inputs))
            tensors = [t for t in inputs if t is not None]
            results = self.forward_op(opaque.encode(options, inputs), tensors, name, saving)
            return tuple(results[: self.definition.outputs(options)])
        chosen = self.select(options, inputs, backend=backend)
        if chosen.fn is not None:
            return tuple(chosen(options, inputs))
        return self.by(self.kernel(chosen.name), options, inputs)

    def by(self, kernel: Kernel, options: Any, inputs: Any) -> tuple[Tensor, ...]:
        """Outputs by this kernel, of a backend or none, with their gradients."""
        if training(inputs):
            return tuple(_Eager.apply(self, kernel, options, *inputs))  # type: ignore[no-untyped-call]
        return tuple(kernel.forward(options, inputs, False))

    def explain(self, *args: Any, backend: str | None = None, **kwargs: Any) -> Choice:
        """As `Op.explain`, for the arguments of the public function."""
        return super().explain(*self.definition.prepare(*args, **kwargs), backend=backend)

    def kernel(self, name: str) -> Kernel:
        """The module of this operation's backend."""
        return kernel(f"{self.package}.{name}")

    def derivative(self, options: Any, inputs: Sequence[Tensor | None], gradients: Sequence[Tensor]) -> list[Any]:
        """Gradients of the inputs by the definition, themselves differentiable where grad mode is on."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            leaves = [alias(t) for t in inputs if t is not None and differentiable(t)]
            rest = iter(leaves)
            given = [next(rest) if differentiable(t) else t for t in inputs]
            outputs = self.definition.formula(options, self.definition.inputs(*given))
            pairs = [(y, d) for y, d in zip(outputs, gradients, strict=True) if y.requires_grad]
            ys, ds = [y for y, _ in pairs], [d for _, d in pairs]
            found = iter(torch.autograd.grad(ys, leaves, ds, create_graph=again, allow_unused=True))
        return [next(found) if differentiable(t) else None for t in inputs]


class _Eager(torch.autograd.Function):
    """A kernel with its backward pass, at a third of a custom operation's cost a call."""

    @staticmethod
    def forward(ctx: Any, op: KernelOp, kernel: Kernel, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        ctx.op, ctx.kernel, ctx.options, ctx.given = op, kernel, options, len(inputs)
        ctx.set_materialize_grads(False)
        results = kernel.forward(options, op.definition.inputs(*inputs), True)
        ctx.save_for_backward(*inputs, *results)
        return tuple(results[: op.definition.outputs(options)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        op: KernelOp = ctx.op
        saved = ctx.saved_tensors  # once: each access unpacks anew, which recomputed activations refuse
        inputs, results = saved[: ctx.given], saved[ctx.given :]
        given = dense(gradients, results)
        if torch.is_grad_enabled():
            found: Sequence[Tensor | None] = op.derivative(ctx.options, inputs, given)
        else:
            arguments = ctx.options, op.definition.inputs(*inputs), results, given, ctx.needs_input_grad[3:]
            found = ctx.kernel.backward(*arguments)
        return None, None, None, *(None if g is None else g.to(t.dtype) for g, t in zip(found, inputs, strict=True))
