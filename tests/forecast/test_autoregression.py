"""The exact autoregression: equal to least squares on the matrix of lags, and to a loop over the steps."""

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recurra.core.checkpoint import Pretrained
from recurra.core.errors import UserError
from recurra.core.testing import assert_close
from recurra.forecast.models.autoregression import AutoRegression

Array = NDArray[np.float64]
TRENDS = ("n", "c", "ct")


def simulate(seed: int, length: int, coefficients: dict[int, float], *, mean: float = 0.0) -> Array:
    """An autoregression with these coefficients by lag, after a burn-in."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=length + 200)
    for t in range(max(coefficients), len(values)):
        values[t] += sum(weight * values[t - lag] for lag, weight in coefficients.items())
    return values[200:] + mean


def lag_matrix(values: list[Array], lags: int, trend: str) -> tuple[Array, Array]:
    """Regressors and targets of every row in which nothing is missing."""
    rows, targets = [], []
    for series in values:
        for t in range(lags, len(series)):
            terms = [1.0, t + 1.0][: TRENDS.index(trend)]
            rows.append([*terms, *series[t - lags : t][::-1]])
            targets.append(series[t])
    design, target = np.array(rows), np.array(targets)
    there = np.isfinite(design).all(1) & np.isfinite(target)
    return design[there], target[there]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    lags=st.integers(1, 9),
    trend=st.sampled_from(TRENDS),
    missing=st.integers(0, 8),
    count=st.integers(1, 3),
)
def test_is_least_squares_without_the_rows_that_lack_something(
    seed: int, lags: int, trend: str, missing: int, count: int
) -> None:
    generator = np.random.default_rng(seed)
    values = [simulate(seed + i, 150 + 20 * i, {1: 0.5, 3: -0.3}, mean=3.0) for i in range(count)]
    for series in values:
        series[generator.choice(len(series), missing, replace=False)] = np.nan
    model = AutoRegression(window=lags, trend=trend).fit(values)
    design, target = lag_matrix(values, lags, trend)
    expected, *_ = np.linalg.lstsq(design, target, rcond=None)
    residual = target - design @ expected
    covariance = np.linalg.inv(design.T @ design) * np.mean(residual**2)
    assert_close(model.params, expected, atol=1e-9, name="coefficients")
    assert_close(model.param_errors, np.sqrt(np.diagonal(covariance)), rtol=1e-7, name="standard errors")
    assert_close(model.variance, np.mean(residual**2), rtol=1e-9, name="variance")
    assert int(model.statistics[0]) == len(target)


@pytest.mark.parametrize("trend", TRENDS)
def test_pieces_and_parts_add_up(trend: str) -> None:
    values = [simulate(seed, 300, {1: 0.4, 2: 0.2}, mean=10.0) for seed in range(3)]
    values[1][[40, 41, 200]] = np.nan
    shift = 0.0 if trend == "n" else 10.0
    whole = AutoRegression(window=5, trend=trend).fit(values)
    model = AutoRegression(window=5, trend=trend)
    pieces = model.sums(shift)
    for series in values:
        pieces.restart()
        for chunk in np.array_split(series, [3, 90, 91, 250]):
            pieces.extend(chunk)
    model.solve(pieces)
    assert_close(model.params, whole.params, atol=1e-9)
    parts = model.sums(shift)
    for series in values:
        parts += model.sums(shift).add([series])
    model.solve(parts)
    assert_close(model.params, whole.params, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_pruning_finds_the_lags_that_there_are(seed: int) -> None:
    truth = {1: 0.2, 2: 0.3, 3: -0.5}
    values = simulate(seed, 20_000, truth)
    model = AutoRegression(window=30, prune=4.0).fit([values])
    assert [lag + 1 for lag in model.coefficients.nonzero()[:, 0].tolist()] == [1, 2, 3]
    # What is left is the fit of order 3 on the same rows.
    design, target = lag_matrix([values], 30, "c")
    expected, *_ = np.linalg.lstsq(design[:, :4], target, rcond=None)
    assert_close(model.params[:4], expected, atol=1e-9)
    assert not model.errors[3:].any()


def test_white_noise_is_pruned_to_its_mean() -> None:
    model = AutoRegression(window=4, prune=6.0).fit([np.random.default_rng(0).normal(7.0, size=500)])
    assert not model.coefficients.any()
    assert model.terms[0] == pytest.approx(7.0, abs=0.2)
    bare = AutoRegression(window=4, trend="n", prune=6.0).fit([np.random.default_rng(0).normal(size=500)])
    assert not bare.params.any()


@pytest.mark.parametrize("trend", TRENDS)
@pytest.mark.parametrize("horizon", [1, 3, 40])
def test_forecast_is_the_loop_over_the_steps(trend: str, horizon: int) -> None:
    values = simulate(5, 400, {1: 0.6, 4: -0.3}, mean=2.0)
    model = AutoRegression(window=6, horizon=horizon, trend=trend).fit([values])
    known = list(values)
    constant, slope = model.terms.tolist()
    for t in range(len(values), len(values) + horizon):
        lags = np.array(known[-1:-7:-1])
        known.append(constant + slope * (t + 1) + float(model.coefficients.numpy() @ lags))
    past = torch.from_numpy(np.stack([values[-6:], values[-16:-10]]))[..., None]
    ours = model(past)
    assert_close(ours[0, :, 0], np.array(known[len(values) :]), atol=1e-9)
    # Batch and variates are independent, and time can be given.
    later = model.extend(past[1:], horizon, start=391.0)
    assert_close(model.extend(past.movedim(0, 2).movedim(1, 0)[None, 0], horizon)[0, :, 0], ours[0, :, 0], atol=1e-12)
    if trend != "ct":
        assert_close(later, ours[1:], atol=1e-12)


def test_intervals_are_those_of_the_impulse_response() -> None:
    model = AutoRegression(window=2, horizon=5, quantiles=(0.1, 0.5, 0.9))
    model.coefficients[:] = torch.tensor([0.5, 0.2], dtype=torch.float64)
    model.variance.fill_(4.0)
    response = [1.0, 0.5]
    for _ in range(3):
        response.append(0.5 * response[-1] + 0.2 * response[-2])
    expected = 2 * np.sqrt(np.cumsum(np.square(response)))
    assert_close(model.standard_deviations(5), expected, atol=1e-12)
    forecast = model(torch.randn(3, 2, 1, dtype=torch.float64))
    assert forecast.shape == (3, 5, 1, 4)
    assert_close(forecast[0, :, 0, 3] - forecast[0, :, 0, 0], NormalDist().inv_cdf(0.9) * expected, atol=1e-9)
    assert (forecast[..., 1:].diff(dim=-1) > 0).all()
    assert_close(forecast[..., 2], forecast[..., 0], atol=1e-12)


@pytest.mark.parametrize("trend", TRENDS)
@pytest.mark.parametrize("streamed", [False, True])
def test_constant_and_exactly_predictable_series_are_finite(trend: str, streamed: bool) -> None:
    for series in (np.full(60, 4.0), np.tile([1.0, -1.0, 3.0], 20), np.zeros(60)):
        model = AutoRegression(window=5, trend=trend, horizon=6)
        if streamed:
            model.solve(model.sums().add([series]))
        else:
            model.fit([series])
        ours = model(torch.from_numpy(series[None, -5:, None]))[0, :, 0]
        assert_close(ours, np.resize(np.roll(series[-3:], 0), 6), atol=1e-4)


def test_ill_conditioned_sums_are_replaced_by_rows() -> None:
    """A sine obeys an exact recursion of two lags: with six of them nothing tells them apart."""
    series = 1e3 + np.sin(0.3 * np.arange(400.0))
    model = AutoRegression(window=6, horizon=8).fit([series])
    ours = model(torch.from_numpy(series[None, -6:, None]))[0, :, 0]
    assert_close(ours, 1e3 + np.sin(0.3 * np.arange(400.0, 408.0)), atol=1e-6)


def test_scale_and_shift_of_the_data_carry_through() -> None:
    values = simulate(9, 500, {1: 0.5})
    small = AutoRegression(window=3).fit([values])
    large = AutoRegression(window=3).fit([1e4 * values + 1e7])
    assert_close(large.coefficients, small.coefficients, atol=1e-8)
    past = torch.from_numpy(values[None, -3:, None])
    assert_close(large(1e4 * past + 1e7), 1e4 * small(past) + 1e7, rtol=1e-9)


def test_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    model = AutoRegression(window=4, horizon=3, trend="ct", prune=2.0).fit([simulate(2, 300, {1: 0.7})])
    model.save_pretrained(tmp_path / "ar")
    again = Pretrained.from_pretrained(tmp_path / "ar")
    assert isinstance(again, AutoRegression)
    past = torch.randn(2, 4, 1)
    assert torch.equal(again(past), model(past))
    assert np.array_equal(again.param_errors, model.param_errors)
    assert again(past).dtype == torch.float32


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UserError, match=r"no series has 5 values in a row \(window 4 and horizon 1\).*has 4"):
        AutoRegression(window=4).fit([np.arange(4.0)])
    with pytest.raises(ValueError, match="prune must be positive; got 0"):
        AutoRegression(window=4, prune=0.0)
    with pytest.raises(ValueError, match="a model without a constant takes values as they are"):
        AutoRegression(window=4, trend="n").sums(2.0)
