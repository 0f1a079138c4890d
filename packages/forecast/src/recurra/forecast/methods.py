"""Ways to forecast the same windows beside each other: a network and the simple forecasts that it must beat."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recurra.core.errors import UserError, nearest
from recurra.forecast.baselines import BASELINES, Baseline
from recurra.forecast.data.prepared import Prepared
from recurra.forecast.data.scaler import Scaler
from recurra.forecast.data.windows import Windows
from recurra.forecast.inference import Forecasts, Intervals, Widths, by_channel, forecast_batch
from recurra.forecast.intervals import quantile_levels
from recurra.forecast.models.forecaster import Forecaster
from recurra.forecast.zero_shot import ZERO_SHOT

Array = NDArray[np.float64]
_CALIBRATION = 200
"""Windows of the validation rows that the intervals of a method are made from."""


@dataclass(frozen=True)
class Batch:
    """Windows in original units.

    Attributes:
        tensors: as `Windows` gives them, for the network.
        history: (batch, time, variate) up to each origin, longer than the window; NaN where nothing is known.
        target: (batch, step, variate), NaN where nothing was observed.
        ids: (batch, variate) number of the series and variable.
        origin: (batch,) step of the origin on the time axis that all series share.
        scale: (batch, variate) of the training rows, which residuals of different series are compared on.
        center: likewise.
        indices: of the windows.
    """

    tensors: Mapping[str, Tensor]
    history: Array
    target: Array
    ids: NDArray[np.int64]
    origin: NDArray[np.int64]
    scale: Array
    center: Array
    indices: NDArray[np.int64]


class Views:
    """Windows of a part of a table, for every method the same.

    Args:
        prepared: the table.
        model: says how long windows are.
        reach: rows of history that methods are given.
        starts: step of each block's first row on the time axis that all series share.
    """

    def __init__(self, prepared: Prepared, model: Forecaster, reach: int, starts: Sequence[int]) -> None:
        self.prepared, self.model, self.reach, self.starts = prepared, model, reach, np.asarray(starts)
        blocks = prepared.blocks
        self.variables = len(prepared.panel.variables)
        self.first = np.cumsum([0, *(len(block.values) + reach for block in blocks)])
        self.values = np.full((self.first[-1], blocks[0].values.shape[1]), np.nan)
        for first, block in zip(self.first, blocks, strict=False):
            self.values[first + reach : first + reach + len(block.values)] = block.values
        self.needs: NDArray[np.int64] | None = None
        if any(block.needs is not None for block in blocks):
            self.needs = np.full(len(self.values), -1, np.int64)
            for first, block in zip(self.first, blocks, strict=False):
                if block.needs is not None:
                    self.needs[first + reach : first + reach + len(block.values)] = block.needs
        stops = [stop for _, stop in prepared.borders["train"]]
        scalers = [Scaler.fit("standard", block.seen(stop)) for block, stop in zip(blocks, stops, strict=True)]
        self.center = np.stack([one.shift for one in scalers])
        self.scale = np.stack([one.scale for one in scalers])
        width = self.values.shape[1]
        self.ids = np.arange(len(blocks) * width).reshape(len(blocks), width)

    def batches(self, windows: Windows, size: int, chosen: NDArray[np.int64] | None = None) -> Iterator[Batch]:
        """The windows, so many at a time."""
        order = np.arange(len(windows)) if chosen is None else chosen
        for first in range(0, len(order), size):
            indices = order[first : first + size]
            block, origin = windows.block[indices], windows.origin[indices]
            rows = (self.first[block] + self.reach + origin)[:, None]
            parts = (
                self.values[rows + np.arange(-self.reach, 0)],
                self._target(block, rows, windows),
                self.ids[block][:, None],
                self.scale[block][:, None],
                self.center[block][:, None],
            )
            if windows.layout == "samples":
                parts = tuple(_apart(part, self.variables) for part in parts)  # type: ignore[assignment]
            history, target, ids, scale, center = parts
            repeats = len(history) // len(indices)
            yield Batch(
                windows.__getitems__(indices.tolist()),
                history,
                target,
                ids[:, 0],
                np.repeat(self.starts[block] + origin, repeats),
                scale[:, 0],
                center[:, 0],
                np.asarray(indices, np.int64),
            )

    def _target(self, block: NDArray[np.int64], rows: NDArray[np.int64], windows: Windows) -> Array:
        ahead = rows + np.arange(windows.horizon)
        inside = np.minimum(ahead, len(self.values) - 1)
        target = self.values[inside]
        beyond = ahead >= self.first[block + 1][:, None]
        if self.needs is not None:
            beyond |= self.needs[inside] >= np.asarray(windows.known)[block][:, None]
        return np.where(beyond[..., None], np.nan, target)


def _apart(values: NDArray[np.generic], variables: int) -> NDArray[np.generic]:
    """(batch, step, sample x variable) -> (batch x sample, step, variable)."""
    batch, steps, _ = values.shape
    return values.reshape(batch, steps, -1, variables).transpose(0, 2, 1, 3).reshape(-1, steps, variables)


@dataclass
class Method:
    """A way to forecast.

    Attributes:
        name: in tables.
        solve: batch -> point (batch, step, variate), in original units.
        seconds: spent in it.
        fitted: the baseline, if it is one.
        widths: of intervals, from its residuals on validation rows; None before `calibrate`.
        heads: levels that a network's own quantiles are the ends of, and their places among these.
        made: what a network gave for the last batch.
        own: the intervals that a network's checkpoint gives, of some levels; None if it keeps no residuals.
        channels: of the checkpoint's residuals, by id; None where residuals of the scored table are to count.
    """

    name: str
    solve: Callable[[Batch], Array]
    seconds: float = 0.0
    fitted: Baseline | None = field(default=None, repr=False)
    widths: Widths | None = field(default=None, repr=False)
    heads: dict[float, tuple[int, int]] = field(default_factory=dict)
    made: Forecasts | None = field(default=None, repr=False)
    own: Callable[[tuple[float, ...]], Intervals] | None = field(default=None, repr=False)
    channels: NDArray[np.int64] | None = field(default=None, repr=False)

    def __call__(self, batch: Batch) -> Array:
        """The forecasts."""
        started = time.perf_counter()
        made = self.solve(batch)
        self.seconds += time.perf_counter() - started
        return made

    def calibrate(self, views: Views, windows: Windows) -> Array:
        """Keep, and give, absolute residuals (row, step, id) of windows on the validation rows.

        They are over the scale of the training rows, and infinite where one is unknown.
        """
        chosen = _each(windows, _CALIBRATION)
        found, owners, before = [], [], self.seconds
        for batch in views.batches(windows, 64, chosen) if len(chosen) else ():
            residual = np.abs(batch.target - self(batch)) / batch.scale[:, None]
            found.append(np.where(np.isnan(residual), np.inf, residual))
            owners.append(batch.ids)
        self.seconds = before
        residuals = np.concatenate(found) if found else np.zeros((0, windows.horizon, 1))
        if found and residuals.shape[2] < views.ids.size:  # the windows are of one id each, or of one sample
            flat = np.moveaxis(residuals, 2, 1).reshape(-1, windows.horizon, 1)
            residuals = by_channel(flat, np.concatenate(owners).ravel(), views.ids.size, _CALIBRATION)
        self.widths = Widths(residuals)
        return residuals

    def ends(
        self, batch: Batch, point: Array, levels: Sequence[float], *, residuals: bool = False
    ) -> tuple[Array, Array]:
        """Lower and upper ends (batch, step, variate, level), as `forecast` gives them; or of `residuals` alone."""
        if self.own is not None and self.channels is not None and self.made is not None:
            made = replace(self.made, quantiles=None) if residuals else self.made
            return self.own(tuple(levels)).ends(made, self.channels.reshape(-1)[batch.ids])
        assert self.widths is not None
        half = self.widths.of(levels, batch.ids) * batch.scale[:, None, :, None]
        lower, upper = point[..., None] - half, point[..., None] + half
        quantiles = None if self.made is None or residuals else self.made.quantiles
        if quantiles is not None:
            for at, level in enumerate(levels):
                if level in self.heads:
                    below, above = self.heads[level]
                    lower[..., at], upper[..., at] = quantiles[..., below], quantiles[..., above]
        return lower, upper

    def use(self, model: Forecaster, tensors: Callable[[Batch], Mapping[str, Tensor]], *, by_window: bool) -> "Method":
        """Forecast with this network from now on.

        Args:
            model: the network.
            tensors: its inputs.
            by_window: see `forecast_batch`.
        """

        def solve(batch: Batch) -> Array:
            self.made = forecast_batch(model, tensors(batch), batch.target.shape[1], by_window=by_window)
            return self.made.point

        self.solve, self.heads = solve, quantile_levels(model.quantiles)
        self.own = cache(lambda levels: Intervals(model, levels, model.horizon)) if len(model.residuals) else None
        return self


def _each(windows: Windows, most: int) -> NDArray[np.int64]:
    """Windows of every block, evenly, at most so many of each."""
    found = []
    for number in np.unique(windows.block):
        own = np.flatnonzero(windows.block == number)
        found.append(own[np.unique(np.linspace(0, len(own) - 1, min(most, len(own))).round().astype(np.int64))])
    return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)


def network(name: str, model: Forecaster, *, by_window: bool) -> Method:
    """The method of a network."""
    return Method(name, _unset).use(model, lambda batch: batch.tensors, by_window=by_window)


def _unset(batch: Batch) -> Array:
    raise AssertionError("a network's method has no network yet")


def check_baselines(names: Sequence[str]) -> None:
    """Refuse a baseline that there is none of.

    Raises:
        UserError: its name is unknown.
    """
    for name in names:
        if name not in BASELINES and name not in ZERO_SHOT:
            raise UserError(f"baselines: there is no {name!r}{nearest(name, [*BASELINES, *ZERO_SHOT])}")


def baselines(names: Sequence[str], views: Views, season: int) -> list[Method]:
    """The methods of baselines, fitted on the training rows, of which each series is on a scale of its own."""
    blocks, borders = views.prepared.blocks, views.prepared.borders["train"]
    train = [
        (rows[:, variate] - views.center[number, variate]) / views.scale[number, variate]
        for number, (block, (_, stop)) in enumerate(zip(blocks, borders, strict=True))
        for rows in [block.seen(stop)]
        for variate in range(rows.shape[1])
    ]
    made = []
    for name in names:
        kind = BASELINES.get(name) or ZERO_SHOT[name]
        fitted = kind(season=season, window=views.model.window, horizon=views.model.horizon).fit(train)
        made.append(Method(name, _of_baseline(fitted), fitted=fitted))
    return made


def _of_baseline(fitted: Baseline) -> Callable[[Batch], Array]:
    def solve(batch: Batch) -> Array:
        windows, steps, variates = batch.history.shape
        past = (batch.history - batch.center[:, None]) / batch.scale[:, None]
        past = np.moveaxis(past, 2, 1).reshape(-1, steps)
        made = fitted.forecast(past, batch.target.shape[1], series=batch.ids.reshape(-1).tolist())
        return np.moveaxis(made.reshape(windows, variates, -1), 1, 2) * batch.scale[:, None] + batch.center[:, None]

    return solve
