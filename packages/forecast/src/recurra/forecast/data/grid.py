"""Rows in any order onto the regular grid of each series: sorted, without duplicates, the absent ones between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recurra.core.errors import UserError
from recurra.core.inspection import Fact
from recurra.forecast.data.cadence import infer
from recurra.forecast.data.calendar import Frequency
from recurra.forecast.data.values import Where

Ints = NDArray[np.int64]
_DAY = 86400 * 10**9
_SHORTEST = {"D": 1, "B": 1, "W": 7}
"""Days that a step of the calendar has at least, by the first letter of its name; of others a fortnight."""


@dataclass
class Rows:
    """The rows of a table, sorted by series and time.

    Attributes:
        stamps: of each row.
        series: number of the series of each row, ascending.
        order: number of each row in the input.
        names: ids of the series, by number; None of a table with a column a series.
        where: names a row of the input.
        time: name of the column of stamps.
    """

    stamps: pd.Index
    series: Ints
    order: Ints
    names: Sequence[Any] | None
    where: Where
    time: str

    @property
    def first(self) -> NDArray[np.bool_]:
        """Which rows are the first of a series."""
        first: NDArray[np.bool_] = np.diff(self.series, prepend=-1) != 0
        return first

    def name(self, row: int) -> str:
        """How a message calls the series of a row; empty if there is but one."""
        return "" if self.names is None else f"id {self.names[int(self.series[row])]!r}, "


def sort(stamps: pd.Index, series: Ints, names: Sequence[Any] | None, where: Where, time: str) -> Rows:
    """The rows in the order of series and time."""
    keys = stamps.asi8 if isinstance(stamps, pd.DatetimeIndex) else stamps.to_numpy()
    later = (series[1:] > series[:-1]) | ((series[1:] == series[:-1]) & (keys[1:] > keys[:-1]))
    if later.all():
        return Rows(stamps, series, np.arange(len(series)), names, where, time)
    order = np.lexsort((np.arange(len(series)), keys, series))
    return Rows(stamps.take(order), series[order], order, names, where, time)


def check_duplicates(rows: Rows, shown: Callable[[int], str]) -> None:
    """Refuse two rows of one series and stamp, equal or not.

    Args:
        rows: sorted.
        shown: the values of a row of the input, in words.

    Raises:
        UserError: naming id, stamp, both rows and both values.
    """
    keys = rows.stamps.asi8 if isinstance(rows.stamps, pd.DatetimeIndex) else rows.stamps.to_numpy()
    same = np.flatnonzero((keys[1:] == keys[:-1]) & ~rows.first[1:])
    if not len(same):
        return
    at = int(same[0])
    one, other = int(rows.order[at]), int(rows.order[at + 1])
    more = f", and {len(same) - 1} more" if len(same) > 1 else ""
    stamp = rows.stamps[at]
    bare = isinstance(rows.stamps, pd.DatetimeIndex) and rows.stamps.tz is None
    sunday = bare and stamp.hour < 4 and stamp.day_of_week == 6 and stamp.month in (3, 4, 9, 10, 11)
    clock = "; if the change of clocks repeats it, name the zone with --zone" if sunday else ""
    several = "; of several series? Then name the column of ids with --id"
    clock += several if rows.names is None and len(same) > max(1, 0.1 * len(keys)) else ""
    raise UserError(
        f"{rows.name(at)}{rows.time} {stamp} occurs twice: {rows.where(one)} ({shown(one)}) and "
        f"{rows.where(other)} ({shown(other)}){more}; keep one{clock}"
    )


def frequency_of(rows: Rows, given: str | int | None) -> Frequency:
    """The frequency of the rows, given or found.

    Raises:
        UserError: none is found, or what is given is of another kind than the stamps.
    """
    dates = isinstance(rows.stamps, pd.DatetimeIndex)
    if given is None:
        named = None if rows.names is None else lambda row: rows.name(row).rstrip(", ")
        return infer(rows.stamps, rows.first, named)
    frequency = Frequency.of(given)
    if bool(frequency.number) == dates:
        what = "dates" if dates else "whole numbers"
        raise UserError(f"--freq {given} does not fit: column {rows.time!r} holds {what}")
    return frequency


@dataclass
class Grid:
    """Where rows lie on the full axes of the series.

    Attributes:
        starts: first place of each series, and the number of places at the end.
        places: of each row.
        stamps: of each series.
        facts: about gaps.
    """

    starts: Ints
    places: Ints
    stamps: list[pd.Index]
    facts: list[Fact]

    def spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of the rows (row, column) at their places (place, column); NaN at the others."""
        if len(values) == self.starts[-1]:
            return values
        full = np.full((int(self.starts[-1]), values.shape[1]), np.nan, order="F")
        full[self.places] = values
        return full


def lay(rows: Rows, frequency: Frequency, *, observed: bool) -> Grid:
    """The grid of each series from its first to its last stamp.

    Args:
        rows: sorted, without duplicates.
        frequency: of all series.
        observed: no places for absent stamps.

    Raises:
        UserError: a stamp lies on no step, or the rows would be lost in their gaps.
    """
    begins = np.flatnonzero(rows.first)
    ends = np.append(begins[1:], len(rows.series))
    _check_size(rows, frequency, begins, ends)
    steps, stamps = _steps(rows, frequency, begins, ends)
    off = np.flatnonzero(steps < 0)
    if len(off):
        raise _off(rows, frequency, int(off[0]))
    _check_step(rows, frequency, np.diff(steps)[~rows.first[1:]])
    if observed:
        steps = np.arange(len(steps)) - begins[rows.series]
    lengths = steps[ends - 1] + 1
    starts = np.concatenate([[0], np.cumsum(lengths)])
    facts = _gaps(rows, steps, frequency, observed)
    if observed:
        stamps = [rows.stamps[begin:end] for begin, end in zip(begins, ends, strict=True)]
    return Grid(starts, starts[rows.series] + steps, stamps, facts)


