"""Writes reconstructed volumes slice by slice: fastMRI's submission file, NIfTI, DICOM.

A result that is not complete never looks complete: files are written as NAME.part and renamed at the end.
"""

import gzip
import hashlib
import math
import re
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from recurra.core.files import Writer, extra, finished
from recurra.core.hdf5 import contiguous

OutputFormat = Literal["fastmri", "nifti", "dicom"]


class VolumeWriter(Writer[NDArray[Any]]):
    """Takes the slices of a volume in order.

    Args:
        path: where they are written for now.
        shape: (slice, row, column).
        origin: what the volume was made from, kept within the file.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], *, origin: str = "") -> None:
        super().__init__(path, shape[0], what="slices")
        self.shape, self.origin = shape, origin
        self._file: Any = None

    def check(self, piece: NDArray[Any]) -> None:
        """Refuses a slice (row, column), real or complex, of another size or with values that are no numbers."""
        if piece.shape != self.shape[1:]:
            raise ValueError(f"{self.path}: slice {self.written} has shape {piece.shape}; expected {self.shape[1:]}")
        if not np.isfinite(piece).all():
            raise ValueError(f"{self.path}: slice {self.written} of the reconstruction has NaN or infinite values")

    def skip(self) -> None:
        """Leaves a slice out: it is NaN, or no file of a DICOM series."""
        self._write(np.full(self.shape[1:], np.nan, np.float32))
        self.written += 1

    def finish(self) -> None:
        """Checks that all slices are there and brings them to the disk."""
        super().finish()
        if self._file is not None:
            self._file.close()

    def close(self) -> None:
        """Gives the file back; what it still held is lost when the disk is full, which has been reported by then."""
        with suppress(OSError, AttributeError):
            self._file.close()


class FastMRIWriter(VolumeWriter):
    """The submission format of fastMRI: dataset `reconstruction`, float32 (slice, row, column)."""

    def __init__(self, path: Path, shape: tuple[int, int, int], *, origin: str = "") -> None:
        super().__init__(path, shape, origin=origin)
        self._file = contiguous(path, "reconstruction", shape, {"recurra": origin} if origin else {})

    def _write(self, image: NDArray[Any]) -> None:
        self._file.write(np.abs(image).astype("<f4").tobytes())


class NIfTIWriter(VolumeWriter):
    """One NIfTI file (.nii, .nii.gz): float32 magnitude, or phase in radians; by nibabel of the extra `nifti`.

    Axes are (row, column, slice), placed in space by the affine. Slices are kept on disk, not in memory.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        *,
        affine: Float64[NDArray[np.float64], "4 4"],
        part: Literal["magnitude", "phase"] = "magnitude",
        compress: bool = False,
        origin: str = "",
    ) -> None:
        super().__init__(path, shape, origin=origin)
        nibabel = extra("nibabel", "writing NIfTI", "recurra-mri[nifti]")
        header = nibabel.Nifti1Header()
        header.set_data_dtype(np.float32)
        header.set_data_shape((shape[1], shape[2], shape[0]))
        header.set_sform(affine, code=1)
        header.set_qform(affine, code=1, strip_shears=True)
        header.set_xyzt_units("mm")
        header["descrip"] = origin.encode()
        header["vox_offset"] = 352
        header["magic"] = b"n+1"
        self._phase = part == "phase"
        # Level 1: noise does not compress any better at 9, which takes ten times as long.
        self._file = gzip.GzipFile(path, "wb", compresslevel=1) if compress else path.open("wb")
        self._file.write(header.binaryblock)
        self._file.write(bytes(352 - len(header.binaryblock)))

    def _write(self, image: NDArray[Any]) -> None:
        values = np.angle(image) if self._phase else np.abs(image)
        # NIfTI's first axis runs fastest.
        self._file.write(np.asfortranarray(values, np.dtype("<f4")).tobytes(order="F"))


# What the standard wants to be there, and nobody is to be named in.
_NAMELESS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "Manufacturer"),
)


