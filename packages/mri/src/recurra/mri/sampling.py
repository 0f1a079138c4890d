"""What was sampled, and where the zero frequency is: told from the samples themselves.

A mask beside k-space says what somebody meant; zeros in all coils are what was left out. Both are looked at, and where
they contradict each other the samples decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Complex64
from numpy.typing import NDArray

from recurra.core.checks import one_of

_EMPTY = 1e-6
"""Of the mean magnitude: what is below it was not measured. Rounding is smaller, noise is larger."""
_APART, _FAINT = 30.0, 1e-3
"""How far lines of rounding lie below the next line with samples, and at least below the mean line."""
_STRAY = 1e-3
"""Share of single empty samples that may be measured zeros; one missing line is more than that."""
_CONTRARY = 0.05
"""Share of the samples in which a mask may err in both directions."""
_MARKED = 10.0
"""How much more energy one of two places must hold to be the zero frequency's."""

Mask = Bool[NDArray[np.bool_], "row width"]
Measured = Bool[NDArray[np.bool_], "height width"]


@dataclass(frozen=True)
class Sampling:
    """The sampling of a slice.

    Attributes:
        mask: samples taken (1 or height, width); None for all, but for borders that were never measured.
        evidence: how that was found.
        remark: what a user should hear, or nothing.
        rows: the rows that were measured, if one side of the centre reaches further (asymmetric echo); else None.
        columns: the same of the columns (partial Fourier).
    """

    mask: Mask | None
    evidence: str
    remark: str = ""
    rows: range | None = None
    columns: range | None = None

    @property
    def acceleration(self) -> float:
        """Samples between the first and the last that were taken, over those taken."""
        if self.mask is None:
            return 1.0
        rows, columns = (_extent(self.mask.any(axis)) for axis in (1, 0))
        return float(self.mask[rows, columns].size / self.mask.sum())


def measured(kspace: Complex64[NDArray[np.complex64], "coil height width"]) -> Measured:
    """Samples that some coil holds a value for."""
    magnitude = np.zeros(kspace.shape[1:], np.float64)
    for coil in kspace:  # one by one: the magnitudes of all coils would take half the memory of the k-space
        magnitude += np.abs(coil)
    np.nan_to_num(magnitude, copy=False, posinf=0.0)
    taken = magnitude > _EMPTY * magnitude.mean()
    # What a transform to images and back leaves of empty lines is more than that, but far below all lines with samples.
    for axis in (0, 1):
        lines = magnitude.mean(axis)
        ordered = np.sort(lines[lines > 0])
        if len(ordered) > 1:
            steps = ordered[1:] / ordered[:-1]
            low = ordered[int(steps.argmax())]
            if steps.max() > _APART and low < _FAINT * lines.mean():
                taken &= np.expand_dims(lines > low, axis)
    return np.asarray(taken)


def mask_of(taken: Measured) -> Mask | None:
    """The sampling pattern that left these samples; None when only borders are empty.

    Borders are what zero filling to a larger matrix, partial Fourier and elliptical shutters leave out: nothing is
    missing between two samples of a row or of a column. Lines or samples missing in between are undersampling.
    """
    if not taken.any():
        return None
    columns, rows = np.asarray(taken.any(0)), np.asarray(taken.any(1))
    inside = np.logical_or(_spanned(taken, 1), _spanned(taken, 0)) & ~taken
    lines = _gaps(columns) or _gaps(rows)
    if not lines and inside.sum() <= _STRAY * taken.sum():
        return None
    if bool((taken[rows] == columns).all()) and not _gaps(rows):
        return np.asarray(columns[None])
    if not (inside & rows[:, None] & columns).sum() > _STRAY * taken.sum():
        return np.asarray(rows[:, None] & columns)
    return taken


