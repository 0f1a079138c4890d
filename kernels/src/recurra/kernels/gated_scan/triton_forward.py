"""The loop over time of every gated cell in one Triton kernel."""

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

from recurra.kernels.gated_scan.triton_cells import cell_step
from recurra.kernels.gated_scan.triton_tiles import (
    apart,
    barrier,
    keep,
    load_matrix,
    load_state,
    load_wide_bias,
    multiplied,
    places,
    select,
    slots,
    store_state,
    store_together,
    within,
)
from recurra.kernels.gpu_math import sigmoid


# Numbers that differ from call to call and would otherwise each be compiled for.
@triton.jit(do_not_specialize=["batch", "steps", "skipped", "first", "count"])  # type: ignore[misc, unused-ignore]
def forward_kernel(  # type: ignore[no-untyped-def]
    wx, r, bias, projection, h0, c0, n0, m0, lengths, reset, start, product, held, arrivals,
    y, h1, c1, n1, m1, gates, states,
    batch, steps, heads, skipped, first, count, wx_b, wx_t, wx_g, wx_n,
    CELL: tl.constexpr, GATES: tl.constexpr, BIASES: tl.constexpr, STATES: tl.constexpr, SAVED: tl.constexpr,
    NEW: tl.constexpr, OLD: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, OLD_TILE: tl.constexpr,
    MODE: tl.constexpr, CHUNKS: tl.constexpr, BIAS: tl.constexpr, LENGTHS: tl.constexpr, RESET: tl.constexpr,
    REVERSE: tl.constexpr, PROJECTED: tl.constexpr, GATES_KEPT: tl.constexpr, STATES_KEPT: tl.constexpr,
    SLOTS: tl.constexpr, WIDE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`count` steps from step `first` on of ROWS sequences and TILE units of a head; MODE as in `triton_plan.Plan`."""
    BEFORE: tl.constexpr = CELL == "gru_before" or CELL == "mgu"
    EARLY: tl.constexpr = GATES - 1 if BEFORE else GATES
    APART: tl.constexpr = CELL == "gru" or CELL == "mgu_after"
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
    x_rows = rows * wx_b + head * wx_n
    slot, unit, gate_of, given = slots(part, GATES, EARLY, APART, TILE, SLOTS)
    x_at = x_rows[:, None] + (gate_of.to(tl.int64) * wx_g + unit)[None, :]
    x_mask = row_mask[:, None] & (given & (unit < NEW))[None, :]
    last_at = (x_rows + (GATES - 1) * wx_g)[:, None] + units[None, :]
    # Offsets of a sequence's steps: t is added to them as a row number.
    begin = rows * steps
    kind = wx.dtype.element_ty

    weights = load_forward(
        r, projection, heads, head, part, units, old_units,
        GATES, EARLY, SLOTS, NEW, OLD, TILE, OLD_TILE, MODE, CHUNKS, PROJECTED,
    )  # fmt: skip
    biases = load_wide_bias(bias, heads, head, slot, unit, gate_of, given, GATES, BIASES, BIAS, NEW, WIDE)
    if BEFORE:
        there = units < NEW if BIAS else units < 0
        last_bias = tl.load(bias + ((GATES - 1) * heads + head) * NEW + units, mask=there, other=0.0).to(WIDE)[None, :]
    initial = load_state(h0, c0, n0, m0, h_at, h_mask, at, mask, STATES, WIDE)
    state = initial
    zero = head * 0
    now = zero + (steps - 1 - first if REVERSE else first)
    there = within(now, length)[:, None]
    x_next = tl.load(wx + now * wx_t + x_at, mask=x_mask & there, other=0.0)
    if BEFORE:
        last_next = tl.load(wx + now * wx_t + last_at, mask=mask & there, other=0.0)
    for i in range(first, first + count):
        t = zero + (steps - 1 - i if REVERSE else i)
        live = t < length
        p = x_next.to(WIDE) + biases
        # Loaded a step ahead: nothing of it waits for h.
        then = t - 1 if REVERSE else t + 1
        there = within(then, length)[:, None]
        x_next = tl.load(wx + then * wx_t + x_at, mask=x_mask & there, other=0.0)
        if BEFORE:
            last = last_next.to(WIDE) + last_bias
            last_next = tl.load(wx + then * wx_t + last_at, mask=mask & there, other=0.0)
        known = within(t + 1 if REVERSE else t - 1, length)
        old = state
        if RESET:
            fresh = tl.load(reset + begin + t, mask=row_mask, other=0) != 0
            old = select(fresh[:, None], initial, state, STATES)
            known &= ~fresh

        if MODE == "held":
            p = apart(multiplied(old[0], weights[0], p, FACTOR, PRECISION), ROWS, TILE, SLOTS)
            if BEFORE:
                p = p + (multiplied(old[0] * sigmoid(p[0]), weights[1], last, FACTOR, PRECISION),)
        elif MODE == "shared":
            before = begin + (t + 1 if REVERSE else t - 1)
            p = shared_product(
                y, start, weights, rows, before, known, row_mask, heads, head, p,
                0, OLD, OLD_TILE, CHUNKS, FACTOR, PRECISION,
            )  # fmt: skip
            p = apart(p, ROWS, TILE, SLOTS)
            if BEFORE:
                tl.store(held + at, (old[0] * sigmoid(p[0])).to(kind), mask=mask)
                barrier(arrivals + block, (2 * (i - first) + 1) * tl.num_programs(0))
                last = shared_product(
                    held, start, weights, rows, rows, row_mask, row_mask, heads, head, last,
                    CHUNKS, OLD, OLD_TILE, CHUNKS, FACTOR, PRECISION,
                )  # fmt: skip
                p = p + (last,)
        else:
            p_at = ((head * batch + rows) * GATES)[:, None] * NEW + (slot * NEW + unit)[None, :]
            p_mask = row_mask[:, None] & ((slot < GATES) & (unit < NEW))[None, :]
            p = apart(p + tl.load(product + p_at, mask=p_mask, other=0.0), ROWS, TILE, SLOTS)

        new, gate = cell_step(p, old, CELL)
        if PROJECTED:
            none = tl.zeros((ROWS, OLD_TILE), dtype=WIDE)
            # In two parts: rounded at once it would be the largest error of a step in 16 bit.
            rest = new[0] - new[0].to(kind).to(WIDE)
            projected = multiplied(rest, weights[1], none, FACTOR, PRECISION)
            new = (multiplied(new[0], weights[1], projected, FACTOR, PRECISION), new[1])
        state = select(live[:, None], new, state, STATES)

        y_at = places(begin + t, 1, heads, head, old_units, OLD)
        tl.store(y + y_at, tl.where(live[:, None], new[0], 0.0).to(kind), mask=h_mask)
        if GATES_KEPT:
            if APART:
                # U h may leave float16, in which gates are kept; then the gate that scales it is 0 or its tanh flat.
                bounded = tl.minimum(tl.maximum(gate[SAVED - 1], -65504.0), 65504.0)
                gate = gate[: SAVED - 1] + (bounded if gates.dtype.element_ty == tl.float16 else gate[SAVED - 1],)
            gate = keep(live[:, None], gate, SAVED)
            store_together(gates, begin + t, heads, head, part, row_mask, gate, SAVED, NEW, ROWS, TILE)
        if STATES_KEPT:
            kept = keep(live[:, None], new[1:], STATES - 1)
            store_together(states, begin + t, heads, head, part, row_mask, kept, STATES - 1, NEW, ROWS, TILE)
        # Nested: together they would be a condition of the running program.
        if MODE == "shared":  # noqa: SIM102
            if i + 1 < first + count:
                barrier(arrivals + block, (i + 1 - first) * (2 if BEFORE else 1) * tl.num_programs(0))
    store_state(h1, c1, n1, m1, h_at, h_mask, at, mask, state, STATES)


@triton.jit
def load_forward(  # type: ignore[no-untyped-def]
    r, projection, heads, head, part, units, old_units,
    GATES: tl.constexpr, EARLY: tl.constexpr, SLOTS: tl.constexpr, NEW: tl.constexpr, OLD: tl.constexpr,
    TILE: tl.constexpr, OLD_TILE: tl.constexpr, MODE: tl.constexpr, CHUNKS: tl.constexpr, PROJECTED: tl.constexpr,
):  # fmt: skip
    """What h is multiplied by: for each chunk of old units the matrices (old, new) of the EARLY gates side by side.

    Then those of a candidate that waits for the gates, or that of the projection; nothing in mode "given".
    """
    if MODE == "given":
        return (0,)
    else:
        out = (load_chunk(r, heads, head, part, 0, 0, EARLY, SLOTS, NEW, OLD, TILE, OLD_TILE),)
        for k in tl.static_range(1, CHUNKS):
            out = out + (load_chunk(r, heads, head, part, k, 0, EARLY, SLOTS, NEW, OLD, TILE, OLD_TILE),)
        for k in tl.static_range(CHUNKS if EARLY < GATES else 0):
            out = out + (load_chunk(r, heads, head, part, k, EARLY, 1, 1, NEW, OLD, TILE, OLD_TILE),)
        if PROJECTED:
            matrix = projection + head * OLD * NEW
            out = out + (load_matrix(matrix, units, NEW, old_units, OLD, 1, NEW),)
        return out


@triton.jit
def load_chunk(  # type: ignore[no-untyped-def]
    r, heads, head, part, k, first, COUNT: tl.constexpr, SLOTS: tl.constexpr, NEW: tl.constexpr, OLD: tl.constexpr,
    TILE: tl.constexpr, OLD_TILE: tl.constexpr,
):  # fmt: skip
    """The k-th chunk of old units of COUNT gates from `first` on, side by side in SLOTS."""
    column = tl.arange(0, SLOTS * TILE)
    gate, unit = column // TILE, part * TILE + column % TILE
    old = k * OLD_TILE + tl.arange(0, OLD_TILE)[:, None]
    mask = ((unit < NEW) & (gate < COUNT))[None, :] & (old < OLD)
    return tl.load(r + (((first + gate) * heads + head) * NEW + unit)[None, :] * OLD + old, mask=mask, other=0.0)


@triton.jit
def shared_product(  # type: ignore[no-untyped-def]
    y, start, weights, rows, before, known, row_mask, heads, head, even,
    WEIGHT: tl.constexpr, OLD: tl.constexpr, OLD_TILE: tl.constexpr, CHUNKS: tl.constexpr, FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`even` + U h by the chunks of `weights` from WEIGHT on; h from y where `known`, else its `start`."""
    odd = tl.zeros_like(even)
    at = tl.where(known, y + (before * heads + head) * OLD, start + (rows * heads + head) * OLD)
    # What the choice between two pointers loses: rows that are aligned for wide loads.
    if OLD % 16 == 0:
        at = tl.multiple_of(at, 16)
    for k in tl.static_range(CHUNKS):
        old = k * OLD_TILE + tl.arange(0, OLD_TILE)[None, :]
        # Past the first-level cache, which does not see what other programs write.
        h = tl.load(at[:, None] + old, mask=row_mask[:, None] & (old < OLD), other=0.0, cache_modifier=".cg")
        # Two chains of matrix instructions, each of half the length.
        if k % 2 == 0:
            even = multiplied(h, weights[WEIGHT + k], even, FACTOR, PRECISION)
        else:
            odd = multiplied(h, weights[WEIGHT + k], odd, FACTOR, PRECISION)
    return even + odd
