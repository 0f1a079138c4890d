"""Which axis of stored k-space is which: told from names, sizes and what else the file states, or refused."""

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

from recurra.core.errors import UserError

NAMES = ("slice", "coil", "height", "width")
FRAME = "frame"
"""Times, echoes or other repetitions: volumes of their own."""


def parse_axes(text: str) -> tuple[str, ...]:
    """The order of axes that a user states, such as "slice,height,width,coil".

    Raises:
        UserError: a name is unknown or there twice, or height or width is missing.
    """
    order = tuple(part.strip() for part in text.split(","))
    if len(set(order)) < len(order) or set(order) - {*NAMES, FRAME} or not {"height", "width"} <= set(order):
        raise UserError(
            f"axes must name each of slice, coil, height, width (and frame) that the k-space has, once and in its "
            f"order, such as slice,height,width,coil; got {text!r}"
        )
    return order


def find_axes(
    path: Path,
    shape: Sequence[int],
    *,
    given: tuple[str, ...] | None = None,
    coils: int | None = None,
    channels: int | None = None,
    matrix: tuple[int, int] | None = None,
    images: tuple[int, ...] | None = None,
) -> tuple[tuple[str, ...], str]:
    """The order of the axes and how it was found.

    Without contradiction it is that of fastMRI's files: slice, coil, height, width. It is contradicted where there
    would be more coils than rows or columns, or by what the file states: then the order that agrees with most of it is
    taken, if there is only one.

    Args:
        path: the file, for errors.
        shape: of the stored k-space.
        given: what the user says.
        coils: number of coils that the user says.
        channels: number of coils that the header states.
        matrix: rows and columns that the header states.
        images: shape of the reference images (slice, row, column).

    Raises:
        ValueError: the order is not to be told.
    """
    seen = " x ".join(map(str, shape))
    if given is not None:
        if len(given) != len(shape):
            raise ValueError(f"{path}: dataset 'kspace' has {len(shape)} axes ({seen}); --axes names {len(given)}")
        return given, "given by --axes"
    if len(shape) == 3 and coils == 1:
        return ("slice", "height", "width"), "the order of fastMRI's single-coil files"
    if len(shape) != 4:
        remedy = ". For single-coil files pass --coils 1" if len(shape) == 3 else ""
        remedy += "; for another order name the axes, such as --axes coil,height,width" if len(shape) in (3, 5) else ""
        raise ValueError(
            f"{path}: dataset 'kspace' has shape {tuple(shape)}; expected (slice, coil, height, width){remedy}"
        )

    def agreement(order: Sequence[str]) -> int:
        """How many of the stated numbers an order agrees with."""
        size = dict(zip(order, shape, strict=True))
        agreed = (channels is not None and size["coil"] == channels) + (coils is not None and size["coil"] == coils)
        agreed += matrix is not None and (size["height"], size["width"]) == matrix
        return agreed + (images is not None and len(images) == 3 and size["slice"] == images[0])

    def possible(order: Sequence[str]) -> bool:
        size = dict(zip(order, shape, strict=True))
        return size["coil"] <= min(size["height"], size["width"])

    usual = agreement(NAMES)
    stated = [order for order in permutations(NAMES) if agreement(order) > usual and possible(order)]
    rows_first = [order for order in stated if order.index("height") < order.index("width")]
    if max(map(agreement, rows_first), default=0) == max(map(agreement, stated), default=0):
        stated = rows_first  # nothing says that columns come first
    if possible(NAMES) and not stated:
        if shape[1] == 1 and shape[0] > 1 and not usual:
            raise ValueError(
                f"{path}: dataset 'kspace' has shape {tuple(shape)}: one coil and {shape[0]} slices, or {shape[0]} "
                "coils and one slice; say which with --coils 1, or --axes coil,slice,height,width"
            )
        return NAMES, "the order of fastMRI's files, which nothing contradicts"
    if not stated:  # sizes alone: the image has the two longest axes, rows before columns
        long = sorted(sorted(range(4), key=lambda axis: -shape[axis])[:2])
        stated = [
            order
            for order in permutations(NAMES)
            if order.index("height") == long[0] and order.index("width") == long[1] and possible(order)
        ]
        others = [shape[axis] for axis in range(4) if axis not in long]
        if 1 in others:  # one slice is usual, one coil is not
            stated = [order for order in stated if shape[order.index("slice")] == 1] or stated
        if tuple(others) == (1, 1):
            stated = stated[:1]
    best = max((agreement(order) for order in stated), default=0)
    stated = [order for order in stated if agreement(order) == best]
    same = {tuple(shape[order.index(name)] for name in NAMES) for order in stated}
    if len(stated) == 1 or (stated and len(same) == 1 and best):
        return tuple(stated[0]), "the sizes of the axes and what the file states"
    raise ValueError(
        f"{path}: dataset 'kspace' has axes of {seen}, which are not slice, coil, height, width; "
        "name their order, such as --axes slice,height,width,coil"
    )
