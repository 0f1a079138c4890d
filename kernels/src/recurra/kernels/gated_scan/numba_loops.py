"""The loop over time of one head and some sequences, compiled for every cell by `numba_cells`.

Loops over elements stand where slices could be assigned: each such assignment costs numba a second of compilation.
"""

from recurra.kernels.gated_scan.numba_cells import begin, finish
from recurra.kernels.gated_scan.numba_gradients import recede, retreat
from recurra.kernels.gated_scan.numba_product import multiply
from recurra.kernels.jit import jit


@jit
def _longest(lengths, b0, b1):  # type: ignore[no-untyped-def]
    longest = 0
    for b in range(b0, b1):
        longest = max(longest, lengths[b])
    return longest


@jit
def _times(lengths, reverse, s, b0, at):  # type: ignore[no-untyped-def]
    # The place in memory of step s of each sequence, -1 past its end.
    for row in range(at.size):
        length = lengths[b0 + row]
        at[row] = -1 if s >= length else length - 1 - s if reverse else s


@jit
def _copy(source, target):  # type: ignore[no-untyped-def]
    for i in range(target.size):
        target[i] = source[i]


@jit
def _load(h, rest, first, others, n, b, row):  # type: ignore[no-untyped-def]
    # State of a row from (sequence, head, width) and (sequence, state, head, width).
    _copy(first[b, n], h[row])
    for k in range(rest.shape[1]):
        _copy(others[b, k, n], rest[row, k])


@jit
def _store(h, rest, first, others, n, b, row):  # type: ignore[no-untyped-def]
    _copy(h[row], first[b, n])
    for k in range(rest.shape[1]):
        _copy(rest[row, k], others[b, k, n])


@jit
def forward_loop(cell, wx, bias, h0, rest0, lengths, reset, reverse, keep, saving, outputs, scratch, n, b0):  # type: ignore[no-untyped-def]
    """All steps in head n of as many sequences from b0 as `scratch` has rows.

    Rows of sequences that have ended take part in the products, so scratch must come with numbers in it.
    """
    y, gates, states, h_last, rest_last = outputs
    h, rest, pre, middle, late, spare, at = scratch
    rows, two = at.size, cell.second.size > 0
    target, kept = middle if two else h, gates if keep else spare
    for row in range(rows):
        _load(h, rest, h0, rest0, n, b0 + row, row)
    for s in range(_longest(lengths, b0, b0 + rows)):
        _times(lengths, reverse, s, b0, at)
        if reset.size > 0:
            for row in range(rows):
                if at[row] >= 0 and reset[b0 + row, at[row]]:
                    _load(h, rest, h0, rest0, n, b0 + row, row)
        multiply(h, cell.first[n], pre)
        for row in range(rows):
            if at[row] >= 0:
                b, t = b0 + row, at[row]
                gb, gt = (b, t) if keep else (0, 0)
                begin(cell, wx, bias, pre, target, h, rest, kept, b, t, n, row, gb, gt)
        if two:
            multiply(middle, cell.second[n], late)
            for row in range(rows):
                if at[row] >= 0:
                    b, t = b0 + row, at[row]
                    gb, gt = (b, t) if keep else (0, 0)
                    finish(cell, wx, bias, pre, late, h, kept, b, t, n, row, gb, gt)
        for row in range(rows):
            if at[row] >= 0:
                _copy(h[row], y[b0 + row, at[row], n])
                if saving:
                    for k in range(rest.shape[1]):
                        _copy(rest[row, k], states[b0 + row, at[row], k, n])
    for row in range(rows):
        _store(h, rest, h_last, rest_last, n, b0 + row, row)


@jit
def _add(h, rest, first, others, n, b, row):  # type: ignore[no-untyped-def]
    # The gradient of a row's state onto that of its initial state; nothing is carried further back.
    for d in range(h.shape[1]):
        first[b, n, d] += h[row, d]
        h[row, d] = 0
    for k in range(rest.shape[1]):
        for d in range(rest.shape[2]):
            others[b, k, n, d] += rest[row, k, d]
            rest[row, k, d] = 0


@jit
def backward_loop(cell, saved, dy, last, lengths, reset, reverse, outputs, scratch, n, b0):  # type: ignore[no-untyped-def]
    """The way back through `forward_loop`; `saved` are gates, h and the other states before each step, and those after.

    Outputs are the gradients of wx, of the projection's result, and those of the initial states, which come as 0.
    """
    gates, old, old_rest, rest = saved
    dwx, d_projected, dh0, drest0 = outputs
    dh, drest, du, carry, inner, dm, at = scratch
    rows, two = at.size, cell.second.size > 0
    for row in range(rows):
        _load(dh, drest, last[0], last[1], n, b0 + row, row)
    for s in range(_longest(lengths, b0, b0 + rows) - 1, -1, -1):
        _times(lengths, reverse, s, b0, at)
        for row in range(rows):
            if at[row] >= 0:
                b, t = b0 + row, at[row]
                for d in range(dh.shape[1]):
                    dh[row, d] += dy[b, t, n, d]
                if d_projected.size > 0:
                    _copy(dh[row], d_projected[b, t, n])
                if two:
                    recede(cell, gates, dh, inner, dwx, b, t, n, row)
        if two:
            multiply(inner, cell.second[n], dm)
        for row in range(rows):
            if at[row] >= 0:
                retreat(cell, gates, old, old_rest, rest, dm, dh, drest, dwx, du, b0 + row, at[row], n, row)
        multiply(du, cell.first[n], carry)
        for row in range(rows):
            if at[row] >= 0:
                for d in range(dh.shape[1]):
                    dh[row, d] += carry[row, d]
                if reset.size > 0 and reset[b0 + row, at[row]]:
                    _add(dh, drest, dh0, drest0, n, b0 + row, row)
    for row in range(rows):
        _add(dh, drest, dh0, drest0, n, b0 + row, row)
