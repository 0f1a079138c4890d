"""Forecasts beyond the end of tables: as data frames, and as files with a picture each."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recurra.core.device import choose_device
from recurra.core.errors import FileError, UserError
from recurra.core.files import check_folder, extra, find_inputs, guard_inputs, open_output, result_names, writing
from recurra.core.inference import Origin, Result, Results, Runs, each_file, file_digest, kept, share
from recurra.core.processes import Work
from recurra.core.verbs import Inputs
from recurra.forecast.data.context import Context
from recurra.forecast.data.panel import Panel
from recurra.forecast.data.prepared import Prepared
from recurra.forecast.data.tables import open_panel
from recurra.forecast.data.windows import Block, Windows, blocks_of
from recurra.forecast.inference import Intervals, check_steps, forecast_batch, load_checkpoint
from recurra.forecast.intervals import bounded, interval_columns, parse_levels
from recurra.forecast.models.forecaster import Forecaster

SUFFIXES = (".csv", ".gz", ".tsv", ".txt", ".parquet", ".pq", ".npz")


@dataclass(frozen=True)
class Forecasting:
    """How tables are forecast.

    Attributes:
        checkpoint: the model.
        horizon: steps; the model's by default.
        levels: of intervals, percent.
        minimum: least value of a forecast.
        maximum: greatest value.
        integer: round to whole numbers.
        table: options of `open_panel` that replace those of the checkpoint.
        future_frame: what is known ahead.
        skip_short: leave out series that are too short for the window.
        device: of the network.
        batch_size: series at once.
    """

    checkpoint: "str | Path | Forecaster"
    horizon: int | None = None
    levels: tuple[float | int | str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    integer: bool = False
    table: Mapping[str, Any] = field(default_factory=dict)
    future_frame: Any = None
    skip_short: bool = False
    device: str = "auto"
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Refuse options that contradict themselves.

        Raises:
            UserError: a horizon below 1, or bounds in the wrong order.
        """
        if self.horizon is not None and self.horizon < 1:
            raise UserError(f"horizon must be at least 1; got {self.horizon}")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise UserError(f"minimum {self.minimum:g} is greater than maximum {self.maximum:g}")
        parse_levels(self.levels)

    def digest(self) -> dict[str, Any]:
        """The options that change the numbers."""
        names = ("horizon", "levels", "minimum", "maximum", "integer", "skip_short")
        return {**{name: getattr(self, name) for name in names}, "table": dict(self.table)}


@dataclass
class Forecast:
    """A table's forecasts.

    Attributes:
        frame: one row a series, variable and step.
        panel: the table.
        notes: what a user should hear.
        columns: of the ends of each level's interval.
        name: of the column of forecasts: the model's.
    """

    frame: pd.DataFrame
    panel: Panel
    notes: list[str]
    columns: dict[float, tuple[str, str]]
    name: str


def forecast_table(how: Forecasting, data: Any) -> Forecast:
    """Forecasts of the steps after the last row of each series, in original units, in the order of the input's ids.

    Args:
        how: see there.
        data: path of a table, or a data frame.

    Raises:
        UserError: the table is not of the kind that the model knows, or too short, or has a missing value in a window.
    """
    model = load_checkpoint(how.checkpoint)
    model = model.to(choose_device(how.device)).eval()
    context = Context.of(model)
    panel = _opened(how, context, data)
    context.check(panel, model)
    panel = context.ordered(panel, model).require(model.window, what=f"window {model.window}", skip=how.skip_short)
    steps = how.horizon or model.horizon
    check_steps(model, context, steps)
    panel.check_future(steps)
    notes = [f"{fact.what}: {fact.value}" for fact in panel.facts if fact.what == "left out"]
    if (
        model.layout == "series"
        and (new := context.unknown(panel))
        and context.scaler["kind"] not in ("window", "none")
    ):
        more = f" and {len(new) - 1} more" if len(new) > 1 else ""
        notes.append(f"{new[0]!r}{more}: not in the training data; scaled by their own rows")
    levels = parse_levels(how.levels)
    intervals = Intervals(model, levels, steps)
    if levels and (reason := intervals.reason()):
        notes.append(reason)
    blocks = blocks_of(
        panel, model, context.scaling(panel), context.opened_encoder(), ahead=steps, spare=-steps % model.horizon
    )
    prepared = Prepared(panel, context, blocks, {}, None)
    made = _forecasts(model, prepared, steps, intervals, how.batch_size)
    frame, columns = _frame(how, panel, made, model, levels, steps)
    return Forecast(frame, panel, notes, columns, type(model).__name__)


