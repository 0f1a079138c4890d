"""Scores a checkpoint beside the classical baselines: the same samples, the same masks, the same metrics."""

import csv
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recurra.core.device import choose_device
from recurra.core.errors import UserError, one_line
from recurra.core.files import open_output, writing
from recurra.core.verbs import progress
from recurra.mri.baselines import BASELINES
from recurra.mri.data import Volume, open_volume
from recurra.mri.figures import error_map_png
from recurra.mri.masks import file_seed
from recurra.mri.metrics import METRICS, VolumeScores
from recurra.mri.models.reconstructor import Reconstructor
from recurra.mri.operators import FFTConvention, fft, sense_expand
from recurra.mri.predict import Undersampling, find_inputs, load_checkpoint, magnitudes, preprocess_of, samples
from recurra.mri.preprocess import PreparedSlice, Preprocess


@dataclass
class Table:
    """Mean metrics of each method over the files, and what became of the files.

    Attributes:
        title: what was scored, and how.
        columns: names of the columns: method, the metrics, seconds a slice.
        rows: one a method.
        files: how many files were given.
        failures: one line for each file that could not be scored.
        outputs: files written.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    files: int
    failures: list[str] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)


class Method:
    """A way to reconstruct, with its scores and its time.

    Attributes:
        name: in the table.
        scores: of the files so far.
        seconds: spent in `solve`.
        slices: solved so far.
        picture: middle slice of the first file.
    """

    def __init__(self, name: str, solve: Callable[..., Tensor], score: Callable[..., dict[str, float]]) -> None:
        self.name, self._solve = name, solve
        self.scores = VolumeScores(score)
        self.seconds, self.slices = 0.0, 0
        self.picture: np.ndarray | None = None

    def __call__(self, prepared: PreparedSlice, device: torch.device, convention: FFTConvention | None) -> Tensor:
        """The image of a slice (height, width); baselines are told the Fourier convention of the file."""
        known = {} if convention is None else {"fft": convention}
        kspace, maps, mask = (x[None].to(device) for x in (prepared.kspace, prepared.sensitivity, prepared.mask))
        started = time.perf_counter()
        with torch.no_grad():
            image = self._solve(kspace, maps, mask, **known)[0]
        self.seconds += time.perf_counter() - started
        self.slices += 1
        return image


def evaluate(
    checkpoint: str | Path | Reconstructor,
    data: Sequence[str | Path] | str | Path,
    *,
    out: str | Path | None = None,
    split: str | None = None,
    metrics: str = "fastmri",
    baselines: Sequence[str] = ("zero_filled", "l1_wavelet"),
    holdout: float = 0.0,
    maps: str | None = None,
    undersampling: Undersampling | None = None,
    coils: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    quiet: bool = False,
) -> Table:
    """Scores a model and baselines on files; one that fails is listed and the others are scored.

    The reference is the file's own image; where there is none, the root sum of squares of fully sampled k-space. Files
    that were measured undersampled have neither: `holdout` keeps some of their samples from every method and scores
    how well these are predicted, as `kspace_nmse`, the squared error over the energy (1 for predicting nothing).

    Args:
        checkpoint: a model, a checkpoint folder, a shipped checkpoint's name, or a hub name.
        data: k-space files, or folders of them.
        out: folder for metrics.csv, metrics.json and a picture.
        split: subfolder of each folder to score.
        metrics: fastmri, calgary_campinas or scale_invariant.
        baselines: of zero_filled, cg_sense, l1_wavelet.
        holdout: share of the samples to keep back.
        maps: as for `reconstruct`.
        undersampling: for files that are fully sampled.
        coils: 1 admits fastMRI's single-coil files.
        device: of the model; baselines run on the CPU.
        overwrite: replace results that are there.
        quiet: show no progress.

    Raises:
        ValueError: an option does not serve, or the checkpoint is none.
    """
    for name, value, known in (("metrics", [metrics], METRICS), ("baselines", baselines, BASELINES)):
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise UserError(f"{name} must be of {', '.join(known)}; got {unknown[0]!r}")
    given = [data] if isinstance(data, str | Path) else data
    found = find_inputs([Path(item) / split if split else item for item in given])
    if out is not None:
        open_output(Path(out), overwrite)
    model = checkpoint if isinstance(checkpoint, Reconstructor) else load_checkpoint(checkpoint)
    target = choose_device(device)
    score = _kspace_score if holdout else METRICS[metrics]
    methods = [Method(name, BASELINES[name], score) for name in baselines]
    methods.append(Method(type(model).__name__, model.to(target).prepared(), score))
    failures = []
    for path in found:
        try:
            with open_volume(path, coils=coils) as volume, progress(len(volume), path.name, quiet=quiet) as advance:
                pairs = _pairs(volume, model, maps, undersampling)
                _score(volume, methods, pairs, holdout, target, advance)
        except (ValueError, OSError) as error:
            line = one_line(error)
            failures.append(line if str(path) in line else f"{path}: {line}")
            for method in methods:  # a file that failed half way counts for nobody
                method.scores.discard(str(path))
    table = _table(methods, "held-out samples" if holdout else metrics, len(found), failures)
    if out is not None:
        table.outputs = _write(Path(out), methods, table)
    return table


def _pairs(
    volume: Volume, model: Reconstructor, maps: str | None, undersampling: Undersampling | None
) -> Iterator[tuple[PreparedSlice, PreparedSlice, Preprocess, Preprocess]]:
    """Each slice as the model takes it and, under the file's own Fourier convention, as the baselines take it."""
    steps = preprocess_of(model, maps)
    own: FFTConvention = "centered-ortho" if volume.centered else "uncentered-ortho"
    classical = steps if steps.fft == own else replace(steps, fft=own)
    ours = samples(volume, steps, maps=maps, undersampling=undersampling)
    if classical is steps:
        for prepared in ours:
            yield prepared, prepared, steps, steps
        return
    theirs = samples(volume, classical, maps=maps, undersampling=undersampling)
    for one, other in zip(ours, theirs, strict=True):
        yield one, other, steps, classical


