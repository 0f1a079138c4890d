"""What the standard of DICOM wants of an image beside its pixels; nothing here needs pydicom but the identifiers."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from recurra.core.errors import nearest

# What the standard wants to be there, and nobody is to be named in.
NAMELESS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "Manufacturer"),
)

# What may be told of the scan: DICOM's keywords and units (ms, degrees, tesla, MHz); none of it names anybody.
_NUMBERS = ("EchoTime", "FlipAngle", "ImagingFrequency", "InversionTime", "MagneticFieldStrength", "RepetitionTime")
_COUNTS = (
    "AcquisitionNumber",
    "EchoNumbers",
    "NumberOfTemporalPositions",
    "SeriesNumber",
    "TemporalPositionIdentifier",
)
_FACTS = (*_NUMBERS, *_COUNTS, "SeriesDescription")

LEVELS = 2**16
"""Values that a pixel of 16 bit can have."""


def uid(*entropy: str) -> str:
    """An identifier that follows from these texts alone."""
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=list(entropy)))


def window_levels(slices: Iterable[NDArray[np.uint16]]) -> tuple[int, int]:
    """The levels that 0.5 % and 99.5 % of all pixels do not exceed; the whole range where these are one."""
    counts = sum((np.bincount(pixels.ravel(), minlength=LEVELS) for pixels in slices), np.zeros(LEVELS, np.int64))
    if not counts.any():
        return 0, 1
    share = counts.cumsum() / counts.sum()
    low, high = int(np.searchsorted(share, 0.005)), int(np.searchsorted(share, 0.995))
    if low == high:
        low, high = (int(level) for level in np.flatnonzero(counts)[[0, -1]])
    return low, max(high, low + 1)


def dicom_facts(facts: Mapping[str, object]) -> dict[str, Any]:
    """What is known of the scan, as DICOM wants it."""
    result: dict[str, Any] = {}
    for name, value in facts.items():
        if name not in _FACTS:
            raise ValueError(f"no fact of a DICOM image is called {name!r}{nearest(name, _FACTS)}")
        if value is None:
            continue
        if name == "SeriesDescription":
            result[name] = dicom_text(str(value))
            continue
        number = float(str(value))
        if not math.isfinite(number) or number < 0 or (name in _COUNTS and not number.is_integer()):
            raise ValueError(f"{name} must be a {'whole ' if name in _COUNTS else ''}number from 0 on; got {value!r}")
        result[name] = str(int(number)) if name in _COUNTS else f"{number:.10g}"
    return result


def dicom_text(text: str) -> str:
    """A text of at most 64 characters; the backslash separates values in DICOM."""
    return "".join("_" if one == "\\" or not one.isprintable() else one for one in text)[:64]


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