def sampling_of(taken: Measured, stored: Mask | None, where: str) -> Sampling:
    """The sampling of a slice from its samples and, where the file has one, its mask.

    Args:
        taken: samples that are there.
        stored: the file's mask (1 or height, width).
        where: what the mask is called, e.g. "dataset 'mask'".

    Raises:
        ValueError: the mask and the samples contradict each other.
    """
    found = _pattern(taken, stored, where)
    used = taken if found.mask is None else found.mask & taken
    return replace(found, rows=partial_range(used, "rows"), columns=partial_range(used, "columns"))


def _pattern(taken: Measured, stored: Mask | None, where: str) -> Sampling:
    """The sampling of a slice, without what its outermost samples say."""
    if stored is None or stored.all():
        mask = mask_of(taken)
        whole = "every line has samples" if stored is None else f"{where} keeps every sample"
        if mask is None:
            return Sampling(None, whole + _borders(taken))
        rows, columns = int(mask.any(1).sum()), int(mask.any(0).sum())
        height, width = taken.shape
        lines = f"{columns} of {width} columns" if len(mask) == 1 else f"samples in {rows} of {height} rows"
        evidence = f"{lines} hold samples, the others are zero in all coils"
        remark = f"{where} keeps every sample, but the file was measured undersampled: {evidence}"
        return Sampling(mask, evidence, "" if stored is None else remark)
    if not taken.any():  # an empty slice says nothing
        return Sampling(stored, where)
    remark = ""
    mask = stored
    outside = taken & ~stored
    if outside.any():
        remark = f"{where} leaves out samples that the k-space holds; they are not used"
    line = len(stored) == 1
    empty = stored & ~(taken.any(0) if line else taken)
    if empty.any() and (line or empty.sum() > _STRAY * stored.sum()):
        mask = stored & ~empty
        if mask_of(np.broadcast_to(mask, taken.shape)) is not None and _inside(empty, taken):
            kind = "columns" if line else "samples"
            remark = f"{remark}; " if remark else ""
            remark += f"{where} keeps {int(empty.sum())} {kind} that are zero in all coils; they count as not measured"
    if not mask.any():
        raise ValueError(
            f"{where} keeps only samples that are zero in all coils, and leaves out those that are not; is it inverted?"
        )
    kept = taken & stored
    lost = int((np.broadcast_to(empty, taken.shape) & (_spanned(taken, 1) | _spanned(taken, 0))).sum())
    if min(int(outside.sum()), lost) > _CONTRARY * kept.sum():
        raise ValueError(
            f"{where} and the samples contradict each other: it leaves out {int(outside.sum())} samples that are there "
            f"and keeps {lost} that are zero in all coils. Is it transposed, flipped or shifted?"
        )
    if mask_of(np.broadcast_to(mask, taken.shape)) is None and not outside.any():
        return Sampling(None, f"{where} leaves out borders alone")
    return Sampling(mask, where, remark)


def mask_readings(
    path: Path, stored: NDArray[Any], shape: tuple[int, ...], where: str
) -> dict[str, Bool[NDArray[np.bool_], "slice row width"]]:
    """What a stored mask may mean, by what it leaves out (columns, rows, ...), as (1 or slice, 1 or height, width).

    Raises:
        ValueError: it does not fit the k-space (slice, coil, height, width), keeps nothing or holds no numbers.
    """
    if not np.isfinite(stored.astype(np.float64)).all():
        raise ValueError(f"{path}: {where} has NaN or infinite values; expected 0 and 1")
    if not stored.any():
        raise ValueError(f"{path}: {where} keeps no sample; expected at least one that is not zero")
    readings = _readings(stored.astype(bool), shape)
    height, width = shape[-2:]
    if not readings:
        raise ValueError(
            f"{path}: {where} has shape {stored.shape}; k-space of {height} x {width} needs ({width},) or "
            f"({height}, {width})"
        )
    return readings


