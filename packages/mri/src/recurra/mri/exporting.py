"""Writes a checkpoint as ONNX or as a torch.export program, and measures what it computes before it may be used."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recurra.core.errors import UserError
from recurra.core.files import open_output, writing
from recurra.kernels import use_backend
from recurra.mri.inference import load_checkpoint
from recurra.mri.models.reconstructor import AXES, Reconstructor
from recurra.mri.operators import sense_expand
from recurra.mri.real_arithmetic import RealArithmetic

TOLERANCE = 1e-4  # of the largest magnitude: float32 through some ten unrolled convolutions and FFTs


@dataclass(frozen=True)
class ExportReport:
    """What was written, and its largest difference to torch relative to the largest magnitude of the image."""

    path: Path
    difference: float

    def show(self) -> None:
        """Print both."""
        print(f"{self.path}: largest difference to torch {self.difference:.1e}")


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
    """Writes `checkpoint` to the file `out` and returns the measured difference to torch.

    Args:
        checkpoint: folder, shipped name or hub name.
        out: file to write.
        format: "onnx" (needs the extra `export`) or "pt2" (`torch.export`).
        shape: "coils,height,width" (a model's own spatial axes) of the example; fixed in the exported program.
        overwrite: replace an existing file.

    Raises:
        ValueError: unknown format, a shape that is none, a model that cannot be exported, or a program that differs
            from torch by more than 1e-4 of the image's largest magnitude; the file is then not written.
    """
    if format not in ("onnx", "pt2"):
        raise UserError(f"format must be one of onnx, pt2; got {format!r}")
    out = Path(out)
    open_output(out, overwrite=overwrite)
    if format == "onnx":
        _require_onnx()
    model = load_checkpoint(checkpoint).eval()
    if model.unexportable:
        raise UserError(f"{checkpoint}: {type(model).__name__} cannot be exported: {model.unexportable}")
    wrapped = RealInterface(model)
    example = _example(model, _sizes(shape, model.dim))
    # Programs that run elsewhere are made of torch's own operations.
    with torch.no_grad(), use_backend("reference"), writing(out) as part, _quiet():
        expected = wrapped(*example)
        produced = _to_onnx(wrapped, example, part) if format == "onnx" else _to_pt2(wrapped, example, part)
        difference = float((produced - expected).abs().max() / expected.abs().max())
        if not difference <= TOLERANCE:
            raise UserError(
                f"{out}: the {format} program differs from torch by {difference:.1e} of the largest value; "
                f"at most {TOLERANCE:.0e} is accepted, so it is not written"
            )
    return ExportReport(out, difference)


def _sizes(shape: str, dim: int) -> tuple[int, ...]:
    """Sizes of the example: coils and spatial axes."""
    names = ("coils", *AXES[dim])
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in shape.split(",")]
    if len(numbers) != len(names) or min(numbers) < 1:
        example = ",".join(map(str, (8, *(16, 64, 64)[-dim:])))
        raise UserError(f"shape must be {','.join(names)} such as {example}; got {shape!r}")
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say to their developers; failures are exceptions."""
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(max(level, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(level)


def _require_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is missing, needed to export ONNX: pip install 'recurra-mri[export]'") from None


def _to_onnx(model: RealInterface, example: tuple[Tensor, ...], path: Path) -> Tensor:
    import onnxruntime

    names = ("kspace", "sensitivity", "mask")
    traced = torch.export.export(model, example).run_decompositions()
    real = torch.export.export(RealArithmetic(traced.module(check_guards=False)), example)
    try:
        program = torch.onnx.export(real, dynamo=True, input_names=list(names), output_names=["image"], verbose=False)
    except torch.onnx.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"{type(model.model).__name__} cannot be exported as ONNX: {cause}") from error
    assert program is not None
    program.save(str(path), external_data=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {name: value.numpy() for name, value in zip(names, example, strict=True)}
    return torch.from_numpy(session.run(None, inputs)[0])


def _to_pt2(model: nn.Module, example: tuple[Tensor, ...], path: Path) -> Tensor:
    # Given names instead of streams, torch insists on the suffix .pt2, which a file that is not finished does not have.
    with path.open("wb") as stream:
        torch.export.save(torch.export.export(model, example), stream)
    with path.open("rb") as stream:
        produced: Tensor = torch.export.load(stream).module()(*example)
    return produced
