"""CPU backend: windows over dense tiles of 32 channels, eight taps and four steps at a time in registers; README.md."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recurra.kernels.jit import array, jit, jit_distinct, lengths_array, over_ranges
from recurra.kernels.memory_conv.layout import mirror
from recurra.kernels.sequences import wide

# Channels and steps of a tile: with its window of about 40 taps it fits the smallest cache.
BLOCK, STEPS = 32, 96
# An unsigned index needs no test for counting from the end, which would keep LLVM from vectorising.
UNSIGNED_BLOCK = np.uint64(BLOCK)
# A thread is worth waking for this many products.
GRAIN = 1 << 20


def _inlined(function: Any) -> Any:
    return jit(function, forceinline=True)


@_inlined
def _cover(total, size):  # type: ignore[no-untyped-def]
    # How many pieces of this size cover the total.
    return -(-total // size)


@_inlined
def _tap(x, w, k, c, y):  # type: ignore[no-untyped-def]
    y0, y1, y2, y3 = y
    w_k, c = w[k * BLOCK + c], k * BLOCK + c
    return y0 + x[c] * w_k, y1 + x[c + BLOCK] * w_k, y2 + x[c + 2 * BLOCK] * w_k, y3 + x[c + 3 * BLOCK] * w_k


@_inlined
def _taps2(x, w, k, c, y):  # type: ignore[no-untyped-def]
    return _tap(x, w, k + 1, c, _tap(x, w, k, c, y))


@_inlined
def _taps4(x, w, k, c, y):  # type: ignore[no-untyped-def]
    return _taps2(x, w, k + 2, c, _taps2(x, w, k, c, y))


@_inlined
def _taps8(x, w, k, c, y):  # type: ignore[no-untyped-def]
    return _taps4(x, w, k + 4, c, _taps4(x, w, k, c, y))


@_inlined
def _four(y, c):  # type: ignore[no-untyped-def]
    return y[c], y[c + BLOCK], y[c + 2 * BLOCK], y[c + 3 * BLOCK]


@_inlined
def _store(y, c, four):  # type: ignore[no-untyped-def]
    y[c], y[c + BLOCK], y[c + 2 * BLOCK], y[c + 3 * BLOCK] = four


@jit_distinct
def _multiply(x, w, y, rows, taps):  # type: ignore[no-untyped-def]
    # y[r] += sum over k < taps of x[r + k] w[k], on flat tiles of BLOCK columns; rows are rounded up to four.
    for r in range(0, rows, 4):
        y_r, k = y[r * BLOCK :], 0
        while taps - k >= 8:
            x_k, w_k = x[(r + k) * BLOCK :], w[k * BLOCK :]
            for c in range(BLOCK):
                _store(y_r, c, _taps8(x_k, w_k, 0, c, _four(y_r, c)))
            k += 8
        if taps - k >= 4:
            x_k, w_k = x[(r + k) * BLOCK :], w[k * BLOCK :]
            for c in range(BLOCK):
                _store(y_r, c, _taps4(x_k, w_k, 0, c, _four(y_r, c)))
            k += 4
        while k < taps:
            x_k, w_k = x[(r + k) * BLOCK :], w[k * BLOCK :]
            for c in range(BLOCK):
                _store(y_r, c, _tap(x_k, w_k, 0, c, _four(y_r, c)))
            k += 1


@jit_distinct
def _pack(tile, x, past, source, dense, first, step, rows, length):  # type: ignore[no-untyped-def]
    # Steps first, first + step, ... of the channels `source`; zero where the sequence is not.
    columns, before = np.uint64(source.size), past.shape[0]
    start = min(max(_cover(-first, step), 0), rows)  # the first row within x
    stop = max(min(_cover(length - first, step), rows), start)  # the first row past its end
    for i in range(start):
        t, place = first + i * step + before, np.uint64(i * BLOCK)
        for c in range(columns):
            tile[place + c] = past[t, source[c]] if t >= 0 else 0
    if dense and columns == UNSIGNED_BLOCK:
        base = source[0]
        for i in range(start, stop):
            t, place = np.uint64(first + i * step), np.uint64(i * BLOCK)
            for c in range(UNSIGNED_BLOCK):
                tile[place + c] = x[t, base + c]
    else:
        for i in range(start, stop):
            t, place = np.uint64(first + i * step), np.uint64(i * BLOCK)
            for c in range(columns):
                tile[place + c] = x[t, source[c]]
    tile[stop * BLOCK : rows * BLOCK] = 0


@jit_distinct
def _unpack(sums, y, first, step, rows, o, size, more):  # type: ignore[no-untyped-def]
    base, columns = np.uint64(o), np.uint64(size)
    for i in range(rows):
        t, place = np.uint64(first + i * step), np.uint64(i * BLOCK)
        if more:
            for c in range(columns):
                y[t, base + c] += sums[place + c]
        elif columns == UNSIGNED_BLOCK:
            for c in range(UNSIGNED_BLOCK):
                y[t, base + c] = sums[place + c]
        else:
            for c in range(columns):
                y[t, base + c] = sums[place + c]


@jit
def _part(item, steps, dilation):  # type: ignore[no-untyped-def]
    # Which batch row, first step and number of rows, a dilation apart, make this part of the work: a dilated window is
    # as many undilated ones as its dilation.
    parts = _cover(_cover(steps, dilation), STEPS)
    row, place = item // (parts * dilation), item % (parts * dilation)
    first = place % dilation + place // dilation * STEPS * dilation
    return row, first, min(STEPS, max(_cover(steps - first, dilation), 0))


@jit
def _windows(items, x, past, weight, source, dense, y, o, more, shift, dilation, lengths, limits, tiles):  # type: ignore[no-untyped-def]
    # Outputs o, o + 1, ... of y, one for each entry of `source`.
    sums, _, tile = tiles
    taps = weight.shape[1] // BLOCK
    for item in range(items[0], items[1]):
        row, t, rows = _part(item, y.shape[1], dilation)
        live = min(max(_cover(limits[row] - t, dilation), 0), rows)
        for block in range(weight.shape[0]):
            chosen = source[block * BLOCK : (block + 1) * BLOCK]
            sums[: rows * BLOCK] = 0
            if live > 0:
                _pack(tile, x[row], past[row], chosen, dense, t - shift, dilation, live + taps - 1, lengths[row])
                _multiply(tile, weight[block], sums, live, taps)
                sums[live * BLOCK : rows * BLOCK] = 0
            _unpack(sums, y[row], t, dilation, rows, o + block * BLOCK, chosen.size, more)


@jit
def _weights(blocks, x, past, dy, source, every, dense, o, d_weight, shift, dilation, lengths, tiles):  # type: ignore[no-untyped-def]
    # A window over x whose weights are dy: the same product with the roles of taps and steps exchanged.
    part, dy_tile, tile = tiles
    batch, steps, _ = dy.shape
    taps = d_weight.shape[1] // BLOCK
    d_weight[blocks[0] : blocks[1]] = 0
    for item in range(batch * dilation * _cover(_cover(steps, dilation), STEPS)):
        row, t, rows = _part(item, steps, dilation)
        rows = min(max(_cover(lengths[row] - t, dilation), 0), rows)
        for block in range(blocks[0], blocks[1]):
            chosen, first = source[block * BLOCK : (block + 1) * BLOCK], o + block * BLOCK
            outputs = every[first : first + chosen.size]
            _pack(tile, x[row], past[row], chosen, dense, t - shift, dilation, rows + taps - 1, lengths[row])
            _pack(dy_tile, dy[row], past[row], outputs, True, t, dilation, rows, lengths[row])
            part[:] = 0
            _multiply(tile, dy_tile, part, taps, rows)
            d_weight[block] += part[: taps * BLOCK]


def _tiles(taps: int, kind: torch.dtype) -> Any:
    # Zeros, for rows and columns that nothing fills; torch's memory begins at a cache line, numba's need not.
    rows = max(taps, STEPS) + 4
    whole = torch.zeros((3 * rows + STEPS + taps) * BLOCK, dtype=kind).numpy()
    return whole[: rows * BLOCK], whole[rows * BLOCK : 2 * rows * BLOCK], whole[2 * rows * BLOCK :]


class _Window(NamedTuple):
    """Where a window reads: tap k of step t is step t - shift + k dilation; steps of the input and of the output."""

    shift: int
    dilation: int
    lengths: Any
    limits: Any


class _Buffers(NamedTuple):
    """Arrays (batch, time, channel) that stand for their concatenation, and the steps before each."""

    arrays: list[Any]
    past: list[Any]

    @property
    def widths(self) -> list[int]:
        return [x.shape[2] for x in self.arrays]


class _Piece(NamedTuple):
    """Outputs start to stop, whose member-th channels all lie in one buffer of the input."""

    member: int
    start: int
    stop: int
    out: int  # the buffer of the outputs
    y_start: int  # the first output's place in it
    x: int  # the buffer of the input
    source: Any  # each output's channel in it
    dense: bool  # whether these are neighbours


def _buffers(given: Sequence[Tensor], past: Tensor | None, kind: torch.dtype) -> _Buffers:
    arrays = [array(x, kind) for x in given]
    if past is None:
        return _Buffers(arrays, [np.empty((x.shape[0], 0, x.shape[2]), x.dtype) for x in arrays])
    return _Buffers(arrays, [array(part, kind) for part in torch.split(past, [x.shape[2] for x in given], 2)])


def _pieces(outs: list[int], ins: list[int], members: int) -> Iterator[_Piece]:
    share = sum(outs) * members // sum(ins)  # outputs of a group
    ends = product(range(members), enumerate(accumulate(outs)), enumerate(accumulate(ins)))
    for member, (out, y_end), (x, x_end) in ends:
        y_first, x_first = y_end - outs[out], x_end - ins[x]
        start = max(y_first, -(-(x_first - member) // members) * share)
        stop = min(y_end, -(-(x_end - member) // members) * share)
        if start < stop:
            source = (np.arange(start, stop) // share * members + member - x_first).astype(np.uint64)
            yield _Piece(member, start, stop, out, start - y_first, x, source, members == share == 1)


def _convolve(x: _Buffers, weight: Tensor, widths: list[int], outs: list[Tensor | None], window: _Window) -> None:
    # Fills those outs, of these widths, that are wanted; weight (output, member, tap).
    _, members, taps = weight.shape
    for piece in _pieces(widths, x.widths, members):
        y = outs[piece.out]
        if y is None:
            continue
        w = _blocks(weight[piece.start : piece.stop, piece.member])

        def work(first: int, last: int, piece: _Piece = piece, y: Tensor = y, w: Any = w) -> None:
            _windows(
                (first, last), x.arrays[piece.x], x.past[piece.x], w, piece.source, piece.dense,
                y.numpy(), piece.y_start, piece.member > 0, *window, _tiles(taps, weight.dtype),
            )  # fmt: skip

        parts = window.dilation * _cover(_cover(y.shape[1], window.dilation), STEPS)
        over_ranges(work, y.shape[0] * parts, max(GRAIN // (STEPS * taps * len(piece.source)), 1))


def _blocks(weight: Tensor) -> Any:
    # (output, tap) -> (block, tap * BLOCK), zero beyond the last output.
    blocks = -(-weight.shape[0] // BLOCK)
    missing = blocks * BLOCK - weight.shape[0]
    padded = torch.nn.functional.pad(weight, (0, 0, 0, missing)) if missing else weight
    return padded.reshape(blocks, BLOCK, -1).transpose(1, 2).reshape(blocks, -1).numpy()


def _weight_gradient(x: _Buffers, dy: Any, shape: torch.Size, window: _Window, kind: torch.dtype) -> Tensor:
    result, every = torch.empty(shape, dtype=kind), np.arange(shape[0]).astype(np.uint64)
    for piece in _pieces([shape[0]], x.widths, shape[1]):
        blocks = -(-len(piece.source) // BLOCK)
        part = torch.empty((blocks, shape[2] * BLOCK), dtype=kind)

        def work(first: int, last: int, piece: _Piece = piece, part: Tensor = part) -> None:
            _weights(
                (first, last), x.arrays[piece.x], x.past[piece.x], dy, piece.source, every, piece.dense,
                piece.start, part.numpy(), window.shift, window.dilation, window.lengths, _tiles(shape[2], kind),
            )  # fmt: skip

        over_ranges(work, blocks, max(GRAIN // max(dy.shape[0] * dy.shape[1] * shape[2] * BLOCK, 1), 1))
        outputs = part.view(blocks, -1, BLOCK).transpose(1, 2).flatten(0, 1)
        result[piece.start : piece.stop, piece.member] = outputs[: len(piece.source)]
    return result


def forward(options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
    """y."""
    lead, kind = inputs.buffers[0], wide(inputs.buffers[0].dtype)
    x = _buffers(inputs.buffers, inputs.past, kind)
    lengths = lengths_array(inputs.lengths, *lead.shape[:2])
    y = torch.empty((*lead.shape[:2], inputs.weight.shape[0]), dtype=kind)
    window = _Window(options.left * options.dilation, options.dilation, lengths, lengths)
    _convolve(x, inputs.weight.detach().to(kind), [y.shape[2]], [y], window)
    return [y.to(lead.dtype)]


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Gradients of weight, past and buffers: dx is the mirrored window over dy, groups and members exchanged."""
    lead, kind = inputs.buffers[0], wide(inputs.buffers[0].dtype)
    left, right, dilation = options
    lengths = lengths_array(inputs.lengths, *lead.shape[:2])
    dy = _buffers(gradients, None, kind)
    widths = [x.shape[2] for x in inputs.buffers]
    mirrored = mirror(inputs.weight.detach().to(kind), sum(widths))
    d_buffers = [
        torch.empty(x.shape, dtype=kind) if want else None for x, want in zip(inputs.buffers, wanted[3:], strict=True)
    ]
    _convolve(dy, mirrored, widths, d_buffers, _Window(right * dilation, dilation, lengths, lengths))
    d_past = d_weight = None
    if wanted[2]:
        steps = left * dilation
        d_past = torch.empty(inputs.past.shape, dtype=kind)
        limits = np.full(lead.shape[0], steps)
        _convolve(dy, mirrored, [sum(widths)], [d_past], _Window(steps + right * dilation, dilation, lengths, limits))
    if wanted[0]:
        x = _buffers(inputs.buffers, inputs.past, kind)
        window = _Window(left * dilation, dilation, lengths, lengths)
        d_weight = _weight_gradient(x, dy.arrays[0], inputs.weight.shape, window, kind)
    return d_weight, None, d_past, *d_buffers
