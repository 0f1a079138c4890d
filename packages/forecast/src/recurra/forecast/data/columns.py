"""Which column is what: by its name, or by what it holds; what may be two is refused with its candidates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from recurra.core.errors import UserError, nearest
from recurra.core.inspection import Fact
from recurra.forecast.data.stamps import formats

IDS: tuple[str, ...] = (
    "unique_id",
    "series_id",
    "item_id",
    "ts_id",
    "id",
    "series",
    "item",
    "symbol",
    "ticker",
    "sensor",
    "station",
)
IDS += ("country", "region", "state", "key", "name", "entity")
TIMES: tuple[str, ...] = (
    "ds",
    "date",
    "datetime",
    "timestamp",
    "time",
    "date_time",
    "dates",
    "times",
    "dt",
    "period",
    "day",
    "week",
)
TIMES += ("month", "quarter", "year", "index")
TARGETS = ("y", "target", "value", "values")
_ECOSYSTEM = ("unique_id", "ds", "y")


@dataclass
class Roles:
    """Columns by what they are.

    Attributes:
        time: of stamps.
        id: of ids; None of a table with a column a series.
        targets: of values.
        past: covariates known up to the origin.
        future: covariates known ahead.
        static: covariates of a series.
        facts: how it is known.
    """

    time: str
    id: str | None = None
    targets: list[str] = field(default_factory=list)
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    facts: list[Fact] = field(default_factory=list)


def is_text(name: str, given: Sequence[str | None]) -> bool:
    """Whether a CSV is to give the column as text: ids keep their zeros, dates are read by their spelling."""
    return name in given or name.strip().casefold() in (*IDS, *TIMES)


def existing(frame: pd.DataFrame, name: str, option: str) -> str:
    """The name of a column that was asked for.

    Raises:
        UserError: there is none.
    """
    if name not in frame.columns:
        raise UserError(f"no column {name!r} ({option}){nearest(name, map(str, frame.columns))}")
    return name


def time_column(frame: pd.DataFrame, given: str | None) -> tuple[str, Fact]:
    """The column of stamps; one that is spread over year and month, or year and quarter, is put together.

    Raises:
        UserError: there is none, or there are several.
    """
    if given is not None:
        return existing(frame, given, "--time"), Fact("time", given, "given")
    named = [name for name in frame.columns if str(name).strip().casefold() in TIMES]
    if "ds" in named:
        return "ds", Fact("time", "ds", "the name")
    joined = _joined(frame, named)
    if joined is not None:
        return "ds", joined
    dates = [name for name in frame.columns if _is_date(frame[name])]
    for candidates, evidence in (
        (named, "the name"),
        ([n for n in named if n in dates], "name and dates"),
        (dates, "dates"),
    ):
        if len(candidates) == 1:
            return candidates[0], Fact("time", str(candidates[0]), evidence)
    if named or dates:
        raise UserError(f"several columns may be the time: {', '.join(named or dates)}; name it with --time")
    raise UserError(f"no column of time among {', '.join(map(str, frame.columns[:12]))}; name it with --time")


def _joined(frame: pd.DataFrame, named: Sequence[str]) -> Fact | None:
    """Stamps out of columns of years and months, or quarters; the frame gets a column of them."""
    by_name = {str(name).strip().casefold(): name for name in named}
    other = next((name for name in ("month", "quarter") if name in by_name), None)
    if other is None or set(by_name) != {"year", other}:
        return None
    parts = [pd.to_numeric(frame[by_name[name]], errors="coerce") for name in ("year", other)]
    most = 12 if other == "month" else 4
    if any(part.isna().any() or (part % 1).any() for part in parts) or not parts[1].between(1, most).all():
        return None
    months = parts[1] if other == "month" else 3 * parts[1] - 2
    numbers = (parts[0].astype("int64") * 100 + months.astype("int64")).astype(str)
    frame.insert(0, "ds", pd.to_datetime(numbers, format="%Y%m").astype("datetime64[us]"))
    del frame[by_name["year"]], frame[by_name[other]]
    return Fact("time", f"ds, out of {by_name['year']} and {by_name[other]}", "names, and all are such numbers")


def _is_date(column: "pd.Series[Any]") -> bool:
    if pd.api.types.is_datetime64_any_dtype(column.dtype) or isinstance(column.dtype, pd.PeriodDtype):
        return True
    if column.dtype.kind in "fiubc" or not len(column):
        return False
    cell = column.iloc[0]
    return hasattr(cell, "year") or (isinstance(cell, str) and not cell.isdecimal() and any(formats(cell.strip())))


def id_column(
    frame: pd.DataFrame, given: str | None, time: str, taken: Sequence[str], repeated: bool
) -> tuple[str | None, Fact]:
    """The column of ids, or None: then every column of numbers is a series.

    Args:
        frame: all rows.
        given: by the user.
        time: column of stamps.
        taken: columns that are something else.
        repeated: stamps occur more than once.

    Raises:
        UserError: there are several.
    """
    if given is not None:
        return existing(frame, given, "--id"), Fact("ids", f"column {given}", "given")
    left = [name for name in frame.columns if name != time and name not in taken]
    named = [name for name in left if _may_count(name)]
    if "unique_id" in named:
        return "unique_id", Fact("ids", "column unique_id", "the name")
    counters = [name for name in named if not repeated and _counts(frame[name])]
    words = [name for name in left if name not in named and not _is_number(frame[name]) and not _is_date(frame[name])]
    if repeated and not named and words:
        if len(words) > 1:
            raise UserError(f"several columns may hold the ids: {', '.join(words)}; name it with --id")
        return words[0], Fact(
            "ids", f"column {words[0]}", "stamps occur more than once, and it is the only column of text"
        )
    named = [name for name in named if name not in counters]
    if len(named) > 1:
        raise UserError(f"several columns may hold the ids: {', '.join(named)}; name it with --id")
    if named:
        return named[0], Fact("ids", f"column {named[0]}", "the name")
    more = f"; {', '.join(counters)} count the rows and are left out" if counters else ""
    return None, Fact("form", "wide: a column a series", f"no column of ids{more}")


def _is_number(column: "pd.Series[Any]") -> bool:
    return (
        pd.api.types.is_numeric_dtype(column.dtype)
        or pd.api.types.is_bool_dtype(column.dtype)
        or (column.dtype == object and not column.map(lambda cell: isinstance(cell, str | bytes)).any())
    )


def _may_count(name: str) -> bool:
    """Whether a column may hold ids or the numbers of rows, by its name or for want of one."""
    return str(name).strip().casefold() in IDS or str(name).startswith(("unnamed ", "Unnamed: "))


def _counts(column: "pd.Series[Any]") -> bool:
    """Whether a column only numbers the rows."""
    numbers = pd.to_numeric(column, errors="coerce")
    return bool(
        len(column) > 1 and numbers.notna().all() and numbers.is_unique and abs(numbers.diff().dropna()).eq(1).all()
    )


def target_columns(
    frame: pd.DataFrame, given: Sequence[str] | None, wide: bool, taken: Sequence[str]
) -> tuple[list[str], Fact]:
    """The columns of values: of a wide table all that are left, else the one by its name or the only one of numbers.

    Raises:
        UserError: there is none, or there are several.
    """
    left = [name for name in frame.columns if name not in taken]
    if given is not None:
        twice = [name for name in given if name in taken]
        if twice:
            raise UserError(f"column {twice[0]!r} cannot be a target and something else")
        return [existing(frame, name, "--targets") for name in given], Fact("values", ", ".join(given), "given")
    if not left:
        raise UserError("no column of values beside those of time, ids and covariates")
    if wide:
        left = [name for name in left if not (_may_count(name) and _counts(frame[name]))]
        shown = ", ".join(map(str, left[:12])) + (", ..." if len(left) > 12 else "")
        return left, Fact("values", f"{len(left)} columns: {shown}", "all that are left")
    for name in TARGETS:
        found = [column for column in left if str(column).casefold() == name]
        if found:
            rest = [str(column) for column in left if column not in found]
            more = f"; not used: {', '.join(rest)}" if rest else ""
            return found, Fact("values", str(found[0]), f"the name{more}")
    numbers = [name for name in left if _is_number(frame[name])]
    if len(numbers) == 1 or len(left) == 1:
        return (numbers or left), Fact("values", str((numbers or left)[0]), "the only column of numbers")
    raise UserError(
        f"several columns may hold the values: {', '.join(map(str, numbers or left))}; name them with --targets"
    )
