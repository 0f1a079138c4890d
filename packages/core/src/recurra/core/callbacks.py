"""What the engine does at each step, validation and epoch: one idea a class, to be called in this order.

Those that a resumed run needs write their part of `checkpoint["recurra"]`, and read it again.
"""

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from recurra.core.errors import UserError
from recurra.core.run_folder import STATE, RunFolder
from recurra.core.sampling import ValidationBatches

Row = dict[str, int | float]


class Together(Callback):
    """Callbacks as one, called in this order: the engine's overhead grows with every callback it knows."""

    def __init__(self, *parts: Callback) -> None:
        for name in (name for name in vars(Callback) if name.startswith("on_")):
            hooks = [getattr(part, name) for part in parts if getattr(type(part), name) is not getattr(Callback, name)]
            if hooks:
                setattr(self, name, _in_turn(hooks))


def _in_turn(hooks: Sequence[Callable[..., None]]) -> Callable[..., None]:
    """One function that calls all."""

    # Not a `partial`: a check of the list's type at every call would draw random numbers.
    def call(*arguments: Any, **named: Any) -> None:
        for hook in hooks:
            hook(*arguments, **named)

    return call


class Bar(Callback):
    """Shows how far an epoch is, on a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._shown = ExitStack()
        self._advance: Any = None

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._advance is None:  # after a resume within an epoch, whose start is not announced again
            self._open(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._advance is not None:
            self._advance(1)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _open(self, trainer: Trainer) -> None:
        if self.quiet or not trainer.is_global_zero or not sys.stderr.isatty():
            return
        from recurra.core.screen import progress

        self._close()
        total, what = int(trainer.num_training_batches), f"epoch {trainer.current_epoch + 1}"
        self._advance = self._shown.enter_context(progress(total, what, unit="batches", transient=True))

    def _close(self) -> None:
        self._shown.close()
        self._advance = None


class LossWatch(Callback):
    """Stops at a loss that is not finite; knows the mean of the epoch's."""

    def __init__(self) -> None:
        self._sum: Any = 0.0
        self._batches = 0
        self._batch: Any = None

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sum, self._batches = 0.0, 0

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch

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
        self._sum = self._sum + outputs["loss"].detach()
        self._batches += 1
        self._batch = None

    def mean(self, trainer: Trainer) -> float:
        """Mean loss of the epoch, over all processes."""
        return float(trainer.strategy.reduce(torch.as_tensor(self._sum / max(1, self._batches)), reduce_op="mean"))

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint.setdefault(STATE, {}).update(losses=float(self._sum), batches=self._batches)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._sum, self._batches = checkpoint[STATE]["losses"], checkpoint[STATE]["batches"]


class Averages(Callback):
    """Means of the validation values over the real samples of all processes.

    Attributes:
        batches: those of validation; None if there is none.
        values: means by metric; empty until the epoch's validation.
    """

    def __init__(self) -> None:
        self.batches: ValidationBatches | None = None
        self.values: Row = {}
        self._sums: dict[str, Tensor] = {}
        self._samples = 0

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.values = {}

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
        assert self.batches is not None
        real = self.batches.real(batch_idx)
        for key, values in outputs.items():
            if values.ndim != 1:
                raise ValueError(f"validation_step: {key} has shape {tuple(values.shape)}; expected one value a sample")
            self._sums[key] = self._sums.get(key, 0.0) + values[:real].double().sum()
        self._samples += real

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = pl_module.device
        # MPS has no float64; there is only one such device, and the sum is exact enough.
        kind = torch.float32 if device.type == "mps" else torch.float64
        packed = torch.tensor(
            [*(float(value) for value in self._sums.values()), self._samples], dtype=kind, device=device
        )
        packed = torch.as_tensor(trainer.strategy.reduce(packed, reduce_op="sum"))
        self.values = {key: float(value / packed[-1]) for key, value in zip(self._sums, packed, strict=False)}

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.batches is not None and not self.values and self._is_over(trainer):
            # The last step fell between two validations; Lightning's own loop makes up for it.
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    @staticmethod
    def _is_over(trainer: Trainer) -> bool:
        """Whether this epoch is the last."""
        steps, epochs = trainer.max_steps, trainer.max_epochs
        return 0 <= steps <= trainer.global_step or (epochs is not None and 0 <= epochs <= trainer.current_epoch + 1)


