"""Trains a forecaster from a recipe, on tables of series."""

import inspect
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra.core import training
from recurra.core.errors import UserError
from recurra.core.recipe import load_recipe
from recurra.core.schedules import OPTIMIZERS, SCHEDULES
from recurra.core.training import Build, Data, Report, Task, TrainSettings
from recurra.forecast.data.panel import Panel
from recurra.forecast.data.prepared import (
    Prepared,
    borders_of,
    check_covariates,
    learn_context,
    learn_encoder,
    prepare,
    sizes,
)
from recurra.forecast.data.sources import DATA, Source, Table
from recurra.forecast.data.windows import Windows
from recurra.forecast.inference import calibrate, load_checkpoint, model_inputs
from recurra.forecast.losses import LOSSES, Loss, Pinball
from recurra.forecast.models import MODELS
from recurra.forecast.models.forecaster import Forecaster
from recurra.forecast.onecycle import fastai_adam, one_cycle

_OPTIMIZERS: Mapping[str, Callable[..., Any]] = {**OPTIMIZERS, "FastaiAdam": fastai_adam}
_SCHEDULES: Mapping[str, Callable[..., Any]] = {**SCHEDULES, "OneCycle": one_cycle}
SECTIONS: dict[str, Mapping[str, Callable[..., Any]]] = {
    "model": MODELS,
    "loss": LOSSES,
    "data": DATA,
    "optimizer": _OPTIMIZERS,
    "scheduler": _SCHEDULES,
}
_VALIDATION_BATCH = 256


