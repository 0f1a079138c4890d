"""CUDA backend: the whole loop over time in one kernel, gates in float32 (float64 for float64); README.md."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recurra.kernels.gated_scan import FORMS, _shapes
from recurra.kernels.gated_scan.triton_backward import backward_kernel
from recurra.kernels.gated_scan.triton_forward import forward_kernel
from recurra.kernels.gated_scan.triton_launch import backward_arguments, forward_arguments, launches
from recurra.kernels.gated_scan.triton_plan import Plan, plan
from recurra.kernels.sequences import wide

# Steps whose gates are computed again at a time.
RECOMPUTED = 128


def forward(options: Any, inputs: Any, saving: bool) -> list[Tensor]:
    """Outputs and what the backward pass wants, as `_shapes` lays them out."""
    results, layout = _shapes(options, inputs, saving), plan(options, inputs)
    arguments = forward_arguments(options, inputs, layout, results, saving)
    if layout.mode == "given":
        _stepwise(options, inputs, layout, arguments)
    else:
        for launch in launches(forward_kernel, layout, arguments):
            launch.run()
    return results


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the inputs: the kernel's are those of wx and the states; the weights' are products of these."""
    layout = plan(options, inputs, back=True)
    wx = inputs.wx
    dy, *last = (g.contiguous() for g in gradients)
    carried = [g.clone() for g in last]
    extra = [torch.zeros_like(g) for g in last] if inputs.reset is not None else carried
    found = outputs(options, inputs)
    arguments = backward_arguments(options, inputs, layout, list(results), dy, carried, extra, found)
    before = previous(results[0], inputs.h.to(wx.dtype), options.reverse, inputs.lengths, inputs.reset)
    if layout.mode == "given":
        _stepwise_back(options, inputs, layout, arguments, before)
    else:
        size = RECOMPUTED if arguments["RECOMPUTE"] and FORMS[options.cell].saved else max(1, wx.shape[1])
        for first in reversed(range(0, wx.shape[1], size)):
            count = min(size, wx.shape[1] - first)
            again = {"product": _again(options, inputs, before, first, count)} if arguments["RECOMPUTE"] else {}
            arguments["arrivals"].zero_()
            for launch in launches(backward_kernel, layout, arguments | again | {"first": first, "count": count}):
                launch.run()
    states = [c + e for c, e in zip(carried, extra, strict=True)] if inputs.reset is not None else carried
    weights = _weights(options, inputs, found, before, wanted)
    return [found["dwx"], *weights, *(states + [None] * 3)[:4], None, None]


def previous(y: Tensor, initial: Tensor, reverse: bool, lengths: Tensor | None, reset: Tensor | None) -> Tensor:
    """h before every step, (batch, time, head, width)."""
    start = initial[:, None]
    if not y.shape[1]:
        return y
    if not reverse:
        before = torch.cat([start, y[:, :-1]], 1)
    else:
        before = torch.cat([y[:, 1:], start], 1)
        if lengths is not None:
            at_end = torch.arange(1, y.shape[1] + 1, device=y.device) == lengths[:, None]
            before = torch.where(at_end[..., None, None], start, before)
    return before if reset is None else torch.where(reset[..., None, None], start, before)


def outputs(options: Any, inputs: Any) -> dict[str, Tensor]:
    """Uninitialised: the gates' gradients, and where they and h do not do, what else the weights' are products of."""
    wx, h = inputs.wx, inputs.h
    dwx = torch.empty_like(wx, memory_format=torch.contiguous_format)
    one = (*wx.shape[:2], *wx.shape[3:])
    found = {"dwx": dwx, "side": dwx, "held": dwx}
    if options.cell in ("gru", "mgu_after"):
        found["side"] = wx.new_empty(one)
    if inputs.projection is not None:
        found["side"] = wx.new_empty((*wx.shape[:2], *h.shape[1:]))
    if inputs.projection is not None or options.cell in ("gru_before", "mgu"):
        found["held"] = wx.new_empty(one)
    return found


