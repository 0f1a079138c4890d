"""What every raw-data format offers: the k-space of one slice at a time, and what is known about the scan.

A `Volume` reads nothing but the header until a slice is asked for. All formats give complex64 (coil, height, width)
with the readout along the height and the phase encoding along the width.

A fact about a scan (what was sampled, where the zero frequency is, padding, geometry) is found once, here, with its
evidence; training, reconstruction, evaluation and `inspect` all take it from here.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Bool, Complex64, Float32, Float64
from numpy.typing import NDArray

from recurra.core.errors import FileError, blaming, nearest
from recurra.mri.data.geometry import Geometry
from recurra.mri.noise import Noise
from recurra.mri.sampling import (
    Sampling,
    corner_share,
    mask_readings,
    measured,
    resolve_mask,
    sampling_of,
    to_centre,
    zero_frequency,
)

_PADDED = 1e-3
"""Of the mean magnitude: columns below it hold nothing that was measured, as in the rule for padded samples."""


_PLAIN = 3.0
"""How much more energy an image must hold about its corners than about its middle to be called rolled."""


class BadSlice(FileError):
    """A slice that holds values that are no numbers; the other slices serve."""


@dataclass(frozen=True)
class RawSlice:
    """K-space of a slice and what is known about it; the zero frequency is in the middle.

    Attributes:
        path: the file.
        index: of the slice.
        kspace: complex64 (coil, height, width), whitened if the file has a noise scan that is used.
        sampling: what was sampled, and how that is known.
        acs_lines: how many central lines the file says are calibration.
        padding: first measured column and first column after those measured.
        recon_size: (rows, columns) that the scanner's own image has.
        centered: whether a centred transform gives the upright image; else the plain one does (Calgary-Campinas).
        calibration: calibration lines of a scan of their own (coil, height, width), zero elsewhere.
    """

    path: Path
    index: int
    kspace: NDArray[np.complex64]
    sampling: Sampling
    acs_lines: int | None
    padding: tuple[int, int] | None
    recon_size: tuple[int, int] | None
    centered: bool
    calibration: NDArray[np.complex64] | None

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """Samples taken (1 or height, width); None if the slice is fully sampled, but for its borders."""
        return self.sampling.mask


@dataclass(frozen=True)
class Found:
    """What the samples of a volume say; found in its middle slice, or the nearest to it that holds samples.

    Attributes:
        mask: the file's own mask (1 or slice, 1 or height, width) as its k-space is stored; None if it has none.
        mask_evidence: how its axes were told.
        corner: whether the zero frequency is in the corner of the stored arrays.
        rolled: whether the image's middle is in the corner, of the plain or the centred transform.
        origin_evidence: how that was told.
        sampling: that of the middle slice.
        padding_holds: whether the columns that the header calls padding are empty.
    """

    mask: NDArray[np.bool_] | None
    mask_evidence: str
    corner: bool
    rolled: bool
    origin_evidence: str
    sampling: Sampling
    padding_holds: bool


class Volume(ABC):
    """K-space of the slices of one file; a context manager.

    Attributes:
        path: the file.
        format: name of its format.
        shape: (slice, coil, height, width).
        centered: whether the centre of k-space is the middle of the array and a centred transform gives the upright
            image; else the plain transform does (Calgary-Campinas).
        stored_mask: the file's own sampling pattern as it is stored, or None.
        acs_lines: number of calibration lines that the file states for its own mask.
        recon_size: (rows, columns) that the scanner's own image has.
        limits: first measured column and first column after those measured, as the header says.
        geometry: where the slices are.
        attributes: what else the file says about the scan.
        parts: names of the echoes, repetitions and so on that the file holds as volumes of their own; empty for one.
        part: which of them this is.
        facts: what is stated of the sequence, by DICOM's keywords and in its units.
        noise: of the coils, from a noise scan in the file.
        whiten: whether `slice` gives k-space whose noise is white.
        remarks: what a user should hear about how the file was read.
        unlike: slices read so far that are undersampled where most are not, or the reverse.
    """

    origin_is_known = False
    """Whether the format itself says where the zero frequency is, and `stored_mask` is (1 or slice, 1, width)."""

    def __init__(
        self,
        path: Path,
        *,
        format: str,
        shape: tuple[int, int, int, int],
        centered: bool = True,
        mask: NDArray[Any] | None = None,
        mask_name: str = "dataset 'mask'",
        acs_lines: int | None = None,
        recon_size: tuple[int, int] | None = None,
        limits: tuple[int, int] | None = None,
        geometry: Geometry | None = None,
        attributes: dict[str, Any] | None = None,
        axes: str = "slice, coil, height, width",
        parts: tuple[str, ...] = (),
        part: str | None = None,
        remarks: tuple[str, ...] = (),
        facts: dict[str, object] | None = None,
        noise: Noise | None = None,
        whiten: bool = True,
    ) -> None:
        if min(shape) < 1:
            raise ValueError(
                f"{path}: holds no k-space, its shape is {tuple(shape)}; expected (slice, coil, height, width)"
            )
        if mask is not None and not self.origin_is_known:
            mask_readings(path, mask, shape, mask_name)
        self.path = path
        self.format = format
        self.shape = shape
        self.centered = centered
        self.stored_mask, self.mask_name = mask, mask_name
        self.acs_lines = acs_lines
        self.recon_size = recon_size
        self.limits = limits
        self.geometry = geometry or Geometry(shape[2:], (0.0, 0.0, 0.0))
        self.attributes = attributes or {}
        self.axes = axes
        self.parts, self.part = parts, part
        self._remarks = remarks
        self.unlike: set[int] = set()
        self.facts = facts or {}
        self.noise, self.whiten = noise, whiten and noise is not None

    def __len__(self) -> int:
        """Number of slices."""
        return self.shape[0]

    @cached_property
    def found(self) -> Found:
        """What the samples say; the middle slice is read for it.

        Raises:
            ValueError: the file's mask does not serve, or fits in several ways.
        """
        # The middle slice, or the nearest to it that holds numbers, and more than zeros.
        middle = len(self) // 2
        for index in sorted(range(len(self)), key=lambda one: abs(one - middle)):
            samples = self._read(index)
            if np.isfinite(samples).all() and samples.any():
                break
        else:
            index, samples = middle, self._read(middle)
        taken = measured(samples)
        mask, evidence = None, ""
        if self.stored_mask is not None and self.origin_is_known:
            mask, evidence = self.stored_mask, self.mask_name
        elif self.stored_mask is not None:
            shape = (len(self), *self.shape[1:])
            mask, evidence = resolve_mask(self.path, self.stored_mask, shape, taken, index, self.mask_name)
        corner, rolled, origin = False, False, f"{self.format} files have it there"
        if not self.origin_is_known:
            place, ratio = zero_frequency(samples)
            corner = place == "corner"
            if place is None:
                origin += "; the samples do not tell"
            else:
                origin = f"the {place} holds {ratio:.3g} times the energy of the {'centre' if corner else 'corner'}"
            if corner:
                rolled = corner_share(samples) > 1
            elif self.centered:  # such an image is usual in the middle; only what is plain is said
                rolled = corner_share(np.fft.ifftshift(samples, (-2, -1))) < 1 / _PLAIN
        own = None if mask is None else mask[index if len(mask) > 1 else 0]
        taken, own = _turned(taken, own, corner)
        sampling = sampling_of(taken, own, self.mask_name)
        arranged = np.fft.fftshift(samples, (-2, -1)) if corner else samples
        holds = self.limits is not None and is_padding(arranged, self.limits)
        return Found(mask, evidence, corner, rolled, origin, sampling, holds)

    @property
    def mask(self) -> Bool[NDArray[np.bool_], "row width"] | None:
        """Samples taken in the middle slice (1 or height, width); None if it is fully sampled but for its borders."""
        return self.found.sampling.mask

    @property
    def affine(self) -> Float64[NDArray[np.float64], "4 4"]:
        """From (row, column, slice) of the whole matrix to millimetres, in NIfTI's right-anterior-superior frame."""
        return self.geometry.full

    @property
    def padding(self) -> tuple[int, int] | None:
        """First measured column and first column after those measured, if the header says so and the samples agree."""
        return self.limits if self.found.padding_holds else None

    @property
    def remarks(self) -> list[str]:
        """What a user should hear about how the file is read; a line each, without the file's name."""
        found, said = self.found, list(self._remarks)
        if found.sampling.remark:
            said.append(found.sampling.remark)
        if self.unlike:
            numbers = ", ".join(map(str, sorted(self.unlike)))
            others = "fully sampled" if found.sampling.mask is None else "undersampled"
            said.append(f"slices {numbers} are sampled otherwise than the middle one, which is {others}")
        if found.corner:
            said.append(
                f"the zero frequency is in the corner of the arrays ({found.origin_evidence}); k-space is turned"
            )
        elif found.rolled:
            said.append(
                "the image lies about the corners of its matrix, as if it had not been shifted before its transform; "
                "results show it so"
            )
        if self.limits is not None and not found.padding_holds:
            left, right = self.limits
            said.append(
                f"the header's encoding limits leave out columns that hold samples (columns before {left} or from "
                f"{right} on); the limits are not used"
            )
        return said

    def kspace(self, index: int) -> Complex64[NDArray[np.complex64], "coil height width"]:
        """K-space of a slice, as the file has it.

        Raises:
            BadSlice: it holds NaN or infinite samples.
            IndexError: there is no such slice.
        """
        index = self._index(index)
        samples = np.asarray(self._read(index), dtype=np.complex64)
        if not np.isfinite(samples).all():
            bad = int((~np.isfinite(samples)).sum())
            raise BadSlice(self.path, f"slice {index} has {bad} samples that are NaN or infinite; expected numbers")
        return samples

    def target(self, index: int) -> Float32[NDArray[np.float32], "row column"] | None:
        """The reference image of a slice, if the file has one."""
        self._index(index)
        return None

    def calibration(self, index: int) -> Complex64[NDArray[np.complex64], "coil height width"] | None:
        """Calibration lines of a slice that were measured in a scan of their own, zero elsewhere; None without any."""
        self._index(index)
        return None

    def slice(self, index: int) -> RawSlice:
        """A slice with all that its preprocessing needs.

        Raises:
            FileError: it cannot be read.
        """
        with blaming(self.path):
            index = self._index(index)
            kspace, calibration, found = self.kspace(index), self.calibration(index), self.found
            own = None if found.mask is None else found.mask[index if len(found.mask) > 1 else 0]
            sampling = sampling_of(*_turned(measured(kspace), own, found.corner), self.mask_name)
            if (sampling.mask is None) != (found.sampling.mask is None) and kspace.any():
                self.unlike.add(index)
            if found.corner:
                kspace = to_centre(kspace, found.rolled)
            padding = self.limits if self.limits is not None and is_padding(kspace, self.limits) else None
            if self.noise is not None and self.whiten:
                kspace = self.noise.whiten(kspace)
                calibration = None if calibration is None else self.noise.whiten(calibration)
        return RawSlice(
            path=self.path,
            index=index,
            kspace=kspace,
            sampling=sampling,
            acs_lines=self.acs_lines,
            padding=padding,
            recon_size=self.recon_size,
            centered=self.centered,
            calibration=calibration,
        )

    def image_affine(self, size: tuple[int, int]) -> Float64[NDArray[np.float64], "4 4"]:
        """From (row, column, slice) of the central (rows, columns) of the image to millimetres, in NIfTI's frame.

        Raises:
            FileError: the slices are not parallel and evenly spaced: no one affine places them.
        """
        if self.geometry.uneven:
            raise FileError(self.path, f"{self.geometry.uneven}; NIfTI and DICOM series need one grid, use fastmri")
        return self.geometry.affine(size)

    @abstractmethod
    def close(self) -> None:
        """Gives the file back."""

    @abstractmethod
    def _read(self, index: int) -> NDArray[np.complex64]:
        """K-space of a slice (coil, height, width)."""

    def _index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: slice {index} of {len(self)}")
        return index % len(self)

    def __enter__(self) -> "Volume":
        """The volume itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives the file back."""
        self.close()


def chosen_part(path: Path, parts: tuple[str, ...], part: str | None) -> int:
    """Number of the part of this name; the first without a name.

    Raises:
        FileError: there is none of this name.
    """
    if part is None:
        return 0
    if part not in parts:
        raise FileError(path, f"has no part {part!r}{nearest(part, parts) or '; it holds one volume'}")
    return parts.index(part)


def _turned(
    taken: NDArray[np.bool_], mask: NDArray[np.bool_] | None, corner: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
    """Both with the zero frequency in the middle."""
    if not corner:
        return taken, mask
    return np.fft.fftshift(taken), None if mask is None else np.fft.fftshift(mask)


def is_padding(kspace: NDArray[np.complex64], limits: tuple[int, int]) -> bool:
    """Whether the columns outside the limits are empty."""
    outside = np.ones(kspace.shape[-1], bool)
    outside[limits[0] : limits[1]] = False
    if not outside.any():
        return True
    magnitude = np.abs(np.nan_to_num(kspace)).sum((0, 1))
    return bool(magnitude[outside].max() <= _PADDED * magnitude.mean())
