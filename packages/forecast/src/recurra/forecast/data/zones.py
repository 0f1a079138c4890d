"""Zones of stamps: instants decide, and the clock that people read is kept."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recurra.core.errors import UserError
from recurra.core.inspection import Fact
from recurra.forecast.data.values import Where


def into_zone(
    stamps: pd.Index, series: NDArray[np.int64], zone: str | None, where: Where, time: str
) -> tuple[pd.Index, list[Fact]]:
    """The stamps in a zone, and what is known about it.

    Args:
        stamps: of all rows, in the order of the input.
        series: number of the series of each.
        zone: name of a zone, e.g. "Europe/Madrid"; stamps without one are read off its clocks.
        where: names a row.
        time: name of the column.

    Raises:
        UserError: there is no such zone; its clocks skip a stamp, or show it twice and the rows do not say which it is.
    """
    if not isinstance(stamps, pd.DatetimeIndex):
        if zone:
            raise UserError(f"--zone {zone} does not fit: column {time!r} holds whole numbers")
        return stamps, []
    if zone is None:
        if stamps.tz is None:
            return stamps, [Fact("zone", "none", "the stamps have none; --zone NAME sets one")]
        return stamps, [Fact("zone", str(stamps.tz), "the stamps")]
    try:
        if stamps.tz is not None:
            return stamps.tz_convert(zone), [Fact("zone", zone, "given; the stamps' instants were kept")]
        pd.DatetimeIndex([]).tz_localize(zone)
    except (KeyError, ValueError, OSError, TypeError):
        raise UserError(f"--zone: no zone is called {zone!r}; expected a name such as Europe/Madrid or UTC") from None
    return _read_off(stamps, series, zone, where, time)


def _read_off(
    clock: pd.DatetimeIndex, series: NDArray[np.int64], zone: str, where: Where, time: str
) -> tuple[pd.DatetimeIndex, list[Fact]]:
    """Instants of what a zone's clocks showed; of an hour shown twice the row that comes first in time is the first."""
    first = np.ones(len(clock), np.bool_)
    if (clock == clock.normalize()).all():
        days = clock.tz_localize(zone, ambiguous=first, nonexistent="shift_forward")
        return days, [
            Fact("zone", zone, "given; the stamps are days, which begin where the clocks of the zone have them")
        ]
    one = clock.tz_localize(zone, ambiguous=first, nonexistent="NaT")
    if one.isna().any():
        row = int(one.isna().argmax())
        raise UserError(
            f"{where(row)}: {time} {clock[row]} never was in {zone}: the clocks skip it; is it another zone?"
        )
    other = clock.tz_localize(zone, ambiguous=np.zeros(len(clock), np.bool_))
    twice = np.flatnonzero(one.asi8 != other.asi8)
    said = Fact("zone", zone, f"given; {len(twice)} stamps lie in hours that its clocks show twice")
    if not len(twice):
        return one, [said]
    seen: dict[tuple[int, int], int] = {}
    for row in twice.tolist():
        key = (int(series[row]), int(clock.asi8[row]))
        if key in seen:
            before = seen.pop(key)
            first[before if _descends(clock, series, before) else row] = False
        else:
            seen[key] = int(row)
    if not _in_order(clock, series):
        raise UserError(
            f"{where(int(twice[0]))}: {time} {clock[twice[0]]} was twice in {zone}, and the rows are not in the order "
            "of time, which alone says which is the first; give stamps with their offset"
        )
    if seen:
        row = next(iter(seen.values()))
        raise UserError(
            f"{where(row)}: {time} {clock[row]} was twice in {zone}, and one row has it: nothing says which it is; "
            "give stamps with their offset"
        )
    return clock.tz_localize(zone, ambiguous=first), [said]


def _descends(clock: pd.DatetimeIndex, series: NDArray[np.int64], row: int) -> bool:
    own = clock.asi8[series == series[row]]
    return bool(own[0] > own[-1])


def _in_order(clock: pd.DatetimeIndex, series: NDArray[np.int64]) -> bool:
    """Whether each series ascends or descends, but for steps back into an hour that is shown twice."""
    hour = int(pd.Timedelta(hours=1) / pd.Timedelta(1, clock.unit))
    for number in np.unique(series):
        steps = np.diff(clock.asi8[series == number])
        if (steps < -hour).any() and (steps > hour).any():
            return False
        if min((steps < 0).sum(), (steps > 0).sum()) > max(1, 0.1 * len(steps)):
            return False
    return True
