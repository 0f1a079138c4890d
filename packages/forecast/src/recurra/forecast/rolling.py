"""Forecasts of all methods from many origins in the order of time: written as they are made, and scored."""

import csv
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from recurra.core.device import choose_device
from recurra.core.errors import Interrupted, UserError
from recurra.core.files import writing
from recurra.core.inspection import Fact
from recurra.core.screen import print_table, progress
from recurra.forecast.data.context import Context
from recurra.forecast.data.panel import Panel, Series
from recurra.forecast.data.prepared import Prepared, shared_starts
from recurra.forecast.data.windows import Windows, blocks_of
from recurra.forecast.evaluation import NAIVE, mase_scale, seed_folders
from recurra.forecast.inference import load_checkpoint
from recurra.forecast.intervals import RollingConformal, interval_columns, parse_levels
from recurra.forecast.methods import Batch, Method, Views, baselines, check_baselines, network
from recurra.forecast.metrics import Scorer, ratios
from recurra.forecast.models.forecaster import Forecaster

Array = NDArray[np.float64]
ROWS, TABLE, SUMMARY, STRIP, TRADES = "backtest.csv", "metrics.csv", "metrics.json", "strip.png", "trading.csv"
_ROLLING = 50_000_000
"""The most residuals that rolling intervals keep: 200 MB."""


@dataclass(frozen=True)
class Backtesting:
    """How a table is forecast from many origins; see the verb `backtest`."""

    checkpoint: "str | Path | Forecaster"
    origins: int | None = None
    stride: int | None = None
    cutoffs: tuple[str, ...] = ()
    refit: int = 0
    baselines: tuple[str, ...] = ()
    levels: tuple[str | float | int, ...] = ("80", "95")
    rolling: bool = True
    season: int | None = None
    trading: bool = False
    fee: float = 0.001
    fill: str | None = None
    device: str = "auto"
    batch_size: int = 256
    quiet: bool = False
    preview: bool = True

    def check(self) -> None:
        """Refuse options that do not serve.

        Raises:
            UserError: they contradict each other, or one names nothing.
        """
        parse_levels(self.levels)
        check_baselines(self.baselines)
        if self.cutoffs and (self.origins or self.stride):
            raise UserError("--cutoff names the origins; --origins and --stride choose others. Give one of them")
        if self.refit and not recipe_of(self.checkpoint):
            raise UserError(f"{self.checkpoint}: has no recipe.yaml to train by again; give a run folder, or --refit 0")


@dataclass
class Backtest:
    """What came of it.

    Attributes:
        title: what was forecast.
        scores: of each method.
        trading: table of strategies, if there is one.
        outputs: files written.
        notes: what a user should hear.
    """

    title: str
    scores: dict[str, dict[str, float]]
    outputs: list[Path]
    trading: pd.DataFrame | None = None
    notes: list[str] = field(default_factory=list)

    def show(self) -> None:
        """Print the tables, the notes and the paths."""
        names = list(next(iter(self.scores.values())))
        print_table(
            ("method", *names),
            [(method, *(row[name] for name in names)) for method, row in self.scores.items()],
            title=self.title,
        )
        if self.trading is not None:
            rows = self.trading.astype(object).where(self.trading.notna(), "").to_numpy().tolist()
            print_table(
                tuple(self.trading.columns),
                rows,
                title="trading, long or flat, beside random signals of as many trades",
            )
        for note in self.notes:
            print(f"note: {note}")
        for path in self.outputs:
            print(path)


def recipe_of(checkpoint: Any) -> Path | None:
    """The recipe that a run folder, or the first of its seeds, was trained by; None if there is none."""
    folder = Path(str(checkpoint))
    seeds = seed_folders(folder)
    path = (seeds[0] if seeds else folder) / "recipe.yaml"
    return path if path.is_file() else None


