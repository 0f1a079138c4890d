"""CPU backend: one pass, each output the sum of three products of contiguous rows."""

from typing import Any

import numpy as np
from torch import Tensor

from recurra.kernels.jit import jit, jit_sum, over_ranges

# A thread is worth waking for this many products.
GRAIN = 1 << 20


@jit_sum
def _rows(x, weight, bias, zeros, y, patch, first, last):  # type: ignore[no-untyped-def]
    height, flat = x.shape
    filters, _, size = weight.shape
    channels = size // 3
    width = flat // channels
    none = x.dtype.type(0)
    for row in range(first, last):
        above, below = max(row - 1, 0), min(row + 1, height - 1)
        edge = zeros and (row == 0 or row == height - 1)
        for column in range(width):
            if edge or column == 0 or column == width - 1:
                _copy(x, patch, zeros, row, column, channels)
                r0, r1, r2 = patch[0], patch[1], patch[2]
            else:
                start = (column - 1) * channels
                stop = start + size
                r0, r1, r2 = x[above, start:stop], x[row, start:stop], x[below, start:stop]
            for f in range(0, filters, 2):
                g = min(f + 1, filters - 1)
                a0, a1, a2 = weight[f, 0], weight[f, 1], weight[f, 2]
                b0, b1, b2 = weight[g, 0], weight[g, 1], weight[g, 2]
                # Two filters at once: each value of the image is loaded once for both.
                s = t = none
                for q in range(size):
                    s += r0[q] * a0[q] + r1[q] * a1[q] + r2[q] * a2[q]
                    t += r0[q] * b0[q] + r1[q] * b1[q] + r2[q] * b2[q]
                y[row, column, f], y[row, column, g] = s + bias[f], t + bias[g]


@jit
def _copy(x, patch, zeros, row, column, channels):  # type: ignore[no-untyped-def]
    # The 3x3 neighbourhood of a border pixel.
    height, flat = x.shape
    width = flat // channels
    for i in range(3):
        for j in range(3):
            target = patch[i, j * channels : (j + 1) * channels]
            yi, xj = row + i - 1, column + j - 1
            if zeros and (yi < 0 or yi >= height or xj < 0 or xj >= width):
                target[:] = 0
            else:
                start = min(max(xj, 0), width - 1) * channels
                target[:] = x[min(max(yi, 0), height - 1), start : start + channels]


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding: str) -> Tensor:
    """(batch, height, width, filter)."""
    batch, height, width, channels = x.shape
    filters = weight.shape[0]
    y = x.new_empty(batch, height, width, filters)
    if not y.numel() or not channels:
        return y.zero_() if bias is None else y.copy_(bias)
    kernel = weight.detach().reshape(filters, 3, 3 * channels).numpy()
    offset = np.zeros(filters, kernel.dtype) if bias is None else bias.detach().contiguous().numpy()
    images = x.detach().view(batch, height, width * channels).numpy()
    for image, result in zip(images, y.numpy(), strict=True):
        _convolve(image, kernel, offset, padding == "zeros", result)
    return y


def _convolve(image: Any, kernel: Any, bias: Any, zeros: bool, result: Any) -> None:
    def work(start: int, stop: int) -> None:
        patch = np.empty((3, kernel.shape[2]), kernel.dtype)
        _rows(image, kernel, bias, zeros, result, patch, start, stop)

    products = 9 * image.shape[1] * kernel.shape[0]
    over_ranges(work, image.shape[0], max(GRAIN // max(products, 1), 1))
