"""Chunked over time, for few lanes and many steps: indrnn_relu forward, every cell backward; README.md."""

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

from recurra.kernels.elementwise_scan.triton_cells import cell, slopes_at, weights
from recurra.kernels.elementwise_scan.triton_lanes import flag, pulled, rows_of
from recurra.kernels.gpu_scan import (
    apply,
    apply_matrix,
    clip,
    compose_clamp,
    compose_clamp_or_set,
    compose_matrix_or_set,
    compose_or_set,
    lanes,
    load,
    place,
    steps_of,
)


@triton.jit
def keep(maps, values, s, lane, there, chunk, chunks, total, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Stores the map of a whole chunk: that of its last step."""
    at = maps + chunk * total + lane[None, :] + 0 * s
    for k in tl.static_range(len(values)):
        tl.store(at + tl.cast(chunks, tl.int64) * total * k, values[k], mask=(s % CHUNK == CHUNK - 1) & there[None, :])


@triton.jit(do_not_specialize=["steps", "total", "chunks"])  # type: ignore[misc, unused-ignore]
def relu_chunk(  # type: ignore[no-untyped-def]
    wx, params, h0, lengths, reset, maps, before, y, steps, width, total, chunks,
    x_row, x_step, x_unit,
    REVERSE: tl.constexpr, RAGGED: tl.constexpr, RESET: tl.constexpr, APPLY: tl.constexpr, WIDE: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """First pass: a chunk's clamp map; with APPLY the last: its states."""
    lane, row, unit, there = lanes(width, total, BLOCK)
    n = steps_of(lengths, row, steps, there, RAGGED)
    chunk = tl.cast(tl.program_id(1), tl.int64)
    s = (chunk * CHUNK).to(tl.int32) + tl.arange(0, CHUNK)[:, None]
    live = s < n[None, :]
    t = place(s, n[None, :], REVERSE)
    a = load(params + unit, there, WIDE)[None, :]
    b = load(wx + (row * x_row + unit * x_unit)[None, :] + t * x_step, live, WIDE)
    fresh = flag(reset + (row * steps)[None, :], t, live, RESET)
    b = tl.where(fresh, a * load(h0 + lane, there, WIDE)[None, :] + b, b)
    # The padding is a map that changes nothing.
    a = tl.where(live, tl.where(fresh, 0.0, a), 1.0)
    low = tl.where(live, 0.0, float("-inf")).to(WIDE)
    high = tl.full(low.shape, float("inf"), WIDE)
    if RESET:
        a, b, low, high = tl.associative_scan((a, b, low, high), 0, compose_clamp_or_set)
    else:
        a, b, low, high = tl.associative_scan((a, b, low, high), 0, compose_clamp)
    if APPLY:
        old = tl.load(before + chunk * total + lane, mask=there, other=0.0)
        new = clip(apply(a, b, old[None, :], RESET), low, high)
        at = y + ((row * steps)[None, :] + t) * width + unit[None, :]
        tl.store(
            at, tl.where(live, new, 0.0).to(y.dtype.element_ty), mask=s < tl.where(there, steps, 0)[None, :]
        )  # fmt: skip
    else:
        keep(maps, (a, b, low, high), s, lane, there, chunk, chunks, total, CHUNK)


@triton.jit
def shifted(values, first, CHUNK: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each row the one before it; `first` comes before the first."""
    rows = tl.arange(0, CHUNK)[:, None]
    index = tl.broadcast_to(tl.maximum(rows - 1, 0), (CHUNK, BLOCK))
    return tl.where(rows == 0, first, tl.gather(values, index, 0))


@triton.jit
def _map(g, s, fresh, live, CELL: tl.constexpr):  # type: ignore[no-untyped-def]
    # The gradient that comes to a step's (h', c') -> the one it gives to (h, c); cut where an episode begins.
    on = live & (fresh == 0)
    off = tl.where(live, 0.0, 1.0)
    if CELL < 3:
        maps = (tl.where(on, s[0], off), tl.where(on, s[0] * g, 0.0))
    else:
        a, c = s[3] + s[0] * s[1], s[0] * s[2]
        maps = (
            tl.where(on, a, off), tl.where(on, s[1], 0.0), tl.where(on, c, 0.0), tl.where(on, s[2], off),
            tl.where(on, a * g, 0.0), tl.where(on, c * g, 0.0),
        )  # fmt: skip
    return maps


@triton.jit(do_not_specialize=["steps", "total", "chunks"])  # type: ignore[misc, unused-ignore]
def backward_chunk(  # type: ignore[no-untyped-def]
    wx, params, h0, c0, lengths, reset, y, c_all, dy, maps, before, dwx, dparams, dh0, dc0,
    steps, width, total, chunks, x_row, x_step, x_gate, x_unit, g_row, g_step, g_unit,
    CELL: tl.constexpr, AGAIN: tl.constexpr, REVERSE: tl.constexpr, RAGGED: tl.constexpr, RESET: tl.constexpr,
    APPLY: tl.constexpr, WIDE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """First pass: a chunk's map of gradients; with APPLY the last: gradients, of parameters and state a part a chunk.

    dparams (chunks, rows, total), dh0 and dc0 (chunks, total): what episodes that begin in the chunk give to the state.
    """
    lane, row, unit, there = lanes(width, total, BLOCK)
    n = steps_of(lengths, row, steps, there, RAGGED)
    chunk = tl.cast(tl.program_id(1), tl.int64)
    r = (chunk * CHUNK).to(tl.int32) + tl.arange(0, CHUNK)[:, None]
    live = r < n[None, :]
    t = place(r, n[None, :], not REVERSE)
    sequence = (row * steps)[None, :]
    fresh = flag(reset + sequence, t, live, RESET)
    begins = live & ((r == n[None, :] - 1) | fresh)
    at = (sequence + t) * width + unit[None, :]
    at_old = at + width if REVERSE else at - width
    state = lane[None, :] + 0 * t
    h = tl.where(begins, load(h0 + state, begins, WIDE), load(y + at_old, live & (begins == 0), WIDE))
    c, new_c = h, h
    w = weights(params, unit[None, :], there[None, :], width, CELL, WIDE)
    g = load(dy + (row * g_row + unit * g_unit)[None, :] + t * g_step, live, WIDE)
    if CELL < 2 and not AGAIN:
        s = slopes_at(load(y + at, live, WIDE), w[0], CELL)
    else:
        if CELL == 3:
            c = tl.where(begins, load(c0 + state, begins, WIDE), load(c_all + at_old, live & (begins == 0), WIDE))
        x = rows_of(wx + (row * x_row + unit * x_unit)[None, :] + t * x_step, live, x_gate, CELL, WIDE)
        _, new_c, s = cell(h, c, x, w, CELL)
    m = _map(g, s, fresh, live, CELL)
    m = tl.associative_scan(m, 0, compose_matrix_or_set if CELL == 3 else compose_or_set)
    if APPLY:
        dh = tl.load(before + chunk * total + lane, mask=there, other=0.0)[None, :]
        dc = dh
        if CELL == 3:
            dc = tl.load(before + (tl.cast(chunks, tl.int64) + chunk) * total + lane, mask=there, other=0.0)[None, :]
            to_h, to_c = apply_matrix(m[0], m[1], m[2], m[3], m[4], m[5], dh, dc, True)
            dc = shifted(to_c, dc, CHUNK, BLOCK)
        else:
            to_h = apply(m[0], m[1], dh, True)
        dh, dc, dx, dw = pulled(g + shifted(to_h, dh, CHUNK, BLOCK), dc, h, c, new_c, s, CELL)
        rows: tl.constexpr = 1 if CELL < 2 else 3
        to = dwx + (sequence + t) * (width * rows) + unit[None, :]
        for k in tl.static_range(rows):
            d = tl.where(live, dx[k], 0.0).to(dwx.dtype.element_ty)
            tl.store(to + k * width, d, mask=r < tl.where(there, steps, 0)[None, :])
        for k in tl.static_range(len(dw)):
            part = tl.sum(tl.where(live, dw[k], 0.0), 0)
            tl.store(dparams + (chunk * len(dw) + k) * total + lane, part, mask=there)
        tl.store(dh0 + chunk * total + lane, tl.sum(tl.where(fresh, dh, 0.0), 0), mask=there)
        if CELL == 3:
            tl.store(dc0 + chunk * total + lane, tl.sum(tl.where(fresh, dc, 0.0), 0), mask=there)
    else:
        keep(maps, m, r, lane, there, chunk, chunks, total, CHUNK)
