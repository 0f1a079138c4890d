"""CPU backend: transforms vectorised over channels in blocks that stay in the caches, products by batched GEMM."""

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra.kernels.jit import jit, jit_distinct, over_ranges
from recurra.kernels.winograd.reference import STEP, TILE

# Values of one of the 36 matrices of a block: 36 * 4 bytes * 8192 = 1.2 MB on each side of the product.
BLOCK = 8192
_store = threading.local()

# Powers of the points 5/8 and 3/2; all exact in float32.
_A, _A2, _A3 = np.float32(0.625), np.float32(0.390625), np.float32(0.244140625)
_B, _B2, _B3 = np.float32(1.5), np.float32(2.25), np.float32(3.375)
_A2B2, _A2_B2 = np.float32(0.87890625), np.float32(2.640625)


@jit_distinct
def _to_input(a, b, c, d, e, f, o0, o1, o2, o3, o4, o5):  # type: ignore[no-untyped-def]
    for q in range(a.size):
        near, far = e[q] - _B2 * c[q], _A * (d[q] - _B2 * b[q])
        o1[q], o2[q] = near + far, near - far
        near, far = e[q] - _A2 * c[q], _B * (d[q] - _A2 * b[q])
        o3[q], o4[q] = near + far, near - far
        o0[q] = _A2B2 * a[q] - _A2_B2 * c[q] + e[q]
        o5[q] = _A2B2 * b[q] - _A2_B2 * d[q] + f[q]


@jit_distinct
def _to_output(a, b, c, d, e, f, o0, o1, o2, o3):  # type: ignore[no-untyped-def]
    for q in range(a.size):
        near, far = b[q] + c[q], d[q] + e[q]
        o0[q] = a[q] + near + far
        o2[q] = _A2 * near + _B2 * far
        near, far = b[q] - c[q], d[q] - e[q]
        o1[q] = _A * near + _B * far
        o3[q] = _A3 * near + _B3 * far + f[q]


@jit_distinct
def _finish(source, bias, floor, o):  # type: ignore[no-untyped-def]
    for q in range(o.size):
        s = source[q] + bias[q]
        o[q] = floor if s < floor else s


@jit
def _spread(x, out, shift, first, last, columns, top, left, step, zeros, blank, t):  # type: ignore[no-untyped-def]
    height, width, _ = x.shape
    for tile in range(first, last):
        place = tile - shift
        row = tile // columns
        y0 = top + step * (STEP * row - 1)
        x0 = left + step * (STEP * (tile - row * columns) - 1)
        y1, y2, y3, y4, y5 = y0 + step, y0 + 2 * step, y0 + 3 * step, y0 + 4 * step, y0 + 5 * step
        top_out, low = y0 < 0, height - 1
        for j in range(TILE):
            xj = x0 + j * step
            if zeros and (xj < 0 or xj >= width):
                for i in range(TILE):
                    t[i, j, :] = 0
                continue
            xj = min(max(xj, 0), width - 1)
            _to_input(
                blank if zeros and top_out else x[min(max(y0, 0), low), xj],
                blank if zeros and y1 > low else x[min(y1, low), xj],
                blank if zeros and y2 > low else x[min(y2, low), xj],
                blank if zeros and y3 > low else x[min(y3, low), xj],
                blank if zeros and y4 > low else x[min(y4, low), xj],
                blank if zeros and y5 > low else x[min(y5, low), xj],
                t[0, j], t[1, j], t[2, j], t[3, j], t[4, j], t[5, j],
            )  # fmt: skip
        for i in range(TILE):
            k = TILE * i
            _to_input(
                t[i, 0], t[i, 1], t[i, 2], t[i, 3], t[i, 4], t[i, 5],
                out[k, place], out[k + 1, place], out[k + 2, place],
                out[k + 3, place], out[k + 4, place], out[k + 5, place],
            )  # fmt: skip


@jit
def _gather(m, y, bias, relu, shift, first, last, columns, top, left, step, t, line):  # type: ignore[no-untyped-def]
    height, width, _ = y.shape
    floor = m.dtype.type(0) if relu else m.dtype.type(-np.inf)
    for tile in range(first, last):
        place = tile - shift
        row = tile // columns
        x0 = left + step * STEP * (tile - row * columns)
        for j in range(TILE):
            _to_output(
                m[j, place], m[TILE + j, place], m[2 * TILE + j, place],
                m[3 * TILE + j, place], m[4 * TILE + j, place], m[5 * TILE + j, place],
                t[0, j], t[1, j], t[2, j], t[3, j],
            )  # fmt: skip
        for i in range(STEP):
            yi = top + step * (STEP * row + i)
            if yi >= height:
                break
            _to_output(t[i, 0], t[i, 1], t[i, 2], t[i, 3], t[i, 4], t[i, 5], line[0], line[1], line[2], line[3])
            for k in range(STEP):
                if x0 + k * step < width:
                    _finish(line[k], bias, floor, y[yi, x0 + k * step])


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: str, relu: bool, out: Tensor) -> None:
    """Writes the convolution into `out`."""
    height, width, channels = x.shape[1:]
    filters = weight.shape[2]
    threads = torch.get_num_threads()
    tiles = max(16, BLOCK // max(channels, filters)) * threads
    spread, product = _buffers(tiles, channels, filters, x.dtype)
    offset = np.zeros(filters, out.numpy().dtype) if bias is None else bias.detach().contiguous().numpy()
    blank = np.zeros(channels, offset.dtype)
    for image, result in zip(x.detach().numpy(), out.numpy(), strict=True):
        for top in range(min(dilation, height)):
            for left in range(min(dilation, width)):
                rows, columns = _tiles_in(height - top, dilation), _tiles_in(width - left, dilation)
                for start in range(0, rows * columns, tiles):
                    stop = min(start + tiles, rows * columns)
                    grid = (columns, top, left, dilation)
                    _forward(image, spread, start, stop, grid, padding == "zeros", blank)
                    if stop - start < tiles:  # nothing of the last call may enter, not even a NaN to waste time on
                        spread[:, stop - start :] = 0
                    torch.bmm(spread, weight, out=product)
                    _back(product, result, offset, relu, start, stop, grid)


def _forward(image: Any, spread: Tensor, start: int, stop: int, grid: Any, zeros: bool, blank: Any) -> None:
    target = spread.numpy()

    def work(a: int, b: int) -> None:
        scratch = np.empty((TILE, TILE, blank.size), blank.dtype)
        _spread(image, target, start, start + a, start + b, *grid, zeros, blank, scratch)

    over_ranges(work, stop - start, 32)


def _back(product: Tensor, result: Any, bias: Any, relu: bool, start: int, stop: int, grid: Any) -> None:
    source = product.numpy()

    def work(a: int, b: int) -> None:
        scratch = np.empty((STEP, TILE, bias.size), bias.dtype)
        line = np.empty((STEP, bias.size), bias.dtype)
        _gather(source, result, bias, relu, start, start + a, start + b, *grid, scratch, line)

    over_ranges(work, stop - start, 32)


def _tiles_in(length: int, dilation: int) -> int:
    phase = -(-length // dilation)
    return -(-phase // STEP)


def _buffers(tiles: int, channels: int, filters: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    # One pair a thread, kept for the next layer of the same size.
    key = (tiles, channels, filters, dtype)
    if getattr(_store, "key", None) != key:
        _store.key = key
        _store.pair = (
            torch.zeros(TILE * TILE, tiles, channels, dtype=dtype),
            torch.empty(TILE * TILE, tiles, filters, dtype=dtype),
        )
    pair: tuple[Tensor, Tensor] = _store.pair
    return pair
