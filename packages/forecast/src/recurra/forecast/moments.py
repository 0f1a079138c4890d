"""Joint moments of forecasts and values up to (2, 2), joined exactly batch by batch."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_ORDERS = ((1, 1), (2, 0), (0, 2), (2, 1), (1, 2), (2, 2))


class Moments:
    """Central moments of each id and step, moved to the joint mean whenever more comes in.

    Sums of powers about 0 would lose all digits of a series far from 0. Below, the sums are about the mean, m[i, j] =
    sum (f - mean f)^i (y - mean y)^j, and moving a mean is a binomial expansion (Pebay 2008, SAND2008-6212).

    Args:
        ids: how many series.
        horizon: steps.
    """

    def __init__(self, ids: int, horizon: int) -> None:
        self.count = np.zeros((ids, horizon))
        self.mean = np.zeros((2, ids, horizon))  # of the forecasts, of the values
        self.sums = {order: np.zeros((ids, horizon)) for order in _ORDERS}

    def add(self, rows: NDArray[np.int64], f: Array, y: Array, known: NDArray[np.bool_]) -> None:
        """Take in forecasts and values (row, horizon), 0 where not known; the row's id is at its place in `rows`."""
        if (np.diff(rows) < 0).any():
            order = np.argsort(rows, kind="stable")
            rows, f, y, known = rows[order], f[order], y[order], known[order]
        if not len(rows):
            return
        found, first, repeats = np.unique(rows, return_index=True, return_counts=True)
        other = Moments(len(found), f.shape[1])
        other.count = np.add.reduceat(known.astype(np.float64), first)
        for index, table in enumerate((f, y)):  # 0 where nothing is known
            other.mean[index] = np.add.reduceat(table, first) / np.maximum(other.count, 1)
        a, b = (one - np.repeat(mean, repeats, axis=0) for one, mean in zip((f, y), other.mean, strict=True))
        if not known.all():
            a, b = np.where(known, a, 0.0), np.where(known, b, 0.0)
        ab = a * b
        powers = {(1, 1): ab, (2, 0): a * a, (0, 2): b * b, (2, 1): a * ab, (1, 2): ab * b, (2, 2): ab * ab}
        other.sums = {order: np.add.reduceat(power, first) for order, power in powers.items()}
        self._join(found, other)

    def merge(self, other: "Moments") -> None:
        """Take in the moments of the same ids."""
        self._join(np.arange(len(self.count)), other)

    def _join(self, index: NDArray[np.int64], other: "Moments") -> None:
        mine = Moments(0, 0)
        mine.count, mine.mean = self.count[index], self.mean[:, index]
        mine.sums = {order: sums[index] for order, sums in self.sums.items()}
        count = mine.count + other.count
        mean = (mine.mean * mine.count + other.mean * other.count) / np.maximum(count, 1)
        left, right = (one.about(mean) for one in (mine, other))
        self.count[index], self.mean[:, index] = count, mean
        for powers in _ORDERS:
            self.sums[powers][index] = left[powers] + right[powers]

    def about(self, mean: Array) -> dict[tuple[int, int], Array]:
        """The sums about other means (2, id, horizon)."""
        m, n = self.sums, self.count
        a, b = self.mean - mean
        return {
            (1, 1): m[1, 1] + n * a * b,
            (2, 0): m[2, 0] + n * a**2,
            (0, 2): m[0, 2] + n * b**2,
            (2, 1): m[2, 1] + b * m[2, 0] + 2 * a * m[1, 1] + n * a**2 * b,
            (1, 2): m[1, 2] + a * m[0, 2] + 2 * b * m[1, 1] + n * a * b**2,
            (2, 2): m[2, 2]
            + 2 * b * m[2, 1]
            + 2 * a * m[1, 2]
            + b**2 * m[2, 0]
            + a**2 * m[0, 2]
            + 4 * a * b * m[1, 1]
            + n * a**2 * b**2,
        }

    def scores(self, squares: float) -> dict[str, float]:
        """rse, pearson and corr_legacy, given the sum of the squared errors; NaN where nothing varies."""
        overall = (self.mean * self.count).sum((1, 2), keepdims=True) / max(float(self.count.sum()), 1.0)
        spread = float(self.about(np.broadcast_to(overall, self.mean.shape))[0, 2].sum())
        spread = spread if spread > float(self._noise()[1].sum()) else 0.0
        # A difference of sums of moments would leave rounding where the forecasts are perfect.
        rse = float(np.sqrt(squares / spread)) if spread > 0 else np.nan
        return {"rse": rse, **{name: float(_mean(values, None)) for name, values in self._correlations().items()}}

    def by_step(self) -> dict[str, Array]:
        """pearson and corr_legacy of each step: mean over the ids; NaN where nothing varies."""
        return {name: np.asarray(_mean(values, 0)) for name, values in self._correlations().items()}

    def _correlations(self) -> dict[str, Array]:
        m = self.sums
        noise = self._noise()
        varies = (m[2, 0] > noise[0]) & (m[0, 2] > noise[1])
        roots = {"pearson": np.sqrt(m[2, 0]) * np.sqrt(m[0, 2]), "corr_legacy": np.sqrt(np.maximum(m[2, 2], 0))}
        return {name: np.where(varies, m[1, 1] / np.where(varies, root, 1.0), np.nan) for name, root in roots.items()}

    def _noise(self) -> Array:
        """What the rounding of a mean leaves of the squares of a constant, which is no variance."""
        return np.asarray(16 * self.count * (np.finfo(np.float64).eps * self.mean) ** 2)


def _mean(values: Array, axis: int | None) -> Array:
    """Mean of what is not NaN, without numpy's warning where all is."""
    known = np.isfinite(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))