class Records(Callback):
    """Keeps the history, the pictures and the best model.

    Args:
        folder: receives them.
        losses: of the training.
        averages: of the validation.
        patience: stop after so many validations in a row without a better model; None for never.

    Attributes:
        history: one row an epoch.
        best: values of the best model.
    """

    def __init__(
        self, folder: RunFolder, losses: LossWatch, averages: Averages, *, patience: int | None = None
    ) -> None:
        self.folder, self.losses, self.averages, self.patience = folder, losses, averages, patience
        self.history: list[Row] = []
        self.best: Row = {}

    def monitor(self, task: Any) -> str:
        """Metric that decides which model is best."""
        return str(task.monitor) if self.averages.batches is not None else "loss"

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module.model
        count = sum(parameter.numel() for parameter in model.parameters())
        versions = ", ".join(f"{name} {version(name)}" for name in ("recurra-core", "torch", "lightning"))
        self.folder.say(versions, show=False)
        devices = f"{trainer.world_size} x {pl_module.device}, precision {trainer.precision}"
        self.folder.say(f"training {type(model).__name__} ({count:,} parameters) on {devices}")

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
        task: Any = pl_module
        if batch_idx == 0 and trainer.is_global_zero:
            with self.folder.figure(trainer.current_epoch + 1) as path:
                task.figure(batch, path)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep_if_best(trainer, pl_module, self.averages.values)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = self.losses.mean(trainer)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        row: Row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "learning_rate": rate}
        self.history.append({**row, "train_loss": loss, **self.averages.values})
        if self.averages.batches is None:
            self._keep_if_best(trainer, pl_module, {"loss": loss})
        self.folder.write_history(self.history)
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics(self.history[-1], step=trainer.global_step)
        values = ", ".join(f"{key} {value:.5g}" for key, value in list(self.history[-1].items())[2:])
        self.folder.say(f"epoch {row['epoch']}, step {row['step']}: {values}")
        self._stop_if_no_better(trainer, pl_module)

    def _stop_if_no_better(self, trainer: Trainer, task: Any) -> None:
        """Stop when the last `patience` validations brought no better model: the history decides, also when resumed."""
        name, best = self.monitor(task), self.best.get("epoch", 0)
        since = [row for row in self.history if row["epoch"] > best and (name == "loss" or name in row)]
        if self.patience is not None and len(since) >= self.patience and not trainer.should_stop:
            self.folder.say(f"stopped early: no better model in {self.patience} validations; best is epoch {best}")
            trainer.should_stop = True

    def _keep_if_best(self, trainer: Trainer, pl_module: LightningModule, values: Row) -> None:
        """Save the model if it is the best so far."""
        task: Any = pl_module
        monitor = self.monitor(task)
        if monitor not in values:
            raise ValueError(f"validation_step: no {monitor!r}, which decides; it returned {', '.join(values)}")
        sign = 1.0 if task.higher_is_better and self.averages.batches is not None else -1.0
        value = sign * values[monitor]
        if math.isnan(value) or (self.best and value <= sign * self.best[monitor]):
            return
        self.best = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **values}
        if trainer.is_global_zero:
            task.model.save_pretrained(self.folder.path, metadata={**task.metadata, "training": self.best})

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.folder.say(" ".join(f"stopped: {exception}".split()), show=False)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint.setdefault(STATE, {}).update(history=self.history, best=self.best)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.history, self.best = list(checkpoint[STATE]["history"]), dict(checkpoint[STATE]["best"])