def resolve_mask(
    path: Path, stored: NDArray[Any], shape: tuple[int, ...], taken: Measured, index: int, where: str
) -> tuple[Bool[NDArray[np.bool_], "slice row width"], str]:
    """A stored mask as (1 or slice, 1 or height, width), and how its axes were told.

    What decides: its shape, where it has the axes of the k-space; else its length; where several readings fit, which of
    them leaves out none of the samples that the k-space holds.

    Args:
        path: the file, for errors.
        stored: as it is in the file.
        shape: of the k-space (slice, coil, height, width).
        taken: the samples that are there, of a slice that is not empty.
        index: of that slice.
        where: what the mask is called.

    Raises:
        ValueError: it does not serve, or fits in several ways.
    """
    readings = mask_readings(path, stored, shape, where)
    height, width = shape[-2:]
    if len(readings) == 1 or stored.all():
        name, mask = next(iter(readings.items()))
        return mask, f"its shape {stored.shape}"
    fitting = {
        name: mask
        for name, mask in readings.items()
        if not (taken & ~np.broadcast_to(mask[index if len(mask) > 1 else 0], taken.shape)).any()
    }
    if len(fitting) == 1:
        name, mask = next(iter(fitting.items()))
        return mask, f"the k-space, which is zero where it leaves out {name}"
    if not fitting and stored.ndim > 1 and stored.shape[-2:] in ((height, 1), (1, width)):
        # Nothing was left out of the samples yet; a mask with the axes of the k-space says itself what it means.
        name = "rows" if stored.shape[-1] == 1 else "columns"
        return readings[name], f"its shape {stored.shape}"
    raise ValueError(
        f"{path}: {where} of shape {stored.shape} fits the {' and the '.join(readings)} of k-space of {height} x "
        f"{width}, and the samples do not decide; store it as ({height}, {width})"
    )


def partial_range(mask: Bool[NDArray[np.bool_], "row width"], axis: Literal["rows", "columns"]) -> range | None:
    """The lines of an axis from the first to the last measured, if a mask shows partial Fourier there; else None.

    It does where one side of the centre reaches further than the other by more than a sixteenth of the matrix and by
    more than three times the widest gap between measured lines. A pattern that thins out towards its ends, or leaves
    the last few lines out because of its spacing, or padding on both sides, is none; but of random patterns at
    acceleration 8, less than one in a hundred looks like it, so limits stated in a header are better evidence. Less
    than one spacing that lacks at the end of the longer side is counted as measured: the pattern left it out.

    Args:
        mask: the samples taken of centred k-space, (1 or height, width); a single row stands for all of them.
        axis: along which.
    """
    one_of("axis", axis, ("rows", "columns"))
    if axis == "rows" and len(mask) == 1:
        return None
    taken = np.flatnonzero(mask.any(axis=1 if axis == "rows" else 0))
    size = mask.shape[0 if axis == "rows" else 1]
    if not len(taken):
        return None
    first, last = int(taken[0]), int(taken[-1])
    spacing = int(np.diff(taken).max(initial=1))
    before, after = size // 2 - first, last - (size - 1) // 2
    if abs(before - after) <= max(3 * spacing, size / 16):
        return None
    start = 0 if first < spacing and before > after else first
    stop = size if size - 1 - last < spacing and after > before else last + 1
    return range(start, stop)


