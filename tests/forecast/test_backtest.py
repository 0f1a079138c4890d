"""Backtests: which origins, what is known at each, what is written, and trading on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from recurra.core.errors import Interrupted, UserError
from recurra.forecast import rolling, verbs
from recurra.forecast.backtesting import Backtesting, run_backtest
from recurra.forecast.data.context import Context
from recurra.forecast.data.tables import open_panel
from recurra.forecast.forecasting import Forecasting, forecast_table
from recurra.forecast.inference import load_checkpoint
from recurra.forecast.methods import Method
from recurra.forecast.rolling import before

Maker = Callable[..., Any]
Command = Callable[..., Any]
ROWS = 120
"""Rows of a series; the last 24 test, and with a horizon of 4 the origins after them are rows 96 to 116."""
FILES = ["backtest.csv", "metrics.csv", "metrics.json", "strip.png"]


def rows_of(model: Any, frame: Any, out: Path, **how: Any) -> pd.DataFrame:
    given = {"baselines": ("last_value",), "levels": (80.0,), "quiet": True, **how}
    run_backtest(Backtesting(model, **given), frame, out, overwrite=False)
    return pd.read_csv(out / "backtest.csv", parse_dates=["ds", "cutoff"])


def cutoffs(rows: pd.DataFrame) -> list[int]:
    """Row of the table that each cutoff is."""
    return [int(one.days) for one in rows["cutoff"].drop_duplicates() - pd.Timestamp("2024-01-01")]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, list(range(95, 116))),
        ({"stride": 4}, [95, 99, 103, 107, 111, 115]),
        ({"origins": 3}, [113, 114, 115]),
        ({"origins": 2, "stride": 4}, [111, 115]),
        ({"cutoffs": ("2024-04-12", "2024-04-01")}, [91, 102]),
        ({"batch_size": 1}, list(range(95, 116))),
    ],
)
def test_origins(how: dict[str, Any], expected: list[int], long_frame: Maker, learned: Maker, tmp_path: Path) -> None:
    frame = long_frame(ROWS)
    rows = rows_of(learned(frame), frame, tmp_path, **how)
    assert cutoffs(rows) == expected  # in the order of time, and every one that fits
    assert len(rows) == len(expected) * 3 * 4
    assert sorted(one.name for one in tmp_path.iterdir()) == FILES
    # Each row's value is the table's, and lies one to four steps after the cutoff.
    joined = rows.merge(frame, on=["unique_id", "ds"], suffixes=("", " table"))
    np.testing.assert_array_equal(joined["y"], joined["y table"])
    assert set((rows["ds"] - rows["cutoff"]).dt.days) == {1, 2, 3, 4}
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert summary["scored"].startswith(f"data frame: {len(expected)} origins, {3 * len(expected)} windows")


@pytest.mark.parametrize("kind", ["arnet", "arnet-by-window", "linear", "chimera", "regenn"])
def test_rows_are_those_of_one_forecast_after_the_other(
    kind: str, long_frame: Maker, learned: Maker, tmp_path: Path
) -> None:
    frame = long_frame(ROWS, covariates=kind == "regenn")
    model = learned(frame, kind)
    rows = rows_of(model, frame, tmp_path, rolling=False, stride=5)
    name = type(model).__name__
    for cutoff, own in rows.groupby("cutoff"):
        made = forecast_table(Forecasting(model), frame[frame["ds"] <= cutoff]).frame
        keys = ["unique_id", *(["variable"] if "variable" in own else []), "ds"]
        joined = own.merge(made, on=keys, suffixes=("", " single"))
        assert len(joined) == len(own) == len(made)
        np.testing.assert_allclose(joined[name], joined[f"{name} single"], rtol=1e-6, atol=1e-6)


def test_scores_are_those_of_the_rows(long_frame: Maker, learned: Maker, tmp_path: Path) -> None:
    frame = long_frame(ROWS)
    rows = rows_of(learned(frame), frame, tmp_path)
    mean = json.loads((tmp_path / "metrics.json").read_text())["mean"]
    for name in ("ARNet", "last_value"):
        assert mean[name]["mae"] == pytest.approx((rows[name] - rows["y"]).abs().mean())
        assert mean[name]["rmse"] == pytest.approx(np.sqrt((rows[name] - rows["y"]).pow(2).mean()))
    inside = rows["y"].between(rows["ARNet-lo-80"], rows["ARNet-hi-80"])
    assert mean["ARNet"]["coverage_80"] == pytest.approx(inside.mean())
    last = frame.set_index(["unique_id", "ds"])["y"]
    np.testing.assert_allclose(rows["last_value"], last.loc[list(zip(rows["unique_id"], rows["cutoff"], strict=True))])


def test_the_ends_that_are_scored_are_those_that_are_forecast(
    long_frame: Maker, learned: Maker, tmp_path: Path
) -> None:
    frame = long_frame(ROWS)
    model = learned(frame, "arnet-quantiles")
    rows = rows_of(model, frame, tmp_path, rolling=False, levels=(80.0, 90.0), origins=1)
    made = forecast_table(Forecasting(model, levels=(80.0, 90.0)), frame[frame["ds"] <= rows["cutoff"][0]]).frame
    joined = rows.merge(made, on=["unique_id", "ds"], suffixes=("", " single"))
    assert len(joined) == 12
    for name in ("ARNet", "ARNet-lo-80", "ARNet-hi-80", "ARNet-lo-90", "ARNet-hi-90"):
        np.testing.assert_allclose(joined[name], joined[f"{name} single"], rtol=1e-6, atol=1e-6)


def test_rolling_intervals_learn_from_what_came(long_frame: Maker, learned: Maker, tmp_path: Path) -> None:
    frame = long_frame(300)
    late = frame.groupby("unique_id").cumcount() >= 240
    frame.loc[late, "y"] += np.random.default_rng(1).normal(0, 10, int(late.sum()))  # the errors grow
    model = learned(frame)
    widths = []
    for learns in (True, False):
        rows = rows_of(model, frame, tmp_path / str(learns), rolling=learns)
        rows = rows[rows["unique_id"] == "a"]
        widths.append((rows["ARNet-hi-80"] - rows["ARNet-lo-80"]).to_numpy().reshape(-1, 4))
    assert np.allclose(widths[0][0], widths[1][0])  # nothing has come yet
    assert np.allclose(widths[1], widths[1][0])
    assert (widths[0][-1] > widths[0][0]).all()


@pytest.mark.parametrize("kind", ["arnet", "arnet-by-window", "chimera", "arnet-quantiles"])
def test_intervals_that_do_not_roll_are_those_that_forecast_gives(
    kind: str, long_frame: Maker, learned: Maker, tmp_path: Path
) -> None:
    frame = long_frame(ROWS)
    model = learned(frame, kind)
    rows = rows_of(model, frame, tmp_path, rolling=False, cutoffs=("2024-04-20",))
    name = type(model).__name__
    made = forecast_table(Forecasting(model, levels=(80.0,)), frame[frame["ds"] <= "2024-04-20"]).frame
    joined = rows.merge(made, on=["unique_id", "ds"], suffixes=("", " single"))
    assert len(joined) == 12
    for column in (f"{name}-lo-80", f"{name}-hi-80"):
        assert np.isfinite(joined[column]).all()
        np.testing.assert_allclose(joined[column], joined[f"{column} single"], rtol=1e-5, atol=1e-5)


def test_rows_before_an_origin(long_frame: Maker) -> None:
    frame = long_frame(30, covariates=True)
    frame = frame[(frame["unique_id"] != "c") | (frame["ds"] >= "2024-01-21")]  # begins at row 20
    frame.loc[8:11, "y"] = np.nan
    panel = open_panel(frame, targets=["y"], past=["rain"], future=["price"], static=["kind"], fill="linear")
    cut = before(panel, 10)
    assert [(one.id, len(one)) for one in cut.series] == [("a", 10), ("b", 10)]
    assert np.isnan(cut.series[0].values[8:, 0]).all()  # filled from row 12, which is not known yet
    assert np.isfinite(cut.series[1].values).all()
    assert all(one.covariates is not None and len(one.covariates) == 10 for one in cut.series)
    assert cut.series[0].static == panel.series[0].static
    assert [str(one) for one in cut.id_column([0, 1])] == ["a", "b"]
    later = before(panel, 25)
    assert [len(one) for one in later.series] == [25, 25, 5]
    np.testing.assert_array_equal(later.series[0].values, panel.series[0].values[:25])


@pytest.mark.parametrize("kind", ["linear", "arnet-covariates"])
def test_refits_are_trainings_on_the_rows_before_each(
    kind: str, long_frame: Maker, recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = long_frame(ROWS, covariates=kind == "arnet-covariates")
    table = tmp_path / "table.csv"
    frame.to_csv(table, index=False)
    path = recipe(kind, data={"csv": str(table)}, train={"epochs": 1})
    verbs.train(path, out=tmp_path / "run", quiet=True)
    seen: list[tuple[str, Any]] = []
    real = rolling.refitted

    def spy(how: Any, name: str, model: Any, history: Any) -> Any:
        fresh = real(how, name, model, history)
        seen.append((str(history.series[0].stamps[-1].date()), fresh))
        return fresh

    monkeypatch.setattr(rolling, "refitted", spy)
    verbs.backtest(tmp_path / "run", table, tmp_path / "out", stride=3, refit=3, baselines=(), quiet=True)
    rows = pd.read_csv(tmp_path / "out" / "backtest.csv", parse_dates=["ds", "cutoff"])
    # Origins 96, 99, ..., 114; trained again before 105 and 114.
    assert [day for day, _ in seen] == ["2024-04-14", "2024-04-23"]
    name = type(seen[0][1]).__name__
    for day, model in seen:
        assert Context.of(model).trained_until < day
        made = forecast_table(Forecasting(model, future_frame=frame), frame[frame["ds"] <= day]).frame
        joined = rows[rows["cutoff"] == day].merge(made, on=["unique_id", "ds"], suffixes=("", " single"))
        assert len(joined) == 12
        np.testing.assert_allclose(joined[name], joined[f"{name} single"], rtol=1e-6, atol=1e-6)
    first = load_checkpoint(tmp_path / "run")
    made = forecast_table(Forecasting(first, future_frame=frame), frame[frame["ds"] <= "2024-04-05"]).frame
    joined = rows[rows["cutoff"] == "2024-04-05"].merge(made, on=["unique_id", "ds"], suffixes=("", " single"))
    np.testing.assert_allclose(joined[name], joined[f"{name} single"], rtol=1e-6, atol=1e-6)
    assert not torch.equal(*(next(iter(one.state_dict().values())) for one in (first, seen[1][1])))


def test_refits_of_a_wide_table_with_chosen_columns(long_frame: Maker, recipe: Maker, tmp_path: Path) -> None:
    wide = long_frame(ROWS).pivot(index="ds", columns="unique_id", values="y").reset_index()
    wide.to_csv(tmp_path / "wide.csv", index=False)
    data = {"csv": str(tmp_path / "wide.csv"), "targets": ["c", "a"], "freq": "D"}
    verbs.train(recipe("chimera", data=data, train={"epochs": 1}), out=tmp_path / "run", quiet=True)
    made = verbs.backtest(tmp_path / "run", tmp_path / "wide.csv", tmp_path / "out", stride=8, refit=1, quiet=True)
    assert set(made.scores) == {"Chimera", "last_value", "drift", "seasonal_naive", "ridge", "ridge_level"}
    rows = pd.read_csv(tmp_path / "out" / "backtest.csv")
    assert set(rows["unique_id"]) == {"a", "c"}
    assert np.isfinite(rows["Chimera"]).all()


def test_a_key_press_says_how_many_are_done_and_leaves_nothing(
    long_frame: Maker, learned: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = long_frame(ROWS)
    model = learned(frame)
    call, count = Method.__call__, []

    def stopped(self: Method, batch: Any) -> Any:
        if self.name == "ARNet" and len(batch.target) == 3:  # of the backtest, not of the calibration
            count.append(1)
            if len(count) > 5:
                raise KeyboardInterrupt
        return call(self, batch)

    monkeypatch.setattr(Method, "__call__", stopped)
    out = tmp_path / "out"
    with pytest.raises(Interrupted, match="interrupted; 15 of 63 windows were done, nothing is written"):
        rows_of(model, frame, out, batch_size=3)
    assert not out.exists() or not list(out.iterdir())


def test_results_that_are_there_are_not_lost(long_frame: Maker, learned: Maker, tmp_path: Path) -> None:
    frame = long_frame(ROWS)
    model = learned(frame)
    rows_of(model, frame, tmp_path)
    before_ = (tmp_path / "backtest.csv").read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        rows_of(model, frame, tmp_path, stride=2)
    assert (tmp_path / "backtest.csv").read_bytes() == before_


def test_a_series_that_ends_early_or_begins_late_has_its_own_origins(
    long_frame: Maker, learned: Maker, tmp_path: Path
) -> None:
    frame = long_frame(ROWS)
    model = learned(frame)
    uneven = frame[(frame["unique_id"] != "a") | (frame["ds"] < "2024-04-16")]  # row 106
    uneven = uneven[(uneven["unique_id"] != "b") | (uneven["ds"] >= "2024-03-01")]  # row 60
    rows = rows_of(model, uneven, tmp_path)
    last = rows.groupby("unique_id")["cutoff"].max()
    assert str(last["a"].date()) == "2024-04-11"
    assert str(last["c"].date()) == "2024-04-25"
    assert (rows.groupby(["unique_id", "cutoff"]).size() == 4).all()


def test_stamps_and_zone_in_the_rows(long_frame: Maker, learned: Maker, tmp_path: Path) -> None:
    frame = long_frame(ROWS, ("a",), freq="h", tz="Europe/Madrid")
    model = learned(frame, "arnet")
    run_backtest(Backtesting(model, origins=1, quiet=True), frame, tmp_path, overwrite=False)
    rows = pd.read_csv(tmp_path / "backtest.csv")
    assert rows["cutoff"].iloc[0] == "2024-01-05 19:00:00+01:00"
    assert rows["ds"].iloc[0] == "2024-01-05 20:00:00+01:00"


# --- trading


@pytest.fixture
def prices() -> pd.DataFrame:
    """Open and close of 260 business days."""
    generator = np.random.default_rng(5)
    close = 100 * np.exp(np.cumsum(generator.normal(0.0005, 0.01, 260)))
    opened = np.concatenate([[100.0], close[:-1]]) * np.exp(generator.normal(0, 0.003, 260))
    return pd.DataFrame({"date": pd.bdate_range("2023-01-02", periods=260), "open": opened, "close": close})


def test_trading_on_one_step_forecasts_of_closes(
    prices: pd.DataFrame, learned: Maker, command: Command, tmp_path: Path
) -> None:
    model = learned(prices, "resnls", data={"targets": ["close"]})
    model.save_pretrained(tmp_path / "run")
    prices.to_csv(tmp_path / "prices.csv", index=False)
    result = command("backtest", tmp_path / "run", tmp_path / "prices.csv", "-o", tmp_path / "out", "--trading", "-q")
    assert result.exit_code == 0, result.stderr
    trades = pd.read_csv(tmp_path / "out" / "trading.csv")
    names = trades.iloc[:, 0].tolist()
    assert any("ResNLS" in str(name) for name in names)
    assert any("hold" in str(name) for name in names)
    assert {"random_low", "random_median", "random_high", "beaten"} <= set(trades.columns)
    free = command(
        "backtest", tmp_path / "run", tmp_path / "prices.csv", "-o", tmp_path / "free", "--trading", "--fee", 0, "-q"
    )
    assert free.exit_code == 0
    ours, without = (pd.read_csv(tmp_path / one / "trading.csv") for one in ("out", "free"))
    row = [str(name) for name in names].index(next(str(name) for name in names if "ResNLS" in str(name)))
    returns = next(column for column in ours.columns if "return" in column.lower())
    assert without[returns][row] >= ours[returns][row]


def test_trading_that_cannot_be(prices: pd.DataFrame, long_frame: Maker, learned: Maker, tmp_path: Path) -> None:
    model = learned(prices, "resnls", data={"targets": ["close"]})
    for how in ({"stride": 2}, {"cutoffs": ("2023-12-20",)}):
        with pytest.raises(UserError, match="neither --stride nor --cutoff"):
            rows_of(model, prices, tmp_path / "out", trading=True, **how)
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="open"):
        rows_of(model, prices.drop(columns="open"), tmp_path / "out", trading=True)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
