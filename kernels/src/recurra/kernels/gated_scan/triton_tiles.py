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
def store_rows(pointer, at, mask, stride, tiles, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first COUNT tiles, `stride` apart."""
    for k in tl.static_range(COUNT):
        tl.store(pointer + k * stride + at, tiles[k].to(pointer.dtype.element_ty), mask=mask)


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
def load_bias(  # type: ignore[no-untyped-def]
    bias, heads, head, units, BIASES: tl.constexpr, BIAS: tl.constexpr, NEW: tl.constexpr, WIDE: tl.constexpr
):
    """Each row of the bias (1, unit), zeros without one."""
    mask = units < NEW if BIAS else units < 0
    at = head * NEW + units
    return widened(load_rows(bias, at[None, :], mask[None, :], heads * NEW, BIASES), BIASES, WIDE)


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
