"""The training engine: Lightning's Trainer, our batches, our laws of seed and resume, one folder a run."""

import importlib.util
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from recurra.core.checkpoint import CARD, CONFIG, WEIGHTS, Pretrained
from recurra.core.device import choose_device
from recurra.core.errors import Interrupted, UserError
from recurra.core.files import open_output
from recurra.core.recipe import build, load_recipe, plain, save_recipe
from recurra.core.run_folder import FIGURES, LAST, LOG, METRICS, RECIPE, RunFolder, Stopped, stop_signals
from recurra.core.sampling import train_loader, validation_loader
from recurra.core.schedules import OPTIMIZERS, SCHEDULES

_LIGHTNING_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class Task(LightningModule):
    """One kind of work: what the loss is, what validation measures, what a picture shows.

    A subclass defines `training_step(batch, index) -> loss` and `validation_step(batch, index)`, which returns one
    value for each sample and metric, as {metric: tensor of shape (batch,)}.

    Attributes:
        model: what is trained, saved and shipped.
        monitor: metric that decides which model is best; without validation data it is the training loss.
        higher_is_better: whether the monitored metric grows as the model improves.
        metadata: goes into the checkpoint (training data, licence, provenance).
        total_steps: optimizer steps of the whole training; `fit` sets it.

    Args:
        model: the model.
        optimizer: section of a recipe.
        scheduler: section of a recipe.
        where: name of the recipe, for error messages.
    """

    monitor = "loss"
    higher_is_better = False

    def __init__(
        self,
        model: Pretrained,
        *,
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        where: str = "recipe",
    ) -> None:
        super().__init__()
        self.model = model
        self.metadata = dict(metadata or {})
        self.total_steps = 1
        self._optimizer = dict(optimizer or {"name": "Adam"})
        self._scheduler = dict(scheduler or {"name": "none"})
        self._where = where

    def configure_optimizers(self) -> Any:
        """The optimizer and, stepped with it, the schedule."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = build(OPTIMIZERS, self._optimizer, f"{self._where}: optimizer", params=trained)
        factor = build(SCHEDULES, self._scheduler, f"{self._where}: scheduler", total=self.total_steps)
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
        for name in ("epochs", "steps", "batch_size", "accumulate", "validate_every", "devices", "nodes"):
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


def fit(
    task: Task,
    data: LightningDataModule,
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
        data: its loaders' datasets, collation and workers are used; order and batches are the engine's. A dataset's
            `set_epoch(epoch)` is called before every epoch.
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
    out = Path(out)
    with _quiet_lightning():
        if is_first_process():
            _check_folder(out, resume=resume, overwrite=overwrite, recipe=recipe)
        folder = RunFolder(out, quiet=quiet)
        trainer = _trainer(settings, folder)
        seed_all(settings.seed + trainer.global_rank)
        train, validation = _loaders(data, settings, trainer.world_size)
        batches: Any = validation.batch_sampler if validation else None
        folder.validation = batches
        steps_per_epoch = -(-len(train) // settings.accumulate)
        task.total_steps = settings.steps or steps_per_epoch * (settings.epochs or 1)
        started, first = time.perf_counter(), _position(out, train) if resume else 0
        if is_first_process():  # only now: a run that cannot start leaves no folder behind
            _make_folder(out, fresh=not resume, recipe=recipe)
        with stop_signals(folder):
            _run(trainer, task, (train, validation), out / LAST if resume else None)
        seconds = time.perf_counter() - started
    return Report(
        folder=out,
        epochs=len(folder.history),
        steps=trainer.global_step,
        monitor=folder.monitor(task),
        best=folder.best,
        history=folder.history,
        seconds=seconds,
        steps_per_second=(trainer.global_step - first) / seconds,
    )


def _trainer(settings: TrainSettings, folder: RunFolder) -> Trainer:
    """Lightning's trainer, with everything off that we do ourselves."""
    return Trainer(
        **_machine(settings),
        max_epochs=settings.epochs or -1,
        max_steps=settings.steps or -1,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip,
        check_val_every_n_epoch=settings.validate_every,
        callbacks=[folder],
        logger=_logger(settings, folder.folder),
        default_root_dir=folder.folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        inference_mode=False,
        log_every_n_steps=1 << 30,
    )


def _run(
    trainer: Trainer, task: Task, loaders: tuple[DataLoader[Any], DataLoader[Any] | None], state: Path | None
) -> None:
    """Train, and say in our words why it stopped early."""
    last = Path(trainer.default_root_dir, LAST)
    task.train()
    try:
        trainer.fit(task, *loaders, ckpt_path=state, weights_only=True)
    except (Stopped, SIGTERMException) as stop:
        raise Interrupted(f"interrupted {stop}; saved in {last}, go on with --resume") from stop
    except (ValueError, OSError) as error:
        if str(error).startswith("Caught "):  # in a process that loads data; its traceback is no use to a user
            raise UserError(str(error).strip().splitlines()[-1].partition(": ")[2]) from error
        raise
    except SystemExit as stop:  # how Lightning answers Ctrl-C when it was pressed again
        saved = (
            f"the last finished epoch is in {last}, go on with --resume" if last.exists() else "nothing is saved yet"
        )
        raise Interrupted(f"interrupted; {saved}") from stop


def _position(out: Path, train: DataLoader[Any]) -> int:
    """Send the batches to where the resumed run stopped; returns its number of steps."""
    try:
        state = torch.load(out / LAST, map_location="cpu", mmap=True, weights_only=True)
        position, step = state["recurra"], int(state["global_step"])
    except Exception as error:  # whatever a damaged file does to a reader
        raise UserError(f"{out / LAST}: damaged; train anew with --overwrite") from error
    batches: Any = train.batch_sampler
    batches.set_epoch(position["epoch"])
    batches.skip = position["batch"]
    return step


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


def is_first_process() -> bool:
    """Whether this process writes; known before the processes are joined."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _check_folder(out: Path, *, resume: bool, overwrite: bool, recipe: Mapping[str, Any] | None) -> None:
    """Refuse a folder that this run may not use."""
    if resume:
        if not (out / LAST).is_file():
            raise UserError(f"{out}: nothing to resume (no {LAST}); train without --resume")
        if recipe is not None and (out / RECIPE).is_file():
            before = load_recipe(out / RECIPE, package=__package__ or "").get("model")
            if before != plain(recipe.get("model")):
                raise UserError(
                    f"{out / RECIPE}: model is another one than in the recipe given; train into another --out"
                )
    else:
        open_output(out, overwrite, instead="pass --resume to go on with it, or choose another --out")


def _make_folder(out: Path, *, fresh: bool, recipe: Mapping[str, Any] | None) -> None:
    """Make the folder, without what an earlier run left in it."""
    if fresh:
        for name in (CONFIG, WEIGHTS, CARD, RECIPE, METRICS, LOG):
            (out / name).unlink(missing_ok=True)
        for folder in (out / FIGURES, (out / LAST).parent):
            shutil.rmtree(folder, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    if recipe is not None:
        save_recipe(recipe, out / RECIPE)


def _loaders(
    data: LightningDataModule, settings: TrainSettings, processes: int
) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
    """Loaders of training and validation data in our order."""
    if is_first_process():
        data.prepare_data()
    data.setup("fit")
    train = train_loader(
        data.train_dataloader(),
        settings.batch_size,
        processes=processes,
        accumulate=settings.accumulate,
        seed=settings.seed,
    )
    has_validation = type(data).val_dataloader is not LightningDataModule.val_dataloader
    given = data.val_dataloader() if has_validation else None
    return train, validation_loader(given, processes=processes) if given is not None else None


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
