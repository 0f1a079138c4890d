"""Trains a reconstruction model from a recipe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recurra.core import training
from recurra.core.training import Build, Data, Report, Task, TrainSettings
from recurra.mri.data.sources import DATA
from recurra.mri.figures import error_map_png
from recurra.mri.losses import LOSSES, ImageLoss, accumulated
from recurra.mri.masks import MASKS
from recurra.mri.metrics import nmse, psnr, ssim
from recurra.mri.models import MODELS
from recurra.mri.models.reconstructor import Reconstructor
from recurra.mri.operators import center_crop, ifft, rss

SECTIONS: dict[str, Mapping[str, Callable[..., Any]]] = {"model": MODELS, "loss": LOSSES, "mask": MASKS, "data": DATA}


@dataclass(frozen=True)
class ReconstructionSettings(TrainSettings):
    """Section `train` of a recipe.

    Attributes:
        checkpointing: recompute the activations of every cascade in the backward pass: less memory, more time.
    """

    checkpointing: bool = False


class ReconstructionTask(Task):
    """Minimises a loss over the model's estimates; validates with the metrics of every slice.

    A batch has `kspace` (batch, coil, height, width) complex, masked and scaled, `sensitivity` like it, `mask` bool
    (batch, 1, 1 or height, width), `target` (batch, row, column) on the same scale, `reference` like it but
    complex, `file` and `index`.
    """

    model: Reconstructor
    monitor = "ssim"
    higher_is_better = True

    def __init__(self, model: Reconstructor, loss: ImageLoss, **options: Any) -> None:
        super().__init__(model, **options)
        self.loss = loss

    def training_step(self, batch: Mapping[str, Any], index: int) -> Tensor:
        """The weighted loss of the model's estimates."""
        target = batch["reference" if self.loss.needs_phase else "target"]
        return accumulated(
            self.loss, self.model.estimates(batch["kspace"], batch["sensitivity"], batch["mask"]), target
        )

    def validation_step(self, batch: Mapping[str, Any], index: int) -> dict[str, Tensor]:
        """PSNR, SSIM and NMSE of every slice, each against its own maximum."""
        image, target = self._image(batch), batch["target"].float()
        pairs = [(t[None].cpu().numpy(), i[None].cpu().numpy()) for t, i in zip(target, image, strict=True)]
        return {
            name: torch.tensor([metric(t, i) for t, i in pairs], device=target.device)
            for name, metric in (("ssim", ssim), ("psnr", psnr), ("nmse", nmse))
        }

    def figure(self, batch: Mapping[str, Any], path: Path) -> None:
        """Target, zero-filled and reconstruction of the first slice, with their errors."""
        target = batch["target"][0].float().cpu()
        zero_filled = center_crop(rss(ifft(batch["kspace"][:1], self.model.fft)), target.shape)[0].cpu()
        with torch.no_grad():
            image = self._image(batch)[0].cpu()
        images = {"zero-filled": zero_filled.numpy(), type(self.model).__name__: image.numpy()}
        error_map_png(path, target.numpy(), images, title=f"{batch['file'][0]}, slice {int(batch['index'][0])}")

    def _image(self, batch: Mapping[str, Any]) -> Tensor:
        image = self.model(batch["kspace"], batch["sensitivity"], batch["mask"])
        return center_crop(image.abs().float(), batch["target"].shape[-2:])


def make_task(build: Build, settings: ReconstructionSettings) -> tuple[ReconstructionTask, Data]:
    """What a recipe trains, and its data."""
    model = build("model")
    model.checkpointing = settings.checkpointing
    loss = build("loss")
    data = build("data", mask=build("mask"), preparation=model, seed=settings.seed)
    return ReconstructionTask(model, loss), data


def train(recipe: str | Path, overrides: Sequence[str] = (), **options: Any) -> Report:
    """Train the model of a recipe; the options are those of `recurra.core.training.train`."""
    return training.train(
        recipe,
        overrides,
        package="recurra.mri",
        sections=SECTIONS,
        settings=ReconstructionSettings,
        make_task=make_task,
        **options,
    )
