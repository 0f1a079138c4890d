"""Where slices are: their order, direction and distance, from the positions that the scanner wrote down."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

from recurra.mri.data.header import affine, cropped_affine

_SAME = 1e-3
"""Millimetres: positions nearer than this are one."""
_STRAIGHT = 0.02
"""Share of the distance between slices that a slice may lie off its place in an even stack."""

Vectors = Float64[NDArray[np.float64], "slice 3"]


@dataclass(frozen=True)
class Geometry:
    """Geometry of a stack of slices, in the right-anterior-superior frame of NIfTI.

    Attributes:
        matrix: rows and columns of the whole matrix.
        voxel: size along rows, columns and slices, mm; zero where it is unknown.
        directions: unit vectors of rows, columns and slices as the columns of a matrix; None takes an axial slice.
        positions: where the middle (row N//2, column N//2) of each slice is, mm, in the order of the slices.
        evidence: how all this was found.
        uneven: why no one grid holds the slices, or nothing.
    """

    matrix: tuple[int, int]
    voxel: tuple[float, float, float]
    directions: Float64[NDArray[np.float64], "3 3"] | None = None
    positions: Vectors | None = None
    evidence: str = "the file states no orientation: an axial slice is assumed"
    uneven: str = ""

    @cached_property
    def full(self) -> Float64[NDArray[np.float64], "4 4"]:
        """From (row, column, slice) of the whole matrix to millimetres."""
        where = self.positions
        result = affine(self.matrix, self.voxel, directions=self.directions, center=None if where is None else where[0])
        if where is not None and len(where) > 1 and not self.uneven:
            step = (where[-1] - where[0]) / (len(where) - 1)
            if np.linalg.norm(step) > _SAME:
                result[:3, 2] = step  # with its sign, whatever the direction of the slices is called
        return result

    def affine(self, size: tuple[int, int]) -> Float64[NDArray[np.float64], "4 4"]:
        """From (row, column, slice) of the central (rows, columns) to millimetres."""
        return cropped_affine(self.full, self.matrix, size)


def slice_order(
    positions: Vectors, normal: Float64[NDArray[np.float64], "3"]
) -> tuple[Int64[NDArray[np.int64], "slice"], str]:
    """The order in which slices follow one another in space, and how it was found.

    Slices whose numbers run one way along the stack, up or down, stay as they are numbered; others (interleaved ones)
    are put in order along the normal.

    Args:
        positions: of the slices in the order of their numbers, mm.
        normal: direction of the slices.
    """
    along = positions @ normal
    steps = np.diff(along)
    numbered = np.arange(len(positions), dtype=np.int64)
    if len(positions) == 1:
        return numbered, "the position of the slice"
    if bool((np.abs(steps) <= _SAME).all()):
        return numbered, "the numbers of the slices, which all state one position"
    if bool((steps > _SAME).all()) or bool((steps < -_SAME).all()):
        return (
            numbered,
            f"positions of the slices, which run {'along' if steps[0] > 0 else 'against'} the slice direction",
        )
    order = np.argsort(along, kind="stable").astype(np.int64)
    return (
        order,
        "positions of the slices, which were numbered in another order and are sorted along the slice direction",
    )


def unevenness(positions: Vectors, directions: Float64[NDArray[np.float64], "slice 3 3"]) -> str:
    """Why no one grid holds slices at these places, in their order; nothing if one does."""
    if not np.allclose(directions, directions[:1], atol=1e-3):
        return "the slices are not parallel to one another"
    if len(positions) < 2:
        return ""
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    if steps.max() <= _SAME:
        return ""
    if steps.min() <= _SAME:
        return f"two slices lie at one position ({steps.max():.4g} mm apart elsewhere)"
    even = positions[0] + np.arange(len(positions))[:, None] * (positions[-1] - positions[0]) / (len(positions) - 1)
    off = np.linalg.norm(positions - even, axis=1).max()
    if off > max(_STRAIGHT * float(steps.mean()), 10 * _SAME):
        apart = f"between {steps.min():.4g} and {steps.max():.4g} mm apart"
        return f"the slices are not evenly spaced along one line ({apart})"
    return ""
