"""The verbs of MRI reconstruction: each is a Python function and a command of `recurra-mri`; quick to import."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from recurra.core.verbs import (
    BatchSize,
    Device,
    Inputs,
    Option,
    Out,
    Overrides,
    Overwrite,
    Precision,
    Quiet,
    RecipeName,
    Resume,
    RunFolder,
    Shard,
    Workers,
    app,
    run,
    spelled,
    verb,
)

if TYPE_CHECKING:
    from recurra.core.evaluation import Table
    from recurra.core.exporting import ExportReport
    from recurra.core.inference import Results
    from recurra.core.inspection import Inspection
    from recurra.core.training import Report
    from recurra.mri.models.reconstructor import Reconstructor

_CHECKPOINT = "Checkpoint folder, the name of a shipped one (rim-small), or a hub name."
_FILES = "k-space files (fastMRI, Calgary-Campinas, ISMRMRD .h5; twix .dat) or folders of them."
_MAPS = "Coil maps: espirit, rss, unit, or FILE.h5[:dataset]. Default: what the checkpoint was trained with."

Checkpoint = Annotated["str | Path | Reconstructor", Option(_CHECKPOINT, kind=str, metavar="CHECKPOINT")]
Files = Annotated[Inputs, Option(_FILES, kind=list[Path])]
Maps = Annotated[str | None, Option(_MAPS)]
Coils = Annotated[int | None, Option("Pass 1 for single-coil files, whose k-space has no coil axis.", min=1)]
Axes = Annotated[str | None, Option("Order of the axes of kspace where it is not found: e.g. slice,height,width,coil.")]
Part = Annotated[
    str | None, Option("The echo, repetition, phase, set or frame to take, as inspect calls it. Default: all.")
]
Whiten = Annotated[bool, Option("Make the noise of the coils white where a file has a noise scan.")]
SkipBad = Annotated[bool, Option("Leave slices out that hold NaN or infinite samples, and call that a success.")]
FFT = Annotated[str | None, Option("Override the checkpoint's FFT convention, e.g. recentered-ortho.")]


@dataclass(frozen=True)
class Undersampling:
    """A mask to apply to fully sampled k-space.

    Attributes:
        mask: undersample fully sampled files with this mask, e.g. equispaced_fraction, random, gaussian2d.
        acceleration: acceleration of --mask.
        center_fraction: fully sampled centre fraction of --mask.
        seed: seed of --mask. Default: from each file's name, as fastMRI does, so that slices of a volume share a mask.
    """

    mask: str
    acceleration: Annotated[float, Option(min=1.0)] = 4.0
    center_fraction: Annotated[float, Option(min=0.0, max=1.0)] = 0.08
    seed: int | None = None


@verb
def train(
    recipe: RecipeName,
    overrides: Overrides = (),
    *,
    out: RunFolder = None,
    resume: bool = False,
    tiny: bool = False,
    device: str | None = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> "Report":
    """Train a model; the run folder is a checkpoint.

    Args:
        overrides: changes, e.g. model.cascades=1.
        resume: go on from the run folder's last epoch.
        tiny: the recipe's smallest form: minutes on a laptop.
        device: one of auto, cpu, cuda, cuda:INDEX. Default: what the recipe says.

    Raises:
        ValueError: the recipe does not fit the classes it names, or the data do not fit the recipe.
    """
    from recurra.mri.training import train as train_recipe

    return train_recipe(
        recipe, overrides, out=out, resume=resume, tiny=tiny, device=device, overwrite=overwrite, quiet=quiet
    )


@verb
def inspect(
    inputs: Files,
    *,
    coils: Coils = None,
    axes: Axes = None,
    part: Part = None,
    whiten: Whiten = True,
) -> "Inspection":
    """Show what is known about k-space files, from what evidence, and what will be done with them.

    All slices are read. The first thing to try with a file that is not from a public data set.
    """
    from functools import partial

    from recurra.core.files import find_inputs
    from recurra.core.inspection import inspect_files
    from recurra.mri.data.sources import SUFFIXES
    from recurra.mri.inspection import facts_of

    look = partial(facts_of, coils=coils, axes=axes, part=part, whiten=whiten)
    return inspect_files(find_inputs(inputs, SUFFIXES), look)


@verb
def reconstruct(
    checkpoint: Checkpoint,
    inputs: Files,
    out: Out,
    *,
    maps: Maps = None,
    undersampling: Undersampling | None = None,
    coils: Coils = None,
    axes: Axes = None,
    part: Part = None,
    whiten: Whiten = True,
    skip_bad_slices: SkipBad = False,
    image: Literal["magnitude", "complex", "phase"] = "magnitude",
    partial_fourier: Literal["zero", "homodyne", "pocs"] = "zero",
    fft: FFT = None,
    formats: Annotated[Sequence[str], Option(flags=("--format", "--formats"), listed=True)] = ("fastmri",),
    preview: bool = True,
    device: Device = "auto",
    batch_size: BatchSize = 1,
    precision: Precision = "32",
    workers: Workers = 1,
    shard: Shard = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> "Results":
    """Reconstruct k-space files with a saved checkpoint; one that fails is reported and the others are done.

    Args:
        image: what is written of the image: magnitude, phase in radians, or complex (not in DICOM).
        partial_fourier: how k-space that was measured on one side only is completed: homodyne, pocs, or zero for none.
        formats: comma-separated: fastmri (HDF5 with `reconstruction`, float32), nifti, dicom.
        preview: write a PNG of the middle slice of each file.

    Raises:
        ValueError: an option does not serve, or the checkpoint is none.
        Interrupted: Ctrl-C; its text says how many files are done.
    """
    from recurra.core.inference import Runs
    from recurra.mri.inference import Reconstruction
    from recurra.mri.reconstruction import reconstruct_files

    how = Reconstruction(
        checkpoint,
        maps,
        undersampling,
        coils=coils,
        axes=axes,
        part=part,
        whiten=whiten,
        skip_bad_slices=skip_bad_slices,
        image=image,
        partial_fourier=partial_fourier,
        fft=fft,
        device=device,
        batch_size=batch_size,
        precision=precision,
        quiet=quiet,
    )
    runs = Runs(workers, shard, resume, overwrite, quiet)
    return reconstruct_files(how, inputs, Path(out), formats=tuple(formats), preview=preview, runs=runs)


@verb
def evaluate(
    checkpoint: Checkpoint,
    data: Files,
    *,
    out: Annotated[str | Path | None, Option(flags=("-o", "--out"), kind=Path)] = None,
    split: str | None = None,
    metrics: str = "fastmri",
    baselines: Annotated[Sequence[str], Option(listed=True)] = ("zero_filled", "l1_wavelet"),
    holdout: Annotated[float, Option(min=0.0, max=0.5)] = 0.0,
    scale_reference: bool = False,
    maps: Maps = None,
    undersampling: Undersampling | None = None,
    coils: Coils = None,
    axes: Axes = None,
    part: Part = None,
    whiten: Whiten = True,
    skip_bad_slices: SkipBad = False,
    fft: FFT = None,
    report: bool = False,
    device: Device = "auto",
    batch_size: BatchSize = 1,
    precision: Precision = "32",
    workers: Workers = 1,
    shard: Shard = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> "Table":
    """Score a checkpoint beside the classical baselines; a file that fails is listed and the others are scored.

    The reference is the file's own image; where there is none, the root sum of squares of fully sampled k-space. Files
    that were measured undersampled have neither: `holdout` keeps some of their samples from every method and scores
    how well these are predicted, as `kspace_nmse`, the squared error over the energy (1 for predicting nothing).

    Args:
        out: folder for metrics.csv, metrics.json and pictures. Default: none, with --report evaluation.
        split: subfolder of DATA to score: train, val or test.
        metrics: one of fastmri, calgary_campinas, scale_invariant.
        baselines: comma-separated: zero_filled, cg_sense, l1_wavelet; or none. They run on the CPU.
        holdout: for files without a reference: keep this share of the samples back and score their prediction.
        scale_reference: bring a reference that is on another scale than the k-space to its scale.
        report: write report.html too: one page with tables, pictures, a row a file and how to repeat it.

    Raises:
        ValueError: an option does not serve, or the checkpoint is none.
    """
    from recurra.core.inference import Runs
    from recurra.mri.evaluation import evaluate_files
    from recurra.mri.inference import Reconstruction

    how = Reconstruction(
        checkpoint,
        maps,
        undersampling,
        coils=coils,
        axes=axes,
        part=part,
        whiten=whiten,
        skip_bad_slices=skip_bad_slices,
        fft=fft,
        device=device,
        batch_size=batch_size,
        precision=precision,
        quiet=quiet,
    )
    return evaluate_files(
        how,
        data,
        out=Path(out or "evaluation") if out or report else None,
        split=split,
        metrics=metrics,
        baselines=tuple(baselines),
        holdout=holdout,
        scale_reference=scale_reference,
        command=spelled("recurra.mri", evaluate, locals()) if report else None,
        runs=Runs(workers, shard, resume, overwrite, quiet),
    )


@verb
def convert(
    path: Annotated[str | Path, Option(kind=Path, metavar="FILE")],
    source: Annotated[str, Option(flags=("--from",))],
    out: Out,
    overrides: Overrides = (),
    *,
    overwrite: Overwrite = False,
) -> Path:
    """Convert an authors' checkpoint; nothing in it is executed.

    Args:
        path: the authors' checkpoint: .pt, .mridc, .atommic or .ckpt.
        source: which project wrote it: direct, mridc or atommic.
        overrides: what the file does not say, e.g. fft=centered-ortho, or license=.

    Raises:
        ValueError: the file is damaged, malicious or another network's, or does not say enough.
    """
    from recurra.mri.conversion import convert as convert_file

    return convert_file(path, source, out, overrides, overwrite=overwrite)


@verb
def export(
    checkpoint: Checkpoint,
    out: Annotated[str | Path, Option("The file to write.", ("-o", "--out"), Path)],
    *,
    format: str = "onnx",
    shape: str = "8,64,64",
    overwrite: Overwrite = False,
) -> "ExportReport":
    """Export a checkpoint and print the measured difference to torch.

    Args:
        format: kind of program: onnx (needs the extra export) or pt2.
        shape: sizes of the example, coils,height,width; coils, height and width stay fixed in ONNX.

    Raises:
        ValueError: unknown format, a shape that is none, a model that cannot be exported, or a program that differs
            from torch by more than 1e-4 of the image's largest magnitude; the file is then not written.
    """
    from recurra.mri.exporting import export as export_checkpoint

    return export_checkpoint(checkpoint, out, format=format, shape=shape, overwrite=overwrite)


@verb
def info(checkpoint: Checkpoint) -> dict[str, str]:
    """Show what a checkpoint holds: architecture, size, conventions, training data, licence, provenance."""
    from recurra.core.inference import describe
    from recurra.mri.inference import load_checkpoint, seam_of

    model = load_checkpoint(checkpoint)
    seam = seam_of(model)
    return describe(
        model,
        input="complex k-space in the scanner's units",
        output="magnitude image in the units of the k-space",
        **({"note": seam} if seam else {}),
    )


@verb
def sample(
    out: Out,
    *,
    slices: Annotated[int, Option(min=1)] = 4,
    seed: Annotated[int, Option(min=0)] = 0,
    overwrite: Overwrite = False,
) -> list[Path]:
    """Write generated k-space files (train, val, test) in fastMRI's on-disk format.

    Args:
        slices: slices a volume.
        seed: another seed, other phantoms.
    """
    from recurra.core.files import open_output
    from recurra.mri.data.sample import write_sample

    return write_sample(open_output(Path(out), overwrite), slices=slices, seed=seed)


VERBS = (train, inspect, reconstruct, evaluate, convert, export, info, sample)


def main() -> None:
    """Run the command; a user's error is one line on stderr and exit status 1."""
    about = "Recurrent MRI reconstruction: train, reconstruct and evaluate from k-space files."
    run(app("recurra.mri", about, VERBS))
