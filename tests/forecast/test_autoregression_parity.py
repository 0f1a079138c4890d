"""The exact autoregression against statsmodels, from golden pairs."""

from pathlib import Path

import pytest
import torch

from recurra.core.testing import Tolerance, assert_close, golden, pairs
from recurra.forecast.models.autoregression import AutoRegression

pytestmark = pytest.mark.parity


@pairs("forecast-classic", "ar_least_squares_*")
def test_autoregression(path: Path) -> None:
    pair = golden(path)
    series, lags = pair.inputs["series"], pair.config["p"]
    # The pairs say in words: 1e-8 relative, and 1e-5 where the root is near 1 and the mean large.
    tolerance = Tolerance(0.0, 1e-5 if pair.config["kind"] == "nearunit" else 1e-8)
    trends = [trend for trend in ("n", "c", "ct") if f"autoreg_{trend}" in pair.outputs]
    assert trends
    for trend in trends:
        model = AutoRegression(window=lags, trend=trend).fit([series.numpy()])
        expected = pair.outputs[f"autoreg_{trend}"]
        close = Tolerance(tolerance.rtol * float(expected.abs().max()), 0.0)
        assert_close(model.params, expected, close, name=trend)
        if (errors := pair.outputs.get(f"autoreg_{trend}_se")) is not None:
            assert_close(model.param_errors, errors, tolerance, name=f"{trend} standard errors")
        if (statistics := pair.outputs.get(f"autoreg_{trend}_stats")) is not None:
            ours = torch.cat([model.statistics[1:4], model.variance[None]])
            assert_close(ours, statistics, tolerance, name=f"{trend} llf, aic, bic, sigma2")
        for name, forecast in pair.outputs.items():
            if name.startswith(f"forecast_{trend}_"):
                steps = int(name.rpartition("_")[2])
                close = Tolerance(tolerance.rtol * float(forecast.abs().max()), 0.0)
                ours = model.extend(series[None, -lags:, None], steps)[0, :, 0]
                assert_close(ours, forecast, close, name=name)
