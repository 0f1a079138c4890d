"""Trains a reconstruction model from a recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recurra.core.recipe import build, construct, load_recipe
from recurra.core.training import Report, Task, TrainSettings, fit, seed_all
from recurra.mri.data.datamodule import DATA
from recurra.mri.figures import error_map_png
from recurra.mri.losses import LOSSES, ImageLoss, accumulated
from recurra.mri.masks import MASKS
from recurra.mri.metrics import nmse, psnr, ssim
from recurra.mri.models import MODELS
from recurra.mri.models.reconstructor import Reconstructor
from recurra.mri.operators import center_crop, ifft, rss


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


def train(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    resume: bool = False,
    tiny: bool = False,
    device: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Report:
    """Trains the model of a recipe; the run folder is a checkpoint of the best model.

    Args:
        recipe: name of a shipped recipe or path of a YAML file.
        overrides: "section.key=value" each.
        out: run folder; by default runs/NAME.
        resume: go on where the run in the folder stopped.
        tiny: apply the recipe's `tiny` section.
        device: auto, cpu, cuda or cuda:INDEX; by default what the recipe says.
        overwrite: replace the run in the folder.
        quiet: show no progress.

    Raises:
        ValueError: the recipe does not fit the classes it names, or the data do not fit the recipe.
    """
    changes = [*overrides, *([] if device is None else [f"train.device={device}"])]
    resolved = load_recipe(recipe, changes, tiny=tiny, package="recurra.mri")
    settings = construct(ReconstructionSettings, resolved.section("train"), resolved.where("train"))
    seed_all(settings.seed)
    model = build(MODELS, resolved.section("model"), resolved.where("model"))
    model.checkpointing = settings.checkpointing
    loss = build(LOSSES, resolved.section("loss"), resolved.where("loss"))
    mask = build(MASKS, resolved.section("mask"), resolved.where("mask"))
    data = build(
        DATA, resolved.section("data"), resolved.where("data"), mask=mask, preparation=model, seed=settings.seed
    )
    name = Path(str(recipe)).stem
    task = ReconstructionTask(
        model,
        loss,
        optimizer=resolved.section("optimizer"),
        scheduler=resolved.section("scheduler"),
        metadata={"recipe": name, "training_data": data.describe(), "mask": resolved.section("mask")},
        where=resolved.source,
    )
    folder = Path("runs") / name if out is None else Path(out)
    return fit(task, data, settings, folder, resume=resume, overwrite=overwrite, recipe=resolved, quiet=quiet)
