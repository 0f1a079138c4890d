"""The training engine: Lightning's Trainer, our batches, our laws of seed and resume, one folder a run."""

import importlib.util
import inspect
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from recurra.core.callbacks import Averages, Bar, LossWatch, Records, Together
from recurra.core.checkpoint import Pretrained
from recurra.core.device import choose_device
from recurra.core.errors import Interrupted, UserError, nearest
from recurra.core.recipe import build, construct, load_recipe
from recurra.core.resuming import Resumption, Stopped, StopSignals
from recurra.core.run_folder import RunFolder, is_first_process
from recurra.core.sampling import Data, train_loader, validation_loader
from recurra.core.schedules import OPTIMIZERS, SCHEDULES

__all__ = ["Build", "Data", "Report", "Task", "TrainSettings", "fit", "is_first_process", "seed_all", "train"]

_LIGHTNING_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class Task(LightningModule):
    """One kind of work: what the loss is, what validation measures, what a picture shows.

    A subclass defines `training_step(batch, index) -> loss` and `validation_step(batch, index)`, which returns one
    value for each sample and metric, as {metric: tensor of shape (batch,)}.

    Attributes:
        model: what is trained, saved and shipped.
        monitor: metric that decides which model is best; without validation data it is the training loss.
        higher_is_better: whether the monitored metric grows as the model improves.
        optimizer: section of the recipe; `train` sets it, and the three that follow.
        scheduler: section of the recipe.
        where: name of the recipe, for error messages.
        metadata: goes into the checkpoint (recipe, training data).
        total_steps: optimizer steps of the whole training; `fit` sets it.
        epoch_steps: optimizer steps of an epoch; `fit` sets it.
    """

    monitor = "loss"
    higher_is_better = False

    def __init__(
        self,
        model: Pretrained,
        *,
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.where = "recipe"
        self.metadata: dict[str, Any] = {}
        self.total_steps = self.epoch_steps = 1

    def configure_optimizers(self) -> Any:
        """The optimizer and, stepped with it, the schedule."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = build(OPTIMIZERS, self.optimizer or {"name": "Adam"}, f"{self.where}: optimizer", params=trained)
        section = self.scheduler or {"name": "none"}
        lengths = {"total": self.total_steps}
        if "epoch" in inspect.signature(SCHEDULES.get(str(section.get("name")), SCHEDULES["none"])).parameters:
            lengths["epoch"] = self.epoch_steps
        factor = build(SCHEDULES, section, f"{self.where}: scheduler", **lengths)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def figure(self, batch: Any, path: Path) -> None:
        """Draw the first validation batch into a PNG; by default nothing."""

    def describe(self, batch: Any) -> str:
        """Which files a batch comes from."""
        names = batch.get("file") if isinstance(batch, Mapping) else None
        return ", ".join(map(str, names)) if isinstance(names, (list, tuple)) else str(names or "unknown file")


@dataclass(frozen=True)
class TrainSettings:
    """Section `train` of a recipe.

    Attributes:
        epochs: passes over the training data.
        steps: optimizer steps; instead of epochs.
        batch_size: samples of one optimizer step, over all devices and accumulated passes.
        precision: number format of the network; weights are float32 always.
        clip: largest norm of the gradient.
        accumulate: in how many passes a batch is computed, to save memory.
        seed: of initial order, noise and masks.
        validate_every: validate after so many epochs.
        patience: stop after so many validations in a row without a better model.
        device: auto, cpu, cuda or cuda:INDEX.
        devices: how many devices on this machine.
        nodes: how many machines.
        logger: what records besides metrics.csv.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 1
    precision: Literal["32", "bf16", "fp16"] = "32"
    clip: float | None = None
    accumulate: int = 1
    seed: int = 0
    validate_every: int = 1
    patience: int | None = None
    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
            ValueError: a value is out of range.
        """
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"give epochs or steps, one of both; got epochs={self.epochs}, steps={self.steps}")
        for name in ("epochs", "steps", "batch_size", "accumulate", "validate_every", "patience", "devices", "nodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive; got {self.clip}")


@dataclass(frozen=True)
class Report:
    """What came of a training.

    Attributes:
        folder: the run folder, which is a checkpoint of the best model.
        epochs: passes over the data, resumed ones included.
        steps: optimizer steps.
        monitor: metric that decided.
        best: metrics of the best model.
        history: one row an epoch, as in metrics.csv.
        seconds: how long it took, without what was resumed.
        steps_per_second: optimizer steps in that time.
    """

    folder: Path
    epochs: int
    steps: int
    monitor: str
    best: dict[str, int | float]
    history: list[dict[str, int | float]] = field(repr=False)
    seconds: float
    steps_per_second: float

    def show(self) -> None:
        """Print where the checkpoint is; of several processes the first one does."""
        if is_first_process():
            print(f"checkpoint {self.folder}")


def seed_all(seed: int) -> None:
    """Seed every global generator; call it before a model is built."""
    lightning.seed_everything(seed, workers=False, verbose=False)


# build("loss", **given): the part that the recipe's section describes; `given` are arguments that are not options.
Build = Callable[..., Any]
_Settings = TypeVar("_Settings", bound=TrainSettings)


def train(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    package: str,
    sections: Mapping[str, Mapping[str, Callable[..., Any]]],
    settings: type[_Settings],
    make_task: Callable[[Build, _Settings], tuple[Task, Data]],
    out: str | Path | None = None,
    resume: bool = False,
    tiny: bool = False,
    device: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Report:
    """Train the model of a recipe; the run folder is a checkpoint of the best model.

    Args:
        recipe: name of a shipped recipe or path of a YAML file.
        overrides: "section.key=value" each.
        package: the domain's, e.g. "recurra.mri".
        sections: what the domain's sections of a recipe may name; "model" and "data" among them.
        settings: dataclass of the section `train`.
        make_task: the task and its data; it builds the parts of the sections in the order that it needs.
        out: run folder; by default runs/NAME.
        resume: go on where the run in the folder stopped.
        tiny: apply the recipe's `tiny` section.
        device: auto, cpu, cuda or cuda:INDEX; by default what the recipe says.
        overwrite: replace the run in the folder.
        quiet: show no progress.

    Raises:
        UserError: the recipe does not fit the classes it names, or this machine or folder.
        ValueError: the data do not fit the recipe.
        Interrupted: Ctrl-C; what is saved and how to go on is in its text.
    """
    changes = [*overrides, *([] if device is None else [f"train.device={device}"])]
    named = {**sections, "optimizer": OPTIMIZERS, "scheduler": SCHEDULES}
    resolved = load_recipe(recipe, changes, tiny=tiny, package=package, sections=named)
    known = [*sections, "optimizer", "scheduler", "train"]
    for name in resolved:
        if name not in known:
            raise UserError(f"{resolved.source}: {name}: no such section{nearest(name, known)}")
    checked = construct(settings, resolved.section("train"), resolved.where("train"))
    seed_all(checked.seed)

    def part(section: str, /, **given: Any) -> Any:
        return build(sections[section], resolved.section(section), resolved.where(section), **given)

    task, data = make_task(part, checked)
    task.optimizer, task.scheduler = resolved.section("optimizer"), resolved.section("scheduler")
    task.where, stem = resolved.source, Path(recipe).stem
    task.configure_optimizers()  # a wrong section is refused before there is a folder
    own = {name: resolved.section(name) for name in sections if name not in ("model", "data", "loss")}
    task.metadata |= {"recipe": stem, "training_data": data.about, **own}
    folder = Path("runs") / stem if out is None else Path(out)
    return fit(task, data, checked, folder, resume=resume, overwrite=overwrite, recipe=resolved, quiet=quiet)


def fit(
    task: Task,
    data: Data,
    settings: TrainSettings,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    recipe: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Report:
    """Train, and leave a run folder that is a checkpoint of the best model.

    Args:
        task: what is trained and how it is measured.
        data: what it is trained and measured on.
        settings: section `train` of the recipe.
        out: run folder.
        resume: go on where the run in the folder stopped.
        overwrite: replace the run in the folder.
        recipe: the resolved recipe, written into the folder.
        quiet: show no progress.

    Raises:
        UserError: a setting does not fit this machine or the folder; the loss is not finite.
        Interrupted: Ctrl-C; what is saved and how to go on is in its text.
    """
    folder, signals = RunFolder(Path(out), quiet=quiet), StopSignals()
    losses, averages = LossWatch(), Averages()
    records = Records(folder, losses, averages, patience=settings.patience)
    with _quiet_lightning():
        folder.check(resume=resume, overwrite=overwrite, recipe=recipe)
        resumption = Resumption(folder, signals, resume=resume)
        callback = Together(Bar(quiet=quiet), losses, averages, records, resumption)
        trainer = _trainer(settings, folder.path, callback)
        seed_all(settings.seed + trainer.global_rank)
        shared = {"processes": trainer.world_size}
        batches = train_loader(data, settings.batch_size, accumulate=settings.accumulate, seed=settings.seed, **shared)
        order: Any = batches.batch_sampler
        validation = validation_loader(data, **shared)
        averages.batches = getattr(validation, "batch_sampler", None)
        task.epoch_steps = -(-len(batches) // settings.accumulate)
        task.total_steps = settings.steps or task.epoch_steps * (settings.epochs or 1)
        started, first = time.perf_counter(), 0
        if resume:
            epoch, done, first = folder.position()
            order.go_to(epoch, done)
        # Made only now: a run that cannot start leaves no folder behind.
        with folder.held(resume=resume, recipe=recipe), signals:
            _run(trainer, task, batches, validation, resumption)
        seconds = time.perf_counter() - started
    return Report(
        folder=folder.path,
        epochs=len(records.history),
        steps=trainer.global_step,
        monitor=records.monitor(task),
        best=records.best,
        history=records.history,
        seconds=seconds,
        steps_per_second=(trainer.global_step - first) / seconds,
    )


def _trainer(settings: TrainSettings, out: Path, callback: Callback) -> Trainer:
    """Lightning's trainer, with everything off that we do ourselves."""
    return Trainer(
        **_machine(settings),
        max_epochs=settings.epochs or -1,
        max_steps=settings.steps or -1,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip,
        check_val_every_n_epoch=settings.validate_every,
        callbacks=[callback],
        logger=_logger(settings, out),
        default_root_dir=out,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        inference_mode=False,
        log_every_n_steps=1 << 30,
    )


def _run(
    trainer: Trainer, task: Task, train: DataLoader[Any], val: DataLoader[Any] | None, resumption: Resumption
) -> None:
    """Train, and say in our words why it stopped early."""
    last = resumption.folder.last
    task.train()
    try:
        trainer.fit(task, train, val, ckpt_path=last if resumption.resume else None, weights_only=True)
    except (Stopped, SIGTERMException) as stop:
        raise Interrupted(f"interrupted {stop}; saved in {last}, go on with --resume") from stop
    except Exception as error:
        if resumption.resume and not resumption.began:  # whatever a damaged state does to who restores it
            raise resumption.folder.damaged() from error
        if not isinstance(error, (ValueError, OSError)):
            raise
        if str(error).startswith("Caught "):  # in a process that loads data; its traceback is no use to a user
            raise UserError(str(error).strip().splitlines()[-1].partition(": ")[2]) from error
        raise
    except SystemExit as stop:  # how Lightning answers Ctrl-C when it was pressed again
        saved = (
            f"the last finished epoch is in {last}, go on with --resume" if last.exists() else "nothing is saved yet"
        )
        raise Interrupted(f"interrupted; {saved}") from stop


def _machine(settings: TrainSettings) -> dict[str, Any]:
    """Lightning's words for device, number of devices and nodes, strategy and precision."""
    device = choose_device(settings.device)
    if settings.precision == "fp16" and device.type != "cuda":
        found = "device is cpu" if torch.cuda.is_available() else "no GPU found"
        raise UserError(f"recipe needs CUDA for precision fp16, {found}; use precision=bf16 or precision=32")
    devices, nodes = settings.devices, settings.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:  # started by torchrun, which has decided
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise UserError(f"train.devices={devices}: this machine has {torch.cuda.device_count()} GPUs")
    # Part of a model may lie idle for one batch (a map refinement that is switched off).
    strategy = DDPStrategy(find_unused_parameters=True) if devices * nodes > 1 else "auto"
    return {
        "accelerator": "gpu" if device.type == "cuda" else "cpu",
        "devices": [device.index] if device.index is not None and devices == 1 else devices,
        "num_nodes": nodes,
        "strategy": strategy,
        "precision": _LIGHTNING_PRECISION[settings.precision],
    }


def _logger(settings: TrainSettings, out: Path) -> Any:
    """The recorder besides metrics.csv."""
    if settings.logger == "csv":
        return False
    if importlib.util.find_spec(settings.logger) is None:
        raise UserError(
            f"train.logger={settings.logger} needs {settings.logger}; pip install 'recurra-core[{settings.logger}]'"
        )
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

    if settings.logger == "tensorboard":
        return TensorBoardLogger(out, name="tensorboard", version="")
    return WandbLogger(name=out.name, save_dir=out)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """While inside, Lightning gives no advice; what a user must know, we say."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            # Lightning 2.6 makes a tree by a name that torch 2.13 is about to drop.
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
