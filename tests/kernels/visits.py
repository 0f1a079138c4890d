"""Tensors of the CPU that are computed on another device where a test asks for Triton's kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Visit(torch.autograd.Function):
    """A tensor on another device, laid out in memory as it is here; its gradient comes back likewise."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, device: torch.device) -> Tensor:
        ctx.home = value.device
        value = value.detach().resolve_conj().resolve_neg()
        whole = value.as_strided((value.untyped_storage().nbytes() // value.element_size(),), (1,), 0)
        moved = whole.to(device, copy=True)
        return moved.as_strided(value.shape, value.stride(), value.storage_offset())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return Visit.apply(gradient, ctx.home), None


def visiting(call: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`KernelOp._call` whose tensors, where triton is asked for by name, are on this device during the call."""

    def called(op: Any, options: Any, inputs: Any, backend: str | None) -> tuple[Tensor, ...]:
        tensors = [t for t in inputs if t is not None]
        elsewhere = backend != "triton" or tensors[0].device.type != "cpu" or torch.compiler.is_compiling()
        if elsewhere or torch._C._are_functorch_transforms_active():
            return call(op, options, inputs, backend)
        moved = op.definition.inputs(*(None if t is None else Visit.apply(t, device) for t in inputs))
        return tuple(Visit.apply(y, tensors[0].device) for y in call(op, options, moved, backend))

    return called
