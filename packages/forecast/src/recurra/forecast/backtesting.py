"""Forecasts from many origins, each as if it were today: rows are written as they are made, and scored."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recurra.core.device import choose_device
from recurra.core.errors import UserError
from recurra.core.files import check_file, check_folder, guard_inputs, open_output, writing
from recurra.forecast.data.context import Context
from recurra.forecast.data.prepared import Prepared, prepare
from recurra.forecast.data.tables import open_panel
from recurra.forecast.data.windows import Windows
from recurra.forecast.evaluation import seed_folders
from recurra.forecast.inference import load_checkpoint
from recurra.forecast.models.forecaster import Forecaster
from recurra.forecast.rolling import ROWS, STRIP, SUMMARY, TABLE, TRADES, Array, Backtest, Backtesting, Rolling
from recurra.forecast.trading import trading_table

__all__ = ["Backtest", "Backtesting", "load_models", "run_backtest"]


def run_backtest(how: Backtesting, data: Any, out: Path, *, overwrite: bool) -> Backtest:
    """What the verb `backtest` does, with its options; `data` may be a data frame too."""
    how.check()
    check_folder(out)
    if isinstance(data, Path):
        check_file(data, "a table")
        guard_inputs([out / name for name in (ROWS, TABLE, SUMMARY, STRIP, TRADES)], [data])
    open_output(out, overwrite)
    models = load_models(how.checkpoint, how.device)
    first = next(iter(models.values()))
    context = Context.of(first)
    options = {**context.options, **({} if how.fill is None else {"fill": how.fill})}
    panel = open_panel(data, **options)
    prepared = prepare(panel, first, context)
    windows, notes = _windows(how, prepared, first)
    openings = _openings(how, prepared, windows, data) if how.trading else None
    run = Rolling(how, prepared, windows, models, how.season or context.season)
    run.notes += notes
    out.mkdir(parents=True, exist_ok=True)
    with writing(out / ROWS) as part, part.open("w", newline="", encoding="utf-8") as stream:
        run.write(stream)
    result = run.result(out)
    if openings is not None:
        result.trading = _trading(how, run, openings)
        with writing(out / TRADES) as part:
            result.trading.to_csv(part, index=False)
        result.outputs.append(out / TRADES)
    return result


def load_models(checkpoint: Any, device: str) -> dict[str, Forecaster]:
    """The models by their names in tables: of a checkpoint, or of the seeds in a folder."""
    target = choose_device(device)
    seeds = seed_folders(checkpoint)
    if not seeds:
        model = load_checkpoint(checkpoint)
        return {type(model).__name__: model.to(target).eval()}
    models = {path.name: load_checkpoint(path) for path in seeds}
    return {f"{type(model).__name__} {name}": model.to(target).eval() for name, model in models.items()}


def _windows(how: Backtesting, prepared: Prepared, model: Forecaster) -> tuple[Windows, list[str]]:
    """Every origin after the rows that the model was trained and chosen on, or those asked for; notes for the user."""
    horizon, window = model.horizon, model.window
    origins, seen, used = {}, 0, set()
    for number, block in enumerate(prepared.blocks):
        last = len(block.values) - horizon
        stop = max(prepared.borders[part][number][1] for part in ("train", "val"))
        if how.cutoffs:
            after = {_after(block.stamps, cutoff): cutoff for cutoff in how.cutoffs}
            rows = np.array(sorted(after), np.int64)
        else:
            rows = np.arange(max(stop, window), last + 1, how.stride or 1, dtype=np.int64)
        rows = rows[(rows >= window) & (rows <= last)]
        origins[number] = rows[-how.origins :] if how.origins else rows
        if how.cutoffs:
            used |= {after[row] for row in rows.tolist()}
            seen += int((rows < stop).sum())
    windows = prepared.at(origins, model)
    if not len(windows):
        raise UserError(
            f"{prepared.panel.source}: no origin has {window} rows before and {horizon} after it"
            + (
                _ends(prepared)
                if how.cutoffs
                else " that the model was not trained on; give a longer table or --cutoff"
            )
        )
    notes = []
    if how.cutoffs and (lost := [cutoff for cutoff in how.cutoffs if cutoff not in used]):
        notes.append(f"cutoff {', '.join(lost)}: without {window} rows before and {horizon} after it; not scored")
    if seen:
        notes.append(f"{seen} windows forecast values that the model was trained or chosen on: their scores flatter it")
    return windows, notes


def _ends(prepared: Prepared) -> str:
    first, last = (pick(block.stamps[at] for block in prepared.blocks) for pick, at in ((min, 0), (max, -1)))
    return f"; the table reaches from {first} to {last}: give another --cutoff"


def _after(stamps: pd.Index, cutoff: str) -> int:
    """Row of the first stamp after a cutoff."""
    try:
        if isinstance(stamps, pd.DatetimeIndex):
            at: Any = pd.Timestamp(cutoff)
            at = at.tz_localize(stamps.tz) if stamps.tz is not None and at.tz is None else at
        else:
            at = int(cutoff)
        if pd.isna(at):
            raise ValueError("it is no time")
        return int(stamps.searchsorted(at, side="right"))
    except (ValueError, TypeError) as error:
        raise UserError(f"--cutoff {cutoff!r} is no stamp such as {stamps[-1]}") from error


def _openings(how: Backtesting, prepared: Prepared, windows: Windows, data: Any) -> Array:
    """Prices at which the table's days open, for its one series of closes.

    Raises:
        UserError: the backtest is not of every day of one series, or a day has no such price.
    """
    if len(prepared.blocks) != 1 or prepared.blocks[0].values.shape[1] != 1:
        raise UserError(
            f"--trading needs one series of closes; {prepared.panel.source} has {len(prepared.panel.series)} series"
        )
    if (how.stride or 1) != 1 or how.cutoffs:
        raise UserError("--trading decides every day: give neither --stride nor --cutoff")
    options = {**prepared.context.options, "targets": ("open",)}
    opened = open_panel(data, **options).series[0]
    place = opened.stamps.get_indexer(prepared.blocks[0].stamps)
    if (place[windows.origin - 1] < 0).any():
        raise UserError(
            f"{prepared.panel.source}: column open has no value on some days of column {prepared.panel.series[0].id}"
        )
    prices: Array = opened.values[place, 0]
    return prices


def _trading(how: Backtesting, run: Rolling, openings: Array) -> pd.DataFrame:
    """Strategies that hold while the next close is forecast to be higher, beside random ones."""
    days = run.windows.origin[run.order] - 1  # a forecast is made at the close of the day before its origin
    close = run.prepared.blocks[0].values[days, 0]
    forecasts = {name: np.concatenate(parts) for name, parts in run.one_step.items()}
    return trading_table(openings[days], close, forecasts, fee=how.fee)
