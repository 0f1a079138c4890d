"""Writes reconstructed volumes slice by slice: fastMRI's submission file, NIfTI, DICOM.

Of a complex image its magnitude is written, in the unit of the raw data, or its phase in radians from -π to π, or both
as complex numbers. A result that is not complete never looks complete: files are written as NAME.part and renamed at
the end.
"""

import gzip
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from recurra.core.checks import one_of
from recurra.core.errors import UserError
from recurra.core.files import Writer, extra, finished
from recurra.core.hdf5 import contiguous
from recurra.mri.dicom import LEVELS, NAMELESS, dicom_facts, dicom_geometry, dicom_text, uid, window_levels

OutputFormat = Literal["fastmri", "nifti", "dicom"]
Part = Literal["magnitude", "complex", "phase"]

_DTYPES: dict[Part, str] = {"magnitude": "<f4", "complex": "<c8", "phase": "<f4"}


class VolumeWriter(Writer[NDArray[Any]]):
    """Takes the slices of a volume in order.

    Args:
        path: where they are written for now.
        shape: (slice, row, column).
        part: what is written of the images.
        origin: what the volume was made from, kept within the file.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], *, part: Part = "magnitude", origin: str = "") -> None:
        super().__init__(path, shape[0], what="slices")
        self.shape, self.part, self.origin = shape, part, origin
        self._file: Any = None

    def values(self, image: NDArray[Any]) -> NDArray[Any]:
        """The part of an image that is written, in little-endian single precision."""
        values = np.abs(image) if self.part == "magnitude" else np.angle(image) if self.part == "phase" else image
        return np.asarray(values, np.dtype(_DTYPES[self.part]))

    def check(self, piece: NDArray[Any]) -> None:
        """Refuses a slice (row, column), real or complex, of another size or with values that are no numbers."""
        if piece.shape != self.shape[1:]:
            raise ValueError(f"{self.path}: slice {self.written} has shape {piece.shape}; expected {self.shape[1:]}")
        if not np.isfinite(piece).all():
            raise ValueError(f"{self.path}: slice {self.written} of the reconstruction has NaN or infinite values")
        if self.part != "magnitude" and not np.iscomplexobj(piece):
            raise ValueError(f"{self.path}: slice {self.written} is a magnitude; its {self.part} needs complex images")

    def skip(self) -> None:
        """Leaves a slice out: it is NaN, or no file of a DICOM series."""
        self._write(np.full(self.shape[1:], np.nan, np.complex64))
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
    """The submission format of fastMRI: dataset `reconstruction`, (slice, row, column).

    float32, or complex64 for complex images; the file's attribute `part` says which part of the image it is.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], *, part: Part = "magnitude", origin: str = "") -> None:
        super().__init__(path, shape, part=part, origin=origin)
        attributes = {"part": part, **({"recurra": origin} if origin else {})}
        self._file = contiguous(path, "reconstruction", shape, attributes, _DTYPES[part])

    def _write(self, image: NDArray[Any]) -> None:
        self._file.write(self.values(image).tobytes())


