"""What is said about the series of a table: span, constant and short ones, missing values and what became of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.core.inspection import Fact
from recurra.forecast.data.panel import Array, Panel, Series

_NAMED = 8
"""Series that a fact names; the others it counts."""


def of_filling(missing: NDArray[Any], values: Array, targets: Sequence[str], policies: Mapping[str, str]) -> list[Fact]:
    """Missing values a column, before and after filling.

    Args:
        missing: how many each column had, absent rows included.
        values: (row, column), filled.
        targets: names of the columns.
        policies: of the columns.
    """
    if not missing.any():
        return [Fact("missing values", "none", f"all {values.size} values")]
    left = np.isnan(values).sum(axis=0)
    said = []
    for name, before, after in zip(targets, missing, left, strict=True):
        if before:
            policy = policies[name]
            done = "left missing" if policy in ("none", "observed") else f"{before - after} filled ({policy})"
            said.append(f"{name} {before}: {done}" + (f", {after} left" if after and after != before else ""))
    more = f"; and {len(said) - _NAMED} more columns" if len(said) > _NAMED else ""
    return [
        Fact(
            "missing values",
            f"{int(missing.sum())} of {values.size}, absent rows included",
            "; ".join(said[:_NAMED]) + more,
        )
    ]


def of_series(panel: Panel) -> list[Fact]:
    """Ids, span, and series that are constant, all missing or much shorter than others."""
    series = panel.series
    lengths = [len(one) for one in series]
    longest = max(lengths)
    ids = ", ".join(repr(one.id) for one in series[:_NAMED]) + (", ..." if len(series) > _NAMED else "")
    first, last = min(one.stamps[0] for one in series), max(one.stamps[-1] for one in series)
    facts = [Fact("series", f"{len(series)}: {ids}", f"ids are {_kind(panel)}, and come back so")]
    rows = f"{lengths[0]} rows" if len(set(lengths)) == 1 else f"from {min(lengths)} to {longest} rows"
    facts.append(Fact("span", f"{first} to {last}, {rows}", "first and last stamp of all series"))
    empty = [one for one in series if not np.isfinite(one.values).any()]
    constant = [one for one in series if one not in empty and is_constant(one)]
    for what, found, why in (
        ("series without a value", empty, "every value is missing"),
        ("constant series", constant, "one value in all rows; scale 1 is taken for them"),
    ):
        if found:
            facts.append(Fact(what, _named(found), why))
    short = [one for one in series if len(one) < 0.1 * longest]
    if short:
        facts.append(Fact("short series", _named(short), f"fewer than a tenth of the {longest} rows of the longest"))
    return facts


def is_constant(one: Series) -> bool:
    """Whether each variable has but one value, missing ones aside."""
    low = np.fmin.reduce(one.values, axis=0)
    return bool((~(np.fmax.reduce(one.values, axis=0) > low)).all())


def _kind(panel: Panel) -> str:
    return "names of columns" if panel.wide or panel.ids is None else str(panel.ids.dtype)


def _named(series: Sequence[Series]) -> str:
    shown = ", ".join(f"{one.id!r} ({len(one)} rows)" for one in series[:_NAMED])
    return f"{len(series)}: {shown}{', ...' if len(series) > _NAMED else ''}"
