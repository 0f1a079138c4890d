"""Reconstructs k-space files with a saved checkpoint, a few slices at a time whatever the length of the volume."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import chain, islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from recurra.core.device import PrecisionName, choose_device
from recurra.core.errors import Interrupted, UserError, one_line
from recurra.core.files import open_output
from recurra.core.verbs import progress
from recurra.mri.data import Volume, open_volume
from recurra.mri.figures import preview_png
from recurra.mri.masks import MASKS, file_seed
from recurra.mri.models.reconstructor import Reconstructor
from recurra.mri.operators import center_crop
from recurra.mri.outputs import OutputFormat, volume_writer
from recurra.mri.preprocess import Maps, PreparedSlice, Preprocess
from recurra.mri.sensitivity import MapsFile

SUFFIXES = (".h5", ".hdf5", ".dat")
Solve = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Undersampling:
    """A mask to apply to fully sampled k-space.

    Attributes:
        mask: a key of `recurra.mri.masks.MASKS`.
        acceleration: at least 1.
        center_fraction: share of the columns sampled in the centre.
        seed: of the random draw; by default the file's name, so that all slices of a volume share a mask.
    """

    mask: str
    acceleration: float = 4.0
    center_fraction: float = 0.08
    seed: int | None = None


@dataclass
class Result:
    """What became of one input file: its outputs, or the error in one line and what raised it."""

    file: Path
    outputs: list[Path] = field(default_factory=list)
    slices: int = 0
    seconds: float = 0.0
    error: str | None = None
    cause: Exception | None = None


def load_checkpoint(checkpoint: str | Path) -> Reconstructor:
    """The model of a checkpoint folder, of a shipped checkpoint's name (rim-small), or of a hub name (owner/name)."""
    shipped = files("recurra.mri") / "samples" / str(checkpoint)
    if not Path(checkpoint).exists() and "/" not in str(checkpoint) and shipped.is_dir():
        checkpoint = str(shipped)
    model: Reconstructor = Reconstructor.from_pretrained(str(checkpoint))
    return model


