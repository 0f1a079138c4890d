"""What every raw-data format offers: the k-space of one slice at a time, and what its header says.

A `Volume` reads nothing but the header until a slice is asked for. All formats give complex64 (coil, height, width)
with the readout along the height and the phase encoding along the width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Bool, Complex64, Float32, Float64
from numpy.typing import NDArray

from recurra.core.errors import blaming
from recurra.mri.data.header import cropped_affine


@dataclass(frozen=True)
class RawSlice:
    """K-space of a slice and what its file says about it."""

    path: Path
    index: int
    kspace: NDArray[np.complex64]
    mask: NDArray[np.bool_] | None
    acs_lines: int | None
    padding: tuple[int, int] | None
    recon_size: tuple[int, int] | None
    centered: bool
    calibration: NDArray[np.complex64] | None


class Volume(ABC):
    """K-space of the slices of one file; a context manager.

    Attributes:
        path: the file.
        format: name of its format.
        shape: (slice, coil, height, width).
        centered: whether the centre of k-space is the middle of the array and a centred transform gives the upright
            image; else the plain transform does (Calgary-Campinas).
        mask: the file's own sampling pattern (1 or height, width), which wins over any generator.
        acs_lines: number of calibration lines that the file states for its own mask.
        recon_size: (rows, columns) that the scanner's own image has.
        padding: first measured column and first column after those measured.
        affine: from (row, column, slice) of the whole matrix to millimetres, in the right-anterior-superior frame of
            NIfTI; `image_affine` is that of the cropped image.
        attributes: what else the file says about the scan.
    """

    def __init__(
        self,
        path: Path,
        *,
        format: str,
        shape: tuple[int, int, int, int],
        centered: bool = True,
        mask: NDArray[Any] | None = None,
        acs_lines: int | None = None,
        recon_size: tuple[int, int] | None = None,
        padding: tuple[int, int] | None = None,
        affine: Float64[NDArray[np.float64], "4 4"] | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        if min(shape) < 1:
            raise ValueError(
                f"{path}: holds no k-space, its shape is {tuple(shape)}; expected (slice, coil, height, width)"
            )
        self.path = path
        self.format = format
        self.shape = shape
        self.centered = centered
        self.mask = check_mask(path, mask, shape) if mask is not None else None
        self.acs_lines = acs_lines
        self.recon_size = recon_size
        self.padding = padding
        self.affine = np.eye(4) if affine is None else affine
        self.attributes = attributes or {}

    def __len__(self) -> int:
        """Number of slices."""
        return self.shape[0]

    def kspace(self, index: int) -> Complex64[NDArray[np.complex64], "coil height width"]:
        """K-space of a slice, as the file has it.

        Raises:
            ValueError: it holds NaN or infinite samples.
            IndexError: there is no such slice.
        """
        samples = np.asarray(self._read(self._index(index)), dtype=np.complex64)
        if not np.isfinite(samples).all():
            bad = int((~np.isfinite(samples)).sum())
            raise ValueError(f"{self.path}: slice {index} has {bad} samples that are NaN or infinite; expected numbers")
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
            kspace, calibration = self.kspace(index), self.calibration(index)
        return RawSlice(
            path=self.path,
            index=index,
            kspace=kspace,
            mask=self.mask,
            acs_lines=self.acs_lines,
            padding=self.padding,
            recon_size=self.recon_size,
            centered=self.centered,
            calibration=calibration,
        )

    def image_affine(self, size: tuple[int, int]) -> Float64[NDArray[np.float64], "4 4"]:
        """The affine of the central (rows, columns) of the image."""
        return cropped_affine(self.affine, self.shape[2:], size)

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


def check_mask(path: Path, mask: NDArray[Any], shape: tuple[int, ...]) -> Bool[NDArray[np.bool_], "row width"]:
    """The mask as (1 or height, width).

    Raises:
        ValueError: it does not fit k-space of this shape, or keeps nothing.
    """
    height, width = shape[-2:]
    plane = np.atleast_2d(np.squeeze(mask)) if mask.size > 1 else mask.reshape(1, -1)
    if plane.shape not in ((1, width), (height, width)):
        raise ValueError(
            f"{path}: dataset 'mask' has shape {mask.shape}; k-space of {height} x {width} needs ({width},) or "
            f"({height}, {width})"
        )
    if not np.isfinite(plane.astype(np.float64)).all():
        raise ValueError(f"{path}: dataset 'mask' has NaN or infinite values; expected 0 and 1")
    if not plane.any():
        raise ValueError(f"{path}: dataset 'mask' keeps no sample; expected at least one that is not zero")
    return plane.astype(bool)
