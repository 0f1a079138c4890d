"""Gated recurrent cells over time: Elman, GRU, MGU, LSTM and sLSTM, dense or in heads."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from recurra.kernels.definition import Definition
from recurra.kernels.gated_scan import reference
from recurra.kernels.gated_scan.triton_plan import unserved
from recurra.kernels.kernel_op import KernelOp, training
from recurra.kernels.registry import Backend, cpu_kernel_reason, measured_costs
from recurra.kernels.sequences import check_dtype, check_sequence, wide

Cell = Literal["elman_tanh", "elman_relu", "gru", "gru_before", "mgu", "mgu_after", "lstm", "slstm"]


class Form(NamedTuple):
    """Sizes of a cell: gates in wx and r, rows of the bias, names of its states, rows of gates that are saved."""

    gates: int
    biases: int
    states: tuple[str, ...]
    saved: int


FORMS: dict[str, Form] = {
    "elman_tanh": Form(1, 1, ("h",), 0),
    "elman_relu": Form(1, 1, ("h",), 0),
    "gru": Form(3, 4, ("h",), 4),
    "gru_before": Form(3, 3, ("h",), 3),
    "mgu": Form(2, 2, ("h",), 2),
    "mgu_after": Form(2, 2, ("h",), 3),
    "lstm": Form(4, 4, ("h", "c"), 4),
    "slstm": Form(4, 4, ("h", "c", "n", "m"), 4),
}


class Options(NamedTuple):
    """What is no tensor."""

    cell: str
    reverse: bool
    save: str


class Inputs(NamedTuple):
    """Tensors as the backends take them; the states a cell does not have are None.

    wx (batch, time, gate, head, new), r (gate, head, new, old), bias (gate, head, new), projection (head, old, new),
    h (batch, head, old), c, n and m (batch, head, new), lengths (batch,), reset (batch, time).
    """

    wx: Tensor
    r: Tensor
    bias: Tensor | None
    projection: Tensor | None
    h: Tensor
    c: Tensor | None
    n: Tensor | None
    m: Tensor | None
    lengths: Tensor | None
    reset: Tensor | None


def gated_scan(
    cell: Cell,
    wx: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    state: Sequence[Tensor] | None = None,
    *,
    projection: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    save: Literal["gates", "recompute"] = "gates",
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The state h after every step of a gated cell, and the last state.

    Gates stand in the order [h] elman, [r, z, n] gru, [f, c] mgu, [i, f, g, o] lstm, [i, f, z, o] slstm, in wx as in r.

    Args:
        cell: equations in this folder's README.
        wx: (batch, time, gate, head, width), what the input adds to each gate.
        r: (gate, head, width, width), the recurrent weights of each head: new = r @ old. One head is the dense cell.
        bias: (gate, head, width). For gru (4, head, width) = [r, z, n, and the one added to U_n h inside the reset].
        state: before the first step, each (batch, head, width): (h,); (h, c) lstm; (h, c, n, m) slstm; zero if absent.
        projection: (head, projected, width), lstm only: h is its product; r (gate, head, width, projected).
        lengths: (batch,) int64 in 0..time, in any order: y is 0 after a sequence's end and its state stays as it was.
        reset: (batch, time) bool: the state is set to `state` before step t.
        reverse: from each sequence's last step to its first.
        save: what is kept for the backward pass: the gates, or the states alone, the gates being computed again.
        backend: None for the rule of `recurra.kernels.registry`.

    Returns:
        y (batch, time, head, width) in wx's dtype, and the last state, in float32 where wx has 16 bit. Feeding it as
        `state` to the steps that follow gives what one call over all steps gives.

    Raises:
        ValueError: shapes or dtypes do not fit, or the requested backend cannot serve.
    """
    y, *last = OP(
        cell,
        wx,
        r,
        bias,
        state,
        projection=projection,
        lengths=lengths,
        reset=reset,
        reverse=reverse,
        save=save,
        backend=backend,
    )
    return y, tuple(last)


def _prepare(
    cell: str,
    wx: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    state: Sequence[Tensor] | None = None,
    *,
    projection: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    save: str = "gates",
) -> tuple[Options, Inputs]:
    if cell not in FORMS:
        raise ValueError(f"cell must be one of {', '.join(FORMS)}; got {cell!r}")
    if save not in ("gates", "recompute"):
        raise ValueError(f"save must be one of gates, recompute; got {save!r}")
    form = FORMS[cell]
    _check(cell, form, wx, r, bias, projection)
    batch, steps, _, heads, width = wx.shape
    check_sequence(batch, steps, lengths, reset, wx.device)
    shapes = [(batch, heads, r.shape[3])] + [(batch, heads, width)] * (len(form.states) - 1)
    if state is None:
        state = [wx.new_zeros(shape, dtype=wide(wx.dtype)) for shape in shapes]
    elif len(state) != len(shapes):
        raise ValueError(f"state of {cell} is ({', '.join(form.states)}); got {len(state)} tensors")
    for name, value, shape in zip(form.states, state, shapes, strict=True):
        if value.shape != shape:
            raise ValueError(f"state {name} has shape {tuple(value.shape)}; expected {shape}: batch, heads, width")
        check_dtype(f"state {name}", value, wx)
    h, c, n, m = [*state, None, None, None][:4]
    assert h is not None
    return Options(cell, reverse, save), Inputs(wx, r, bias, projection, h, c, n, m, lengths, reset)