class Rolling:
    """Forecasts of all methods from all origins, in the order of time."""

    def __init__(
        self, how: Backtesting, prepared: Prepared, windows: Windows, models: dict[str, Forecaster], season: int
    ) -> None:
        self.how, self.prepared, self.windows, self.models = how, prepared, windows, models
        self.levels = parse_levels(how.levels)
        model = next(iter(models.values()))
        self.starts = np.asarray(shared_starts(prepared))
        self.views = Views(prepared, model, max(model.window, 3 * season + 1), self.starts.tolist())
        self.simple = baselines(how.baselines, self.views, season)
        by_window = prepared.context.by_window
        self.networks = [network(name, one, by_window=by_window) for name, one in models.items()]
        order = np.lexsort((windows.block, self.starts[windows.block] + windows.origin))
        self.order = order.astype(np.int64)
        self.times = (self.starts[windows.block] + windows.origin)[self.order]
        stops = [stop for _, stop in prepared.borders["train"]]
        scale = [
            pair
            for block, stop in zip(prepared.blocks, stops, strict=True)
            for pair in mase_scale(block.seen(stop), season)
        ]
        absolute, square = (np.asarray(one) for one in zip(*scale, strict=True))
        self.scorers = {
            one.name: Scorer(
                windows.horizon, len(absolute), scale=(absolute, square), levels=self.levels, correlations=False
            )
            for one in [*self.simple, *self.networks]
        }
        self.notes: list[str] = prepared.left_out()
        self.kept: list[tuple[Batch, dict[str, Array]]] = []
        self.one_step: dict[str, list[Array]] = {one.name: [] for one in self.networks}
        self._prepare_intervals()

    def _prepare_intervals(self) -> None:
        model = next(iter(self.models.values()))
        val = self.prepared.windows("val", model)
        methods = [*self.simple, *self.networks]
        residuals = {method.name: method.calibrate(self.views, val) for method in methods}
        self.rolling: dict[str, RollingConformal] = {}
        series = self.views.ids.size
        for method, one in zip(self.networks, self.models.values(), strict=True):
            method.channels = self.prepared.channels(one)
        if not self.how.rolling or not self.levels:
            return
        if series * self.windows.horizon * 200 > _ROLLING:
            self.notes.append(
                f"{series} series x {self.windows.horizon} steps: intervals are those of the validation rows"
            )
            return
        for name, known in residuals.items():
            wide = known if known.shape[2] == series else np.repeat(known[..., :1], series, 2)
            self.rolling[name] = RollingConformal(np.where(np.isinf(wide), np.nan, wide))

    def write(self, stream: TextIO) -> None:
        """Write the rows, and score them."""
        table = csv.writer(stream)
        table.writerow(self._header())
        done, count = 0, len(self.order)
        try:
            with progress(count, "backtest", unit="windows", quiet=self.how.quiet) as advance:
                for indices in self._batches():
                    self._refit(int(self.times[done]), done)
                    for batch in self.views.batches(self.windows, len(indices), indices):
                        self._take(table, batch, indices)
                    done += len(indices)
                    advance(len(indices))
        except KeyboardInterrupt as stop:
            raise Interrupted(f"interrupted; {done} of {count} windows were done, nothing is written") from stop

    def _batches(self) -> Iterator[NDArray[np.int64]]:
        """Windows so many at a time: none across a refit, and those of one origin stay together."""
        size, refit = self.how.batch_size, self.how.refit
        edges = [0]
        instants = np.flatnonzero(np.diff(self.times, prepend=self.times[0] - 1))  # first window of every origin
        for number, place in enumerate(instants):
            if place > edges[-1] and ((refit and number % refit == 0) or place - edges[-1] >= size):
                edges.append(int(place))
        for first, last in zip(edges, [*edges[1:], len(self.order)], strict=True):
            yield self.order[first:last]

    def _refit(self, origin: int, done: int) -> None:
        """Train again on the rows before an origin, where that is due."""
        if not self.how.refit:
            return
        number = len(np.unique(self.times[: done + 1])) - 1
        if number % self.how.refit or not number:
            return
        for method, (name, model) in zip(self.networks, list(self.models.items()), strict=True):
            history = before(self.prepared.panel, origin)
            fresh = refitted(self.how, name, model, history)
            self.models[name] = fresh
            learned = self._learned(fresh, history)
            windows = learned.at(
                {
                    number: self.windows.origin[self.windows.block == number]
                    for number in np.unique(self.windows.block).tolist()
                },
                fresh,
            )
            method.use(fresh, partial(_tensors, windows), by_window=windows.by_window)
            method.channels = learned.channels(fresh)

    def _learned(self, model: Forecaster, history: Panel) -> Prepared:
        """The table on the scale that a model learned of these rows, and its covariates as it learned them."""
        panel, context = self.prepared.panel, Context.of(model)
        rows = {series.id: 0 for series in panel.series} | {series.id: len(series) for series in history.series}
        blocks = blocks_of(panel, model, context.scaling(panel, rows), context.opened_encoder())
        return Prepared(panel, context, blocks, {}, None)

    def _header(self) -> list[str]:
        id_name, time_name = self.prepared.panel.names
        names = [id_name, *(["variable"] if len(self.prepared.panel.variables) > 1 else []), time_name, "cutoff", "y"]
        for method in [*self.networks, *self.simple]:
            names.append(method.name)
            if method in self.networks:
                names += [end for pair in interval_columns(method.name, self.levels).values() for end in pair]
        return names

    def _take(self, table: Any, batch: Batch, indices: NDArray[np.int64]) -> None:
        made = {method.name: method(batch) for method in [*self.simple, *self.networks]}
        ends = {method.name: self._ends(method, batch, made[method.name]) for method in [*self.simple, *self.networks]}
        last = batch.history[:, -1]
        for name, point in made.items():
            lower, upper = ends[name]
            self.scorers[name].add(point, batch.target, ids=batch.ids, last=last, lower=lower, upper=upper)
        if len(self.kept) * self.how.batch_size < 2000:
            self.kept.append((replace(batch, tensors={}), made))
        for method in self.networks:
            self.one_step[method.name].append(made[method.name][:, 0, 0])
        columns = self._columns(batch, made, ends, indices)
        table.writerows(zip(*columns, strict=True))

    def _ends(self, method: Method, batch: Batch, point: Array) -> tuple[Array, Array]:
        """Ends of the intervals; rolling ones know the errors of values up to each origin, and no later one."""
        rolling = self.rolling.get(method.name)
        if rolling is None:
            return method.ends(batch, point, self.levels)
        lower, upper = (np.empty((*point.shape, len(self.levels))) for _ in range(2))
        residual = np.abs(batch.target - point) / batch.scale[:, None]
        for origin in np.unique(batch.origin):
            rows = np.flatnonzero(batch.origin == origin)
            half = rolling.at(int(origin) - 1).half_widths(self.levels)  # (level, step, id)
            errors = np.full(half.shape[1:], np.nan, np.float32)
            for row in rows:
                ids = batch.ids[row]
                width = np.moveaxis(half[:, :, ids], 0, -1) * batch.scale[row][None, :, None]
                lower[row], upper[row] = point[row][..., None] - width, point[row][..., None] + width
                errors[:, ids] = residual[row]
            rolling.add(int(origin) - 1, errors)
        return lower, upper

    def _columns(
        self, batch: Batch, made: dict[str, Array], ends: dict[str, tuple[Array, Array]], indices: NDArray[np.int64]
    ) -> list[Any]:
        panel, horizon = self.prepared.panel, self.windows.horizon
        variables = len(panel.variables)
        rows, _, variates = batch.target.shape
        per_window = rows // len(indices)
        window = np.repeat(indices, per_window)
        stamps, cutoffs = [], []
        for at in window:
            block, origin = self.prepared.blocks[self.windows.block[at]], int(self.windows.origin[at])
            ahead = [str(one) for one in block.stamps[origin : origin + horizon]]
            stamps += ahead * variates
            cutoffs += [str(block.stamps[origin - 1])] * (horizon * variates)
        ids = batch.ids.reshape(-1).repeat(horizon)
        names = np.asarray([str(series.id) for series in panel.series], object)
        columns: list[Any] = [names[ids // variables]]
        if variables > 1:
            columns.append(np.asarray(panel.variables, object)[ids % variables])
        flat = [stamps, cutoffs, _flat(batch.target)]
        columns += flat
        for method in [*self.networks, *self.simple]:
            columns.append(_flat(made[method.name]))
            if method in self.networks:
                lower, upper = ends[method.name]
                columns += [_flat(end[..., at]) for at in range(len(self.levels)) for end in (lower, upper)]
        return columns

    def result(self, out: Path) -> Backtest:
        """Scores, files, notes."""
        from recurra.forecast.figures import backtest_png

        found = {name: scorer.scores() for name, scorer in self.scorers.items()}
        if NAIVE in found:
            found = {name: {**row, **ratios(row, found[NAIVE])} for name, row in found.items()}
        wanted = [
            "mae",
            "rmse",
            "mase",
            "mase_ratio",
            "directional_accuracy",
            *(f"coverage_{level:g}" for level in self.levels),
        ]
        names = [name for name in wanted if all(name in row for row in found.values())]
        scores = {method: {name: row[name] for name in names} for method, row in found.items()}
        origins = len(np.unique(self.times))
        title = f"{self.prepared.panel.source}: {origins} origins, {len(self.order)} windows, original units"
        if self.windows.left_out:
            self.notes.append(f"{self.windows.left_out} windows have a missing value in their past, and are left out")
        with writing(out / TABLE) as part, part.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("method", *names), *((m, *row.values()) for m, row in scores.items())])
        with writing(out / SUMMARY) as part:
            content = {"scored": title, "mean": scores, "notes": self.notes}
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        outputs = [out / name for name in (ROWS, TABLE, SUMMARY)]
        if self.how.preview:
            outputs.append(backtest_png(out / STRIP, **self._strip()))
        return Backtest(title, scores, outputs, notes=self.notes)

    def _strip(self) -> dict[str, Any]:
        """What the picture shows: the first series over the origins that were kept, and the errors from each."""
        block, horizon = self.prepared.blocks[0], self.windows.horizon
        main = self.networks[0].name
        errors: dict[str, list[float]] = {method.name: [] for method in [*self.networks, *self.simple]}
        forecasts, origins = [], []
        for batch, made in self.kept:
            for row in np.flatnonzero(batch.ids[:, 0] == 0):
                origin = int(batch.origin[row] - self.starts[0])
                origins.append(origin)
                forecasts.append((block.stamps[origin : origin + horizon], made[main][row, :, 0]))
                for name, values in errors.items():
                    error = np.abs(made[name][row, :, 0] - batch.target[row, :, 0])
                    values.append(float(np.nanmean(error)) if np.isfinite(error).any() else np.nan)
        span = slice(min(origins, default=0), max(origins, default=0) + horizon)
        return {
            "stamps": block.stamps[span],
            "actual": block.values[span, 0],
            "forecasts": forecasts,
            "scores": {name: np.asarray(values) for name, values in errors.items()},
            "origins": block.stamps[origins],
            "name": block.name,
            "title": f"{main} from {len(origins)} origins",
        }


