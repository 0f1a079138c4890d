"""The simple forecasts: exact on what they are made for, finite on everything, equal for one row and for many."""

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recurra.core.errors import UserError
from recurra.core.testing import assert_close
from recurra.forecast.baselines import BASELINES, Drift, LastValue, Ridge, SeasonalMean, SeasonalNaive, StatsmodelsAR
from recurra.forecast.zero_shot import ZERO_SHOT

Array = NDArray[np.float64]
nan = np.nan


def test_last_value_is_the_last_that_was_observed() -> None:
    past = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, nan], [nan, nan, nan]])
    assert_close(LastValue().forecast(past[:2], 2), np.array([[3.0, 3.0], [2.0, 2.0]]))
    assert np.isnan(LastValue().forecast(past, 2)[2]).all()


def test_drift_goes_on_along_a_line() -> None:
    line = 2.0 + 0.5 * np.arange(14.0)
    past = np.stack([line[:10]] * 3)
    past[1, [0, 4, 8, 9]] = nan
    past[2, :9] = nan
    forecast = Drift().forecast(past, 4)
    assert_close(forecast[0], line[10:], atol=1e-12)
    assert_close(forecast[1], line[10:], atol=1e-12)
    assert_close(forecast[2], np.full(4, line[9]))


def test_seasonal_naive_repeats_the_last_season() -> None:
    wave = np.tile([1.0, 5.0, 2.0, 7.0], 5)
    past = np.stack([wave[:10], wave[:10]])
    past[1, [9, 8]] = nan
    assert_close(SeasonalNaive(season=4).forecast(past, 6), np.stack([wave[10:16]] * 2))
    # A place that was never observed has the last value.
    short = [np.array([3.0, 4.0]), np.array([9.0])]
    assert_close(SeasonalNaive(season=4).forecast(short, 4), np.array([[4.0, 4.0, 3.0, 4.0], [9.0, 9.0, 9.0, 9.0]]))


def test_seasonal_mean_is_that_of_four_seasons() -> None:
    past = np.arange(20.0)[None]
    past[0, 16] = nan
    forecast = SeasonalMean(season=4).forecast(past, 5)
    assert_close(forecast[0], np.array([8.0, 11.0, 12.0, 13.0, 8.0]))


def test_ridge_learns_a_recursion_whatever_its_scale() -> None:
    steps = np.arange(300.0)
    values = [np.sin(0.3 * steps), 1e4 * np.cos(0.3 * steps) + 5e5]
    ridge = Ridge(window=20, horizon=5).fit(values)
    past = np.stack([1e-3 * np.sin(0.3 * np.arange(300.0, 320.0)) + 1])
    truth = 1e-3 * np.sin(0.3 * np.arange(320.0, 325.0)) + 1
    assert_close(ridge.forecast(past, 5)[0], truth, atol=1e-4)
    assert ridge.forecast(past, 2).shape == (1, 2)
    with pytest.raises(ValueError, match="ridge was fitted for 5 steps; got horizon 6"):
        ridge.forecast(past, 6)
    short = Ridge(window=20, horizon=5).fit([np.arange(9.0)])
    assert "the longest stretch without a gap has 9" in short.failures[0]
    assert_close(short.forecast([np.arange(9.0)], 3), np.full((1, 3), 8.0))


def odd_series() -> list[Array]:
    generator = np.random.default_rng(0)
    series = [generator.normal(size=80).cumsum(), np.full(60, 3.0), np.array([2.0]), np.zeros(40)]
    series += [generator.normal(size=50), np.array([1.0, nan, 4.0]), 1e-9 * generator.normal(size=60)]
    series[4][[0, 1, 2, 10, 48, 49]] = nan
    return series


@pytest.mark.parametrize("name", BASELINES)
def test_every_row_is_finite_and_stands_for_itself(name: str) -> None:
    series = odd_series()
    baseline = BASELINES[name](season=4, window=8, horizon=6).fit(series)
    forecast = baseline.forecast(series, 6)
    assert forecast.shape == (len(series), 6)
    assert forecast.dtype == np.float64
    assert np.isfinite(forecast).all()
    for i, one in enumerate(series):
        assert_close(baseline.forecast([one], 6, series=[i]), forecast[i : i + 1], rtol=1e-9, atol=1e-9, name=name)
    if name != "ridge_level":  # which pulls constants towards the level of all series
        assert_close(forecast[1], np.full(6, 3.0), atol=1e-6)
        assert_close(forecast[3], np.zeros(6), atol=1e-6)


