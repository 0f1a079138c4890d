"""Stamps of any spelling and type as instants or whole numbers; what has two readings is refused, never guessed."""

import re
from collections.abc import Iterator
from datetime import timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recurra.core.errors import UserError
from recurra.core.inspection import Fact
from recurra.forecast.data.values import MISSING, Where

_NONE = np.iinfo(np.int64).min
_UNITS = {"unix": "s", "s": "s", "ms": "ms", "us": "us", "ns": "ns"}
_TIME = (
    r"(?P<gap>T|\s+)(?P<hour>\d{1,2}):\d{2}(?P<second>:\d{2}(?P<fraction>\.\d+)?)?"
    r"(?:(?P<space>\s*)(?P<half>[AaPp][Mm]))?(?P<zone>\s*(?:Z|UTC|GMT|[+-]\d{2}:?\d{2}))?"
)
_SHAPES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"\d{4}(?P<a>[-/.])\d{1,2}(?P=a)\d{1,2}", ("%Y{a}%m{a}%d",)),
    (r"\d{1,2}(?P<a>[-/.])\d{1,2}(?P=a)\d{4}", ("%m{a}%d{a}%Y", "%d{a}%m{a}%Y")),
    (r"\d{1,2}(?P<a>[-/.])\d{1,2}(?P=a)\d{2}", ("%m{a}%d{a}%y", "%d{a}%m{a}%y", "%y{a}%m{a}%d")),
    (r"\d{4}(?P<a>[-/.])\d{1,2}", ("%Y{a}%m",)),
    (r"\d{1,2}(?P<a>[-/.])\d{4}", ("%m{a}%Y",)),
    (r"(?:19|20)\d{6}", ("%Y%m%d",)),
    (r"\d{4}M\d{1,2}", ("%YM%m",)),
)
_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_QUARTER = re.compile(r"(?P<year>\d{4})[ -]?Q(?P<quarter>[1-4])|Q(?P<quarter2>[1-4])[ -]?(?P<year2>\d{4})", re.I)
_WEEK = re.compile(r"\d{4}(-?)W\d{2}")


