"""CPU backend where numba is absent: chunks of a fixed number of steps through torch.compile."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from recurra.kernels.chunks import compiled, in_chunks
from recurra.kernels.steps import Steps, arrange, following


def _chunk(state: Tensor, start: Tensor, a: Tensor, b: Tensor, fresh: Tensor) -> tuple[list[Tensor], Tensor]:
    states = []
    for a_t, b_t, fresh_t in zip(a.unbind(1), b.unbind(1), fresh.unbind(1), strict=True):
        state = a_t * torch.where(fresh_t, start, state) + b_t
        states.append(state)
    return [torch.stack(states, 1)], state


@functools.cache
def _run(dtype: torch.dtype) -> Callable[..., Any]:
    return compiled(_chunk, f"linear_chunk_{dtype}")


def _scan(start: Tensor, a: Tensor, b: Tensor, fresh: Tensor) -> Tensor:
    if not b.numel():
        return b
    run = _run(b.dtype)
    # A copy: given one tensor twice, the compiler would make a program for that alone.
    (h,), _ = in_chunks(lambda state, *xs: run(state, start, *xs), start.clone(), (a, b, fresh))
    return h


def _arranged(options: Any, inputs: Any) -> tuple[Steps, Tensor]:
    steps = arrange(inputs.b, inputs[2:3], inputs.lengths, inputs.reset, options.reverse)
    a = inputs.a.detach().to(steps.x.dtype).expand(steps.x.shape)
    return steps, torch.where(steps.live, a.flip(1) if options.reverse else a, 0)


def forward(options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
    """h and the last state."""
    steps, a = _arranged(options, inputs)
    h = torch.where(steps.live, _scan(steps.start[0], a, steps.x, steps.fresh), 0)
    (last,) = steps.last([h])
    return [(h.flip(1) if options.reverse else h).to(inputs.b.dtype), last]


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Gradients of a, b and h0: the same recurrence reversed, g_t = dh_t + a_(t+1) g_(t+1)."""
    steps, a = _arranged(options, inputs)
    h, d_h, d_last = (value.to(a.dtype) for value in (results[0], *gradients))
    if options.reverse:
        h, d_h = h.flip(1), d_h.flip(1)
    (old,), (given,) = steps.before([h]), steps.given(d_h, [d_last])
    later = following(torch.where(steps.fresh, 0, a)).flip(1)
    nowhere = torch.zeros_like(steps.fresh)
    d_b = _scan(torch.zeros_like(d_last), later, given.flip(1), nowhere).flip(1)
    d_a = d_b * torch.where(steps.live, old, 0)
    d_h0 = torch.where(~steps.live.any(1), d_last, torch.where(steps.fresh, a * d_b, 0).sum(1))
    if options.reverse:
        d_a, d_b = d_a.flip(1), d_b.flip(1)
    return d_a.sum_to_size(inputs.a.shape), d_b, d_h0, None, None
