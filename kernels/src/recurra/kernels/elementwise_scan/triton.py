"""CUDA backend: one lane a unit of a sequence, or, for few lanes and many steps, many steps at once; README.md."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from recurra.kernels.elementwise_scan import triton_chunks, triton_lanes, triton_newton
from recurra.kernels.elementwise_scan.triton_cells import NUMBERS as CELLS
from recurra.kernels.gpu_scan import CLAMP, LINEAR, MATRIX, NUMBERS, carry, flags, lane_block, strides
from recurra.kernels.linear_scan import Inputs as LinearInputs
from recurra.kernels.linear_scan import triton as linear
from recurra.kernels.registry import measured_costs
from recurra.kernels.sequences import wide

# Steps loaded ahead by a lane, forward and backward; halved for float64.
AHEAD = {"indrnn_relu": (32, 8), "indrnn_tanh": (32, 8), "diag_gru": (8, 4), "diag_lstm_cifg": (8, 2)}
# Steps of a program that works on many steps at once, its lanes by the bytes of a state, and its warps.
WINDOW = {"indrnn_relu": 128, "indrnn_tanh": 128, "diag_gru": 128, "diag_lstm_cifg": 64}
LANES = {4: 8, 8: 4}
WARPS = 4
# Newton's method: units of round-off that a residual may have, and corrections before the loop takes over.
ROUNDING, LIMIT = 8, 12


class _Sizes(NamedTuple):
    """What every launch takes."""

    lengths: Tensor
    reset: Tensor
    steps: int
    width: int
    total: int
    strides: tuple[int, int, int, int]
    options: dict[str, Any]


def chunked(cell: str, lanes: int, steps: int) -> bool:
    """Whether to work on many steps at once; `costs.json` has the bounds."""
    bounds = measured_costs(__package__)["triton"]["chunked"][cell]
    return bool(lanes <= bounds["most_lanes"] and bounds["least_steps"] <= steps <= WINDOW[cell] * 65535)


def forward(options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
    """y, the last state and, for diag_lstm_cifg where `saving`, c after every step."""
    if options.cell == "indrnn_linear":
        return linear.forward(options, _linear(inputs), saving)
    wx, _, h0, c0 = inputs[:4]
    carried = wide(wx.dtype)
    y = wx.new_empty((*wx.shape[:2], wx.shape[-1]))
    last = [wx.new_empty(s.shape, dtype=carried) for s in (h0, c0) if s is not None]
    saved = [wx.new_empty(y.shape, dtype=carried)] if saving and c0 is not None else []
    if h0.numel():
        sizes = _sizes(options, inputs)
        with torch.cuda.device_of(wx):  # type: ignore[no-untyped-call]
            if not chunked(options.cell, h0.numel(), y.shape[1]):
                _forward_lanes(options.cell, inputs, y, last, saved, sizes)
            elif options.cell == "indrnn_relu":
                _forward_chunks(inputs, y, last[0], sizes)
            else:
                _forward_newton(options.cell, inputs, y, last, saved, sizes)
    return [y, *last, *saved]


def _forward_lanes(cell: str, inputs: Any, y: Tensor, last: list[Tensor], saved: list[Tensor], sizes: _Sizes) -> None:
    block = lane_block(sizes.total)
    triton_lanes.forward_lanes[(triton.cdiv(sizes.total, block["BLOCK"]),)](
        *_given(inputs, sizes), y, last[0], last[-1], saved[0] if saved else y, *sizes[2:5], *sizes.strides,
        **sizes.options, SAVING=bool(saved), TILE=_tile(cell, 0, last[0]), **block,
    )  # fmt: skip


def _forward_newton(cell: str, inputs: Any, y: Tensor, last: list[Tensor], saved: list[Tensor], sizes: _Sizes) -> None:
    tolerance = ROUNDING * torch.finfo(last[0].dtype).eps
    triton_newton.newton_lanes[(triton.cdiv(sizes.total, _lanes(y)),)](
        *_given(inputs, sizes), y, last[0], last[-1], saved[0] if saved else y, *sizes[2:5], *sizes.strides,
        **sizes.options, SAVING=bool(saved), TOLERANCE=tolerance, LIMIT=LIMIT, CHUNK=WINDOW[cell],
        BLOCK=_lanes(y), num_warps=2 * WARPS if cell == "diag_lstm_cifg" else WARPS,
    )  # fmt: skip


def _forward_chunks(inputs: Any, y: Tensor, last: Tensor, sizes: _Sizes) -> None:
    wx, params, h0, _ = _given(inputs, sizes)[:4]
    chunk = WINDOW["indrnn_relu"]
    chunks = triton.cdiv(sizes.steps, chunk)
    constants = {name: value for name, value in sizes.options.items() if name != "CELL"}
    row, step, _, unit = sizes.strides

    def run(maps: Tensor, before: Tensor, apply: bool) -> None:
        triton_chunks.relu_chunk[(triton.cdiv(sizes.total, _lanes(y)), chunks)](
            wx, params, h0, sizes.lengths, sizes.reset, maps, before, y, *sizes[2:5], chunks, row, step, unit,
            **constants, APPLY=apply, CHUNK=chunk, BLOCK=_lanes(y), num_warps=WARPS,
        )  # fmt: skip

    maps = last.new_empty((NUMBERS[CLAMP], chunks, sizes.total))
    run(maps, maps, False)
    before, end = carry(maps, h0.to(last.dtype).reshape(1, -1), CLAMP, sizes.options["RESET"])
    run(maps, before, True)
    last.copy_(end.reshape(last.shape))


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Gradients of wx, the parameters and the first state."""
    if options.cell == "indrnn_linear":
        a, *rest = linear.backward(options, _linear(inputs), results, gradients, [wanted[1], wanted[0], wanted[2]])
        return rest[0], None if a is None else a.reshape(-1), rest[1], None, None, None
    wx, params, h0, c0 = inputs[:4]
    steps = wx.shape[1]
    chunks = 0
    if chunked(options.cell, h0.numel(), steps):
        chunks = triton.cdiv(steps, WINDOW[options.cell])
    dwx = torch.empty_like(wx, memory_format=torch.contiguous_format)
    kind = wide(wx.dtype)
    rows = 1 if params.dim() == 1 else params.shape[0]
    dparams = wx.new_empty((max(chunks, 1), rows, *h0.shape), dtype=kind)
    states = [wx.new_empty((chunks + 1, *h0.shape), dtype=kind) for s in (h0, c0) if s is not None]
    if h0.numel():
        run = _backward_chunks if chunks else _backward_lanes
        with torch.cuda.device_of(wx):  # type: ignore[no-untyped-call]
            run(options.cell, inputs, results, gradients, dwx, dparams, states, _sizes(options, inputs))
    dh0, dc0 = (*(s.sum(0) for s in states), None)[:2]
    return dwx, dparams.sum((0, 2)).reshape(params.shape), dh0, dc0, None, None