def _check(cell: str, form: Form, wx: Tensor, r: Tensor, bias: Tensor | None, projection: Tensor | None) -> None:
    if wx.dim() != 5 or wx.shape[2] != form.gates:
        raise ValueError(
            f"wx has shape {tuple(wx.shape)}; {cell} expects (batch, time, {form.gates} gates, heads, width)"
        )
    if not wx.is_floating_point():
        raise ValueError(f"wx is {wx.dtype}; expected a real floating point dtype")
    *_, heads, width = wx.shape
    old = width
    if projection is not None:
        if cell != "lstm":
            raise ValueError(f"projection is for lstm; got it with {cell}: leave it out")
        if projection.dim() != 3 or projection.shape[0] != heads or projection.shape[2] != width:
            raise ValueError(f"projection has shape {tuple(projection.shape)}; expected ({heads}, projected, {width})")
        old = projection.shape[1]
    if r.shape != (form.gates, heads, width, old):
        expected = (form.gates, heads, width, old)
        raise ValueError(f"r has shape {tuple(r.shape)}; expected {expected}: gates, heads, width and old width of wx")
    if bias is not None and bias.shape != (form.biases, heads, width):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; {cell} expects {(form.biases, heads, width)}")
    for name, value in (("r", r), ("bias", bias), ("projection", projection)):
        if value is not None:
            check_dtype(name, value, wx)


def kept_dtype(cell: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which gates are saved for a wx of this dtype."""
    if cell == "slstm":
        return wide(dtype)  # its exponentials leave float16
    # Gates lie in -1..1, where float16 has three bits more: 1 - z of a z near 1 loses most.
    return torch.float16 if dtype == torch.bfloat16 else dtype


def _shapes(options: Options, inputs: Inputs, saving: bool) -> list[Tensor]:
    """Outputs, then what kernels save: gates unless they are recomputed, then the states other than h.

    gates (batch, time, row, head, new), in wx's dtype, for slstm in the wide one (they are exponents):
        elman none; gru [r, z, n, U_n h + c_n]; gru_before [r, z, n]; mgu [f, c]; mgu_after [f, c, U_c h];
        lstm [i, f, g, o]; slstm [i, f, z, o], before or after their functions as the backend likes.
    states (batch, time, 1 | 3, head, new) in the wide dtype: c of lstm; c, n, m of slstm, as they are after the step.

    Both are zero in a sequence's padding. h before a step is y one step earlier in the sequence's direction (rounded to
    16 bit where y is), and the initial state at its first step and at a reset.
    """
    wx, form = inputs.wx, FORMS[options.cell]
    batch, steps, _, heads, width = wx.shape
    carried = wide(wx.dtype)
    found = [wx.new_empty((batch, steps, heads, inputs.h.shape[2]))]
    found += [t.new_empty(t.shape, dtype=carried) for t in (inputs.h, inputs.c, inputs.n, inputs.m) if t is not None]
    if saving and options.save == "gates" and form.saved:
        kind = kept_dtype(options.cell, wx.dtype)
        found.append(wx.new_empty((batch, steps, form.saved, heads, width), dtype=kind))
    if saving and len(form.states) > 1:
        found.append(wx.new_empty((batch, steps, len(form.states) - 1, heads, width), dtype=carried))
    return found


def _cost(name: str, options: Options, inputs: Inputs) -> float:
    wx = inputs.wx
    entry = measured_costs(__name__)[name]["cpu" if wx.device.type == "cpu" else "cuda"]
    entry = entry["training" if training(inputs) else "inference"]
    values = wx.numel()
    return float(
        entry["call_us"]
        + entry["step_us"] * wx.shape[1]
        + entry["ns_per_value"] * values / 1000
        + entry["ns_per_product"] * values * inputs.r.shape[3] / 1000
    )


def _numba_supports(options: Options, inputs: Inputs) -> str | None:
    return cpu_kernel_reason(inputs.wx)


OP = KernelOp(
    "gated_scan",
    __name__,
    Definition(
        Options, Inputs, _prepare, reference.gated_scan, _shapes, lambda options: 1 + len(FORMS[options.cell].states)
    ),
    [
        Backend("reference", lambda o, i: None, lambda o, i: _cost("reference", o, i), reference.gated_scan),
        Backend("numba", _numba_supports, lambda o, i: _cost("numba", o, i)),
        Backend("triton", unserved, lambda o, i: _cost("triton", o, i)),
    ],
)
