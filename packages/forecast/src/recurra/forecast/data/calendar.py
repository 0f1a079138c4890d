"""The time axis: how far apart steps are, which stamps come next, what of the calendar a model is told."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recurra.core.errors import UserError, nearest

_NEW = {
    "H": "h",
    "T": "min",
    "S": "s",
    "L": "ms",
    "U": "us",
    "N": "ns",
    "M": "ME",
    "Q": "QE",
    "Y": "YE",
    "A": "YE",
    "BM": "BME",
    "BQ": "BQE",
    "BA": "BYE",
    "BY": "BYE",
    "AS": "YS",
    "BAS": "BYS",
    "SM": "SME",
    "t": "min",
    "d": "D",
    "w": "W",
    "b": "B",
    "q": "QE",
    "y": "YE",
    "a": "YE",
}
"""Present alias of one that pandas had, or that other programs have."""
_WORDS = {"secondly": "s", "minutely": "min", "hourly": "h", "daily": "D", "weekly": "W", "monthly": "MS"}
_WORDS |= {"quarterly": "QS", "yearly": "YS", "annual": "YS", "business": "B"}
_KNOWN = ("s", "min", "h", "D", "B", "W", "MS", "ME", "QS", "QE", "YS", "YE", "SMS", "SME", "BMS", "BME")
_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
_DAY = 24 * _UNITS["h"]
_SEASONS = {"D": 7, "B": 5, "W": 52, "SMS": 24, "SME": 24, "MS": 12, "ME": 12, "BMS": 12, "BME": 12}
_SEASONS |= {"QS": 4, "QE": 4, "BQS": 4, "BQE": 4}
_ON_DAY = re.compile(r"(\d*)MS-(\d+)")
"""Months of one day, which pandas has no alias for."""

_FEATURES: dict[str, Callable[[pd.DatetimeIndex], Any]] = {
    "second": lambda at: at.second / 59,
    "minute": lambda at: at.minute / 59,
    "hour": lambda at: at.hour / 23,
    "weekday": lambda at: at.day_of_week / 6,
    "day": lambda at: (at.day - 1) / 30,
    "day of year": lambda at: (at.day_of_year - 1) / 365,
    "month": lambda at: (at.month - 1) / 11,
    "week": lambda at: (at.isocalendar().week.to_numpy(np.float64) - 1) / 52,
}
_DAILY = ("weekday", "day", "day of year")


@dataclass(frozen=True)
class Frequency:
    """Steps of a regular time axis.

    Attributes:
        alias: pandas' present alias, e.g. "h", "15min", "D", "B", "W-SAT", "ME", "QS-OCT"; "MS-15" for months of the
            15th; "1", "2", ... for whole numbers.
        evidence: how it is known.
    """

    alias: str
    evidence: str = field(default="", compare=False)

    @classmethod
    def of(cls, alias: str | int) -> "Frequency":
        """Of a name as people write it: old aliases (H, T, M, A-DEC, BM) stand for the present ones.

        Raises:
            UserError: pandas knows no such frequency; its line names the nearest.
        """
        text = str(alias).strip()
        if text.isdecimal() and int(text) > 0:
            return cls(str(int(text)), "given")
        months = _ON_DAY.fullmatch(text)
        if months and 1 < int(months[2]) < 31 and months[1] != "0":
            return cls(text, "given")
        if text == "m":
            raise UserError("freq: m may be months (MS or ME) or minutes (min); give one of these")
        return cls(_present(text), "given")

    @property
    def number(self) -> int:
        """Step between whole numbers; 0 if the stamps are dates."""
        return int(self.alias) if self.alias.isdecimal() else 0

    @property
    def nanoseconds(self) -> int:
        """Length of a step that is the same on any clock; 0 of days and longer, which the calendar rules."""
        found = re.fullmatch(r"(\d*)(ns|us|ms|s|min|h)", self.alias)
        return int(found[1] or 1) * _UNITS[found[2]] if found else 0

    def after(self, last: object, count: int) -> pd.Index:
        """The stamps that follow one, in its zone: instants decide, month ends stay month ends.

        Args:
            last: a stamp, or a whole number.
            count: how many.
        """
        if self.number:
            return pd.Index(int(last) + self.number * np.arange(1, count + 1))  # type: ignore[call-overload]
        start = _stamp(last)
        grid = self._grid(start, None, count + 1)
        return grid[grid > start][:count]

    def between(self, first: object, last: object) -> pd.Index:
        """All stamps from one to another, both included if they are stamps of this frequency."""
        if self.number:
            return pd.Index(np.arange(int(first), int(last) + 1, self.number))  # type: ignore[call-overload]
        return self._grid(_stamp(first), _stamp(last), None)

    def steps(self, stamps: pd.Index, first: Any = None) -> NDArray[np.int64]:
        """How many steps each stamp lies after the first; -1 where it lies on none.

        Args:
            stamps: sorted.
            first: stamp that counts as 0; by default that of `stamps`.
        """
        if not len(stamps):
            return np.zeros(0, np.int64)
        first = stamps[0] if first is None else first
        step = self.number or self.nanoseconds
        if not step:
            return np.asarray(self.between(first, stamps[-1]).get_indexer(stamps), np.int64)
        if self.number:
            away = stamps.to_numpy(np.int64) - int(first)
        else:
            at = pd.DatetimeIndex(stamps)
            away = at.asi8 - _stamp(first).as_unit(at.unit).value if at.unit == "ns" else at.asi8 - _count(first, at)
            step, rest = divmod(step, _UNITS[at.unit])
            if rest:
                return self.steps(at.as_unit("ns"), first)
        found, rest = np.divmod(away, step)
        places: NDArray[np.int64] = np.where(rest == 0, found, -1)
        return places

    def _grid(self, first: pd.Timestamp, last: pd.Timestamp | None, count: int | None) -> pd.DatetimeIndex:
        zone, unit = first.tz, first.unit if self.nanoseconds % 1000 == 0 else "ns"
        clock = "UTC" if self.nanoseconds and zone is not None else None
        start = first.tz_convert(clock) if clock else first.tz_localize(None)
        stop = last if last is None else last.tz_convert(clock) if clock else last.tz_localize(None)
        months = _ON_DAY.fullmatch(self.alias)
        if months:
            grid = _months(start, stop, count, int(months[1] or 1), int(months[2]))
        else:
            grid = pd.date_range(start, stop, periods=count, freq=_offset(self.alias))
        grid = pd.DatetimeIndex(grid).as_unit(unit)
        if zone is None:
            return grid
        if clock:
            return grid.tz_convert(zone)
        # A day whose midnight the change of clocks skips begins where the clock goes on; of two, the first counts.
        return grid.tz_localize(zone, ambiguous=np.ones(len(grid), np.bool_), nonexistent="shift_forward")

    @property
    def season(self) -> int:
        """Steps of the season that one expects first: 24 hours, 7 or 5 days, 52 weeks, 12 months, 4 quarters.

        Of less than an hour a day's, of less than a minute an hour's, as long as the step divides it; else 1.
        """
        length = self.nanoseconds
        if length:
            whole = 3600 * _UNITS["s"] if length < _UNITS["min"] else _DAY if length < _DAY else 7 * _DAY
            return whole // length if whole % length == 0 else 1
        found = re.match(r"(\d*)([A-Z]+)", self.alias)
        if found is None:
            return 1
        whole, step = _SEASONS.get(found[2], 1), int(found[1] or 1)
        if found[2] == "D" and step % 7 == 0:
            whole, step = 52, step // 7
        return whole // step if whole % step == 0 else 1

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the calendar features, in their order: what repeats within a step is left out."""
        length = self.nanoseconds
        if length:
            hour = ("minute", "hour", *_DAILY) if length % _UNITS["h"] else ("hour", *_DAILY)
            return ("second", *hour) if length % _UNITS["min"] else hour
        letters = self.alias.lstrip("0123456789").partition("-")[0]
        if letters in ("D", "B", "C"):
            return _DAILY
        if letters == "W":
            return ("day", "week")
        if letters in ("SMS", "SME"):
            return ("day", "month")
        return ("month",) if letters in _SEASONS else ()

    def exact_marks(self, stamps: pd.Index) -> NDArray[np.float64]:
        """As `marks`, in double precision."""
        if not self.features:
            return np.zeros((len(stamps), 0))
        at = pd.DatetimeIndex(stamps)
        return np.stack([np.asarray(_FEATURES[name](at), np.float64) - 0.5 for name in self.features], 1)

    def marks(self, stamps: pd.Index) -> NDArray[np.float32]:
        """Calendar features (time, feature), each between -0.5 and 0.5; none for whole numbers and years.

        Those of the Time-Series-Library (`timeF`): of hours the hour, day of the week, of the month and of the year; of
        minutes the minute before them; of days the last three; of weeks day and week; of months and quarters the month.
        They are read off the clock of the stamps' zone.
        """
        return self.exact_marks(stamps).astype(np.float32)


