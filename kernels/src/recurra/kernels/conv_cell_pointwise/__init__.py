"""Fused gate arithmetic of the convolutional recurrent cells.

`conv_cell_pointwise` is the differentiable operation, `conv_cell_update` its in-place form for inference.
"""

import functools
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from recurra.kernels.conv_cell_pointwise import reference
from recurra.kernels.definition import Definition
from recurra.kernels.kernel_op import KernelOp
from recurra.kernels.registry import Backend, cpu_kernel_reason, gpu_kernel_reason, measured_costs, requested
from recurra.kernels.sequences import FLOATS

Cell = Literal["gru", "mgu", "indrnn", "gru_before_reset", "gru_before_update"]


class Options(NamedTuple):
    """What is no tensor."""

    cell: str


class Inputs(NamedTuple):
    """Tensors of one call; gh and u None where the cell has none."""

    gi: Tensor
    gh: Tensor | None
    h: Tensor
    u: Tensor | None


def conv_cell_pointwise(
    cell: Cell,
    gi: Tensor,
    gh: Tensor | None,
    h: Tensor,
    *,
    u: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The next state of a convolutional cell from the outputs of its two convolutions.

    With the channel blocks of `gi` and `gh` in the order given, σ the logistic function and products element-wise:

        gru                r = σ(i₁+h₁), z = σ(i₂+h₂), n = tanh(i₃ + r h₃), h' = (1-z) n + z h
        mgu                f = σ(i₁+h₁), c = tanh(i₂ + f h₂), h' = c + f (h - c)
        indrnn             h' = relu(i + u h)
        gru_before_reset   σ(i+h₁) h, the state that the candidate's convolution reads
        gru_before_update  u = σ(i₁+h₁), c = tanh(i₂+h₂), h' = h + u (c - h)

    Args:
        cell: which equations.
        gi: (batch, gates * channel, *spatial), input convolution with its bias.
        gh: same shape, hidden convolution; None for indrnn, optional for the gru_before pair.
        h: (batch, channel, *spatial), the old state; the result has its dtype and memory layout.
        u: one scale a channel, for indrnn alone.
        backend: reference, numba or triton; None for the rule of `recurra.kernels.registry`.

    Returns:
        (batch, channel, *spatial).

    Raises:
        ValueError: shapes do not fit, or the requested backend cannot serve.
    """
    (new,) = OP(cell, gi, gh, h, u=u, backend=backend)
    return new


def conv_cell_update(
    cell: Cell,
    gi: Tensor,
    gh: Tensor | None,
    h: Tensor,
    *,
    u: Tensor | None = None,
    bias: Tensor | None = None,
    block: int = 0,
    out: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Writes the next state into `out`, which may be `h` itself: the inference form, without gradients.

    All arguments are contiguous matrices (pixel, gates * channel) on one device.

    Args:
        cell: which equations, as in `conv_cell_pointwise`.
        gi: (pixel, blocks * channel) with at least the cell's gates from `block` on.
        gh: same, or None.
        h: (pixel, channel).
        u: (channel,), for indrnn.
        bias: (gates * channel,), added to gi.
        block: the block of channels in gi and gh that holds the cell's first gate.
        out: (pixel, channel).
        backend: as in `conv_cell_pointwise`; one without an in-place form falls back to the reference.
    """
    name = backend or requested()
    reason = _numba_supports(Options(cell), Inputs(gi, gh, h, u))
    numba = name in (None, "numba") and reason is None
    if name == "numba" and not numba:
        raise ValueError(f"backend 'numba' cannot serve conv_cell_update: {reason}")
    if numba:
        OP.kernel("numba").update(  # type: ignore[attr-defined]
            cell, gi, gh, h, u, bias, block, out
        )
        return out
    gates = slice(block * h.shape[1], (block + reference.GATES[cell]) * h.shape[1])
    gi, gh = gi[:, gates], None if gh is None else gh[:, gates]
    return out.copy_(reference.new_state(cell, gi if bias is None else gi + bias, gh, h, u))


def _check(cell: str, gi: Tensor, gh: Tensor | None, h: Tensor, u: Tensor | None) -> None:
    if cell not in get_args(Cell):
        raise ValueError(f"cell must be one of {', '.join(get_args(Cell))}; got {cell!r}")
    if h.dim() < 2:
        raise ValueError(f"h has shape {tuple(h.shape)}; expected (batch, channel, *spatial)")
    gates = reference.GATES[cell]
    expected = (h.shape[0], gates * h.shape[1], *h.shape[2:])
    for name, value in (("gi", gi), ("gh", gh)):
        if value is not None and value.shape != expected:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; expected {expected}: {gates} gate(s) of h {tuple(h.shape)}"
            )
    if cell in ("gru", "mgu") and gh is None:
        raise ValueError(f"cell {cell} needs gh, the output of the hidden convolution; got None")
    if cell == "indrnn" and (gh is not None or u is None or u.numel() != h.shape[1]):
        given = "None" if u is None else f"{u.numel()} values"
        raise ValueError(f"cell indrnn takes gh=None and u with one value a channel ({h.shape[1]}); got u={given}")
    if cell != "indrnn" and u is not None:
        raise ValueError(f"u belongs to cell indrnn alone; got u with cell {cell}")
    for name, value in (("gi", gi), ("gh", gh), ("h", h), ("u", u)):
        if value is not None and (value.dtype not in FLOATS or value.device != h.device):
            raise ValueError(
                f"{name} is {value.dtype} on {value.device}; expected a real floating dtype on {h.device}, h's device"
            )


def _prepare(cell: Cell, gi: Tensor, gh: Tensor | None, h: Tensor, u: Tensor | None = None) -> tuple[Options, Inputs]:
    _check(cell, gi, gh, h, u)
    return Options(cell), Inputs(gi, gh, h, u)


def _formula(options: Options, inputs: Inputs) -> tuple[Tensor]:
    return (reference.new_state(options.cell, *inputs),)


def _numba_supports(options: Options, inputs: Inputs) -> str | None:
    h = inputs.h
    if h.dtype not in (torch.float32, torch.float64) or any(t is not None and t.dtype != h.dtype for t in inputs):
        return f"numba serves float32 or float64 throughout; got gi {inputs.gi.dtype}, h {h.dtype}"
    return cpu_kernel_reason(h)


def _cost(backend: str, options: Options, inputs: Inputs) -> float:
    entry = measured_costs(__name__)[backend]["cpu" if inputs.h.device.type == "cpu" else "cuda"]
    return float(entry["call_us"] + entry["ns_per_value"][options.cell] * inputs.h.numel() / 1000)


OP = KernelOp(
    "conv_cell_pointwise",
    __name__,
    Definition(Options, Inputs, _prepare, _formula, lambda o, i, saving: [torch.empty_like(i.h)], lambda o: 1),
    [
        Backend("reference", lambda o, i: None, functools.partial(_cost, "reference"), _formula),
        Backend("numba", _numba_supports, functools.partial(_cost, "numba")),
        Backend("triton", lambda o, i: gpu_kernel_reason(i.h), functools.partial(_cost, "triton")),
    ],
)
