"""A table in any form opened as a `Panel`: every fact about it is derived here, once, with its evidence."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recurra.core.errors import FileError, UserError
from recurra.core.inspection import Fact
from recurra.forecast.data import columns, filling, grid
from recurra.forecast.data.calendar import Frequency
from recurra.forecast.data.panel import Panel, Series
from recurra.forecast.data.reading import Raw, read
from recurra.forecast.data.stamps import to_stamps
from recurra.forecast.data.values import to_numbers
from recurra.forecast.data.zones import into_zone

Array = NDArray[np.float64]


def open_panel(
    source: Any,
    *,
    id: str | None = None,
    time: str | None = None,
    targets: Sequence[str] | None = None,
    freq: str | int | None = None,
    date_format: str | None = None,
    zone: str | None = None,
    fill: str | Mapping[str, str] = "none",
    past: Sequence[str] = (),
    future: Sequence[str] = (),
    static: Sequence[str] = (),
    categorical: Sequence[str] = (),
    future_frame: Any = None,
    static_frame: Any = None,
    skip_short: int = 0,
    separator: str | None = None,
    decimal: str | None = None,
) -> Panel:
    """The series of a table, on regular time axes.

    Columns go by name: ids, stamps and values by the names that are usual (`unique_id, ds, y`; `date` and a column a
    series), or by what they hold, and by the options where that leaves a choice.

    Args:
        source: path of a CSV, Parquet or npz file, or a data frame (pandas, or one that has `to_pandas`).
        id: column of ids; a table without one has a column a series.
        time: column of stamps.
        targets: columns of values.
        freq: pandas' name of the step, old or new, or a whole number.
        date_format: of stamps that have two readings, in strftime's letters; "s", "ms", "us", "ns" of numbers.
        zone: that stamps without one are in, or that the others are brought to.
        fill: policy for missing values, for all columns or by column: see `filling.policies`.
        past: columns of covariates that are known up to the origin.
        future: columns of covariates that are known ahead.
        static: columns of covariates that a series has one value of.
        categorical: those of the covariates that are categories.
        future_frame: ids, stamps and the columns of `future` after the last rows; as `source`.
        static_frame: a row a series with its id and the columns of `static`; as `source`.
        skip_short: leave out series with fewer rows.
        separator: of a CSV.
        decimal: "." or ",", of a CSV.

    Raises:
        UserError: the table does not decide, or holds what is no stamp or no number; its line names the place.
    """
    if freq is not None:
        Frequency.of(freq)
    filling.check(fill)
    text = (id, time, *categorical)
    raw = read(source, text=lambda name: columns.is_text(name, text), separator=separator, decimal=decimal)
    given = columns.Roles(time or "", id, list(targets or ()), tuple(past), tuple(future), tuple(static))
    try:
        panel = _opened(raw, given, date_format, zone, freq, fill)
    except UserError as error:
        raise _blamed(raw, error) from error
    if skip_short:
        panel = panel.require(skip_short, what="--skip-short", skip=True)
    return panel


def _blamed(raw: Raw, error: UserError) -> UserError:
    if raw.path is not None:
        return FileError(raw.path, str(error))
    return error if str(error).startswith(raw.source) else UserError(f"{raw.source}: {error}")


def _opened(
    raw: Raw,
    given: columns.Roles,
    date_format: str | None,
    zone: str | None,
    freq: str | int | None,
    fill: str | Mapping[str, str],
) -> Panel:
    frame = raw.frame
    facts = list(raw.facts)
    time, said = columns.time_column(frame, given.time or None)
    facts.append(said)
    covariates = (*given.past, *given.future, *given.static)
    for name in covariates:
        columns.existing(frame, name, "covariate")
    stamps, found = to_stamps(frame[time], raw.where, date_format)
    facts += found
    id_, said = columns.id_column(frame, given.id, time, (*given.targets, *covariates))
    facts.append(said)
    taken = [name for name in (id_, time, *covariates) if name is not None]
    targets, said = columns.target_columns(frame, given.targets or raw.values or None, id_ is None, taken)
    facts.append(said)
    numbers, ids, order = _ids(frame, id_, raw)
    stamps, found = into_zone(stamps, numbers, zone, raw.where, time)
    facts += found
    rows = grid.sort(stamps, numbers, None if ids is None else list(ids), raw.where, time)
    grid.check_duplicates(rows, lambda row: ", ".join(f"{name} {frame[name].iloc[row]}" for name in targets[:3]))
    frequency = grid.frequency_of(rows, freq)
    facts.append(Fact("frequency", frequency.alias, frequency.evidence))
    values = np.empty((len(frame), len(targets)))
    for at, name in enumerate(targets):
        values[:, at] = to_numbers(frame[name], raw.where)[rows.order]
    laid = grid.lay(rows, frequency, observed=fill == "observed")
    facts += laid.facts
    values = laid.spread(values)
    return _panel(raw, targets, frequency, laid, values, ids, order, (id_ or "unique_id", time), fill, facts)


def _ids(
    frame: pd.DataFrame, name: str | None, raw: Raw
) -> "tuple[NDArray[np.int64], pd.Series[Any] | None, list[int]]":
    """Number of the series of each row, the ids by number, and the numbers in the order in which the ids occur."""
    if name is None:
        return np.zeros(len(frame), np.int64), None, []
    column = frame[name]
    missing = column.isna().to_numpy(np.bool_)
    if raw.path is not None and pd.api.types.is_string_dtype(column.dtype):
        missing = missing | (column == "").to_numpy(np.bool_)
    if missing.any():
        raise UserError(f"{raw.where(int(missing.argmax()))}: column {name!r} has no id; every row needs one")
    codes, unique = pd.factorize(column)
    ids = pd.Series(unique)
    if not isinstance(column.dtype, pd.CategoricalDtype):
        ids = ids.astype(column.dtype)
    if raw.path is not None and ids.dtype.kind in "OTU" and ids.astype(str).str.fullmatch(r"0|-?[1-9]\d{0,17}").all():
        ids = ids.astype(np.int64)
    keys = [_plain(one) for one in ids]
    ranks = sorted(range(len(keys)), key=lambda at: _key(keys[at]))
    place = np.empty(len(ranks), np.int64)
    place[ranks] = np.arange(len(ranks))
    return place[codes], ids.take(ranks).reset_index(drop=True), [int(at) for at in place]


def _plain(value: Any) -> Hashable:
    plain: Hashable = value.item() if isinstance(value, np.generic) else value
    return plain


def _key(value: Any) -> tuple[str, Any]:
    if isinstance(value, int | float):
        return ("", value)
    return (type(value).__name__, value if isinstance(value, str | bytes) else str(value))


def _panel(
    raw: Raw,
    targets: list[str],
    frequency: Frequency,
    laid: grid.Grid,
    values: Array,
    ids: "pd.Series[Any] | None",
    order: list[int],
    names: tuple[str, str],
    fill: str | Mapping[str, str],
    facts: list[Fact],
) -> Panel:
    wide = ids is None
    policies = filling.policies(fill, targets)
    needs = _fill(values, laid, targets, policies, frequency.season)
    if wide:
        ids = pd.Series(targets, dtype=str)
        spans = [(slice(None), slice(at, at + 1), laid.stamps[0]) for at in range(len(targets))]
    else:
        bounds = zip(laid.starts[:-1], laid.starts[1:], laid.stamps, strict=True)
        spans = [(slice(begin, end), slice(None), stamps) for begin, end, stamps in bounds]
    assert ids is not None
    series = [
        Series(_plain(one), stamps, values[at, which], needs=None if needs is None else needs[at, which])
        for one, (at, which, stamps) in zip(ids, spans, strict=True)
    ]
    return Panel(
        raw.source,
        series,
        ("y",) if wide else tuple(targets),
        frequency,
        facts,
        names,
        wide,
        order or list(range(len(series))),
        ids,
        table=values if wide else None,
    )


def _fill(
    values: Array, laid: grid.Grid, targets: list[str], policies: Mapping[str, str], season: int
) -> NDArray[np.int64] | None:
    """Fill in place; the later rows that values were made from, if there are any."""
    needs: NDArray[np.int64] | None = None
    for at, name in enumerate(targets):
        if policies[name] in ("none", "observed") or not np.isnan(values[:, at]).any():
            continue
        for begin, end in zip(laid.starts[:-1], laid.starts[1:], strict=True):
            made, later = filling.filled(values[begin:end, at], policies[name], season)
            values[begin:end, at] = made
            if later is not None:
                needs = np.full(values.shape, -1, np.int64) if needs is None else needs
                needs[begin:end, at] = later
    return needs
