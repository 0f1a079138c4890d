"""The parts of an ISMRMRD header that a reconstruction needs, and the geometry of its image."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from recurra.core.errors import FileError

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
_NS = {"i": NAMESPACE}

_LENGTH, _DEPTH = 2**24, 50
"""Characters and nesting of a text that may be a header; those of scanners have some 10,000 and 10."""

_LARGEST, _WIDEST = 65535, 1e5
"""Numbers of a matrix or step, which ISMRMRD keeps in 16 bits, and a field of view in mm."""

# Without an orientation the slice is taken as an axial one seen from the feet: rows run to the back, columns to the
# patient's left, slices to the head.
_AXIAL = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Header:
    """What an ISMRMRD header says about the first encoding.

    Attributes:
        encoded: matrix x, y, z as measured (x is the readout).
        recon: matrix x, y, z of the scanner's image.
        encoded_fov: field of view of the measured matrix, mm.
        recon_fov: field of view of the image, mm.
        center: phase encoding step of the centre of k-space, if stated.
        maximum: last phase encoding step, if stated.
        calibration_mode: how calibration lines were measured: embedded, interleaved, separate, external or other.
        trajectory: cartesian, radial, ...
        channels: number of receive coils, if stated.
        sequence: numbers that are stated of the sequence, by DICOM's keywords and in its units; of each echo, where
            there are several.
    """

    encoded: tuple[int, int, int]
    recon: tuple[int, int, int]
    encoded_fov: tuple[float, float, float]
    recon_fov: tuple[float, float, float]
    center: int | None
    maximum: int | None
    calibration_mode: str
    trajectory: str
    channels: int | None = None
    sequence: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def facts(self, echo: int = 0) -> dict[str, object]:
        """What is stated of an echo, counted from 0."""
        return {name: values[min(echo, len(values) - 1)] for name, values in self.sequence.items()}

    @property
    def padding(self) -> tuple[int, int] | None:
        """First measured column and first column after those measured; None when the header has no limits."""
        if self.center is None or self.maximum is None:
            return None
        left = self.encoded[1] // 2 - self.center
        return left, left + self.maximum + 1

    @property
    def voxel(self) -> tuple[float, float, float]:
        """Size along readout, phase encoding and slice, mm; zero where it is unknown."""
        fov = self.encoded_fov
        return fov[0] / self.encoded[0], fov[1] / self.encoded[1], self.recon_fov[2] / self.recon[2]

    @property
    def needed_readout(self) -> int:
        """Readout samples that remain of the encoded matrix within the image's field of view."""
        x = self.encoded[0]
        if self.encoded_fov[0] > 0 and self.recon_fov[0] > 0:
            return max(1, round(x * min(1.0, self.recon_fov[0] / self.encoded_fov[0])))
        return min(x, self.recon[0])


class _Tree(ElementTree.TreeBuilder):
    """Builds the tree of a text that declares no entities and is not nested deeper than a header ever is."""

    depth = 0

    def doctype(self, *_: Any) -> None:
        raise ValueError("has a document type, which an ISMRMRD header never has")

    def start(self, tag: Any, attributes: Any) -> ElementTree.Element:
        self.depth += 1
        if self.depth > _DEPTH:
            raise ValueError(f"is nested more than {_DEPTH} deep")
        return super().start(tag, attributes)

    def end(self, tag: Any) -> ElementTree.Element:
        self.depth -= 1
        return super().end(tag)