def _score(
    volume: Volume,
    methods: Sequence[Method],
    pairs: Iterator[tuple[PreparedSlice, PreparedSlice, Preprocess, Preprocess]],
    holdout: float,
    device: torch.device,
    advance: Callable[..., None],
) -> None:
    """Adds the scores of a volume to every method."""
    middle = len(volume) // 2
    for index, (ours, theirs, steps, classical) in enumerate(pairs):
        for method in methods:
            mine = method is methods[-1]
            prepared, preprocess = (ours, steps) if mine else (theirs, classical)
            convention = None if mine else preprocess.fft
            where = device if mine else torch.device("cpu")
            if holdout:
                kept, hidden = _hold_out(prepared, holdout, (*file_seed(volume.path), index))
                image = method(kept, where, convention).cpu()
                truth, predicted = _at_samples(image, prepared, hidden, preprocess.fft, method.name)
                method.scores.add(str(volume.path), truth, predicted)
                continue
            truth = _reference(volume, index, prepared, preprocess)
            image = method(prepared, where, convention)
            magnitude = magnitudes(volume, preprocess, image[None], prepared.scale[None])[0]
            truth, magnitude = _same_size(truth, magnitude)
            method.scores.add(str(volume.path), truth, magnitude)
            if index == middle and method.picture is None:
                method.picture = np.stack([truth, magnitude])
        advance()
    for method in methods:
        method.scores.finish()


def _reference(volume: Volume, index: int, prepared: PreparedSlice, preprocess: Preprocess) -> np.ndarray:
    """The image to compare with."""
    stored: np.ndarray | None = volume.target(index)
    if stored is not None:
        return stored
    if volume.mask is not None:
        raise ValueError(
            f"{volume.path}: undersampled and without a reference image, nothing to compare with; "
            "pass --holdout 0.1 to score the prediction of samples that are kept back"
        )
    image: np.ndarray = magnitudes(volume, preprocess, prepared.target[None], prepared.scale[None])[0]
    return image


