"""CPU backend where numba is absent: chunks of a fixed number of steps through torch.compile.

The compiler fuses a chunk into one loop over the units, with the state in registers, both forward and backward.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from recurra.kernels.chunks import compiled, in_chunks
from recurra.kernels.elementwise_scan.doubling import total
from recurra.kernels.elementwise_scan.reference import STEPS
from recurra.kernels.elementwise_scan.slopes import SLOPES
from recurra.kernels.steps import arrange

STEP: Callable[..., Any]  # a cell's step and its slopes, in the copies of the chunks below
SLOPE: Callable[..., Any]


def _forward_chunk(state: Any, start: Any, u: Tensor, x: Tensor, fresh: Tensor) -> tuple[list[Tensor], Any]:
    states = []
    for x_t, fresh_t in zip(x.unbind(1), fresh.unbind(1), strict=True):
        old = [torch.where(fresh_t, s0, s) for s0, s in zip(start, state, strict=True)]
        state = STEP(u, *old, x_t)
        states.append(state)
    return [torch.stack(each, 1) for each in zip(*states, strict=True)], state


def _backward_chunk(carried: Any, u: Tensor, x: Tensor, fresh: Tensor, *trajectories: Tensor) -> tuple[Any, Any]:
    """Gradients of the inputs; carried are those of the state, of the initial state and of the parameters so far."""
    d_state, d_start, d_u = carried
    count = len(d_state)
    steps = zip(x.unbind(1), fresh.unbind(1), *(s.unbind(1) for s in trajectories), strict=True)
    d_x = []
    for x_t, fresh_t, *values in reversed(list(steps)):
        old, new, given = values[:count], values[count : 2 * count], values[2 * count :]
        slopes = SLOPE(u, old, new, x_t)
        d_new = [g + d for g, d in zip(given, d_state, strict=True)]
        rows = [total(d * s for d, s in zip(d_new, row, strict=True)) for row in slopes.inputs]
        d_old = [total(d_new[i] * slopes.state[i][j] for i in range(count)) for j in range(count)]
        d_u = [d + rows[k] * v for d, (k, v) in zip(d_u, slopes.params, strict=True)]
        d_start = [d + torch.where(fresh_t, o, 0) for d, o in zip(d_start, d_old, strict=True)]
        d_state = [torch.where(fresh_t, 0, o) for o in d_old]
        d_x.append(torch.stack(rows, 1))
    return [torch.stack(d_x[::-1], 1)], (d_state, d_start, d_u)


@functools.cache
def _chunks(cell: str, dtype: torch.dtype) -> tuple[Callable[..., Any], Callable[..., Any]]:
    forward_chunk = compiled(_forward_chunk, f"{cell}_forward_{dtype}", STEP=STEPS[cell])
    return forward_chunk, compiled(_backward_chunk, f"{cell}_backward_{dtype}", SLOPE=SLOPES[cell])


def forward(options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
    """y and the last state; c after every step where a backward pass of diag_lstm_cifg may follow."""
    steps = arrange(inputs.wx, inputs[2:4], inputs.lengths, inputs.reset, options.reverse)
    u = inputs.params.detach().to(steps.x.dtype)
    states = [steps.x.new_zeros((*steps.x.shape[:2], u.shape[-1])) for _ in steps.start]
    if steps.x.numel():
        run = _chunks(options.cell, u.dtype)[0]
        with torch.no_grad():
            # A copy: given one tensor twice, the compiler would make a program for that alone.
            first = tuple(s.clone() for s in steps.start)
            states, _ = in_chunks(lambda s, *xs: run(s, steps.start, u, *xs), first, (steps.x, steps.fresh))
    if inputs.lengths is not None:
        states = [torch.where(steps.live, s, 0) for s in states]
    last = steps.last(states)
    y, *memory = (s.flip(1) if options.reverse else s for s in states)
    return [y.to(inputs.wx.dtype), *last, *(memory if saving else [])]


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Gradients of wx, the parameters and the initial state."""
    steps = arrange(inputs.wx, inputs[2:4], inputs.lengths, inputs.reset, options.reverse)
    u = inputs.params.detach().to(steps.x.dtype)
    new = [results[0].to(u.dtype), *results[3:]]
    d_y, *d_last = (g.to(u.dtype) for g in gradients)
    if options.reverse:
        new, d_y = [s.flip(1) for s in new], d_y.flip(1)
    d_wx, d_start = torch.zeros_like(steps.x), [torch.zeros_like(s) for s in steps.start]
    d_u = [torch.zeros_like(d_start[0]) for _ in range(u.numel() // max(u.shape[-1], 1))]
    if steps.x.numel():
        run = _chunks(options.cell, u.dtype)[1]
        xs = steps.x, steps.fresh, *steps.before(new), *new, *steps.given(d_y, d_last)
        carried = [torch.zeros_like(s) for s in steps.start], d_start, d_u
        (d_wx,), (_, d_start, d_u) = in_chunks(lambda s, *p: run(s, u, *p), carried, xs, backwards=True)
    d_start = [torch.where(~steps.live.any(1), d, s) for d, s in zip(d_last, d_start, strict=True)]
    d_wx = d_wx.flip(1) if options.reverse else d_wx
    d_params = torch.stack([d.sum(0) for d in d_u]).reshape(inputs.params.shape)
    return d_wx.reshape(inputs.wx.shape), d_params, *d_start, *[None] * (4 - len(d_start))
