"""What an opened table is: series on regular time axes, whatever form, order, zone and types it came in."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recurra.core.errors import UserError
from recurra.core.inspection import Fact
from recurra.forecast.data.calendar import Frequency

Array = NDArray[np.float64]


@dataclass
class Series:
    """One series on its own span of the common frequency.

    Attributes:
        id: as in the input, type included.
        stamps: of its rows, sorted, without gaps, in the zone of the input.
        values: (time, variable); NaN where missing. May be a view of the whole table's.
        covariates: one column each, as in the input, with these stamps first and, of those known ahead, later ones; or
            None.
        static: name and value of each static covariate.
        needs: (time, variable), or None: the row that a filled value was made from if that row is later, else -1. At an
            origin before that row nobody knew the value: `seen` takes it out.
    """

    id: Hashable
    stamps: pd.Index
    values: Array
    covariates: pd.DataFrame | None = None
    static: Mapping[str, Any] = field(default_factory=dict)
    needs: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Its rows."""
        return len(self.stamps)

    def seen(self, start: int, stop: int) -> Array:
        """The values of rows [start, stop) as they were known when row `stop` was not: (stop - start, variable)."""
        if self.needs is None:
            return self.values[start:stop]
        return np.where(self.needs[start:stop] >= stop, np.nan, self.values[start:stop])