def zero_frequency(
    kspace: Complex64[NDArray[np.complex64], "coil height width"],
) -> tuple[Literal["centre", "corner"] | None, float]:
    """Where the zero frequency is, None if the samples do not tell; and the ratio of the energies at both places."""
    height, width = kspace.shape[1:]
    energy = np.zeros((height, width))
    for coil in kspace:
        energy += np.abs(coil).astype(np.float64) ** 2
    np.nan_to_num(energy, copy=False, posinf=0.0)

    def around(row: int, column: int) -> float:
        rows = np.arange(row - max(1, height // 32), row + max(1, height // 32) + 1)
        columns = np.arange(column - max(1, width // 32), column + max(1, width // 32) + 1)
        return float(energy[np.ix_(rows % height, columns % width)].sum())

    centre, corner = around(height // 2, width // 2), around(0, 0)
    if centre > _MARKED * corner:
        return "centre", centre / corner if corner else float("inf")
    if corner > _MARKED * centre:
        return "corner", corner / centre if centre else float("inf")
    return None, centre / corner if corner else 1.0


def corner_share(kspace: Complex64[NDArray[np.complex64], "coil height width"]) -> float:
    """Energy about the corners of the plain transform's image over that about its middle.

    Told from low frequencies alone, which are sampled densely: nothing is folded in their image.

    Args:
        kspace: with the zero frequency in the corner.
    """
    height, width = kspace.shape[1:]
    rows, columns = (np.abs(np.fft.fftfreq(size)) <= 1 / 8 for size in (height, width))
    image = (np.abs(np.fft.ifft2(np.where(rows[:, None] & columns, kspace, 0))) ** 2).sum(0)
    half = slice(height // 4, height - height // 4), slice(width // 4, width - width // 4)
    return float(np.fft.fftshift(image)[half].sum() / (image[half].sum() or 1.0))


def to_centre(
    kspace: Complex64[NDArray[np.complex64], "coil height width"], rolled: bool
) -> Complex64[NDArray[np.complex64], "coil height width"]:
    """K-space with the zero frequency in the middle, so that a centred transform gives the upright image.

    Args:
        kspace: with the zero frequency in the corner.
        rolled: whether the plain transform's image has its middle in the corner.
    """
    if not rolled:  # the centred transform looks from the middle: a shift of the image is a phase
        for axis, size in ((-2, kspace.shape[-2]), (-1, kspace.shape[-1])):
            phase = np.exp(2j * np.pi * np.arange(size) * (size // 2) / size)
            kspace = kspace * (phase[:, None] if axis == -2 else phase)
    return np.fft.fftshift(kspace, (-2, -1)).astype(np.complex64)


def _readings(stored: NDArray[np.bool_], shape: tuple[int, ...]) -> dict[str, NDArray[np.bool_]]:
    """The ways to read a mask that differ, as (1 or slice, 1 or height, width)."""
    slices, _, height, width = shape
    plain = stored.squeeze() if stored.size > 1 else stored.reshape(1)
    found: dict[str, NDArray[np.bool_]] = {}

    def reading(name: str, axes: Sequence[int], fitting: tuple[int, ...]) -> None:
        if plain.shape == tuple(fitting[axis] for axis in axes):
            full = plain.reshape([fitting[axis] if axis in axes else 1 for axis in range(3)])
            if full.shape[1] > 1 and full.shape[2] == 1:
                full = np.repeat(full, width, 2)
            if not any(np.array_equal(full, other) for other in found.values()):
                found[name] = full

    sizes = (slices, height, width)
    reading("columns", [2], sizes)
    reading("rows", [1], sizes)
    reading("samples", [1, 2], sizes)
    if slices > 1:
        reading("columns of every slice", [0, 2], sizes)
        reading("rows of every slice", [0, 1], sizes)
        reading("samples of every slice", [0, 1, 2], sizes)
    return found


def _spanned(taken: Measured, axis: int) -> Measured:
    """Samples between the first and the last taken along an axis."""
    begun = np.logical_or.accumulate(taken, axis)
    left = np.flip(np.logical_or.accumulate(np.flip(taken, axis), axis), axis)
    return np.asarray(begun & left)


def _gaps(line: Any) -> bool:
    """Whether anything is missing between the first and the last."""
    return not bool(line[_extent(line)].all())


def _extent(line: Any) -> slice:
    places = np.flatnonzero(line)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def _inside(empty: Mask, taken: Measured) -> bool:
    """Whether some of the empty places lie between samples that were taken."""
    spanned = (
        _spanned(np.asarray(taken.any(0))[None], 1) if len(empty) == 1 else _spanned(taken, 1) | _spanned(taken, 0)
    )
    return bool((empty & spanned).any())


def _borders(taken: Measured) -> str:
    """What of the matrix was not measured, said as a part of a sentence."""
    rows, columns = (_extent(taken.any(axis)) for axis in (1, 0))
    height, width = taken.shape
    if (rows, columns) == (slice(0, height), slice(0, width)):
        return ""
    return f"; rows {rows.start} to {rows.stop - 1} and columns {columns.start} to {columns.stop - 1} were measured"
