"""Scores of forecasts, summed as windows arrive: in float64, the same however they are cut into batches.

| name                   | over all observed values                                                         |
|------------------------|----------------------------------------------------------------------------------|
| mse, mae, rmse         | e = forecast - value                                                             |
| mape, mspe             | mean |e / y|, (e / y)^2, fractions; values of 0 are left out                     |
| smape                  | mean 200 |e| / (|y| + |f|), percent (M4); 0 where both are 0                     |
| mase                   | mean |e| / scale, the mean |y_t - y_(t-season)| of the id's training rows        |
| rmsse                  | root of mean e^2 / scale, the mean (y_t - y_(t-season))^2 of those rows          |
| rse                    | root of sum e^2 / sum (y - mean y)^2                                             |
| pearson                | correlation over the windows, mean over steps and ids                            |
| corr_legacy            | what Time-Series-Library calls CORR, no correlation: the root is of one sum      |
| pinball                | mean over the quantiles of max(q (y - f), (q - 1)(y - f))                        |
| crps                   | 2 pinball: the continuous ranked probability score on a grid of quantiles        |
| wql                    | 2 pinball / mean |y|, the weighted quantile loss                                 |
| directional_accuracy   | share in which forecast and value are on the same side of the last value; equal  |
|                        | to it counts as not above                                                        |
| coverage_90, width_90  | share of values inside the interval of that level, and its mean width            |

An id that a metric cannot score, such as a constant one by MASE, is left out of it and counted by `Scorer.unscored`.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from recurra.forecast.moments import Moments
from recurra.forecast.significance import wilson

Array = NDArray[np.float64]

HIGHER_IS_BETTER = {"directional_accuracy": True, "pearson": True, "corr_legacy": True}
"""Of the metrics that are not errors; coverage is best at its level."""

_BLOCK = 2**15
"""Values that are worked on at once."""

_ROOTS = {"rmse": "mse", "rmsse": "msse"}


def seasonal_scale(
    train: Float[np.ndarray, "time series"], season: int
) -> tuple[Float[np.ndarray, " series"], Float[np.ndarray, " series"]]:
    """Mean |y_t - y_(t-season)| and mean of its square over the training rows: what MASE and RMSSE divide by.

    Pairs with a missing value are left out. A series that is constant, or too short for a pair, has 0, which no metric
    divides by.

    Raises:
        ValueError: the season is not at least 1.
    """
    if season < 1:
        raise ValueError(f"season must be at least 1; got {season}")
    values = np.asarray(train, np.float64)
    change = values[season:] - values[:-season]
    known = np.isfinite(change)
    count = np.maximum(known.sum(0), 1)
    change = np.where(known, change, 0.0)
    return np.abs(change).sum(0) / count, np.square(change).sum(0) / count


class Scorer:
    """Sums of one method's errors: fed with windows, asked for scores at any time.

        scorer = Scorer(horizon=24, ids=["a", "b"], scale=seasonal_scale(train, 24), levels=(90.0,))
        scorer.add(forecast, values, last=window[:, -1], lower=lower, upper=upper)
        scorer.scores()["mase"], scorer.by_step()["mae"][0], scorer.by_id()["mae"], scorer.unscored()

    Args:
        horizon: steps of each forecast.
        ids: names of the series, or how many there are.
        scale: of each id for MASE and RMSSE, as `seasonal_scale` gives it.
        quantiles: of the quantile forecasts that are given.
        levels: of the intervals that are given, percent.
        correlations: also rse, pearson and corr_legacy, which take memory for nine numbers an id and step.
    """

    def __init__(
        self,
        horizon: int,
        ids: Sequence[object] | int = 1,
        *,
        scale: tuple[Float[np.ndarray, " series"], Float[np.ndarray, " series"]] | None = None,
        quantiles: tuple[float, ...] = (),
        levels: tuple[float, ...] = (),
        correlations: bool = True,
    ) -> None:
        self.horizon, self.ids = horizon, list(range(ids)) if isinstance(ids, int) else list(ids)
        if scale is not None and any(len(one) != len(self.ids) for one in scale):
            raise ValueError(
                f"scale has {[len(one) for one in scale]} entries; expected one for each of {len(self.ids)} ids"
            )
        self._scale = None if scale is None else tuple(np.asarray(one, np.float64) for one in scale)
        self.quantiles, self.levels = quantiles, levels
        self._by_id: dict[str, Array] = {}
        self._by_step: dict[str, Array] = {}
        self._moments = Moments(len(self.ids), horizon) if correlations else None
        self.windows = 0

    def add(
        self,
        prediction: Float[np.ndarray, "batch horizon variate"],
        target: Float[np.ndarray, "batch horizon variate"],
        *,
        observed: Bool[np.ndarray, "batch horizon variate"] | None = None,
        ids: Int[np.ndarray, "batch variate"] | None = None,
        last: Float[np.ndarray, "batch variate"] | None = None,
        quantiles: Float[np.ndarray, "batch horizon variate quantile"] | None = None,
        lower: Float[np.ndarray, "batch horizon variate level"] | None = None,
        upper: Float[np.ndarray, "batch horizon variate level"] | None = None,
    ) -> None:
        """Take windows in.

        Args:
            prediction: the point forecasts.
            target: what came; NaN where nothing was observed.
            observed: which values count, beside those that are not NaN; all by default.
            ids: index of the series of each window and variate; by default the variates are the ids.
            last: value before the first step, for the directional accuracy; where it is NaN, nothing is counted.
            quantiles: forecasts of the quantiles.
            lower: ends of the intervals of the levels.
            upper: likewise.

        Raises:
            ValueError: a shape does not fit, or a forecast is not finite where there is a value.
        """
        self._check(prediction, target, ids)
        given = {"observed": observed, "ids": ids, "last": last}
        given |= {"quantiles": quantiles, "lower": lower, "upper": upper}
        for start in range(0, len(prediction), step := max(1, _BLOCK // max(1, prediction[:1].size))):
            part = {name: None if one is None else one[start : start + step] for name, one in given.items()}
            try:
                self._take(prediction[start : start + step], target[start : start + step], **part)
            except _NotFiniteError as error:
                raise ValueError(error.told(start)) from None
        self.windows += len(prediction)

    def _take(
        self,
        prediction: NDArray[Any],
        target: NDArray[Any],
        observed: NDArray[Any] | None,
        ids: NDArray[Any] | None,
        last: NDArray[Any] | None,
        quantiles: NDArray[Any] | None,
        lower: NDArray[Any] | None,
        upper: NDArray[Any] | None,
    ) -> None:
        """As `add`, for so few windows that what is computed stays in the processor's cache: four times as fast."""
        y = _table(target)
        known = ~np.isnan(y) if observed is None else ~np.isnan(y) & _table(observed)
        batch, _, variates = prediction.shape
        mask = _Mask(np.repeat(np.arange(variates), batch) if ids is None else ids.T.reshape(-1), known)
        y, f = mask.zeroed(y), _finite(prediction, mask, "prediction")
        self._errors(f, y, mask)
        if self._moments is not None:
            self._moments.add(mask.rows, f, y, known)
        if last is not None:
            before = np.asarray(last, np.float64).T.reshape(-1, 1)
            self._sum("directional_accuracy", (f > before) == (y > before), mask.where(np.isfinite(before)))
        if quantiles is not None:
            self._pinball(quantiles, y, mask)
        if lower is not None and upper is not None:
            self._coverage(lower, upper, y, mask)

    def scores(self) -> dict[str, float]:
        """Every metric over all ids and steps; one that could score nothing is missing."""
        found = {name: float(value[0]) for name, value in self._means(self._by_id, total=True).items()}
        if self._moments is not None:
            found |= self._moments.scores(float(self._by_id["mse"][:, 0].sum()) if self.windows else 0.0)
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def by_step(self) -> dict[str, Array]:
        """Every metric for each step of the horizon over all ids: (horizon); NaN where it could score nothing."""
        found = self._means(self._by_step)
        return found if self._moments is None else {**found, **self._moments.by_step()}

    def by_id(self) -> dict[str, Array]:
        """Every metric for each id over all steps: (id); NaN where it could score nothing."""
        return self._means(self._by_id)

    def unscored(self) -> dict[str, int]:
        """How many ids a metric left out, of those metrics that left out any."""
        missing = {name: int(np.isnan(value).sum()) for name, value in self.by_id().items()}
        return {name: count for name, count in missing.items() if count}

    @property
    def count(self) -> int:
        """How many values were scored."""
        return int(self._by_id["mse"][:, 1].sum()) if "mse" in self._by_id else 0

    def direction_interval(self, level: float = 95.0) -> tuple[float, float] | None:
        """Wilson's interval of the directional accuracy, or None where no last values were given.

        The steps of a window share its errors, so that a window counts as one trial.
        """
        if "directional_accuracy" not in self._by_id:
            return None
        hits, count = self._by_id["directional_accuracy"].sum(0) / self.horizon
        return wilson(hits, count, level)

    def merge(self, other: "Scorer") -> None:
        """Take in what another has counted of the same ids.

        Raises:
            ValueError: it is of other ids or another horizon.
        """
        if (self.horizon, self.ids) != (other.horizon, other.ids):
            raise ValueError("scores of other ids or another horizon cannot be joined")
        for mine, theirs in ((self._by_id, other._by_id), (self._by_step, other._by_step)):
            for name, sums in theirs.items():
                mine[name] = mine[name] + sums if name in mine else sums.copy()
        if self._moments is not None and other._moments is not None:
            self._moments.merge(other._moments)
        self.windows += other.windows

    def _check(self, prediction: NDArray[Any], target: NDArray[Any], ids: NDArray[Any] | None) -> None:
        if prediction.shape != target.shape or prediction.ndim != 3 or prediction.shape[1] != self.horizon:
            raise ValueError(
                f"prediction has shape {prediction.shape}, target {target.shape}; "
                f"expected twice (batch, {self.horizon}, variate)"
            )
        if ids is None and prediction.shape[2] != len(self.ids):
            raise ValueError(f"{prediction.shape[2]} variates of {len(self.ids)} ids; pass the ids of each window")

    def _errors(self, f: Array, y: Array, mask: "_Mask") -> None:
        error = f - y
        absolute, square, size = np.abs(error), np.square(error), np.abs(y)
        self._sum("mse", square, mask)
        self._sum("mae", absolute, mask)
        nonzero = mask.where(y != 0)
        relative = absolute / np.where(nonzero.known, size, 1.0)
        self._sum("mape", relative, nonzero)
        self._sum("mspe", np.square(relative), nonzero)
        both = np.abs(f) + size
        self._sum("smape", 200 * absolute / np.where(both > 0, both, 1.0), mask)
        if self._scale is None:
            return
        for name, values, scale in zip(("mase", "msse"), (absolute, square), self._scale, strict=True):
            own = scale[mask.rows][:, None]
            usable = np.isfinite(own) & (own > 0)
            self._sum(name, values / np.where(usable, own, 1.0), mask.where(usable))

    def _pinball(self, forecasts: NDArray[Any], y: Array, mask: "_Mask") -> None:
        if forecasts.shape[3] != len(self.quantiles):
            raise ValueError(f"{forecasts.shape[3]} quantile forecasts; expected those of {self.quantiles}")
        loss = np.zeros_like(y)
        for index, quantile in enumerate(self.quantiles):
            below = y - _finite(forecasts[..., index], mask, f"forecast of quantile {quantile}")
            loss += np.maximum(quantile * below, (quantile - 1) * below)
        self._sum("pinball", loss / len(self.quantiles), mask)
        self._sum("size", np.abs(y), mask)

    def _coverage(self, lower: NDArray[Any], upper: NDArray[Any], y: Array, mask: "_Mask") -> None:
        if lower.shape[3] != len(self.levels) or upper.shape[3] != len(self.levels):
            raise ValueError(f"{lower.shape[3]} lower and {upper.shape[3]} upper ends; expected those of {self.levels}")
        for index, level in enumerate(self.levels):
            low, high = _table(lower[..., index]), _table(upper[..., index])
            if (mask.known & ~(low <= high)).any():
                raise ValueError(f"interval of level {level:g} is not a number somewhere, or its ends are crossed")
            self._sum(f"coverage_{level:g}", (low <= y) & (y <= high), mask)
            # An interval without bounds has no width; the share of those is what coverage shows.
            bounded = mask.where(np.isfinite(low) & np.isfinite(high))
            self._sum(f"width_{level:g}", bounded.zeroed(high) - bounded.zeroed(low), bounded)

    def _sum(self, name: str, values: NDArray[Any], mask: "_Mask") -> None:
        """Add to the sums of a name and to the counts beside them."""
        for sums, size in ((self._by_id, len(self.ids)), (self._by_step, self.horizon)):
            sums.setdefault(name, np.zeros((size, 2)))
        table = mask.zeroed(values).astype(np.float64, copy=False)
        for column, (by_row, by_step) in enumerate((_margins(table), mask.counts)):
            self._by_id[name][:, column] += np.bincount(mask.rows, by_row, len(self.ids))
            self._by_step[name][:, column] += by_step

    def _means(self, sums: dict[str, Array], *, total: bool = False) -> dict[str, Array]:
        """Of each id or step, or of all: what the sums amount to."""
        means: dict[str, Array] = {}
        for name, both in sums.items():
            value, count = both.sum(0, keepdims=True).T if total else both.T
            means[name] = np.where(count > 0, value / np.maximum(count, 1), np.nan)
        for root, square in _ROOTS.items():
            if square in means:
                means[root] = np.sqrt(means[square])
        means.pop("msse", None)
        if "pinball" in means:
            means["crps"] = 2 * means["pinball"]
            size = means.pop("size")
            means["wql"] = np.where(size > 0, means["crps"] / np.where(size > 0, size, 1.0), np.nan)
        return means