def _opened(how: Forecasting, context: Context, data: Any) -> Panel:
    """The table; where its few rows show another step than the checkpoint's, with that one if it fits."""
    options = {**context.options, **how.table, "future_frame": how.future_frame}
    wrong: UserError | None = None
    panel: Panel | None = None
    try:
        panel = open_panel(data, **options)
    except UserError as error:
        wrong = error
    alike = panel is not None and panel.frequency.alias == context.frequency
    if not alike and "freq" not in options:  # five business days look like days, one row like nothing
        with suppress(UserError):
            known = open_panel(data, **options, freq=context.frequency)
            if any(fact.what == "gaps" and fact.value == "none" for fact in known.facts):
                return known
    if wrong is not None:
        raise wrong
    assert panel is not None
    return panel


def _forecasts(
    model: Forecaster, prepared: Prepared, steps: int, intervals: Intervals, size: int
) -> tuple[np.ndarray, ...]:
    """Point (series x variable, step), and lower and upper ends (series x variable, step, level)."""
    panel, blocks, by_window = prepared.panel, prepared.blocks, prepared.context.by_window
    origins = {number: np.array([len(block.values)]) for number, block in enumerate(blocks)}
    whole = -(-steps // model.horizon) * model.horizon
    windows = prepared.at(origins, model, steps=whole, ahead=True)
    _check_whole(panel, blocks, windows, model)
    channels = prepared.channels(model)
    if model.layout == "samples":  # one window is all samples
        channels = channels.reshape(-1, len(panel.variables))
    parts = []
    for first in range(0, len(windows), size):
        indices = list(range(first, min(first + size, len(windows))))
        made = forecast_batch(model, windows.__getitems__(indices), steps, by_window=by_window)
        own = channels if model.layout == "samples" else channels[indices]
        parts.append((made.point, *intervals.ends(made, own)))
    # (batch, step, variate, ...) -> (batch x variate, step, ...): series and variables in the order of the blocks
    point, lower, upper = (
        np.concatenate([np.moveaxis(one, 2, 1) for one in part]) for part in zip(*parts, strict=True)
    )
    rows = point.shape[0] * point.shape[1]
    return point.reshape(rows, steps), *(end.reshape(rows, steps, len(intervals.levels)) for end in (lower, upper))


def _check_whole(panel: Panel, blocks: Sequence[Block], windows: Windows, model: Forecaster) -> None:
    """Refuse a window with a missing value, naming the first."""
    if not windows.left_out:
        return
    for number, block in enumerate(blocks):
        if number in windows.block:
            continue
        recent = block.values[-model.window :]
        rows, variates = np.nonzero(np.isnan(recent))
        if len(rows):
            stamp = block.stamps[len(block.values) - model.window + rows[0]]
            series = panel.series[int(block.series[variates[0]])]
            raise UserError(
                f"{panel.source}: series {series.id!r} has no value at {stamp}, within the last {model.window} "
                f"rows that {type(model).__name__} sees; fill it (--fill linear, previous, zero or calendar)"
            )
    raise UserError(f"{panel.source}: the last {model.window} rows hold values that were filled from later ones")


def _frame(
    how: Forecasting,
    panel: Panel,
    made: tuple[np.ndarray, ...],
    model: Forecaster,
    levels: tuple[float, ...],
    steps: int,
) -> tuple[pd.DataFrame, dict[float, tuple[str, str]]]:
    """The data frame, in the caller's order of ids."""
    name, variables = type(model).__name__, len(panel.variables)
    order = np.asarray(panel.order if len(panel.order) else range(len(panel.series)), np.int64)
    rows = (order[:, None] * variables + np.arange(variables)).ravel()
    limits: dict[str, Any] = {"minimum": how.minimum, "maximum": how.maximum, "integer": how.integer}
    point, lower, upper = (bounded(value[rows], **limits) for value in made)
    columns = interval_columns(name, levels)
    ahead: dict[Any, pd.Index] = {}
    stamps = []
    for at in order:
        last = panel.series[at].stamps[-1]
        if last not in ahead:
            ahead[last] = panel.frequency.after(last, steps)
        stamps += [ahead[last]] * variables
    id_name, time_name = panel.names
    content: dict[str, Any] = {
        id_name: panel.id_column(np.repeat(order, variables * steps)),
        time_name: stamps[0].append(stamps[1:]) if len(stamps) > 1 else stamps[0],
    }
    if variables > 1:
        content["variable"] = np.tile(np.repeat(np.asarray(panel.variables, object), steps), len(order))
    content[name] = point.ravel()
    for at, level in enumerate(levels):
        content[columns[level][0]], content[columns[level][1]] = lower[..., at].ravel(), upper[..., at].ravel()
    return pd.DataFrame(content), columns


# --- files


def forecast_files(how: Forecasting, inputs: Inputs, out: Path, *, format: str, preview: bool, runs: Runs) -> Results:
    """What the verb `forecast` does, with its options."""
    if format not in ("csv", "parquet"):
        raise UserError(f"format must be one of csv, parquet; got {format!r}")
    if format == "parquet":
        extra("pyarrow", "writing Parquet", "recurra-forecast[parquet]")
    check_folder(out)
    model = load_checkpoint(how.checkpoint)
    files = [path for path in find_inputs(inputs, SUFFIXES, leave_out=[out]) if not is_forecast(path)]
    if not files:
        raise UserError(f"{out}: nothing to forecast: the files given are forecasts of earlier runs")
    names = result_names(files)
    results = {path: [out / f"{names[path]}.{format}", out / f"{names[path]}.json"] for path in files}
    pictures = {path: out / f"{names[path]}.png" for path in files} if preview else {}
    outputs = [one for _, path in share(files, runs.shard) for one in results[path]]
    guard_inputs([*outputs, *pictures.values()], [*files, *_beside(how.future_frame)])
    for output in [] if runs.resume else outputs:
        open_output(output, runs.overwrite)
    known = [file_digest(path) for path in _beside(how.future_frame)]
    options = {**how.digest(), "format": format, "future_frame": known or None}

    def earlier(path: Path) -> Result | None:
        made = {one: made_from(results[path][1]) for one in results[path] if one.exists()}
        extras = [pictures[path]] if preview else []
        whole = kept(made, 2, Origin.of(path, model, options), extras)
        return Result(path, [*results[path], *extras], 1, "table") if whole else None

    prepare = partial(_forecasting, how, options, results, pictures)
    return each_file(files, prepare, out, runs, kept=earlier)


def _beside(frame: Any) -> list[Path]:
    return [Path(frame)] if isinstance(frame, str | Path) else []


def made_from(path: Path) -> str | None:
    """What a forecast says that it was made from; "" of somebody else's file, None of a damaged one of ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["made_from"])
    except (OSError, ValueError):
        return None
    except (KeyError, TypeError):
        return ""


def is_forecast(path: Path) -> bool:
    """Whether a table is a forecast of this software, which keeps beside it what it was made from."""
    note = path.with_suffix(".json")
    return note.is_file() and note.stat().st_size < 2**22 and Origin.read(made_from(note) or "") is not None


def _forecasting(
    how: Forecasting, options: Mapping[str, Any], results: Mapping[Path, Sequence[Path]], pictures: Mapping[Path, Path]
) -> Work[Result]:
    """The work on a file, made once in every process."""
    model = load_checkpoint(how.checkpoint)

    def work(path: Path) -> Result:
        origin = Origin.of(path, model, options)
        made = forecast_table(how, path)
        table, note = results[path]
        about = {
            "made_from": str(origin),
            "model": made.name,
            "levels": list(how.levels),
            "frequency": made.panel.frequency.alias,
            "notes": made.notes,
            "options": {name: value for name, value in options.items() if value is not None},
        }
        note.unlink(missing_ok=True)  # a table without it looks unfinished
        with writing(table) as part:
            if table.suffix == ".parquet":
                made.frame.to_parquet(part, index=False)
            else:
                made.frame.to_csv(part, index=False)
        outputs = [table, note]
        if path in pictures:
            draw(pictures[path], made)
            outputs.append(pictures[path])
        with writing(note) as part:
            part.write_text(json.dumps(about, indent=1, default=str) + "\n", encoding="utf-8")
        return Result(path, outputs, len(made.panel.series), "series", notes=made.notes)

    return work


def draw(path: Path, made: Forecast) -> None:
    """The forecasts of the first series as a picture."""
    from recurra.forecast.figures import Fan, forecast_png

    panel, steps = made.panel, len(made.frame) // max(1, len(made.panel.series) * len(made.panel.variables))
    order = list(panel.order or range(len(panel.series)))[:6]
    fans = []
    for place, at in enumerate(order):
        series = panel.series[at]
        first = place * len(panel.variables) * steps
        rows = made.frame.iloc[first : first + steps]
        tail = slice(max(0, len(series) - 4 * steps), len(series))
        ends = {level: (rows[low].to_numpy(), rows[high].to_numpy()) for level, (low, high) in made.columns.items()}
        fans.append(
            Fan(
                str(series.id),
                series.stamps[tail],
                series.values[tail, 0],
                panel.frequency.after(series.stamps[-1], steps),
                rows[made.name].to_numpy(),
                ends,
            )
        )
    forecast_png(path, fans, method=made.name)


def check_table(path: Path) -> None:
    """Refuse a forecast of an earlier run as data."""
    if is_forecast(path):
        raise FileError(path, "is a forecast of an earlier run, no data")
