"""The parts of an ISMRMRD header that a reconstruction needs, and the geometry of its image."""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
_NS = {"i": NAMESPACE}

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
    """

    encoded: tuple[int, int, int]
    recon: tuple[int, int, int]
    encoded_fov: tuple[float, float, float]
    recon_fov: tuple[float, float, float]
    center: int | None
    maximum: int | None
    calibration_mode: str
    trajectory: str

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
            return min(x, round(x * self.recon_fov[0] / self.encoded_fov[0]))
        return min(x, self.recon[0])


def parse_header(text: str | bytes, path: Path) -> Header:
    """The header of an ISMRMRD XML text.

    Raises:
        ValueError: it is no XML, or lacks the matrix sizes.
    """
    try:
        # expat since 2.4 refuses entity bombs; nothing else in the text is ever followed
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: the ISMRMRD header is not well-formed XML: {error}") from None
    encoding = root.find("i:encoding", _NS)
    if encoding is None:
        raise ValueError(f"{path}: the ISMRMRD header has no encoding; expected encodedSpace and reconSpace")
    limits = "i:encodingLimits/i:kspace_encoding_step_1/i:"
    center, maximum = (encoding.findtext(limits + name, None, _NS) for name in ("center", "maximum"))
    return Header(
        encoded=_matrix(encoding, "encodedSpace", path),
        recon=_matrix(encoding, "reconSpace", path),
        encoded_fov=_field_of_view(encoding, "encodedSpace"),
        recon_fov=_field_of_view(encoding, "reconSpace"),
        center=None if center is None else int(center),
        maximum=None if maximum is None else int(maximum),
        calibration_mode=encoding.findtext("i:parallelImaging/i:calibrationMode", "", _NS).strip(),
        trajectory=encoding.findtext("i:trajectory", "cartesian", _NS).strip().lower(),
    )


def _matrix(encoding: ElementTree.Element, space: str, path: Path) -> tuple[int, int, int]:
    texts = [encoding.findtext(f"i:{space}/i:matrixSize/i:{axis}", None, _NS) for axis in "xyz"]
    try:
        x, y, z = (int(text or "") for text in texts)
    except ValueError:
        raise ValueError(f"{path}: the ISMRMRD header lacks {space}/matrixSize x, y and z; got {texts}") from None
    return x, y, max(z, 1)


def _field_of_view(encoding: ElementTree.Element, space: str) -> tuple[float, float, float]:
    x, y, z = (float(encoding.findtext(f"i:{space}/i:fieldOfView_mm/i:{axis}", "0", _NS)) for axis in "xyz")
    return x, y, z


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
