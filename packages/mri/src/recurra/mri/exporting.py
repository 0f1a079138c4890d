"""Writes a checkpoint as ONNX or as a torch.export program, and measures what it computes before it may be used."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from recurra.core.cli import UserError, open_output, writing
from recurra.kernels import use_backend
from recurra.mri.models.reconstructor import Reconstructor
from recurra.mri.operators import fft, sense_expand
from recurra.mri.predict import load_checkpoint

TOLERANCE = 1e-4  # of the largest magnitude: float32 through some ten unrolled convolutions and FFTs


@dataclass(frozen=True)
class ExportReport:
    """What was written, and its largest difference to torch relative to the largest magnitude of the image."""

    path: Path
    difference: float


class RealInterface(nn.Module):
    """The model with real tensors at its border: complex values as a trailing axis (re, im), as ONNX knows no complex.

    kspace and sensitivity are (batch, coil, height, width, 2), mask is bool (batch, 1, height, width); the image is the
    magnitude (batch, height, width).
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
    checkpoint: str | Path, out: str | Path, *, format: str = "onnx", shape: str = "8,64,64", overwrite: bool = False
) -> ExportReport:
    """Writes `checkpoint` to the file `out` and returns the measured difference to torch.

    Args:
        checkpoint: folder, shipped name or hub name.
        out: file to write.
        format: "onnx" (needs the extra `export`) or "pt2" (`torch.export`).
        shape: "coils,height,width" of the example input; it stays fixed in the exported program.
        overwrite: replace an existing file.

    Raises:
        ValueError: unknown format, a shape that is none, or a program that differs from torch by more than 1e-4 of the
            image's largest magnitude; the file is then not written.
    """
    if format not in ("onnx", "pt2"):
        raise UserError(f"format must be one of onnx, pt2; got {format!r}")
    out = Path(out)
    open_output(out, overwrite=overwrite)
    model = load_checkpoint(checkpoint).eval()
    wrapped = RealInterface(model)
    example = _example(model, *_sizes(shape))
    with torch.no_grad():
        expected = wrapped(*example)
    # Programs that run elsewhere are made of torch's own operations.
    with use_backend("reference"), writing(out) as part:
        produced = _to_onnx(wrapped, example, part) if format == "onnx" else _to_pt2(wrapped, example, part)
        difference = float((produced - expected).abs().max() / expected.abs().max())
        if not difference <= TOLERANCE:
            raise UserError(
                f"{out}: the {format} program differs from torch by {difference:.1e} of the largest value; "
                f"at most {TOLERANCE:.0e} is accepted, so it is not written"
            )
    return ExportReport(out, difference)


def _sizes(shape: str) -> tuple[int, int, int]:
    try:
        coils, height, width = (int(number) for number in shape.split(","))
    except ValueError:
        raise UserError(f"shape must be coils,height,width such as 8,64,64; got {shape!r}") from None
    return coils, height, width


def _example(model: Reconstructor, coils: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, 1, coils, height, width, 2, generator=generator)
    image, sensitivity = torch.view_as_complex(draw[0]).mean(1), torch.view_as_complex(draw[1])
    sensitivity = sensitivity / sensitivity.abs().square().sum(1, keepdim=True).sqrt()
    mask = torch.rand(1, 1, height, width, generator=generator) < 0.5
    kspace = torch.where(mask, fft(sense_expand(image, sensitivity), model.fft), 0)
    return torch.view_as_real(kspace).contiguous(), torch.view_as_real(sensitivity).contiguous(), mask


def _to_onnx(model: nn.Module, example: tuple[Tensor, ...], path: Path) -> Tensor:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is missing, needed to export ONNX: pip install 'recurra-mri[export]'") from None
    names = ("kspace", "sensitivity", "mask")
    program = torch.onnx.export(
        model, example, dynamo=True, input_names=list(names), output_names=["image"], verbose=False
    )
    if program is None:
        raise UserError(f"{path}: torch.onnx.export produced no program")
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(
        session.run(None, {name: value.numpy() for name, value in zip(names, example, strict=True)})[0]
    )


def _to_pt2(model: nn.Module, example: tuple[Tensor, ...], path: Path) -> Tensor:
    torch.export.save(torch.export.export(model, example), path)
    produced: Tensor = torch.export.load(path).module()(*example)
    return produced
