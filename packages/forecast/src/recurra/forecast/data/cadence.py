"""The frequency of a table, out of its stamps alone: gaps do not hide it, and what fits none is named."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recurra.core.errors import UserError
from recurra.forecast.data.calendar import Frequency

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_HALF = 0.5
"""Share that the most common step must have: with fewer, stamps are no grid with gaps but events."""
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")


def infer(stamps: pd.Index, first: Bools, name: Callable[[int], str] | None = None) -> Frequency:
    """The frequency of series that lie one after another.

    The most common step decides, and all others must be multiples of it. Months, weeks and business days come before
    days, and the clock of the zone before instants.

    Args:
        stamps: whole numbers or dates, ascending and different within a series.
        first: which are the first of a series.
        name: how messages call the series of a row; by default not at all.

    Raises:
        UserError: there is no step, or the steps fit no frequency; its line names the first that does not fit.
    """
    inside = ~first[1:]
    if not inside.any():
        raise UserError("one row a series decides no frequency; name it with --freq")
    if not isinstance(stamps, pd.DatetimeIndex):
        values = stamps.to_numpy(np.int64)
        step, evidence, odd = _most_common(np.diff(values)[inside])
        if odd is None:
            return Frequency(str(step), f"whole numbers; {evidence}")
        raise _irregular(stamps, inside, odd, evidence, name)
    found = _of_days(_clock(stamps), first, inside)
    if found is not None:
        return found
    instants = stamps.asi8
    step, evidence, odd = _most_common(
        np.diff(instants)[inside], lambda count: _duration(pd.Timedelta(count, stamps.unit))
    )
    length = pd.Timedelta(step, stamps.unit)
    if odd is not None:
        raise _irregular(stamps, inside, odd, evidence, name)
    return Frequency(Frequency.of(f"{length.as_unit('ns').value}ns").alias, evidence)


def infer_one(stamps: pd.Index) -> Frequency:
    """The frequency of one series, sorted and unique; gaps do not hide it, days without weekends are business days.

    Raises:
        UserError: as `infer`.
    """
    first = np.zeros(len(stamps), np.bool_)
    first[:1] = True
    return infer(stamps, first)


def _clock(stamps: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """What the clocks of the zone show; midnight for days that begin later, as the clocks skip it."""
    clock = stamps.tz_localize(None)
    days = clock.normalize()
    if stamps.tz is None or (clock == days).all():
        return clock
    begin = days.tz_localize(stamps.tz, ambiguous=np.ones(len(days), np.bool_), nonexistent="shift_forward")
    return days if (begin == stamps).all() else clock


def _most_common(steps: Ints, say: Callable[[int], str] = str) -> tuple[int, str, int | None]:
    """The step, the evidence for it, and the number of the first step that is no multiple; 0 if it is too rare."""
    sizes, counts = np.unique(steps, return_counts=True)
    step, count = int(sizes[counts.argmax()]), int(counts.max())
    share = "all" if count == len(steps) else f"{count} of"
    evidence = f"step {say(step)} in {share} {len(steps)} steps"
    if count < len(steps):
        evidence += f" ({min(100 * count / len(steps), 99.99):.4g} %)"
    odd = np.flatnonzero(steps % step) if step > 0 else np.zeros(1, np.int64)
    if count < _HALF * len(steps) and not len(odd):
        odd = np.flatnonzero(steps != step)
    if count < len(steps) and not len(odd):
        evidence += ", the others are multiples: gaps"
    return step, evidence, int(odd[0]) if len(odd) else None


def _irregular(
    stamps: pd.Index, inside: Bools, odd: int, evidence: str, name: Callable[[int], str] | None
) -> UserError:
    row = int(np.flatnonzero(inside)[odd])
    whose = f"{name(row)}: " if name else ""
    return UserError(
        f"{whose}the steps of time fit no frequency: from {stamps[row]} to {stamps[row + 1]}, "
        f"but {evidence}; mend the rows, or name the frequency with --freq"
    )


def _duration(length: pd.Timedelta) -> str:
    days = length / pd.Timedelta(days=1)
    return (
        f"{days:.6g} d"
        if days >= 1
        else f"{length / pd.Timedelta(hours=1):.6g} h"
        if days >= 1 / 24
        else (f"{length.total_seconds() / 60:.6g} min" if days >= 1 / 1440 else f"{length.total_seconds():.6g} s")
    )


def _of_days(clock: pd.DatetimeIndex, first: Bools, inside: Bools) -> Frequency | None:
    """A frequency of the calendar, if a series has all its stamps at one time of the day; None if nothing fits."""
    whole = clock.normalize()
    times = (clock - whole).asi8
    if (np.diff(times)[inside] != 0).any():
        return None
    days = whole.as_unit("s").asi8 // 86400
    steps = np.diff(days)[inside]
    if (steps < 1).any():
        return None
    for kind in (_of_months, _of_weeks, _of_business_days):
        found = kind(whole, days, inside)
        if found is not None:
            return found
    step, evidence, odd = _most_common(steps, "{} d".format)
    if odd is not None:
        return None
    return Frequency(f"{step if step > 1 else ''}D", f"one time of day; {evidence}")


def _of_months(whole: pd.DatetimeIndex, days: Ints, inside: Bools) -> Frequency | None:
    months = (whole.year * 12 + whole.month - 1).to_numpy(np.int64)
    steps = np.diff(months)[inside]
    if (steps < 1).any():
        return _of_half_months(whole, months, inside)
    step, evidence, odd = _most_common(steps, "{} months".format)
    if odd is not None:
        return None
    said = evidence
    day = whole.day.to_numpy(np.int64)
    length = whole.days_in_month.to_numpy(np.int64)
    one = len(np.unique(months % step)) == 1
    if (day == 1).all():
        return Frequency(_month_alias(step, "S", int(whole[0].month)) if one else f"{step}MS", f"first days; {said}")
    if (day == length).all():
        return Frequency(_month_alias(step, "E", int(whole[0].month)) if one else f"{step}ME", f"last days; {said}")
    if (day == np.minimum(day.max(), length)).all():
        return Frequency(f"{step if step > 1 else ''}MS-{day.max()}", f"day {day.max()} of the month; {said}")
    for alias, what in (("BMS", "first"), ("BME", "last")):
        if all(map(pd.tseries.frequencies.to_offset(alias).is_on_offset, whole)):
            return Frequency(f"{step if step > 1 else ''}{alias}", f"{what} business days; {said}")
    return None


def _month_alias(step: int, end: str, month: int) -> str:
    """Of first or last days of months that lie `step` apart; years and quarters are anchored where the stamps are."""
    if step % 12 == 0:
        return f"{step // 12 if step > 12 else ''}Y{end}-{_MONTHS[month - 1]}"
    if step % 3 == 0:
        anchor = (month - 1) % 3 + (9 if end == "E" else 0)
        anchor = {0: 9, 1: 10, 2: 11}[(month - 1) % 3] if end == "S" else anchor
        return f"{step // 3 if step > 3 else ''}Q{end}-{_MONTHS[anchor]}"
    return f"{step if step > 1 else ''}M{end}"


def _of_half_months(whole: pd.DatetimeIndex, months: Ints, inside: Bools) -> Frequency | None:
    day, length = whole.day.to_numpy(np.int64), whole.days_in_month.to_numpy(np.int64)
    for alias, second in (("SMS-15", day == 1), ("SME-15", day == length)):
        if (second | (day == 15)).all():
            halves = 2 * months + np.where(day == 15, int(alias == "SMS-15"), int(alias == "SME-15"))
            step, evidence, odd = _most_common(np.diff(halves)[inside])
            if step == 1 and odd is None:
                return Frequency(alias, f"the 15th and the {'first' if alias == 'SMS-15' else 'last'}; {evidence}")
    return None


def _of_weeks(whole: pd.DatetimeIndex, days: Ints, inside: Bools) -> Frequency | None:
    steps = np.diff(days)[inside]
    if (steps % 7).any():
        return None
    step, evidence, odd = _most_common(steps // 7, "{} weeks".format)
    if odd is not None:
        return None
    weekdays = np.unique(whole.day_of_week)
    times = f"{step}" if step > 1 else ""
    alias = f"{times}W-{_WEEKDAYS[int(weekdays[0])]}" if len(weekdays) == 1 else f"{7 * step}D"
    return Frequency(alias, f"one day of the week; {evidence}")


def _of_business_days(whole: pd.DatetimeIndex, days: Ints, inside: Bools) -> Frequency | None:
    weekday = whole.day_of_week.to_numpy(np.int64)
    if (weekday > 4).any():
        return None
    # Days from Monday to Friday, counted through.
    business = (days - weekday + 3) // 7 * 5 + weekday
    weekends = int((np.diff((days - weekday) // 7)[inside] > 0).sum())
    step, evidence, odd = _most_common(np.diff(business)[inside], "{} business days".format)
    if step != 1 or odd is not None or not weekends:
        return None
    return Frequency("B", f"no stamp on a Saturday or Sunday in {weekends} weekends; {evidence}")