def _weights(
    options: Any, inputs: Any, found: dict[str, Tensor], before: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of r, bias and projection: one product over all steps each."""
    dwx, side, held = found["dwx"], found["side"], found["held"]
    gates = list(dwx.unbind(2))
    dr = bias = projection = None
    recurrent = [*gates[:-1], side] if options.cell in ("gru", "mgu_after") else gates
    if wanted[1]:
        olds = [before] * len(gates)
        if options.cell in ("gru_before", "mgu"):
            olds[-1] = held
        dr = torch.stack([_outer(d, old) for d, old in zip(recurrent, olds, strict=True)])
    if inputs.bias is not None and wanted[2]:
        rows = [*gates, side] if options.cell == "gru" else gates
        bias = torch.stack([d.sum((0, 1), dtype=wide(d.dtype)) for d in rows])
    if inputs.projection is not None and wanted[3]:
        projection = _outer(side, held)
    return [dr, bias, projection]


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """The sum over batch and time of a b^T, (head, width of a, width of b)."""
    return torch.bmm(a.flatten(0, 1).permute(1, 2, 0), b.flatten(0, 1).transpose(0, 1))


def _product(r: Tensor, h: Tensor) -> Tensor:
    """U h of each gate of r (gate, head, new, old): h (head, row, old) -> (head, row, gate, new), in float32."""
    kind = wide(h.dtype)
    matrix = r.to(h.dtype).to(kind).permute(1, 3, 0, 2)
    out = torch.bmm(h.to(kind), matrix.flatten(2))
    return out.reshape(*out.shape[:2], *matrix.shape[2:])


def _again(options: Any, inputs: Any, before: Tensor, first: int, count: int) -> Tensor:
    """U h of `count` steps, (head, batch * time, gate, new)."""
    low = before.shape[1] - first - count if options.reverse else first
    h = before[:, low : low + count].flatten(0, 1).transpose(0, 1)
    if options.cell not in ("gru_before", "mgu"):
        return _product(inputs.r, h)
    early = _product(inputs.r[:-1], h)
    # The candidate's product is that of h times the first gate.
    x = inputs.wx[:, low : low + count, 0].flatten(0, 1).transpose(0, 1).to(early.dtype)
    a = x + early[:, :, 0] + (0 if inputs.bias is None else inputs.bias[0][:, None])
    # Zero where padding may hold NaN: nothing of it is used.
    late = _product(inputs.r[-1:], (a.sigmoid().nan_to_num() * h).to(h.dtype))
    return torch.cat([early, late], 2)


def _stepwise(options: Any, inputs: Any, layout: Plan, arguments: dict[str, Any]) -> None:
    """One product and one launch a step, where a head's weights are more than the device's programs hold."""
    names = [n for n, t in zip("hcnm", (inputs.h, inputs.c, inputs.n, inputs.m), strict=True) if t is not None]
    initial = [arguments[f"{n}0"] for n in names]
    state = [t.to(arguments[f"{n}1"].dtype, copy=True) for n, t in zip(names, initial, strict=True)]
    steps = inputs.wx.shape[1]
    for i in range(steps):
        t = steps - 1 - i if options.reverse else i
        if inputs.reset is not None:
            fresh = inputs.reset[:, t] if inputs.lengths is None else inputs.reset[:, t] & (t < inputs.lengths)
            state = [torch.where(fresh[:, None, None], a, s) for a, s in zip(initial, state, strict=True)]
        product = _product(inputs.r, state[0].to(inputs.wx.dtype).transpose(0, 1))
        now = dict(zip((f"{n}0" for n in names), state, strict=True))
        changed = {"product": product, "first": i, "count": 1, "RESET": False}
        for launch in launches(forward_kernel, layout, arguments | now | changed):
            launch.run()
        state = [arguments[f"{n}1"] for n in names]
    if not steps:
        for n, t in zip(names, initial, strict=True):
            arguments[f"{n}1"].copy_(t)


def _stepwise_back(options: Any, inputs: Any, layout: Plan, arguments: dict[str, Any], before: Tensor) -> None:
    """As `_stepwise`, the way back."""
    steps = inputs.wx.shape[1]
    dwx, side, dh, eh = (arguments[n] for n in ("dwx", "side", "dh", "eh"))
    kind = dh.dtype
    matrix = inputs.r.to(dwx.dtype).to(kind).transpose(0, 1).flatten(1, 2)
    for i in reversed(range(steps)):
        t = steps - 1 - i if options.reverse else i
        again = {"product": _again(options, inputs, before, i, 1)} if arguments["RECOMPUTE"] else {}
        for launch in launches(backward_kernel, layout, arguments | again | {"first": i, "count": 1}):
            launch.run()
        d = dwx[:, t] if side is dwx else torch.cat([dwx[:, t, :-1], side[:, t, None]], 1)
        through = torch.bmm(d.permute(2, 0, 1, 3).flatten(2).to(kind), matrix).transpose(0, 1)
        if inputs.reset is None:
            dh += through
        else:
            fresh = inputs.reset[:, t, None, None]
            dh += torch.where(fresh, 0, through)
            eh += torch.where(fresh, through, 0)
