"""Newton's method over time, a window of steps at once, for few lanes and many steps; README.md.

ParaRNN (arXiv 2510.21450) iterates over all steps, a fixed number of times. Here a window's states start from the
certain state before it, and each lane's residual is tested: no result leaves that does not satisfy its equation.
"""

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

from recurra.kernels.elementwise_scan.triton_cells import cell, weights
from recurra.kernels.elementwise_scan.triton_chunks import shifted
from recurra.kernels.elementwise_scan.triton_lanes import flag, rows_of
from recurra.kernels.gpu_scan import compose, compose_matrix, lanes, load, place, steps_of


@triton.jit
def _corrections(e, e_c, s, moves, CELL: tl.constexpr):  # type: ignore[no-untyped-def]
    # δ_t = J_t δ_(t-1) + e_t; J = 0 where an episode begins.
    if CELL == 3:
        a, c = s[3] + s[0] * s[1], s[0] * s[2]
        j = (tl.where(moves, a, 0.0), tl.where(moves, c, 0.0), tl.where(moves, s[1], 0.0), tl.where(moves, s[2], 0.0))
        _, _, _, _, d, d_c = tl.associative_scan((j[0], j[1], j[2], j[3], e, e_c), 0, compose_matrix)
    else:
        _, d = tl.associative_scan((tl.where(moves, s[0], 0.0), e), 0, compose)
        d_c = d
    return d, d_c


