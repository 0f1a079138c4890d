"""Scores a checkpoint beside the classical baselines: the same samples, the same masks, the same metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra.core.errors import FileError, UserError, blaming
from recurra.core.evaluation import Method, Table, score_files
from recurra.core.files import find_inputs
from recurra.core.inference import Runs, describe
from recurra.core.processes import Work
from recurra.core.scores import Run, Scores, check
from recurra.core.screen import progress
from recurra.core.verbs import Inputs
from recurra.mri.baselines import BASELINES
from recurra.mri.data import Volume
from recurra.mri.data.sources import SUFFIXES
from recurra.mri.figures import error_map_png
from recurra.mri.inference import Reconstruction, batched, magnitudes
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
    scale_reference: bool,
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
    run.options = how.digest(
        metrics=metrics,
        baselines=tuple(baselines),
        holdout=holdout,
        scale_reference=scale_reference,
        skip_bad_slices=how.skip_bad_slices,
    )
    if command is not None:
        run.report = {
            "command": command,
            "checkpoint": {**describe(how.model), "digest with options": run.options},
            "higher_is_better": HIGHER_IS_BETTER,
            "main": None if holdout else "ssim",
        }
    baselines = tuple(dict.fromkeys(baselines))
    scoring = _Scoring(how if runs.workers == 1 else replace(how), metrics, baselines, holdout, scale_reference)
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
    scale_reference: bool

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
        """The scores of a file, the mean over its volumes; methods with the same preparation share the slices read."""
        before = {method.name: method.seconds for method in methods}
        found, parts = [], []
        for volume in self.how.volumes(path):
            found.append(self._score(volume, methods))
            parts.append(volume.part)
        seconds = {method.name: method.seconds - before[method.name] for method in methods}
        metrics = {
            method.name: {
                name: float(np.mean([one.metrics[method.name][name] for one in found]))
                for name in found[0].metrics[method.name]
            }
            for method in methods
        }
        return Scores(
            metrics,
            seconds,
            sum(one.count for one in found),
            found[0].picture,
            {
                method.name: [
                    unit if part is None else {**unit, "slice": f"{part} {unit['slice']:g}"}
                    for part, one in zip(parts, found, strict=True)
                    for unit in one.units[method.name]
                ]
                for method in methods
            },
            list(dict.fromkeys(note for one in found for note in one.notes)),
        )

    def _score(self, volume: Volume, methods: Sequence[Method]) -> Scores:
        """The scores of a volume; seconds are left out."""
        score = _kspace_score if self.holdout else METRICS[self.metrics]
        pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {method.name: [] for method in methods}
        label = volume.path.name if volume.part is None else f"{volume.path.name} {volume.part}"
        numbers: list[int] = []
        bad: dict[int, str] | None = {} if self.how.skip_bad_slices else None
        notes: list[str] = []
        reference = _Reference(volume, self.metrics, self.scale_reference, notes)
        with progress(len(volume), label, quiet=self.how.quiet) as advance:
            steps = {method.name: method.prepare(volume) for method in methods}
            streams = {one: self.how.slices(volume, one, bad=bad) for one in dict.fromkeys(steps.values())}
            while True:
                batches = {one: list(islice(stream, self.how.batch_size)) for one, stream in streams.items()}
                if not any(batches.values()):
                    break
                # The truth is one for all methods, whatever their transform makes of it.
                ours, batch = next(iter(batches.items()))
                truths = [] if self.holdout else [reference(index, one, ours) for index, one in batch]
                for method in methods:
                    own = steps[method.name]
                    if self.holdout:
                        pairs[method.name] += self._held_out(volume, batches[own], method, own)
                    else:
                        pairs[method.name] += self._whole(volume, batches[own], method, own, truths)
                numbers += [index for index, _ in batch]
                advance(len(batch))
        notes += self.how.remarks(volume)
        if bad:
            notes.append(f"{'; '.join(bad.values())}: left out")
        if not numbers:
            raise FileError(volume.path, "no slice is left to score")
        picture: dict[str, np.ndarray] = {}
        if not self.holdout:
            middle = min(range(len(numbers)), key=lambda place: abs(numbers[place] - len(volume) // 2))
            picture = {name: made[middle][1] for name, made in pairs.items()}
            picture = {"target": pairs[methods[0].name][middle][0], **picture}
        with blaming(volume.path, ValueError):
            metrics, units = {}, {}
            for name, made in pairs.items():
                truths, images = (list(one) for one in zip(*made, strict=True))
                # Held-out samples differ in number from slice to slice.
                join = np.concatenate if self.holdout else np.stack
                metrics[name] = score(join(truths), join(images))
                units[name] = self._of_slices(score, numbers, truths, images)
        return Scores(metrics, {}, len(numbers), picture or None, units, notes)

    def _of_slices(
        self, score: Callable[..., dict[str, float]], numbers: Sequence[int], truths: list[Any], images: list[Any]
    ) -> list[dict[str, Any]]:
        """The metrics of each slice; the peak of fastMRI's is that of the volume. Empty slices have none."""
        peak: dict[str, float] = {}
        if score is METRICS["fastmri"]:
            peak = {"maxval": float(max(truth.max() for truth in truths))}
        rows = []
        for number, truth, image in zip(numbers, truths, images, strict=True):
            one, other = (truth, image) if self.holdout else (truth[None], image[None])
            scored = score(one, other, **peak) if truth.any() and image.any() else {}
            rows.append({"slice": float(number), **scored})
        return rows

    def _whole(
        self,
        volume: Volume,
        batch: list[tuple[int, PreparedSlice]],
        method: Method,
        steps: Preprocess,
        truths: Sequence[np.ndarray],
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Reference and image of each slice, of one size."""
        prepared = [one for _, one in batch]
        image = self._solved(volume, prepared, method, steps)
        scale = torch.stack([one.scale for one in prepared])
        return [_same_size(*pair) for pair in zip(truths, magnitudes(volume, steps, image, scale), strict=True)]

    def _held_out(
        self, volume: Volume, batch: list[tuple[int, PreparedSlice]], method: Method, steps: Preprocess
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Held-out samples as measured and as predicted."""
        with blaming(volume.path, ValueError):
            parted = [_hold_out(one, self.holdout, (*file_seed(volume.path), index)) for index, one in batch]
        images = self._solved(volume, [kept for kept, _ in parted], method, steps).cpu()
        return [
            _at_samples(image, one, hidden, steps.fft, method.name)
            for image, (_, one), (_, hidden) in zip(images, batch, parted, strict=True)
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


class _Reference:
    """The images of a volume to compare with: its own ones, once they fit its k-space, else those of full k-space.

    Args:
        volume: the volume.
        metrics: what will be computed.
        rescale: bring the file's own images to the scale of the k-space.
        notes: receives what a user should hear.

    Raises:
        FileError: its k-space was measured undersampled and it has no images, or these are on another scale or lie
            otherwise than those of the k-space.
    """

    def __init__(self, volume: Volume, metrics: str, rescale: bool, notes: list[str]) -> None:
        self.volume, self.metrics, self.rescale, self.notes = volume, metrics, rescale, notes
        self.first: float | None = None  # scale of the first image, over that of the k-space
        self.factor = 1.0

    def __call__(self, index: int, prepared: PreparedSlice, steps: Preprocess) -> np.ndarray:
        """The image of a slice."""
        with blaming(self.volume.path):
            stored: np.ndarray | None = self.volume.target(index)
        if stored is None and prepared.undersampled:
            raise FileError(
                self.volume.path,
                f"undersampled (slice {index}: {prepared.undersampled}) and without a reference image, nothing to "
                "compare with; pass --holdout 0.1 to score the prediction of samples that are kept back",
            )
        measured: np.ndarray = magnitudes(self.volume, steps, prepared.target[None], prepared.scale[None])[0]
        if stored is None:
            return measured
        if stored.any() and measured.any():
            factor = self._compared(index, stored, measured, bool(prepared.undersampled))
            if self.first is None:
                self.first = factor
                self._judge(factor, bool(prepared.undersampled))
            if not prepared.undersampled and not 1 / _SCALE < factor / self.first < _SCALE:
                raise FileError(
                    self.volume.path,
                    f"the reference images are not on one scale: that of slice {index} differs from the first by a "
                    f"factor of {self.first / factor:.4g}; store them as one volume",
                )
        return stored * self.factor

    def _compared(self, index: int, stored: np.ndarray, measured: np.ndarray, undersampled: bool) -> float:
        """What brings the stored image to the scale of the k-space's, once it is known to be one of the same thing."""
        one, other = _same_size(stored.astype(np.float64), measured.astype(np.float64))
        turned = {
            "upside down": np.flip(one, 0),
            "left to right": np.flip(one, 1),
            "turned by 180 degrees": np.flip(one, (0, 1)),
            "rolled by half its size": np.fft.fftshift(one),
        }
        if one.shape[0] == one.shape[1]:
            turned["transposed"] = one.T
        likeness, best = _correlation(one, other), max(turned, key=lambda name: _correlation(turned[name], other))
        if _correlation(turned[best], other) > max(_ALIKE, likeness + (1 - likeness) / 2):
            raise FileError(
                self.volume.path,
                f"the reference image is {best} against the image of the k-space (their correlation is "
                f"{_correlation(turned[best], other):.2f} then, and {likeness:.2f} as it is); turn it",
            )
        factor = float((one * other).sum() / (one**2).sum())
        if not undersampled and likeness < _ALIKE:
            raise FileError(
                self.volume.path,
                f"the reference image of slice {index} is not that of the k-space: their correlation is {likeness:.2f}",
            )
        if undersampled and float(np.abs(factor * one - other).max()) < _EQUAL * float(other.max()):
            raise FileError(
                self.volume.path,
                f"the reference image of slice {index} is the zero-filled image of the undersampled k-space, no truth; "
                "pass --holdout 0.1 to score the prediction of samples that are kept back",
            )
        return factor

    def _judge(self, factor: float, undersampled: bool) -> None:
        """Refuse another scale where the metrics depend on it, or take the factor where that is asked."""
        # The image of undersampled k-space has lost energy; that of full k-space is the reference, but for noise.
        low, high = (0.25, 2.0) if undersampled else (1 / _SCALE, _SCALE)
        if low < factor < high:
            return
        line = f"the reference image is on another scale than the k-space: {1 / factor:.4g} times the image of it"
        if undersampled and self.rescale:
            raise FileError(self.volume.path, f"{line}; undersampled k-space does not say by which factor")
        if self.rescale:
            self.factor = factor
            self.notes.append(f"{line}; it is divided by that")
        elif self.metrics == "scale_invariant":
            self.notes.append(f"{line}; these metrics do not depend on it")
        else:
            raise FileError(
                self.volume.path,
                f"{line}; {self.metrics} metrics depend on the scale. Pass --scale-reference to divide by that, or "
                "--metrics scale_invariant",
            )


_SCALE = 1.2
"""How far the scales of reference and k-space may differ: crops, filters and noise make some percent."""
_ALIKE = 0.8
"""Correlation from which an image is that of the k-space."""
_EQUAL = 1e-3
"""Share of the maximum by which equal images may differ."""


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    a, b = one - one.mean(), other - other.mean()
    return float((a * b).sum() / (np.sqrt((a**2).sum() * (b**2).sum()) or 1.0))


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