def ratios(scores: dict[str, float], naive: dict[str, float]) -> dict[str, float]:
    """MASE and CRPS over those of the seasonal naive on the same windows, each a ratio of two means over all values.

    Where either has no score, or the naive's is 0, the ratio is missing.
    """
    return {
        f"{name}_ratio": scores[name] / naive[name]
        for name in ("mase", "crps")
        if name in scores and naive.get(name, 0.0) > 0
    }


class _Mask:
    """Which values of a table (row, horizon) count, and the id of each row."""

    def __init__(self, rows: NDArray[np.int64], known: NDArray[np.bool_]) -> None:
        self.rows, self.known, self.whole = rows, known, bool(known.all())

    @cached_property
    def counts(self) -> tuple[Array, Array]:
        """How many values count in each row, and at each step."""
        return _margins(self.known.astype(np.float64))

    def where(self, condition: NDArray[np.bool_]) -> "_Mask":
        """The mask of what counts and meets a condition."""
        return self if condition.all() else _Mask(self.rows, self.known & condition)

    def zeroed(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values, 0 where they do not count."""
        return values if self.whole else np.where(self.known, values, values.dtype.type(0))


def _margins(table: Array) -> tuple[Array, Array]:
    """Sums of the rows and of the columns."""
    return table @ np.ones(table.shape[1]), np.ones(len(table)) @ table


def _table(values: NDArray[Any]) -> NDArray[Any]:
    """(batch, horizon, variate) as rows (variate x batch, horizon), float64 unless bool."""
    rows = np.moveaxis(np.asarray(values), 2, 0)
    return np.ascontiguousarray(rows, bool if rows.dtype == bool else np.float64).reshape(-1, values.shape[1])


def _finite(forecast: NDArray[Any], mask: _Mask, what: str) -> Array:
    """The table of forecasts, 0 where nothing counts."""
    table = mask.zeroed(_table(forecast))
    if not np.isfinite(table).all():
        row, step = np.argwhere(~np.isfinite(table))[0]
        variate, window = divmod(int(row), len(forecast))
        raise _NotFiniteError(what, window, int(step) + 1, variate)
    return table


class _NotFiniteError(ValueError):
    """A forecast that is no number: what, and the window of its block, step and variate."""

    def told(self, start: int) -> str:
        """The line, given the block's first window."""
        what, window, step, variate = self.args
        return f"{what} is not finite at window {start + window}, step {step}, variate {variate}"
