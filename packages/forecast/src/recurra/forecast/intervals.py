"""Intervals around forecasts from the errors of windows that the model was not trained on (split conformal).

Of n errors, the interval of level L takes the k-th smallest magnitude, k = ceil((n + 1) L / 100) (Vovk et al. 2005;
Lei et al. 2018): a new value lies inside with at least L percent, whatever the errors' distribution, if they are
exchangeable. Where k > n the errors are too few to say anything: the interval is infinite.

A two-sided level is a pair of quantiles, level 90 those of .05 and .95.
"""

import math
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from recurra.core.errors import UserError

Array = NDArray[Any]


# --- levels and their columns


def parse_levels(levels: Iterable[float | int | str] | str) -> tuple[float, ...]:
    """The levels, percent, ascending and each once.

    Args:
        levels: numbers, their texts, or one text with commas: "80,95".

    Raises:
        UserError: one is not between 0 and 100, or looks like a fraction.
    """
    given = [part.strip() for part in levels.split(",")] if isinstance(levels, str) else list(levels)
    return tuple(sorted({_level(one) for one in given if one != ""}))


def _level(given: float | int | str) -> float:
    try:
        level = float(given)
    except (TypeError, ValueError):
        level = math.nan
    if 0 < level < 1:
        raise UserError(f"levels are percentages; got {given}, did you mean {100 * level:g}?")
    if isinstance(given, bool) or not 0 < level < 100:
        raise UserError(f"levels must be percentages between 0 and 100, such as 80,95; got {given!r}")
    return level


def interval_columns(model: str, levels: Sequence[float]) -> dict[float, tuple[str, str]]:
    """Names of the lower and upper columns of each level: MODEL-lo-80, MODEL-hi-80; 97.5 is written 97.5."""
    return {level: (f"{model}-lo-{level:g}", f"{model}-hi-{level:g}") for level in levels}


def columns_of_intervals(columns: Iterable[str]) -> dict[str, dict[float, tuple[str, str]]]:
    """The models that a table has intervals of, with the levels and the names of their columns; a lone end is none."""
    names = [name for name in columns if isinstance(name, str)]
    found: dict[str, dict[float, tuple[str, str]]] = {}
    for name in names:
        match = re.fullmatch(r"(.+)-lo-(\d+(?:\.\d+)?)", name)
        if match and f"{match[1]}-hi-{match[2]}" in names:
            found.setdefault(match[1], {})[float(match[2])] = (name, f"{match[1]}-hi-{match[2]}")
    return found


def quantiles_of(levels: Sequence[float]) -> tuple[float, ...]:
    """The quantiles that the ends of the levels are, ascending, with the median: (90) gives (.05, .5, .95)."""
    ends = {round(0.5 + sign * level / 200, 12) for level in levels for sign in (-1, 1)}
    return tuple(sorted(ends | {0.5}))


# --- the quantile


def rank(count: int, level: float) -> int:
    """Which of `count` magnitudes, in their order from 1, is the half width of a level; above `count` if none is."""
    # Levels such as 97.5 of 39 + 1 make 39 exactly; rounding must not make it 40.
    return math.ceil(round((count + 1) * level / 100, 9))


def fewest(level: float) -> int:
    """How many residuals a level needs at least to have a finite width: 9 for 90, 19 for 95."""
    count = max(1, math.floor(level / (100 - level)) - 1)
    while rank(count, level) > count:
        count += 1
    return count


def conformal_quantile(residuals: Float[np.ndarray, "row *rest"], level: float) -> Float[np.ndarray, "*rest"]:
    """The half width of a level: that rank of the residuals' magnitudes, infinite where they are too few.

    Args:
        residuals: along the first axis; those that are not finite are unknown and do not count.
        level: percent.
    """
    return _ranked(_sorted(np.abs(residuals)), level)


def _sorted(scores: Array) -> Array:
    """Ascending along the last axis, which was the first; what is not finite is unknown and comes last, as infinity."""
    known = np.where(np.isfinite(scores), scores, np.inf)
    return np.sort(np.moveaxis(known, 0, -1), axis=-1)


def _ranked(ascending: Array, level: float) -> Array:
    """Of sorted values along the last axis, the one at the level's rank among those that are known, else infinity."""
    count = np.isfinite(ascending).sum(-1)
    if not ascending.shape[-1]:
        return np.full(ascending.shape[:-1], np.inf, ascending.dtype)
    ranks = np.ceil(np.round((count + 1) * level / 100, 9)).astype(np.int64)
    index = np.minimum(ranks, ascending.shape[-1]) - 1
    taken = np.take_along_axis(ascending, index[..., None], axis=-1)[..., 0]
    return np.where(ranks <= count, taken, np.asarray(np.inf, ascending.dtype))


