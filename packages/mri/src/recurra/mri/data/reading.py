"""Opens a raw-data file of any known format."""

from pathlib import Path

from recurra.core.hdf5 import open_hdf5
from recurra.mri.data.calgary_campinas import CalgaryCampinasVolume, is_calgary_campinas
from recurra.mri.data.fastmri import FastMRIVolume
from recurra.mri.data.ismrmrd import ISMRMRDVolume, raw_group
from recurra.mri.data.volume import Volume

_HDF5 = b"\x89HDF\r\n\x1a\n"


def open_volume(path: str | Path, *, coils: int | None = None, remove_oversampling: bool = False) -> Volume:
    """The volume in a file; its format is told from its content.

    Args:
        path: fastMRI, Calgary-Campinas or ISMRMRD HDF5 file, or Siemens raw data (.dat).
        coils: number of coils that the file must have; 1 admits fastMRI's single-coil files.
        remove_oversampling: cut the readout oversampling of raw formats away; else it stays, as in fastMRI files, and
            `recon_size` says what to crop the image to.

    Raises:
        OSError: the file is missing or may not be read.
        ValueError: it is of no known format, or what it holds is no k-space.
    """
    path = Path(path)
    with path.open("rb") as stream:
        start = stream.read(8)
    if path.suffix.lower() == ".dat" and start != _HDF5:
        from recurra.mri.data.twix import TwixVolume

        return TwixVolume(path, coils=coils, remove_oversampling=remove_oversampling)
    file = open_hdf5(path)
    try:
        if raw_group(file) is not None:
            return ISMRMRDVolume(path, file, coils=coils, remove_oversampling=remove_oversampling)
        if is_calgary_campinas(file):
            return CalgaryCampinasVolume(path, file, coils=coils)
        return FastMRIVolume(path, file, coils=coils)
    except BaseException:
        file.close()
        raise