class NIfTIWriter(VolumeWriter):
    """One NIfTI file (.nii, .nii.gz): float32, or complex64 for complex images; by nibabel of the extra `nifti`.

    Axes are (row, column, slice), placed in space by the affine. Slices are kept on disk, not in memory.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        *,
        affine: Float64[NDArray[np.float64], "4 4"],
        part: Part = "magnitude",
        compress: bool = False,
        origin: str = "",
    ) -> None:
        super().__init__(path, shape, part=part, origin=origin)
        nibabel = extra("nibabel", "writing NIfTI", "recurra-mri[nifti]")
        header = nibabel.Nifti1Header()
        header.set_data_dtype(np.dtype(_DTYPES[part]))
        header.set_data_shape((shape[1], shape[2], shape[0]))
        header.set_sform(affine, code=1)
        header.set_qform(affine, code=1, strip_shears=True)
        header.set_xyzt_units("mm")
        header["descrip"] = origin.encode()
        header["vox_offset"] = 352
        header["magic"] = b"n+1"
        # Level 1: noise does not compress any better at 9, which takes ten times as long.
        self._file = gzip.GzipFile(path, "wb", compresslevel=1) if compress else path.open("wb")
        self._file.write(header.binaryblock)
        self._file.write(bytes(352 - len(header.binaryblock)))

    def _write(self, image: NDArray[Any]) -> None:
        # NIfTI's first axis runs fastest.
        self._file.write(np.asfortranarray(self.values(image)).tobytes(order="F"))


class DICOMWriter(VolumeWriter):
    """A folder of single-slice DICOM files, magnitude or phase; by pydicom of the extra `dicom`.

    16 bit, unsigned, with one rescale slope and one window for the whole volume: MR viewers that ignore the slope, as
    many do, would otherwise show slices whose brightness cannot be compared. A magnitude's largest value is 65535, its
    window reaches from the 0.5th to the 99.5th percentile; a phase has 65536 steps from -π on, with zero at 32768.
    Rescaled values are in the unit of the raw data, which may be far below one, so the window is one of the kind
    LINEAR_EXACT (DICOM PS3.3, C.11.2.1.3.2), whose width may be any number above zero.

    The files name no patient and no institution: they are derived images that hold what the raw file's geometry says,
    and the `facts`. Until the last slice is known, values are kept on disk.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        *,
        affine: Float64[NDArray[np.float64], "4 4"],
        part: Part = "magnitude",
        name: str = "reconstruction",
        facts: Mapping[str, object] | None = None,
        origin: str = "",
    ) -> None:
        super().__init__(path, shape, part=part, origin=origin)
        extra("pydicom", "writing DICOM", "recurra-mri[dicom]")
        self._affine, self._name = affine, name
        self._facts = dicom_facts(facts or {})
        self._largest, self._digest = 0.0, hashlib.sha256()
        self._left_out: set[int] = set()
        path.mkdir()
        self._file = (path / "values").open("wb")

    def _write(self, image: NDArray[Any]) -> None:
        values = self.values(image)
        self._largest = max(self._largest, float(values.max()))
        self._digest.update(values.tobytes())
        self._file.write(values.tobytes())

    def skip(self) -> None:
        """Leaves a slice out: it has no file."""
        self._left_out.add(self.written)
        self._file.write(bytes(4 * math.prod(self.shape[1:])))
        self.written += 1

    def finish(self) -> None:
        """Writes the slices, now that the range of their values is known."""
        super().finish()
        slope, intercept = self._largest / (LEVELS - 1) or 1.0, 0.0
        low, high = -math.pi, math.pi
        if self.part == "phase":
            slope, intercept = 2 * math.pi / LEVELS, -math.pi
        else:
            low, high = (slope * level for level in window_levels(one for _, one in self._pixels(slope, intercept)))
        display = {
            "RescaleIntercept": f"{intercept:.10g}",
            "RescaleSlope": f"{slope:.10g}",
            "RescaleType": "rad" if self.part == "phase" else "US",
            "WindowCenter": f"{(low + high) / 2:.10g}",
            "WindowWidth": f"{high - low:.10g}",
            "VOILUTFunction": "LINEAR_EXACT",
        }
        series = self._series() | display
        for index, pixels in self._pixels(slope, intercept):
            self._save(index, pixels, series)
        (self.path / "values").unlink()

    def _pixels(self, slope: float, intercept: float) -> Iterator[tuple[int, NDArray[np.uint16]]]:
        """Number and stored values of each slice."""
        with (self.path / "values").open("rb") as stream:
            for index in range(self.shape[0]):
                values = np.frombuffer(stream.read(4 * math.prod(self.shape[1:])), "<f4").reshape(self.shape[1:])
                if index in self._left_out:
                    continue
                levels = np.round((values.astype(np.float64) - intercept) / slope)
                # A phase of π is one of -π.
                yield index, (levels % LEVELS).astype("<u2")

    def _series(self) -> dict[str, Any]:
        """The attributes that all slices share."""
        from pydicom.uid import MRImageStorage

        # Volumes made from one raw file are one study, whatever they were made with: the last word of the origin.
        source = self.origin.rpartition(" ")[0] or self._digest.hexdigest()
        what = {"magnitude": ("M", "MAGNITUDE"), "phase": ("P", "PHASE")}[self.part]
        return {
            "SpecificCharacterSet": "ISO_IR 192",
            "SOPClassUID": MRImageStorage,
            "StudyInstanceUID": uid("study", source),
            "SeriesInstanceUID": self._own_uid("series"),
            "FrameOfReferenceUID": uid("frame", source, str(self._affine.tolist())),
            "Modality": "MR",
            "ImageType": ["DERIVED", "PRIMARY", what[0]],
            "ComplexImageComponent": what[1],
            **dict.fromkeys(NAMELESS, ""),
            "SeriesNumber": 2 if self.part == "phase" else 1,
            "SeriesDescription": dicom_text(self._name),
            "DerivationDescription": self.origin,
            "ImagesInAcquisition": self.shape[0],
            "ScanningSequence": "RM",
            "SequenceVariant": "NONE",
            "ScanOptions": "",
            "MRAcquisitionType": "2D",
            "EchoTime": None,
            "EchoTrainLength": None,
            "Rows": self.shape[1],
            "Columns": self.shape[2],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 0,
            **self._facts,
        }

    def _own_uid(self, what: str) -> str:
        """An identifier that is the same for the same images of the same input, and another for all others."""
        about = (self._name, self.origin, self.part, str(self._affine.tolist()), str(sorted(self._facts.items())))
        return uid(what, *about, self._digest.hexdigest())

    def _save(self, index: int, pixels: NDArray[np.uint16], series: Mapping[str, Any]) -> None:
        from pydicom.dataset import FileDataset, FileMetaDataset
        from pydicom.uid import UID, ExplicitVRLittleEndian

        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = series["SOPClassUID"]
        meta.MediaStorageSOPInstanceUID = UID(self._own_uid(f"slice {index}"))
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = self.path / f"slice_{index + 1:04d}.dcm"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
        own = {
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "InstanceNumber": index + 1,
            "SmallestImagePixelValue": int(pixels.min()),
            "LargestImagePixelValue": int(pixels.max()),
            "PixelData": pixels.tobytes(),
        }
        for key, value in {**series, **own, **dicom_geometry(self._affine, index)}.items():
            setattr(data, key, value)
        data.save_as(path, enforce_file_format=True)


