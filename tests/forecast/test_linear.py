"""The linear map in closed form: equal to least squares over every window, whatever is missing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from recurra.core.checkpoint import Pretrained
from recurra.core.errors import UserError
from recurra.core.testing import assert_close
from recurra.forecast.models.linear import LinearMap
from recurra.forecast.window_sums import WindowSums, correlation

Array = NDArray[np.float64]


def series(seed: int, length: int = 200, *, mean: float = 5.0) -> Array:
    """A random walk with a pull, some of whose values are missing."""
    generator = np.random.default_rng(seed)
    values = np.zeros(length)
    for t in range(1, length):
        values[t] = 0.8 * values[t - 1] + generator.normal()
    values[generator.choice(length, 4, replace=False)] = np.nan
    return values + mean


def complete(values: list[Array], width: int) -> Array:
    """Every window without missing values."""
    windows = np.concatenate([sliding_window_view(one, width) for one in values if len(one) >= width])
    return windows[np.isfinite(windows).all(1)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_is_the_least_squares_fit_of_all_complete_windows(
    seed: int, center: bool, constant: bool, ridge: float
) -> None:
    values = [series(seed), series(seed + 50, 90, mean=2.0)]
    windows = complete(values, 9)
    x, y = windows[:, :6], windows[:, 6:]
    mean = x.mean(1, keepdims=True) if center else np.zeros((len(x), 1))
    design = np.concatenate([x - mean, np.ones((len(x), 1))], 1)[:, : None if constant else 6]
    extra = np.sqrt(ridge * len(x)) * np.eye(design.shape[1])
    stacked = np.concatenate([design, extra]), np.concatenate([y - mean, np.zeros((len(extra), 3))])
    solution = np.linalg.lstsq(*stacked, rcond=1e-12)[0]
    model = LinearMap(window=6, horizon=3, center=center, constant=constant, ridge=ridge).double().fit(values)
    assert_close(model.map.weight, solution[:6].T, atol=1e-8, name="weight")
    with torch.no_grad():
        forecast = model(torch.from_numpy(x[..., None]))[..., 0]
    assert_close(forecast, design @ solution + mean, atol=1e-7, name="forecast")


def test_sums_add_up_over_series_and_chunks() -> None:
    values = [series(1), series(2, 130)]
    whole = WindowSums(12, shift=3.0).add(values)
    pieces = WindowSums(12, shift=3.0)
    for one in values:
        pieces.restart()
        for start in (0, 5, 6, 70):
            stop = {0: 5, 5: 6, 6: 70}.get(start, len(one))
            pieces.extend(one[start:stop])
    parts = WindowSums(12, shift=3.0).add(values[:1])
    parts += WindowSums(12, shift=3.0).add(values[1:])
    windows = complete(values, 12) - 3
    assert whole.count == pieces.count == parts.count == len(windows)
    for other in (whole, pieces, parts):
        assert_close(other.gram(), windows.T @ windows, atol=1e-9)
        assert_close(other.first, windows.sum(0), atol=1e-10)
        assert_close(other.timed, whole.timed, rtol=1e-10)
    with pytest.raises(ValueError, match="width and shift differ"):
        parts += WindowSums(12)


def test_long_correlation_is_the_short_ones() -> None:
    generator = np.random.default_rng(0)
    y = generator.normal(size=3000)
    assert_close(correlation(y, y[400:]), np.correlate(y, y[400:], "valid"), atol=1e-9)


def test_moves_and_scales_with_its_input() -> None:
    model = LinearMap(window=8, horizon=3, ridge=1e-4).double().fit([series(3)])
    past = torch.randn(5, 8, 2, dtype=torch.float64)
    assert_close(model(100 * past + 7), 100 * model(past) + 7, rtol=1e-10, atol=1e-10)


def test_constant_series_stays_where_it_is() -> None:
    for ridge in (0.0, 0.01):
        model = LinearMap(window=5, horizon=2, ridge=ridge).fit([np.full(30, 4.0)])
        assert_close(model(torch.full((1, 5, 1), 9.0)), torch.full((1, 2, 1), 9.0), atol=1e-6)


def test_too_short_a_series_is_named() -> None:
    values = np.arange(20.0)
    values[8] = np.nan
    line = r"no series has 13 values in a row \(window 10 and horizon 3\); the longest stretch without a gap has 11\."
    with pytest.raises(UserError, match=line):
        LinearMap(window=10, horizon=3).fit([values])


def test_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    model = LinearMap(window=6, horizon=2, constant=True).fit([series(4)])
    model.save_pretrained(tmp_path / "linear")
    again = Pretrained.from_pretrained(tmp_path / "linear")
    past = torch.randn(3, 6, 1)
    assert torch.equal(model(past), again(past))


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="ridge must be at least 0; got -1"):
        LinearMap(window=3, horizon=1, ridge=-1.0)
    with pytest.raises(ValueError, match="no quantiles"):
        LinearMap(window=3, horizon=1, quantiles=(0.1,))
    with pytest.raises(ValueError, match=r"past has shape \(2, 4, 1\); expected \(batch, 3, variate\)"):
        LinearMap(window=3, horizon=1)(torch.zeros(2, 4, 1))
    with pytest.raises(ValueError, match="a series has shape"):
        LinearMap(window=3, horizon=1).fit([np.zeros((3, 3, 3))])
