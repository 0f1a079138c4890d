"""The verbs of forecasting: each is a Python function and a command of `recurra-forecast`; quick to import."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from recurra.core.verbs import (
    BatchSize,
    Device,
    Inputs,
    Option,
    Out,
    Overrides,
    Overwrite,
    Quiet,
    RecipeName,
    Resume,
    RunFolder,
    Shard,
    Workers,
    app,
    run,
    spelled,
    verb,
)

if TYPE_CHECKING:
    from recurra.core.evaluation import Table
    from recurra.core.exporting import ExportReport
    from recurra.core.inference import Results
    from recurra.core.inspection import Inspection
    from recurra.core.training import Report
    from recurra.forecast.backtesting import Backtest
    from recurra.forecast.explanation import Explanation
    from recurra.forecast.models.forecaster import Forecaster

_CHECKPOINT = "Checkpoint folder, the name of a shipped one, or a hub name."
_FILES = "Tables (.csv, .parquet, .npz): a column a series, or long with ids; or folders of them."

Checkpoint = Annotated["str | Path | Forecaster", Option(_CHECKPOINT, kind=str, metavar="CHECKPOINT")]
Files = Annotated[Inputs, Option(_FILES, kind=list[Path])]
Levels = Annotated[
    Sequence[str | float | int], Option("Levels of the intervals in percent, comma-separated, or none.", listed=True)
]
Id = Annotated[str | None, Option("Column of ids. A table without one has a column a series.", ("--id",))]
Time = Annotated[str | None, Option("Column of stamps.", ("--time",))]
Targets = Annotated[Sequence[str], Option("Columns of values, comma-separated. Default: all numbers.", listed=True)]
Freq = Annotated[str | None, Option("Step in pandas' words, e.g. h, 15min, B, MS. Default: from the stamps.")]
DateFormat = Annotated[str | None, Option("Of stamps with two readings, e.g. %d/%m/%Y.")]
Zone = Annotated[str | None, Option("Time zone that stamps without one are in, e.g. Europe/Madrid.")]
Fill = Annotated[str | None, Option("Missing values: none, linear, zero, calendar, previous; or COLUMN=POLICY,...")]
SkipShort = Annotated[bool, Option("Leave out series that are too short, instead of refusing the table.")]
FutureFrame = Annotated[
    str | Path | None, Option("Table of the covariates that are known ahead: ids, stamps, columns.", kind=Path)
]
Out_ = Annotated[str | Path | None, Option("Folder that receives the results.", ("-o", "--out"), Path)]
Baselines = Annotated[Sequence[str], Option("Comma-separated, or none.", ("--baselines", "--baseline"), listed=True)]
_BASELINES = ("last_value", "drift", "seasonal_naive", "ridge", "ridge_level")


@verb
def train(
    recipe: RecipeName,
    overrides: Overrides = (),
    *,
    out: RunFolder = None,
    resume: bool = False,
    tiny: bool = False,
    device: str | None = None,
    seeds: Annotated[int, Option(min=1, max=1000)] = 1,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> "Report":
    """Train a model; the run folder is a checkpoint, with what it needs to forecast in original units.

    Args:
        overrides: changes, e.g. data.csv=sales.csv model.horizon=24.
        resume: go on from the run folder's last epoch.
        tiny: the recipe's smallest form: seconds on a laptop.
        device: one of auto, cpu, cuda, cuda:INDEX. Default: what the recipe says.
        seeds: train so many models, with seeds from the recipe's on, in folders seed-N of the run folder.

    Raises:
        ValueError: the recipe does not fit the classes it names, or the data do not fit the recipe.
    """
    from recurra.forecast.training import train_seeds

    return train_seeds(
        recipe,
        overrides,
        seeds,
        out=out,
        resume=resume,
        tiny=tiny,
        device=device,
        overwrite=overwrite,
        quiet=quiet,
    )


@verb
def inspect(
    inputs: Files,
    *,
    window: Annotated[int | None, Option(min=1)] = None,
    horizon: Annotated[int | None, Option(min=1)] = None,
    id: Id = None,
    time: Time = None,
    targets: Targets = (),
    freq: Freq = None,
    date_format: DateFormat = None,
    zone: Zone = None,
    fill: Fill = None,
) -> "Inspection":
    """Show what is known about tables, from what evidence, and what will be done with them.

    The first thing to try with a table of one's own.

    Args:
        window: also say how many windows of so many steps fit.
        horizon: steps that are forecast after each.
    """
    from functools import partial

    from recurra.core.files import find_inputs
    from recurra.core.inspection import inspect_files
    from recurra.forecast.forecasting import SUFFIXES
    from recurra.forecast.inspection import facts_of

    options = _table(id, time, targets, freq, date_format, zone, fill)
    return inspect_files(find_inputs(inputs, SUFFIXES), partial(facts_of, window=window, horizon=horizon, **options))


@verb
def forecast(
    checkpoint: Checkpoint,
    inputs: Files,
    out: Out,
    *,
    horizon: Annotated[int | None, Option(min=1, max=100_000)] = None,
    levels: Levels = ("80", "95"),
    minimum: float | None = None,
    maximum: float | None = None,
    integer: bool = False,
    future_frame: FutureFrame = None,
    id: Id = None,
    time: Time = None,
    targets: Targets = (),
    freq: Freq = None,
    date_format: DateFormat = None,
    zone: Zone = None,
    fill: Fill = None,
    skip_short: SkipShort = False,
    format: Literal["csv", "parquet"] = "csv",
    preview: bool = True,
    device: Device = "auto",
    batch_size: BatchSize = 256,
    workers: Workers = 1,
    shard: Shard = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> "Results":
    """Forecast what comes after the last row of each series, with intervals, in original units.

    Args:
        horizon: steps; more than the model's are forecast from its own forecasts. Default: the model's.
        minimum: least value of forecasts and intervals, e.g. 0 of counts.
        maximum: greatest value.
        integer: round to whole numbers.
        format: of the results: csv, or parquet (needs the extra parquet).
        preview: write a PNG of the first series of each table.

    Raises:
        ValueError: an option does not serve, or the checkpoint is none.
        Interrupted: Ctrl-C; its text says how many files are done.
    """
    from recurra.core.inference import Runs
    from recurra.forecast.forecasting import Forecasting, forecast_files
    from recurra.forecast.intervals import parse_levels

    how = Forecasting(
        checkpoint,
        horizon,
        parse_levels(levels),
        minimum,
        maximum,
        integer,
        _table(id, time, targets, freq, date_format, zone, fill),
        future_frame,
        skip_short,
        device,
        batch_size,
    )
    runs = Runs(workers, shard, resume, overwrite, quiet)
    return forecast_files(how, inputs, Path(out), format=format, preview=preview, runs=runs)


@verb
def evaluate(
    checkpoint: Checkpoint,
    data: Files,
    *,
    out: Out_ = None,
    protocol: str | None = None,
    split: Literal["train", "val", "test"] = "test",
    baselines: Baselines = _BASELINES,
    levels: Levels = ("80", "95"),
    season: Annotated[int | None, Option(min=1)] = None,
    standardised: bool = False,
    fill: Fill = None,
    report: bool = False,
    device: Device = "auto",
    batch_size: BatchSize = 256,
    workers: Workers = 1,
    shard: Shard = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> "Table":
    """Score a checkpoint on every window of the test rows, beside the simple forecasts that it must beat.

    A folder of several seeds (seed-0, seed-1, ...) is scored seed by seed, with their mean and spread.

    Args:
        out: folder for metrics.csv, metrics.json and pictures. Default: none, with --report evaluation.
        protocol: tslib, tpgn, regenn or resnls, as published, leaks included. Default: the checkpoint's split.
        split: rows to score.
        season: steps of the seasonal naive and of MASE. Default: the usual one of the frequency.
        standardised: score on the scale of the training rows, as published tables do.
        report: write report.html too: one page with tables, pictures, a row a series and how to repeat it.

    Raises:
        ValueError: an option does not serve, or the checkpoint is none.
    """
    from recurra.core.inference import Runs
    from recurra.forecast.evaluation import Evaluation, evaluate_files

    how = Evaluation(
        checkpoint,
        protocol,
        split,
        tuple(baselines),
        tuple(levels),
        season,
        standardised,
        fill,
        device,
        batch_size,
        quiet,
    )
    return evaluate_files(
        how,
        data,
        out=Path(out or "evaluation") if out or report else None,
        command=spelled("recurra.forecast", evaluate, locals()) if report else None,
        runs=Runs(workers, shard, resume, overwrite, quiet),
    )


@verb
def backtest(
    checkpoint: Checkpoint,
    data: Annotated[str | Path, Option("A table.", kind=Path, metavar="TABLE")],
    out: Out,
    *,
    origins: Annotated[int | None, Option(min=1)] = None,
    stride: Annotated[int | None, Option(min=1)] = None,
    cutoff: Annotated[Sequence[str], Option(listed=True)] = (),
    refit: Annotated[int, Option(min=0)] = 0,
    baselines: Baselines = _BASELINES,
    levels: Levels = ("80", "95"),
    rolling: bool = True,
    season: Annotated[int | None, Option(min=1)] = None,
    trading: bool = False,
    fee: Annotated[float, Option(min=0.0, max=0.5)] = 0.001,
    fill: Fill = None,
    preview: bool = True,
    device: Device = "auto",
    batch_size: BatchSize = 256,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> "Backtest":
    """Forecast from many origins, as if each were today, and score what came; rows are written as they are made.

    Args:
        data: a table.
        origins: the last so many origins. Default: every one after the training rows that fits.
        stride: steps from one origin to the next. Default: 1.
        cutoff: own origins: comma-separated stamps; what is after a cutoff is not seen.
        refit: train again after so many origins, on the rows up to the cutoff; 0 for never.
        rolling: intervals learn from the errors known at each origin; else those of the checkpoint.
        season: steps of the seasonal naive and of MASE. Default: the usual one of the frequency.
        trading: also trade one-step forecasts of prices long or flat, beside buying and holding and random signals.
        fee: of a trade, as a share.
        preview: write a PNG of the forecasts and errors of the first series.

    Raises:
        ValueError: an option does not serve, or the checkpoint is none.
        Interrupted: Ctrl-C; its text says how many origins are done.
    """
    from recurra.forecast.backtesting import Backtesting, run_backtest

    how = Backtesting(
        checkpoint,
        origins,
        stride,
        tuple(cutoff),
        refit,
        tuple(baselines),
        tuple(levels),
        rolling,
        season,
        trading,
        fee,
        fill,
        device,
        batch_size,
        quiet,
        preview,
    )
    return run_backtest(how, Path(data), Path(out), overwrite=overwrite)


@verb
def explain(
    checkpoint: Checkpoint,
    data: Annotated[str | Path | None, Option("A table, for models that are not linear.", ("--data",), Path)] = None,
    out: Out = "explanation",
    *,
    windows: Annotated[int, Option(min=1, max=100_000)] = 64,
    overwrite: Overwrite = False,
) -> "Explanation":
    """Show what forecasts rest on: weights of a linear model's lags and covariates, else what hiding each changes.

    Args:
        windows: how many windows of the table are looked at.
    """
    from recurra.forecast.explaining import explain_checkpoint

    return explain_checkpoint(checkpoint, data, Path(out), windows=windows, overwrite=overwrite)


@verb
def convert(
    path: Annotated[str | Path, Option(kind=Path, metavar="FILE")],
    source: Annotated[str, Option(flags=("--from",))],
    out: Out,
    overrides: Overrides = (),
    *,
    data: Annotated[str | Path | None, Option(flags=("--data",), kind=Path)] = None,
    targets: Targets = (),
    split: str = "tpgn",
    overwrite: Overwrite = False,
) -> Path:
    """Convert an authors' checkpoint; nothing in it is executed.

    Args:
        path: the authors' checkpoint.
        source: which project wrote it: tpgn, regenn, arnet or resnls.
        overrides: what the file does not say, e.g. norm=true.
        data: the table that it was trained on, for columns, time axis and scaling; without it nothing can be forecast.
        split: rule by which the training rows of the table are known.

    Raises:
        ValueError: the file is damaged, malicious or another network's, or does not say enough.
    """
    from recurra.forecast.conversion import convert as convert_file

    return convert_file(path, source, out, overrides, data=data, targets=targets, split=split, overwrite=overwrite)


@verb
def export(
    checkpoint: Checkpoint,
    out: Annotated[str | Path, Option("The file to write.", ("-o", "--out"), Path)],
    *,
    format: str = "onnx",
    levels: Levels = (),
    overwrite: Overwrite = False,
) -> "ExportReport":
    """Export a checkpoint, scaler and calendar included, and print the measured difference to torch.

    Args:
        format: kind of program: onnx (needs the extra export) or pt2.
        levels: of the intervals that the program gives, percent. Default: 80 and 95, where there are residuals enough.

    Raises:
        ValueError: unknown format, a model that cannot be exported, or a program that differs from torch; the file is
            then not written.
    """
    from recurra.forecast.exporting import export as export_checkpoint

    return export_checkpoint(
        checkpoint, out, format=format, levels=",".join(map(str, levels)) or None, overwrite=overwrite
    )


@verb
def info(checkpoint: Checkpoint) -> dict[str, str]:
    """Show what a checkpoint holds: architecture, size, data, scaling, intervals, licence, provenance."""
    from recurra.core.inference import describe
    from recurra.forecast.inference import facts, load_checkpoint

    model = load_checkpoint(checkpoint)
    return describe(model, **facts(model))


@verb
def sample(out: Out, *, overwrite: Overwrite = False) -> list[Path]:
    """Write tables to try things with: sunspots, CO2 and El Nino from statsmodels, and generated series."""
    from recurra.core.files import open_output
    from recurra.forecast.data.sample import write_samples

    folder = open_output(Path(out), overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    return write_samples(folder)


def fit(data: Any, recipe: str | Path = "arnet", overrides: Sequence[str] = (), **options: Any) -> "Forecaster":
    """The model of a recipe, trained on a data frame.

    Args:
        data: pandas, long (`unique_id, ds, y`) or a column a series; or a path.
        recipe: a shipped recipe's name or a YAML file.
        overrides: changes, e.g. "model.horizon=24".
        options: of the verb `train`.
    """
    from recurra.forecast.training import fit_frame

    return fit_frame(data, recipe, overrides, **options)


def _table(
    id: str | None,
    time: str | None,
    targets: Sequence[str],
    freq: str | None,
    date_format: str | None,
    zone: str | None,
    fill: str | None,
) -> dict[str, Any]:
    """The options of reading a table that were given."""
    given = {"id": id, "time": time, "targets": tuple(targets), "freq": freq, "date_format": date_format, "zone": zone}
    return {name: value for name, value in {**given, "fill": fill}.items() if value not in (None, ())}


VERBS = (train, inspect, forecast, evaluate, backtest, explain, convert, export, info, sample)


def main() -> None:
    """Run the command; a user's error is one line on stderr and exit status 1."""
    about = "Recurrent forecasting: train, forecast, backtest and evaluate from tables of series."
    run(app("recurra.forecast", about, VERBS))
