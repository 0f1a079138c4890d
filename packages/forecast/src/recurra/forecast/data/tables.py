"""A table in any form opened as a `Panel`: every fact about it is derived here, once, with its evidence."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recurra.core.errors import FileError, UserError
from recurra.core.inspection import Fact
from recurra.forecast.data import columns, exogenous, filling, findings, grid
from recurra.forecast.data.calendar import Frequency
from recurra.forecast.data.panel import Array, Panel, Series
from recurra.forecast.data.raw import Raw
from recurra.forecast.data.reading import read
from recurra.forecast.data.stamps import to_stamps
from recurra.forecast.data.values import to_numbers
from recurra.forecast.data.zones import into_zone

Ints = NDArray[np.int64]


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
        categorical: those of the covariates that are categories; columns of text are without being named.
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
    if separator is not None and len(separator) != 1:
        raise UserError(f"separator must be one character; got {separator!r}")
    if decimal not in (None, ".", ","):
        raise UserError(f"decimal must be . or ,; got {decimal!r}")
    form = _Form(id, time, date_format, zone, tuple(categorical), separator, decimal)
    raw = form.read(source)
    roles = columns.Roles(time or "", id, list(targets or ()), tuple(past), tuple(future), tuple(static))
    opening = _Opening(raw, roles, form, freq, fill)
    with _blaming(raw, opening.facts):
        panel = opening.panel(static_frame)
    if future_frame is not None and future:
        _add_future(panel, form, future_frame)
    return panel.require(skip_short, what="--skip-short", skip=True) if skip_short else panel


class TableError(FileError):
    """A table that does not serve, with what was found out about it before.

    Args:
        source: file, or "data frame".
        reason: what is wrong with it.
        facts: found before.
    """

    def __init__(self, source: str, reason: str, facts: Sequence[Fact] = ()) -> None:
        super().__init__(source, reason)
        self.facts = list(facts)


@contextmanager
def _blaming(raw: Raw, facts: Sequence[Fact] = ()) -> Iterator[None]:
    """While inside, an error is about this table."""
    try:
        yield
    except TableError:
        raise
    except UserError as error:
        raise TableError(raw.source, str(error), facts) from error


@dataclass(frozen=True)
class _Form:
    """How the tables of one opening are written."""

    id: str | None
    time: str | None
    date_format: str | None
    zone: str | None
    categorical: tuple[str, ...]
    separator: str | None
    decimal: str | None

    def read(self, source: Any) -> Raw:
        given = (self.id, self.time, *self.categorical)
        return read(
            source,
            text=lambda name: columns.is_text(name, given),
            separator=self.separator,
            decimal=self.decimal,
        )


class _Opening:
    """The steps of opening one table, and the facts that they find.

    Args:
        raw: its columns.
        given: what the user said of them.
        form: how it is written.
        freq: the frequency, if given.
        fill: policy for missing values.
    """

    def __init__(
        self, raw: Raw, given: columns.Roles, form: _Form, freq: str | int | None, fill: str | Mapping[str, str]
    ) -> None:
        self.raw, self.form, self.freq, self.fill = raw, form, freq, fill
        self.facts = list(raw.facts)
        self.roles = given

    def panel(self, static_frame: Any) -> Panel:
        frame, facts, given = self.raw.frame, self.facts, self.roles
        stamps = self._columns(static_frame is None)
        roles = self.roles
        numbers, ids, order = _ids(frame, roles.id, self.raw)
        stamps, found = into_zone(stamps, numbers, self.form.zone, self.raw.where, roles.time)
        facts += found
        rows = grid.sort(stamps, numbers, None if ids is None else ids.tolist(), self.raw.where, roles.time)
        grid.check_duplicates(rows, self._shown)
        frequency = grid.frequency_of(rows, self.freq)
        facts.append(Fact("frequency", frequency.alias, frequency.evidence))
        laid = grid.lay(rows, frequency, observed=self.fill == "observed")
        facts += laid.facts
        names = (*roles.targets, *roles.past, *roles.future)
        policies = filling.policies(self.fill, [name for name in names if name not in self._categories(names)])
        late = [name for name in roles.past if policies.get(name) == "linear"]
        if late:
            policies |= dict.fromkeys(late, "previous")
            facts.append(
                Fact("fill", f"previous, of {', '.join(late)}", "linear would tell of rows that nobody knows yet")
            )
        covariates: list[pd.DataFrame] = []
        if given.past or given.future:
            categories = self._categories((*given.past, *given.future))
            covariates = exogenous.lay_covariates(frame, rows, laid, roles, categories, policies, frequency.season)
        static = self._static(rows, static_frame, ids)
        categories = self._categories((*roles.past, *roles.future, *roles.static))
        values = self._values(rows, laid)
        missing = np.isnan(values).sum(axis=0)
        needs = filling.fill_all(values, laid.starts, [policies[name] for name in roles.targets], frequency.season)
        facts += findings.of_filling(missing, values, roles.targets, policies)
        if ids is None:
            ids = pd.Series([self.raw.labels.get(name, name) for name in roles.targets])
            series = _of_columns(ids, laid.stamps[0], values, needs, covariates, static)
        else:
            series = _of_rows(ids, laid, values, needs, covariates, static)
        panel = Panel(
            self.raw.source,
            series,
            ("y",) if roles.id is None else tuple(roles.targets),
            frequency,
            facts,
            (roles.id or "unique_id", roles.time),
            roles.id is None,
            order or list(range(len(series))),
            ids,
            roles.past,
            roles.future,
            categories,
            values if roles.id is None else None,
        )
        facts += findings.of_series(panel)
        return panel

    def _columns(self, static_inside: bool) -> pd.Index:
        """Find which column is what; the stamps of all rows."""
        frame, given, facts = self.raw.frame, self.roles, self.facts
        time, said = columns.time_column(frame, given.time or None)
        facts.append(said)
        covariates = (*given.past, *given.future, *(given.static if static_inside else ()))
        for name in covariates:
            columns.existing(frame, name, "covariate")
            if covariates.count(name) > 1:
                raise UserError(f"covariate {name!r} cannot be two of past, future and static; name it once")
        stamps, found = to_stamps(frame[time], self.raw.where, self.form.date_format)
        facts += found
        if not len(frame):
            raise UserError("has no rows")
        id_, said = columns.id_column(frame, given.id, time, (*given.targets, *covariates), not stamps.is_unique)
        facts.append(said)
        taken = [name for name in (id_, time, *covariates) if name is not None]
        targets, said = columns.target_columns(frame, given.targets or self.raw.values or None, id_ is None, taken)
        facts.append(said)
        self.roles = columns.Roles(time, id_, targets, given.past, given.future, given.static)
        return stamps

    def _categories(self, names: Sequence[str]) -> tuple[str, ...]:
        return exogenous.are_categories(
            self.raw.frame, [name for name in names if name not in self.roles.targets], self.form.categorical
        )

    def _shown(self, row: int) -> str:
        return ", ".join(f"{name} {self.raw.frame[name].iloc[row]}" for name in self.roles.targets[:3])

    def _values(self, rows: grid.Rows, laid: grid.Grid) -> Array:
        values = np.empty((len(rows.series), len(self.roles.targets)), order="F")
        straight = bool((np.diff(rows.order, prepend=-1) == 1).all())
        for at, name in enumerate(self.roles.targets):
            # The column is needed no more: a large table is held once, not twice.
            numbers = to_numbers(self.raw.frame.pop(name), self.raw.where)
            values[:, at] = numbers if straight else numbers[rows.order]
        return laid.spread(values)

    def _static(self, rows: grid.Rows, static_frame: Any, ids: "pd.Series[Any] | None") -> list[dict[str, Any]]:
        roles = self.roles
        if not roles.static:
            return []
        if static_frame is None:
            if roles.id is None:
                raise UserError(
                    "a table with a column a series has no column of static covariates; give --static-frame"
                )
            return exogenous.static_of_columns(self.raw.frame, rows, roles.static, self._categories(roles.static))
        raw = self.form.read(static_frame)
        with _blaming(raw):
            for name in roles.static:
                columns.existing(raw.frame, name, "--static")
            key = str(roles.id if roles.id in raw.frame.columns else raw.frame.columns[0])
            wanted = roles.targets if ids is None else [_plain(one) for one in ids]
            categories = exogenous.are_categories(raw.frame, roles.static, self.form.categorical)
            self.form = _Form(**{**self.form.__dict__, "categorical": (*self.form.categorical, *categories)})
            return exogenous.static_of_frame(raw.frame, key, roles.static, wanted, raw.where, categories)


def _of_columns(
    ids: "pd.Series[Any]",
    stamps: pd.Index,
    values: Array,
    needs: Ints | None,
    covariates: Sequence[pd.DataFrame],
    static: Sequence[Mapping[str, Any]],
) -> list[Series]:
    """A series a column."""
    return [
        Series(
            _plain(one),
            stamps,
            values[:, at : at + 1],
            covariates[0] if covariates else None,
            static[at] if static else {},
            None if needs is None else needs[:, at : at + 1],
        )
        for at, one in enumerate(ids)
    ]


def _of_rows(
    ids: "pd.Series[Any]",
    laid: grid.Grid,
    values: Array,
    needs: Ints | None,
    covariates: Sequence[pd.DataFrame],
    static: Sequence[Mapping[str, Any]],
) -> list[Series]:
    """Series that lie one after another."""
    return [
        Series(
            _plain(one),
            laid.stamps[at],
            values[laid.starts[at] : laid.starts[at + 1]],
            covariates[at] if covariates else None,
            static[at] if static else {},
            None if needs is None else needs[laid.starts[at] : laid.starts[at + 1]],
        )
        for at, one in enumerate(ids)
    ]


def _ids(frame: pd.DataFrame, name: str | None, raw: Raw) -> "tuple[Ints, pd.Series[Any] | None, list[int]]":
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
    # A text file has no types: ids are whole numbers where all are spelled as such, without zeros before them.
    whole = raw.typeless and pd.api.types.is_string_dtype(ids.dtype)
    if whole and ids.astype(str).str.fullmatch(r"0|-?[1-9]\d{0,17}").all():
        ids = ids.astype(np.int64)
    keys = [_plain(one) for one in ids]
    ranks = sorted(range(len(keys)), key=lambda at: _key(keys[at]))
    place = np.empty(len(ranks), np.int64)
    place[ranks] = np.arange(len(ranks))
    return place[codes], ids.take(ranks).reset_index(drop=True), place.tolist()


def _plain(value: Any) -> Hashable:
    plain: Hashable = value.item() if isinstance(value, np.generic) else value
    return plain


def _key(value: Any) -> tuple[str, Any]:
    """Numbers by size, texts by letter, and the rest by what it looks like."""
    if isinstance(value, int | float):
        return ("", value)
    return (type(value).__name__, value if isinstance(value, str | bytes) else str(value))


def _add_future(panel: Panel, form: _Form, source: Any) -> None:
    raw = form.read(source)
    with _blaming(raw):
        known, time = panel.names
        key = None if panel.wide else columns.existing(raw.frame, known, "--id")
        if time not in raw.frame.columns:
            time, _ = columns.time_column(raw.frame, form.time)
        stamps, _ = to_stamps(raw.frame[time], raw.where, form.date_format)
        ids = None if key is None else _as_known(raw.frame[key].tolist(), panel)
        numbers = np.zeros(len(stamps), np.int64) if ids is None else pd.factorize(pd.Series(ids, dtype=object))[0]
        zone = getattr(panel.series[0].stamps, "tz", None)
        stamps, _ = into_zone(stamps, np.asarray(numbers, np.int64), zone, raw.where, time)
        if (getattr(stamps, "tz", None) is None) != (zone is None) or type(stamps) is not type(panel.series[0].stamps):
            raise UserError(
                f"column {time!r}: the stamps are of another kind than those of {panel.source}; give the same"
            )
        exogenous.add_future(panel, raw.frame, stamps, ids, raw.where, panel.categorical)


def _as_known(ids: Sequence[Any], panel: Panel) -> list[Hashable]:
    """Ids of another table as those of this one: 7 and "7" are the same."""
    known = {one.id for one in panel.series}
    text = {str(one): one for one in known}
    return [one if one in known else text.get(str(one), one) for one in ids]