def _tensors(windows: Windows, batch: Batch) -> dict[str, Tensor]:
    """The same windows as those of a batch, out of others."""
    return windows.__getitems__(batch.indices.tolist())


def _flat(values: Array) -> Array:
    """(batch, step, variate) -> rows in the order of window, variate, step."""
    return np.moveaxis(values, 2, 1).reshape(-1)


def refitted(how: Backtesting, name: str, model: Forecaster, history: Panel) -> Forecaster:
    """The model trained anew by its recipe on these rows alone; of the last of them its intervals are made."""
    from recurra.forecast.training import train

    recipe = recipe_of(how.checkpoint)
    assert recipe is not None
    changes = ["data.fractions=[0.85,0.15,0.0]", "data.split=fractions", f"train.device={how.device}"]
    if model.layout == "series":
        changes.append("data.skip_short=true")
    if " seed-" in name:
        changes.append(f"train.seed={name.rpartition('-')[2]}")
    with tempfile.TemporaryDirectory(prefix="recurra-refit-") as folder:
        report = train(recipe, changes, frame=history, out=Path(folder) / "run", quiet=True)
        return load_checkpoint(report.folder).to(choose_device(how.device)).eval()


def before(panel: Panel, origin: int) -> Panel:
    """A table's rows before a step of the time axis that its series share, as they were known then."""
    first = min(series.stamps[0] for series in panel.series)
    pieces, none = [], set()
    for series in panel.series:
        begin = int(panel.frequency.steps(series.stamps[:1], first)[0])
        rows = min(max(0, origin - begin), len(series))
        needs = None if series.needs is None else np.where(series.needs[:rows] < rows, series.needs[:rows], -1)
        covariates = None if series.covariates is None else series.covariates.iloc[:rows]
        piece = Series(series.id, series.stamps[:rows], series.seen(0, rows), covariates, series.static, needs)
        pieces.append(piece)
        none |= set() if rows else {series.id}
    cut = replace(panel, series=pieces, facts=[], table=None)
    return cut.without(none, Fact("left out", f"{len(none)} series", "they begin later")) if none else cut
