"""Coil maps that a user gives in an HDF5 file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from recurra.core.errors import FileError
from recurra.core.hdf5 import dataset, names, open_hdf5, read

_MAP_NAMES = ("sensitivity", "sensitivity_map", "sensitivity_maps", "maps", "espirit_maps")


class MapsFile:
    """The maps of a file: (coil, height, width) for all slices or one more axis for each.

    Args:
        where: the file, or FILE:DATASET; without a dataset the first known name is taken.
        shape: (slice, coil, height, width) of the k-space they are for.

    Raises:
        ValueError: the dataset is missing, of another size, or holds no numbers.
    """

    def __init__(self, where: str, shape: tuple[int, int, int, int]) -> None:
        name, _, title = where.partition(":")
        path = Path(name)
        with open_hdf5(path) as file:
            title = title or next((one for one in _MAP_NAMES if one in names(file)), _MAP_NAMES[0])
            stored = dataset(path, file, title)
            compound = {"real", "imag"} <= set(stored.dtype.names or ())  # MATLAB's complex numbers
            if stored.dtype.kind not in "fc" and not compound:
                raise FileError(path, f"dataset {title!r} has type {stored.dtype}; expected complex numbers")
            if stored.shape not in (shape, shape[1:]):
                raise FileError(
                    path,
                    f"dataset {title!r} has shape {stored.shape}; the k-space needs {shape[1:]} "
                    f"(coil, height, width) or {shape} (slice, coil, height, width)",
                )
            maps: np.ndarray[Any, Any] = read(path, stored, (), f"the dataset {title!r}")
            maps = maps["real"] + 1j * maps["imag"] if compound else maps
        if not np.isfinite(maps).all():
            raise FileError(path, f"dataset {title!r} has NaN or infinite values; expected numbers")
        self._maps = torch.from_numpy(maps.astype(np.complex64))

    def __call__(self, index: int) -> Complex[Tensor, "coil height width"]:
        """The maps of a slice."""
        return self._maps[index] if self._maps.ndim == 4 else self._maps