def to_stamps(column: "pd.Series[Any]", where: Where, date_format: str | None) -> tuple[pd.Index, list[Fact]]:
    """Whole numbers (int64) or instants (microseconds, or nanoseconds where they have some), and how they were read.

    Args:
        column: text, dates of any unit, periods, python dates, whole numbers.
        where: names a row.
        date_format: of text, in strftime's letters; or "s", "ms", "us", "ns": whole numbers count these since 1970.

    Raises:
        UserError: a cell is missing or no stamp, or has two readings; its line names the row and the remedy.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.dtype.categories.dtype)
    missing = column.isna().to_numpy(np.bool_)
    if missing.any():
        raise UserError(f"{where(int(missing.argmax()))}: column {column.name!r} has no stamp; every row needs one")
    dtype = column.dtype
    if isinstance(dtype, pd.PeriodDtype):
        said = Fact("stamps", f"first moments of the periods ({dtype.freq.freqstr})", "type of the column")
        return _even(pd.DatetimeIndex(column.dt.to_timestamp(how="start"))), [said]
    if pd.api.types.is_datetime64_any_dtype(dtype):
        return _even(pd.DatetimeIndex(column)), []
    if pd.api.types.is_bool_dtype(dtype) or dtype.kind in "mc":
        raise UserError(f"column {column.name!r} holds {dtype}; expected dates or whole numbers")
    if pd.api.types.is_numeric_dtype(dtype):
        return _of_numbers(column, where, date_format)
    if pd.api.types.is_string_dtype(dtype) and not _mixed(column):
        return _of_text(column.astype(str), where, date_format)
    return _of_objects(column, where, date_format)


def _mixed(column: "pd.Series[Any]") -> bool:
    return column.dtype == object and not all(isinstance(cell, str) for cell in column)


def _even(stamps: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """One unit for all: microseconds, unless there are nanoseconds."""
    if stamps.unit == "ns" and (stamps.asi8 % 1000).any():
        return stamps.rename(None)
    return stamps.as_unit("us").rename(None)


def _of_objects(column: "pd.Series[Any]", where: Where, date_format: str | None) -> tuple[pd.Index, list[Fact]]:
    cells = column.astype(object).to_numpy()
    if all(isinstance(cell, bytes) for cell in cells):
        return _of_text(
            pd.Series([cell.decode("utf-8", "replace") for cell in cells], name=column.name), where, date_format
        )
    if all(isinstance(cell, int | float | np.number) and not isinstance(cell, bool) for cell in cells):
        return _of_numbers(pd.Series(cells.astype(np.float64), name=column.name), where, date_format)
    if all(isinstance(cell, pd.Period) for cell in cells):
        return to_stamps(pd.Series(pd.PeriodIndex(cells), name=column.name), where, date_format)
    for row, cell in enumerate(cells):
        if not hasattr(cell, "year"):
            raise UserError(f"{where(row)}: column {column.name!r} holds {str(cell)[:40]!r} among dates, which is none")
    aware = [getattr(cell, "tzinfo", None) is not None for cell in cells]
    if any(aware) and not all(aware):
        raise _half_aware(column.name, where(aware.index(False)), where(aware.index(True)))
    offsets = {cell.utcoffset() for cell in cells} if all(aware) else {None}
    zones = {str(cell.tzinfo) for cell in cells} if all(aware) else {None}
    if len(offsets) > 1 and len(zones) > 1:
        return _even(pd.DatetimeIndex(pd.to_datetime(cells, utc=True))), [_several(len(offsets))]
    return _even(pd.DatetimeIndex(pd.to_datetime(list(cells)))), []


def _several(count: int) -> Fact:
    return Fact("zone", "UTC", f"the stamps have {count} offsets, so instants were taken; --zone NAME sets a zone")


def _half_aware(name: object, bare: str, zoned: str) -> UserError:
    return UserError(f"{bare}: column {name!r} has a stamp without an offset, and {zoned} one with; give all or none")


def _of_numbers(column: "pd.Series[Any]", where: Where, date_format: str | None) -> tuple[pd.Index, list[Fact]]:
    values = column.to_numpy()
    if values.dtype.kind == "O" or not isinstance(column.dtype, np.dtype):
        values = column.to_numpy(np.float64 if column.dtype.kind == "f" else np.int64)
    if values.dtype.kind == "f":
        odd = ~(np.mod(values, 1) == 0)
        if odd.any():
            row = int(odd.argmax())
            raise UserError(
                f"{where(row)}: column {column.name!r} holds the time {values[row]:g}; expected dates or whole numbers"
            )
    numbers = values.astype(np.int64)
    if date_format in _UNITS:
        stamps = pd.to_datetime(numbers, unit=_UNITS[date_format])
        return _even(pd.DatetimeIndex(stamps)), [Fact("stamps", f"{_UNITS[date_format]} since 1970", "--date-format")]
    for digits, letters, what in ((8, "%Y%m%d", "year, month and day"), (6, "%Y%m", "year and month")):
        low, high = 1800 * 10 ** (digits - 4), 2200 * 10 ** (digits - 4)
        if date_format == letters or (not date_format and ((numbers > low) & (numbers < high)).all()):
            dates = pd.to_datetime(pd.Series(numbers).astype(str), format=letters, errors="coerce")
            if dates.notna().all():
                said = Fact("stamps", f"{what} in {digits} digits", f"all {len(numbers)} numbers are such dates")
                return _even(pd.DatetimeIndex(dates)), [said]
    if date_format:
        return _of_text(pd.Series(numbers, name=column.name).astype(str), where, date_format)
    return pd.Index(numbers), [_numbers_fact(numbers)]


def _numbers_fact(numbers: NDArray[np.int64]) -> Fact:
    if len(numbers) and numbers.min() >= 1500 and numbers.max() <= 2200:
        return Fact("stamps", "years", "whole numbers between 1500 and 2200")
    seconds = len(numbers) and numbers.min() >= 10**8 and numbers.max() < 10**10
    return Fact("stamps", "whole numbers", "seconds since 1970? Then pass --date-format s" if seconds else "all cells")


def _of_text(column: "pd.Series[Any]", where: Where, date_format: str | None) -> tuple[pd.Index, list[Fact]]:
    others = -1
    for start, words in _blocks(column):
        blank = words.isin(MISSING).to_numpy(np.bool_)
        if blank.any():
            row = where(start + int(blank.argmax()))
            raise UserError(f"{row}: column {column.name!r} has no stamp; every row needs one")
        whole = words.str.fullmatch(r"[+-]?\d{1,18}(?:\.0*)?").to_numpy(np.bool_)
        others = start + int(whole.argmin()) if others < 0 and not whole.all() else others
    if others < 0 and (date_format is None or date_format in _UNITS or re.fullmatch(r"(?:%[Ymd])+", date_format)):
        numbers = column.str.strip().str.partition(".")[0].astype(np.int64)
        return _of_numbers(numbers.rename(column.name), where, date_format)
    if date_format in _UNITS:
        raise UserError(f"column {column.name!r} holds text; --date-format {date_format} is for whole numbers")
    if others > 0 and not date_format and not any(formats(str(column.iloc[0]).strip())):
        shown = str(column.iloc[others])[:40]
        raise UserError(f"{where(others)}: column {column.name!r} holds {shown!r} among whole numbers, which is none")
    return _Texts(column, where).read(date_format)


def _blocks(column: "pd.Series[Any]", size: int = 1 << 16) -> Iterator[tuple[int, "pd.Series[Any]"]]:
    """Pieces of a column of text without blanks around, and where each begins: its memory is soon given back."""
    for start in range(0, len(column), size):
        yield start, column.iloc[start : start + size].str.strip()


class _Texts:
    """Different spellings of one column, read until none is left.

    Args:
        words: the column.
        where: names a row.
    """

    def __init__(self, words: "pd.Series[Any]", where: Where) -> None:
        self.words, self.where = words, where
        self.instants = np.full(len(words), _NONE)
        self.unit = "us"
        self.aware: dict[bool, int] = {}
        self.facts: list[Fact] = []

    def read(self, date_format: str | None) -> tuple[pd.DatetimeIndex, list[Fact]]:
        left = np.arange(len(self.words))
        used: list[str] = []
        while len(left):
            if date_format and used:
                raise self._no_stamp(int(left[0]), f"which has not the form {date_format} of --date-format")
            options = [date_format] if date_format else list(formats(self._word(int(left[0]))))
            read = {form: self._try(form, left) for form in options}
            chosen = self._choose({form: found for form, found in read.items() if (found != _NONE).any()}, left)
            there = read[chosen] != _NONE
            self.aware.setdefault("%z" in chosen or "UTC" in chosen, int(left[there.argmax()]))
            self.instants[left[there]] = read[chosen][there]
            used.append(f"{chosen} ({int(there.sum())} rows)")
            left = left[~there]
        if len(self.aware) == 2:
            raise _half_aware(self.words.name, self.where(self.aware[False]), self.where(self.aware[True]))
        if used and not date_format:
            self.facts.append(Fact("dates", ", ".join(used), "their spelling"))
        stamps = pd.DatetimeIndex(self.instants.view(f"M8[{self.unit}]"))
        return _even(self._in_zone(stamps) if True in self.aware else stamps), self.facts

    def _word(self, row: int) -> str:
        return str(self.words.iloc[row]).strip()

    def _try(self, form: str, left: NDArray[np.int64]) -> NDArray[np.int64]:
        """Instants of the rows that are left, read in one form; _NONE where that fails."""
        words = self.words if len(left) == len(self.words) else self.words.iloc[left]
        made = np.full(len(left), _NONE)
        for start, block in _blocks(words):
            found = pd.DatetimeIndex(_parsed(block, form))
            if found.unit == "ns" and self.unit != "ns" and (found.asi8[found.notna()] % 1000).any():
                self.unit = "ns"
                for known in (made, self.instants):
                    known[known != _NONE] *= 1000
            made[start : start + len(block)] = found.as_unit(self.unit).asi8
        return made

    def _choose(self, read: dict[str, NDArray[np.int64]], left: NDArray[np.int64]) -> str:
        """The reading that all spellings of a kind allow.

        Raises:
            UserError: none, or several that differ.
        """
        if not read:
            raise self._no_stamp(int(left[0]), "which is no date that is known here")
        some = np.logical_or.reduce([found != _NONE for found in read.values()])
        whole = {form: found for form, found in read.items() if (found != _NONE)[some].all()}
        if not whole:
            raise self._two_orders(read, left)
        chosen, *others = whole
        for other in others:
            differ = (whole[chosen] != whole[other]) & some
            if differ.any():
                row = int(left[differ.argmax()])
                raise UserError(
                    f"{self.where(row)}: column {self.words.name!r}: {self._word(row)!r} may be {chosen} or {other}, "
                    f"and no row decides; pass --date-format '{chosen}' or --date-format '{other}'"
                )
        for other in read.keys() - whole.keys():
            row = int(left[((read[other] == _NONE) & some).argmax()])
            evidence = f"{self.where(row)}: {self._word(row)!r} is no {other}"
            self.facts.append(Fact("order of day and month", chosen, evidence))
        return chosen

    def _two_orders(self, read: dict[str, NDArray[np.int64]], left: NDArray[np.int64]) -> UserError:
        said = []
        for form, found in read.items():
            others = [one != _NONE for key, one in read.items() if key != form]
            alone = (found != _NONE) & ~np.logical_or.reduce(others)
            if alone.any():
                row = int(left[alone.argmax()])
                said.append(f"{self.where(row)}: {self._word(row)!r} is {form}")
        both = ", ".join(said[:2])
        return UserError(f"column {self.words.name!r} mixes orders of day and month: {both}; mend the rows")

    def _no_stamp(self, row: int, why: str) -> UserError:
        shown = self._word(row)[:40]
        return UserError(
            f"{self.where(row)}: column {self.words.name!r} holds {shown!r}, {why}; expected a date, or --date-format"
        )

    def _in_zone(self, stamps: pd.DatetimeIndex) -> pd.DatetimeIndex:
        """With the offset that all texts have; UTC if they have several."""
        tails = {tail for _, block in _blocks(self.words) for tail in block.str.slice(-6).unique()}
        found = {re.sub(r".*?(Z|UTC|GMT|[+-]\d{2}:?\d{2})$", r"\1", tail).replace(":", "") for tail in tails}
        stamps = stamps.tz_localize("UTC")
        if found <= {"Z", "UTC", "GMT", "+0000", "-0000"}:
            return stamps
        if len(found) > 1:
            self.facts.append(_several(len(found)))
            return stamps
        (offset,) = found
        minutes = (int(offset[1:3]) * 60 + int(offset[3:5])) * (-1 if offset[0] == "-" else 1)
        return stamps.tz_convert(timezone(timedelta(minutes=minutes)))


def _parsed(words: "pd.Series[Any]", form: str) -> "pd.Series[Any]":
    """Instants of texts of one form; NaT for those that have another."""
    if form == "quarter":
        parts = words.str.extract(_QUARTER)
        year, quarter = parts["year"].fillna(parts["year2"]), parts["quarter"].fillna(parts["quarter2"])
        months = (quarter.astype(float) * 3 - 2).astype("Int64").astype(str).str.zfill(2)
        return pd.to_datetime(year + "-" + months, format="%Y-%m", errors="coerce")
    if form.endswith("W%V%u"):
        words = words + "1"
    if "UTC" in form:
        words, form = words.str.replace(r"\s*(?:UTC|GMT)$", "+0000", regex=True), form.replace("UTC", "%z")
    try:
        return pd.to_datetime(words, format=form, errors="coerce", utc="%z" in form)
    except ValueError as error:
        raise UserError(f"--date-format: {error}") from None


def formats(word: str) -> Iterator[str]:
    """The readings of a stamp as text, in strftime's letters, "quarter" besides; nothing if it is none."""
    time = re.search(f"{_TIME}$", word)
    date = word[: time.start()] if time else word
    after = _clock(time) if time else ""
    if _QUARTER.fullmatch(word):
        yield "quarter"
        return
    week = _WEEK.fullmatch(word)
    if week:
        yield f"%G{week[1]}W%V%u"
        return
    for shape, orders in _SHAPES:
        found = re.fullmatch(shape, date)
        if found:
            yield from (order.format(**found.groupdict()) + after for order in orders)
            return
    named = _named(date)
    if named:
        yield named + after


