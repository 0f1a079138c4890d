"""The training engine: Lightning's Trainer, our batches, our laws of seed and resume, one folder a run."""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from recurra.core.callbacks import Averages, Bar, LossWatch, Records, Together
from recurra.core.checkpoint import Pretrained
from recurra.core.errors import Interrupted, UserError, nearest
from recurra.core.recipe import Recipe, build, construct, load_recipe
from recurra.core.resuming import Resumption, Stopped, StopSignals
from recurra.core.run_folder import RunFolder, is_first_process
from recurra.core.sampling import Data, train_loader, validation_loader
from recurra.core.schedules import OPTIMIZERS, SCHEDULES, constant
from recurra.core.trainer import TrainSettings, make_trainer, quiet_lightning

__all__ = ["Build", "Data", "Report", "Task", "TrainSettings", "fit", "is_first_process", "seed_all", "train"]


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
        closed_form: the model is solved for, by `solve`; there are no steps.
        known_optimizers: what the section may name.
        known_schedules: likewise.
    """

    monitor = "loss"
    higher_is_better = False
    closed_form = False
    known_optimizers: Mapping[str, Callable[..., Any]] = OPTIMIZERS
    known_schedules: Mapping[str, Callable[..., Any]] = SCHEDULES

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
        optimizer = build(
            self.known_optimizers, self.optimizer or {"name": "Adam"}, f"{self.where}: optimizer", params=trained
        )
        section = self.scheduler or {"name": "none"}
        lengths = {"total": self.total_steps}
        if "epoch" in inspect.signature(self.known_schedules.get(str(section.get("name")), constant)).parameters:
            lengths["epoch"] = self.epoch_steps
        factor = build(self.known_schedules, section, f"{self.where}: scheduler", **lengths)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def figure(self, batch: Any, path: Path) -> None:
        """Draw the first validation batch into a PNG; by default nothing."""

    def solve(self, data: Data) -> dict[str, int | float]:
        """Solves for the model; metrics of it, for the record."""
        raise NotImplementedError

    def describe(self, batch: Any) -> str:
        """Which files a batch comes from."""
        names = batch.get("file") if isinstance(batch, Mapping) else None
        return ", ".join(map(str, names)) if isinstance(names, (list, tuple)) else str(names or "unknown file")


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


@dataclass(frozen=True)
class Build:
    """`build("loss", **given)` is the part that the recipe's section describes; `given` are arguments, no options.

    Attributes:
        sections: what each section may name.
        recipe: the resolved one.
    """

    sections: Mapping[str, Mapping[str, Callable[..., Any]]]
    recipe: Recipe

    def __call__(self, section: str, /, **given: Any) -> Any:
        """The part."""
        where = self.recipe.where(section)
        return build(self.sections[section], self.recipe.section(section), where, **given)

    def kind(self, section: str) -> Callable[..., Any] | None:
        """The class that a section names; None if there is none of this name, which `build` explains."""
        return self.sections[section].get(str(self.recipe.section(section).get("name")))


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
    named: dict[str, Mapping[str, Callable[..., Any]]] = {"optimizer": OPTIMIZERS, "scheduler": SCHEDULES, **sections}
    resolved = load_recipe(recipe, changes, tiny=tiny, package=package, sections=named)
    known = [*named, "train"]
    for name in resolved:
        if name not in known:
            raise UserError(f"{resolved.source}: {name}: no such section{nearest(name, known)}")
    checked = construct(settings, resolved.section("train"), resolved.where("train"))
    seed_all(checked.seed)
    task, data = make_task(Build(sections, resolved), checked)
    task.optimizer, task.scheduler = resolved.section("optimizer"), resolved.section("scheduler")
    task.where, stem = resolved.source, Path(recipe).stem
    if not task.closed_form:
        task.configure_optimizers()  # a wrong section is refused before there is a folder
    own = {
        name: resolved.section(name)
        for name in sections
        if name not in ("model", "data", "loss", "optimizer", "scheduler")
    }
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
    with quiet_lightning():
        folder.check(resume=resume, overwrite=overwrite, recipe=recipe)
        if task.closed_form:
            return _solve(task, data, folder, resume=resume, recipe=recipe)
        resumption = Resumption(folder, signals, resume=resume)
        callback = Together(Bar(quiet=quiet), losses, averages, records, resumption)
        trainer = make_trainer(settings, folder.path, callback)
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


def _solve(task: Task, data: Data, folder: RunFolder, *, resume: bool, recipe: Mapping[str, Any] | None) -> Report:
    """What `fit` does with a model that has a solution."""
    if resume:
        raise UserError(f"{folder.path}: {type(task.model).__name__} is solved for, there is nothing to resume")
    started = time.perf_counter()
    with folder.held(resume=False, recipe=recipe):
        best: dict[str, int | float] = {"epoch": 0, "step": 0, **task.solve(data)}
        folder.write_history([best])
        task.model.save_pretrained(folder.path, metadata={**task.metadata, "training": best})
        values = ", ".join(f"{key} {value:.5g}" for key, value in list(best.items())[2:])
        folder.say(f"solved for {type(task.model).__name__}: {values}")
    return Report(folder.path, 0, 0, task.monitor, best, [best], time.perf_counter() - started, 0.0)


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
