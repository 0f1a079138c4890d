"""Intervals hold as many values as their level says: of models that were trained or solved, on rows that nobody saw."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import betabinom

from recurra.forecast import verbs
from recurra.forecast.backtesting import Backtesting, run_backtest
from recurra.forecast.forecasting import Forecasting, forecast_table

Maker = Callable[..., Any]
LEVELS = (50.0, 80.0, 95.0)
HORIZON = 4


def generated(count: int, rows: int, seed: int, name: str = "s") -> pd.DataFrame:
    """Series of one process, y_t = 0.6 y_(t-1) - 0.2 y_(t-2) + e_t."""
    noise = np.random.default_rng(seed).standard_normal((count, rows + 50))
    y = np.zeros_like(noise)
    for t in range(2, rows + 50):
        y[:, t] = 0.6 * y[:, t - 1] - 0.2 * y[:, t - 2] + noise[:, t]
    stamps = pd.date_range("2024-01-01", periods=rows, freq="h")
    return pd.DataFrame(
        {
            "unique_id": np.repeat([f"{name}{at:04}" for at in range(count)], rows),
            "ds": np.tile(stamps.to_numpy(), count),
            "y": y[:, 50:].ravel(),
        }
    )


def band(count: int, level: float, calibration: int, *, tail: float = 5e-4) -> tuple[float, float]:
    """Shares of `count` independent values that an interval of a level holds in all but a thousandth of the cases.

    The interval rests on the k-th smallest of n errors, so that what it holds is Beta(k, n + 1 - k).
    """
    k = min(calibration, math.ceil((calibration + 1) * level / 100))
    law = betabinom(count, k, calibration + 1 - k)
    return float(law.ppf(tail)) / count, float(law.ppf(1 - tail)) / count


@pytest.fixture(scope="module")
def known() -> pd.DataFrame:
    return generated(10, 300, 1)


@pytest.fixture(scope="module")
def fresh() -> pd.DataFrame:
    """500 independent series: one window of each is forecast."""
    return generated(500, 40, 2, "new")


def coverage(model: Any, fresh: pd.DataFrame, levels: tuple[float, ...]) -> dict[tuple[float, int], float]:
    """Share of values inside the intervals of each level and step, from one origin of each series."""
    place = fresh.groupby("unique_id").cumcount()
    made = forecast_table(Forecasting(model, levels=levels), fresh[place < 36]).frame
    joined = made.merge(fresh, on=["unique_id", "ds"])
    assert len(joined) == 500 * HORIZON
    name, found = type(model).__name__, {}
    for level in levels:
        inside = joined["y"].between(joined[f"{name}-lo-{level:g}"], joined[f"{name}-hi-{level:g}"])
        for step in range(HORIZON):
            found[level, step] = float(inside.to_numpy().reshape(-1, HORIZON)[:, step].mean())
    return found


@pytest.mark.parametrize("kind", ["autoregression", "linear", "arnet", "arnet-by-window"])
def test_fresh_series_lie_inside_as_often_as_the_level_says(
    kind: str, known: pd.DataFrame, fresh: pd.DataFrame, learned: Maker
) -> None:
    # ARNet has random weights: its intervals are wide, and right.
    data = {} if kind == "arnet-by-window" else {"data": {"scaler": "none"}}
    model = learned(known, kind, **data)
    # 10 series with 60 validation rows: windows that share a row of their horizons are not independent.
    independent = 10 * 57 // HORIZON
    for (level, step), share in coverage(model, fresh, LEVELS).items():
        low, high = band(500, level, independent)
        assert low <= share <= high, (level, step)


def test_of_a_trained_network(known: pd.DataFrame, fresh: pd.DataFrame, recipe: Maker) -> None:
    model = verbs.fit(known, recipe("arnet", data={"scaler": "none"}, train={"epochs": 2}))
    for (level, step), share in coverage(model, fresh, LEVELS).items():
        low, high = band(500, level, 10 * 57 // HORIZON)
        assert low <= share <= high, (level, step)


def test_half_widths_are_ranks_of_the_residuals(known: pd.DataFrame, fresh: pd.DataFrame, learned: Maker) -> None:
    model = learned(known, "linear", data={"scaler": "none"})
    residuals = model.residuals.numpy()
    pooled = np.sort(np.moveaxis(residuals, 1, 2).reshape(-1, HORIZON), axis=0)
    pooled = pooled[np.isfinite(pooled).all(1)]
    made = forecast_table(Forecasting(model, levels=(90.0,)), fresh).frame
    half = (made["LinearMap-hi-90"] - made["LinearMap-lo-90"]).to_numpy().reshape(-1, HORIZON) / 2
    rank = math.ceil((len(pooled) + 1) * 0.9)
    np.testing.assert_allclose(half, np.broadcast_to(pooled[rank - 1], half.shape), rtol=1e-5)
    # A known series has residuals of its own.
    own = forecast_table(Forecasting(model, levels=(90.0,)), known).frame
    half = (own["LinearMap-hi-90"] - own["LinearMap-lo-90"]).to_numpy().reshape(-1, HORIZON) / 2
    rank = math.ceil((len(residuals) + 1) * 0.9)
    np.testing.assert_allclose(half, np.sort(residuals, axis=0)[rank - 1].T, rtol=1e-5)


def test_level_90_is_the_quantiles_of_5_and_95_percent(known: pd.DataFrame, recipe: Maker) -> None:
    model = verbs.fit(known, recipe("arnet-quantiles", train={"epochs": 1}))
    made = forecast_table(Forecasting(model, levels=(80.0, 90.0)), known).frame
    scaled = known.copy()
    context = model.metadata["data"]["scaler"]
    ids = {one: at for at, one in enumerate(model.metadata["data"]["ids"])}
    place = scaled["unique_id"].map(ids).to_numpy()
    shift, scale = (np.asarray(context[name]).ravel()[place] for name in ("shift", "scale"))
    scaled["y"] = (scaled["y"] - shift) / scale
    past = torch.tensor(scaled["y"].to_numpy().reshape(10, -1)[:, -model.window :, None], dtype=torch.float32)
    with torch.no_grad():
        quantiles = model.eval()(past)[:, :, 0, 1:].double().numpy()  # (series, step, quantile)
    first = np.unique(place, return_index=True)[1]
    quantiles = quantiles * scale[first][:, None, None] + shift[first][:, None, None]
    for column, at in (("lo-90", 0), ("lo-80", 1), ("hi-80", 3), ("hi-90", 4)):
        np.testing.assert_allclose(
            made[f"ARNet-{column}"].to_numpy().reshape(10, HORIZON), quantiles[..., at], rtol=1e-5
        )


@pytest.mark.parametrize("factor", [1.0, 1e4, -1e4])
def test_quantiles_never_cross(factor: float, known: pd.DataFrame, learned: Maker) -> None:
    model = learned(known, "arnet-quantiles", data={"scaler": "none"})
    made = forecast_table(
        Forecasting(model, levels=(80.0, 90.0), horizon=10), known.assign(y=known["y"] * factor)
    ).frame
    columns = ["ARNet-lo-90", "ARNet-lo-80", "ARNet", "ARNet-hi-80", "ARNet-hi-90"]
    assert (np.diff(made[columns].to_numpy(), axis=1) >= 0).all()


@pytest.mark.parametrize("kind", ["arnet", "linear", "chimera"])
def test_a_higher_level_is_never_narrower(kind: str, known: pd.DataFrame, learned: Maker) -> None:
    model = learned(known, kind)
    levels = (1.0, 20.0, 50.0, 80.0, 95.0, 99.0)
    made = forecast_table(Forecasting(model, levels=levels), known).frame
    name = type(model).__name__
    ends = [made[f"{name}-lo-{level:g}"] for level in levels[::-1]] + [made[f"{name}-hi-{level:g}"] for level in levels]
    assert (np.diff(np.stack(ends), axis=0) >= 0).all()


def test_too_few_residuals_give_infinity_and_the_reason(long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(40, ("a",))
    model = learned(frame)
    found = forecast_table(Forecasting(model, levels=(50.0, 99.0)), frame)
    assert np.isfinite(found.frame["ARNet-lo-50"]).all()
    assert np.isneginf(found.frame["ARNet-lo-99"]).all()
    assert any("too few" in note for note in found.notes)
    assert not found.frame.isna().any().any()


@pytest.mark.parametrize("rolling", [True, False])
def test_of_a_backtest(rolling: bool, learned: Maker, tmp_path: Path) -> None:
    frame = generated(1, 2000, 3)
    model = learned(frame, "autoregression")
    how = Backtesting(model, levels=LEVELS, rolling=rolling, baselines=(), quiet=True)
    run_backtest(how, frame, tmp_path, overwrite=False)
    rows = pd.read_csv(tmp_path / "backtest.csv")
    one_step = rows.iloc[::HORIZON]  # whose errors are independent
    assert len(one_step) == 397
    for level in LEVELS:
        inside = one_step["y"].between(
            one_step[f"AutoRegression-lo-{level:g}"], one_step[f"AutoRegression-hi-{level:g}"]
        )
        low, high = band(len(one_step), level, 200)
        assert low <= inside.mean() <= high, level


def test_bands_are_narrow_enough_to_tell() -> None:
    """A tenth too much or too little would be seen."""
    for level in LEVELS:
        low, high = band(500, level, 10 * 57 // HORIZON)
        assert high - low < 0.33
        assert low > 0.25
    assert band(500, 95.0, 142)[0] > 0.85
