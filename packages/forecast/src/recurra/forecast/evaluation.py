"""Scores a checkpoint beside the simple forecasts: the same windows, the same metrics, in the same units."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recurra.core.device import choose_device
from recurra.core.errors import UserError
from recurra.core.evaluation import Table, score_files
from recurra.core.files import find_inputs, guard_inputs
from recurra.core.inference import Runs, describe, options_digest
from recurra.core.processes import Work
from recurra.core.scores import Run, Scores, check
from recurra.core.screen import progress
from recurra.core.verbs import Inputs
from recurra.forecast.data.context import Context
from recurra.forecast.data.prepared import Prepared, prepare, shared_starts
from recurra.forecast.data.splits import Part, one_of_protocols
from recurra.forecast.data.tables import open_panel
from recurra.forecast.data.windows import Windows
from recurra.forecast.forecasting import SUFFIXES, is_forecast
from recurra.forecast.inference import load_checkpoint
from recurra.forecast.intervals import check_disjoint, parse_levels
from recurra.forecast.methods import Batch, Method, Views, baselines, check_baselines, network
from recurra.forecast.metrics import HIGHER_IS_BETTER, Scorer, ratios, seasonal_scale
from recurra.forecast.models.forecaster import Forecaster
from recurra.forecast.significance import diebold_mariano

Array = NDArray[np.float64]
NAIVE = "seasonal_naive"
_GRID = (20.0, 40.0, 60.0, 80.0)
"""Levels whose ends are the deciles, which CRPS is summed over."""
_DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_DROP_LAST = {"tpgn": 32}
"""Windows of a batch, of which the published protocol scores whole ones alone."""
_STANDARDISED = ("tslib", "tpgn")
_OUTPUTS = ("metrics.csv", "metrics.json", "comparison.png", "report.html")
SHOWN = ("mse", "mae", "rmse", "mase", "mase_ratio", "crps", "crps_ratio", "directional_accuracy")


@dataclass(frozen=True)
class Evaluation:
    """How tables are scored; see the verb `evaluate`."""

    checkpoint: "str | Path | Forecaster"
    protocol: str | None = None
    split: Part = "test"
    baselines: tuple[str, ...] = ()
    levels: tuple[str | float | int, ...] = ("80", "95")
    season: int | None = None
    standardised: bool = False
    fill: str | None = None
    device: str = "auto"
    batch_size: int = 256
    quiet: bool = False

    def check(self) -> dict[str, Forecaster]:
        """The models by their names in the table: of a checkpoint, or of the seeds in a folder.

        Raises:
            UserError: an option does not serve.
        """
        parse_levels(self.levels)
        check_baselines(self.baselines)
        if self.protocol is not None:
            one_of_protocols(self.protocol)
        seeds = seed_folders(self.checkpoint)
        if not seeds:
            model = load_checkpoint(self.checkpoint)
            return {type(model).__name__: model}
        models = {path.name: load_checkpoint(path) for path in seeds}
        return {f"{type(model).__name__} {name}": model for name, model in models.items()}


def seed_folders(checkpoint: Any) -> list[Path]:
    """The checkpoints of several seeds in a folder, by number; none if it is a checkpoint itself."""
    if not isinstance(checkpoint, str | Path) or not Path(checkpoint).is_dir():
        return []
    folder = Path(checkpoint)
    if (folder / "config.json").exists():
        return []
    found = [path for path in folder.glob("seed-*") if (path / "config.json").is_file()]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def evaluate_files(how: Evaluation, data: Inputs, *, out: Path | None, command: str | None, runs: Runs) -> Table:
    """What the verb `evaluate` does, with its options; `command` repeats it, and asks for the page to read."""
    models = how.check()
    if how.protocol == "regenn" and all("protocol" in model.metadata for model in models.values()):
        from recurra.forecast.protocols.verb import evaluate_regenn

        return evaluate_regenn(models, data, out=out, overwrite=runs.overwrite)
    files = [path for path in find_inputs(data, SUFFIXES, leave_out=[out] if out else []) if not is_forecast(path)]
    if not files:
        raise UserError("nothing to score: the files given are forecasts of earlier runs")
    if out is not None:
        guard_inputs([out / name for name in _OUTPUTS], files)
    first = next(iter(models.values()))
    run = Run(out, title(how, first), "series", draw=_draw, runs=runs)
    check(run)
    digests = [options_digest(model, {}) for model in models.values()]
    given = {
        name: getattr(how, name)
        for name in ("protocol", "split", "baselines", "levels", "season", "standardised", "fill")
    }
    run.options = options_digest(first, {"models": digests, **given})
    if command is not None:
        run.report = {
            "command": command,
            "checkpoint": {**describe(first), "digest with options": run.options},
            "higher_is_better": HIGHER_IS_BETTER,
            "main": "mse",
        }
    return score_files(files, partial(_scoring, how), run)


def title(how: Evaluation, model: Forecaster) -> str:
    """What is scored: rows, windows, units."""
    rule = how.protocol or str(Context.of(model).split.get("split", "fractions"))
    units = (
        "standardised by the training rows" if how.standardised or how.protocol in _STANDARDISED else "original units"
    )
    dropped = f", whole batches of {_DROP_LAST[how.protocol]} alone" if how.protocol in _DROP_LAST else ", all windows"
    return f"protocol {rule}, {how.split} rows{dropped}, {units}"


def _draw(path: Path, picture: Any) -> None:
    from recurra.forecast.figures import forecast_png

    fan, method, title = picture
    forecast_png(path, [fan], method=method, title=title)


def _scoring(how: Evaluation) -> Work[Scores]:
    """The work on a table, made once in every process."""
    models = {name: model.to(choose_device(how.device)).eval() for name, model in how.check().items()}
    return lambda path: score_table(how, models, path)


def score_table(how: Evaluation, models: dict[str, Forecaster], data: Any) -> Scores:
    """The scores of a table."""
    first = next(iter(models.values()))
    context = Context.of(first)
    options = {**context.options, **({} if how.fill is None else {"fill": how.fill})}
    panel = open_panel(data, **options)
    split = context.split if how.protocol is None else {**context.split, "split": how.protocol}
    prepared = prepare(panel, first, context, split)
    season = how.season or context.season
    reach = max(first.window, 3 * season + 1)
    views = Views(prepared, first, reach, shared_starts(prepared))
    simple = baselines(how.baselines, views, season)
    networks = [network(name, model, by_window=context.by_window) for name, model in models.items()]
    methods = [*simple, *networks]
    windows, val = prepared.windows(how.split, first), prepared.windows("val", first)
    if not len(windows):
        raise UserError(
            f"{panel.source}: no window of {first.window} + {first.horizon} steps lies in the {how.split} rows"
        )
    if how.split != "val" and len(val):
        check_disjoint(*(_targets(prepared, one) for one in (val, windows)))
    for method in methods:
        method.calibrate(views, val)
    if how.protocol is None and how.split != "val":  # the rows of other protocols may be those of the residuals
        for method, model in zip(networks, models.values(), strict=True):
            method.channels = prepared.channels(model)
    table = _Scoring(how, views, windows, methods, season)
    table.run(str(panel.source))
    return table.result(networks, prepared)


def _targets(prepared: Prepared, windows: Windows) -> list[tuple[int, int, int]]:
    """Block, and first and last row of all that windows forecast."""
    spans = []
    for number in np.unique(windows.block):
        rows = windows.origin[windows.block == number]
        spans.append((int(number), int(rows.min()), int(rows.max()) + windows.horizon))
    return spans


class _Scoring:
    """Scores of all methods on the windows of a table."""

    def __init__(self, how: Evaluation, views: Views, windows: Windows, methods: Sequence[Method], season: int) -> None:
        self.how, self.views, self.windows, self.methods = how, views, windows, methods
        self.levels = parse_levels(how.levels)
        self.standardised = how.standardised or how.protocol in _STANDARDISED
        blocks, stops = views.prepared.blocks, views.prepared.borders["train"]
        scale = [
            pair
            for block, (_, stop) in zip(blocks, stops, strict=True)
            for pair in mase_scale(block.seen(stop), season)
        ]
        absolute, square = (np.asarray(one) for one in zip(*scale, strict=True))
        if self.standardised:
            absolute, square = absolute / views.scale.ravel(), square / views.scale.ravel() ** 2
        made: dict[str, Any] = {
            "scale": (absolute, square),
            "quantiles": _DECILES,
            "levels": self.levels,
            "correlations": False,
        }
        self.scorers = {one.name: Scorer(windows.horizon, len(absolute), **made) for one in methods}
        self.errors: dict[str, list[Array]] = {one.name: [] for one in methods}
        self.origins: list[NDArray[np.int64]] = []
        self.picture: Any = None
        dropped = _DROP_LAST.get(how.protocol or "", 1)
        self.count = len(windows) // dropped * dropped

    def run(self, label: str) -> None:
        """Score every window."""
        with progress(self.count, label, unit="windows", quiet=self.how.quiet) as advance:
            for batch in self.views.batches(self.windows, self.how.batch_size, np.arange(self.count)):
                made = {method.name: method(batch) for method in self.methods}
                for method in self.methods:
                    self._add(method, batch, made[method.name])
                self.origins.append(batch.origin)
                if self.picture is None:
                    self.picture = self._picture(batch, made)
                advance(len(batch.target))

    def _add(self, method: Method, batch: Batch, point: Array) -> None:
        grids = (method.ends(batch, point, _GRID, residuals=True), method.ends(batch, point, self.levels))
        lower, upper = (np.concatenate(pair, -1) for pair in zip(*grids, strict=True))
        center, scale = (batch.center, batch.scale) if self.standardised else (0.0, 1.0)
        center, scale = (np.broadcast_to(one, batch.center.shape)[:, None] for one in (center, scale))
        last = _last(batch.history)
        point, target, last = ((value - center) / scale for value in (point, batch.target, last[:, None]))
        lower, upper = ((value - center[..., None]) / scale[..., None] for value in (lower, upper))
        grid = len(_GRID)
        quantiles = np.concatenate([lower[..., :grid][..., ::-1], point[..., None], upper[..., :grid]], -1)
        finite = bool(np.isfinite(quantiles).all())
        self.scorers[method.name].add(
            point,
            target,
            ids=batch.ids,
            last=last[:, 0],
            quantiles=quantiles if finite else None,
            lower=lower[..., grid:],
            upper=upper[..., grid:],
        )
        with np.errstate(invalid="ignore"):
            error = np.abs(point - target)
        known = np.isfinite(error)
        self.errors[method.name].append(np.where(known, error, 0).sum((1, 2)) / np.maximum(known.sum((1, 2)), 1))

    def _picture(self, batch: Batch, made: dict[str, Array]) -> Any:
        from recurra.forecast.figures import Fan

        panel, window = self.views.prepared.panel, self.windows
        block = self.views.prepared.blocks[window.block[0]]
        origin, reach = int(window.origin[0]), min(self.views.reach, int(window.origin[0]))
        main, *rest = [self.methods[-1], *self.methods[:-1]]
        lower, upper = main.ends(batch, made[main.name], self.levels)
        fan = Fan(
            block.name,
            block.stamps[origin - reach : origin],
            batch.history[0, -reach:, 0],
            block.stamps[origin : origin + window.horizon],
            made[main.name][0, :, 0],
            {level: (lower[0, :, 0, at], upper[0, :, 0, at]) for at, level in enumerate(self.levels)},
            batch.target[0, :, 0],
            {method.name: made[method.name][0, :, 0] for method in rest[:5]},
        )
        return fan, main.name, f"{panel.series[int(block.series[0])].id} from {block.stamps[origin]}"

    def result(self, networks: Sequence[Method], prepared: Prepared) -> Scores:
        """Means, rows of each series, and what a user should hear."""
        found = {name: scorer.scores() for name, scorer in self.scorers.items()}
        if NAIVE in found:
            found = {name: {**row, **ratios(row, found[NAIVE])} for name, row in found.items()}
        coverage = [f"coverage_{level:g}" for level in self.levels]
        names = [name for name in (*SHOWN, *coverage) if all(name in row for row in found.values())]
        metrics = {method: {name: row[name] for name in names} for method, row in found.items()}
        seconds = {method.name: method.seconds for method in self.methods}
        notes = [*prepared.left_out(), *self._notes(found, networks)]
        if len(networks) > 1:
            rows = [metrics[one.name] for one in networks]
            label = f"{networks[0].name.split()[0]} mean of {len(rows)}"
            metrics[label] = {name: float(np.mean([row[name] for row in rows])) for name in names}
            seconds[label] = float(np.mean([one.seconds for one in networks]))
            spread = ", ".join(
                f"{name} {np.mean(values):.5g} +- {np.std(values, ddof=1):.2g}"
                for name in names[:2]
                for values in [[row[name] for row in rows]]
            )
            notes.append(f"{label} seeds: {spread} (standard deviation)")
        units = {name: self._by_series(scorer, names, prepared) for name, scorer in self.scorers.items()}
        return Scores(metrics, seconds, len(prepared.panel.series), self.picture, units, notes)

    def _by_series(self, scorer: Scorer, names: Sequence[str], prepared: Prepared) -> list[dict[str, Any]]:
        by_id, variables = scorer.by_id(), prepared.panel.variables
        labels = [
            str(series.id) if len(variables) == 1 else f"{series.id} {name}"
            for series in prepared.panel.series
            for name in variables
        ]
        return [
            {
                "series": label,
                **{name: float(by_id[name][at]) for name in names if name in by_id and np.isfinite(by_id[name][at])},
            }
            for at, label in enumerate(labels)
        ]

    def _notes(self, found: dict[str, dict[str, float]], networks: Sequence[Method]) -> list[str]:
        notes = [f"{self.count} of {len(self.windows)} windows scored"]
        if self.windows.left_out:
            notes.append(f"{self.windows.left_out} windows have a missing value in their past, and are left out")
        if self.how.split == "test" and (learnt := self._learnt()):
            notes.append(
                f"{learnt} windows forecast values of before {self.views.prepared.context.trained_until}, where the "
                "training rows of these series end: their scores flatter the model"
            )
        if self.how.split == "val":
            notes.append("intervals are made of the windows that are scored: their coverage flatters them")
        unscored = self.scorers[networks[0].name].unscored()
        notes += [f"{count} series cannot be scored by {name}" for name, count in unscored.items()]
        origins = np.concatenate(self.origins)
        simple = [method.name for method in self.methods if method not in networks]
        if simple:
            best = min(simple, key=lambda name: found[name]["mae"])
            for method in networks:
                ours, theirs = self._by_origin(method.name, origins), self._by_origin(best, origins)
                notes.append(_compared(method.name, best, ours, theirs, self.windows.horizon))
        interval = self.scorers[networks[0].name].direction_interval()
        if interval:
            notes.append(
                f"directional accuracy of {networks[0].name}: 95 % interval {interval[0]:.3f} to {interval[1]:.3f}"
            )
        return notes

    def _learnt(self) -> int:
        """How many windows begin before the end of the rows that the model was trained on."""
        prepared, windows, count = self.views.prepared, self.windows, 0
        places = prepared.context.places(prepared.panel)
        for number, block in enumerate(prepared.blocks):
            dated = isinstance(block.stamps, pd.DatetimeIndex)
            text = prepared.context.trained_until
            if all(places[one] < 0 for one in block.series) or not (dated or text.lstrip("-").isdecimal()):
                continue
            try:
                known = int(block.stamps.searchsorted(pd.Timestamp(text) if dated else int(text), side="right"))
            except (TypeError, ValueError):  # stamps of another kind: other data
                continue
            count += int((windows.origin[windows.block == number] < known).sum())
        return count

    def _by_origin(self, name: str, origins: NDArray[np.int64]) -> Array:
        """Mean absolute error of all windows of an origin, in time's order."""
        _, place = np.unique(origins, return_inverse=True)
        errors = np.concatenate(self.errors[name])
        return np.asarray(np.bincount(place, errors) / np.bincount(place))


def mase_scale(rows: Array, season: int) -> list[tuple[float, float]]:
    """What MASE and RMSSE divide by, of each variate."""
    absolute, square = seasonal_scale(rows, season)
    return list(zip(absolute.tolist(), square.tolist(), strict=True))


def _last(history: Array) -> Array:
    """The last value before each origin."""
    return history[:, -1]


def _compared(name: str, other: str, ours: Array, theirs: Array, horizon: int) -> str:
    test = diebold_mariano(ours, theirs, horizon, power=1.0)  # the losses are absolute errors
    if test.reason:
        return f"Diebold-Mariano, {name} against {other}: {test.reason}"
    better = name if test.difference < 0 else other
    return f"Diebold-Mariano, {name} against {other}: p = {test.p_value:.3g}, {better} has the smaller absolute error"
