"""Sums over all windows of series, without a matrix of windows: what every closed-form fit here is made of.

With the values y of a stretch without gaps and c windows of W values each, oldest first,

    G[i, j] = Σ_s y[s+i] y[s+j]                             the last row by a correlation: O(n log n)
    G[i, j] = G[i+1, j+1] + y[i] y[j] - y[c+i] y[c+j]       the others from it: O(W²)

and the sums of each column are differences of running sums. All of them add up over stretches, series and chunks.
"""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Array = NDArray[np.float64]
_Self = TypeVar("_Self", bound="WindowSums")

_DIRECT = 1 << 16
"""Products up to which a correlation is quicker without a Fourier transform."""


class WindowSums:
    """Second and first moments of all windows of `width` values in which none is missing.

    Args:
        width: values of a window.
        shift: taken from every value first; near their mean, it keeps the sums well conditioned.

    Attributes:
        count: windows.
        lower: (width, width) sums of products; the lower triangle holds them, the upper one nothing.
        first: (width,) sums.
        timed: (width,) sums of the values times the time of the window's last one; a series begins at time 1.
        time: sums of that time, and of its square.
    """

    def __init__(self, width: int, *, shift: float = 0.0) -> None:
        if width < 1:
            raise ValueError(f"width must be at least 1; got {width}")
        self.width, self.shift, self.count = width, float(shift), 0
        self.lower, self.first, self.timed = np.zeros((width, width)), np.zeros(width), np.zeros(width)
        self.time = np.zeros(2)
        self._tail, self._position = np.empty(0), 0

    def add(self: _Self, values: Iterable[Array]) -> _Self:
        """The same sums with those of whole series, each (time,); NaN where a value is missing."""
        for series in values:
            self.restart()
            self.extend(series)
        self.restart()
        return self

    def restart(self) -> None:
        """What comes next is the beginning of another series."""
        self._tail, self._position = np.empty(0), 0

    def extend(self: _Self, chunk: Array) -> _Self:
        """The same sums with the windows that end in this next piece (time,) of the present series."""
        if chunk.ndim != 1:
            raise ValueError(f"a series has shape (time,); got {chunk.shape}")
        known = len(self._tail)
        values = np.concatenate([self._tail, np.asarray(chunk, np.float64) - self.shift])
        for start, stop in stretches(values):
            if stop - start >= self.width:
                self._gather(values[start:stop], self._position - known + start)
        self._position += len(chunk)
        self._tail = values[max(0, len(values) - self.width + 1) :]
        return self

    def __iadd__(self: _Self, other: "WindowSums") -> _Self:
        """The sums of both; they must have the same width and shift."""
        if (self.width, self.shift) != (other.width, other.shift):
            raise ValueError(f"width and shift differ: {self.width, self.shift} and {other.width, other.shift}")
        self.count += other.count
        for name in ("lower", "first", "timed", "time"):
            getattr(self, name)[...] += getattr(other, name)
        return self

    def gram(self) -> Array:
        """Sums of products (width, width), both triangles."""
        below = np.tril(self.lower, -1)
        return below + below.T + np.diag(np.diagonal(self.lower))

    def _gather(self, y: Array, offset: int) -> None:
        """Add the windows of a stretch without gaps that begins `offset` values after its series."""
        width, count = self.width, len(y) - self.width + 1
        row = correlation(y, y[width - 1 :])
        self.lower[-1] += row
        older, newer = y[:width], y[count:]
        for i in range(width - 2, -1, -1):
            row = row[1:]
            row += older[i] * older[: i + 1]
            row -= newer[i] * newer[: i + 1]
            self.lower[i, : i + 1] += row
        running = np.concatenate([[0.0], np.cumsum(y)])
        sums = running[count:] - running[:width]
        self.first += sums
        running = np.concatenate([[0.0], np.cumsum(y * np.arange(len(y)))])
        # The last value of the window that begins at s is at s + width - 1, and time counts from 1.
        self.timed += running[count:] - running[:width] + (offset + width - np.arange(width)) * sums
        times = offset + width + np.arange(count, dtype=np.float64)
        self.time += times.sum(), times @ times
        self.count += count


def correlation(y: Array, kernel: Array) -> Array:
    """Σ_s kernel[s] y[s+j] for every j at which the kernel lies within y."""
    lags = len(y) - len(kernel) + 1
    if lags * len(kernel) <= _DIRECT:
        return np.correlate(y, kernel, "valid")
    size = fft.next_fast_len(len(y), real=True)
    product: Array = fft.irfft(fft.rfft(y, size) * fft.rfft(kernel, size).conj(), size)[:lags]
    return product


def stretches(values: Array) -> list[tuple[int, int]]:
    """First index and end of every stretch without missing values."""
    edges = np.flatnonzero(np.diff(np.isfinite(values).astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def columns(values: Iterable[Array]) -> list[Array]:
    """Every column of arrays (time,) or (time, variate) as a series of its own."""
    listed: list[Array] = []
    for array in values:
        series = np.asarray(array, np.float64)
        if series.ndim not in (1, 2):
            raise ValueError(f"a series has shape (time,) or (time, variate); got {series.shape}")
        listed += [series] if series.ndim == 1 else list(series.T)
    return listed


def mean_of(values: Iterable[Array]) -> float:
    """Mean of all values that are there; 0 if there are none."""
    total, count = 0.0, 0
    for series in values:
        there = series[np.isfinite(series)]
        total, count = total + float(there.sum()), count + len(there)
    return total / count if count else 0.0