class DICOMWriter(VolumeWriter):
    """A folder of single-slice DICOM files, uint16 with RescaleSlope; by pydicom of the extra `dicom`.

    They name no patient and no institution: they are derived images that hold what the raw file's geometry says.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        *,
        affine: Float64[NDArray[np.float64], "4 4"],
        name: str = "reconstruction",
        origin: str = "",
    ) -> None:
        super().__init__(path, shape, origin=origin)
        extra("pydicom", "writing DICOM", "recurra-mri[dicom]")
        self._affine, self._name = affine, name
        self._seed = b""
        path.mkdir()

    def skip(self) -> None:
        """Leaves a slice out: it has no file."""
        self.written += 1

    def _uid(self, what: str) -> Any:
        """An identifier that is the same for the same images of the same input, and another for all others."""
        from pydicom.uid import generate_uid

        return generate_uid(entropy_srcs=[what, self._name, self.origin, str(self._affine.tolist()), self._seed.hex()])

    def _write(self, image: NDArray[Any]) -> None:
        from pydicom.dataset import FileDataset, FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

        magnitude = np.abs(image).astype(np.float64)
        self._seed = self._seed or hashlib.sha256(magnitude.tobytes()).digest()
        slope = float(magnitude.max()) / 65535 or 1.0
        pixels = np.round(magnitude / slope).astype("<u2")
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = self._uid(f"slice {self.written}")
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = self.path / f"slice_{self.written + 1:04d}.dcm"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
        values: dict[str, Any] = {
            "SOPClassUID": MRImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "StudyInstanceUID": self._uid("study"),
            "SeriesInstanceUID": self._uid("series"),
            "FrameOfReferenceUID": self._uid("frame"),
            "Modality": "MR",
            "ImageType": ["DERIVED", "PRIMARY", "M"],
            **dict.fromkeys(_NAMELESS, ""),
            "SeriesNumber": 1,
            "SeriesDescription": self._name[:64],
            "DerivationDescription": self.origin,
            "ImagesInAcquisition": self.shape[0],
            "ScanningSequence": "RM",
            "SequenceVariant": "NONE",
            "ScanOptions": "",
            "MRAcquisitionType": "2D",
            "EchoTime": None,
            "EchoTrainLength": None,
            "InstanceNumber": self.written + 1,
            "Rows": self.shape[1],
            "Columns": self.shape[2],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 0,
            "RescaleIntercept": "0",
            "RescaleSlope": f"{slope:.10g}",
            "RescaleType": "US",
            "PixelData": pixels.tobytes(),
        }
        for key, value in (values | dicom_geometry(self._affine, self.written)).items():
            setattr(data, key, value)
        data.save_as(path, enforce_file_format=True)


def dicom_geometry(affine: Float64[NDArray[np.float64], "4 4"], index: int) -> dict[str, Any]:
    """The attributes that place a slice in space, in DICOM's left-posterior-superior frame."""
    to_lps = np.array([-1.0, -1.0, 1.0])
    rows, columns, slices = (affine[:3, axis] * to_lps for axis in range(3))
    spacing = [float(np.linalg.norm(axis)) for axis in (rows, columns, slices)]
    corner = affine @ np.array([0.0, 0.0, float(index), 1.0])
    position = corner[:3] * to_lps
    # The first direction is the one in which the column index grows.
    directions = np.concatenate((columns / spacing[1], rows / spacing[0]))
    return {
        "ImagePositionPatient": [f"{value:.8g}" for value in position],
        "ImageOrientationPatient": [f"{value:.8g}" for value in directions],
        "PixelSpacing": [f"{spacing[0]:.8g}", f"{spacing[1]:.8g}"],
        "SliceThickness": f"{spacing[2]:.8g}",
        "SpacingBetweenSlices": f"{spacing[2]:.8g}",
    }


def volume_writer(
    path: str | Path,
    shape: tuple[int, int, int],
    *,
    format: OutputFormat = "fastmri",
    affine: Float64[NDArray[np.float64], "4 4"] | None = None,
    part: Literal["magnitude", "phase"] = "magnitude",
    origin: str = "",
) -> AbstractContextManager[VolumeWriter]:
    """A writer for a volume; the file is there once the block ends without an error, and not before.

    Args:
        path: the file, for DICOM the folder.
        shape: (slice, row, column).
        format: of the file.
        affine: from (row, column, slice) to millimetres; by default voxels of 1 mm.
        part: what NIfTI holds of a complex image.
        origin: what the volume was made from, kept within the file: at most 80 characters.

    Raises:
        ValueError: slices are missing or do not fit.
        UserError: the format's package is not installed.
        OSError: the disk is full, or the place may not be written to.
    """
    place, path = np.eye(4) if affine is None else affine, Path(path)

    def make(temporary: Path) -> VolumeWriter:
        if format == "nifti":
            gz = path.suffix == ".gz"
            return NIfTIWriter(temporary, shape, affine=place, part=part, compress=gz, origin=origin)
        if format == "dicom":
            return DICOMWriter(temporary, shape, affine=place, name=path.name, origin=origin)
        return FastMRIWriter(temporary, shape, origin=origin)

    return finished(path, make)


def origin_of(path: Path) -> tuple[str | None, int]:
    """What a volume was made from and its number of slices; "" for somebody else's, None for ours if it is damaged."""
    try:
        text, slices, whole = (_of_dicom if path.is_dir() else _of_nifti if path.suffix == ".nii" else _of_hdf5)(path)
    except Exception:  # whatever a damaged file does to a reader
        with suppress(OSError), path.open("rb") as stream:
            return (None if re.search(rb"recurra [0-9a-f]{24}", stream.read(2**16)) else ""), 0
        return "", 0
    return (text if whole or not text.startswith("recurra ") else None), slices


def _of_dicom(path: Path) -> tuple[str, int, bool]:
    from pydicom import dcmread

    slices = sorted(path.glob("*.dcm"))
    first = dcmread(slices[0], stop_before_pixels=True)
    whole = len(slices) == int(first.get("ImagesInAcquisition", 0))
    return str(first.get("DerivationDescription", "")), len(slices), whole


def _of_nifti(path: Path) -> tuple[str, int, bool]:
    from nibabel.nifti1 import Nifti1Header

    with path.open("rb") as stream:
        header: Any = Nifti1Header.from_fileobj(stream)  # type: ignore[no-untyped-call]
    shape = header.get_data_shape()
    whole = path.stat().st_size == 352 + 4 * math.prod(shape)
    if whole:  # a slice that was left out is NaN
        values = np.memmap(path, "<f4", "r", 352).reshape(shape, order="F")
        whole = bool(np.isfinite(values[0, 0]).all())
    return bytes(header["descrip"].item()).decode(), shape[-1], whole


def _of_hdf5(path: Path) -> tuple[str, int, bool]:
    with h5py.File(path, "r", locking=False) as file:
        slices = len(file["reconstruction"]) if "reconstruction" in file else 0
        whole = slices > 0 and bool(np.isfinite(file["reconstruction"][:, 0, 0]).all())  # NaN: a slice left out
        return str(file.attrs.get("recurra", "")), slices, whole
