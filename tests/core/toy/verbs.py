"""The verbs of the toy domain: a network smooths series, one number a line of a .txt file."""

from pathlib import Path

from recurra.core import verbs as v


@v.verb
def train(
    recipe: v.RecipeName, overrides: v.Overrides = (), *, out: v.RunFolder = None, resume: bool = False,
    tiny: bool = False, device: str | None = None, overwrite: v.Overwrite = False, quiet: v.Quiet = False,
):  # fmt: skip
    """Train a smoother."""
    from recurra.core.training import TrainSettings, train
    from recurra.toy.training import SECTIONS, make_task

    options = {"out": out, "resume": resume, "tiny": tiny, "device": device, "overwrite": overwrite, "quiet": quiet}
    seam = {"package": "recurra.toy", "sections": SECTIONS, "settings": TrainSettings, "make_task": make_task}
    return train(recipe, overrides, **seam, **options)


@v.verb
def smooth(
    checkpoint: str, inputs: v.Inputs, out: v.Out, *, workers: v.Workers = 1, shard: v.Shard = None,
    resume: v.Resume = False, overwrite: v.Overwrite = False, quiet: v.Quiet = False,
):  # fmt: skip
    """Smooth series."""
    from recurra.core.inference import Runs
    from recurra.toy.files import smooth_files

    return smooth_files(checkpoint, inputs, Path(out), Runs(workers, shard, resume, overwrite, quiet))


@v.verb
def evaluate(
    checkpoint: str, data: v.Inputs, *, out: v.Out = "evaluation", report: bool = False, workers: v.Workers = 1,
    shard: v.Shard = None, resume: v.Resume = False, overwrite: v.Overwrite = False, quiet: v.Quiet = False,
):  # fmt: skip
    """Score a smoother beside the series as they are."""
    from recurra.core.inference import Runs
    from recurra.toy.files import score

    command = report and v.spelled("recurra.toy", evaluate, locals())
    return score(checkpoint, data, Path(out), command, Runs(workers, shard, resume, overwrite, quiet))


@v.verb
def convert(path: str, source: str, out: v.Out, overrides: v.Overrides = (), *, overwrite: v.Overwrite = False):
    """Convert a colleague's weights."""
    from recurra.core.conversion import convert
    from recurra.toy.files import SOURCES

    return convert(path, SOURCES, source, out, overrides, overwrite=overwrite)


@v.verb
def export(checkpoint: str, out: v.Out, *, format: str = "pt2", overwrite: v.Overwrite = False):
    """Export a smoother."""
    import torch

    from recurra.core.exporting import Exportable, export
    from recurra.toy.files import load_smoother

    made = Exportable(load_smoother(checkpoint), {"series": torch.randn(1, 20)}, ("smooth",), "Smoother")
    return export(made, out, format, package="recurra.toy", overwrite=overwrite)


@v.verb
def info(checkpoint: str):
    """Show what a checkpoint holds."""
    from recurra.core.inference import describe
    from recurra.toy.files import load_smoother

    return describe(load_smoother(checkpoint), output="numbers in the units of the series")


VERBS = (train, smooth, evaluate, convert, export, info)


def main() -> None:
    v.run(v.app("recurra.toy", "Smooth series.", VERBS))
