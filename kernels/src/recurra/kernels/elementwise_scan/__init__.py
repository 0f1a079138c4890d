"""Recurrent cells whose units see no state but their own: IndRNN, diagonal GRU and LSTM."""

from typing import Literal, NamedTuple

from torch import Tensor

from recurra.kernels.chunks import compiler_reason
from recurra.kernels.definition import Definition
from recurra.kernels.elementwise_scan import reference
from recurra.kernels.kernel_op import KernelOp, training
from recurra.kernels.registry import Backend, cpu_kernel_reason, gpu_kernel_reason, measured_costs
from recurra.kernels.sequences import FLOATS, check_dtype, check_sequence, wide

Cell = Literal["indrnn_relu", "indrnn_tanh", "indrnn_linear", "diag_gru", "diag_lstm_cifg"]

# Rows of wx and of the parameters; none for the cells with one row alone.
ROWS = {"indrnn_relu": (), "indrnn_tanh": (), "indrnn_linear": (), "diag_gru": (3, 3), "diag_lstm_cifg": (3, 5)}


class Options(NamedTuple):
    """What is no tensor."""

    cell: str
    reverse: bool


class Inputs(NamedTuple):
    """Tensors as the backends take them.

    wx (batch, time, [rows,] width), params ([rows,] width), h0 and, for diag_lstm_cifg alone, c0 (batch, width),
    lengths (batch,), reset (batch, time).
    """

    wx: Tensor
    params: Tensor
    h0: Tensor
    c0: Tensor | None
    lengths: Tensor | None
    reset: Tensor | None


def elementwise_scan(
    cell: Cell,
    wx: Tensor,
    params: Tensor,
    state: tuple[Tensor, ...] | None = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Hidden states of all steps, and the state after the last; equations in `reference`.

    Args:
        cell: indrnn_relu, indrnn_tanh, indrnn_linear (Li et al. 2018, arXiv:1803.04831), diag_gru or diag_lstm_cifg
            (ParaRNN, arXiv:2510.21450).
        wx: inputs after their projection, bias included: (batch, time, width) of the IndRNN, (batch, time, 3, width) of
            diag_gru, rows [z, r, n], and of diag_lstm_cifg, rows [f, o, c].
        params: u (width,); (3, width), rows a_z, a_r, a_n; (5, width), rows a_f, a_o, a_c, c_f, c_o.
        state: (h,), for diag_lstm_cifg (h, c), each (batch, width), before the first step; zero if absent.
        lengths: (batch,) int64 in 0..time, in any order: y is 0 after a sequence's end and its state stays as it was.
        reset: (batch, time) bool: the state is set to the initial one before step t.
        reverse: from each sequence's last step to its first.
        backend: None for the rule of `recurra.kernels.registry`.

    Returns:
        y (batch, time, width) in wx's dtype, and the last state, a tuple as `state`, in float32 where wx has 16 bit.

    Raises:
        ValueError: shapes or dtypes do not fit, or the requested backend cannot serve.
    """
    y, *last = OP(cell, wx, params, state, lengths=lengths, reset=reset, reverse=reverse, backend=backend)
    return y, tuple(last)


def _prepare(
    cell: str,
    wx: Tensor,
    params: Tensor,
    state: tuple[Tensor, ...] | None = None,
    *,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Options, Inputs]:
    if cell not in ROWS:
        raise ValueError(f"cell must be one of {', '.join(ROWS)}; got {cell!r}")
    rows = ROWS[cell]
    if wx.dtype not in FLOATS:
        raise ValueError(f"wx is {wx.dtype}; expected one of {', '.join(map(str, FLOATS))}")
    if wx.dim() != 3 + len(rows[:1]) or wx.shape[2:-1] != rows[:1]:
        form = "(batch, time, 3, width)" if rows else "(batch, time, width)"
        raise ValueError(f"wx has shape {tuple(wx.shape)}; expected {form} for {cell}")
    batch, steps, width = wx.shape[0], wx.shape[1], wx.shape[-1]
    if params.shape != (*rows[1:], width):
        raise ValueError(f"params has shape {tuple(params.shape)}; expected {(*rows[1:], width)} for {cell}")
    check_dtype("params", params, wx)
    names = ("h", "c") if cell == "diag_lstm_cifg" else ("h",)
    if state is not None and len(state) != len(names):
        raise ValueError(f"state has {len(state)} tensors; expected ({', '.join(names)},) for {cell}")
    for name, value in zip(names, state or (), strict=False):
        if value.shape != (batch, width):
            raise ValueError(f"state {name} has shape {tuple(value.shape)}; expected {(batch, width)}")
        check_dtype(f"state {name}", value, wx)
    check_sequence(batch, steps, lengths, reset, wx.device)
    h0, c0 = (*(state or [wx.new_zeros((batch, width), dtype=wide(wx.dtype)) for _ in names]), None)[:2]
    return Options(cell, reverse), Inputs(wx, params, h0, c0, lengths, reset)


def _shapes(options: Options, inputs: Inputs, saving: bool) -> list[Tensor]:
    """y and the last state; diag_lstm_cifg saves c after every step, the others rebuild all from wx and y."""
    wx = inputs.wx
    sequence, carried = (*wx.shape[:2], wx.shape[-1]), wide(wx.dtype)
    states = [wx.new_empty((wx.shape[0], wx.shape[-1]), dtype=carried) for s in inputs[2:4] if s is not None]
    saved = [wx.new_empty(sequence, dtype=carried)] if saving and inputs.c0 is not None else []
    return [wx.new_empty(sequence), *states, *saved]


def _numba_supports(options: Options, inputs: Inputs) -> str | None:
    return cpu_kernel_reason(inputs.wx)


def _cost(name: str, options: Options, inputs: Inputs) -> float:
    wx = inputs.wx
    entry = measured_costs(__name__)[name]["cpu" if wx.device.type == "cpu" else "cuda"][options.cell]
    entry = entry["training" if training(inputs) else "inference"]
    values = wx.shape[0] * wx.shape[1] * wx.shape[-1]
    return float(entry["call_us"] + entry["step_us"] * wx.shape[1] + entry["ns_per_value"] * values / 1000)


OP = KernelOp(
    "elementwise_scan",
    __name__,
    Definition(
        Options,
        Inputs,
        _prepare,
        reference.elementwise_scan,
        _shapes,
        lambda options: 3 if options.cell == "diag_lstm_cifg" else 2,
    ),
    [
        Backend("reference", lambda o, i: None, lambda o, i: _cost("reference", o, i), reference.elementwise_scan),
        Backend("numba", _numba_supports, lambda o, i: _cost("numba", o, i)),
        Backend("compiled", lambda o, i: compiler_reason(i.wx), lambda o, i: _cost("compiled", o, i)),
        Backend("parallel", lambda o, i: None, lambda o, i: _cost("parallel", o, i)),
        Backend("triton", lambda o, i: gpu_kernel_reason(i.wx), lambda o, i: _cost("triton", o, i)),
    ],
)
