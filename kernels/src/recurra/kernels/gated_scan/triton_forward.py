"""The loop over time of every gated cell in one Triton kernel."""

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

from recurra.kernels.gated_scan.triton_cells import cell_step
from recurra.kernels.gated_scan.triton_tiles import (
    apart,
    barrier,
    keep,
    load_bias,
    load_matrix,
    load_rows,
    load_state,
    multiplied,
    places,
    select,
    store_rows,
    store_state,
    sums,
    widened,
    within,
)
from recurra.kernels.gpu_math import sigmoid


# Numbers that differ from call to call and would otherwise each be compiled for.
@triton.jit(do_not_specialize=["batch", "steps", "skipped", "first", "count"])  # type: ignore[misc, unused-ignore]
def forward_kernel(  # type: ignore[no-untyped-def]
    wx, r, bias, projection, h0, c0, n0, m0, lengths, reset, product, held, arrivals,
    y, h1, c1, n1, m1, gates, states,
    batch, steps, heads, skipped, first, count, wx_b, wx_t, wx_g, wx_n,
    CELL: tl.constexpr, GATES: tl.constexpr, BIASES: tl.constexpr, STATES: tl.constexpr, SAVED: tl.constexpr,
    NEW: tl.constexpr, OLD: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, OLD_TILE: tl.constexpr,
    MODE: tl.constexpr, CHUNKS: tl.constexpr, BIAS: tl.constexpr, LENGTHS: tl.constexpr, RESET: tl.constexpr,
    REVERSE: tl.constexpr, PROJECTED: tl.constexpr, GATES_KEPT: tl.constexpr, STATES_KEPT: tl.constexpr,
    WIDE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`count` steps from step `first` on of ROWS sequences and TILE units of a head; MODE as in `triton_plan.Plan`."""
    BEFORE: tl.constexpr = CELL == "gru_before" or CELL == "mgu"
    EARLY: tl.constexpr = GATES - 1 if BEFORE else GATES
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
    x_at = (rows * wx_b + head * wx_n)[:, None] + units[None, :]
    # Offsets of a sequence's steps: t is added to them as a row number.
    begin = rows * steps
    kind = wx.dtype.element_ty

    weights = load_forward(
        r, projection, heads, head, part, units, old_units,
        GATES, EARLY, NEW, OLD, TILE, OLD_TILE, MODE, CHUNKS, PROJECTED,
    )  # fmt: skip
    biases = load_bias(bias, heads, head, units, BIASES, BIAS, NEW, WIDE)
    initial = load_state(h0, c0, n0, m0, h_at, h_mask, at, mask, STATES, WIDE)
    state = initial
    zero = head * 0
    now = zero + (steps - 1 - first if REVERSE else first)
    x_next = load_rows(wx + now * wx_t, x_at, mask & within(now, length)[:, None], wx_g, GATES)
    for i in range(first, first + count):
        t = zero + (steps - 1 - i if REVERSE else i)
        live = t < length
        x = sums(widened(x_next, GATES, WIDE), biases, GATES)
        # Loaded a step ahead: nothing of it waits for h.
        then = t - 1 if REVERSE else t + 1
        x_next = load_rows(wx + then * wx_t, x_at, mask & within(then, length)[:, None], wx_g, GATES)
        known = within(t + 1 if REVERSE else t - 1, length)
        old = state
        if RESET:
            fresh = tl.load(reset + begin + t, mask=row_mask, other=0) != 0
            old = select(fresh[:, None], initial, state, STATES)
            known &= ~fresh

        if MODE == "held":
            none = tl.zeros((ROWS, TILE), dtype=WIDE)
            u = (multiplied(old[0], weights[0], none, FACTOR, PRECISION),)
            for g in tl.static_range(1, GATES):
                h = old[0]
                if g == EARLY:
                    h = h * sigmoid(x[0] + u[0])
                u = u + (multiplied(h, weights[g], none, FACTOR, PRECISION),)
        elif MODE == "shared":
            before = begin + (t + 1 if REVERSE else t - 1)
            u = shared_product(
                y, h0, weights, rows, before, known, row_mask, heads, head, kind,
                EARLY, 0, OLD, ROWS, TILE, OLD_TILE, CHUNKS, WIDE, FACTOR, PRECISION,
            )  # fmt: skip
            if BEFORE:
                tl.store(held + at, (old[0] * sigmoid(x[0] + u[0])).to(kind), mask=mask)
                barrier(arrivals + block, (2 * (i - first) + 1) * tl.num_programs(0))
                u = u + shared_product(
                    held, h0, weights, rows, rows, row_mask, row_mask, heads, head, kind,
                    1, CHUNKS, OLD, ROWS, TILE, OLD_TILE, CHUNKS, WIDE, FACTOR, PRECISION,
                )  # fmt: skip
        else:
            p_at = ((head * batch + rows) * GATES)[:, None] * NEW + units[None, :]
            u = widened(load_rows(product, p_at, mask, NEW, GATES), GATES, WIDE)
        if CELL == "gru":
            u = (u[0], u[1], u[2] + biases[3])

        new, gate = cell_step(x, u, old, CELL)
        if PROJECTED:
            none = tl.zeros((ROWS, OLD_TILE), dtype=WIDE)
            new = (multiplied(new[0], weights[GATES], none, FACTOR, PRECISION), new[1])
        state = select(live[:, None], new, state, STATES)

        y_at = places(begin + t, 1, heads, head, old_units, OLD)
        tl.store(y + y_at, tl.where(live[:, None], new[0], 0.0).to(kind), mask=h_mask)
        if GATES_KEPT:
            g_at = places(begin + t, SAVED, heads, head, units, NEW)
            store_rows(gates, g_at, mask, heads * NEW, keep(live[:, None], gate, SAVED), SAVED)
        if STATES_KEPT:
            s_at = places(begin + t, STATES - 1, heads, head, units, NEW)
            store_rows(states, s_at, mask, heads * NEW, keep(live[:, None], new[1:], STATES - 1), STATES - 1)
        # Nested: together they would be a condition of the running program.
        if MODE == "shared":  # noqa: SIM102
            if i + 1 < first + count:
                barrier(arrivals + block, (i + 1 - first) * (2 if BEFORE else 1) * tl.num_programs(0))
    store_state(h1, c1, n1, m1, h_at, h_mask, at, mask, state, STATES)


@triton.jit
def load_forward(  # type: ignore[no-untyped-def]
    r, projection, heads, head, part, units, old_units,
    GATES: tl.constexpr, EARLY: tl.constexpr, NEW: tl.constexpr, OLD: tl.constexpr, TILE: tl.constexpr,
    OLD_TILE: tl.constexpr, MODE: tl.constexpr, CHUNKS: tl.constexpr, PROJECTED: tl.constexpr,
):  # fmt: skip
    """What h is multiplied by.

    "held": a matrix (old, new) for each gate, then that of the projection. "shared": for each chunk of old units, the
    matrices of the EARLY gates side by side, then those of a candidate that waits for them. "given": nothing.
    """
    if MODE == "held":
        out = (load_matrix(r + head * NEW * OLD, old_units, OLD, units, NEW, 1, OLD),)
        for g in tl.static_range(1, GATES):
            matrix = r + (g * heads + head) * NEW * OLD
            out = out + (load_matrix(matrix, old_units, OLD, units, NEW, 1, OLD),)
        if PROJECTED:
            matrix = projection + head * OLD * NEW
            out = out + (load_matrix(matrix, units, NEW, old_units, OLD, 1, NEW),)
        return out
    elif MODE == "shared":
        out = (load_chunk(r, heads, head, part, 0, 0, EARLY, NEW, OLD, TILE, OLD_TILE),)
        for k in tl.static_range(1, CHUNKS):
            out = out + (load_chunk(r, heads, head, part, k, 0, EARLY, NEW, OLD, TILE, OLD_TILE),)
        for k in tl.static_range(CHUNKS if EARLY < GATES else 0):
            out = out + (load_chunk(r, heads, head, part, k, EARLY, 1, NEW, OLD, TILE, OLD_TILE),)
        return out
    else:
        return (0,)


@triton.jit
def load_chunk(  # type: ignore[no-untyped-def]
    r, heads, head, part, k, first, COUNT: tl.constexpr, NEW: tl.constexpr, OLD: tl.constexpr, TILE: tl.constexpr,
    OLD_TILE: tl.constexpr,
):  # fmt: skip
    """The k-th chunk of old units of COUNT gates from `first` on, side by side, padded to a power of two."""
    side: tl.constexpr = 4 if COUNT == 3 else COUNT
    column = tl.arange(0, side * TILE)
    gate, unit = column // TILE, part * TILE + column % TILE
    old = k * OLD_TILE + tl.arange(0, OLD_TILE)[:, None]
    mask = ((unit < NEW) & (gate < COUNT))[None, :] & (old < OLD)
    return tl.load(r + (((first + gate) * heads + head) * NEW + unit)[None, :] * OLD + old, mask=mask, other=0.0)


@triton.jit
def shared_product(  # type: ignore[no-untyped-def]
    y, h0, weights, rows, before, known, row_mask, heads, head, kind,
    COUNT: tl.constexpr, WEIGHT: tl.constexpr, OLD: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    OLD_TILE: tl.constexpr, CHUNKS: tl.constexpr, WIDE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """U h of COUNT gates, whose chunks are `weights` from WEIGHT on; h from y where `known`, else the initial state."""
    side: tl.constexpr = 4 if COUNT == 3 else COUNT
    even = tl.zeros((ROWS, side * TILE), dtype=WIDE)
    odd = tl.zeros((ROWS, side * TILE), dtype=WIDE)
    y_at, h_at = (before * heads + head)[:, None] * OLD, (rows * heads + head)[:, None] * OLD
    for k in tl.static_range(CHUNKS):
        old = k * OLD_TILE + tl.arange(0, OLD_TILE)[None, :]
        inside = old < OLD
        # Past the first-level cache, which does not see what other programs write.
        h = tl.load(y + y_at + old, mask=known[:, None] & inside, other=0.0, cache_modifier=".cg")
        start = tl.load(h0 + h_at + old, mask=(row_mask & ~known)[:, None] & inside, other=0.0).to(kind)
        # Two chains of matrix instructions, each of half the length.
        if k % 2 == 0:
            even = multiplied(h + start, weights[WEIGHT + k], even, FACTOR, PRECISION)
        else:
            odd = multiplied(h + start, weights[WEIGHT + k], odd, FACTOR, PRECISION)
    return apart(even + odd, ROWS, TILE, side)
