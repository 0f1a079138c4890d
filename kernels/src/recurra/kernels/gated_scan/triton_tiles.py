"""What the kernels of a gated scan load, store and wait for."""

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]


@triton.jit
def load_rows(pointer, at, mask, stride, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """COUNT tiles, `stride` apart, in the dtype of the memory."""
    tiles = (tl.load(pointer + at, mask=mask, other=0.0),)
    for k in tl.static_range(1, COUNT):
        tiles = tiles + (tl.load(pointer + k * stride + at, mask=mask, other=0.0),)
    return tiles


@triton.jit
def select(where, tiles, others, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of the first where true, of the second elsewhere."""
    out = (tl.where(where, tiles[0], others[0]),)
    for k in tl.static_range(1, COUNT):
        out = out + (tl.where(where, tiles[k], others[k]),)
    return out


@triton.jit
def keep(where, tiles, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile where true, zero elsewhere."""
    out = (tl.where(where, tiles[0], 0.0),)
    for k in tl.static_range(1, COUNT):
        out = out + (tl.where(where, tiles[k], 0.0),)
    return out


@triton.jit
def sums(tiles, others, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Tile by tile, in the dtype of the wider."""
    out = (tiles[0] + others[0],)
    for k in tl.static_range(1, COUNT):
        out = out + (tiles[k] + others[k],)
    return out


@triton.jit
def widened(tiles, COUNT: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tiles in the dtype of the arithmetic."""
    out = (tiles[0].to(WIDE),)
    for k in tl.static_range(1, COUNT):
        out = out + (tiles[k].to(WIDE),)
    return out


@triton.jit
def load_state(h, c, n, m, h_at, h_mask, at, mask, STATES: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """(h,), (h, c) or (h, c, n, m)."""
    out = (tl.load(h + h_at, mask=h_mask, other=0.0).to(WIDE),)
    if STATES > 1:
        out = out + (tl.load(c + at, mask=mask, other=0.0).to(WIDE),)
    if STATES > 2:
        out = out + (tl.load(n + at, mask=mask, other=0.0).to(WIDE),)
        out = out + (tl.load(m + at, mask=mask, other=0.0).to(WIDE),)
    return out


@triton.jit
def store_state(h, c, n, m, h_at, h_mask, at, mask, state, STATES: tl.constexpr):  # type: ignore[no-untyped-def]
    """(h,), (h, c) or (h, c, n, m)."""
    tl.store(h + h_at, state[0], mask=h_mask)
    if STATES > 1:
        tl.store(c + at, state[1], mask=mask)
    if STATES > 2:
        tl.store(n + at, state[2], mask=mask)
        tl.store(m + at, state[3], mask=mask)


@triton.jit
def places(when, count, heads, head, columns, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Offsets in a (batch * time, count, head, WIDTH) tensor, of the first of `count`."""
    return (when * count * heads + head)[:, None] * WIDTH + columns[None, :]


@triton.jit
def multiplied(a, b, total, FACTOR: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """total + a @ b, a rounded to b's dtype first. FACTOR is what the product takes: b's dtype, if not interpreted."""
    return tl.dot(a.to(b.dtype).to(FACTOR), b.to(FACTOR), total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def within(t, length):  # type: ignore[no-untyped-def]
    """Whether each sequence has a step t."""
    # 0 <= t as a row of flags: the interpreter cannot combine a single flag with a row.
    return (0 * length <= t) & (t < length)


@triton.jit
def slots(part, GATES: tl.constexpr, EARLY: tl.constexpr, APART: tl.constexpr, TILE: tl.constexpr, SLOTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of the columns of a wide tile, SLOTS tiles side by side: slot, unit, gate, and whether the input has that slot.

    One tile at a time would cost each its way from the layout of memory to that of products. The EARLY gates have a
    slot each. APART: the input's part of the last gate has one of its own after them. Others are zero.
    """
    column = tl.arange(0, SLOTS * TILE)
    slot, unit = column // TILE, part * TILE + column % TILE
    if APART:
        return slot, unit, tl.where(slot == GATES, GATES - 1, slot), (slot != GATES - 1) & (slot <= GATES)
    else:
        return slot, unit, slot, slot < EARLY


@triton.jit
def load_wide_bias(  # type: ignore[no-untyped-def]
    bias, heads, head, slot, unit, gate, given,
    GATES: tl.constexpr, BIASES: tl.constexpr, BIAS: tl.constexpr, NEW: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The bias of every slot (1, column), zeros without one."""
    if BIASES > GATES:
        # The last row belongs to the recurrent part of the last gate.
        row, there = tl.where(given, gate, GATES), slot <= GATES
    else:
        row, there = gate, given
    mask = (there & (unit < NEW)) if BIAS else unit < 0
    return tl.load(bias + (row * heads + head) * NEW + unit, mask=mask, other=0.0).to(WIDE)[None, :]


@triton.jit
def load_matrix(pointer, line, lines, column, columns, LINE: tl.constexpr, COLUMN: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tile (line, column) of a matrix with these strides."""
    mask = (line < lines)[:, None] & (column < columns)[None, :]
    return tl.load(pointer + line[:, None] * LINE + column[None, :] * COLUMN, mask=mask, other=0.0)


@triton.jit
def barrier(arrivals, expected):  # type: ignore[no-untyped-def]
    """Waits until `expected` arrivals are counted, this program's own among them."""
    # The first: all threads have stored before one arrives; the last: none loads before it has seen the others.
    tl.debug_barrier()
    tl.atomic_add(arrivals, 1, sem="release", scope="gpu")
    while tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu") < expected:
        pass
    tl.debug_barrier()


@triton.jit
def together(tiles, ROWS: tl.constexpr, TILE: tl.constexpr, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """One tile in which COUNT lie side by side, padded to a power of two by the last."""
    if COUNT == 1:
        return tiles[0]
    elif COUNT == 2:
        return tl.reshape(tl.permute(tl.join(tiles[0], tiles[1]), (0, 2, 1)), (ROWS, 2 * TILE))
    else:
        four = tl.join(tl.join(tiles[0], tiles[2]), tl.join(tiles[1], tiles[COUNT - 1]))
        return tl.reshape(tl.permute(four, (0, 2, 3, 1)), (ROWS, 4 * TILE))


@triton.jit
def store_together(  # type: ignore[no-untyped-def]
    pointer, when, heads, head, part, row_mask, tiles,
    COUNT: tl.constexpr, NEW: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """COUNT tiles in a (batch * time, COUNT, head, NEW) tensor."""
    side: tl.constexpr = 4 if COUNT == 3 else COUNT
    column = tl.arange(0, side * TILE)
    slot, unit = column // TILE, part * TILE + column % TILE
    at = (when * COUNT * heads + head)[:, None] * NEW + (slot * heads * NEW + unit)[None, :]
    mask = row_mask[:, None] & ((slot < COUNT) & (unit < NEW))[None, :]
    tl.store(pointer + at, together(tiles, ROWS, TILE, COUNT).to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def apart(wide, ROWS: tl.constexpr, TILE: tl.constexpr, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """COUNT tiles out of one in which they lie side by side, padded to a power of two."""
    if COUNT == 1:
        return (wide,)
    elif COUNT == 2:
        a, b = tl.split(tl.permute(tl.reshape(wide, (ROWS, 2, TILE)), (0, 2, 1)))
        return (a, b)
    else:
        even, odd = tl.split(tl.permute(tl.reshape(wide, (ROWS, 2, 2, TILE)), (0, 3, 1, 2)))
        a, c = tl.split(even)
        b, d = tl.split(odd)
        return (a, b, c, d)
