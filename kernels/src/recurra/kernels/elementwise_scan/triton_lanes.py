"""One lane a unit of a sequence: loops over time whose loads run a tile ahead; README.md."""

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

from recurra.kernels.elementwise_scan.triton_cells import cell, slopes_at, weights
from recurra.kernels.gpu_scan import lanes, load, place, steps_of


@triton.jit
def rows_of(x, mask, gate, CELL: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The rows of wx of one step, or of a tile of steps."""
    values = (load(x, mask, WIDE),)
    if CELL >= 2:
        values = values + (load(x + gate, mask, WIDE), load(x + 2 * gate, mask, WIDE))
    return values


@triton.jit
def flag(reset, t, mask, RESET: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether an episode begins; never without RESET."""
    begins = mask != mask
    if RESET:
        begins = tl.load(reset + t, mask=mask, other=0) != 0
    return begins


@triton.jit
def _ahead(  # type: ignore[no-untyped-def]
    wx, reset, first, n, x_step, x_gate,
    CELL: tl.constexpr, REVERSE: tl.constexpr, RESET: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    tile, fresh = (), ()
    for i in tl.static_range(TILE):
        live = first + i < n
        t = place(first + i, n, REVERSE)
        tile = tile + (rows_of(wx + t * x_step, live, x_gate, CELL, WIDE),)
        if RESET:
            fresh = fresh + (flag(reset, t, live, True),)
    return tile, fresh


@triton.jit(do_not_specialize=["steps", "total"])  # type: ignore[misc, unused-ignore]
def forward_lanes(  # type: ignore[no-untyped-def]
    wx, params, h0, c0, lengths, reset, y, h_last, c_last, c_all, steps, width, total,
    x_row, x_step, x_gate, x_unit,
    CELL: tl.constexpr, REVERSE: tl.constexpr, RAGGED: tl.constexpr, RESET: tl.constexpr, SAVING: tl.constexpr,
    WIDE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y, the last state and, where SAVING, c after every step, of BLOCK lanes."""
    lane, row, unit, there = lanes(width, total, BLOCK)
    n = steps_of(lengths, row, steps, there, RAGGED)
    limit = tl.where(there, steps, 0)
    wx += row * x_row + unit * x_unit
    reset += row * steps
    to = row * steps * width + unit
    w = weights(params, unit, there, width, CELL, WIDE)
    start = load(h0 + lane, there, WIDE)
    start_c = load(c0 + lane, there, WIDE)
    h, c = start, start_c
    ahead, ahead_fresh = _ahead(wx, reset, 0, n, x_step, x_gate, CELL, REVERSE, RESET, WIDE, TILE)
    for first in range(0, steps, TILE):
        now, fresh = ahead, ahead_fresh
        ahead, ahead_fresh = _ahead(wx, reset, first + TILE, n, x_step, x_gate, CELL, REVERSE, RESET, WIDE, TILE)
        for i in tl.static_range(TILE):
            live = first + i < n
            if RESET:
                h = tl.where(fresh[i], start, h)
                c = tl.where(fresh[i], start_c, c)
            new, new_c, _ = cell(h, c, now[i], w, CELL)
            h = tl.where(live, new, h)
            c = tl.where(live, new_c, c)
            at = to + place(first + i, n, REVERSE) * width
            tl.store(y + at, tl.where(live, new, 0.0).to(y.dtype.element_ty), mask=first + i < limit)
            if SAVING and CELL == 3:
                tl.store(c_all + at, tl.where(live, new_c, 0.0), mask=first + i < limit)
    tl.store(h_last + lane, h, mask=there)
    if CELL == 3:
        tl.store(c_last + lane, c, mask=there)


@triton.jit
def _behind(  # type: ignore[no-untyped-def]
    wx, y, c_all, reset, dy, first, n, x_step, x_gate, width, g_step,
    CELL: tl.constexpr, AGAIN: tl.constexpr, REVERSE: tl.constexpr, RESET: tl.constexpr,
    WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    tile, fresh = (), ()
    for i in tl.static_range(TILE):
        live = first + i < n
        t = place(first + i, n, not REVERSE)
        before = (t + 1 if REVERSE else t - 1) * width
        values = (load(dy + t * g_step, live, WIDE), load(y + before, first + i < n - 1, WIDE))
        if CELL == 3:
            values = values + (load(c_all + before, first + i < n - 1, WIDE),)
        if CELL >= 2 or AGAIN:
            values = values + (rows_of(wx + t * x_step, live, x_gate, CELL, WIDE),)
        tile = tile + (values,)
        if RESET:
            fresh = fresh + (flag(reset, t, live, True),)
    return tile, fresh


@triton.jit
def pulled(g, gc, h, c, new_c, s, CELL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Gradients of (h, c), of the rows of x and of the parameters, from those of (h', c') and `cell`'s slopes."""
    if CELL < 2:
        dx = (g * s[1],)
        dh, dc, dw = g * s[0], gc, (dx[0] * h,)
    elif CELL == 2:
        dx = (g * s[1], g * s[2], g * s[3])
        dh, dc, dw = g * s[0], gc, (dx[0] * h, dx[1] * h, dx[2] * (s[4] * h))
    else:
        whole = gc + g * s[0]
        dx = (whole * s[4], g * s[5], whole * s[6])
        dh, dc = g * s[3] + whole * s[1], whole * s[2]
        dw = (dx[0] * h, dx[1] * h, dx[2] * h, dx[0] * c, dx[1] * new_c)
    return dh, dc, dx, dw


@triton.jit(do_not_specialize=["steps", "total"])  # type: ignore[misc, unused-ignore]
def backward_lanes(  # type: ignore[no-untyped-def]
    wx, params, h0, c0, lengths, reset, y, c_all, dy, dh_last, dc_last, dwx, dparams, dh0, dc0, steps, width, total,
    x_row, x_step, x_gate, x_unit, g_row, g_step, g_unit,
    CELL: tl.constexpr, AGAIN: tl.constexpr, REVERSE: tl.constexpr, RAGGED: tl.constexpr, RESET: tl.constexpr,
    WIDE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of BLOCK lanes, from each sequence's last step to its first; of the parameters a part a lane.

    With AGAIN slopes are computed from wx, not from y: 1 - y² of a y in 16 bit is a poor one near saturation.
    """
    lane, row, unit, there = lanes(width, total, BLOCK)
    n = steps_of(lengths, row, steps, there, RAGGED)
    limit = tl.where(there, steps, 0)
    wx += row * x_row + unit * x_unit
    dy += row * g_row + unit * g_unit
    reset += row * steps
    sequence = row * steps * width + unit
    y += sequence
    c_all += sequence
    rows: tl.constexpr = 1 if CELL < 2 else 3
    dwx += row * steps * width * rows + unit
    w = weights(params, unit, there, width, CELL, WIDE)
    start = load(h0 + lane, there, WIDE)
    start_c = load(c0 + lane, there, WIDE)
    dh = load(dh_last + lane, there, WIDE)
    dc = load(dc_last + lane, there, WIDE)
    first_h, first_c = tl.zeros_like(dh), tl.zeros_like(dh)
    sums = (first_h,)
    if CELL >= 2:
        sums = sums + (first_h, first_h)
    if CELL == 3:
        sums = sums + (first_h, first_h)
    result = load(y + place(n * 0, n, not REVERSE) * width, n > 0, WIDE)
    ahead, ahead_fresh = _behind(
        wx, y, c_all, reset, dy, 0, n, x_step, x_gate, width, g_step, CELL, AGAIN, REVERSE, RESET, WIDE, TILE
    )  # fmt: skip
    for first in range(0, steps, TILE):
        now, fresh = ahead, ahead_fresh
        ahead, ahead_fresh = _behind(
            wx, y, c_all, reset, dy, first + TILE, n, x_step, x_gate, width, g_step,
            CELL, AGAIN, REVERSE, RESET, WIDE, TILE,
        )  # fmt: skip
        for i in tl.static_range(TILE):
            live = first + i < n
            begins = first + i == n - 1
            if RESET:
                begins = begins | fresh[i]
            h = tl.where(begins, start, now[i][1])
            c, new_c = h, h
            if CELL < 2 and not AGAIN:
                s = slopes_at(result, w[0], CELL)
                result = now[i][1]
            elif CELL <= 2:
                _, _, s = cell(h, c, now[i][2], w, CELL)
            else:
                c = tl.where(begins, start_c, now[i][2])
                _, new_c, s = cell(h, c, now[i][3], w, CELL)
            new_dh, new_dc, dx, dw = pulled(now[i][0] + dh, dc, h, c, new_c, s, CELL)
            dh = tl.where(live, new_dh, dh)
            dc = tl.where(live, new_dc, dc)
            at = dwx + place(first + i, n, not REVERSE) * (width * rows)
            for k in tl.static_range(rows):
                d = tl.where(live, dx[k], 0.0).to(dwx.dtype.element_ty)
                tl.store(at + k * width, d, mask=first + i < limit)
            total_dw = ()
            for k in tl.static_range(len(dw)):
                total_dw = total_dw + (sums[k] + tl.where(live, dw[k], 0.0),)
            sums = total_dw
            if RESET:
                first_h += tl.where(fresh[i], dh, 0.0)
                first_c += tl.where(fresh[i], dc, 0.0)
                dh = tl.where(fresh[i], 0.0, dh)
                dc = tl.where(fresh[i], 0.0, dc)
    for k in tl.static_range(len(sums)):
        tl.store(dparams + tl.cast(k, tl.int64) * total + lane, sums[k], mask=there)
    tl.store(dh0 + lane, first_h + dh, mask=there)
    if CELL == 3:
        tl.store(dc0 + lane, first_c + dc, mask=there)
