"""Chunked over time, for few lanes and many steps: the three passes of `gpu_scan`; README.md."""

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

from recurra.kernels.gpu_scan import (
    apply,
    apply_complex,
    compose,
    compose_complex,
    compose_complex_or_set,
    compose_or_set,
    lanes,
    load_pair,
    place,
    steps_of,
    store_pair,
    times_pair,
    where_pair,
)


@triton.jit
def _composed(a, ai, b, bi, PARTS: tl.constexpr, SETS: tl.constexpr):  # type: ignore[no-untyped-def]
    # From the steps' own maps those from the chunk's start to after each step.
    if PARTS == 2:
        if SETS:
            a, ai, b, bi = tl.associative_scan((a, ai, b, bi), 0, compose_complex_or_set)
        else:
            a, ai, b, bi = tl.associative_scan((a, ai, b, bi), 0, compose_complex)
    else:
        if SETS:
            a, b = tl.associative_scan((a, b), 0, compose_or_set)
        else:
            a, b = tl.associative_scan((a, b), 0, compose)
    return a, ai, b, bi


@triton.jit
def _keep(maps, a, ai, b, bi, s, lane, there, chunk, chunks, total, PARTS: tl.constexpr, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    # The map of a whole chunk is that of its last step.
    part = tl.cast(chunks, tl.int64) * total
    at = maps + chunk * total + lane[None, :] + 0 * s
    mask = (s == chunk * CHUNK + CHUNK - 1) & there[None, :]
    tl.store(at, a, mask=mask)
    tl.store(at + PARTS * part, b, mask=mask)
    if PARTS == 2:
        tl.store(at + part, ai, mask=mask)
        tl.store(at + 3 * part, bi, mask=mask)


@triton.jit
def _states(a, ai, b, bi, h, hi, PARTS: tl.constexpr, SETS: tl.constexpr):  # type: ignore[no-untyped-def]
    if PARTS == 2:
        new, newi = apply_complex(a, ai, b, bi, h[None, :], hi[None, :], SETS)
    else:
        new = apply(a, b, h[None, :], SETS)
        newi = new
    return new, newi


@triton.jit
def _before(before, chunk, chunks, total, lane, there, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    h = tl.load(before + chunk * total + lane, mask=there, other=0.0)
    hi = h
    if PARTS == 2:
        hi = tl.load(before + (tl.cast(chunks, tl.int64) + chunk) * total + lane, mask=there, other=0.0)
    return h, hi


@triton.jit(do_not_specialize=["steps", "total", "chunks"])  # type: ignore[misc, unused-ignore]
def forward_chunk(  # type: ignore[no-untyped-def]
    a, b, h0, lengths, reset, maps, before, h, steps, width, total, chunks,
    a_row, a_step, a_unit, b_row, b_step, b_unit, REVERSE: tl.constexpr, RAGGED: tl.constexpr, RESET: tl.constexpr,
    APPLY: tl.constexpr, PARTS: tl.constexpr, WIDE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """First pass: the map of a chunk; with APPLY the last: its states."""
    lane, row, unit, there = lanes(width, total, BLOCK)
    n = steps_of(lengths, row, steps, there, RAGGED)
    chunk = tl.cast(tl.program_id(1), tl.int64)
    s = (chunk * CHUNK).to(tl.int32) + tl.arange(0, CHUNK)[:, None]
    live = s < n[None, :]
    t = place(s, n[None, :], REVERSE)
    m, mi = load_pair(a + (row * a_row + unit * a_unit)[None, :] + t * a_step, live, PARTS, WIDE)
    x, xi = load_pair(b + (row * b_row + unit * b_unit)[None, :] + t * b_step, live, PARTS, WIDE)
    if RESET:
        fresh = tl.load(reset + (row * steps)[None, :] + t, mask=live, other=0) != 0
        old, oldi = load_pair(h0 + lane * PARTS, there, PARTS, WIDE)
        new, newi = _states(m, mi, x, xi, old, oldi, PARTS, False)
        x, xi = where_pair(fresh, new, newi, x, xi, PARTS)
        m, mi = where_pair(fresh, 0.0, 0.0, m, mi, PARTS)
    m, mi = where_pair(live, m, mi, 1.0, 0.0, PARTS)
    m, mi, x, xi = _composed(m, mi, x, xi, PARTS, RESET)
    if APPLY:
        old, oldi = _before(before, chunk, chunks, total, lane, there, PARTS)
        new, newi = _states(m, mi, x, xi, old, oldi, PARTS, RESET)
        new, newi = where_pair(live, new, newi, 0.0, 0.0, PARTS)
        to = h + ((row * steps)[None, :] + t) * (width * PARTS) + (unit * PARTS)[None, :]
        store_pair(to, new, newi, s < tl.where(there, steps, 0)[None, :], PARTS)
    else:
        _keep(maps, m, mi, x, xi, s, lane, there, chunk, chunks, total, PARTS, CHUNK)


@triton.jit(do_not_specialize=["steps", "total", "chunks"])  # type: ignore[misc, unused-ignore]
def backward_chunk(  # type: ignore[no-untyped-def]
    a, h, h0, lengths, reset, dh, maps, before, da, db, dh0, steps, width, total, chunks,
    a_row, a_step, a_unit, g_row, g_step, g_unit, REVERSE: tl.constexpr, RAGGED: tl.constexpr, RESET: tl.constexpr,
    FIXED: tl.constexpr, WANTED: tl.constexpr, APPLY: tl.constexpr, PARTS: tl.constexpr, WIDE: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As `forward_chunk` for g_s = dh_s + conj(a_(s+1)) g_(s+1), from each sequence's last step to its first.

    dh0, and where FIXED da, are (chunks, total): parts that the chunk's steps add.
    """
    lane, row, unit, there = lanes(width, total, BLOCK)
    n = steps_of(lengths, row, steps, there, RAGGED)
    chunk = tl.cast(tl.program_id(1), tl.int64)
    r = (chunk * CHUNK).to(tl.int32) + tl.arange(0, CHUNK)[:, None]
    live = r < n[None, :]
    t = place(r, n[None, :], not REVERSE)
    later = live & (r > 0)
    after = place(r - 1, n[None, :], not REVERSE)
    a += (row * a_row + unit * a_unit)[None, :]
    m, mi = load_pair(a + after * a_step, later, PARTS, WIDE)
    m, mi = where_pair(later, m, -mi, 1.0, 0.0, PARTS)
    g, gi = load_pair(dh + (row * g_row + unit * g_unit)[None, :] + t * g_step, live, PARTS, WIDE)
    fresh = live & (r == n[None, :] - 1)
    if RESET:
        reset += (row * steps)[None, :]
        cut = tl.load(reset + after, mask=later, other=0) != 0
        m, mi = where_pair(cut, 0.0, 0.0, m, mi, PARTS)
        fresh = fresh | (tl.load(reset + t, mask=live, other=0) != 0)
    m, mi, g, gi = _composed(m, mi, g, gi, PARTS, RESET)
    if APPLY:
        carried, carriedi = _before(before, chunk, chunks, total, lane, there, PARTS)
        g, gi = _states(m, mi, g, gi, carried, carriedi, PARTS, RESET)
        g, gi = where_pair(live, g, gi, 0.0, 0.0, PARTS)
        inside = r < tl.where(there, steps, 0)[None, :]
        to = ((row * steps)[None, :] + t) * (width * PARTS) + (unit * PARTS)[None, :]
        store_pair(db + to, g, gi, inside, PARTS)
        # A sequence without steps hands its gradient on.
        whole, wholei = where_pair((n == 0) & (chunk == 0), carried, carriedi, 0.0, 0.0, PARTS)
        m, mi = load_pair(a + t * a_step, fresh, PARTS, WIDE)
        out, outi = times_pair(m, mi, g, gi, -1, PARTS)
        out, outi = where_pair(fresh, out, outi, 0.0, 0.0, PARTS)
        part = (chunk * total + lane) * PARTS
        store_pair(dh0 + part, tl.sum(out, 0) + whole, tl.sum(outi, 0) + wholei, there, PARTS)
        if WANTED:
            start = h0 + (lane * PARTS)[None, :] + 0 * t
            old, oldi = load_pair(start, fresh, PARTS, WIDE)
            to_old = to + width * PARTS if REVERSE else to - width * PARTS
            old, oldi = where_pair(fresh, old, oldi, *load_pair(h + to_old, live & ~fresh, PARTS, WIDE), PARTS)
            d, di = times_pair(old, oldi, g, gi, -1, PARTS)
            d, di = where_pair(live, d, di, 0.0, 0.0, PARTS)
            if FIXED:
                store_pair(da + part, tl.sum(d, 0), tl.sum(di, 0), there, PARTS)
            else:
                store_pair(da + to, d, di, inside, PARTS)
    else:
        _keep(maps, m, mi, g, gi, r, lane, there, chunk, chunks, total, PARTS, CHUNK)