def find_inputs(inputs: Sequence[str | Path]) -> list[Path]:
    """The k-space files of the given files and folders; a folder stands for the files directly inside, by name.

    Raises:
        ValueError: nothing is there, or two files share a name (their outputs would overwrite each other).
    """
    found: list[Path] = []
    for item in map(Path, inputs):
        if item.is_dir():
            inside = sorted(path for path in item.iterdir() if path.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(f"{item}: no {', '.join(SUFFIXES)} file in this folder")
            found += inside
        else:
            found.append(item)
    names = [path.stem for path in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two inputs are named {twice[0]}; give them in separate calls with separate --out folders")
    return found


def preprocess_of(model: Reconstructor, maps: str | None = None) -> Preprocess:
    """The steps a model expects before it; `maps` replaces its way to estimate coil maps."""
    estimates = {name: name for name in get_args(Maps)}
    return Preprocess(fft=model.fft, maps=estimates.get(maps, model.maps), scaling=model.scaling)


def samples(
    volume: Volume, preprocess: Preprocess, *, maps: str | None = None, undersampling: Undersampling | None = None
) -> Iterator[PreparedSlice]:
    """The slices of a volume as a network takes them, read one by one.

    Args:
        volume: an open file.
        preprocess: the steps.
        maps: coil maps for all slices, "FILE.h5" or "FILE.h5:dataset"; else they are estimated.
        undersampling: for k-space that carries no mask of its own.

    Raises:
        ValueError: samples, mask or maps do not serve; the line names the file.
    """
    given = None if maps is None or maps in get_args(Maps) else MapsFile(maps, volume.shape)
    generator, seed = None, None
    if undersampling is not None and volume.mask is None:
        known = [name for name in MASKS if name not in ("calgary_campinas", "mixed")]  # these are no single pattern
        if undersampling.mask not in known:
            raise UserError(f"mask must be one of {', '.join(known)}; got {undersampling.mask!r}")
        generator = MASKS[undersampling.mask]([undersampling.acceleration], [undersampling.center_fraction])
        seed = file_seed(volume.path) if undersampling.seed is None else undersampling.seed
    roll = preprocess.fft.startswith("uncentered") and volume.centered
    for index in range(len(volume)):
        kspace = volume.kspace(index)
        sensitivity = None if given is None else given(index)
        if sensitivity is not None and roll:  # maps in a file are upright, this network's images are not
            sensitivity = torch.fft.ifftshift(sensitivity, dim=(-2, -1))
        try:
            yield preprocess(
                kspace,
                generator=generator,
                seed=seed,
                mask=volume.mask,
                acs_lines=volume.acs_lines,
                padding=volume.padding,
                sensitivity=sensitivity,
                calibration=volume.calibration(index),
            )
        except ValueError as error:
            raise ValueError(f"{volume.path}: slice {index}: {error}") from error


def magnitudes(
    volume: Volume, preprocess: Preprocess, images: Tensor, scale: Tensor
) -> Float32[NDArray[np.float32], "slice row column"]:
    """Upright magnitudes in the file's own scale, cropped to the scanner's matrix; NaN and infinity are refused.

    Args:
        volume: where they come from.
        preprocess: the steps before the network.
        images: (slice, height, width), complex or real.
        scale: (slice,), what the k-space was divided by.
    """
    magnitude = images.abs().float().cpu() * scale.cpu()[:, None, None]
    if not torch.isfinite(magnitude).all():
        raise ValueError(f"{volume.path}: the reconstruction is not finite; the checkpoint does not fit these data")
    corner_origin = preprocess.fft.startswith("uncentered")
    if corner_origin and volume.centered:
        magnitude = torch.fft.fftshift(magnitude, dim=(-2, -1))
    elif not corner_origin and not volume.centered:
        magnitude = torch.fft.ifftshift(magnitude, dim=(-2, -1))
    if volume.recon_size is not None:
        rows, columns = volume.recon_size
        # Some FLAIR files have fewer columns than their header's matrix: fastMRI then crops to a square of the columns.
        rows, columns = (rows, columns) if columns <= magnitude.shape[-1] else (magnitude.shape[-1],) * 2
        magnitude = center_crop(magnitude, (min(rows, magnitude.shape[-2]), columns))
    return np.ascontiguousarray(magnitude.numpy())


def reconstruct(
    checkpoint: str | Path | Reconstructor,
    inputs: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    maps: str | None = None,
    undersampling: Undersampling | None = None,
    coils: int | None = None,
    fft: str | None = None,
    formats: Sequence[OutputFormat] = ("fastmri",),
    preview: bool = True,
    device: str = "auto",
    batch_size: int = 1,
    precision: PrecisionName = "32",
    overwrite: bool = False,
    quiet: bool = False,
) -> list[Result]:
    """Reconstructs files; one that fails is reported in its result and the others are done.

    Args:
        checkpoint: a model, a checkpoint folder, a shipped checkpoint's name, or a hub name.
        inputs: k-space files, or folders of them.
        out: folder for the results, named like the inputs.
        maps: espirit, rss or unit, or coil maps in a file, "FILE.h5[:dataset]"; by default as the model was trained.
        undersampling: for files that are fully sampled.
        coils: 1 admits fastMRI's single-coil files.
        fft: another Fourier convention than the model's.
        formats: fastmri (HDF5 with `reconstruction`, float32), nifti, dicom.
        preview: write a PNG of the middle slice of each file.
        device: auto, cpu, cuda or cuda:INDEX.
        batch_size: slices at a time.
        precision: of the network; the transforms are float32 always.
        overwrite: replace results that are there.
        quiet: show no progress.

    Raises:
        ValueError: an option does not serve, or the checkpoint is none.
        Interrupted: Ctrl-C; its text says how many files are done.
    """
    unknown = sorted(set(formats) - set(get_args(OutputFormat)))
    if unknown or not formats:
        known = ", ".join(get_args(OutputFormat))
        raise UserError(f"format must be one or more of {known}; got {', '.join(unknown) or 'none'}")
    target = choose_device(device)
    found = find_inputs([inputs] if isinstance(inputs, str | Path) else inputs)
    out = Path(out)
    for path in found:
        for output in (_output(out, path, kind) for kind in formats):
            open_output(output, overwrite)
    model = checkpoint if isinstance(checkpoint, Reconstructor) else load_checkpoint(checkpoint)
    model = (model if fft is None else with_convention(model, fft)).to(target)
    solve = _in_precision(model.prepared(), target, precision)
    steps = preprocess_of(model, maps)
    results: list[Result] = []
    for path in found:
        result, started = Result(path), time.perf_counter()
        try:
            with open_volume(path, coils=coils) as volume, progress(len(volume), path.name, quiet=quiet) as advance:
                slices = samples(volume, steps, maps=maps, undersampling=undersampling)
                images = _solved(volume, steps, slices, solve, batch_size, target, advance)
                result.outputs = _write(volume, images, out, formats, preview)
                result.slices = len(volume)
        except (ValueError, OSError, ImportError) as error:
            line = one_line(error)
            result.error, result.cause = line if str(path) in line else f"{path}: {line}", error
        except KeyboardInterrupt as error:
            done = sum(one.error is None for one in results)
            raise Interrupted(
                f"interrupted in {path}; {done} of {len(found)} files are done, in {out}; give the others again"
            ) from error
        result.seconds = time.perf_counter() - started
        results.append(result)
    return results


def _solved(
    volume: Volume,
    steps: Preprocess,
    slices: Iterator[PreparedSlice],
    solve: Solve,
    batch_size: int,
    device: torch.device,
    advance: Callable[..., None],
) -> Iterator[NDArray[np.float32]]:
    """The magnitude images of the slices, in order; never more than a batch is in memory."""
    while batch := list(islice(slices, batch_size)):
        kspace, maps = (torch.stack([getattr(one, name) for one in batch]) for name in ("kspace", "sensitivity"))
        mask = torch.stack([one.mask for one in batch])
        image = solve(kspace.to(device), maps.to(device), mask.to(device))
        yield from magnitudes(volume, steps, image, torch.stack([one.scale for one in batch]))
        advance(len(batch))


def _write(
    volume: Volume, images: Iterator[NDArray[np.float32]], out: Path, formats: Sequence[OutputFormat], preview: bool
) -> list[Path]:
    """Writes the images as they come, in every format, and the middle one as a picture."""
    first = next(images)
    shape = (len(volume), *first.shape)
    written = [_output(out, volume.path, kind) for kind in formats]
    with ExitStack() as stack:
        writers = [
            stack.enter_context(volume_writer(path, shape, format=kind, affine=volume.image_affine(shape[1:])))
            for path, kind in zip(written, formats, strict=True)
        ]
        middle = first
        for index, image in enumerate(chain([first], images)):
            for writer in writers:
                writer.write(image)
            if index == len(volume) // 2:
                middle = image
    if preview:
        written.append(out / f"{volume.path.stem}.png")
        preview_png(written[-1], middle, title=f"{volume.path.name}, slice {len(volume) // 2}")
    return written


def with_convention(model: Reconstructor, fft: str) -> Reconstructor:
    """The same weights under another Fourier convention."""
    other = type(model)(**{**model.config, "fft": fft})
    other.load_state_dict(model.state_dict())
    return other.eval()


def describe(checkpoint: str | Path) -> dict[str, str]:
    """What a checkpoint holds, for people: field and value."""
    model = load_checkpoint(checkpoint)
    count = sum(parameter.numel() for parameter in model.parameters())
    facts: dict[str, Any] = {"architecture": type(model).__name__, "parameters": f"{count:,}", **model.config}
    facts |= {
        "input": "complex k-space in the scanner's units",
        "output": "magnitude image in the units of the k-space",
    }
    facts |= model.metadata
    return {name: str(value) for name, value in facts.items()}


def _output(out: Path, path: Path, kind: OutputFormat) -> Path:
    """Where the result of an input goes; the HDF5 file has the name of the input, as the leader board wants it."""
    return out / {"fastmri": f"{path.stem}.h5", "nifti": f"{path.stem}.nii", "dicom": f"{path.stem}_dicom"}[kind]


def _in_precision(solve: Solve, device: torch.device, precision: PrecisionName) -> Solve:
    """The model under autocast, unless precision is 32."""
    if precision == "32":
        return solve
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 needs a GPU; use --precision bf16 or --precision 32")
    kind = torch.bfloat16 if precision == "bf16" else torch.float16

    def run(kspace: Tensor, sensitivity: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=kind):
            return solve(kspace, sensitivity, mask)

    return run
