"""What a model is told beside the past: numbers standardised, categories as one of n, fitted on training rows alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from recurra.core.errors import UserError
from recurra.forecast.data.panel import Panel, Series


@dataclass(frozen=True)
class Encoder:
    """Covariates of a series -> columns of numbers.

    Attributes:
        past: names of covariates that are known up to the origin.
        future: of those known ahead.
        static: of those that a series has one value of.
        numbers: mean and population standard deviation of those that are numbers; 1 for a constant one.
        categories: of the others, sorted; one column each, and one for any value that was not seen.
    """

    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def fit(cls, panel: Panel, stops: Sequence[int]) -> "Encoder":
        """Of the training rows of a table.

        Args:
            panel: the table.
            stops: of each of its series, how many rows train.

        Raises:
            UserError: a covariate has no value there.
        """
        static = tuple(panel.series[0].static) if panel.series else ()
        numbers: dict[str, tuple[float, float]] = {}
        categories: dict[str, tuple[str, ...]] = {}
        for name in (*panel.past, *panel.future, *static):
            cells = _cells(panel.series, stops, name, name in static)
            if name in panel.categorical:
                known = {key for column in cells for key in map(category, pd.unique(column)) if key is not None}
                categories[name] = tuple(sorted(known))
            else:
                numbers[name] = _moments(name, cells, panel.source)
        return cls(panel.past, panel.future, static, numbers, categories)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that `encode` gives: "price", "kind=a", "kind=b", "kind=?"."""
        return tuple(column for name in (*self.past, *self.future, *self.static) for column in self._of(name))

    def encode(
        self, series: Series, start: int, stop: int, known_until: int | None = None
    ) -> Float[np.ndarray, "step column"]:
        """The covariates of rows [start, stop), which may lie after the last row of the values.

        Args:
            series: the series.
            start: first row.
            stop: row after the last.
            known_until: origin: from it on, covariates that are not known ahead are 0; by default all are known.

        Returns:
            (stop - start, column); 0 for a number that is missing, the column "?" for a category that is.

        Raises:
            UserError: a covariate that is known ahead has no value; its line names id, stamp and column.
        """
        made = np.zeros((stop - start, len(self.columns)), np.float32)
        at = 0
        until = stop if known_until is None else min(stop, max(start, known_until))
        for name in (*self.past, *self.future, *self.static):
            width = len(self._of(name))
            if name in self.static:
                made[:, at : at + width] = self._numbers(name, np.array([series.static[name]], object))
            else:
                end = until if name in self.past else stop
                made[: end - start, at : at + width] = self._rows(series, name, start, end)
            at += width
        return made

    def _of(self, name: str) -> tuple[str, ...]:
        if name not in self.categories:
            return (name,)
        return (*(f"{name}={one}" for one in self.categories[name]), f"{name}=?")

    def _rows(self, series: Series, name: str, start: int, stop: int) -> NDArray[np.float32]:
        frame = series.covariates
        if frame is None or name not in frame.columns:
            raise UserError(f"id {series.id!r} has no covariate {name!r}, which the checkpoint was trained with")
        cells = frame[name].to_numpy(object if name in self.categories else None)[start:stop]
        if len(cells) < stop - start:
            raise UserError(
                f"id {series.id!r}: covariate {name!r} ends at {frame.index[-1]}, {stop - start - len(cells)} rows "
                "before the horizon does; give it with --future-frame"
            )
        return self._numbers(name, cells)

    def _numbers(self, name: str, cells: NDArray[Any]) -> NDArray[np.float32]:
        if name in self.categories:
            place = {one: at for at, one in enumerate(self.categories[name])}
            codes, unique = pd.factorize(pd.Series(cells, dtype=object), use_na_sentinel=True)
            places = np.array([place.get(category(one) or "", len(place)) for one in unique] + [len(place)], np.int64)
            chosen: NDArray[np.float32] = np.eye(len(place) + 1, dtype=np.float32)[places[codes]]
            return chosen
        mean, scale = self.numbers[name]
        scaled = (cells.astype(np.float64) - mean) / scale
        return np.nan_to_num(scaled, nan=0.0).astype(np.float32)[:, None]

    def to_json(self) -> dict[str, Any]:
        """As JSON values, exactly."""
        return {
            "past": list(self.past),
            "future": list(self.future),
            "static": list(self.static),
            "numbers": {name: list(pair) for name, pair in self.numbers.items()},
            "categories": {name: list(known) for name, known in self.categories.items()},
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Encoder":
        """From what `to_json` gave."""
        return cls(
            tuple(saved["past"]),
            tuple(saved["future"]),
            tuple(saved["static"]),
            {name: (float(mean), float(scale)) for name, (mean, scale) in saved["numbers"].items()},
            {name: tuple(known) for name, known in saved["categories"].items()},
        )


def category(value: Any) -> str | None:
    """A category as text, the same for 1, 1.0 and "1" of different files; None if it is missing."""
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip() or None


def _cells(series: Iterable[Series], stops: Sequence[int], name: str, static: bool) -> list[NDArray[Any]]:
    if static:
        return [np.array([one.static[name] for one in series], object)]
    found = []
    for one, stop in zip(series, stops, strict=True):
        assert one.covariates is not None
        found.append(one.covariates[name].to_numpy()[:stop])
    return found


def _moments(name: str, cells: Sequence[NDArray[Any]], source: str) -> tuple[float, float]:
    values = np.concatenate([column.astype(np.float64) for column in cells])
    values = values[~np.isnan(values)]
    if not len(values):
        raise UserError(f"{source}: covariate {name!r} has no value in the training rows; leave it out")
    scale = float(values.std()) if values.max() > values.min() else 1.0
    return float(values.mean()), scale
