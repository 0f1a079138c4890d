"""Scores a checkpoint beside the classical baselines: the same samples, the same masks, the same metrics."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recurra.core.errors import FileError, UserError, blaming
from recurra.core.evaluation import FileScores, Method, Table, score_files
from recurra.core.files import find_inputs
from recurra.core.inference import Runs, describe
from recurra.core.processes import Work
from recurra.core.scores import Run, Scores, check
from recurra.core.screen import progress
from recurra.core.verbs import Inputs
from recurra.mri.baselines import BASELINES
from recurra.mri.data import Volume, open_volume
from recurra.mri.figures import error_map_png
from recurra.mri.inference import SUFFIXES, Reconstruction, batched, magnitudes
from recurra.mri.masks import file_seed
from recurra.mri.metrics import HIGHER_IS_BETTER, METRICS
from recurra.mri.operators import FFTConvention, fft, sense_expand
from recurra.mri.preprocess import PreparedSlice, Preprocess


def evaluate_files(
    how: Reconstruction,
    data: Inputs,
    *,
    out: Path | None,
    split: str | None,
    metrics: str,
    baselines: Sequence[str],
    holdout: float,
    command: str | None,
    runs: Runs,
) -> Table:
    """What the verb `evaluate` does, with its options; `command` repeats it, and asks for the page to read."""
    for name, value, known in (("metrics", [metrics], METRICS), ("baselines", baselines, BASELINES)):
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise UserError(f"{name} must be of {', '.join(known)}; got {unknown[0]!r}")
    given = [data] if isinstance(data, str | Path) else data
    found = find_inputs([Path(item) / split if split else item for item in given], SUFFIXES)
    what = "held-out samples" if holdout else metrics
    run = Run(out, what, "slice", draw=_draw, runs=runs)
    check(run)
    how.check()
    run.options = how.digest(metrics=metrics, baselines=tuple(baselines), holdout=holdout)
    if command is not None:
        run.report = {
            "command": command,
            "checkpoint": {**describe(how.model), "digest with options": run.options},
            "higher_is_better": HIGHER_IS_BETTER,
            "main": None if holdout else "ssim",
        }
    baselines = tuple(dict.fromkeys(baselines))
    scoring = _Scoring(how if runs.workers == 1 else replace(how), metrics, baselines, holdout)
    return score_files(found, scoring, run)


def _draw(path: Path, picture: dict[str, np.ndarray]) -> None:
    target, *others = picture.items()
    error_map_png(path, target[1], dict(others))


@dataclass(frozen=True)
class _Scoring:
    """Scores the network and the baselines on a file."""

    how: Reconstruction
    metrics: str
    baselines: tuple[str, ...]
    holdout: float

    def __call__(self) -> Work[Scores]:
        """The work, in the process that does it."""
        how = self.how.check()
        methods = [
            Method(name, BASELINES[name], prepare=lambda volume: replace(how.steps, fft=_own(volume)))
            for name in self.baselines
        ]
        name = type(how.model).__name__
        methods.append(Method(name, how.solve, prepare=lambda volume: how.steps, device=how.target))
        return lambda path: self.score(path, methods)

    def score(self, path: Path, methods: Sequence[Method]) -> Scores:
        """The scores of a file; slices are read once for methods with the same preparation."""
        with blaming(path):
            opened = open_volume(path, coils=self.how.coils)
        compare = self._held_out if self.holdout else self._whole
        score = _kspace_score if self.holdout else METRICS[self.metrics]
        rows = {method.name: FileScores(score, what="slices") for method in methods}
        before = {method.name: method.seconds for method in methods}
        picture: dict[str, np.ndarray] = {}
        with opened as volume, progress(len(volume), path.name, quiet=self.how.quiet) as advance:
            steps = {method.name: method.prepare(volume) for method in methods}
            streams = {one: self.how.slices(volume, one) for one in dict.fromkeys(steps.values())}
            for start in range(0, len(volume), self.how.batch_size):
                batches = {one: list(islice(stream, self.how.batch_size)) for one, stream in streams.items()}
                for method in methods:
                    pairs = compare(volume, start, batches[steps[method.name]], method, steps[method.name])
                    for offset, (truth, image) in enumerate(pairs):
                        rows[method.name].add(str(path), truth, image)
                        if start + offset == len(volume) // 2 and not self.holdout:
                            picture |= {"target": picture.get("target", truth), method.name: image}
                advance(len(batches[steps[methods[-1].name]]))
        with blaming(path, ValueError):
            metrics = {name: scores.finish() for name, scores in rows.items()}
        seconds = {method.name: method.seconds - before[method.name] for method in methods}
        return Scores(metrics, seconds, len(volume), picture or None)

    def _whole(
        self, volume: Volume, start: int, batch: list[PreparedSlice], method: Method, steps: Preprocess
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Reference and image of each slice, of one size."""
        truths = [_reference(volume, start + offset, one, steps) for offset, one in enumerate(batch)]
        image = self._solved(volume, batch, method, steps)
        scale = torch.stack([one.scale for one in batch])
        return [_same_size(*pair) for pair in zip(truths, magnitudes(volume, steps, image, scale), strict=True)]

    def _held_out(
        self, volume: Volume, start: int, batch: list[PreparedSlice], method: Method, steps: Preprocess
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Held-out samples as measured and as predicted."""
        with blaming(volume.path, ValueError):
            parted = [
                _hold_out(one, self.holdout, (*file_seed(volume.path), start + offset))
                for offset, one in enumerate(batch)
            ]
        images = self._solved(volume, [kept for kept, _ in parted], method, steps).cpu()
        return [
            _at_samples(image, one, hidden, steps.fft, method.name)
            for image, one, (_, hidden) in zip(images, batch, parted, strict=True)
        ]

    def _solved(self, volume: Volume, batch: list[PreparedSlice], method: Method, steps: Preprocess) -> Tensor:
        """Images of the slices (slice, height, width); baselines are told the Fourier convention of the file."""
        known: dict[str, FFTConvention] = {"fft": steps.fft} if method.name in self.baselines else {}
        with blaming(volume.path, ValueError):
            image: Tensor = method(*batched(batch), **known)
        return image


def _own(volume: Volume) -> FFTConvention:
    """The convention that decodes a file."""
    return "centered-ortho" if volume.centered else "uncentered-ortho"


def _reference(volume: Volume, index: int, prepared: PreparedSlice, steps: Preprocess) -> np.ndarray:
    """The image to compare with."""
    with blaming(volume.path):
        stored: np.ndarray | None = volume.target(index)
    if stored is not None:
        return stored
    if volume.mask is not None:
        raise FileError(
            volume.path,
            "undersampled and without a reference image, nothing to compare with; "
            "pass --holdout 0.1 to score the prediction of samples that are kept back",
        )
    image: np.ndarray = magnitudes(volume, steps, prepared.target[None], prepared.scale[None])[0]
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
