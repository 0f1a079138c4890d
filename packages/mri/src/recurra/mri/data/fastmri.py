"""fastMRI files and their like: `kspace` of one volume, an ISMRMRD header, perhaps a mask and reference images."""

from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from recurra.core.hdf5 import attribute, attributes, dataset, names, read
from recurra.mri.data.axes import FRAME, find_axes
from recurra.mri.data.geometry import Geometry
from recurra.mri.data.header import Header, parse_header
from recurra.mri.data.volume import Volume, chosen_part

_IMAGES = ("reconstruction_rss", "reconstruction_esc")
_MATLAB = ("real", "imag")


class FastMRIVolume(Volume):
    """A multi-coil (slice, coil, height, width) or single-coil (slice, height, width) volume.

    Args:
        path: the file.
        file: the same, opened.
        coils: number of coils that the file must have; 1 admits single-coil files.
        axes: the order of the axes of `kspace`; by default it is found.
        part: name of the frame to take where there is an axis of them; the first by default.

    Raises:
        ValueError: the dataset `kspace` is missing or of another kind.
    """

    def __init__(
        self,
        path: Path,
        file: h5py.File,
        *,
        coils: int | None = None,
        axes: tuple[str, ...] | None = None,
        part: str | None = None,
    ) -> None:
        self._file = file
        self._kspace = dataset(path, file, "kspace")
        self._compound = self._kspace.dtype.names is not None and set(_MATLAB) <= set(self._kspace.dtype.names)
        if not self._compound:
            self._kspace = dataset(path, file, "kspace", kinds="c")
        header = _header(path, file)
        self._images = _images(path, file)
        stored = self._kspace.shape
        self._order, evidence = find_axes(
            path,
            stored,
            given=axes,
            coils=coils,
            channels=header.channels if header else None,
            matrix=header.encoded[:2] if header else None,
            images=next((one.shape for one in self._images.values()), None),
        )
        size = {"slice": 1, "coil": 1, **dict(zip(self._order, stored, strict=True))}
        shape = (size["slice"], size["coil"], size["height"], size["width"])
        if coils is not None and shape[1] != coils:
            raise ValueError(f"{path}: dataset 'kspace' has {shape[1]} coils; expected {coils} as given by --coils")
        parts = tuple(f"{FRAME}{number + 1}" for number in range(size.get(FRAME, 1)))
        self._frame = chosen_part(path, parts if len(parts) > 1 else (), part)
        remarks = [f"dataset 'kspace' has the axes {', '.join(self._order)}, by {evidence}"] * (
            self._order not in (("slice", "coil", "height", "width"), ("slice", "height", "width"))
        )
        if "MATLAB_class" in names(self._kspace.attrs):
            remarks.append(
                f"was written by MATLAB, which reverses axes: they are taken as {', '.join(self._order)}; "
                "if they are others, name them with --axes"
            )
        recon_size, geometry, limits = _by_header(header, shape, remarks)
        mask = None
        if "mask" in names(file):
            mask = read(path, dataset(path, file, "mask", kinds="biuf"), (), "the dataset 'mask'")
        super().__init__(
            path,
            format="fastMRI",
            shape=shape,
            mask=mask,
            acs_lines=attribute(path, file, "num_low_frequency", int),
            recon_size=recon_size,
            limits=limits,
            geometry=geometry,
            attributes=attributes(file),
            axes=f"{', '.join(self._order)}: {evidence}",
            parts=parts if len(parts) > 1 else (),
            part=parts[self._frame] if len(parts) > 1 else None,
            remarks=tuple(remarks),
            facts=header.facts() if header else None,
        )

    def target(self, index: int) -> Float32[NDArray[np.float32], "row column"] | None:
        """The image `reconstruction_rss`, of single-coil files `reconstruction_esc` where there is one."""
        index = self._index(index)
        for name in _IMAGES if self.shape[1] > 1 else reversed(_IMAGES):
            if name in self._images:
                images = self._images[name]
                if images.ndim != 3 or len(images) != len(self):
                    raise ValueError(
                        f"{self.path}: dataset '{name}' has shape {images.shape}; expected ({len(self)}, rows, columns)"
                    )
                image = read(self.path, images, index, f"slice {index} of '{name}'").astype(np.float32)
                if not np.isfinite(image).all():
                    raise ValueError(f"{self.path}: slice {index} of '{name}' has NaN or infinite values")
                return image
        return None

    def close(self) -> None:
        """Gives the file back."""
        self._file.close()

    def _read(self, index: int) -> NDArray[np.complex64]:
        at = {"slice": index, FRAME: self._frame}
        selection = tuple(at.get(name, slice(None)) for name in self._order)
        plain = self._order[:1] == ("slice",) and FRAME not in self._order
        samples = read(self.path, self._kspace, index if plain else selection, f"slice {index} of 'kspace'")
        if self._compound:
            samples = samples["real"] + 1j * samples["imag"]
        left = [name for name in self._order if name not in at]
        if "coil" not in left:
            samples, left = samples[None], ["coil", *left]
        samples = samples.transpose([left.index(name) for name in ("coil", "height", "width")])
        return np.ascontiguousarray(samples, np.complex64)