def test_ridge_level_knows_the_level_that_values_come_back_to() -> None:
    draw = np.random.default_rng(0)
    series = [np.zeros(600)]
    for t in range(1, 600):
        series[0][t] = 0.8 * series[0][t - 1] + draw.normal()
    ridge = BASELINES["ridge_level"](window=6, horizon=4).fit([series[0] + 50])
    past = np.full((1, 6), 60.0)
    expected = 50 + 10 * 0.8 ** np.arange(1, 5)
    assert_close(ridge.forecast(past, 4)[0], expected, atol=1.5)
    assert BASELINES["ridge"](window=6, horizon=4).fit([series[0] + 50]).forecast(past, 4)[0, 3] == pytest.approx(60)


@pytest.mark.parametrize("name", BASELINES)
def test_knows_nothing_of_what_follows(name: str) -> None:
    """Fitted on what lies before, a forecast is that of its past alone."""
    series = np.random.default_rng(1).normal(size=120).cumsum()
    baseline = BASELINES[name](season=4, window=8, horizon=3).fit([series[:100]])
    before = baseline.forecast([series[:100]], 3)
    series[100:] = 1e9
    assert_close(baseline.forecast([series[:100]], 3), before)


def test_one_series_that_fails_is_named_and_the_others_are_not_touched() -> None:
    series = odd_series()
    whole = BASELINES["ets"](season=4).fit(series)
    assert whole.failures[2] == "has 1 values; exponential smoothing needs 5"
    alone = BASELINES["ets"](season=4).fit(series[:1])
    assert_close(whole.forecast(series, 4)[0], alone.forecast(series[:1], 4)[0], rtol=1e-9)


def test_autoreg_is_statsmodels_own_forecast() -> None:
    from statsmodels.tsa.ar_model import AutoReg

    series = np.random.default_rng(2).normal(size=200).cumsum()
    ours = StatsmodelsAR(season=4).fit([series])
    theirs = AutoReg(series, lags=5, trend="c").fit()
    assert_close(ours.forecast([series], 7)[0], theirs.forecast(7), rtol=1e-9)
    # The parameters of the fitted series go with a later origin too.
    moved = ours.forecast([series[:150], series[:170]], 1, series=[0, 0])
    expected = [theirs.params[0] + theirs.params[1:] @ series[n - 5 : n][::-1] for n in (150, 170)]
    assert_close(moved[:, 0], np.array(expected), rtol=1e-9)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="season must be at least 1; got 0"):
        SeasonalNaive(season=0)
    with pytest.raises(ValueError, match=r"past has shape \(3,\); expected \(row, time\)"):
        LastValue().forecast(np.zeros(3), 1)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins that have the call signatures of the packages and forecast the last value."""

    def held(rows: Any, horizon: int, levels: int) -> Any:
        return torch.as_tensor(np.asarray(rows))[:, -1:, None].expand(-1, horizon, levels)

    class Pipeline:
        @classmethod
        def from_pretrained(cls, name: str, device_map: str) -> "Pipeline":
            return cls()

        def predict_quantiles(self, inputs: Any, prediction_length: int, quantile_levels: list[float]) -> Any:
            return held(inputs, prediction_length, len(quantile_levels)), None

    class Model:
        @classmethod
        def from_pretrained(cls, device: str) -> "Model":
            return cls()

        def forecast(self, context: Any, horizon: int = 0, prediction_length: int = 0) -> Any:
            made = held(context, horizon or prediction_length, 9)
            return (made, None) if prediction_length else made.numpy()

    for name, content in {
        "chronos": {"BaseChronosPipeline": Pipeline},
        "tirex": {"load_model": lambda name, device: Model()},
        "fracast": {"FracastModel": Model},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", ZERO_SHOT)
def test_an_installed_package_is_a_line_of_the_table(name: str) -> None:
    forecast = ZERO_SHOT[name]().forecast([np.array([1.0, 2.0]), np.array([3.0, nan, 5.0, nan]), np.array([nan])], 4)
    assert_close(forecast[:2], np.array([[2.0] * 4, [5.0] * 4]))
    assert np.isnan(forecast[2]).all()


@pytest.mark.parametrize("name", ZERO_SHOT)
def test_an_absent_package_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"^baseline {name} needs the package [\w-]+: pip install [\w-]+ \(.*\)$"):
        ZERO_SHOT[name]()


def test_weights_that_are_not_to_be_had_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tirex", types.ModuleType("tirex"))
    with pytest.raises(UserError, match="baseline tirex: tirex-ts cannot load: module 'tirex' has no attribute"):
        ZERO_SHOT["tirex"]()
