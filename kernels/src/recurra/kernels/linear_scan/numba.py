"""CPU backend: one pass over memory; the inner loop runs over the width, which LLVM vectorises."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra.kernels.jit import array, flags_array, jit_distinct, lengths_array, over_grid
from recurra.kernels.sequences import wide

# A thread is worth waking for this many values.
GRAIN = 1 << 15


@jit_distinct
def _forward(a, b, h0, lengths, reset, reverse, h, last, row, w0, w1):  # type: ignore[no-untyped-def]
    steps = b.shape[1]
    rows, times = min(row, a.shape[0] - 1), a.shape[1] > 1
    state, start = last[row, w0:w1], h0[row, w0:w1]
    state[:] = start
    for s in range(lengths[row]):
        t = lengths[row] - 1 - s if reverse else s
        if reset.size > 0 and reset[row, t]:
            state[:] = start
        a_t, b_t, h_t = a[rows, t if times else 0, w0:w1], b[row, t, w0:w1], h[row, t, w0:w1]
        for i in range(w1 - w0):
            state[i] = a_t[i] * state[i] + b_t[i]
            h_t[i] = state[i]
    for t in range(lengths[row], steps):
        h[row, t, w0:w1] = 0


@jit_distinct
def _backward(a, h, h0, lengths, reset, reverse, dh, d_last, da, db, dh0, row, w0, w1):  # type: ignore[no-untyped-def]
    steps, n = h.shape[1], lengths[row]
    rows, times = min(row, a.shape[0] - 1), a.shape[1] > 1
    carry, d_start, start = d_last[row, w0:w1], dh0[row, w0:w1], h0[row, w0:w1]
    d_start[:] = 0
    if not times:
        da[row, 0, w0:w1] = 0
    for s in range(n - 1, -1, -1):
        t = n - 1 - s if reverse else s
        before = t + 1 if reverse else t - 1
        fresh = s == 0 or (reset.size > 0 and reset[row, t])
        a_t, old = a[rows, t if times else 0, w0:w1], start if fresh else h[row, before, w0:w1]
        g, da_t, db_t = dh[row, t, w0:w1], da[row, t if times else 0, w0:w1], db[row, t, w0:w1]
        for i in range(w1 - w0):
            d = g[i] + carry[i]
            db_t[i] = d
            da_t[i] = d * np.conj(old[i]) if times else da_t[i] + d * np.conj(old[i])
            carry[i] = d * np.conj(a_t[i])
        if fresh:
            d_start += carry
            carry[:] = 0
    if n == 0:
        d_start[:] = carry
    for t in range(n, steps):
        db[row, t, w0:w1] = 0
        if times:
            da[row, t, w0:w1] = 0


def forward(options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
    """h and the last state."""
    kind = wide(inputs.b.dtype)
    a, b, h0 = (array(t, kind) for t in inputs[:3])
    batch, steps, width = b.shape
    h, last = torch.empty(b.shape, dtype=kind), torch.empty(h0.shape, dtype=kind)
    fixed = lengths_array(inputs.lengths, batch, steps), flags_array(inputs.reset), options.reverse
    over_grid(
        lambda row, w0, w1: _forward(a, b, h0, *fixed, h.numpy(), last.numpy(), row, w0, w1),
        batch,
        width,
        GRAIN // max(steps, 1),
    )
    return h.to(inputs.b.dtype), last


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Gradients of a, b and h0: the same recurrence reversed, core equation g_t = dh_t + conj(a_(t+1)) g_(t+1)."""
    kind = wide(inputs.b.dtype)
    a, h, h0, dh = (array(t, kind) for t in (inputs.a, results[0], inputs.h0, gradients[0]))
    batch, steps, width = h.shape
    carry = gradients[1].to(kind, copy=True).contiguous().numpy()
    da = torch.empty((batch, a.shape[1], width), dtype=kind)
    db, dh0 = torch.empty(h.shape, dtype=kind), torch.empty(h0.shape, dtype=kind)
    fixed = lengths_array(inputs.lengths, batch, steps), flags_array(inputs.reset), options.reverse
    outputs = carry, da.numpy(), db.numpy(), dh0.numpy()
    over_grid(
        lambda row, w0, w1: _backward(a, h, h0, *fixed, dh, *outputs, row, w0, w1), batch, width, GRAIN // max(steps, 1)
    )
    if inputs.a.shape[0] == 1 and batch != 1:
        da = da.sum(0, keepdim=True)
    return da, db, dh0, None, None
