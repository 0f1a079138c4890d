"""Diagonal linear recurrence, real or complex, with coefficients fixed or varying in time."""

from typing import NamedTuple

import torch
from torch import Tensor

from recurra.kernels.chunks import compiler_reason
from recurra.kernels.definition import Definition
from recurra.kernels.kernel_op import KernelOp, training
from recurra.kernels.linear_scan import reference
from recurra.kernels.registry import Backend, cpu_kernel_reason, gpu_kernel_reason, measured_costs
from recurra.kernels.sequences import FLOATS, check_dtype, check_sequence, wide


class Options(NamedTuple):
    """What is no tensor."""

    reverse: bool


class Inputs(NamedTuple):
    """Tensors as the backends take them.

    a (1 | batch, 1 | time, width), b (batch, time, width), h0 (batch, width), lengths (batch,), reset (batch, time).
    """

    a: Tensor
    b: Tensor
    h0: Tensor
    lengths: Tensor | None
    reset: Tensor | None


def linear_scan(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """All states of h_t = a_t h_(t-1) + b_t, and the last.

    Args:
        a: broadcastable to b from the right: (*width,), (time, *width), (batch, 1, *width), ...
        b: (batch, time, *width). Complex if a or b is.
        h0: (batch, *width), the state before the first step; zero if absent.
        lengths: (batch,) int64 in 0..time, in any order: h is 0 after a sequence's end and its state stays as it was.
        reset: (batch, time) bool: the state is set to h0 before step t.
        reverse: from each sequence's last step to its first.
        backend: None for the rule of `recurra.kernels.registry`.

    Returns:
        h (batch, time, *width) in b's dtype, and the last state (batch, *width), in float32 where b has 16 bit. Feeding
        the last state as `h0` to the steps that follow gives what one call over all steps gives.

    Raises:
        ValueError: shapes or dtypes do not fit, or the requested backend cannot serve.
    """
    h, last = OP(a, b, h0, lengths=lengths, reset=reset, reverse=reverse, backend=backend)
    return h.reshape(b.shape), last.reshape(b.shape[0], *b.shape[2:])


def _prepare(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Options, Inputs]:
    if b.dim() < 2:
        raise ValueError(f"b has shape {tuple(b.shape)}; expected (batch, time, *width)")
    if b.dtype not in (*FLOATS, torch.complex64, torch.complex128):
        raise ValueError(f"b is {b.dtype}; expected a real or complex floating point dtype")
    batch, steps, *width = b.shape
    if a.dim() > b.dim() or any(n not in (1, m) for n, m in zip(a.shape[::-1], b.shape[::-1], strict=False)):
        raise ValueError(f"a has shape {tuple(a.shape)}; expected one that broadcasts to b's {tuple(b.shape)}")
    if h0 is not None and h0.shape != (batch, *width):
        raise ValueError(f"h0 has shape {tuple(h0.shape)}; expected {(batch, *width)}: batch and width of b")
    check_sequence(batch, steps, lengths, reset, b.device)
    kinds = [t.dtype for t in (a, b, h0) if t is not None and t.is_complex()]
    if kinds:
        a, b = (t if t.is_complex() else t.to(kinds[0]) for t in (a, b))
        h0 = h0 if h0 is None or h0.is_complex() else h0.to(kinds[0])
    for name, value in (("a", a), ("b", b), ("h0", h0)):
        if value is not None:
            check_dtype(name, value, b)
    a = a.reshape(*[1] * (b.dim() - a.dim()), *a.shape).expand(*[-1, -1][: b.dim()], *width).flatten(2)
    h0 = b.new_zeros((batch, *width), dtype=wide(b.dtype)) if h0 is None else h0
    return Options(reverse), Inputs(a, b.flatten(2), h0.flatten(1), lengths, reset)


def _shapes(options: Options, inputs: Inputs, saving: bool) -> list[Tensor]:
    b = inputs.b
    return [
        torch.empty_like(b, memory_format=torch.contiguous_format),
        b.new_empty((b.shape[0], b.shape[2]), dtype=wide(b.dtype)),
    ]


def _cost(name: str, options: Options, inputs: Inputs) -> float:
    b = inputs.b
    entry = measured_costs(__name__)[name]["cpu" if b.device.type == "cpu" else "cuda"]
    entry = entry["training" if training(inputs) else "inference"]
    return float(entry["call_us"] + entry["step_us"] * b.shape[1] + entry["ns_per_value"] * b.numel() / 1000)


def _numba_supports(options: Options, inputs: Inputs) -> str | None:
    return cpu_kernel_reason(inputs.b)


def _compiled_supports(options: Options, inputs: Inputs) -> str | None:
    if inputs.b.is_complex():
        return "torch.compile has no code for complex numbers; use numba or reference"
    return compiler_reason(inputs.b)


OP = KernelOp(
    "linear_scan",
    __name__,
    Definition(Options, Inputs, _prepare, reference.linear_scan, _shapes, lambda options: 2),
    [
        Backend("reference", lambda o, i: None, lambda o, i: _cost("reference", o, i), reference.linear_scan),
        Backend("numba", _numba_supports, lambda o, i: _cost("numba", o, i)),
        Backend("compiled", _compiled_supports, lambda o, i: _cost("compiled", o, i)),
        Backend("triton", lambda o, i: gpu_kernel_reason(i.b), lambda o, i: _cost("triton", o, i)),
    ],
)
