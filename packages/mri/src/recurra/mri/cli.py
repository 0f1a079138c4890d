"""The `recurra-mri` command: each verb parses its arguments, calls the Python function of the same name and prints."""

from pathlib import Path
from typing import Annotated

import typer

from recurra.core.errors import UserError
from recurra.core.verbs import BatchSize, Debug, Device, Out, Overwrite, Precision, Quiet, new_app, print_table, run

app = new_app(
    "recurra-mri", "recurra-mri", "Recurrent MRI reconstruction: train, reconstruct and evaluate from k-space files."
)

Checkpoint = Annotated[
    str,
    typer.Argument(
        help="Checkpoint folder, the name of a shipped one (rim-small), or a hub name.", metavar="CHECKPOINT"
    ),
]
Inputs = Annotated[
    list[Path],
    typer.Argument(help="k-space files (fastMRI, Calgary-Campinas, ISMRMRD .h5; twix .dat) or folders of them."),
]
Maps = Annotated[
    str | None,
    typer.Option(
        help="Coil maps: espirit, rss, unit, or FILE.h5[:dataset]. Default: what the checkpoint was trained with."
    ),
]
Mask = Annotated[
    str | None,
    typer.Option(
        "--mask", help="Undersample fully sampled files with this mask, e.g. equispaced_fraction, random, gaussian2d."
    ),
]
Acceleration = Annotated[float, typer.Option(help="Acceleration of --mask.", min=1.0)]
CenterFraction = Annotated[float, typer.Option(help="Fully sampled centre fraction of --mask.", min=0.0, max=1.0)]
Seed = Annotated[int | None, typer.Option(help="Seed of --mask. Default: from each file's name, as fastMRI does.")]
Coils = Annotated[int | None, typer.Option(help="Pass 1 for single-coil files, whose k-space has no coil axis.", min=1)]


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, e.g. model.cascades=1.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Run folder. Default: runs/RECIPE.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last epoch.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="The recipe's smallest form: minutes on a laptop.")] = False,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:INDEX.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a model; the run folder is a checkpoint."""
    from recurra.core.training import is_first_process
    from recurra.mri.training import train as train_recipe

    report = train_recipe(
        recipe, overrides or [], out=out, resume=resume, tiny=tiny, device=device, overwrite=overwrite, quiet=quiet
    )
    if is_first_process():
        typer.echo(f"checkpoint {report.folder}")


@app.command()
def reconstruct(
    checkpoint: Checkpoint,
    inputs: Inputs,
    out: Out,
    maps: Maps = None,
    mask: Mask = None,
    acceleration: Acceleration = 4.0,
    center_fraction: CenterFraction = 0.08,
    seed: Seed = None,
    coils: Coils = None,
    fft: Annotated[
        str | None, typer.Option(help="Override the checkpoint's FFT convention, e.g. recentered-ortho.")
    ] = None,
    formats: Annotated[str, typer.Option("--format", help="Comma-separated: fastmri, nifti, dicom.")] = "fastmri",
    preview: Annotated[bool, typer.Option(help="Write a PNG of the middle slice of each file.")] = True,
    device: Device = "auto",
    batch_size: BatchSize = 1,
    precision: Precision = "32",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Reconstruct k-space files with a saved checkpoint."""
    from recurra.mri.predict import Undersampling
    from recurra.mri.predict import reconstruct as reconstruct_files

    results = reconstruct_files(
        checkpoint,
        inputs,
        out,
        maps=maps,
        undersampling=None if mask is None else Undersampling(mask, acceleration, center_fraction, seed),
        coils=coils,
        fft=fft,
        formats=formats.split(","),  # type: ignore[arg-type]
        preview=preview,
        device=device,
        batch_size=batch_size,
        precision=precision,
        overwrite=overwrite,
        quiet=quiet,
    )
    for result in results:
        if result.error is None:
            typer.echo(f"{result.outputs[0]}: {result.slices} slices, {result.seconds:.1f} s")
    failed = [result for result in results if result.error is not None]
    if failed:
        lines = "; ".join(str(result.error) for result in failed)
        line = lines if len(results) == 1 else f"{len(failed)} of {len(results)} files failed: {lines}"
        raise UserError(line) from failed[0].cause


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    data: Inputs,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for metrics.csv, metrics.json and pictures.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Subfolder of DATA to score: train, val or test.")] = None,
    metrics: Annotated[str, typer.Option(help="fastmri, calgary_campinas or scale_invariant.")] = "fastmri",
    baselines: Annotated[
        str, typer.Option(help="Comma-separated: zero_filled, cg_sense, l1_wavelet; or none.")
    ] = "zero_filled,l1_wavelet",
    holdout: Annotated[
        float,
        typer.Option(
            help="For files without a reference: keep this share of the samples back and score their prediction.",
            min=0.0,
            max=0.5,
        ),
    ] = 0.0,
    maps: Maps = None,
    mask: Mask = None,
    acceleration: Acceleration = 4.0,
    center_fraction: CenterFraction = 0.08,
    seed: Seed = None,
    coils: Coils = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score a checkpoint beside the classical baselines."""
    from recurra.mri.evaluation import evaluate as evaluate_files
    from recurra.mri.predict import Undersampling

    table = evaluate_files(
        checkpoint,
        data,
        out=out,
        split=split,
        metrics=metrics,
        baselines=() if baselines == "none" else tuple(baselines.split(",")),
        holdout=holdout,
        maps=maps,
        undersampling=None if mask is None else Undersampling(mask, acceleration, center_fraction, seed),
        coils=coils,
        device=device,
        overwrite=overwrite,
        quiet=quiet,
    )
    print_table(table.columns, table.rows, title=table.title)
    for path in table.outputs:
        typer.echo(str(path))
    if table.failures:
        lines = "; ".join(table.failures)
        raise UserError(lines if table.files == 1 else f"{len(table.failures)} of {table.files} files failed: {lines}")


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="The authors' checkpoint: .pt, .mridc, .atommic or .ckpt.")],
    out: Out,
    source: Annotated[str, typer.Option("--from", help="direct, mridc or atommic.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="What the file does not say, e.g. fft=centered-ortho."),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Convert an authors' checkpoint; nothing in it is executed."""
    from recurra.mri.conversion import convert as convert_file

    typer.echo(f"checkpoint {convert_file(file, source, out, overrides or [], overwrite=overwrite)}")