def _check_step(rows: Rows, frequency: Frequency, jumps: Ints) -> None:
    """Refuse a step of which all others are the same multiple: most places would hold nothing."""
    common = int(np.gcd.reduce(jumps)) if len(jumps) > 1 else 1
    if common > 1:
        raise UserError(
            f"--freq {frequency.alias} is too short: all rows lie {common} steps of it apart, or "
            f"multiples{_fitting(rows, frequency)}"
        )


def _fitting(rows: Rows, frequency: Frequency) -> str:
    """What the stamps fit instead, in words."""
    try:
        own = frequency_of(rows, None)
    except UserError:
        return ""
    return f"; the stamps fit {own.alias} ({own.evidence})" if own != frequency else ""


def _check_size(rows: Rows, frequency: Frequency, begins: Ints, ends: Ints) -> None:
    """Refuse a grid that the rows would be lost in, before it is made."""
    if isinstance(rows.stamps, pd.DatetimeIndex):
        keys = rows.stamps.as_unit("us").asi8.astype(np.float64) * 1000
        step = float(frequency.nanoseconds or _SHORTEST.get(frequency.alias.lstrip("0123456789")[:1], 14) * 86400e9)
    else:
        keys, step = rows.stamps.to_numpy(np.float64), float(frequency.number)
    places = int(((keys[ends - 1] - keys[begins]) / step + 1).sum())
    if places > 20 * len(keys) + 1_000_000:
        raise UserError(
            f"at a step of {frequency.alias} the {len(keys)} rows would become {places}, nearly all missing; name a "
            "longer step with --freq"
        )


def _steps(rows: Rows, frequency: Frequency, begins: Ints, ends: Ints) -> tuple[Ints, list[pd.Index]]:
    """How many steps each row lies after the first of its series, and the stamps of each series."""
    if len(begins) == 1:
        stamps = [frequency.between(rows.stamps[0], rows.stamps[-1])]
        return frequency.steps(rows.stamps), stamps
    low, high = rows.stamps[begins].min(), rows.stamps[ends - 1].max()
    if _spans(low, high, frequency) <= 2 * len(rows.stamps) + 10_000:
        grid = frequency.between(low, high)
        places = grid.get_indexer(rows.stamps)
        if (places >= 0).all():
            steps = places - places[begins][rows.series]
            spans = zip(places[begins], places[ends - 1] + 1, strict=True)
            return steps.astype(np.int64), [grid[begin:end] for begin, end in spans]
    steps = np.empty(len(rows.stamps), np.int64)
    stamps = []
    for begin, end in zip(begins, ends, strict=True):
        own = rows.stamps[begin:end]
        steps[begin:end] = frequency.steps(own)
        stamps.append(frequency.between(own[0], own[-1]))
    return steps, stamps


def _spans(low: Any, high: Any, frequency: Frequency) -> float:
    """Steps from one stamp to another, or more."""
    if frequency.number:
        return float(high - low) / frequency.number
    return float((high - low) / pd.Timedelta(frequency.nanoseconds or _DAY, "ns"))


def _off(rows: Rows, frequency: Frequency, row: int) -> UserError:
    begin = int(np.flatnonzero(rows.first[: row + 1])[-1])
    return UserError(
        f"{rows.where(int(rows.order[row]))}: {rows.name(row)}{rows.time} {rows.stamps[row]} lies on no step of "
        f"{frequency.alias} from {rows.stamps[begin]}{_fitting(rows, frequency)}"
    )


def _gaps(rows: Rows, steps: Ints, frequency: Frequency, observed: bool) -> list[Fact]:
    if observed:
        return [Fact("gaps", "not looked for", "--fill observed: rows follow each other as they are")]
    jumps = np.diff(steps)
    gaps = [int(at) for at in np.flatnonzero((jumps > 1) & ~rows.first[1:])]
    if not gaps:
        return [Fact("gaps", "none", f"every step of {frequency.alias} from first to last stamp has its row")]
    absent = int((jumps[gaps] - 1).sum())
    named = []
    for at in gaps[:8]:
        clocks = " (the change of clocks? --zone)" if _skipped_hour(rows.stamps, at, frequency) else ""
        named.append(f"{rows.name(at)}{jumps[at] - 1} after {rows.stamps[at]}{clocks}")
    more = f"; and {len(gaps) - 8} more gaps" if len(gaps) > 8 else ""
    return [Fact("gaps", f"{absent} absent rows in {len(gaps)} gaps", "; ".join(named) + more)]


def _skipped_hour(stamps: pd.Index, at: int, frequency: Frequency) -> bool:
    """Whether clocks that are put forward would leave just this gap, in stamps without a zone."""
    if not isinstance(stamps, pd.DatetimeIndex) or stamps.tz is not None or not frequency.nanoseconds:
        return False
    before, after = stamps[at], stamps[at + 1]
    longer = (after - before) - pd.Timedelta(frequency.nanoseconds, "ns")
    return bool(longer == pd.Timedelta(hours=1) and after.hour <= 3 and before.month in (3, 4, 9, 10))
