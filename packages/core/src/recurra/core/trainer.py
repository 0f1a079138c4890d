"""Lightning's trainer, with everything off that the engine does itself, and the settings that it is made from."""

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

from recurra.core.device import choose_device
from recurra.core.errors import UserError

_LIGHTNING_PRECISION: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


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


def make_trainer(settings: TrainSettings, out: Path, callback: Callback) -> Trainer:
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
def quiet_lightning() -> Iterator[None]:
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