def _stamp(value: object) -> pd.Timestamp:
    stamp: pd.Timestamp = pd.Timestamp(value)
    return stamp.as_unit("us") if stamp.unit in ("s", "ms") else stamp


def _count(stamp: object, like: pd.DatetimeIndex) -> int:
    """A stamp as whole units since 1970."""
    return int(pd.DatetimeIndex([_stamp(stamp)]).as_unit(like.unit).asi8[0])


@lru_cache(maxsize=256)
def _offset(alias: str) -> Any:
    return pd.tseries.frequencies.to_offset(alias)


@lru_cache(maxsize=256)
def _present(text: str) -> str:
    """Pandas' alias for what was written."""
    found = re.fullmatch(r"(\d*)\s*([A-Za-z]+)(-[A-Za-z0-9]+)?", text)
    named = text
    if found:
        letters = _NEW.get(found[2], _WORDS.get(found[2].lower(), found[2]))
        named = f"{found[1]}{letters}{(found[3] or '').upper()}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            offset = _offset(named)
    except (ValueError, TypeError, Warning):
        raise UserError(
            f"freq: no frequency is called {text!r}{nearest(text, _KNOWN)}; --freq takes pandas' names"
        ) from None
    if offset is None or offset.n < 1 or not hasattr(offset, "freqstr"):
        raise UserError(f"freq: a step must be longer than nothing; got {text!r}")
    alias = str(offset.freqstr)
    length = Frequency(alias).nanoseconds
    for unit in ("h", "min", "s", "ms", "us") if length else ():
        if length % _UNITS[unit] == 0:
            count = length // _UNITS[unit]
            return f"{count if count > 1 else ''}{unit}"
    return alias


def _months(start: pd.Timestamp, stop: pd.Timestamp | None, count: int | None, step: int, day: int) -> pd.DatetimeIndex:
    """Every `step` months the same day, or the last of a month that has fewer."""
    zero = start.year * 12 + start.month - 1
    if count is None:
        assert stop is not None
        count = max(0, (stop.year * 12 + stop.month - 1 - zero) // step + 1)
    months = np.datetime64(f"{start.year:04d}-{start.month:02d}", "M") + step * np.arange(count)
    length = ((months + 1).astype("M8[D]") - months.astype("M8[D]")).astype(np.int64)
    days = months.astype("M8[D]") + np.minimum(day, length) - 1
    grid = pd.DatetimeIndex(days.astype("M8[us]")).as_unit(start.unit) + (start - start.normalize())
    return grid if stop is None else grid[grid <= stop]
