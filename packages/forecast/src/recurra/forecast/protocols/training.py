"""Recipes with a section `protocol`: trained as the authors train, leaks included, to compare with their tables."""

import csv
import time
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recurra.core.errors import UserError
from recurra.core.files import writing
from recurra.core.recipe import Recipe, build, construct, plain
from recurra.core.run_folder import RunFolder
from recurra.core.training import Report, seed_all
from recurra.forecast.data.context import Context, plain_id, stamp_text
from recurra.forecast.data.panel import Panel
from recurra.forecast.data.sources import DATA, Source
from recurra.forecast.models import MODELS, ReGENN, ResNLS
from recurra.forecast.models.forecaster import Forecaster
from recurra.forecast.protocols.panel_scores import regenn_table
from recurra.forecast.protocols.regenn import RegennSettings, train_regenn
from recurra.forecast.protocols.resnls import ResnlsSettings, forecast_test_days

PROTOCOLS: dict[str, tuple[type[Any], type[Forecaster]]] = {
    "regenn": (RegennSettings, ReGENN),
    "resnls": (ResnlsSettings, ResNLS),
}
KEY, SCORES = "protocol", "protocol.csv"


def train_by_protocol(
    recipe: Recipe,
    stem: str,
    *,
    out: str | Path | None = None,
    frame: Any = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **unused: Any,
) -> Report:
    """Train the model of a recipe by its protocol; the run folder is a checkpoint, with the protocol's own scores.

    Args:
        recipe: resolved, with the sections model, data and protocol.
        stem: its name.
        out: run folder; by default runs/NAME.
        frame: a data frame in place of the recipe's table.
        resume: refused: the authors' trainings cannot be gone on with.
        overwrite: replace the run in the folder.
        quiet: show no progress.
        unused: what other trainings take.

    Raises:
        UserError: the recipe does not fit, or the data do not.
    """
    section = dict(recipe.section(KEY))
    name = str(section.pop("name", ""))
    if name not in PROTOCOLS:
        raise UserError(f"{recipe.source}: protocol.name must be one of {', '.join(PROTOCOLS)}; got {name!r}")
    if resume:
        raise UserError(f"{recipe.source}: a training by the protocol {name} cannot be gone on with; train anew")
    kind, expected = PROTOCOLS[name]
    settings = construct(kind, section, recipe.where(KEY))
    seed_all(settings.seed)
    given = {} if frame is None else {"frame": frame}
    source: Source = build(DATA, recipe.section("data"), recipe.where("data"), **given)
    panel = source.open()
    model = build(MODELS, recipe.section("model"), recipe.where("model"))
    if not isinstance(model, expected):
        raise UserError(f"{recipe.source}: the protocol {name} trains {expected.__name__}; got {type(model).__name__}")
    folder = RunFolder(Path("runs") / stem if out is None else Path(out), quiet=quiet)
    folder.check(resume=False, overwrite=overwrite, recipe=recipe)
    started = time.perf_counter()
    with folder.held(resume=False, recipe=plain(recipe)):
        train: Any = _regenn if name == "regenn" else _resnls
        best, history, rows = train(model, panel, settings, folder)
        about = {
            "recipe": stem,
            "training_data": f"{panel.source}, protocol {name}",
            KEY: plain({"name": name, **asdict(settings)}),
        }
        model.save_pretrained(folder.path, metadata={**model.metadata, **about, "training": best})
        folder.write_history(history)
        with writing(folder.path / SCORES) as part, part.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(rows)
    for row in rows:
        folder.say("  ".join(f"{cell:.5g}" if isinstance(cell, float) else str(cell) for cell in row))
    seconds = time.perf_counter() - started
    steps = int(best.get("step", 0))
    return Report(folder.path, len(history), steps, "watched loss", best, history, seconds, steps / max(seconds, 1e-9))


def samples_of(panel: Panel) -> torch.Tensor:
    """(sample, time, variable) of a table, in float32 as the authors have it."""
    stamps, values = panel.aligned()
    values = values.reshape(len(stamps), len(panel.series), len(panel.variables))
    return torch.from_numpy(np.moveaxis(values, 0, 1).astype(np.float32))


def _regenn(
    model: ReGENN, panel: Panel, settings: RegennSettings, folder: RunFolder
) -> tuple[dict[str, int | float], list[dict[str, int | float]], list[tuple[Any, ...]]]:
    """Best values, history of epochs, and the table beside last value and drift."""
    data = samples_of(panel)
    history: list[dict[str, int | float]] = []

    def told(epoch: int, watched: float) -> None:
        history.append({"epoch": epoch + 1, "watched_loss": watched})
        folder.say(f"epoch {epoch + 1}: watched loss {watched:.5g}")

    found = train_regenn(model, data, settings, variables=panel.variables, on_epoch=told)
    table = regenn_table(model, found, data)
    best: dict[str, int | float] = {"epoch": found.best_epoch + 1, "watched_loss": found.best}
    return best, history, [tuple(table.columns), *table.itertuples(index=False, name=None)]


def _resnls(
    model: ResNLS, panel: Panel, settings: ResnlsSettings, folder: RunFolder
) -> tuple[dict[str, int | float], list[dict[str, int | float]], list[tuple[Any, ...]]]:
    """Best values, history of epochs, and the table beside the last value."""
    if len(panel.series) != 1 or len(panel.variables) != 1:
        raise UserError(f"{panel.source}: has {len(panel.series)} series; the protocol trains on one, see data.targets")
    series = panel.series[0]
    closes = series.values[:, 0]
    made = forecast_test_days(model, closes, settings)
    first = ceil(settings.train_share * len(closes))
    known = closes if settings.scale_from == "all" else closes[:first]
    low, high = float(np.min(known)), float(np.max(known))
    Context(
        frequency=panel.frequency.alias,
        season=panel.frequency.season,
        ids=[plain_id(series.id)],
        names=panel.names,
        variables=tuple(panel.variables),
        wide=panel.wide,
        scaler={"kind": "minmax", "shift": [[low]], "scale": [[high - low]]},
        options={"targets": [str(series.id)], "fill": "observed"} if panel.wide else {"fill": "observed"},
        split={"split": "resnls", "fractions": [settings.train_share, 0.0, 1 - settings.train_share], "origins": None},
        trained_until=stamp_text(series.stamps[first - 1]),
        source=Path(panel.source).name,
    ).store(model)
    per_epoch = np.array_split(np.asarray(made.losses), settings.epochs)
    history: list[dict[str, int | float]] = [
        {"epoch": epoch + 1, "train_loss": float(losses.mean())} for epoch, losses in enumerate(per_epoch)
    ]
    truth, naive = closes[first:], closes[first - 1 : -1]
    rows: list[tuple[Any, ...]] = [("forecast", "mae", "rmse")]
    for name, forecast in (("last value", naive), (f"ResNLS {model.variant}", made.forecast)):
        error = forecast - truth
        rows.append((name, float(np.abs(error).mean()), float(np.sqrt(np.square(error).mean()))))
    best: dict[str, int | float] = {"step": len(made.losses), "train_loss": history[-1]["train_loss"]}
    return best, history, rows