# --- intervals


class Conformal:
    """Half widths of intervals for each step of the horizon and each channel.

    Args:
        residuals: (row, horizon, channel), on the model's scale; those that are not finite are unknown. Magnitudes are
            enough unless `signed`.
        signed: lower and upper end each from its own tail, value minus forecast; each takes (100 - level) / 2 percent.
    """

    def __init__(self, residuals: Float[np.ndarray, "row horizon channel"], *, signed: bool = False) -> None:
        if residuals.ndim != 3:
            raise ValueError(f"residuals have shape {residuals.shape}; expected (row, horizon, channel)")
        self.signed, self.count = signed, np.isfinite(residuals).sum(0)
        self._above = _sorted(residuals if signed else np.abs(residuals))
        self._below = _sorted(-residuals) if signed else self._above

    def half_widths(self, levels: Sequence[float]) -> Float[np.ndarray, "level horizon channel"]:
        """What to add to a forecast and subtract from it; infinite where the residuals are too few, see `reason`.

        A higher level is never narrower.

        Raises:
            ValueError: the ends differ: ask for `ends`.
        """
        if self.signed:
            raise ValueError("signed residuals have two widths; ask for ends()")
        widths = [_ranked(self._above, level) for level in levels]
        return np.stack(widths) if widths else np.zeros((0, *self._above.shape[:-1]), self._above.dtype)

    def ends(
        self, levels: Sequence[float]
    ) -> tuple[Float[np.ndarray, "level horizon channel"], Float[np.ndarray, "level horizon channel"]]:
        """What to add to a forecast for the lower and the upper end; they may have the same sign where it is biased.

        A higher level is never narrower, and the lower end is never above the upper.
        """
        if not self.signed:
            half = self.half_widths(levels)
            return -half, half
        tails = [(level + 100) / 2 for level in levels]
        upper = [_ranked(self._above, tail) for tail in tails]
        lower = [-_ranked(self._below, tail) for tail in tails]
        empty = np.zeros((0, *self._above.shape[:-1]), self._above.dtype)
        return (np.stack(lower), np.stack(upper)) if tails else (empty, empty)

    def intervals(
        self, forecast: Float[np.ndarray, "batch horizon variate"], levels: Sequence[float]
    ) -> tuple[Float[np.ndarray, "batch horizon variate level"], Float[np.ndarray, "batch horizon variate level"]]:
        """Lower and upper ends around forecasts on the residuals' scale; one channel serves all variates."""
        low, high = (np.moveaxis(end, 0, -1) for end in self.ends(levels))
        return forecast[..., None] + low, forecast[..., None] + high

    def reason(self, levels: Sequence[float]) -> str:
        """Why intervals are infinite, in one line; empty if none is."""
        if not levels or not self.count.size:
            return ""
        least, widest = int(self.count.min()), max(levels)
        needed = fewest((widest + 100) / 2 if self.signed else widest)
        if least >= needed:
            return ""
        return f"{least} residuals are too few for level {widest:g}, which is infinite then; expected at least {needed}"


