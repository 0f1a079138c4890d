"""The scale that models see values on: fitted on training rows alone, kept in the checkpoint, undone in results."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recurra.core.checks import one_of

Array = NDArray[np.float64]
Kind = Literal["standard", "minmax", "maximum", "none", "window"]


@dataclass(frozen=True)
class Scaler:
    """Values -> (values - shift) / scale, for each column by itself.

    Attributes:
        kind: "standard": mean and population standard deviation. "minmax": to [0, 1]. "maximum": by the largest value,
            at least 1, as ReGENN has it. "none", "window": as they are; of "window" the model itself takes mean and
            standard deviation of each window.
        shift: (column,).
        scale: (column,), never 0: 1 of a column that is constant on the training rows, or missing there.
    """

    kind: str
    shift: Array
    scale: Array

    @classmethod
    def fit(cls, kind: str, values: NDArray[Any]) -> "Scaler":
        """Of the training rows.

        Args:
            kind: as above.
            values: (time, *columns); NaN is left out, and all sums are double.

        Raises:
            ValueError: there is no such kind.
        """
        one_of("scaler", kind, Kind)
        values = np.asarray(values, np.float64)
        flat = values.reshape(len(values), -1)
        shift, scale = np.zeros(flat.shape[1]), np.ones(flat.shape[1])
        for column in range(flat.shape[1]):  # one at a time: no copy of a large table
            known = flat[:, column]
            known = known[~np.isnan(known)] if np.isnan(known).any() else known
            if len(known) and kind not in ("none", "window"):
                shift[column], scale[column] = _fitted(kind, np.ascontiguousarray(known))
        return cls(kind, shift.reshape(values.shape[1:]), scale.reshape(values.shape[1:]))

    def apply(self, values: NDArray[Any]) -> Array:
        """To the scale of the model; (..., *columns), NaN stays."""
        scaled: Array = (np.asarray(values, np.float64) - self.shift) / self.scale
        return scaled

    def undo(self, values: NDArray[Any]) -> Array:
        """Back to original units."""
        original: Array = np.asarray(values, np.float64) * self.scale + self.shift
        return original

    def columns(self, which: "slice | list[int]") -> "Scaler":
        """Of some of the columns."""
        return Scaler(self.kind, self.shift[which], self.scale[which])

    def to_json(self) -> dict[str, Any]:
        """As JSON values, exactly."""
        return {"kind": self.kind, "shift": self.shift.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Scaler":
        """From what `to_json` gave."""
        one_of("scaler", saved["kind"], Kind)
        return cls(saved["kind"], np.asarray(saved["shift"], np.float64), np.asarray(saved["scale"], np.float64))


def _fitted(kind: str, known: Array) -> tuple[float, float]:
    low, high = float(known.min()), float(known.max())
    if kind == "maximum":
        return 0.0, max(high, 1.0)
    if kind == "minmax":
        return low, high - low if high - low > 0 else 1.0
    mean = float(known.mean())
    # Rounding gives a constant column a deviation that is not quite 0.
    with np.errstate(over="ignore", under="ignore"):
        deviation = float(known.std()) if high > low else 0.0
    if high > low and not 0 < deviation < np.inf:  # the squares of huge and tiny values leave the range of a double
        most = max(abs(low), abs(high))
        mean, deviation = float((known / most).mean()) * most, float((known / most).std()) * most
    return (mean, deviation) if deviation > 0 else (low if high == low else mean, 1.0)
