"""What of a reconstruction model crosses the border of an exported program, and the example it is traced with."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recurra.core import exporting
from recurra.core.errors import UserError
from recurra.core.exporting import Exportable, ExportReport
from recurra.core.files import guard_inputs
from recurra.mri.inference import load_checkpoint
from recurra.mri.models.reconstructor import AXES, Reconstructor
from recurra.mri.operators import sense_expand

_LARGEST = 2**25
"""Complex values of an example: 256 MB, and several times that while it is traced."""


class RealInterface(nn.Module):
    """The model with real tensors at its border: complex values as a trailing axis (re, im), as ONNX knows no complex.

    kspace and sensitivity are (batch, coil, *spatial, 2), mask is bool (batch, 1, *spatial); the image is the magnitude
    (batch, *spatial).
    """

    def __init__(self, model: Reconstructor) -> None:
        super().__init__()
        self.model = model

    def forward(self, kspace: Tensor, sensitivity: Tensor, mask: Tensor) -> Tensor:
        """The magnitude image."""
        image = self.model(torch.view_as_complex(kspace), torch.view_as_complex(sensitivity), mask)
        magnitude: Tensor = torch.linalg.vector_norm(torch.view_as_real(image), dim=-1) if image.is_complex() else image
        return magnitude


def export(
    checkpoint: str | Path | Reconstructor,
    out: str | Path,
    *,
    format: str = "onnx",
    shape: str = "8,64,64",
    overwrite: bool = False,
) -> ExportReport:
    """As the verb: writes the magnitude image of `checkpoint` as a program of k-space, maps and mask."""
    given = isinstance(checkpoint, Reconstructor)
    exporting.check_export(out, format, package="recurra.mri", overwrite=overwrite)
    if not given and Path(str(checkpoint)).is_dir():
        guard_inputs([Path(out)], Path(str(checkpoint)).iterdir())
    model = load_checkpoint(checkpoint).eval()
    name = type(model).__name__
    if model.unexportable:
        raise UserError(f"{'' if given else f'{checkpoint}: '}{name} cannot be exported: {model.unexportable}")
    names, example = ("kspace", "sensitivity", "mask"), _example(model, _sizes(shape, model.dim))
    made = Exportable(RealInterface(model), dict(zip(names, example, strict=True)), ("image",), name)
    return exporting.export(made, out, format, package="recurra.mri", overwrite=overwrite)


def _sizes(shape: str, dim: int) -> tuple[int, ...]:
    """Sizes of the example: coils and spatial axes."""
    names = ("coils", *AXES[dim])
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in shape.split(",")]
    if len(numbers) != len(names) or min(numbers) < 1:
        example = ",".join(map(str, (8, *(16, 64, 64)[-dim:])))
        raise UserError(f"shape must be {','.join(names)} such as {example}; got {shape!r}")
    if math.prod(numbers) > _LARGEST:
        raise UserError(f"shape must have at most {_LARGEST:,} samples in all; got {shape}")
    return tuple(numbers)


def _example(model: Reconstructor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """K-space of a random image, sampled at half the points and in the middle, its maps, and the mask."""
    _, *spatial = sizes
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, 1, *sizes, 2, generator=generator)
    image, sensitivity = torch.view_as_complex(draw[0]).mean(1), torch.view_as_complex(draw[1])
    sensitivity = sensitivity / sensitivity.abs().square().sum(1, keepdim=True).sqrt()
    mask = torch.rand(1, 1, *spatial, generator=generator) < 0.5
    middle: tuple[Any, ...] = (..., *(slice(n // 3, n - n // 3) for n in spatial))
    mask[middle] = True
    kspace = torch.where(mask, model.to_kspace(sense_expand(image, sensitivity)), 0)
    return torch.view_as_real(kspace).contiguous(), torch.view_as_real(sensitivity).contiguous(), mask
