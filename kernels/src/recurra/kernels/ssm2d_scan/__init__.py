"""Two-dimensional linear recurrence (Roesser's model): one state moves along the columns, the other along the rows."""

from typing import NamedTuple

import torch
from torch import Tensor

from recurra.kernels.definition import Definition
from recurra.kernels.kernel_op import KernelOp, training
from recurra.kernels.registry import Backend, cpu_kernel_reason, gpu_kernel_reason, measured_costs
from recurra.kernels.sequences import FLOATS, check_dtype, wide
from recurra.kernels.ssm2d_scan import reference

Border = tuple[Tensor, Tensor]


class Options(NamedTuple):
    """What is no tensor: nothing."""


class Inputs(NamedTuple):
    """Tensors as the backends take them.

    a1 to a4 (1 | batch, 1 | row, 1 | column, width), b1 and b2 (batch, row, column, width), left_h and left_g
    (batch, row, width), top_h and top_g (batch, column, width).
    """

    a1: Tensor
    a2: Tensor
    a3: Tensor
    a4: Tensor
    b1: Tensor
    b2: Tensor
    left_h: Tensor
    left_g: Tensor
    top_h: Tensor
    top_g: Tensor


def ssm2d_scan(
    a1: Tensor,
    a2: Tensor,
    a3: Tensor,
    a4: Tensor,
    b1: Tensor,
    b2: Tensor,
    left: Border | None = None,
    top: Border | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Both states of the two-dimensional recurrence in every cell:

        h[v,t] = a1[v,t] h[v,t-1] + a2[v,t] g[v,t-1] + b1[v,t]
        g[v,t] = a3[v,t] h[v-1,t] + a4[v,t] g[v-1,t] + b2[v,t]

    so h moves along the columns t and g along the rows v (Roesser 1975, doi:10.1109/TAC.1975.1100844). With
    |a1| + |a2| <= 1 and |a3| + |a4| <= 1 it is stable.

    Args:
        a1: what broadcasts to b1 from the right: (width,), (row, column, width), (batch, 1, column, width), ...
        a2: likewise.
        a3: likewise.
        a4: likewise.
        b1: (batch, row, column, width), real.
        b2: same shape.
        left: (h, g) before the first column, each (batch, row, width); zero if absent.
        top: (h, g) before the first row, each (batch, column, width); zero if absent.
        backend: reference, numba or triton; None for the rule of `recurra.kernels.registry`.

    Returns:
        h and g, each of b1's shape and dtype. Feeding the last column as `left` to the columns that follow gives what
        one call over all columns gives, and the last row as `top` likewise.

    Raises:
        ValueError: shapes or dtypes do not fit, or the requested backend cannot serve.
    """
    h, g = OP(a1, a2, a3, a4, b1, b2, left, top, backend=backend)
    return h, g


def _prepare(
    a1: Tensor,
    a2: Tensor,
    a3: Tensor,
    a4: Tensor,
    b1: Tensor,
    b2: Tensor,
    left: Border | None = None,
    top: Border | None = None,
) -> tuple[Options, Inputs]:
    if b1.dim() != 4 or b1.dtype not in FLOATS:
        raise ValueError(
            f"b1 has shape {tuple(b1.shape)} of {b1.dtype}; expected (batch, row, column, width), real floating"
        )
    if b2.shape != b1.shape:
        raise ValueError(f"b2 has shape {tuple(b2.shape)}; expected {tuple(b1.shape)}, that of b1")
    batch, rows, columns, width = b1.shape
    check_dtype("b2", b2, b1)
    coefficients = []
    for name, a in (("a1", a1), ("a2", a2), ("a3", a3), ("a4", a4)):
        if a.dim() > 4 or any(n not in (1, m) for n, m in zip(a.shape[::-1], b1.shape[::-1], strict=False)):
            raise ValueError(f"{name} has shape {tuple(a.shape)}; expected what broadcasts to b1's {tuple(b1.shape)}")
        check_dtype(name, a, b1)
        coefficients.append(a.reshape(*[1] * (4 - a.dim()), *a.shape).expand(-1, -1, -1, width))
    borders = (*_border("left", left, b1, (batch, rows, width)), *_border("top", top, b1, (batch, columns, width)))
    return Options(), Inputs._make((*coefficients, b1, b2, *borders))


def _border(name: str, border: Border | None, b1: Tensor, shape: tuple[int, ...]) -> Border:
    if border is None:
        zeros = b1.new_zeros(shape, dtype=wide(b1.dtype))
        return zeros, zeros
    if len(border) != 2:
        raise ValueError(f"{name} has {len(border)} entries; expected the pair (h, g)")
    for letter, value in zip("hg", border, strict=True):
        if value.shape != shape:
            raise ValueError(f"{letter} of {name} has shape {tuple(value.shape)}; expected {shape}, by b1's shape")
        check_dtype(f"{letter} of {name}", value, b1)
    return border


def _shapes(options: Options, inputs: Inputs, saving: bool) -> list[Tensor]:
    return [torch.empty_like(inputs.b1, memory_format=torch.contiguous_format) for _ in "hg"]


def _cost(name: str, options: Options, inputs: Inputs) -> float:
    b = inputs.b1
    entry = measured_costs(__name__)[name]["cpu" if b.device.type == "cpu" else "cuda"]
    entry = entry["training" if training(inputs) else "inference"]
    cells = b.shape[1] * b.shape[2]
    return float(entry["call_us"] + entry["cell_us"] * cells + entry["ns_per_value"] * b.numel() / 1000)


def _numba_supports(options: Options, inputs: Inputs) -> str | None:
    return cpu_kernel_reason(inputs.b1)


def _triton_supports(options: Options, inputs: Inputs) -> str | None:
    return gpu_kernel_reason(inputs.b1)


OP = KernelOp(
    "ssm2d_scan",
    __name__,
    Definition(Options, Inputs, _prepare, reference.ssm2d_scan, _shapes, lambda options: 2),
    [
        Backend("reference", lambda o, i: None, lambda o, i: _cost("reference", o, i), reference.ssm2d_scan),
        Backend("numba", _numba_supports, lambda o, i: _cost("numba", o, i)),
        Backend("triton", _triton_supports, lambda o, i: _cost("triton", o, i)),
    ],
)