@dataclass
class Panel:
    """Series of one table.

    Attributes:
        source: file, or "data frame"; for messages.
        series: of a table with a column a series in the order of its columns, else by id: the same whatever the order
            of the rows. `order` has them as their ids first occur.
        variables: names of the variables; ("y",) of most tables.
        frequency: of all of them.
        facts: what was found out about the table, from what evidence, and what was done; shown by `inspect`.
        names: of the input's columns for id and time, which results carry too.
        wide: the table had a column a series.
        order: positions in `series` in the order in which the ids first occur in the input.
        ids: of `series`, with the dtype of the input.
        past: names of the covariates known up to the origin.
        future: of those known ahead.
        categorical: of those of either, and of the static ones, that are categories.
        table: (time, series) of a table with a column a series, whose values are views of it; else None.
    """

    source: str
    series: list[Series]
    variables: tuple[str, ...]
    frequency: Frequency
    facts: list[Fact] = field(default_factory=list)
    names: tuple[str, str] = ("unique_id", "ds")
    wide: bool = False
    order: Sequence[int] = ()
    ids: "pd.Series[Any] | None" = None
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    table: Array | None = None

    def id_column(self, positions: "Sequence[int] | NDArray[np.int64]") -> "pd.Series[Any]":
        """The ids of these positions in `series`, with the dtype that they have in the input."""
        ids = pd.Series([one.id for one in self.series]) if self.ids is None else self.ids
        return ids.take(np.asarray(positions, np.int64)).reset_index(drop=True)

    def require(self, rows: int, *, what: str, skip: bool = False) -> "Panel":
        """This table, if every series has so many rows.

        Args:
            rows: needed.
            what: needs them, e.g. "window 96 + horizon 24".
            skip: leave out the series that have fewer; a fact names them.

        Raises:
            UserError: one has fewer, or none is left; its line names id, length and what is needed.
        """
        short = [one for one in self.series if len(one) < rows]
        if not short:
            return self
        first = f"series {short[0].id!r} has {len(short[0])} rows; needed are {rows} ({what})"
        if not skip:
            more = f", and {len(short) - 1} more are too short" if len(short) > 1 else ""
            raise UserError(f"{self.source}: {first}{more}; pass --skip-short to leave them out")
        if len(short) == len(self.series):
            raise UserError(f"{self.source}: every series is too short: {first}")
        return self.without(
            {one.id for one in short}, Fact("left out", _listed(short), f"fewer than {rows} rows: {what}")
        )

    def check_varies(self) -> None:
        """Refuse a table in which nothing can be learnt.

        Raises:
            UserError: every value is missing, or every series is constant.
        """
        spans = [(np.fmin.reduce(one.values, axis=None), np.fmax.reduce(one.values, axis=None)) for one in self.series]
        if all(np.isnan(low) for low, _ in spans):
            raise UserError(f"{self.source}: every value is missing; expected some to train on")
        if all(not bool((np.fmax.reduce(one.values) > np.fmin.reduce(one.values)).any()) for one in self.series):
            low = next(low for low, _ in spans if not np.isnan(low))
            raise UserError(
                f"{self.source}: every series is constant (the first is {low:g} in all rows): nothing can be learnt "
                "from them"
            )

    def without(self, ids: "set[Hashable]", why: Fact) -> "Panel":
        """The same table without some of its series."""
        kept = [at for at, one in enumerate(self.series) if one.id not in ids]
        place = {at: new for new, at in enumerate(kept)}
        return replace(
            self,
            series=[self.series[at] for at in kept],
            facts=[*self.facts, why],
            order=[place[at] for at in self.order if at in place],
            ids=None if self.ids is None else self.id_column(kept),
            table=None,
        )

    def common_span(self) -> tuple[Any, Any, Fact]:
        """First and last stamp that all series have, and what limits them.

        Raises:
            UserError: there is none; its line names the two series that part.
        """
        late = max(self.series, key=lambda one: one.stamps[0])
        early = min(self.series, key=lambda one: one.stamps[-1])
        first, last = late.stamps[0], early.stamps[-1]
        if first > last:
            raise UserError(
                f"{self.source}: series {late.id!r} begins at {first}, after {early.id!r} ends at {last}: no stamp is "
                "in all series; leave one out, or choose a model that takes each series by itself"
            )
        lost = [one for one in self.series if one.stamps[0] != first or one.stamps[-1] != last]
        if not lost:
            return first, last, Fact("common span", f"{first} to {last}", "all series have the same")
        evidence = f"{late.id!r} begins last and {early.id!r} ends first; {len(lost)} series have more rows"
        return first, last, Fact("common span", f"{first} to {last}", evidence)

    def aligned(self) -> tuple[pd.Index, Array]:
        """Stamps (time) and values (time, series x variable) of the span that all series have.

        Of a table with a column a series it is that table, not a copy.

        Raises:
            UserError: they have none, or it is too short to say so; its line names the two series that part.
        """
        if self.table is not None:
            return self.series[0].stamps, self.table
        first, last, _ = self.common_span()
        stamps = self.frequency.between(first, last)
        values = np.empty((len(stamps), len(self.series), len(self.variables)))
        wanted = _keys(stamps)
        for at, one in enumerate(self.series):
            keys = _keys(one.stamps)
            begin = int(np.searchsorted(keys, wanted[0]))
            if not np.array_equal(keys[begin : begin + len(wanted)], wanted):
                raise UserError(
                    f"{self.source}: series {one.id!r} has stamps between those of {self.series[0].id!r} (its first is "
                    f"{one.stamps[0]}): no model can take them side by side; shift one of them"
                )
            values[:, at] = one.values[begin : begin + len(stamps)]
        return stamps, values.reshape(len(stamps), -1)

    def check_future(self, horizon: int) -> None:
        """Refuse future covariates that do not reach over the horizon of every series.

        Raises:
            UserError: values are missing; its line names the first id and stamp, and how many there are.
        """
        if not self.future:
            return
        missing: list[str] = []
        count = 0
        for at in self.order or range(len(self.series)):
            one = self.series[at]
            known = None if one.covariates is None else one.covariates[list(self.future)].iloc[len(one) :]
            stamps = self.frequency.after(one.stamps[-1], horizon)
            there = np.zeros(horizon, np.bool_)
            if known is not None and len(known):
                complete = known.index[known.notna().all(axis=1).to_numpy()]
                there = stamps.isin(complete)
            count += int((~there).sum())
            missing += [f"id {one.id!r}, {self.names[1]} {stamp}" for stamp in stamps[~there][:1]]
        if count:
            raise UserError(
                f"{self.source}: future covariates ({', '.join(self.future)}) are missing for {count} of "
                f"{horizon * len(self.series)} rows of the horizon, first {missing[0]}; give them with --future-frame"
            )


def _keys(stamps: pd.Index) -> NDArray[np.int64]:
    """Stamps as whole numbers."""
    if isinstance(stamps, pd.DatetimeIndex):
        return np.asarray(stamps.asi8, np.int64)
    return np.asarray(stamps, np.int64)


def _listed(series: Sequence[Series], most: int = 10) -> str:
    named = ", ".join(f"{one.id!r} ({len(one)})" for one in series[:most])
    return f"{len(series)} series: {named}{', ...' if len(series) > most else ''}"