def _same_size(truth: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both cropped about their middle to the smaller of each axis."""
    rows, columns = (min(a, b) for a, b in zip(truth.shape, image.shape, strict=True))

    (a, b), (c, d) = (((x.shape[0] - rows) // 2, (x.shape[1] - columns) // 2) for x in (truth, image))
    return truth[a : a + rows, b : b + columns], image[c : c + rows, d : d + columns]


def _hold_out(prepared: PreparedSlice, share: float, seed: tuple[int, ...]) -> tuple[PreparedSlice, Tensor]:
    """The slice without some of its samples outside the calibration region, and a mask of those samples."""
    free = prepared.mask & ~prepared.acs
    places = free.flatten().nonzero()[:, 0]
    count = round(share * len(places))
    if not count:
        raise ValueError(f"a share of {share} of {len(places)} samples outside the calibration region is none")
    chosen = np.random.default_rng(seed).permutation(len(places))[:count]
    hidden = torch.zeros_like(prepared.mask).flatten()
    hidden[places[torch.from_numpy(chosen)]] = True
    hidden = hidden.view_as(prepared.mask)
    mask = prepared.mask & ~hidden
    return replace(prepared, mask=mask, kspace=torch.where(mask, prepared.kspace, 0)), hidden


def _at_samples(
    image: Tensor, prepared: PreparedSlice, hidden: Tensor, convention: FFTConvention, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out samples as measured and as an image predicts them, real and imaginary parts as (sample, 2)."""
    if name == "zero_filled":  # its image is a magnitude; of what was not measured it says zero
        predicted = torch.zeros_like(prepared.kspace)
    elif image.is_complex():
        predicted = fft(sense_expand(image[None], prepared.sensitivity[None]), convention)[0]
    else:
        raise UserError(f"{name} gives magnitudes, which predict no k-space; score it without --holdout")
    where = hidden.expand_as(predicted)
    return torch.view_as_real(prepared.kspace[where]).numpy(), torch.view_as_real(predicted[where]).numpy()


def _kspace_score(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Squared error of held-out samples over their energy."""
    return {"kspace_nmse": float(((truth - predicted) ** 2).sum() / (truth**2).sum())}


def _table(methods: Sequence[Method], what: str, files: int, failures: list[str]) -> Table:
    means = [(method.name, method.scores.mean(), method.seconds / max(method.slices, 1)) for method in methods]
    names = tuple(means[-1][1])
    rows: list[tuple[object, ...]] = [
        (name, *(mean[metric] for metric in names), seconds) for name, mean, seconds in means if mean
    ]
    scored = len(methods[-1].scores.rows)
    title = f"{what}: mean over {scored} file{'s' if scored != 1 else ''}"
    return Table(title, ("method", *names, "seconds_a_slice"), rows, files, failures)


def _write(out: Path, methods: Sequence[Method], table: Table) -> list[Path]:
    """metrics.csv (a row a file and method), metrics.json (the means) and a picture."""
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "metrics.csv", out / "metrics.json"]
    names = table.columns[1:-1]
    with writing(written[0]) as part, part.open("w", newline="", encoding="utf-8") as stream:
        sheet = csv.writer(stream)
        sheet.writerow(("file", "method", *names))
        for method in methods:
            sheet.writerows(
                (file, method.name, *(row[name] for name in names)) for file, row in method.scores.rows.items()
            )
    means = {str(row[0]): dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}
    with writing(written[1]) as part:
        part.write_text(json.dumps({"scored": table.title, "mean": means, "failures": table.failures}, indent=1))
    pictures = {method.name: method.picture for method in methods if method.picture is not None}
    if pictures:
        target = next(iter(pictures.values()))[0]
        written.append(out / "comparison.png")
        error_map_png(written[-1], target, {name: picture[1] for name, picture in pictures.items()})
    return written
