"""Fused gate arithmetic of the convolutional recurrent cells.

`conv_cell_pointwise` is the differentiable operation, `conv_cell_update` its in-place form for inference.
"""

import functools
import os
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from recurra.kernels.conv_cell_pointwise import reference
from recurra.kernels.registry import Backend, Op, installed, measured_costs, requested

Cell = Literal["gru", "mgu", "indrnn", "gru_before_reset", "gru_before_update"]

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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
    _check(cell, gi, gh, h, u)
    if torch.compiler.is_compiling():
        # Opaque to the tracer, which cannot read context variables: the choice is made when the program runs.
        name = backend or (None if torch.compiler.is_dynamo_compiling() else requested()) or "auto"
        if name == "reference":
            return reference.forward(cell, gi, gh, h, u)
        result: Tensor = _forward_op(cell, gi, gh, h, u, name)
        return result
    chosen = OP.select(cell, gi, gh, h, u=u, backend=backend)
    result = chosen(cell, gi, gh, h, u)
    return result


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
    reason = _numba_supports(cell, gi, gh, h, u=u)
    numba = name in (None, "numba") and reason is None
    if name == "numba" and not numba:
        raise ValueError(f"backend 'numba' cannot serve conv_cell_update: {reason}")
    if numba:
        _implementation("numba").update(cell, gi, gh, h, u, bias, block, out)
        return out
    gates = slice(block * h.shape[1], (block + reference.GATES[cell]) * h.shape[1])
    gi, gh = gi[:, gates], None if gh is None else gh[:, gates]
    return out.copy_(reference.forward(cell, gi if bias is None else gi + bias, gh, h, u))


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
        if value is not None and (value.dtype not in _FLOATS or value.device != h.device):
            raise ValueError(
                f"{name} is {value.dtype} on {value.device}; expected a real floating dtype on {h.device}, h's device"
            )


@functools.cache
def _implementation(name: str) -> Any:
    # Imported at first use: importing recurra.kernels must not import numba or triton.
    import importlib

    return importlib.import_module(f"{__name__}.{name}")


def _mixed(gi: Tensor, gh: Tensor | None, h: Tensor, u: Tensor | None) -> bool:
    return any(value is not None and value.dtype != h.dtype for value in (gi, gh, u))


def _reference_supports(cell: str, gi: Tensor, gh: Tensor | None, h: Tensor, u: Tensor | None = None) -> str | None:
    return None


def _numba_supports(cell: str, gi: Tensor, gh: Tensor | None, h: Tensor, u: Tensor | None = None) -> str | None:
    if not installed("numba"):
        return "numba is not installed; pip install 'recurra-kernels[numba]'"
    if h.device.type != "cpu":
        return f"numba serves CPU tensors; these are on {h.device}"
    if h.dtype not in (torch.float32, torch.float64) or _mixed(gi, gh, h, u):
        return f"numba serves float32 or float64 throughout; got gi {gi.dtype}, h {h.dtype}"
    return None


def _triton_supports(cell: str, gi: Tensor, gh: Tensor | None, h: Tensor, u: Tensor | None = None) -> str | None:
    if not installed("triton"):
        return "triton is not installed; pip install 'recurra-kernels[triton]'"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if h.device.type != "cuda" and not (h.device.type == "cpu" and interpreted):
        return f"triton serves CUDA tensors; these are on {h.device} (TRITON_INTERPRET=1 runs its interpreter, slowly)"
    return None


def _cost(backend: str, cell: str, gi: Tensor, gh: Tensor | None, h: Tensor, u: Tensor | None = None) -> float:
    entry = measured_costs(__name__)[backend][h.device.type if h.device.type in ("cpu", "cuda") else "cuda"]
    return float(entry["call_us"] + entry["ns_per_value"][cell] * h.numel() / 1000)


@torch.library.custom_op("recurra::conv_cell_pointwise", mutates_args=())
def _forward_op(cell: str, gi: Tensor, gh: Tensor | None, h: Tensor, u: Tensor | None, backend: str) -> Tensor:
    name = OP.select(cell, gi, gh, h, u=u).name if backend == "auto" else backend
    module = reference if name == "reference" else _implementation(name)
    new: Tensor = module.forward(cell, gi, gh, h, u)
    return new.clone() if new is h else new


