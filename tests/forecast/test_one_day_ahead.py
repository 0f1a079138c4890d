"""One day ahead over several seeds, beside the simple forecasts."""

from typing import Any

import numpy as np
import pytest
import torch

from recurra.core.errors import UserError
from recurra.forecast.protocols.one_day_ahead import (
    autoregression,
    last_values,
    one_day_table,
    resnls_runs,
    spread,
)
from recurra.forecast.protocols.resnls import ResnlsSettings

TINY: dict[str, Any] = {"hidden": 4}


def series(days: int = 120) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    close = 100 + random.normal(0, 1, days).cumsum()
    return close + random.normal(0, 0.2, days), close


def test_simple_forecasts() -> None:
    _, close = series()
    naive = last_values(close, 100)
    np.testing.assert_array_equal(naive.forecast, close[99:-1])
    assert naive.after == close[-1]
    line = np.arange(60.0) * 0.5 + 3
    fitted = autoregression(line, 40)
    np.testing.assert_allclose(fitted.forecast, line[40:])
    assert fitted.after == pytest.approx(33.0)
    with pytest.raises(UserError, match="an autoregression of order 5 needs 12"):
        autoregression(close, 8)


def test_autoregression_sees_nothing_ahead() -> None:
    _, close = series()
    later = close.copy()
    later[110:] += 40
    before, after = autoregression(close, 100), autoregression(later, 100)
    np.testing.assert_array_equal(before.forecast[:11], after.forecast[:11])
    assert before.after != after.after


def test_table_has_a_row_for_every_run_and_its_spread() -> None:
    opens, closes = series()
    state = torch.random.get_rng_state()
    settings = ResnlsSettings(epochs=1)
    runs = {"ResNLS": resnls_runs(closes, settings, seeds=(0, 1, 2), **TINY)}
    assert torch.equal(torch.random.get_rng_state(), state), "nobody else's random numbers are drawn"
    again = resnls_runs(closes, settings, seeds=(1,), **TINY)
    np.testing.assert_array_equal(again[1].forecast, runs["ResNLS"][1].forecast)
    table = one_day_table(opens, closes, runs, fee=0.001)
    assert table["forecast"].tolist() == ["last value", "AR(5)", "ResNLS", "ResNLS", "ResNLS"]
    assert table["seed"].tolist() == [0, 0, 0, 1, 2]
    assert table["mase"][0] == 1.0
    assert table["trades"][0] == 0
    assert table["mae"][2:].nunique() == 3
    assert (table["days"] == 120 - runs["ResNLS"][0].first).all()
    summary = spread(table)
    row = summary[summary["forecast"] == "ResNLS"].iloc[0]
    assert row["mae_min"] <= row["mae_mean"] <= row["mae_max"]
    assert row["mae_max"] == table["mae"][2:].max()
