"""Opening HDF5 files of other people: no locks taken, every failure one line. A domain that uses it depends on h5py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

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


def contiguous(path: Path, name: str, shape: tuple[int, ...], attributes: Mapping[str, str]) -> BinaryIO:
    """The file, laid out for one float32 dataset and open where its values go, to be written by plain means.

    When a disk fills up, HDF5 cannot close its file any more and takes the process down with it; a plain file just
    reports the error. The same values make the same bytes.

    Args:
        path: of the new file.
        name: of the dataset.
        shape: of the dataset; its values follow in C order, little-endian.
        attributes: of the file.
    """
    with path.open("wb") as probe:  # whether there is room for what HDF5 writes itself
        probe.write(bytes(2**16))
    with h5py.File(path, "w", locking=False) as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.CONTIGUOUS)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        layout.set_obj_track_times(False)
        file.attrs.update(attributes)
        space = h5py.h5s.create_simple(shape)
        start = h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, layout).get_offset()
    stream = path.open("r+b")
    stream.seek(start)
    return stream