@_forward_op.register_fake
def _(cell: str, gi: Tensor, gh: Tensor | None, h: Tensor, u: Tensor | None, backend: str) -> Tensor:
    return torch.empty_like(h)


@torch.library.custom_op("recurra::conv_cell_pointwise_backward", mutates_args=())
def _backward_op(
    d: Tensor, cell: str, gi: Tensor, gh: Tensor | None, h: Tensor, u: Tensor | None, backend: str
) -> list[Tensor]:
    name = OP.select(cell, gi, gh, h, u=u).name if backend == "auto" else backend
    if name == "reference":
        dgi, dgh, dh, du = reference.backward(d, cell, gi, gh, h, u)
    else:
        dgi, dgh, dh, du = _implementation(name).backward(d.to(h.dtype), cell, gi, gh, h, u)
    # Outputs of an operation may not share memory, nor be absent.
    if dgh is not None and dgh.data_ptr() == dgi.data_ptr():
        dgh = dgh.clone()
    given = zip((dgi, dgh, dh, du), (gi, gh, h, u), strict=True)
    return [h.new_empty(0) if g is None or v is None else _laid_out_as(g.to(v.dtype), v) for g, v in given]


def _laid_out_as(gradient: Tensor, value: Tensor) -> Tensor:
    fitted = torch.empty_like(value)
    return gradient if gradient.stride() == fitted.stride() else fitted.copy_(gradient)


@_backward_op.register_fake
def _(d: Tensor, cell: str, gi: Tensor, gh: Tensor | None, h: Tensor, u: Tensor | None, backend: str) -> list[Tensor]:
    return [h.new_empty(0) if v is None else torch.empty_like(v) for v in (gi, gh, h, u)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.cell, gi, gh, h, u, ctx.backend = inputs
    ctx.save_for_backward(gi, gh, h, u)


def _gradient(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
    gi, gh, h, u = ctx.saved_tensors
    dgi, dgh, dh, du = _backward_op(d, ctx.cell, gi, gh, h, u, ctx.backend)
    return None, dgi, None if gh is None else dgh, dh, None if u is None else du, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    d, ctx.cell, gi, gh, h, u, _ = inputs
    ctx.save_for_backward(d, gi, gh, h, u)


def _second_gradient(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Through the reference: any backend is differentiable as often as wished."""
    given = [value for value in ctx.saved_tensors if value is not None]
    present = [value is not None for value in ctx.saved_tensors]

    def formula(*values: Tensor) -> tuple[Tensor, ...]:
        rest = iter(values)
        d, gi, gh, h, u = (next(rest) if there else None for there in present)
        assert d is not None
        assert gi is not None
        assert h is not None
        return tuple(g for g in reference.backward(d, ctx.cell, gi, gh, h, u) if g is not None)

    pull: Any = torch.func.vjp(formula, *given)[1]
    wanted = tuple(g for g, there in zip(grads, present[1:], strict=True) if there)
    pulled = iter(pull(wanted))
    d, gi, gh, h, u = (next(pulled) if there else None for there in present)
    return d, None, gi, gh, h, u, None


_forward_op.register_autograd(_gradient, setup_context=_save)
_backward_op.register_autograd(_second_gradient, setup_context=_save_backward)


def _through_op(backend: str, cell: str, gi: Tensor, gh: Tensor | None, h: Tensor, u: Tensor | None) -> Tensor:
    result: Tensor = _forward_op(cell, gi, gh, h, u, backend)
    return result


OP = Op(
    "conv_cell_pointwise",
    [
        Backend("reference", _reference_supports, functools.partial(_cost, "reference"), reference.forward),
        Backend("numba", _numba_supports, functools.partial(_cost, "numba"), functools.partial(_through_op, "numba")),
        Backend(
            "triton", _triton_supports, functools.partial(_cost, "triton"), functools.partial(_through_op, "triton")
        ),
    ],
)
