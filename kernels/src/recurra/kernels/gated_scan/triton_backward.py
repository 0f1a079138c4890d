"""The backward loop of every gated cell in one Triton kernel: the gates' gradients and the state's, no weights'."""

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

from recurra.kernels.gated_scan.triton_cells import before_back, candidate_back, cell_back, cell_step
from recurra.kernels.gated_scan.triton_tiles import (
    apart,
    barrier,
    keep,
    load_matrix,
    load_rows,
    load_state,
    load_wide_bias,
    multiplied,
    places,
    select,
    slots,
    store_state,
    sums,
    together,
    widened,
    within,
)
from recurra.kernels.gpu_math import tanh


# Numbers that differ from call to call and would otherwise each be compiled for.
@triton.jit(do_not_specialize=["batch", "steps", "skipped", "first", "count"])  # type: ignore[misc, unused-ignore]
def backward_kernel(  # type: ignore[no-untyped-def]
    dy, y, gates, states, wx, product, r, bias, projection, h0, c0, n0, m0, lengths, reset, arrivals,
    dwx, side, held, dh, dc, dn, dm, eh, ec, en, em,
    batch, steps, heads, skipped, first, count, wx_b, wx_t, wx_g, wx_n,
    CELL: tl.constexpr, GATES: tl.constexpr, BIASES: tl.constexpr, STATES: tl.constexpr, SAVED: tl.constexpr,
    NEW: tl.constexpr, OLD: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, OLD_TILE: tl.constexpr,
    MODE: tl.constexpr, CHUNKS: tl.constexpr, BIAS: tl.constexpr, LENGTHS: tl.constexpr, RESET: tl.constexpr,
    REVERSE: tl.constexpr, PROJECTED: tl.constexpr, RECOMPUTE: tl.constexpr,
    SLOTS: tl.constexpr, WIDE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The way back through steps `first` to `first + count` of ROWS sequences and TILE units of a head.

    dh, dc, dn, dm hold the gradient of the state after these steps, and in the end of that before them; eh, ec, en, em
    gather that of the initial state at resets. `product` is U h of these steps, of which RECOMPUTE makes the gates.
    """
    KEPT: tl.constexpr = STATES - 1 if STATES > 1 else 1
    APART: tl.constexpr = CELL == "gru" or CELL == "mgu_after"
    BEFORE: tl.constexpr = CELL == "gru_before" or CELL == "mgu"
    EARLY: tl.constexpr = GATES - 1 if BEFORE else GATES
    SIDE: tl.constexpr = 4 if SAVED == 3 else SAVED
    part, block, blocks = tl.program_id(0), tl.program_id(1) + skipped, tl.cdiv(batch, ROWS)
    head = (block // blocks).to(tl.int64)
    rows = (block % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_mask = rows < batch
    length = tl.load(lengths + rows, mask=row_mask, other=0) if LENGTHS else tl.where(row_mask, 0 * rows + steps, 0)
    units = part * TILE + tl.arange(0, TILE)
    old_units = part * OLD_TILE + tl.arange(0, OLD_TILE) if MODE == "held" else units
    mask = row_mask[:, None] & (units < NEW)[None, :]
    h_mask = row_mask[:, None] & (old_units < OLD)[None, :]
    at, h_at = places(rows, 1, heads, head, units, NEW), places(rows, 1, heads, head, old_units, OLD)
    slot, unit, gate_of, given = slots(part, GATES, GATES, APART, TILE, SLOTS)
    x_at = (rows * wx_b + head * wx_n)[:, None] + (gate_of.to(tl.int64) * wx_g + unit)[None, :]
    low = steps - first - count if REVERSE else first
    p_at = ((head * batch + rows) * count - low)[:, None] * (GATES * NEW) + (slot * NEW + unit)[None, :]
    begin = rows * steps
    kind = dwx.dtype.element_ty

    weights = load_backward(
        r, projection, heads, head, units, old_units,
        GATES, EARLY, SLOTS, NEW, OLD, TILE, OLD_TILE, MODE, CHUNKS, PROJECTED,
    )  # fmt: skip
    biases = load_wide_bias(bias, heads, head, slot, unit, gate_of, given, GATES, BIASES, BIAS, NEW, WIDE)
    initial = load_state(h0, c0, n0, m0, h_at, h_mask, at, mask, STATES, WIDE)
    start = initial[1:] if STATES > 1 else initial
    carried = load_state(dh, dc, dn, dm, h_at, h_mask, at, mask, STATES, WIDE)
    extra = load_state(eh, ec, en, em, h_at, h_mask, at, mask, STATES, WIDE) if RESET else carried
    place = (begin, length, heads, head, units, old_units)
    wide = (part, slot, unit, given, x_at, p_at)
    back: tl.constexpr = 1 if REVERSE else -1
    t = head * 0 + (low if REVERSE else first + count - 1)
    ahead = load_step(
        dy, gates, wx, product, t, place, wide, wx_t, GATES, SAVED, NEW, OLD, TILE, SIDE, RECOMPUTE
    )  # fmt: skip
    new = load_kept(y, states, t, place, STATES, NEW, OLD)
    before = load_kept(y, states, t + back, place, STATES, NEW, OLD)
    for j in range(count):
        live = t < length
        known = within(t + back, length)
        tiles, old = ahead, widened(before, KEPT, WIDE)
        after = before
        # Loaded a step ahead: nothing of it waits for the gradient.
        ahead = load_step(
            dy, gates, wx, product, t + back, place, wide, wx_t, GATES, SAVED, NEW, OLD, TILE, SIDE, RECOMPUTE
        )  # fmt: skip
        before = load_kept(y, states, t + 2 * back, place, STATES, NEW, OLD)
        if RESET:
            fresh = live & (tl.load(reset + begin + t, mask=row_mask, other=0) != 0)
            known &= ~fresh
        old = select(known[:, None], old, start, KEPT)
        d = (tiles[0].to(WIDE) + carried[0],) + carried[1:]
        now = widened(new, KEPT, WIDE)
        if SAVED == 0:
            gate = now
        elif RECOMPUTE:
            p = apart(tiles[1].to(WIDE) + biases + tiles[2].to(WIDE), ROWS, TILE, SLOTS)
            # No gate depends on h itself where there are other states, which `old` is without h.
            _, gate = cell_step(p, old[:1] + old if STATES > 1 else old, CELL)
        else:
            gate = widened(apart(tiles[1], ROWS, TILE, SIDE), SIDE, WIDE)

        none = tl.zeros((ROWS, OLD_TILE), dtype=WIDE)
        if BEFORE:
            candidate = candidate_back(gate, d, CELL)
            if MODE == "held":
                through = multiplied(candidate, weights[1], none, FACTOR, PRECISION)
            else:
                last_out = places(begin + t, GATES, heads, head, units, NEW) + (GATES - 1) * heads * NEW
                tl.store(dwx + last_out, tl.where(live[:, None], candidate, 0.0).to(kind), mask=mask)
                barrier(arrivals + block, (2 * j + 1) * tl.num_programs(0))
                through = shared_product(
                    dwx, side, weights, begin + t, row_mask, heads, head, GATES - 1, GATES,
                    GATES, NEW, ROWS, TILE, OLD_TILE, CHUNKS, APART, WIDE, FACTOR, PRECISION,
                )  # fmt: skip
            grads, d_old = before_back(gate, old, d, candidate, through, CELL)
            last = candidate
        else:
            if PROJECTED:
                s_at = places(begin + t, 1, heads, head, old_units, OLD)
                tl.store(side + s_at, tl.where(live[:, None], d[0], 0.0).to(kind), mask=h_mask)
                # In two parts, as the forward pass.
                rest = multiplied(
                    d[0] - d[0].to(kind).to(WIDE), weights[1], tl.zeros((ROWS, TILE), dtype=WIDE), FACTOR, PRECISION
                )
                d = (multiplied(d[0], weights[1], rest, FACTOR, PRECISION), d[1])
            grads, last, d_old = cell_back(gate, old, now, d, CELL)
        grads = keep(live[:, None], grads, GATES)
        if APART:
            grads = grads[: GATES - 1] + (tl.where(live[:, None], last, 0.0), grads[GATES - 1])
        total = together(grads, ROWS, TILE, GATES + 1 if APART else GATES).to(kind)
        inside = row_mask[:, None] & (unit < NEW)[None, :]
        x_out = ((begin + t) * GATES * heads + head)[:, None] * NEW + (gate_of * heads * NEW + unit)[None, :]
        tl.store(dwx + x_out, total, mask=inside & given[None, :])
        if APART:
            side_out = ((begin + t) * heads + head)[:, None] * NEW + unit[None, :]
            tl.store(side + side_out, total, mask=inside & (slot == GATES - 1)[None, :])
        one = places(begin + t, 1, heads, head, units, NEW)
        if BEFORE:
            tl.store(held + one, tl.where(live[:, None], gate[0] * old[0], 0.0).to(kind), mask=mask)
        if PROJECTED:
            tl.store(held + one, tl.where(live[:, None], gate[3] * tanh(now[0]), 0.0).to(kind), mask=mask)

        if MODE == "held":
            total = multiplied(total, weights[0], none, FACTOR, PRECISION)
            # With a projection h has a width of its own and nothing else depends on it.
            d_old = (total,) + d_old[1:] if PROJECTED else (d_old[0] + total,) + d_old[1:]
        elif MODE == "shared":
            barrier(arrivals + block, (j + 1) * (2 if BEFORE else 1) * tl.num_programs(0))
            total = shared_product(
                dwx, side, weights, begin + t, row_mask, heads, head, 0, GATES - 1 if BEFORE else GATES,
                GATES, NEW, ROWS, TILE, OLD_TILE, CHUNKS, APART, WIDE, FACTOR, PRECISION,
            )  # fmt: skip
            d_old = (d_old[0] + total,) + d_old[1:]
        if RESET:
            extra = sums(extra, keep(fresh[:, None], d_old, STATES), STATES)
            d_old = keep((~fresh)[:, None], d_old, STATES)
        carried = select(live[:, None], d_old, carried, STATES)
        new = after
        t += back
    store_state(dh, dc, dn, dm, h_at, h_mask, at, mask, carried, STATES)
    if RESET:
        store_state(eh, ec, en, em, h_at, h_mask, at, mask, extra, STATES)


@triton.jit
def load_kept(y, states, t, place, STATES: tl.constexpr, NEW: tl.constexpr, OLD: tl.constexpr):  # type: ignore[no-untyped-def]
    """The states after step t as they were kept: h where the cell has no other, else the others."""
    begin, length, heads, head, units, old_units = place
    there = within(t, length)[:, None]
    if STATES == 1:
        at = places(begin + t, 1, heads, head, old_units, OLD)
        return load_rows(y, at, there & (old_units < OLD)[None, :], 0, 1)
    else:
        at = places(begin + t, STATES - 1, heads, head, units, NEW)
        return load_rows(states, at, there & (units < NEW)[None, :], heads * NEW, STATES - 1)


@triton.jit
def load_step(  # type: ignore[no-untyped-def]
    dy, gates, wx, product, t, place, wide, wx_t,
    GATES: tl.constexpr, SAVED: tl.constexpr, NEW: tl.constexpr, OLD: tl.constexpr, TILE: tl.constexpr,
    SIDE: tl.constexpr, RECOMPUTE: tl.constexpr,
):  # fmt: skip
    """dy of step t, then side by side its gates as they were saved, or what the input and what h adds to each."""
    begin, length, heads, head, _, old_units = place
    part, slot, unit, given, x_at, p_at = wide
    there = within(t, length)[:, None]
    h_mask = there & (old_units < OLD)[None, :]
    d = tl.load(dy + places(begin + t, 1, heads, head, old_units, OLD), mask=h_mask, other=0.0)
    if SAVED == 0:
        return (d,)
    elif RECOMPUTE:
        inside = there & (unit < NEW)[None, :]
        x = tl.load(wx + t * wx_t + x_at, mask=inside & given[None, :], other=0.0)
        u = tl.load(product + t * (GATES * NEW) + p_at, mask=inside & (slot < GATES)[None, :], other=0.0)
        return (d, x, u)
    else:
        column = tl.arange(0, SIDE * TILE)
        row, saved = column // TILE, part * TILE + column % TILE
        at = ((begin + t) * SAVED * heads + head)[:, None] * NEW + (row * heads * NEW + saved)[None, :]
        return (d, tl.load(gates + at, mask=there & ((row < SAVED) & (saved < NEW))[None, :], other=0.0))


@triton.jit
def load_backward(  # type: ignore[no-untyped-def]
    r, projection, heads, head, units, old_units,
    GATES: tl.constexpr, EARLY: tl.constexpr, SLOTS: tl.constexpr, NEW: tl.constexpr, OLD: tl.constexpr,
    TILE: tl.constexpr, OLD_TILE: tl.constexpr, MODE: tl.constexpr, CHUNKS: tl.constexpr, PROJECTED: tl.constexpr,
):  # fmt: skip
    """What gradients are multiplied by.

    "held": the matrices (new, old) of the EARLY gates, one under the other in SLOTS, then that of a candidate that
    waits for them, or the projection's (old, new). "shared": for each gate its chunks of new units, by the program's
    old ones. "given": nothing.
    """
    if MODE == "held":
        line = tl.arange(0, SLOTS * TILE)
        gate, unit = line // TILE, line % TILE
        at = ((gate * heads + head) * NEW + unit)[:, None] * OLD + old_units[None, :]
        mask = ((gate < EARLY) & (unit < NEW))[:, None] & (old_units < OLD)[None, :]
        out = (tl.load(r + at, mask=mask, other=0.0),)
        if EARLY < GATES:
            out = out + (load_matrix(r + (EARLY * heads + head) * NEW * OLD, units, NEW, old_units, OLD, OLD, 1),)
        if PROJECTED:
            out = out + (load_matrix(projection + head * OLD * NEW, old_units, OLD, units, NEW, NEW, 1),)
        return out
    elif MODE == "shared":
        each: tl.constexpr = CHUNKS // GATES
        lines = tl.arange(0, OLD_TILE)
        out = (load_matrix(r + head * NEW * OLD, lines, NEW, units, OLD, OLD, 1),)
        for k in tl.static_range(1, CHUNKS):
            line = (k % each) * OLD_TILE + lines
            matrix = r + (k // each * heads + head) * NEW * OLD
            out = out + (load_matrix(matrix, line, NEW, units, OLD, OLD, 1),)
        return out
    else:
        return (0,)


@triton.jit
def shared_product(  # type: ignore[no-untyped-def]
    dwx, side, weights, when, row_mask, heads, head, FROM: tl.constexpr, TO: tl.constexpr,
    GATES: tl.constexpr, NEW: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, OLD_TILE: tl.constexpr,
    CHUNKS: tl.constexpr, APART: tl.constexpr, WIDE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the program's old units through gates FROM to TO of all units, as all programs stored them."""
    each: tl.constexpr = CHUNKS // GATES
    even, odd = tl.zeros((ROWS, TILE), dtype=WIDE), tl.zeros((ROWS, TILE), dtype=WIDE)
    for k in tl.static_range(FROM * each, TO * each):
        line = (k % each) * OLD_TILE + tl.arange(0, OLD_TILE)
        mask = row_mask[:, None] & (line < NEW)[None, :]
        # Past the first-level cache, which does not see what other programs write.
        if APART and k // each == GATES - 1:
            d = tl.load(side + places(when, 1, heads, head, line, NEW), mask=mask, other=0.0, cache_modifier=".cg")
        else:
            at = places(when, GATES, heads, head, line, NEW) + (k // each) * heads * NEW
            d = tl.load(dwx + at, mask=mask, other=0.0, cache_modifier=".cg")
        # Two chains of matrix instructions, each of half the length.
        if k % 2 == 0:
            even = multiplied(d, weights[k], even, FACTOR, PRECISION)
        else:
            odd = multiplied(d, weights[k], odd, FACTOR, PRECISION)
    return even + odd
