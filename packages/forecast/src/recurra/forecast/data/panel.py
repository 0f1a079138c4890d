"""What an opened table is: series on regular time axes, whatever form, order, zone and types it came in."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recurra.core.inspection import Fact
from recurra.forecast.data.calendar import Frequency

Array = NDArray[np.float64]


@dataclass
class Series:
    """One series on its own span of the common frequency.

    Attributes:
        id: as in the input, type included.
        stamps: of its rows, sorted, without gaps, in the zone of the input.
        values: (time, variable); NaN where missing.
        covariates: one column each, as in the input, with these stamps first and, of those known ahead, later ones; or
            None.
        static: name and value of each static covariate.
    """

    id: Hashable
    stamps: pd.Index
    values: Array
    covariates: pd.DataFrame | None = None
    static: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.stamps)


@dataclass
class Panel:
    """Series of one table.

    Attributes:
        source: file, or "data frame"; for messages.
        series: in the order in which their ids first occur.
        variables: names of the variables; ("y",) of most tables.
        frequency: of all of them.
        facts: what was found out about the table, from what evidence, and what was done; shown by `inspect`.
        names: of the input's columns for id and time and target, which results carry too.
        wide: the table had a column a series.
    """

    source: str
    series: list[Series]
    variables: tuple[str, ...]
    frequency: Frequency
    facts: list[Fact] = field(default_factory=list)
    names: tuple[str, str] = ("unique_id", "ds")
    wide: bool = False

    def aligned(self) -> tuple[pd.Index, Array]:
        """Stamps (time) and values (time, series x variable) of the span that all series have.

        Raises:
            UserError: they have none, or it is too short to say so; its line names the two series that part.
        """
        raise NotImplementedError