@app.command()
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.")],
    format: Annotated[str, typer.Option("--format", help="onnx or pt2.")] = "onnx",
    shape: Annotated[
        str, typer.Option(help="coils,height,width of the example; coils, height and width stay fixed in ONNX.")
    ] = "8,64,64",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Export a checkpoint and print the measured difference to torch."""
    from recurra.mri.exporting import export as export_checkpoint

    report = export_checkpoint(checkpoint, out, format=format, shape=shape, overwrite=overwrite)
    typer.echo(f"{report.path}: largest difference to torch {report.difference:.1e}")


@app.command()
def info(checkpoint: Checkpoint, debug: Debug = False) -> None:
    """Show what a checkpoint holds: architecture, size, conventions, training data, licence, provenance."""
    from recurra.mri.predict import describe

    print_table(("field", "value"), describe(checkpoint).items(), title=checkpoint)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's YAML.")] = None, debug: Debug = False
) -> None:
    """List the shipped recipes, or print one to copy and edit."""
    from recurra.core.recipe import list_recipes, recipe_text

    if name is not None:
        typer.echo(recipe_text(name, "recurra.mri"), nl=False)
        return
    print_table(("recipe", "what"), list_recipes("recurra.mri").items())


@app.command()
def sample(
    out: Out,
    slices: Annotated[int, typer.Option(help="Slices a volume.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Another seed, other phantoms.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write generated k-space files (train, val, test) in fastMRI's on-disk format."""
    from recurra.core.files import open_output
    from recurra.mri.data.sample import write_sample

    open_output(out, overwrite=overwrite)
    for path in write_sample(out, slices=slices, seed=seed):
        typer.echo(str(path))


def main() -> None:
    """Run the command; a user's error is one line on stderr and exit status 1."""
    run(app)
