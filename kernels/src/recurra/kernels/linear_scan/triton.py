"""CUDA backend: one lane a unit of a sequence, or, for few lanes and many steps, chunks of time; README.md."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from recurra.kernels.gpu_scan import (
    COMPLEX,
    LINEAR,
    NUMBERS,
    carry,
    flags,
    lane_block,
    lanes,
    load_pair,
    place,
    steps_of,
    store_pair,
    strides,
    times_pair,
    where_pair,
)
from recurra.kernels.linear_scan import triton_chunks
from recurra.kernels.registry import measured_costs
from recurra.kernels.sequences import wide

# Steps that a lane loads ahead, by the bytes of a value: forward with a fixed and a varying a, backward likewise.
AHEAD = {4: (16, 12, 8, 6), 8: (8, 6, 4, 3), 16: (4, 3, 2, 2)}
# Steps of a chunk, bytes of its lanes forward and backward, and warps.
CHUNK, FORWARD_BYTES, BACKWARD_BYTES, WARPS = 128, 64, 32, 4


@triton.jit
def _ahead(  # type: ignore[no-untyped-def]
    a, b, reset, first, n, a_step, b_step,
    REVERSE: tl.constexpr, RESET: tl.constexpr, FIXED: tl.constexpr,
    PARTS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    values, fresh = (), ()
    for i in tl.static_range(TILE):
        live = first + i < n
        t = place(first + i, n, REVERSE)
        values = values + load_pair(b + t * b_step, live, PARTS, WIDE)
        if not FIXED:
            values = values + load_pair(a + t * a_step, live, PARTS, WIDE)
        if RESET:
            fresh = fresh + (tl.load(reset + t, mask=live, other=0) != 0,)
    return values, fresh


@triton.jit(do_not_specialize=["steps", "total"])  # type: ignore[misc, unused-ignore]
def forward_lanes(  # type: ignore[no-untyped-def]
    a, b, h0, lengths, reset, h, last, steps, width, total,
    a_row, a_step, a_unit, b_row, b_step, b_unit,
    REVERSE: tl.constexpr, RAGGED: tl.constexpr, RESET: tl.constexpr, FIXED: tl.constexpr,
    PARTS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """h after every step, and the last, of BLOCK lanes."""
    lane, row, unit, there = lanes(width, total, BLOCK)
    n = steps_of(lengths, row, steps, there, RAGGED)
    limit = tl.where(there, steps, 0)
    a += row * a_row + unit * a_unit
    b += row * b_row + unit * b_unit
    reset += row * steps
    h += (row * steps * width + unit) * PARTS
    start, starti = load_pair(h0 + lane * PARTS, there, PARTS, WIDE)
    m, mi = load_pair(a, there & FIXED, PARTS, WIDE)
    old, oldi = start, starti
    each: tl.constexpr = 2 if FIXED else 4
    ahead, ahead_fresh = _ahead(a, b, reset, 0, n, a_step, b_step, REVERSE, RESET, FIXED, PARTS, WIDE, TILE)
    for first in range(0, steps, TILE):
        now, fresh = ahead, ahead_fresh
        ahead, ahead_fresh = _ahead(
            a, b, reset, first + TILE, n, a_step, b_step, REVERSE, RESET, FIXED, PARTS, WIDE, TILE
        )  # fmt: skip
        for i in tl.static_range(TILE):
            live = first + i < n
            if RESET:
                old, oldi = where_pair(fresh[i], start, starti, old, oldi, PARTS)
            if not FIXED:
                m, mi = now[each * i + 2], now[each * i + 3]
            new, newi = times_pair(m, mi, old, oldi, 1, PARTS)
            new, newi = new + now[each * i], newi + now[each * i + 1]
            old, oldi = where_pair(live, new, newi, old, oldi, PARTS)
            new, newi = where_pair(live, new, newi, 0.0, 0.0, PARTS)
            to = place(first + i, n, REVERSE) * (width * PARTS)
            store_pair(h + to, new, newi, first + i < limit, PARTS)
    store_pair(last + lane * PARTS, old, oldi, there, PARTS)


@triton.jit
def _behind(  # type: ignore[no-untyped-def]
    a, h, reset, dh, first, n, a_step, h_step, g_step,
    REVERSE: tl.constexpr, RESET: tl.constexpr, FIXED: tl.constexpr, WANTED: tl.constexpr,
    PARTS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    values, fresh = (), ()
    for i in tl.static_range(TILE):
        live = first + i < n
        t = place(first + i, n, not REVERSE)
        values = values + load_pair(dh + t * g_step, live, PARTS, WIDE)
        if not FIXED:
            values = values + load_pair(a + t * a_step, live, PARTS, WIDE)
        if WANTED:
            before = (t + 1 if REVERSE else t - 1) * h_step
            values = values + load_pair(h + before, first + i < n - 1, PARTS, WIDE)
        if RESET:
            fresh = fresh + (tl.load(reset + t, mask=live, other=0) != 0,)
    return values, fresh


@triton.jit(do_not_specialize=["steps", "total"])  # type: ignore[misc, unused-ignore]
def backward_lanes(  # type: ignore[no-untyped-def]
    a, h, h0, lengths, reset, dh, d_last, da, db, dh0, steps, width, total,
    a_row, a_step, a_unit, g_row, g_step, g_unit,
    REVERSE: tl.constexpr, RAGGED: tl.constexpr, RESET: tl.constexpr, FIXED: tl.constexpr, WANTED: tl.constexpr,
    PARTS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of BLOCK lanes, from each sequence's last step to its first: g_s = dh_s + conj(a_(s+1)) g_(s+1)."""
    lane, row, unit, there = lanes(width, total, BLOCK)
    n = steps_of(lengths, row, steps, there, RAGGED)
    limit = tl.where(there, steps, 0)
    a += row * a_row + unit * a_unit
    dh += row * g_row + unit * g_unit
    reset += row * steps
    sequence = (row * steps * width + unit) * PARTS
    start, starti = load_pair(h0 + lane * PARTS, there, PARTS, WIDE)
    m, mi = load_pair(a, there & FIXED, PARTS, WIDE)
    carry, carryi = load_pair(d_last + lane * PARTS, there, PARTS, WIDE)
    first_state, first_statei = tl.zeros_like(carry), tl.zeros_like(carry)
    sums, sumsi = tl.zeros_like(carry), tl.zeros_like(carry)
    each: tl.constexpr = 2 + (0 if FIXED else 2) + (2 if WANTED else 0)
    step = width * PARTS
    ahead, ahead_fresh = _behind(
        a, h + sequence, reset, dh, 0, n, a_step, step, g_step, REVERSE, RESET, FIXED, WANTED, PARTS, WIDE, TILE
    )  # fmt: skip
    for first in range(0, steps, TILE):
        now, fresh = ahead, ahead_fresh
        ahead, ahead_fresh = _behind(
            a, h + sequence, reset, dh, first + TILE, n, a_step, step, g_step,
            REVERSE, RESET, FIXED, WANTED, PARTS, WIDE, TILE,
        )  # fmt: skip
        for i in tl.static_range(TILE):
            live = first + i < n
            inside = first + i < limit
            to = sequence + place(first + i, n, not REVERSE) * step
            if not FIXED:
                m, mi = now[each * i + 2], now[each * i + 3]
            g, gi = now[each * i] + carry, now[each * i + 1] + carryi
            if WANTED:
                begins = first + i == n - 1
                if RESET:
                    begins = begins | fresh[i]
                old, oldi = where_pair(begins, start, starti, now[each * i + each - 2], now[each * i + each - 1], PARTS)
                d, di = times_pair(old, oldi, g, gi, -1, PARTS)
                d, di = where_pair(live, d, di, 0.0, 0.0, PARTS)
                if FIXED:
                    sums, sumsi = sums + d, sumsi + di
                else:
                    store_pair(da + to, d, di, inside, PARTS)
            out, outi = times_pair(m, mi, g, gi, -1, PARTS)
            carry, carryi = where_pair(live, out, outi, carry, carryi, PARTS)
            g, gi = where_pair(live, g, gi, 0.0, 0.0, PARTS)
            store_pair(db + to, g, gi, inside, PARTS)
            if RESET:
                out, outi = where_pair(fresh[i], carry, carryi, 0.0, 0.0, PARTS)
                first_state, first_statei = first_state + out, first_statei + outi
                carry, carryi = where_pair(fresh[i], 0.0, 0.0, carry, carryi, PARTS)
    store_pair(dh0 + lane * PARTS, first_state + carry, first_statei + carryi, there, PARTS)
    if FIXED and WANTED:
        store_pair(da + lane * PARTS, sums, sumsi, there, PARTS)