def _header(path: Path, file: h5py.File) -> Header | None:
    if "ismrmrd_header" not in names(file):
        return None
    text = read(path, dataset(path, file, "ismrmrd_header"), (), "the dataset 'ismrmrd_header'")
    if not text.size:
        raise ValueError(f"{path}: dataset 'ismrmrd_header' is empty; expected XML")
    return parse_header(np.ravel(text)[0], path)


def _images(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    """The reference images that the file has."""
    found = {name: dataset(path, file, name, kinds="iuf") for name in _IMAGES if name in names(file)}
    return found


def _by_header(
    header: Header | None, shape: tuple[int, int, int, int], remarks: list[str]
) -> tuple[tuple[int, int] | None, Geometry, tuple[int, int] | None]:
    """Size of the scanner's image, geometry, and the measured columns, where the header is about this k-space."""
    height, width = matrix = shape[2:]
    if header is None:
        return None, Geometry(matrix, (0.0, 0.0, 0.0), evidence="no header: sizes are in voxels, an axial slice"), None
    voxel, recon = header.voxel, header.recon[:2]
    axial = "sizes of the header; it states no orientation: an axial slice is assumed"
    if header.encoded[:2] != matrix:
        remarks.append(
            f"the header is about a matrix of {header.encoded[0]} x {header.encoded[1]}, the k-space has "
            f"{height} x {width}: its encoding limits are not used"
        )
        if height == header.recon[0] < header.encoded[0] and width == header.encoded[1]:
            axial += "; the readout oversampling is cut away already"
            voxel = (header.recon_fov[0] / height, voxel[1], voxel[2])
        else:  # cropped or zero-filled k-space shows the same field of view in other pixels
            axial += "; the field of view is taken as the header's"
            voxel = (header.encoded_fov[0] / height, header.encoded_fov[1] / width, voxel[2])
            seen = [
                round(size * of / full) if of > 0 and full > 0 else wanted
                for size, wanted, of, full in zip(matrix, recon, header.recon_fov, header.encoded_fov, strict=False)
            ]
            recon = (min(seen[0], height), min(seen[1], width))
    size = recon
    if width < recon[1]:
        # A few FLAIR volumes have fewer columns than their image: then both sides are as many. But an image matrix that
        # the scanner interpolated to shows all rows that were measured.
        oversampled = header.encoded_fov[0] <= 0 or header.encoded_fov[0] > 1.1 * header.recon_fov[0]
        size = (min(matrix), width) if oversampled else matrix
    size = (min(size[0], height), size[1])
    limits = _limits(header.padding, width) if header.encoded[:2] == matrix else None
    return size, Geometry(matrix, voxel, evidence=axial), limits


def _limits(padding: tuple[int, int] | None, width: int) -> tuple[int, int] | None:
    """Measured columns within the matrix; none when the header's limits say nothing about it."""
    if padding is None or padding[1] <= 0 or padding[0] >= width:
        return None
    left, right = max(padding[0], 0), min(padding[1], width)
    return None if (left, right) == (0, width) else (left, right)
