"""Writes a module as ONNX or as a torch.export program, and measures what it computes before it may be used."""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recurra.core.errors import UserError
from recurra.core.files import extra, open_output, writing
from recurra.core.real_arithmetic import RealArithmetic
from recurra.kernels import use_backend

FORMATS = ("onnx", "pt2")
TOLERANCE = 1e-4  # of the largest magnitude: float32 through some ten unrolled convolutions and FFTs


@dataclass(frozen=True)
class Exportable:
    """A module with real tensors at its border, as ONNX knows no complex numbers; inside it may have them.

    Attributes:
        module: takes the inputs in their order and returns a tensor, or a tuple of them.
        inputs: example inputs by name; their sizes stay fixed.
        outputs: names of what is returned.
        name: what errors call the model.
        metadata: travels with the program: `metadata_props` of ONNX, extra files of pt2.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    name: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def example(self) -> tuple[Tensor, ...]:
        """The example inputs in their order."""
        return tuple(self.inputs.values())


@dataclass(frozen=True)
class ExportReport:
    """What was written, and its largest difference to torch relative to the largest magnitude of an output."""

    path: Path
    difference: float

    def show(self) -> None:
        """Print both."""
        print(f"{self.path}: largest difference to torch {self.difference:.1e}")


def check_export(out: str | Path, format: str, *, package: str, overwrite: bool = False) -> None:
    """Refuse what `export` would refuse whatever the model, before anything is read.

    Args:
        out: the file to write.
        format: "onnx" or "pt2".
        package: the domain's package, e.g. "recurra.mri", whose extra `export` ONNX needs.
        overwrite: an existing file may be replaced.

    Raises:
        UserError: unknown format, a package is missing, or something is there.
    """
    if format not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}; got {format!r}")
    if Path(out).is_dir():
        raise UserError(f"{out}: is a folder; expected the name of the {format} file to write")
    open_output(Path(out), overwrite)
    for needed in ("onnxscript", "onnxruntime") if format == "onnx" else ():
        extra(needed, "exporting ONNX", f"{package.replace('.', '-')}[export]")


def export(
    made: Exportable, out: str | Path, format: str = "onnx", *, package: str, overwrite: bool = False
) -> ExportReport:
    """Writes the module to the file `out` and returns the measured difference to torch.

    Args:
        made: the module and its example.
        out: the file to write.
        format: "onnx" or "pt2" (`torch.export`).
        package: the domain's package, whose extra `export` ONNX needs.
        overwrite: an existing file may be replaced.

    Raises:
        UserError: as `check_export`; the module cannot be exported, or the program differs from torch by more than 1e-4
            of an output's largest magnitude; the file is then not written.
    """
    out = Path(out)
    check_export(out, format, package=package, overwrite=overwrite)
    # Programs that run elsewhere are made of torch's own operations.
    with torch.no_grad(), use_backend("reference"), writing(out) as part, _quiet():
        expected = _several(made.module(*made.example))
        produced = _to_onnx(made, part) if format == "onnx" else _to_pt2(made, part)
        difference = max(_difference(p, e) for p, e in zip(produced, expected, strict=True))
        if not difference <= TOLERANCE:
            raise UserError(
                f"{out}: the {format} program differs from torch by {difference:.1e} of the largest value; "
                f"at most {TOLERANCE:.0e} is accepted, so it is not written"
            )
    return ExportReport(out, difference)


def _several(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _difference(produced: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest magnitude; NaN wherever there is one."""
    largest = expected.double().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((produced.double() - expected.double()).abs().max() / largest)


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


def _to_onnx(made: Exportable, path: Path) -> tuple[Tensor, ...]:
    import onnxruntime

    traced = torch.export.export(made.module, made.example).run_decompositions()
    inputs, outputs = list(made.inputs), list(made.outputs)
    try:
        real = torch.export.export(RealArithmetic(traced.module(check_guards=False)), made.example)
        program = torch.onnx.export(real, dynamo=True, verbose=False, input_names=inputs, output_names=outputs)
    except (torch.onnx.OnnxExporterError, ValueError) as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"{made.name} cannot be exported as ONNX: {cause}") from error
    assert program is not None
    program.model.metadata_props.update(made.metadata)
    program.save(str(path), external_data=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.run(outputs, {name: value.numpy() for name, value in made.inputs.items()})
    return tuple(torch.from_numpy(output) for output in found)


def _to_pt2(made: Exportable, path: Path) -> tuple[Tensor, ...]:
    # In memory first: on a full disk, torch's writer takes the process down.
    written = io.BytesIO()
    # Without decompositions of its own, it resolves regions of autocast, which the container cannot hold.
    program = torch.export.export(made.module, made.example).run_decompositions({})
    torch.export.save(program, written, extra_files=dict(made.metadata))
    path.write_bytes(written.getbuffer())
    with path.open("rb") as stream:
        return _several(torch.export.load(stream).module()(*made.example))
