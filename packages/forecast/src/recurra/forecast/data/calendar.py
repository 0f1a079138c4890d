"""The time axis: how far apart steps are, which stamps come next, what of the calendar a model is told."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frequency:
    """Steps of a regular time axis.

    Attributes:
        alias: pandas' present alias, e.g. "h", "15min", "D", "B", "W-SAT", "ME", "QS-OCT"; "1", "2", ... for whole numbers.
        evidence: how it is known.
    """

    alias: str
    evidence: str = ""

    @classmethod
    def of(cls, alias: str | int) -> "Frequency":
        """Of a name as people write it: old aliases (H, T, M, A-DEC, BM) stand for the present ones.

        Raises:
            UserError: pandas knows no such frequency; its line names the nearest.
        """
        raise NotImplementedError

    @classmethod
    def infer(cls, stamps: pd.Index) -> "Frequency":
        """Of the stamps of one series, sorted and unique; gaps do not hide it, days without weekends are business days.

        Raises:
            UserError: the stamps decide nothing; its line says what they look like and names --freq.
        """
        raise NotImplementedError

    def after(self, last: object, count: int) -> pd.Index:
        """The stamps that follow one, in its zone: instants decide, month ends stay month ends."""
        raise NotImplementedError

    def between(self, first: object, last: object) -> pd.Index:
        """All stamps from one to another."""
        raise NotImplementedError

    @property
    def season(self) -> int:
        """Steps of the season that one expects first: 24 hours, 7 days, 5 business days, 52 weeks, 12 months, 4 quarters."""
        raise NotImplementedError

    def marks(self, stamps: pd.Index) -> NDArray[np.float32]:
        """Calendar features (time, feature), each between -0.5 and 0.5; none for whole numbers and years."""
        raise NotImplementedError