def _clock(time: "re.Match[str]") -> str:
    hour = "%I" if time["half"] else "%H"
    second = ":%S" if time["second"] else ""
    fraction = ".%f" if time["fraction"] else ""
    zone = time["zone"] or ""
    spaces = zone[: len(zone) - len(zone.lstrip())]
    offset = "" if not zone else "UTC" if zone.strip() in ("UTC", "GMT") else f"{spaces}%z"
    half = f"{time['space']}%p" if time["half"] else ""
    return f"{time['gap']}{hour}:%M{second}{fraction}{half}{offset}"


def _named(date: str) -> str:
    """Of a date that spells its month; empty if it is none."""
    parts = re.split(r"([A-Za-z]+|\d+)", date)
    letters, numbers = "", [part for part in parts if part.isdecimal()]
    if not any(part[:3].lower() in _NAMES for part in parts) or len(numbers) > 2 or not numbers:
        return ""
    years = [part for part in numbers if len(part) == 4] or numbers[-1:]
    for part in parts:
        if part.isdecimal():
            form = ("%Y" if len(part) == 4 else "%y") if part is years[0] else "%d"
        elif part.isalpha():
            known = {"b": _NAMES, "a": _DAYS}
            kind = next((kind for kind, names in known.items() if part[:3].lower() in names), "")
            if not kind:
                return ""
            form = f"%{kind}" if len(part) == 3 else f"%{kind.upper()}"
        else:
            form = part
        letters += form
    return letters
