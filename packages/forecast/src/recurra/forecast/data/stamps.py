"""Stamps of any spelling and type as instants or whole numbers; what has two readings is refused, never guessed."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recurra.core.errors import UserError
from recurra.core.inspection import Fact
from recurra.forecast.data.values import MISSING, Where

_UNITS = {"unix": "s", "s": "s", "ms": "ms", "us": "us", "ns": "ns"}
_TIME = (
    r"(?P<gap>T|\s+)(?P<hour>\d{1,2}):\d{2}(?P<second>:\d{2}(?P<fraction>\.\d+)?)?"
    r"(?P<space>\s*)(?P<half>[AaPp][Mm])?(?P<zone>\s*(?:Z|UTC|GMT|[+-]\d{2}:?\d{2}))?"
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
    codes, unique = pd.factorize(column)
    words = pd.Series(unique, dtype=str).str.strip()

    def row(word: int) -> str:
        return where(int((codes == word).argmax()))

    blank = words.isin(MISSING).to_numpy(np.bool_)
    if blank.any():
        raise UserError(f"{row(int(blank.argmax()))}: column {column.name!r} has no stamp; every row needs one")
    if words.str.fullmatch(r"[+-]?\d{1,18}(?:\.0*)?").all() and (date_format is None or date_format in _UNITS):
        numbers = words.str.partition(".")[0].astype(np.int64)
        found, facts = _of_numbers(numbers.rename(column.name), lambda word: row(int(word)), date_format)
        return found.take(codes), facts
    if date_format in _UNITS:
        raise UserError(f"column {column.name!r} holds text; --date-format {date_format} is for whole numbers")
    instants, facts = _Texts(words, column.name, row).read(date_format)
    return instants.take(codes), facts


class _Texts:
    """Different spellings of one column, read until none is left.

    Args:
        words: different texts in the order in which they occur.
        name: of the column.
        row: names the first row of a text.
    """

    def __init__(self, words: "pd.Series[Any]", name: object, row: Where) -> None:
        self.words, self.name, self.row = words, name, row
        self.instants = np.full(len(words), np.iinfo(np.int64).min)
        self.aware: dict[bool, int] = {}
        self.facts: list[Fact] = []
        self.unit = "us" if not words.str.contains(r"\.\d{7,}", regex=True).any() else "ns"

    def read(self, date_format: str | None) -> tuple[pd.DatetimeIndex, list[Fact]]:
        left = np.arange(len(self.words))
        used: list[str] = []
        while len(left):
            if date_format and used:
                raise self._no_stamp(int(left[0]), f"does not have the form {date_format} of --date-format")
            options = [date_format] if date_format else list(formats(self.words.iloc[left[0]]))
            read = {form: self._try(form, left) for form in options}
            chosen = self._choose({form: found for form, found in read.items() if found.notna().any()}, left)
            found = read[chosen]
            there = found.notna().to_numpy(np.bool_)
            self.aware.setdefault("%z" in chosen or "UTC" in chosen, int(left[there.argmax()]))
            self.instants[left[there]] = pd.DatetimeIndex(found[there]).as_unit(self.unit).asi8
            used.append(f"{chosen} ({int(there.sum())} different)")
            left = left[~there]
        if len(self.aware) == 2:
            raise _half_aware(self.name, self.row(self.aware[False]), self.row(self.aware[True]))
        if used and not date_format:
            self.facts.append(Fact("dates", ", ".join(used), "their spelling"))
        stamps = pd.DatetimeIndex(self.instants.view(f"M8[{self.unit}]"))
        return _even(self._in_zone(stamps) if self.aware.get(True) is not None else stamps), self.facts

    def _try(self, form: str, left: NDArray[np.int64]) -> "pd.Series[Any]":
        words = self.words.iloc[left]
        if form == "quarter":
            parts = words.str.extract(_QUARTER)
            year, quarter = parts["year"].fillna(parts["year2"]), parts["quarter"].fillna(parts["quarter2"])
            words = year + "-" + (quarter.astype(float) * 3 - 2).astype("Int64").astype(str).str.zfill(2)
            return pd.to_datetime(words, format="%Y-%m", errors="coerce")
        if "%W" in form or "%G" in form:
            words = words + "1"
        zoned = "%z" in form
        if "UTC" in form:
            words, form, zoned = (
                words.str.replace(r"\s*(?:UTC|GMT)$", "+0000", regex=True),
                form.replace("UTC", "%z"),
                True,
            )
        try:
            return pd.to_datetime(words, format=form, errors="coerce", utc=zoned)
        except ValueError as error:
            raise UserError(f"--date-format: {error}") from None

    def _choose(self, read: "dict[str, pd.Series[Any]]", left: NDArray[np.int64]) -> str:
        """The reading that all spellings of a kind allow.

        Raises:
            UserError: none, or several that differ.
        """
        if not read:
            raise self._no_stamp(int(left[0]), "which is no date that is known here")
        some = np.logical_or.reduce([found.notna().to_numpy(np.bool_) for found in read.values()])
        whole = {form: found for form, found in read.items() if found.notna().to_numpy(np.bool_)[some].all()}
        if not whole:
            raise self._two_orders(read, left)
        chosen, *others = whole
        for other in others:
            differ = (whole[chosen] != whole[other]).to_numpy(np.bool_) & some
            if differ.any():
                word = int(left[differ.argmax()])
                raise UserError(
                    f"{self.row(word)}: column {self.name!r}: {self.words.iloc[word]!r} may be {chosen} or {other}, and no "
                    f"row decides; pass --date-format '{chosen}' or --date-format '{other}'"
                )
        for other in read.keys() - whole.keys():
            word = int(left[(read[other].isna().to_numpy(np.bool_) & some).argmax()])
            evidence = f"{self.row(word)}: {self.words.iloc[word]!r} is no {other}"
            self.facts.append(Fact("order of day and month", chosen, evidence))
        return chosen

    def _two_orders(self, read: "dict[str, pd.Series[Any]]", left: NDArray[np.int64]) -> UserError:
        said = []
        for form, found in read.items():
            others = [one.notna().to_numpy(np.bool_) for key, one in read.items() if key != form]
            alone = found.notna().to_numpy(np.bool_) & ~np.logical_or.reduce(others)
            if alone.any():
                word = int(left[alone.argmax()])
                said.append(f"{self.row(word)}: {self.words.iloc[word]!r} is {form}")
        return UserError(f"column {self.name!r} mixes orders of day and month: {', '.join(said[:2])}; mend the rows")

    def _no_stamp(self, word: int, why: str) -> UserError:
        shown = str(self.words.iloc[word])[:40]
        return UserError(
            f"{self.row(word)}: column {self.name!r} holds {shown!r}, {why}; expected a date, or --date-format"
        )

    def _in_zone(self, stamps: pd.DatetimeIndex) -> pd.DatetimeIndex:
        """With the offset that all texts have; UTC if they have several."""
        tails = self.words.str.slice(-6).unique()
        found = {re.sub(r".*?(Z|UTC|GMT|[+-]\d{2}:?\d{2})$", r"\1", tail).replace(":", "") for tail in tails}
        stamps = stamps.tz_localize("UTC")
        if found <= {"Z", "UTC", "GMT", "+0000", "-0000"}:
            return stamps
        if len(found) > 1:
            self.facts.append(_several(len(found)))
            return stamps
        (offset,) = found
        minutes = (int(offset[1:3]) * 60 + int(offset[3:5])) * (-1 if offset[0] == "-" else 1)
        from datetime import timedelta, timezone

        return stamps.tz_convert(timezone(timedelta(minutes=minutes)))


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
