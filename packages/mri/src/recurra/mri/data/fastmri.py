"""fastMRI files: `kspace` of one volume, an ISMRMRD header, perhaps a mask and the scanner's images."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from recurra.core.hdf5 import read
from recurra.mri.data.header import affine, parse_header
from recurra.mri.data.volume import Volume


class FastMRIVolume(Volume):
    """A multi-coil (slice, coil, height, width) or single-coil (slice, height, width) volume.

    Args:
        path: the file.
        file: the same, opened.
        coils: number of coils that the file must have; 1 admits single-coil files.

    Raises:
        ValueError: the dataset `kspace` is missing or of another kind.
    """

    def __init__(self, path: Path, file: h5py.File, *, coils: int | None = None) -> None:
        self._file = file
        self._kspace = _kspace_dataset(path, file)
        shape = _shape(path, self._kspace, coils)
        attributes: dict[str, Any] = {key: _plain(value) for key, value in file.attrs.items()}
        recon_size = padding = None
        geometry = affine(shape[2:], (0.0, 0.0, 0.0))
        if "ismrmrd_header" in file:
            header = parse_header(file["ismrmrd_header"][()], path)
            padding = _padding(header.padding, shape[3])
            # A few FLAIR volumes have fewer columns than their image: then both sides are as many.
            recon_size = header.recon[:2] if shape[3] >= header.recon[1] else (min(shape[2:]), shape[3])
            recon_size = (min(recon_size[0], shape[2]), recon_size[1])
            geometry = affine(shape[2:], header.voxel)
        super().__init__(
            path,
            format="fastMRI",
            shape=shape,
            mask=_mask(path, file),
            acs_lines=int(attributes["num_low_frequency"]) if "num_low_frequency" in attributes else None,
            recon_size=recon_size,
            padding=padding,
            affine=geometry,
            attributes=attributes,
        )

    def target(self, index: int) -> Float32[NDArray[np.float32], "row column"] | None:
        """The image `reconstruction_rss`, of single-coil files `reconstruction_esc` where there is one."""
        index = self._index(index)
        names = ["reconstruction_rss", "reconstruction_esc"]
        for name in names if self.shape[1] > 1 else reversed(names):
            if name in self._file:
                images = self._file[name]
                if images.ndim != 3 or len(images) != len(self):
                    raise ValueError(
                        f"{self.path}: dataset '{name}' has shape {images.shape}; expected ({len(self)}, rows, columns)"
                    )
                return read(self.path, images, index, f"slice {index} of '{name}'").astype(np.float32)
        return None

    def close(self) -> None:
        """Gives the file back."""
        self._file.close()

    def _read(self, index: int) -> NDArray[np.complex64]:
        samples = read(self.path, self._kspace, index, f"slice {index} of 'kspace'")
        return samples.reshape(self.shape[1:]).astype(np.complex64)


def _kspace_dataset(path: Path, file: h5py.File) -> h5py.Dataset:
    if not isinstance(file.get("kspace"), h5py.Dataset):
        found = ", ".join(file) or "nothing"
        raise ValueError(f"{path}: no dataset 'kspace'; the file has {found}")
    dataset = file["kspace"]
    if dataset.dtype.kind != "c":
        raise ValueError(f"{path}: dataset 'kspace' has type {dataset.dtype}; expected complex numbers")
    return dataset


def _shape(path: Path, dataset: h5py.Dataset, coils: int | None) -> tuple[int, int, int, int]:
    shape = dataset.shape
    if len(shape) == 3 and coils == 1:
        shape = (shape[0], 1, *shape[1:])
    if len(shape) != 4:
        remedy = ". For single-coil files pass --coils 1" if len(shape) == 3 else ""
        raise ValueError(f"{path}: dataset 'kspace' has shape {shape}; expected (slice, coil, height, width){remedy}")
    if coils is not None and shape[1] != coils:
        raise ValueError(f"{path}: dataset 'kspace' has {shape[1]} coils; expected {coils} as given by --coils")
    slices, count, height, width = (int(n) for n in shape)
    return slices, count, height, width


def _mask(path: Path, file: h5py.File) -> NDArray[Any] | None:
    if "mask" not in file:
        return None
    mask = file["mask"]
    if mask.dtype.kind not in "biuf":
        raise ValueError(f"{path}: dataset 'mask' has type {mask.dtype}; expected booleans or numbers")
    return read(path, mask, (), "the dataset 'mask'")


def _padding(padding: tuple[int, int] | None, width: int) -> tuple[int, int] | None:
    """Padding within the matrix; none when the header's limits say nothing about it."""
    if padding is None or padding[1] <= 0 or padding[0] >= width:
        return None
    left, right = max(padding[0], 0), min(padding[1], width)
    return None if (left, right) == (0, width) else (left, right)


def _plain(value: Any) -> Any:
    """An attribute as a python object."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
