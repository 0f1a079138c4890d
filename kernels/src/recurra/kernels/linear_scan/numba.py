"""CPU backend: one pass over memory forward, one backward; the inner loops run over the width, vectorised by LLVM."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra.kernels.jit import array, flags_array, jit_distinct, lengths_array, over_blocks
from recurra.kernels.sequences import wide

# A thread is worth waking for this many values.
GRAIN = 1 << 15


@jit_distinct
def _step(a, b, old, h):  # type: ignore[no-untyped-def]
    for i in range(h.size):
        h[i] = a[i] * old[i] + b[i]


# Gradients go from the last unit to the first, as they do from the last step: memory is read in one direction, which
# the processor foresees; from unit to unit upwards they took 1.7 times as long.
@jit_distinct
def _back(a, old, dh, carry, da, db):  # type: ignore[no-untyped-def]
    for i in range(db.size - 1, -1, -1):
        d = dh[i] + carry[i]
        db[i] = d
        da[i] = d * np.conj(old[i])
        carry[i] = d * np.conj(a[i])


@jit_distinct
def _back_summing(a, old, dh, carry, da, db):  # type: ignore[no-untyped-def]
    for i in range(db.size - 1, -1, -1):
        d = dh[i] + carry[i]
        db[i] = d
        da[i] += d * np.conj(old[i])
        carry[i] = d * np.conj(a[i])


@jit_distinct
def _forward(a, b, h0, lengths, reset, reverse, h, last, r0, r1, w0, w1):  # type: ignore[no-untyped-def]
    times = a.shape[1] > 1
    for row in range(r0, r1):
        n, which, old = lengths[row], min(row, a.shape[0] - 1), h0[row, w0:w1]
        for s in range(n):
            t = n - 1 - s if reverse else s
            if reset.size > 0 and reset[row, t]:
                old = h0[row, w0:w1]
            new = h[row, t, w0:w1]
            _step(a[which, t if times else 0, w0:w1], b[row, t, w0:w1], old, new)
            old = new
        last[row, w0:w1] = old
        h[row, n:, w0:w1] = 0


@jit_distinct
def _backward(a, h, h0, lengths, reset, reverse, dh, carry, da, db, dh0, r0, r1, w0, w1):  # type: ignore[no-untyped-def]
    times = a.shape[1] > 1
    for row in range(r0, r1):
        n, which, ahead = lengths[row], min(row, a.shape[0] - 1), carry[row, w0:w1]
        dh0[row, w0:w1] = 0
        if not times:
            da[row, 0, w0:w1] = 0
        for s in range(n - 1, -1, -1):
            t = n - 1 - s if reverse else s
            fresh = s == 0 or (reset.size > 0 and reset[row, t])
            old = h0[row, w0:w1] if fresh else h[row, t + 1 if reverse else t - 1, w0:w1]
            d, db_t = dh[row, t, w0:w1], db[row, t, w0:w1]
            if times:
                _back(a[which, t, w0:w1], old, d, ahead, da[row, t, w0:w1], db_t)
            else:
                _back_summing(a[which, 0, w0:w1], old, d, ahead, da[row, 0, w0:w1], db_t)
            if fresh:
                dh0[row, w0:w1] += ahead
                ahead[:] = 0
        if n == 0:
            dh0[row, w0:w1] = ahead
        db[row, n:, w0:w1] = 0
        if times:
            da[row, n:, w0:w1] = 0


def forward(options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
    """h and the last state."""
    kind = wide(inputs.b.dtype)
    a, b, h0 = (array(t, kind) for t in inputs[:3])
    batch, steps, width = b.shape
    h, last = torch.empty(b.shape, dtype=kind), torch.empty(h0.shape, dtype=kind)
    given = a, b, h0, lengths_array(inputs.lengths, batch, steps), flags_array(inputs.reset), options.reverse
    new = h.numpy(), last.numpy()
    over_blocks(lambda *block: _forward(*given, *new, *block), batch, width, GRAIN // max(steps, 1))
    return h.to(inputs.b.dtype), last


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Gradients of a, b and h0: the same recurrence reversed, g_t = dh_t + conj(a_(t+1)) g_(t+1)."""
    kind = wide(inputs.b.dtype)
    a, h, h0, dh = (array(t, kind) for t in (inputs.a, results[0], inputs.h0, gradients[0]))
    batch, steps, width = h.shape
    carry = array(gradients[1], kind).copy()
    da, db = torch.empty((batch, a.shape[1], width), dtype=kind), torch.empty(h.shape, dtype=kind)
    dh0 = torch.empty(h0.shape, dtype=kind)
    given = a, h, h0, lengths_array(inputs.lengths, batch, steps), flags_array(inputs.reset), options.reverse
    new = dh, carry, da.numpy(), db.numpy(), dh0.numpy()
    over_blocks(lambda *block: _backward(*given, *new, *block), batch, width, GRAIN // max(steps, 1))
    if inputs.a.shape[0] == 1 and batch != 1:
        da = da.sum(0, keepdim=True)
    return da, db, dh0, None, None