def parse_header(text: object, path: Path) -> Header:
    """The header of an ISMRMRD XML text.

    Args:
        text: of the header, as the file has it; an array of one text serves too.
        path: the file, for errors.

    Raises:
        FileError: it is no text, no XML, lacks the matrix sizes, or a number is none that a scan can have.
    """
    if isinstance(text, np.ndarray) and text.size == 1:
        text = text.item()
    if not isinstance(text, str | bytes):
        raise FileError(path, f"the ISMRMRD header is {type(text).__name__}; expected XML text")
    if len(text) > _LENGTH:
        raise FileError(path, f"the ISMRMRD header has {len(text):,} characters; expected at most {_LENGTH:,}")
    try:
        root = ElementTree.fromstring(text, ElementTree.XMLParser(target=_Tree()))
    except ElementTree.ParseError as error:
        raise FileError(path, f"the ISMRMRD header is not well-formed XML: {error}") from None
    except LookupError as error:
        raise FileError(path, f"the ISMRMRD header is in an unknown encoding: {error}") from None
    except ValueError as error:
        raise FileError(path, f"the ISMRMRD header cannot be read: {error}") from None
    encoding = root.find("i:encoding", _NS)
    channels = root.findtext("i:acquisitionSystemInformation/i:receiverChannels", "", _NS).strip()
    if encoding is None:
        raise FileError(path, "the ISMRMRD header has no encoding; expected encodedSpace and reconSpace")
    # Below zero they say as little as where there are none.
    limits = "encodingLimits/kspace_encoding_step_1"
    return Header(
        encoded=_matrix(encoding, "encodedSpace", path),
        recon=_matrix(encoding, "reconSpace", path),
        encoded_fov=_field_of_view(encoding, "encodedSpace", path),
        recon_fov=_field_of_view(encoding, "reconSpace", path),
        center=_whole(encoding, f"{limits}/center", path, -_LARGEST),
        maximum=_whole(encoding, f"{limits}/maximum", path, -_LARGEST),
        calibration_mode=encoding.findtext("i:parallelImaging/i:calibrationMode", "", _NS).strip(),
        trajectory=encoding.findtext("i:trajectory", "cartesian", _NS).strip().lower()[:40],
        channels=int(channels) if re.fullmatch("[1-9][0-9]{0,3}", channels) else None,
        sequence=_sequence(root),
    )


# Where a header states what DICOM has a keyword for, and the factor to its unit.
_SEQUENCE = {
    "RepetitionTime": ("sequenceParameters/TR", 1.0),
    "EchoTime": ("sequenceParameters/TE", 1.0),
    "InversionTime": ("sequenceParameters/TI", 1.0),
    "FlipAngle": ("sequenceParameters/flipAngle_deg", 1.0),
    "MagneticFieldStrength": ("acquisitionSystemInformation/systemFieldStrength_T", 1.0),
    "ImagingFrequency": ("experimentalConditions/H1resonanceFrequency_Hz", 1e-6),
}


def _sequence(root: ElementTree.Element) -> dict[str, tuple[float, ...]]:
    """Numbers stated of the sequence; what is no number above zero says nothing."""
    found: dict[str, tuple[float, ...]] = {}
    for name, (place, factor) in _SEQUENCE.items():
        texts = [one.text or "" for one in root.findall("/".join(f"i:{part}" for part in place.split("/")), _NS)]
        try:
            values = tuple(float(text) * factor for text in texts)
        except ValueError:
            continue
        if values and all(0 < value < math.inf for value in values):
            found[name] = values
    return found


def _text(encoding: ElementTree.Element, place: str) -> str:
    """The text of an element; "" where there is none."""
    return encoding.findtext("/".join(f"i:{part}" for part in place.split("/")), "", _NS).strip()


def _whole(encoding: ElementTree.Element, place: str, path: Path, least: int = 0) -> int | None:
    """A whole number that a scan can have; None where there is none."""
    text = _text(encoding, place)
    if not text:
        return None
    if not re.fullmatch(r"-?\d{1,9}", text, re.ASCII) or not least <= int(text) <= _LARGEST:
        raise FileError(
            path, f"the ISMRMRD header has {place} {text[:40]!r}; expected a whole number from {least} to {_LARGEST}"
        )
    return int(text)


def _matrix(encoding: ElementTree.Element, space: str, path: Path) -> tuple[int, int, int]:
    x, y, z = (_whole(encoding, f"{space}/matrixSize/{axis}", path) for axis in "xyz")
    if x is None or y is None or z is None:
        raise FileError(path, f"the ISMRMRD header lacks {space}/matrixSize x, y and z; got {[x, y, z]}")
    if not x or not y:
        raise FileError(path, f"the ISMRMRD header has {space}/matrixSize {x} x {y}; expected at least 1 x 1")
    return x, y, max(z, 1)


