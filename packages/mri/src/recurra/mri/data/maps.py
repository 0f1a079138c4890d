"""Coil maps that a user gives in an HDF5 file."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from recurra.core.hdf5 import open_hdf5

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
        name, _, dataset = where.partition(":")
        path = Path(name)
        with open_hdf5(path) as file:
            dataset = dataset or next((one for one in _MAP_NAMES if one in file), _MAP_NAMES[0])
            if not isinstance(file.get(dataset), h5py.Dataset):
                raise ValueError(f"{path}: no dataset {dataset!r}; the file has {', '.join(file) or 'nothing'}")
            maps: np.ndarray[Any, Any] = np.asarray(file[dataset][()])
        if maps.dtype.kind not in "fc":
            raise ValueError(f"{path}: dataset {dataset!r} has type {maps.dtype}; expected complex numbers")
        if maps.shape not in (shape, shape[1:]):
            raise ValueError(
                f"{path}: dataset {dataset!r} has shape {maps.shape}; the k-space needs {shape[1:]} "
                f"(coil, height, width) or {shape} (slice, coil, height, width)"
            )
        if not np.isfinite(maps).all():
            raise ValueError(f"{path}: dataset {dataset!r} has NaN or infinite values; expected numbers")
        self._maps = torch.from_numpy(maps.astype(np.complex64))

    def __call__(self, index: int) -> Complex[Tensor, "coil height width"]:
        """The maps of a slice."""
        return self._maps[index] if self._maps.ndim == 4 else self._maps