class _Sizes(NamedTuple):
    """What every launch takes."""

    lengths: Tensor
    reset: Tensor
    steps: int
    width: int
    total: int
    bytes: int  # of a carried value, both parts of a complex one
    options: dict[str, Any]


def chunked(lanes: int, steps: int) -> bool:
    """Whether to cut time into chunks; `costs.json` has the bounds."""
    bounds = measured_costs(__package__)["triton"]["chunked"]
    return bool(lanes <= bounds["most_lanes"] and bounds["least_steps"] <= steps <= CHUNK * 65535)


def forward(options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
    """h and the last state."""
    a, b, h0 = inputs[:3]
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    last = b.new_empty(h0.shape, dtype=wide(b.dtype))
    if last.numel():
        run = _forward_chunks if chunked(last.numel(), b.shape[1]) else _forward_lanes
        with torch.cuda.device_of(b):  # type: ignore[no-untyped-call]
            run(_parts(a), _parts(b), _parts(h0.contiguous()), _parts(h), _parts(last), _sizes(options, inputs))
    return h, last


def _forward_lanes(a: Tensor, b: Tensor, h0: Tensor, h: Tensor, last: Tensor, sizes: _Sizes) -> None:
    block = lane_block(sizes.total)
    forward_lanes[(triton.cdiv(sizes.total, block["BLOCK"]),)](
        a, b, h0, sizes.lengths, sizes.reset, h, last, sizes.steps, sizes.width, sizes.total,
        *strides(a)[:3], *strides(b)[:3],
        **sizes.options, FIXED=a.shape[1] == 1, TILE=AHEAD[sizes.bytes][a.shape[1] != 1], **block,
    )  # fmt: skip


def _forward_chunks(a: Tensor, b: Tensor, h0: Tensor, h: Tensor, last: Tensor, sizes: _Sizes) -> None:
    chunks = triton.cdiv(sizes.steps, CHUNK)
    block = FORWARD_BYTES // sizes.bytes

    def run(maps: Tensor, before: Tensor, apply: bool) -> None:
        triton_chunks.forward_chunk[(triton.cdiv(sizes.total, block), chunks)](
            a, b, h0, sizes.lengths, sizes.reset, maps, before, h, sizes.steps, sizes.width, sizes.total, chunks,
            *strides(a)[:3], *strides(b)[:3], **sizes.options, APPLY=apply, CHUNK=CHUNK, BLOCK=block, num_warps=WARPS,
        )  # fmt: skip

    last.copy_(_three_passes(run, h0, last, chunks, sizes).T.reshape(last.shape))


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Gradients of a, b and h0: the same recurrence reversed."""
    a, b, h0 = inputs[:3]
    batch, steps, _ = b.shape
    carried = wide(b.dtype)
    chunks = triton.cdiv(steps, CHUNK) if chunked(h0.numel(), steps) else 0
    shared = a.shape[0] == 1 and batch != 1
    db, dh0 = torch.empty_like(results[0]), b.new_empty((max(chunks, 1), *h0.shape), dtype=carried)
    # Where a does not change over time, a part a lane, or a lane and chunk.
    da = torch.empty_like(dh0) if a.shape[1] == 1 else b.new_empty(b.shape, dtype=carried if shared else a.dtype)
    if h0.numel():
        given = [_parts(t) for t in (a, results[0], h0.contiguous(), *gradients)]
        made = [_parts(t) for t in (da, db, dh0)]
        run = _backward_chunks if chunks else _backward_lanes
        with torch.cuda.device_of(b):  # type: ignore[no-untyped-call]
            run(given, made, _sizes(options, inputs), wanted[0])
    if a.shape[1] == 1:
        da = da.sum(0)[:, None]
    if shared:
        da = da.sum(0, keepdim=True)
    return da if wanted[0] else None, db, dh0.sum(0), None, None


def _backward_lanes(given: list[Tensor], made: list[Tensor], sizes: _Sizes, wanted: bool) -> None:
    (a, h, h0, dh, d_last), (da, db, dh0) = given, made
    block = lane_block(sizes.total)
    backward_lanes[(triton.cdiv(sizes.total, block["BLOCK"]),)](
        a, h, h0, sizes.lengths, sizes.reset, dh, d_last.contiguous(), da, db, dh0,
        sizes.steps, sizes.width, sizes.total, *strides(a)[:3], *strides(dh)[:3],
        **sizes.options, FIXED=a.shape[1] == 1, WANTED=wanted, TILE=AHEAD[sizes.bytes][2 + (a.shape[1] != 1)],
        **block,
    )  # fmt: skip


def _backward_chunks(given: list[Tensor], made: list[Tensor], sizes: _Sizes, wanted: bool) -> None:
    (a, h, h0, dh, d_last), (da, db, dh0) = given, made
    chunks = dh0.shape[0]
    block = BACKWARD_BYTES // sizes.bytes

    def run(maps: Tensor, before: Tensor, apply: bool) -> None:
        triton_chunks.backward_chunk[(triton.cdiv(sizes.total, block), chunks)](
            a, h, h0, sizes.lengths, sizes.reset, dh, maps, before, da, db, dh0,
            sizes.steps, sizes.width, sizes.total, chunks, *strides(a)[:3], *strides(dh)[:3], **sizes.options,
            FIXED=a.shape[1] == 1, WANTED=wanted, APPLY=apply, CHUNK=CHUNK, BLOCK=block, num_warps=WARPS,
        )  # fmt: skip

    _three_passes(run, d_last, dh0[0], chunks, sizes)


def _three_passes(run: Any, start: Tensor, like: Tensor, chunks: int, sizes: _Sizes) -> Tensor:
    """Runs a chunk kernel twice, and between the passes carries the state over the chunks; returns the last state."""
    kind = COMPLEX if sizes.options["PARTS"] == 2 else LINEAR
    maps = like.new_empty((NUMBERS[kind], chunks, sizes.total))
    run(maps, maps, False)
    begin = start.reshape(sizes.total, -1).T.to(like.dtype).contiguous()
    before, last = carry(maps, begin, kind, sizes.options["RESET"])
    run(maps, before, True)
    return last


def _sizes(options: Any, inputs: Any) -> _Sizes:
    _, b, h0, lengths, reset = inputs
    real = _parts(b)
    constants = {
        "REVERSE": options.reverse, "RAGGED": lengths is not None, "RESET": reset is not None,
        "PARTS": 2 if b.is_complex() else 1, "WIDE": tl.float64 if real.dtype == torch.float64 else tl.float32,
    }  # fmt: skip
    given = real if lengths is None else lengths.contiguous()
    return _Sizes(given, flags(reset, real), b.shape[1], b.shape[2], h0.numel(), wide(b.dtype).itemsize, constants)


def _parts(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
