"""Calgary-Campinas (CC359) files: real and imaginary parts interleaved, each index of the first axis a slice."""

from math import ceil
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from recurra.core.hdf5 import dataset, member, names, read
from recurra.mri.data.volume import Volume, is_padding

ACQUIRED = 0.85
"""Share of the columns that the scanner measured; beyond them the files hold zero-filling of its making."""
_HEIGHT, _WIDTHS = 218, (170, 174, 180)
"""Matrices of the public data set."""


class CalgaryCampinasVolume(Volume):
    """A volume (slice, height, width, 2 coils) whose readout is already transformed, for the plain transform.

    Args:
        path: the file.
        file: the same, opened.
        coils: number of coils that the file must have.

    Raises:
        ValueError: it has another number of coils.
    """

    origin_is_known = True

    def __init__(self, path: Path, file: h5py.File, *, coils: int | None = None) -> None:
        self._file = file
        self._kspace = dataset(path, file, "kspace", kinds="f")
        slices, height, width, parts = (int(n) for n in self._kspace.shape)
        if parts == 2:
            raise ValueError(
                f"{path}: dataset 'kspace' is real with a last axis of 2: real and imaginary parts of one coil, or an "
                "axis too few; store it as complex numbers (slice, coil, height, width)"
            )
        if coils is not None and parts // 2 != coils:
            raise ValueError(f"{path}: dataset 'kspace' has {parts // 2} coils; expected {coils} as given by --coils")
        self._acquired = width
        super().__init__(
            path,
            format="Calgary-Campinas",
            shape=(slices, parts // 2, height, width),
            centered=False,
            axes="slice, height, width, coil with real and imaginary parts: real numbers with an even last axis",
        )
        acquired = ceil(ACQUIRED * width)
        public = height == _HEIGHT and width in _WIDTHS
        # Somebody else's file of this layout may be measured throughout.
        if public or (slices and is_padding(self._read(slices // 2), (0, acquired))):
            self._acquired, self.limits = acquired, (0, acquired)

    def close(self) -> None:
        """Gives the file back."""
        self._file.close()

    def _read(self, index: int) -> NDArray[np.complex64]:
        samples = read(self.path, self._kspace, index, f"slice {index} of 'kspace'")
        kspace = (samples[..., ::2] + 1j * samples[..., 1::2]).transpose(2, 0, 1).astype(np.complex64)
        kspace[..., self._acquired :] = 0
        return np.ascontiguousarray(kspace)


def is_calgary_campinas(file: h5py.File) -> bool:
    """Whether the dataset `kspace` has this layout."""
    stored = member(file, "kspace")
    return (
        isinstance(stored, h5py.Dataset)
        and stored.dtype.kind == "f"
        and len(stored.shape or ()) == 4
        and stored.shape[-1] % 2 == 0
        and stored.shape[-1] // 2 <= min(stored.shape[1:3])  # else the last axis is one of the image
        and "ismrmrd_header" not in names(file)
    )