def volume_writer(
    path: str | Path,
    shape: tuple[int, int, int],
    *,
    format: OutputFormat = "fastmri",
    affine: Float64[NDArray[np.float64], "4 4"] | None = None,
    part: Part = "magnitude",
    facts: Mapping[str, object] | None = None,
    origin: str = "",
) -> AbstractContextManager[VolumeWriter]:
    """A writer for a volume; the file is there once the block ends without an error, and not before.

    Args:
        path: the file, for DICOM the folder.
        shape: (slice, row, column).
        format: of the file.
        affine: from (row, column, slice) to millimetres; by default voxels of 1 mm.
        part: what is written of the images, which are complex but for the magnitude.
        facts: what is known of the scan, for DICOM: any of AcquisitionNumber, EchoNumbers, EchoTime and RepetitionTime
            and InversionTime (ms), FlipAngle (degrees), ImagingFrequency (MHz), MagneticFieldStrength (T),
            NumberOfTemporalPositions, SeriesDescription, SeriesNumber, TemporalPositionIdentifier; None is unknown.
        origin: what the volume was made from, kept within the file: at most 80 characters.

    Raises:
        ValueError: slices are missing or do not fit, or are real where complex ones are needed; a fact is none.
        UserError: the format's package is not installed, or the format does not hold complex images.
        OSError: the disk is full, or the place may not be written to.
    """
    one_of("part", part, Part)
    if format == "dicom" and part == "complex":
        raise UserError("DICOM holds no complex images; write their magnitude and their phase, one after the other")
    place, path = np.eye(4) if affine is None else affine, Path(path)

    def make(temporary: Path) -> VolumeWriter:
        if format == "nifti":
            gz = path.suffix == ".gz"
            return NIfTIWriter(temporary, shape, affine=place, part=part, compress=gz, origin=origin)
        if format == "dicom":
            return DICOMWriter(temporary, shape, affine=place, part=part, name=path.name, facts=facts, origin=origin)
        return FastMRIWriter(temporary, shape, part=part, origin=origin)

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
    dtype = header.get_data_dtype()
    whole = path.stat().st_size == 352 + dtype.itemsize * math.prod(shape)
    if whole:  # a slice that was left out is NaN
        values: Any = np.memmap(path, dtype, "r", 352, shape, order="F")
        whole = bool(np.isfinite(values[0, 0]).all())
    return bytes(header["descrip"].item()).decode(), shape[-1], whole


def _of_hdf5(path: Path) -> tuple[str, int, bool]:
    with h5py.File(path, "r", locking=False) as file:
        slices = len(file["reconstruction"]) if "reconstruction" in file else 0
        whole = slices > 0 and bool(np.isfinite(file["reconstruction"][:, 0, 0]).all())  # NaN: a slice left out
        return str(file.attrs.get("recurra", "")), slices, whole
