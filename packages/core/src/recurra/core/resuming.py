"""Stopping a training on a signal, and what it goes on from: its position and its random numbers."""

import random
import signal
import threading
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from recurra.core.files import writing
from recurra.core.run_folder import STATE, RunFolder


class Stopped(Exception):
    """The training was asked to stop, and its state is saved."""


class StopSignals:
    """While inside, a first Ctrl-C or SIGTERM lets the batch end and the state be saved; a second Ctrl-C does not."""

    def __init__(self) -> None:
        self.asked = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        """Take the signals; outside the main thread they cannot be taken."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name

    def agreed(self, trainer: Trainer) -> bool:
        """Whether any process was asked to stop; all come to the same answer."""
        asked = bool(self.asked)
        return trainer.strategy.reduce_boolean_decision(asked, all=False) if trainer.world_size > 1 else asked


class Resumption(Callback):
    """Saves after every epoch, or where the training is asked to stop, what a resumed run goes on from.

    Args:
        folder: receives the last state.
        signals: say when to stop.
        resume: whether the run goes on from there.

    Attributes:
        began: whether everything is restored and the training has begun.
    """

    def __init__(self, folder: RunFolder, signals: StopSignals, *, resume: bool = False) -> None:
        self.folder, self.signals, self.resume = folder, signals, resume
        self._position = {"epoch": 0, "batch": 0}
        self._random: dict[str, Any] | None = None
        self.began = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = True

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_random(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._restore_random(trainer)  # after a resume within an epoch, whose start is not announced again

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        last = batch_idx + 1 == trainer.num_training_batches
        # Between passes of one step there are gradients that no checkpoint holds.
        if not last and (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and self.signals.agreed(trainer):
            self._save(trainer, epoch=trainer.current_epoch, batch=batch_idx + 1)
            raise Stopped(f"in epoch {trainer.current_epoch + 1} after batch {batch_idx + 1}")

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, epoch=trainer.current_epoch + 1, batch=0)
        if self.signals.agreed(trainer):
            raise Stopped(f"after epoch {trainer.current_epoch + 1}")

    def _save(self, trainer: Trainer, *, epoch: int, batch: int) -> None:
        """Write the last state; all processes take part, the first one writes."""
        self._position = {"epoch": epoch, "batch": batch}
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.folder.last)
            return
        with writing(self.folder.last) as part:
            trainer.save_checkpoint(part)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint.setdefault(STATE, {}).update(self._position, random=_random_state())

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._random, now = checkpoint[STATE]["random"], _random_state()
        _set_random_state(self._random)  # a damaged state is found before the first batch
        _set_random_state(now)

    def _restore_random(self, trainer: Trainer) -> None:
        """Go on with the random numbers of the run that was resumed; the other processes have seeds of their own."""
        if self._random is not None and trainer.is_global_zero:
            _set_random_state(self._random)
        self._random = None


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