class ForecastTask(Task):
    """Minimises a loss over windows, on the model's scale, where missing values count for nothing.

    Validation measures every window on that scale: `mse` and `mae` of the point forecast, and `pinball` where the model
    has quantiles.
    """

    model: Forecaster
    monitor = "mse"
    known_optimizers = _OPTIMIZERS
    known_schedules = _SCHEDULES

    def __init__(
        self, model: Forecaster, loss: Loss, prepared: Prepared, *, calibration: int = 0, **options: Any
    ) -> None:
        super().__init__(model, **options)
        self.loss, self.prepared, self.calibration = loss, prepared, calibration
        self.monitor = (
            "pinball" if isinstance(loss, Pinball) else "mae" if type(loss).__name__ in ("MAE", "Huber") else "mse"
        )
        self.closed_form = not any(parameter.requires_grad for parameter in model.parameters()) or hasattr(model, "fit")

    def on_train_start(self) -> None:
        """Let a model that has a start in closed form take it; a training that goes on has had it."""
        initialise = getattr(self.model, "initialise", None)
        if initialise is not None and self.trainer.global_step == 0:
            windows: Windows = self.trainer.train_dataloader.dataset  # type: ignore[union-attr]
            initialise(*windows.whole())

    def training_step(self, batch: Mapping[str, Tensor], index: int) -> Tensor:
        """The loss of the forecasts, and the model's own penalty."""
        if hasattr(self.model, "step_of_epoch"):
            self.model.step_of_epoch = index  # type: ignore[assignment]
        loss: Tensor = self.loss(self.model(*model_inputs(batch)), batch["future"], batch["observed"])
        penalty = self.model.penalty((self.trainer.global_step + 1) / self.total_steps)
        return loss if penalty is None else loss + penalty

    def validation_step(self, batch: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
        """Errors of every window."""
        output = self.model(*model_inputs(batch))
        point = output[..., 0] if self.model.quantiles else output
        error = point - batch["future"]
        scores = {"mse": error.square(), "mae": error.abs()}
        if self.model.quantiles:
            levels = torch.tensor(self.model.quantiles).to(output)
            short = batch["future"][..., None] - output[..., 1:]
            scores["pinball"] = torch.maximum(levels * short, (levels - 1) * short).mean(-1)
        windows = len(batch["block"])
        seen = batch["observed"].reshape(windows, -1)
        count = seen.sum(1).clamp_min(1)
        return {name: torch.where(seen, value.reshape(windows, -1), 0).sum(1) / count for name, value in scores.items()}

    def solve(self, data: Data) -> dict[str, int | float]:
        """The model's solution on the training rows; errors of the validation windows."""
        if self.prepared.context.by_window:
            name = type(self.model).__name__
            raise UserError(
                f"{self.where}: data.scaler: {name} is fitted on whole series; give standard or none, not window"
            )
        pairs = zip(self.prepared.blocks, self.prepared.borders["train"], strict=True)
        rows = [(block.seen(stop) - block.center) / block.scale for block, (_, stop) in pairs]
        self.model.fit(rows)  # type: ignore[operator]
        if data.val is None or not len(data.val):  # type: ignore[arg-type]
            return {}
        sums: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for first in range(0, len(data.val), _VALIDATION_BATCH):  # type: ignore[arg-type]
                indices = list(range(first, min(first + _VALIDATION_BATCH, len(data.val))))  # type: ignore[arg-type]
                for name, values in self.validation_step(data.val.__getitems__(indices), 0).items():  # type: ignore[attr-defined]
                    sums.setdefault(name, []).append(values)
        return {name: float(torch.cat(values).double().mean()) for name, values in sums.items()}

    def figure(self, batch: Mapping[str, Tensor], path: Path) -> None:
        """The first validation window: what was seen, what was forecast, what came."""
        from recurra.forecast.figures import Fan, forecast_png

        with torch.no_grad():
            output = self.model(*model_inputs(batch))[:1]
        point = output[..., 0] if self.model.quantiles else output
        block, origin = self.prepared.blocks[int(batch["block"][0])], int(batch["origin"][0])
        center, scale = batch["center"][0].numpy(), batch["scale"][0].numpy()
        past = batch["past"][0].cpu().numpy() * scale + center
        seen = np.where(batch["observed"][0].cpu().numpy(), batch["future"][0].cpu().numpy(), np.nan) * scale + center
        ahead = block.stamps[origin : origin + self.model.horizon]
        forecast = point[0, :, 0].cpu().numpy() * scale[0] + center[0]
        behind = block.stamps[origin - self.model.window : origin]
        shown = Fan(block.name, behind, past[:, 0], ahead, forecast, came=seen[:, 0])
        name = type(self.model).__name__
        forecast_png(path, [shown], method=name, title=f"{name}, epoch {self.current_epoch + 1}")

    def describe(self, batch: Any) -> str:
        """Which windows a batch is of."""
        data = self.prepared
        block, origin = data.blocks[int(batch["block"][0])], int(batch["origin"][0])
        return f"{data.panel.source}, {block.name}, forecast from {block.stamps[min(origin, len(block.stamps) - 1)]}"


@dataclass(frozen=True)
class ForecastSettings(TrainSettings):
    """Section `train` of a recipe."""


def make_task(build: Build, settings: ForecastSettings, frame: Any = None) -> tuple[ForecastTask, Data]:
    """What a recipe trains, and its data.

    Args:
        build: makes the parts.
        settings: section `train`.
        frame: a data frame, or a table that is opened, in place of the recipe's.
    """
    source = _source(build, frame)
    panel = frame if isinstance(frame, Panel) else source.open()
    panel.check_varies()
    model = _sized(build, panel, 0)
    check_covariates(panel, model)
    what = f"window {model.window} + horizon {model.horizon}"
    panel = panel.require(model.window + model.horizon, what=what, skip=source.skip_short)
    rule, borders = borders_of(panel, model, vars(source))
    encoder = learn_encoder(panel, model, borders)
    model = _sized(build, panel, len(encoder.columns) if encoder else 0)
    context = learn_context(panel, model, source, borders, rule, encoder)
    context.store(model)
    prepared = prepare(panel, model, context)
    train, val = prepared.windows("train", model, stride=source.stride), prepared.windows("val", model)
    if not len(train):
        raise UserError(
            f"{panel.source}: no training window of {what} steps is without a gap ({train.left_out} have missing "
            "values); fill them with data.fill, or give longer series"
        )
    task = ForecastTask(model, build("loss"), prepared, calibration=source.calibration)
    task.metadata |= model.metadata
    about = (
        f"{panel.source}: {len(panel.series)} series of {panel.frequency.alias}, rows until {context.trained_until}, "
        f"{len(train)} windows ({train.left_out} with missing values left out)"
    )
    return task, Data(train, val if len(val) else None, collate=_whole, about=about, val_batch_size=_VALIDATION_BATCH)


def _source(build: Build, frame: Any) -> Source:
    """The recipe's data, or a frame that is cut and scaled as they would be."""
    if frame is None or build.kind("data") is Table:
        source: Source = build("data") if frame is None else build("data", frame=frame)
        return source
    names = inspect.signature(Source).parameters
    made: Source = build("data")
    return Table(frame=frame, **{name: value for name, value in vars(made).items() if name in names})


def _whole(batch: Any) -> Any:
    """The batch, which the windows have gathered already."""
    return batch


def _sized(build: Build, panel: Panel, covariates: int) -> Forecaster:
    """The recipe's model, told the sizes of the data that its constructor asks for."""
    known = inspect.signature(kind).parameters if (kind := build.kind("model")) else {}
    given = {**sizes(panel), "covariates": covariates}
    model: Forecaster = build("model", **{name: value for name, value in given.items() if name in known})
    return model


def train(recipe: str | Path, overrides: Sequence[str] = (), *, frame: Any = None, **options: Any) -> Report:
    """Train the model of a recipe and keep the residuals that its intervals are made of.

    Args:
        recipe: name or path.
        overrides: "section.key=value" each.
        frame: a data frame, or a table that is opened, in place of the recipe's.
        options: those of `recurra.core.training.train`.
    """
    resolved = load_recipe(
        recipe, overrides, tiny=options.get("tiny", False), package="recurra.forecast", sections=SECTIONS
    )
    if "protocol" in resolved:
        from recurra.forecast.protocols.training import train_by_protocol

        return train_by_protocol(resolved, Path(recipe).stem, frame=frame, **options)
    tasks: list[ForecastTask] = []
    if frame is not None:
        # The recipe that is kept names no file that was not read.
        overrides = [*overrides, *(["data.csv=null"] if resolved.section("data").get("csv") else [])]

    def make(build: Build, settings: ForecastSettings) -> tuple[ForecastTask, Data]:
        task, data = make_task(build, settings, frame)
        tasks.append(task)
        return task, data

    report = training.train(
        recipe,
        overrides,
        package="recurra.forecast",
        sections=SECTIONS,
        settings=ForecastSettings,
        make_task=make,
        **options,
    )
    if training.is_first_process():
        calibrate(report.folder, tasks[0].prepared, most=tasks[0].calibration)
    return report


def train_seeds(recipe: str | Path, overrides: Sequence[str], seeds: int, **options: Any) -> Report:
    """Train one model, or several with seeds from the recipe's on, in folders `seed-N`; the last report."""
    if seeds == 1:
        return train(recipe, overrides, **options)
    out = Path(options.pop("out") or Path("runs") / Path(recipe).stem)
    resolved = load_recipe(
        recipe, overrides, tiny=options.get("tiny", False), package="recurra.forecast", sections=SECTIONS
    )
    first = int(resolved.section("train").get("seed", 0))
    for seed in range(first, first + seeds):
        report = train(recipe, [*overrides, f"train.seed={seed}"], out=out / f"seed-{seed}", **options)
    return report


def fit_frame(data: Any, recipe: str | Path, overrides: Sequence[str], **options: Any) -> Forecaster:
    """The model of a recipe, trained on a data frame or a table's path; it is in memory alone unless `out` is given."""
    given, frame = list(overrides), data
    if isinstance(data, str | Path):
        tiny = bool(options.get("tiny", False))
        resolved = load_recipe(recipe, given, tiny=tiny, package="recurra.forecast", sections=SECTIONS)
        if resolved.section("data").get("name") == "Table":  # the run's recipe names what it was trained on
            given, frame = [*given, f"data.csv={json.dumps(str(data))}"], None
        else:
            frame = Path(data).expanduser()
    options = {"quiet": True, **options}
    with tempfile.TemporaryDirectory(prefix="recurra-fit-") as folder:
        out = options.pop("out", None) or Path(folder) / "run"
        report = train(recipe, given, frame=frame, out=out, **options)
        return load_checkpoint(report.folder)


def adopt(folder: Path, data: str | Path, targets: tuple[str, ...], split: str) -> None:
    """Tell a converted checkpoint the table that its weights were trained on: columns, time axis, scaling, residuals.

    Args:
        folder: the checkpoint.
        data: the table.
        targets: columns of values; by default all that are numbers.
        split: rule by which its training rows are known.

    Raises:
        UserError: the table does not fit the weights.
    """
    model = load_checkpoint(folder)
    source = Table(csv=str(data), targets=targets or None, split=split)
    panel = source.open()
    wanted = {name: value for name, value in sizes(panel).items() if name in model.config}
    for name, value in wanted.items():
        if model.config[name] != value:
            raise UserError(
                f"{panel.source}: has {value} {name}; the weights are for {model.config[name]}; see --targets"
            )
    rule, borders = borders_of(panel, model, vars(source))
    context = learn_context(panel, model, source, borders, rule, None)
    context.store(model)
    model.save_pretrained(folder)
    calibrate(folder, prepare(panel, model, context), most=source.calibration)
