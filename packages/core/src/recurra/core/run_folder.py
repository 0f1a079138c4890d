"""The run folder: what a training writes as it goes, and what it needs to be resumed."""

import csv
import math
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from recurra.core.errors import UserError
from recurra.core.files import writing
from recurra.core.sampling import ValidationBatches
from recurra.core.verbs import progress

LAST, RECIPE, METRICS, LOG, FIGURES = "last/state.ckpt", "recipe.yaml", "metrics.csv", "log.txt", "figures"
_STATE = "recurra"  # our part of Lightning's checkpoint


class Stopped(Exception):
    """The training was asked to stop, and its state is saved."""


class RunFolder(Callback):
    """Writes metrics, log, pictures, the best model and the last state; watches the loss; keeps the random state.

    Args:
        folder: the run folder.
        quiet: print nothing.
    """

    def __init__(self, folder: Path, *, quiet: bool = False) -> None:
        self.folder, self.quiet = folder, quiet
        self.validation: ValidationBatches | None = None
        self.stop_requested = ""
        self.history: list[dict[str, int | float]] = []
        self.best: dict[str, int | float] = {}
        self._losses: Any = 0.0
        self._batches = 0
        self._random: dict[str, Any] | None = None
        self._values: dict[str, int | float] = {}
        self._sums: dict[str, Tensor] = {}
        self._samples = 0
        self._batch: Any = None
        self._position = {"epoch": 0, "batch": 0}
        self._bar = ExitStack()
        self._advance: Any = None

    # --- the beginning and the end

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module.model
        count = sum(parameter.numel() for parameter in model.parameters())
        versions = ", ".join(f"{name} {version(name)}" for name in ("recurra-core", "torch", "lightning"))
        self._say(trainer, versions, show=False)
        devices = f"{trainer.world_size} x {pl_module.device}, precision {trainer.precision}"
        self._say(trainer, f"training {type(model).__name__} ({count:,} parameters) on {devices}")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._bar.close()
        self._say(trainer, " ".join(f"stopped: {exception}".split()), show=False)

    # --- one epoch of training

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_random(trainer)
        self._losses, self._batches, self._values = 0.0, 0, {}
        self._open_bar(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._restore_random(trainer)  # after a resume within an epoch, whose start is not announced again
        self._batch = batch
        if self._advance is None:
            self._open_bar(trainer)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # Before the step, so that the weights are still those of the last good one.
        if not torch.isfinite(loss):
            task: Any = pl_module
            raise UserError(
                f"the loss is {loss.item()} in epoch {trainer.current_epoch + 1}, "
                f"batch {trainer.fit_loop.batch_idx} ({task.describe(self._batch)}); "
                "look at these data, lower optimizer.lr or set train.clip"
            )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses = self._losses + outputs["loss"].detach()
        self._batches += 1
        self._batch = None
        if self._advance is not None:
            self._advance(1)
        last = batch_idx + 1 == trainer.num_training_batches
        # Between passes of one step there are gradients that no checkpoint holds.
        if not last and (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and self._stops(trainer):
            self.save(trainer, batch=batch_idx + 1)
            raise Stopped(f"in epoch {trainer.current_epoch + 1} after batch {batch_idx + 1}")

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_bar()
        if self.validation is not None and not self._values and self._is_over(trainer):
            # The last step fell between two validations; Lightning's own loop makes up for it.
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        loss = trainer.strategy.reduce(torch.as_tensor(self._losses / max(1, self._batches)), reduce_op="mean")
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "learning_rate": rate}
        self.history.append({**row, "train_loss": float(loss), **self._values})
        if self.validation is None:
            self._keep_if_best(trainer, pl_module, {"loss": float(loss)})
        self._write_history(trainer)
        values = ", ".join(f"{key} {value:.5g}" for key, value in list(self.history[-1].items())[2:])
        self._say(trainer, f"epoch {row['epoch']}, step {row['step']}: {values}")
        self.save(trainer, batch=0)
        if self._stops(trainer):
            raise Stopped(f"after epoch {row['epoch']}")

    @staticmethod
    def _is_over(trainer: Trainer) -> bool:
        """Whether this epoch is the last."""
        steps, epochs = trainer.max_steps, trainer.max_epochs
        return 0 <= steps <= trainer.global_step or (epochs is not None and 0 <= epochs <= trainer.current_epoch + 1)

    def _stops(self, trainer: Trainer) -> bool:
        """Whether any process was asked to stop; all come to the same answer."""
        asked = bool(self.stop_requested)
        return trainer.strategy.reduce_boolean_decision(asked, all=False) if trainer.world_size > 1 else asked

    # --- validation

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sums, self._samples = {}, 0

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self.validation is not None
        real = self.validation.real(batch_idx)
        for key, values in outputs.items():
            if values.ndim != 1:
                raise ValueError(f"validation_step: {key} has shape {tuple(values.shape)}; expected one value a sample")
            self._sums[key] = self._sums.get(key, 0.0) + values[:real].double().sum()
        self._samples += real
        if batch_idx == 0 and trainer.is_global_zero:
            self._draw(trainer, pl_module, batch)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = pl_module.device
        # MPS has no float64; there is only one such device, and the sum is exact enough.
        kind = torch.float32 if device.type == "mps" else torch.float64
        packed = torch.tensor(
            [*(float(value) for value in self._sums.values()), self._samples], dtype=kind, device=device
        )
        packed = torch.as_tensor(trainer.strategy.reduce(packed, reduce_op="sum"))
        self._values = {key: float(value / packed[-1]) for key, value in zip(self._sums, packed, strict=False)}
        self._keep_if_best(trainer, pl_module, self._values)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Let the task draw its picture; what is there afterwards is whole."""
        task: Any = pl_module
        path = self.folder / FIGURES / f"epoch-{trainer.current_epoch + 1:04d}.png"
        aside = path.with_name(f".{path.name}")
        path.parent.mkdir(exist_ok=True)
        try:
            task.figure(batch, aside)
            if aside.exists():
                aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def monitor(self, task: Any) -> str:
        """Metric that decides which model is best."""
        return str(task.monitor) if self.validation is not None else "loss"

    def _keep_if_best(self, trainer: Trainer, pl_module: LightningModule, values: dict[str, int | float]) -> None:
        """Save the model if it is the best so far."""
        task: Any = pl_module
        monitor = self.monitor(task)
        if monitor not in values:
            raise ValueError(f"validation_step: no {monitor!r}, which decides; it returned {', '.join(values)}")
        sign = 1.0 if task.higher_is_better and self.validation is not None else -1.0
        value = sign * values[monitor]
        if math.isnan(value) or (self.best and value <= sign * self.best[monitor]):
            return
        self.best = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **values}
        if trainer.is_global_zero:
            task.model.save_pretrained(self.folder, metadata={**task.metadata, "training": self.best})

    # --- the state

    def save(self, trainer: Trainer, *, batch: int) -> None:
        """Write the last state; all processes take part, the first one writes.

        Args:
            trainer: the trainer.
            batch: how many batches of the epoch are done; 0 at its end.
        """
        self._position = {"epoch": trainer.current_epoch + (batch == 0), "batch": batch}
        target = self.folder / LAST
        if not trainer.is_global_zero:
            trainer.save_checkpoint(target)
            return
        with writing(target) as part:
            trainer.save_checkpoint(part)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[_STATE] = {
            **self._position,
            "history": self.history,
            "best": self.best,
            "losses": float(self._losses),
            "batches": self._batches,
            "random": _random_state(),
        }

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint[_STATE]
        self.history, self.best = list(state["history"]), dict(state["best"])
        self._losses, self._batches, self._random = state["losses"], state["batches"], state["random"]

    def _restore_random(self, trainer: Trainer) -> None:
        """Go on with the random numbers of the run that was resumed; the other processes have seeds of their own."""
        if self._random is not None and trainer.is_global_zero:
            _set_random_state(self._random)
        self._random = None

    # --- what people read

    def _open_bar(self, trainer: Trainer) -> None:
        if self.quiet or not trainer.is_global_zero or not sys.stderr.isatty():
            return
        self._close_bar()
        total, what = int(trainer.num_training_batches), f"epoch {trainer.current_epoch + 1}"
        self._advance = self._bar.enter_context(progress(total, what, unit="batches", transient=True))

    def _close_bar(self) -> None:
        self._bar.close()
        self._advance = None

    def _say(self, trainer: Trainer, line: str, *, show: bool = True) -> None:
        """One line into log.txt, and onto the screen."""
        if not trainer.is_global_zero or not self.folder.is_dir():
            return
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        if show and not self.quiet:
            typer.echo(line, err=True)

    def _write_history(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.log_metrics(self.history[-1], step=trainer.global_step)
        columns = list(dict.fromkeys(key for row in self.history for key in row))
        with writing(self.folder / METRICS) as part, part.open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, columns)
            table.writeheader()
            table.writerows(self.history)


@contextmanager
def stop_signals(folder: RunFolder) -> Iterator[None]:
    """While inside, a first Ctrl-C or SIGTERM lets the batch end and the state be saved; a second Ctrl-C does not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        if folder.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        folder.stop_requested = signal.Signals(number).name

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _random_state() -> dict[str, Any]:
    """State of all global generators as plain values and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *(float(x) for x in rest)),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), int(position), int(has_gauss), gauss))
    number, values, gauss_next = state["python"]
    random.setstate((number, tuple(values), gauss_next))
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
