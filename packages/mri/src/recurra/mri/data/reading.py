"""Opens a raw-data file of any known format."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from recurra.core.errors import FileError
from recurra.core.files import check_file
from recurra.core.hdf5 import member, names, open_hdf5
from recurra.mri.data.axes import parse_axes
from recurra.mri.data.calgary_campinas import CalgaryCampinasVolume, is_calgary_campinas
from recurra.mri.data.fastmri import FastMRIVolume
from recurra.mri.data.ismrmrd import ISMRMRDVolume, raw_group
from recurra.mri.data.volume import Volume

_HDF5 = b"\x89HDF\r\n\x1a\n"


def open_volume(
    path: str | Path,
    *,
    coils: int | None = None,
    remove_oversampling: bool = False,
    part: str | None = None,
    axes: str | None = None,
    whiten: bool = True,
) -> Volume:
    """The volume in a file; its format is told from its content.

    Args:
        path: fastMRI, Calgary-Campinas or ISMRMRD HDF5 file, or Siemens raw data (.dat).
        coils: number of coils that the file must have; 1 admits fastMRI's single-coil files.
        remove_oversampling: cut the readout oversampling of raw formats away; else it stays, as in fastMRI files, and
            `recon_size` says what to crop the image to.
        part: name of the echo, repetition, phase, set or frame to take, of `Volume.parts`; the first by default.
        axes: order of the axes of `kspace` in a fastMRI file, such as "slice,height,width,coil"; by default it is
            found.
        whiten: make the noise of the coils white where the file has a noise scan.

    Raises:
        OSError: the file is missing or may not be read.
        ValueError: it is of no known format, or what it holds is no k-space.
    """
    path = Path(path)
    order = None if axes is None else parse_axes(axes)
    check_file(path, "a k-space file")
    with path.open("rb") as stream:
        start = stream.read(8)
    if path.suffix.lower() == ".dat" and start != _HDF5:
        from recurra.mri.data.twix import TwixVolume

        return TwixVolume(path, coils=coils, remove_oversampling=remove_oversampling, part=part, whiten=whiten)
    file = open_hdf5(path)
    try:
        _refuse_dangling(path, file)
        if raw_group(file) is not None:
            return ISMRMRDVolume(
                path, file, coils=coils, remove_oversampling=remove_oversampling, part=part, whiten=whiten
            )
        if order is None and is_calgary_campinas(file):
            if part is not None:
                raise FileError(path, f"has no part {part!r}; it holds one volume")
            return CalgaryCampinasVolume(path, file, coils=coils)
        return FastMRIVolume(path, file, coils=coils, axes=order, part=part)
    except BaseException:
        file.close()
        raise


def _refuse_dangling(path: Path, file: h5py.File) -> None:
    """A file that lost something may have lost its mask or its header: it is not read as if that had never been."""
    for name in names(file):
        link = file.get(name, getlink=True)
        if isinstance(link, h5py.SoftLink) and name != "kspace" and member(file, name) is None:
            raise FileError(
                path, f"{name!r} is a link to {link.path!r}, where nothing is; the file is not whole, remove the link"
            )


def open_parts(path: Path, *, part: str | None = None, **options: Any) -> Iterator[Volume]:
    """The volumes of a file one after the other, or the one of this name; each is closed when the next is asked for.

    Args:
        path: the file.
        part: name of the one to take.
        options: of `open_volume`.
    """
    with open_volume(path, part=part, **options) as first:
        others = first.parts[1:] if part is None else ()
        yield first
    for name in others:
        with open_volume(path, part=name, **options) as volume:
            yield volume