def _backward_lanes(
    cell: str, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor],
    dwx: Tensor, dparams: Tensor, states: list[Tensor], sizes: _Sizes,
) -> None:  # fmt: skip
    dy, *d_last = gradients
    d_last = [d.contiguous() for d in d_last]
    row, step, unit = strides(dy)
    block = lane_block(sizes.total)
    triton_lanes.backward_lanes[(triton.cdiv(sizes.total, block["BLOCK"]),)](
        *_given(inputs, sizes), results[0], results[-1], dy, d_last[0], d_last[-1],
        dwx, dparams, states[0], states[-1], *sizes[2:5], *sizes.strides, row, step, unit,
        **sizes.options, AGAIN=_again(cell, dwx), TILE=_tile(cell, 1, states[0]), **block,
    )  # fmt: skip


def _backward_chunks(
    cell: str, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor],
    dwx: Tensor, dparams: Tensor, states: list[Tensor], sizes: _Sizes,
) -> None:  # fmt: skip
    dy, *d_last = gradients
    chunks = dparams.shape[0]
    kind = MATRIX if cell == "diag_lstm_cifg" else LINEAR

    def run(maps: Tensor, before: Tensor, apply: bool) -> None:
        triton_chunks.backward_chunk[(triton.cdiv(sizes.total, _lanes(dwx)), chunks)](
            *_given(inputs, sizes), results[0], results[-1], dy, maps, before, dwx, dparams, states[0], states[-1],
            *sizes[2:5], chunks, *sizes.strides, *strides(dy), **sizes.options,
            AGAIN=_again(cell, dwx), APPLY=apply, CHUNK=WINDOW[cell], BLOCK=_lanes(dwx), num_warps=WARPS,
        )  # fmt: skip

    maps = dparams.new_empty((NUMBERS[kind], chunks, sizes.total))
    run(maps, maps, False)
    before, end = carry(maps, torch.stack([d.reshape(-1) for d in d_last]).to(maps.dtype), kind, True)
    run(maps, before, True)
    for state, last in zip(states, end, strict=True):
        state[-1] = last.reshape(state.shape[1:])


def _given(inputs: Any, sizes: _Sizes) -> tuple[Tensor, ...]:
    wx, params, h0, c0 = inputs[:4]
    h0 = h0.contiguous()
    return wx, params.contiguous(), h0, h0 if c0 is None else c0.contiguous(), sizes.lengths, sizes.reset


def _sizes(options: Any, inputs: Any) -> _Sizes:
    wx, _, h0, _, lengths, reset = inputs
    constants = {
        "CELL": CELLS[options.cell], "REVERSE": options.reverse, "RAGGED": lengths is not None,
        "RESET": reset is not None, "WIDE": tl.float64 if wx.dtype == torch.float64 else tl.float32,
    }  # fmt: skip
    row, step, *gate, unit = strides(wx)
    places = (row, step, gate[0] if gate else 0, unit)
    given = wx if lengths is None else lengths.contiguous()
    return _Sizes(given, flags(reset, wx), wx.shape[1], wx.shape[-1], h0.numel(), places, constants)


def _tile(cell: str, backward: int, state: Tensor) -> int:
    return max(AHEAD[cell][backward] * 4 // state.element_size(), 1)


def _again(cell: str, t: Tensor) -> bool:
    return cell == "indrnn_tanh" and t.element_size() == 2


def _lanes(t: Tensor) -> int:
    return LANES[wide(t.dtype).itemsize]


def _linear(inputs: Any) -> LinearInputs:
    wx, params, h0, _, lengths, reset = inputs
    return LinearInputs(params[None, None], wx, h0, lengths, reset)
