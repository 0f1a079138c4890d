"""What the Triton scans over time share: lanes, places in time, and maps of a carried state that compose.

A lane is one unit of one sequence. A chunked scan cuts time into chunks, composes each chunk's maps to one (first
pass), carries the state over these (`carry_kernel`), and runs the chunks again from the states so found.
"""

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

# Kinds of maps, and the numbers that each takes.
LINEAR, COMPLEX, CLAMP, MATRIX = 0, 1, 2, 3
NUMBERS = {LINEAR: 2, COMPLEX: 4, CLAMP: 4, MATRIX: 6}
CARRY_BLOCK, CARRY_TILE = 32, 8
# Lanes from which programs of four warps fill 132 processors.
FULL = 132 * 1024


@triton.jit
def lanes(width, total, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """BLOCK lanes: their numbers, sequences and units, and whether they exist."""
    lane = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = lane // width
    return lane, row, lane - row * width, lane < total


@triton.jit
def steps_of(lengths, row, steps, there, RAGGED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Steps of each lane's sequence: none where no lane is."""
    n = tl.where(there, steps, 0)
    if RAGGED:
        n = tl.minimum(tl.load(lengths + row, mask=there, other=0).to(tl.int32), n)
    return n


@triton.jit
def place(s, n, REVERSE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where in time a lane's step s lies, in 64 bits; the padding stays where it is."""
    return tl.cast(tl.where(s < n, n - 1 - s, s) if REVERSE else s, tl.int64)


@triton.jit
def load(pointer, mask, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Values, 0 where masked."""
    return tl.load(pointer, mask=mask, other=0.0).to(WIDE)


@triton.jit
def load_pair(pointer, mask, PARTS: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Real and imaginary parts, 0 where masked; a real number stands for its imaginary part, which no one reads."""
    re = load(pointer, mask, WIDE)
    im = re
    if PARTS == 2:
        im = load(pointer + 1, mask, WIDE)
    return re, im


@triton.jit
def store_pair(pointer, re, im, mask, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Stores what `load_pair` loads."""
    tl.store(pointer, re.to(pointer.dtype.element_ty), mask=mask)
    if PARTS == 2:
        tl.store(pointer + 1, im.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def where_pair(condition, re, im, other, other_im, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """`tl.where` of pairs."""
    chosen = tl.where(condition, re, other)
    chosen_im = chosen
    if PARTS == 2:
        chosen_im = tl.where(condition, im, other_im)
    return chosen, chosen_im


@triton.jit
def times_pair(a, ai, b, bi, SIGN: tl.constexpr, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """a b, with SIGN = -1 conj(a) b."""
    re = a * b
    im = re
    if PARTS == 2:
        re, im = a * b - SIGN * ai * bi, a * bi + SIGN * ai * b
    return re, im


@triton.jit
def clip(x, low, high):  # type: ignore[no-untyped-def]
    """x between two bounds; NaN stays NaN."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def compose(a1, b1, a2, b2):  # type: ignore[no-untyped-def]
    """h -> a1 h + b1, then h -> a2 h + b2."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def compose_or_set(a1, b1, a2, b2):  # type: ignore[no-untyped-def]
    """As `compose`; a2 = 0 sets the state, whatever it was before: infinity and NaN too."""
    return tl.where(a2 == 0, 0.0, a1 * a2), tl.where(a2 == 0, b2, a2 * b1 + b2)


@triton.jit
def compose_complex(a1, i1, b1, j1, a2, i2, b2, j2):  # type: ignore[no-untyped-def]
    """As `compose`, (a + i·i) and (b + i·j)."""
    return a1 * a2 - i1 * i2, a1 * i2 + i1 * a2, a2 * b1 - i2 * j1 + b2, a2 * j1 + i2 * b1 + j2


@triton.jit
def compose_complex_or_set(a1, i1, b1, j1, a2, i2, b2, j2):  # type: ignore[no-untyped-def]
    """As `compose_complex`; a2 = 0 sets the state."""
    a, i, b, j = compose_complex(a1, i1, b1, j1, a2, i2, b2, j2)
    sets = (a2 == 0) & (i2 == 0)
    return tl.where(sets, 0.0, a), tl.where(sets, 0.0, i), tl.where(sets, b2, b), tl.where(sets, j2, j)


@triton.jit
def compose_clamp(a1, b1, l1, h1, a2, b2, l2, h2):  # type: ignore[no-untyped-def]
    """h -> clip(a1 h + b1, l1, h1), then the same with a2, b2, l2, h2."""
    low, high = _bounds(l1, h1, a2, b2, l2, h2)
    return a1 * a2, a2 * b1 + b2, low, high


@triton.jit
def compose_clamp_or_set(a1, b1, l1, h1, a2, b2, l2, h2):  # type: ignore[no-untyped-def]
    """As `compose_clamp`; a2 = 0 sets the state."""
    low, high = _bounds(l1, h1, a2, b2, l2, h2)
    a, b = compose_or_set(a1, b1, a2, b2)
    return a, b, low, high


@triton.jit
def _bounds(l1, h1, a2, b2, l2, h2):  # type: ignore[no-untyped-def]
    # Bounds may be infinite, and 0 times infinity is NaN.
    e = a2 * tl.where(a2 == 0, 0.0, l1) + b2
    f = a2 * tl.where(a2 == 0, 0.0, h1) + b2
    low = tl.minimum(e, f, propagate_nan=tl.PropagateNan.ALL)
    high = tl.maximum(e, f, propagate_nan=tl.PropagateNan.ALL)
    return clip(low, l2, h2), clip(high, l2, h2)


@triton.jit
def compose_matrix(a1, b1, c1, d1, x1, y1, a2, b2, c2, d2, x2, y2):  # type: ignore[no-untyped-def]
    """(h, c) -> [[a1, b1], [c1, d1]] (h, c) + (x1, y1), then the same with a2 ... y2."""
    return (
        a2 * a1 + b2 * c1,
        a2 * b1 + b2 * d1,
        c2 * a1 + d2 * c1,
        c2 * b1 + d2 * d1,
        a2 * x1 + b2 * y1 + x2,
        c2 * x1 + d2 * y1 + y2,
    )


@triton.jit
def compose_matrix_or_set(a1, b1, c1, d1, x1, y1, a2, b2, c2, d2, x2, y2):  # type: ignore[no-untyped-def]
    """As `compose_matrix`; a second matrix of zeros sets the state."""
    a, b, c, d, x, y = compose_matrix(a1, b1, c1, d1, x1, y1, a2, b2, c2, d2, x2, y2)
    sets = (a2 == 0) & (b2 == 0) & (c2 == 0) & (d2 == 0)
    a, b = tl.where(sets, 0.0, a), tl.where(sets, 0.0, b)
    c, d = tl.where(sets, 0.0, c), tl.where(sets, 0.0, d)
    return a, b, c, d, tl.where(sets, x2, x), tl.where(sets, y2, y)


@triton.jit
def apply(a, b, h, SETS: tl.constexpr):  # type: ignore[no-untyped-def]
    """a h + b; with SETS, b where a = 0, whatever h."""
    new = a * h + b
    if SETS:
        new = tl.where(a == 0, b, new)
    return new


@triton.jit
def apply_complex(a, i, b, j, h, k, SETS: tl.constexpr):  # type: ignore[no-untyped-def]
    """As `apply`, (a + i·i) (h + i·k) + (b + i·j)."""
    new, imaginary = a * h - i * k + b, a * k + i * h + j
    if SETS:
        sets = (a == 0) & (i == 0)
        new, imaginary = tl.where(sets, b, new), tl.where(sets, j, imaginary)
    return new, imaginary


@triton.jit
def apply_matrix(a, b, c, d, x, y, h, k, SETS: tl.constexpr):  # type: ignore[no-untyped-def]
    """As `apply`, [[a, b], [c, d]] (h, k) + (x, y)."""
    new, second = a * h + b * k + x, c * h + d * k + y
    if SETS:
        sets = (a == 0) & (b == 0) & (c == 0) & (d == 0)
        new, second = tl.where(sets, x, new), tl.where(sets, y, second)
    return new, second


@triton.jit
def _maps(maps, first, chunks, count, total, lane, NUMBERS: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    tile = ()
    for i in tl.static_range(TILE):
        values = ()
        for k in tl.static_range(NUMBERS):
            at = (tl.cast(k, tl.int64) * chunks + first + i) * total + lane
            values = values + (tl.load(maps + at, mask=first + i < count, other=0.0),)
        tile = tile + (values,)
    return tile


@triton.jit(do_not_specialize=["chunks", "total"])  # type: ignore[misc, unused-ignore]
def carry_kernel(  # type: ignore[no-untyped-def]
    maps, start, before, last, chunks, total,
    KIND: tl.constexpr, NUMBERS: tl.constexpr, SETS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The state before each chunk, and after all.

    maps (NUMBERS, chunks, total), start and last (1 | 2, total), before (1 | 2, chunks, total).
    """
    total = tl.cast(total, tl.int64)
    lane, _, _, there = lanes(1, total, BLOCK)
    count = tl.where(there, chunks, 0)
    h = tl.load(start + lane, mask=there, other=0.0)
    k = h
    if KIND == 1 or KIND == 3:
        k = tl.load(start + total + lane, mask=there, other=0.0)
    ahead = _maps(maps, 0, chunks, count, total, lane, NUMBERS, TILE)
    for first in range(0, chunks, TILE):
        now = ahead
        ahead = _maps(maps, first + TILE, chunks, count, total, lane, NUMBERS, TILE)
        for i in tl.static_range(TILE):
            live = first + i < count
            at = before + tl.cast(first + i, tl.int64) * total + lane
            tl.store(at, h, mask=live)
            m = now[i]
            if KIND == 1 or KIND == 3:
                tl.store(at + chunks * total, k, mask=live)
            if KIND == 0:
                new = apply(m[0], m[1], h, SETS)
            elif KIND == 2:
                new = clip(apply(m[0], m[1], h, SETS), m[2], m[3])
            else:
                if KIND == 1:
                    new, second = apply_complex(m[0], m[1], m[2], m[3], h, k, SETS)
                else:
                    new, second = apply_matrix(m[0], m[1], m[2], m[3], m[4], m[5], h, k, SETS)
                k = tl.where(live, second, k)
            h = tl.where(live, new, h)
    tl.store(last + lane, h, mask=there)
    if KIND == 1 or KIND == 3:
        tl.store(last + total + lane, k, mask=there)


def carry(maps: Tensor, start: Tensor, kind: int, sets: bool) -> tuple[Tensor, Tensor]:
    """The states before each chunk (1 | 2, chunks, lanes) and after all (1 | 2, lanes).

    Args:
        maps: (NUMBERS[kind], chunks, lanes), each chunk's map.
        start: (1 | 2, lanes), the states before the first chunk.
        kind: LINEAR, COMPLEX, CLAMP or MATRIX.
        sets: whether a map without slope sets the state, even one that is not finite.
    """
    before = maps.new_empty((start.shape[0], *maps.shape[1:]))
    last = torch.empty_like(start)
    carry_kernel[(triton.cdiv(maps.shape[2], CARRY_BLOCK),)](
        maps, start, before, last, maps.shape[1], maps.shape[2],
        kind, maps.shape[0], sets, CARRY_TILE, CARRY_BLOCK, num_warps=1,
    )  # fmt: skip
    return before, last


def lane_block(total: int) -> dict[str, int]:
    """Lanes and warps of a program with one lane a thread."""
    # One warp a program spreads few lanes over most processors; four hide more latency once these are full.
    warps = 1 if total < FULL else 4
    return {"BLOCK": 32 * warps, "num_warps": warps}


def flags(given: Tensor | None, other: Tensor) -> Tensor:
    """Episode borders as bytes; another tensor, which is not read, where there are none."""
    return other if given is None else given.contiguous().view(torch.uint8)


def strides(t: Tensor) -> tuple[int, ...]:
    """Strides, 0 along axes of one element, so that these stand for any number."""
    return tuple(0 if n == 1 else step for n, step in zip(t.shape, t.stride(), strict=True))