@triton.jit
def _last(values, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.sum(tl.where(tl.arange(0, CHUNK)[:, None] == CHUNK - 1, values, 0.0), 0)


@triton.jit
def _solve(  # type: ignore[no-untyped-def]
    x, w, old, old_c, start, start_c, live, fresh, certain,
    TOLERANCE: tl.constexpr, LIMIT: tl.constexpr, CELL: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # States of a window, and the lanes among `certain` whose residual stayed above the tolerance.
    h = tl.broadcast_to(old[None, :], (CHUNK, BLOCK))
    c = tl.broadcast_to(old_c[None, :], (CHUNK, BLOCK))
    wrong = certain != certain
    tries, going = 0, 1
    while going > 0:
        before = tl.where(fresh, start[None, :], shifted(h, old[None, :], CHUNK, BLOCK))
        before_c = before
        if CELL == 3:
            before_c = tl.where(fresh, start_c[None, :], shifted(c, old_c[None, :], CHUNK, BLOCK))
        new, new_c, s = cell(before, before_c, x, w, CELL)
        # In the padding the state stays, so that the last row holds each lane's last state.
        e = tl.where(live, new, before) - h
        size = 1 + tl.max(tl.abs(h), 0)
        good = tl.abs(e) <= TOLERANCE * size[None, :]
        e_c = e
        if CELL == 3:
            e_c = tl.where(live, new_c, before_c) - c
            size = 1 + tl.max(tl.abs(c), 0)
            good = good & (tl.abs(e_c) <= TOLERANCE * size[None, :])
        # Counted, since the largest of numbers is blind to NaN.
        wrong = (tl.max((live & (good == 0)).to(tl.int32), 0) > 0) & certain
        going = tl.max(wrong.to(tl.int32), 0)
        if tries == LIMIT:
            going = going * 0
        if going > 0:
            d, d_c = _corrections(e, e_c, _held(s, live, CELL), fresh == 0, CELL)
            h = tl.where(wrong[None, :], h + d, h)
            if CELL == 3:
                c = tl.where(wrong[None, :], c + d_c, c)
        tries += 1
    return h, c, wrong


@triton.jit
def _held(s, live, CELL: tl.constexpr):  # type: ignore[no-untyped-def]
    # Slopes of the padding: the state stays.
    held = (tl.where(live, s[0], 0.0 if CELL == 3 else 1.0),)
    if CELL == 3:
        held = held + (tl.where(live, s[1], 0.0), tl.where(live, s[2], 1.0), tl.where(live, s[3], 1.0))
    return held


@triton.jit
def _loop(  # type: ignore[no-untyped-def]
    wx, reset, y, c_all, at, w, h, c, start, start_c, first, n, uncertain, x_step, x_gate, width,
    CELL: tl.constexpr, REVERSE: tl.constexpr, RESET: tl.constexpr, SAVING: tl.constexpr, WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    # The same window step by step, for the lanes where Newton's method did not converge.
    for i in range(0, CHUNK):
        live = (first + i < n) & uncertain
        t = place(first + i, n, REVERSE)
        fresh = flag(reset, t, live, RESET)
        x = rows_of(wx + t * x_step, live, x_gate, CELL, WIDE)
        new, new_c, _ = cell(tl.where(fresh, start, h), tl.where(fresh, start_c, c), x, w, CELL)
        h = tl.where(live, new, h)
        c = tl.where(live, new_c, c)
        tl.store(y + at + t * width, h.to(y.dtype.element_ty), mask=live)
        if SAVING and CELL == 3:
            tl.store(c_all + at + t * width, c, mask=live)
    return h, c


@triton.jit(do_not_specialize=["steps", "total"])  # type: ignore[misc, unused-ignore]
def newton_lanes(  # type: ignore[no-untyped-def]
    wx, params, h0, c0, lengths, reset, y, h_last, c_last, c_all, steps, width, total,
    x_row, x_step, x_gate, x_unit,
    CELL: tl.constexpr, REVERSE: tl.constexpr, RAGGED: tl.constexpr, RESET: tl.constexpr, SAVING: tl.constexpr,
    WIDE: tl.constexpr, TOLERANCE: tl.constexpr, LIMIT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As `forward_lanes`, CHUNK steps at a time.

    A lane whose residual |h_t - f(h_(t-1), x_t)| exceeds TOLERANCE (1 + max|h|) after LIMIT corrections is computed
    step by step from that window on.
    """
    lane, row, unit, there = lanes(width, total, BLOCK)
    n = steps_of(lengths, row, steps, there, RAGGED)
    wx += row * x_row + unit * x_unit
    reset += row * steps
    to = row * steps * width + unit
    w = weights(params, unit, there, width, CELL, WIDE)
    wide_w = weights(params, unit[None, :], there[None, :], width, CELL, WIDE)
    start = load(h0 + lane, there, WIDE)
    start_c = load(c0 + lane, there, WIDE)
    h, c, certain = start, start_c, n >= 0
    for first in range(0, steps, CHUNK):
        s = first + tl.arange(0, CHUNK)[:, None]
        live = s < n[None, :]
        t = place(s, n[None, :], REVERSE)
        x = rows_of(wx[None, :] + t * x_step, live, x_gate, CELL, WIDE)
        fresh = flag(reset[None, :], t, live, RESET)
        states, states_c, wrong = _solve(
            x, wide_w, h, c, start, start_c, live, fresh, certain, TOLERANCE, LIMIT, CELL, CHUNK, BLOCK
        )  # fmt: skip
        certain = certain & (wrong == 0)
        # The padding is written here for every lane.
        mask = (s < tl.where(there, steps, 0)[None, :]) & (certain[None, :] | (live == 0))
        at = to[None, :] + t * width
        tl.store(y + at, tl.where(live, states, 0.0).to(y.dtype.element_ty), mask=mask)
        if SAVING and CELL == 3:
            tl.store(c_all + at, tl.where(live, states_c, 0.0), mask=mask)
        end, end_c = _last(states, CHUNK), _last(states_c, CHUNK)
        if tl.max((certain == 0).to(tl.int32), 0) > 0:
            looped, looped_c = _loop(
                wx, reset, y, c_all, to, w, h, c, start, start_c, first, n, certain == 0, x_step, x_gate, width,
                CELL, REVERSE, RESET, SAVING, WIDE, CHUNK,
            )  # fmt: skip
            end, end_c = tl.where(certain, end, looped), tl.where(certain, end_c, looped_c)
        h, c = end, end_c
    tl.store(h_last + lane, h, mask=there)
    if CELL == 3:
        tl.store(c_last + lane, c, mask=there)
