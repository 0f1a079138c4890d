"""Missing values: left missing, or filled by a rule that is named for each column."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from recurra.core.errors import UserError, nearest

Policy = Literal["none", "linear", "zero", "calendar", "previous", "observed"]
Array = NDArray[np.float64]


def policies(fill: str | Mapping[str, str], columns: Iterable[str]) -> dict[str, str]:
    """The policy of each column.

    Args:
        fill: one for all, as "linear", or by column, as "HUFL=linear,OT=zero" or a mapping; columns without one are
            left as they are. "observed" goes for all or none: absent stamps are no steps then.
        columns: their names.

    Raises:
        UserError: there is no such policy or column.
    """
    names = list(columns)
    if isinstance(fill, str) and "=" not in fill:
        return dict.fromkeys(names, _known(fill))
    given = fill
    if isinstance(given, str):
        given = dict(part.strip().rpartition("=")[::2] for part in given.split(","))
    for column in given:
        if column not in names:
            raise UserError(f"fill: {column!r} is no column that is filled{nearest(column, names)}")
        if given[column] == "observed":
            raise UserError("fill: observed is said of a whole table: pass --fill observed")
    return dict.fromkeys(names, "none") | {column: _known(policy) for column, policy in given.items()}


def check(fill: str | Mapping[str, str]) -> None:
    """Refuse what names no policy, before any table is opened.

    Raises:
        UserError: there is none of this name.
    """
    parts = fill.values() if isinstance(fill, Mapping) else (one.rpartition("=")[2] for one in fill.split(","))
    for part in parts:
        _known(part.strip())


def _known(policy: str) -> str:
    if policy not in get_args(Policy):
        raise UserError(f"fill must be one of {', '.join(get_args(Policy))}; got {policy!r}")
    return policy


def fill_all(
    values: Array, starts: NDArray[np.int64], policies: Sequence[str], season: int
) -> NDArray[np.int64] | None:
    """Fill the columns of series that lie one after another, in place.

    Args:
        values: (row, column).
        starts: first row of each series, and the number of rows at the end.
        policies: of each column.
        season: steps.

    Returns:
        (row, column): the later row, counted from the first of its series, that a value was made from, or -1; None if
        there is none.
    """
    needs: NDArray[np.int64] | None = None
    for at, policy in enumerate(policies):
        if policy in ("none", "observed") or not np.isnan(values[:, at]).any():
            continue
        for begin, end in pairwise(starts):
            made, later = filled(values[begin:end, at], policy, season)
            values[begin:end, at] = made
            if later is not None:
                needs = np.full(values.shape, -1, np.int64) if needs is None else needs
                needs[begin:end, at] = later
    return needs


def filled(values: Array, policy: str, season: int) -> tuple[Array, NDArray[np.int64] | None]:
    """One column with its missing values filled, and for each the later row that it was made from, or -1; None if none.

    Args:
        values: (time,); NaN where missing. Is not changed.
        policy: "none", "observed": as it is. "linear": between the known neighbours; ends stay missing. "zero": 0.
            "calendar": the value of a season before. "previous": the last known. The last two know nothing of later.
        season: steps.
    """
    missing = np.isnan(values)
    if policy in ("none", "observed") or not missing.any():
        return values, None
    made = values.copy()
    rows = np.arange(len(values))
    if policy == "zero":
        made[missing] = 0.0
    elif policy == "previous":
        last = np.maximum.accumulate(np.where(missing, -1, rows))
        made[last >= 0] = values[last[last >= 0]]
    elif policy == "calendar":
        for row in np.flatnonzero(missing):
            if row >= season:
                made[row] = made[row - season]
    else:
        known = rows[~missing]
        if len(known):
            inside = missing & (rows > known[0]) & (rows < known[-1])
            made[inside] = np.interp(rows[inside], known, values[known])
            needs = np.full(len(values), -1, np.int64)
            needs[inside] = known[np.searchsorted(known, rows[inside])]
            return made, needs
    return made, None
