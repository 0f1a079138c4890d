"""Small long tables, and what the tests of tables ask of them."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from recurra.core.errors import UserError
from recurra.forecast.data.panel import Panel
from recurra.forecast.data.tables import open_panel


def long(ids: tuple[Any, ...] = ("b", "a"), rows: int = 12, freq: str = "h", start: str = "2024-01-01") -> pd.DataFrame:
    stamps = pd.date_range(start, periods=rows, freq=freq, unit="us")
    frames = [
        pd.DataFrame({"unique_id": one, "ds": stamps, "y": np.arange(rows) + 100.0 * at}) for at, one in enumerate(ids)
    ]
    return pd.concat(frames, ignore_index=True)


def same(one: Panel, other: Panel, *, ids: bool = True) -> None:
    assert one.frequency == other.frequency
    assert one.variables == other.variables
    assert not ids or [series.id for series in one.series] == [series.id for series in other.series]
    for a, b in zip(one.series, other.series, strict=True):
        pd.testing.assert_index_equal(a.stamps, b.stamps, check_names=False)
        np.testing.assert_array_equal(a.values, b.values)


def refused(source: Any, line: str, **options: Any) -> None:
    with pytest.raises(UserError) as error:
        open_panel(source, **options)
    assert str(error.value) == line


def fact(panel: Panel, what: str) -> Any:
    return next(one for one in panel.facts if one.what == what)