class RollingConformal:
    """Split conformal that goes on while it forecasts: the errors that have come in since are taken in.

    The error of the forecast from origin o for step h is known when the value of o + h is, so that it is used from the
    origin o + h on and never before.

        rolling = RollingConformal(checkpoint_residuals, capacity=500)
        for origin in origins:
            lower, upper = rolling.at(origin).intervals(forecast, levels)
            rolling.add(origin, actual - forecast)          # as soon as one likes: nothing is used too early

    Args:
        residuals: (row, horizon, channel) that are known from the start, oldest first.
        capacity: how many of the last errors are kept for each step and channel; by default as many as at the start,
            at least 100.
        signed: as for `Conformal`.
    """

    def __init__(
        self,
        residuals: Float[np.ndarray, "row horizon channel"],
        *,
        capacity: int | None = None,
        signed: bool = False,
    ) -> None:
        rows, horizon, channels = residuals.shape
        self.capacity, self.signed, self.horizon = capacity or max(rows, 100), signed, horizon
        size = self.capacity + horizon  # a row is known whole only as many origins later as it has steps
        self._residuals = np.full((horizon, channels, size), np.nan, np.float32)
        # What is known from the start is older than any origin.
        self._origins = np.full(size, np.iinfo(np.int64).min // 2)
        kept = residuals[-self.capacity :]
        self._residuals[..., : len(kept)] = np.moveaxis(kept, 0, -1)
        self._next = len(kept)
        self._last: int | None = None

    def add(self, origin: int, residuals: Float[np.ndarray, "horizon channel"]) -> None:
        """Take in the errors, value minus forecast, of the forecast from an origin, its last known row.

        Raises:
            ValueError: the origin lies before one that was taken in.
        """
        if self._last is not None and origin < self._last:
            raise ValueError(f"origin {origin} comes after {self._last}; expected origins in their order in time")
        self._last = origin
        self._residuals[..., self._next], self._origins[self._next] = residuals, origin
        self._next = (self._next + 1) % len(self._origins)

    def at(self, origin: int) -> Conformal:
        """The intervals of a forecast from an origin: of the errors of values up to that row."""
        age = (np.arange(len(self._origins)) - self._next) % len(self._origins)  # 0 for the oldest
        steps = np.arange(1, self.horizon + 1)
        known = np.searchsorted(np.roll(self._origins, -self._next), origin - steps, side="right")[:, None]
        usable = (age < known) & (age >= known - self.capacity)  # (step, row)
        residuals = np.where(usable[:, None], self._residuals, np.float32(np.nan))
        return Conformal(np.moveaxis(residuals, -1, 0), signed=self.signed)


def conformalized_quantiles(
    lower: Float[np.ndarray, "row horizon channel"],
    upper: Float[np.ndarray, "row horizon channel"],
    target: Float[np.ndarray, "row horizon channel"],
    level: float,
) -> Float[np.ndarray, "horizon channel"]:
    """What widens the quantile forecasts of a level on both sides, negative if they are too wide (Romano et al. 2019).

    Args:
        lower: forecasts of the quantile (1 - level / 100) / 2 of windows that the model was not trained on.
        upper: of the other end.
        target: what came; NaN where nothing was observed.
        level: percent.
    """
    score = np.maximum(lower - target, target - upper)
    return _ranked(_sorted(score), level)


def widen(
    lower: Float[np.ndarray, "*shape"], upper: Float[np.ndarray, "*shape"], by: Float[np.ndarray, "..."] | float
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """The ends moved apart by `by`; where that is so negative that they would cross, both are the middle."""
    low, high = np.broadcast_arrays(lower - by, upper + by)
    middle = (lower + upper) / 2
    crossed = low > high
    return np.where(crossed, middle, low), np.where(crossed, middle, high)


# --- bounds, and what may be scored


def bounded(
    values: Float[np.ndarray, "*shape"],
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    integer: bool = False,
) -> Float[np.ndarray, "*shape"]:
    """Forecasts or ends of intervals within bounds, whole where asked; order among them is kept, infinities too.

    Args:
        values: in original units.
        minimum: the least that they can be.
        maximum: the most.
        integer: round to whole numbers, and bounds inwards.

    Raises:
        UserError: no value is allowed.
    """
    low, high = (-math.inf if minimum is None else minimum), (math.inf if maximum is None else maximum)
    if integer:
        low, high = (math.ceil(low) if math.isfinite(low) else low), (math.floor(high) if math.isfinite(high) else high)
    if not low <= high:
        whole = " whole" if integer else ""
        raise UserError(f"no{whole} value lies between minimum {minimum} and maximum {maximum}; give a wider range")
    rounded = np.rint(values) + 0.0 if integer else values  # a plus zero, never a minus zero
    return np.asarray(np.clip(rounded, np.asarray(low, values.dtype), np.asarray(high, values.dtype)))


def check_disjoint(
    calibration: Iterable[tuple[Hashable, int, int]], scored: Iterable[tuple[Hashable, int, int]]
) -> None:
    """Refuse intervals that are scored on the rows they were made of.

    Args:
        calibration: id, first row and end (exclusive) of the values whose residuals make the intervals.
        scored: likewise of the values that are scored.

    Raises:
        UserError: they share rows; its line names the first id and the rows.
    """
    ranges: dict[Hashable, list[tuple[int, int]]] = {}
    for name, start, stop in scored:
        ranges.setdefault(name, []).append((start, stop))
    for name, start, stop in calibration:
        for first, last in ranges.get(name, ()):
            if max(start, first) < min(stop, last):
                raise UserError(
                    f"intervals are calibrated on rows that are scored: {name!r}, rows {max(start, first)} to "
                    f"{min(stop, last) - 1}; calibrate on rows before those, or score others"
                )


def quantile_levels(quantiles: Sequence[float]) -> dict[float, tuple[int, int]]:
    """The levels that quantile forecasts have both ends of, and their indices: (.05, .5, .95) gives {90: (0, 2)}."""
    places = {round(quantile, 9): index for index, quantile in enumerate(quantiles)}
    pairs = {q: (index, places.get(round(1 - q, 9))) for q, index in places.items() if q < 0.5}
    found = {round(100 * (1 - 2 * q), 7): (low, high) for q, (low, high) in pairs.items() if high is not None}
    return dict(sorted(found.items()))