def _field_of_view(encoding: ElementTree.Element, space: str, path: Path) -> tuple[float, float, float]:
    """The field of view in mm; zero where it is unknown."""

    def size(axis: str) -> float:
        text = _text(encoding, f"{space}/fieldOfView_mm/{axis}")
        try:
            value = float(text or "0")
        except ValueError:
            value = math.nan
        if not 0 <= value <= _WIDEST:
            raise FileError(
                path, f"the ISMRMRD header has {space}/fieldOfView_mm/{axis} {text[:40]!r}; expected millimetres"
            )
        return value

    return size("x"), size("y"), size("z")


def write_header(
    encoded: tuple[int, int, int],
    recon: tuple[int, int, int],
    *,
    encoded_fov: tuple[float, float, float],
    recon_fov: tuple[float, float, float],
    limits: tuple[int, int],
    coils: int,
) -> str:
    """An ISMRMRD header in XML.

    Args:
        encoded: matrix as measured.
        recon: matrix of the image.
        encoded_fov: its field of view, mm.
        recon_fov: its field of view, mm.
        limits: centre and maximum of the phase encoding steps.
        coils: number of receive channels.
    """

    def space(name: str, matrix: tuple[int, int, int], fov: tuple[float, float, float]) -> str:
        size = "".join(f"<{axis}>{n}</{axis}>" for axis, n in zip("xyz", matrix, strict=True))
        extent = "".join(f"<{axis}>{mm}</{axis}>" for axis, mm in zip("xyz", fov, strict=True))
        return f"<{name}><matrixSize>{size}</matrixSize><fieldOfView_mm>{extent}</fieldOfView_mm></{name}>"

    steps = f"<minimum>0</minimum><maximum>{limits[1]}</maximum><center>{limits[0]}</center>"
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<ismrmrdHeader xmlns="{NAMESPACE}">'
        f"<acquisitionSystemInformation><receiverChannels>{coils}</receiverChannels></acquisitionSystemInformation>"
        "<experimentalConditions><H1resonanceFrequency_Hz>123200000</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding>{space('encodedSpace', encoded, encoded_fov)}{space('reconSpace', recon, recon_fov)}"
        f"<encodingLimits><kspace_encoding_step_1>{steps}</kspace_encoding_step_1></encodingLimits>"
        "<trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"
    )


def affine(
    matrix: tuple[int, int],
    voxel: tuple[float, float, float],
    *,
    directions: Float64[NDArray[np.float64], "3 3"] | None = None,
    center: Float64[NDArray[np.float64], "3"] | None = None,
) -> Float64[NDArray[np.float64], "4 4"]:
    """From (row, column, slice) to millimetres, right-anterior-superior.

    Args:
        matrix: rows and columns.
        voxel: size along rows, columns and slices, mm; unknown sizes (zero) count as one.
        directions: unit vectors of rows, columns and slices as columns; by default an axial slice.
        center: where the middle (row N//2, column N//2) of the first slice is; by default the origin.
    """
    turn = _AXIAL if directions is None else directions
    result = np.eye(4)
    result[:3, :3] = turn * np.array([size if size > 0 else 1.0 for size in voxel])
    middle = np.array([matrix[0] // 2, matrix[1] // 2, 0.0])
    result[:3, 3] = (np.zeros(3) if center is None else center) - result[:3, :3] @ middle
    return result


def cropped_affine(
    full: Float64[NDArray[np.float64], "4 4"], matrix: tuple[int, int], crop: tuple[int, int]
) -> Float64[NDArray[np.float64], "4 4"]:
    """The affine of the central (rows, columns) of an image of this matrix."""
    result = full.copy()
    start = np.array([(matrix[0] - crop[0]) // 2, (matrix[1] - crop[1]) // 2, 0.0])
    result[:3, 3] += full[:3, :3] @ start
    return result
