"""Differentiable operations out of kernels.

A kernel is a module with `forward` and `backward`. An eager call runs it in an autograd function; compilers and
exporters see a custom operation instead, opaque to them, that chooses its backend when it runs. Second and higher
derivatives go through the definition, whichever backend ran the forward pass, and so do torch.func's transforms.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recurra.kernels.definition import Kernel
from recurra.kernels.opaque import OpaqueOp, dense, encode, without_autocast
from recurra.kernels.registry import Choice, requested


def training(inputs: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass may follow a call with these inputs."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


class KernelOp(OpaqueOp):
    """An operation to call: eagerly by its kernels, traced as a custom operation, transformed by its definition."""

    def __call__(self, *args: Any, backend: str | None = None, **kwargs: Any) -> tuple[Tensor, ...]:
        """Outputs of the operation by the backend that `registry` chooses."""
        options, inputs = self.definition.prepare(*args, **kwargs)
        with without_autocast(inputs):
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
            results = self.forward_op(encode(options, inputs), tensors, name, saving)
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
            found: Sequence[Tensor | None] = op.definition.derivative(ctx.options, inputs, given)
        else:
            arguments = ctx.options, op.definition.inputs(*inputs), results, given, ctx.needs_input_grad[3:]
            found = ctx.kernel.backward(*arguments)
        return None, None, None, *(None if g is None else g.to(t.dtype) for g, t in zip(found, inputs, strict=True))
