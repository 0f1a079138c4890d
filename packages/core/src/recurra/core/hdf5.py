"""Opening HDF5 files of other people: no locks taken, every failure one line. A domain that uses it depends on h5py."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray


def open_hdf5(path: Path) -> h5py.File:
    """The file, for reading. It is not locked, so that other programs may hold it and read-only disks do.

    Raises:
        OSError: it is missing or may not be read.
        ValueError: it is no HDF5 file, empty or cut short.
    """
    with path.open("rb") as stream:
        if not stream.read(1):
            raise ValueError(f"{path}: is empty (0 bytes); expected an HDF5 file")
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "locking flag" in str(error):  # this program itself has it open, with locks
            return h5py.File(path, "r")
        if "truncated" in str(error):
            raise ValueError(f"{path}: is cut short; the HDF5 file has less data than its header says") from None
        raise ValueError(f"{path}: is not an HDF5 file, or its beginning is damaged") from None


def read(path: Path, dataset: Any, selection: Any, what: str) -> NDArray[Any]:
    """A part of a dataset, or of some fields of one.

    Raises:
        ValueError: the data cannot be read.
    """
    try:
        return np.asarray(dataset[selection])
    except (OSError, RuntimeError):
        raise ValueError(f"{path}: {what} cannot be read; the file is cut short or damaged") from None
