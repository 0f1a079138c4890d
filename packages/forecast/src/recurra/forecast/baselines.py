"""The forecasts that every model has to beat: simple rules, a ridge on the window, statistical models of each series.

All work in original units, bring their forecasts back as (row, step) and never fail for one row: what cannot be fitted
is forecast as its last value and named in `failures`. A rule learns nothing, so it can serve any window; the others are
fitted first, on the rows that a model is trained on.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from recurra.core.errors import UserError, one_line
from recurra.forecast.window_sums import columns, mean_of

Array = NDArray[np.float64]
Past = Array | Sequence[Array]
_Self = TypeVar("_Self", bound="Baseline")
_Ridge = TypeVar("_Ridge", bound="Ridge")
_RidgeLevel = TypeVar("_RidgeLevel", bound="RidgeLevel")
_Local = TypeVar("_Local", bound="Local")


class Baseline(ABC):
    """A forecast of each row out of its own past.

    Args:
        season: steps of the season, for those that have one.
        window: steps that those see that are fitted to windows.
        horizon: steps that those are fitted for.

    Attributes:
        failures: why a row or series could not be forecast as it should, by its index; those have their last value.
    """

    def __init__(self, *, season: int = 1, window: int = 1, horizon: int = 1) -> None:
        for name, value in (("season", season), ("window", window), ("horizon", horizon)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        self.season, self.window, self.horizon = season, window, horizon
        self.failures: dict[int, str] = {}

    def fit(self: _Self, values: Sequence[Array]) -> _Self:
        """The same, fitted to series (time,), or (time, variate) with every column a series; NaN where missing."""
        return self

    @abstractmethod
    def forecast(self, past: Past, horizon: int, *, series: Sequence[int] | None = None) -> Array:
        """The next values (row, horizon); NaN for a row in which nothing was ever observed.

        Args:
            past: (row, time), oldest first, or a history (time,) of each row; NaN where missing.
            horizon: steps.
            series: index of the fitted series that each row belongs to; by default row i to series i where there are as
                many of both.
        """


# --- rules


def aligned(past: Past) -> Array:
    """Rows (row, time) that end together, with NaN before the beginning of shorter ones."""
    if isinstance(past, np.ndarray):
        if past.ndim != 2:
            raise ValueError(f"past has shape {past.shape}; expected (row, time)")
        return past
    length = max(map(len, past), default=1)
    rows = np.full((len(past), max(length, 1)), np.nan)
    for row, values in zip(rows, past, strict=True):
        row[len(row) - len(values) :] = values
    return rows


def latest(rows: Array) -> Array:
    """The last observed value of each row (row,)."""
    return rows[np.arange(len(rows)), _last(rows)]


def _last(rows: Array) -> NDArray[np.intp]:
    """Where each row was last observed; the end of one that never was."""
    seen = np.isfinite(rows)
    return np.asarray(rows.shape[1] - 1 - np.where(seen.any(1), seen[:, ::-1].argmax(1), 0))


class LastValue(Baseline):
    """The last observed value, held."""

    def forecast(self, past: Past, horizon: int, *, series: Sequence[int] | None = None) -> Array:
        """The next values; see `Baseline.forecast`."""
        return np.repeat(latest(aligned(past))[:, None], horizon, 1)


class Drift(Baseline):
    """The line through the first and the last observed value, which goes on from the latter."""

    def forecast(self, past: Past, horizon: int, *, series: Sequence[int] | None = None) -> Array:
        """The next values; see `Baseline.forecast`."""
        rows = aligned(past)
        first, last, every = np.isfinite(rows).argmax(1), _last(rows), np.arange(len(rows))
        rise = rows[every, last] - rows[every, first]
        slope = rise / np.maximum(last - first, 1)
        # Steps count from the last observation, which may lie before the end.
        ahead = rows.shape[1] - 1 - last[:, None] + np.arange(1, horizon + 1)
        return np.asarray(rows[every, last][:, None] + slope[:, None] * ahead)


class SeasonalNaive(Baseline):
    """The value of the last season; the latest one observed at that place, else the last value."""

    def forecast(self, past: Past, horizon: int, *, series: Sequence[int] | None = None) -> Array:
        """The next values; see `Baseline.forecast`."""
        rows = aligned(past)
        length, season = rows.shape[1], self.season
        missing = -length % season
        folded = np.pad(rows, ((0, 0), (missing, 0)), constant_values=np.nan).reshape(len(rows), -1, season)
        place = self._of_places(folded)
        place = np.where(np.isfinite(place), place, latest(rows)[:, None])
        return np.asarray(place[:, np.arange(horizon) % season])

    def _of_places(self, folded: Array) -> Array:
        """Value of each place of a season (row, season) out of all seasons (row, count, season)."""
        places = folded.transpose(0, 2, 1)
        return latest(places.reshape(-1, places.shape[2])).reshape(places.shape[:2])


class SeasonalMean(SeasonalNaive):
    """The mean of the last four seasons at each place."""

    def _of_places(self, folded: Array) -> Array:
        recent = folded[:, -4:]
        seen = np.isfinite(recent)
        total = np.where(seen, recent, 0.0).sum(1)
        return np.where(seen.any(1), total / np.maximum(seen.sum(1), 1), np.nan)


# --- fitted to windows


class Ridge(Baseline):
    """One linear map from the window to the horizon for all series, in closed form: `LinearMap`.

    Each series counts as if its variance were 1. Gaps in a window are filled with the value before them; what is
    shorter than the window begins with its first value.
    """

    def __init__(self, *, season: int = 1, window: int = 1, horizon: int = 1) -> None:
        super().__init__(season=season, window=window, horizon=horizon)
        self.model: Any = None

    def fit(self: _Ridge, values: Sequence[Array]) -> _Ridge:
        """The same, fitted to every window; without any it forecasts the last value, and says so in `failures`."""
        from recurra.forecast.models.linear import LinearMap

        self.model = LinearMap(window=self.window, horizon=self.horizon).double()
        self.failures.clear()
        try:
            # The map is the same whatever the scale, the penalty is not.
            self.model.fit([one / (_deviation(one) or 1.0) for one in columns(values)])
        except UserError as error:
            self.model, self.failures[0] = None, one_line(error)
        return self

    def forecast(self, past: Past, horizon: int, *, series: Sequence[int] | None = None) -> Array:
        """The next values; see `Baseline.forecast`.

        Raises:
            ValueError: more steps than it was fitted for.
        """
        import torch

        if horizon > self.horizon:
            raise ValueError(f"ridge was fitted for {self.horizon} steps; got horizon {horizon}")
        rows = filled(aligned(past))[:, -self.window :]
        if self.model is None:
            return LastValue().forecast(rows, horizon)
        rows = np.pad(rows, ((0, 0), (self.window - rows.shape[1], 0)), mode="edge")
        with torch.no_grad():
            forecast = self.model(torch.from_numpy(rows)[..., None])
        return np.asarray(forecast[:, :horizon, 0].numpy())


class RidgeLevel(Baseline):
    """As `Ridge`, but of the values as they are, and a constant: it pulls levels back to those of training.

    Values are brought to mean 0 and variance 1 of all fitted series together.
    """

    def __init__(self, *, season: int = 1, window: int = 1, horizon: int = 1) -> None:
        super().__init__(season=season, window=window, horizon=horizon)
        self.model: Any = None
        self.mean, self.deviation = 0.0, 1.0

    def fit(self: _RidgeLevel, values: Sequence[Array]) -> _RidgeLevel:
        """The same, fitted to every window; without any it forecasts the last value, and says so in `failures`."""
        from recurra.forecast.models.linear import LinearMap

        series = columns(values)
        self.mean = mean_of(series)
        self.deviation = math.sqrt(mean_of([(one - self.mean) ** 2 for one in series])) or 1.0
        self.model = LinearMap(window=self.window, horizon=self.horizon, center=False, constant=True).double()
        self.failures.clear()
        try:
            self.model.fit([(one - self.mean) / self.deviation for one in series])
        except UserError as error:
            self.model, self.failures[0] = None, one_line(error)
        return self

    def forecast(self, past: Past, horizon: int, *, series: Sequence[int] | None = None) -> Array:
        """The next values; see `Ridge.forecast`."""
        import torch

        if horizon > self.horizon:
            raise ValueError(f"ridge_level was fitted for {self.horizon} steps; got horizon {horizon}")
        rows = filled(aligned(past))[:, -self.window :]
        if self.model is None:
            return LastValue().forecast(rows, horizon)
        rows = np.pad(rows, ((0, 0), (self.window - rows.shape[1], 0)), mode="edge")
        with torch.no_grad():
            scaled = torch.from_numpy((rows - self.mean) / self.deviation)[..., None]
            made: Array = self.model(scaled)[:, :horizon, 0].numpy() * self.deviation + self.mean
        return made


def _deviation(series: Array) -> float:
    there = series[np.isfinite(series)]
    return float(there.std()) if len(there) else 0.0


def filled(rows: Array) -> Array:
    """Rows whose gaps hold the value before them, and before the first observation the first."""
    seen = np.isfinite(rows)
    steps = np.where(seen, np.arange(rows.shape[1]), -1)
    before = np.maximum.accumulate(steps, 1)
    before = np.where(before < 0, seen.argmax(1)[:, None], before)
    return np.asarray(np.take_along_axis(rows, before, 1))


# --- statistical models of each series


class Local(Baseline):
    """A statistical model of each series, fitted once and then run over any history of it."""

    def __init__(self, *, season: int = 1, window: int = 1, horizon: int = 1) -> None:
        super().__init__(season=season, window=window, horizon=horizon)
        self.fitted: list[Any] = []

    def fit(self: _Local, values: Sequence[Array]) -> _Local:
        """The same, fitted to every series; one that fails is named in `failures`."""
        self.failures.clear()
        self.fitted = []
        for index, series in enumerate(columns(values)):
            self.fitted.append(self._guarded(index, self._fit, _observed(series)))
        return self

    def forecast(self, past: Past, horizon: int, *, series: Sequence[int] | None = None) -> Array:
        """The next values; see `Baseline.forecast`. A row of no fitted series is fitted to its own history."""
        rows = aligned(past)
        owners = range(len(rows)) if series is None and len(rows) == len(self.fitted) else series
        forecasts = LastValue().forecast(rows, horizon)
        for index, row in enumerate(rows):
            history = _observed(row)
            owner = None if owners is None else owners[index]
            state = self.fitted[owner] if owner is not None else self._guarded(index, self._fit, history)
            if state is None:
                continue
            ahead = self._guarded(index, self._run, state, history, horizon)
            if ahead is not None:
                forecasts[index] = ahead
        return forecasts

    def _guarded(self, index: int, work: Callable[..., Any], *arguments: Any) -> Any:
        """What the work gives; None if it fails or is not finite, which is written down."""
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                result = work(*arguments)
            if isinstance(result, np.ndarray) and not np.isfinite(result).all():
                raise ValueError("the forecast is not finite")
        except Exception as error:  # of whatever a library finds wrong with a series
            self.failures[index] = one_line(error)
            return None
        return result

    @abstractmethod
    def _fit(self, history: Array) -> Any:
        """What the model learns of a history without gaps."""

    @abstractmethod
    def _run(self, state: Any, history: Array, horizon: int) -> Array:
        """The next values (horizon,) of a history, by what was learnt."""


def _observed(row: Array) -> Array:
    """From the first observation on, with later gaps filled."""
    seen = np.flatnonzero(np.isfinite(row))
    return filled(row[None, seen[0] :])[0] if len(seen) else np.empty(0)


class StatsmodelsAR(Local):
    """statsmodels' AutoReg with a constant; its order is the season and one, as far as the series allows."""

    def _fit(self, history: Array) -> Array:
        from statsmodels.tsa.ar_model import AutoReg

        lags = min(max(self.season, 2) + 1, len(history) // 3)
        if lags < 1:
            raise ValueError(f"has {len(history)} values; an autoregression needs 3")
        if np.ptp(history) == 0:
            return np.array([history[-1], *[0.0] * lags])
        return np.asarray(AutoReg(history, lags=lags, trend="c").fit().params)

    def _run(self, state: Array, history: Array, horizon: int) -> Array:
        lags = len(state) - 1
        known = np.concatenate([np.full(lags, history[0]), history])[-lags:].tolist()
        for _ in range(horizon):
            known.append(state[0] + float(np.dot(state[1:], known[: -lags - 1 : -1])))
        return np.array(known[lags:])


class StatsmodelsETS(Local):
    """statsmodels' exponential smoothing: level, damped trend, and the season where two of them were seen.

    It sees the last thousand values, or five seasons if those are more.
    """

    def _fit(self, history: Array) -> Any:
        history = self._recent(history)
        model = self._model(history, seasonal=1 < self.season <= len(history) // 2)
        return model.fit().params, model.seasonal

    def _run(self, state: Any, history: Array, horizon: int) -> Array:
        params, seasonal = state
        history = self._recent(history)
        model = self._model(history, seasonal=bool(seasonal) and 2 * self.season <= len(history))
        weights = ("smoothing_level", "smoothing_trend", "damping_trend", "smoothing_seasonal")
        given = {name: params[name] for name in weights if np.isfinite(params.get(name, np.nan))}
        if not model.seasonal:
            given.pop("smoothing_seasonal", None)
        return np.asarray(model.fit(optimized=False, **given).forecast(horizon))

    def _recent(self, history: Array) -> Array:
        return history[-max(1000, 5 * self.season) :]

    def _model(self, history: Array, *, seasonal: bool) -> Any:
        from statsmodels.tsa.holtwinters import ExponentialSmoothing

        if len(history) < 5:
            raise ValueError(f"has {len(history)} values; exponential smoothing needs 5")
        season = {"seasonal": "add", "seasonal_periods": self.season} if seasonal else {}
        initial = "heuristic" if len(history) >= max(10, 2 * self.season) else "legacy-heuristic"
        return ExponentialSmoothing(history, trend="add", damped_trend=True, initialization_method=initial, **season)


BASELINES: dict[str, type[Baseline]] = {
    "last_value": LastValue,
    "drift": Drift,
    "seasonal_naive": SeasonalNaive,
    "seasonal_mean": SeasonalMean,
    "ridge": Ridge,
    "ridge_level": RidgeLevel,
    "autoreg": StatsmodelsAR,
    "ets": StatsmodelsETS,
}
"""Always at hand, by the name that tables show."""
