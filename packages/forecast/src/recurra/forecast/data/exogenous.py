"""Covariates of an opened table: laid on the grid of the values, with the rows after it that are known ahead."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recurra.core.errors import UserError
from recurra.core.inspection import Fact
from recurra.forecast.data import filling
from recurra.forecast.data.columns import Roles
from recurra.forecast.data.grid import Grid, Rows
from recurra.forecast.data.panel import Panel
from recurra.forecast.data.values import Where, to_numbers


def are_categories(frame: pd.DataFrame, names: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """Those of the covariates that are categories: given, or no numbers."""

    def is_category(column: "pd.Series[Any]") -> bool:
        if pd.api.types.is_numeric_dtype(column.dtype):
            return False
        cells = column.dropna()
        return not len(cells) or bool(cells.map(lambda cell: isinstance(cell, str | bytes | bool)).any())

    return tuple(name for name in names if name in given or (name in frame.columns and is_category(frame[name])))


def lay_covariates(
    frame: pd.DataFrame,
    rows: Rows,
    laid: Grid,
    roles: Roles,
    categories: Sequence[str],
    fill: Mapping[str, str],
    season: int,
) -> list[pd.DataFrame]:
    """A frame of covariates for each series, on its stamps; numbers filled by the policy of their column."""
    names = (*roles.past, *roles.future)
    places = np.full(int(laid.starts[-1]), -1, np.int64)
    places[laid.places] = rows.order
    made: dict[str, Any] = {}
    for name in names:
        if name in categories:
            made[name] = pd.api.extensions.take(frame[name].array, places, allow_fill=True)
            continue
        numbers = np.append(to_numbers(frame[name], rows.where), np.nan)[places]
        for begin, end in zip(laid.starts[:-1], laid.starts[1:], strict=True):
            numbers[begin:end], _ = filling.filled(numbers[begin:end], fill.get(name, "none"), season)
        made[name] = numbers
    full = pd.DataFrame(made, columns=list(names))
    spans = zip(laid.starts[:-1], laid.starts[1:], laid.stamps, strict=True)
    return [full.iloc[begin:end].set_axis(stamps, axis=0) for begin, end, stamps in spans]


def add_future(
    panel: Panel,
    frame: pd.DataFrame,
    stamps: pd.Index,
    ids: Sequence[Hashable] | None,
    where: Where,
    categories: Sequence[str],
) -> None:
    """Append rows of covariates that are known ahead to those of each series.

    Args:
        panel: gets them.
        frame: its columns `panel.future` are taken.
        stamps: of its rows, in the zone of the table.
        ids: of its rows; None if all series have the same.
        where: names a row.
        categories: columns that are no numbers.

    Raises:
        UserError: a stamp lies on no step, or occurs twice.
    """
    for name in panel.future:
        if name not in frame.columns:
            raise UserError(f"no column {name!r}, which --future names")
    columns = {
        name: frame[name].array if name in categories else to_numbers(frame[name], where) for name in panel.future
    }
    groups: dict[Hashable, NDArray[np.int64]] = {}
    if ids is not None:
        codes, unique = pd.factorize(pd.Series(list(ids), dtype=object))
        groups = {one: np.flatnonzero(codes == at) for at, one in enumerate(unique)}
    unknown = set(groups) - {one.id for one in panel.series}
    early = 0
    for one in panel.series:
        rows = np.arange(len(frame)) if ids is None else groups.get(one.id, np.zeros(0, np.int64))
        own = stamps.take(rows)
        early += int((own <= one.stamps[-1]).sum())
        rows, own = rows[own > one.stamps[-1]], own[own > one.stamps[-1]]
        if not len(own):
            continue
        steps = panel.frequency.between(one.stamps[-1], own.max())[1:]
        places = steps.get_indexer(own)
        if (places < 0).any():
            raise UserError(
                f"{where(int(rows[(places < 0).argmax()]))}: {own[(places < 0).argmax()]} lies on no step of "
                f"{panel.frequency.alias} after {one.stamps[-1]}"
            )
        if len(set(places)) < len(places):
            twice = int(np.flatnonzero(pd.Series(places).duplicated())[0])
            raise UserError(f"{where(int(rows[twice]))}: id {one.id!r}, {own[twice]} occurs twice; keep one row")
        taken = np.full(len(steps), -1, np.int64)
        taken[places] = rows
        later = pd.DataFrame(
            {name: pd.api.extensions.take(column, taken, allow_fill=True) for name, column in columns.items()},
            index=steps,
        )
        assert one.covariates is not None
        one.covariates = pd.concat([one.covariates, later])
    said = (
        f"{early} rows are not after the last of the values and not used" if early else "all rows come after the values"
    )
    more = f"; {len(unknown)} ids are not in the table, as {next(iter(unknown))!r}" if unknown else ""
    panel.facts.append(Fact("rows ahead", f"{len(frame) - early}", said + more))


def static_of_columns(
    frame: pd.DataFrame, rows: Rows, names: Sequence[str], categories: Sequence[str]
) -> list[dict[str, Any]]:
    """Values of the columns that a series has one value of, for each series.

    Raises:
        UserError: it has two; its line names id and both.
    """
    begins = np.flatnonzero(rows.first)
    made: list[dict[str, Any]] = [{} for _ in begins]
    for name in names:
        column = frame[name] if name in categories else pd.Series(to_numbers(frame[name], rows.where))
        sorted_ = column.take(rows.order).reset_index(drop=True)
        codes, _ = pd.factorize(sorted_)
        change = np.flatnonzero((np.diff(codes) != 0) & ~rows.first[1:])
        if len(change):
            at = int(change[0])
            raise UserError(
                f"{rows.name(at)}static covariate {name!r} is {sorted_[at]!r} and then {sorted_[at + 1]!r}; a static "
                "one has one value a series"
            )
        for one, begin in zip(made, begins, strict=True):
            one[name] = _scalar(sorted_[begin])
    return made


def static_of_frame(
    frame: pd.DataFrame,
    key: str,
    names: Sequence[str],
    wanted: Sequence[Hashable],
    where: Where,
    categories: Sequence[str],
) -> list[dict[str, Any]]:
    """Values of each series out of a frame with a row a series.

    Raises:
        UserError: an id has no row, or two.
    """
    columns = {name: frame[name] if name in categories else pd.Series(to_numbers(frame[name], where)) for name in names}
    find = _finder(frame[key])
    made = []
    for one in wanted:
        rows = find(one)
        if len(rows) != 1:
            what = "no row" if not len(rows) else f"{len(rows)} rows"
            raise UserError(f"id {one!r} has {what} among the static covariates (column {key}); expected one")
        made.append({name: _scalar(column.iloc[rows[0]]) for name, column in columns.items()})
    return made


def _finder(column: "pd.Series[Any]") -> Callable[[Hashable], list[int]]:
    places: dict[Any, list[int]] = {}
    for at, value in enumerate(column):
        places.setdefault(_scalar(value), []).append(at)
    text = {str(key): rows for key, rows in places.items()}
    return lambda one: places.get(one, text.get(str(one), []))


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
