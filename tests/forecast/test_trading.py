"""The long or flat backtest: the golden curves, what it may not see, and the controls beside it."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recurra.core.errors import UserError
from recurra.core.testing import Tolerance, assert_close, golden, pairs
from recurra.forecast import trading
from recurra.forecast.trading import accuracy, backtest, buy_and_hold, random_signals, signals, trading_table


def walk(days: int = 200, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Opens and closes of a random walk."""
    random = np.random.default_rng(seed)
    close = 100 * np.exp(random.normal(0, 0.01, days).cumsum())
    return np.concatenate([close[:1], close[:-1]]) * np.exp(random.normal(0, 0.003, days)), close


@pytest.mark.parity
@pairs("forecast-classic", "backtest_*")
def test_golden(path: Path) -> None:
    pair = golden(path)
    limit: Tolerance = pair.tolerance
    open, close, forecast = (pair.inputs[name].numpy() for name in ("open", "close", "forecast"))
    expected, compared = pair.outputs, 0
    for execution in ("open", "close"):
        for fee in pair.config["fees"]:
            for threshold in pair.config["thresholds"]:
                name = f"{execution}_fee{fee:g}_thr{threshold:g}"
                if f"equity_{name}" not in expected:
                    continue
                wanted = signals(close, forecast, threshold)
                options: dict[str, Any] = {"capital": pair.config["capital"], "fee": fee, "execution": execution}
                result = backtest(open, close, wanted, simulator="own", **options)
                assert_close(result.equity, expected[f"equity_{name}"], limit, name=f"equity_{name}")
                assert_close(result.position, expected[f"position_{name}"], limit, name=f"position_{name}")
                summary = np.array(dataclasses.astuple(result.summary))
                assert_close(summary, expected[f"summary_{name}"], limit, name=f"summary_{name}")
                compared += 1
    assert compared
    held = dataclasses.astuple(buy_and_hold(close, capital=pair.config["capital"]).summary)
    assert_close(np.array(held[:3]), expected["buy_hold_summary"], limit, name="buy_hold_summary")
    errors = np.array(dataclasses.astuple(accuracy(close, forecast))[:4])
    assert_close(errors, expected["mae_rmse_mase_da"], limit, name="mae_rmse_mase_da")


@pytest.mark.skipif(importlib.util.find_spec("bt") is None, reason="no bt")
@pytest.mark.filterwarnings("ignore")  # of bt and what it brings
def test_bt_gives_the_same_curve() -> None:
    open, close = walk(60)
    wanted = random_signals(60, 13, 0)
    by_bt, own = (backtest(open, close, wanted, fee=0.0, execution="close", simulator=s) for s in ("bt", "own"))
    assert_close(by_bt.equity, own.equity, rtol=1e-9)
    assert by_bt.summary.trades == own.summary.trades == 13


def test_without_bt_the_own_simulator_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    open, close = walk(40)
    monkeypatch.setattr(trading.importlib.util, "find_spec", lambda name: None)
    backtest(open, close, random_signals(40, 4, 0), fee=0.0, execution="close")
    with pytest.raises(UserError, match="bt is not installed"):
        backtest(open, close, random_signals(40, 4, 0), fee=0.0, execution="close", simulator="bt")


def test_equity_sees_nothing_ahead() -> None:
    """What comes after a day changes nothing up to it; at next-open execution, not even that day's own wish."""
    open, close = walk()
    wanted = random_signals(200, 40, 1)
    before = backtest(open, close, wanted)
    later, more = close.copy(), wanted.copy()
    later[120:] *= 1.5
    more[119:] = 1 - more[119:]
    after = backtest(open, later, more)
    np.testing.assert_array_equal(before.equity[:120], after.equity[:120])
    assert (before.equity[120:] != after.equity[120:]).any()


def test_flat_pays_nothing_and_a_trade_pays_its_fee_twice() -> None:
    open, close = walk(30)
    assert backtest(open, close, np.zeros(30, np.int64)).equity.tolist() == [100_000.0] * 30
    flat = np.full(30, 50.0)
    wanted = np.zeros(30, np.int64)
    wanted[3:9] = 1
    result = backtest(flat, flat, wanted, fee=0.01)
    assert result.summary.trades == 2
    assert result.equity[-1] == pytest.approx(100_000 * 0.99 / 1.01)


def test_random_signals_trade_as_often_and_not_on_the_last_day() -> None:
    open, close = walk()
    for seed in range(20):
        for execution in ("open", "close"):
            result = backtest(open, close, random_signals(200, 31, seed), execution=execution, simulator="own")
            assert result.summary.trades == 31
    assert (random_signals(200, 31, 0) == random_signals(200, 31, 0)).all()
    assert (random_signals(200, 31, 0) != random_signals(200, 31, 1)).any()
    with pytest.raises(UserError, match="200 trades need 201 days; got 200"):
        random_signals(200, 200, 0)


def test_table_has_buy_and_hold_and_the_spread_of_chance() -> None:
    open, close = walk()
    known = np.append(close[1:], close[-1])
    table = trading_table(open, close, {"the truth": known, "last value": close}, seeds=tuple(range(25)), fee=0.0)
    assert table["strategy"].tolist() == ["buy and hold", "the truth", "last value"]
    truth, naive = table.iloc[1], table.iloc[2]
    assert truth["total_return"] > truth["random_high"]
    assert truth["beaten"] == 1.0
    assert (naive["trades"], naive["total_return"], naive["sharpe"]) == (0, 0.0, 0.0)
    assert truth["random_low"] < truth["random_median"] < truth["random_high"]


def test_accuracy_of_the_last_value_and_of_the_truth() -> None:
    _, close = walk()
    assert accuracy(close, close).mase == 1.0
    truth = accuracy(close, np.append(close[1:], 1.0))
    assert (truth.mae, truth.direction, truth.high) == (0.0, 1.0, pytest.approx(1.0))
    assert 0.97 < truth.low < 1
    constant = accuracy(np.full(5, 2.0), np.full(5, 3.0))
    assert constant.mase == np.inf


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"close": np.array([1.0, np.nan, 2.0])}, "close: day 1 is nan; expected a positive number"),
        ({"open": np.array([0.0, 1.0, 2.0])}, "open: day 0 is 0; expected a positive number"),
        ({"close": np.ones(4)}, "open has 3 days, close has 4 days, wanted has 3 days; expected the same"),
        ({"fee": 1.0}, "fee must be from 0 to below 1; got 1.0"),
        ({"capital": 0.0}, "capital must be positive; got 0.0"),
        ({"execution": "noon"}, "execution must be one of open, close; got 'noon'"),
        (
            {"simulator": "bt"},
            "bt simulates trades at the close without fees; use execution close with fee 0, or own",
        ),
    ],
)
def test_what_does_not_serve_is_said(changes: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    arguments = {"open": np.ones(3), "close": np.ones(3), "wanted": np.ones(3, np.int64)} | changes
    with pytest.raises(ValueError, match=r"must be|expected|use ") as error:
        backtest(**arguments)
    assert str(error.value) == line
