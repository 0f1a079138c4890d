"""What a forecast of one instrument earns: long or flat, after fees, beside buy-and-hold and random signals.

At the close of day t a forecast of the next close is made. Long is wanted if it is above today's close by more than a
threshold, else flat; all in, in fractions of a unit, without interest and without short sales. Execution "open", the
default, trades at the next day's open; "close" trades at the very close that the forecast was made from, which is
optimistic and what papers mostly do. Buying gives cash / (price (1 + fee)) units, selling gives units price (1 - fee).
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy.typing import NDArray

from recurra.core.checks import one_of
from recurra.core.errors import UserError

Days = Float[np.ndarray, " day"]
Execution = Literal["open", "close"]
Simulator = Literal["auto", "bt", "own"]
YEAR = 252
"""Trading days of a year, for the Sharpe ratio."""


@dataclass(frozen=True)
class Summary:
    """What came of a strategy.

    Attributes:
        total_return: last equity over the first, less 1.
        max_drawdown: deepest fall below an earlier equity, as a share of it; 0 or below.
        sharpe: mean over standard deviation of the daily returns, times the root of 252; 0 where they do not vary.
        trades: purchases and sales.
    """

    total_return: float
    max_drawdown: float
    sharpe: float
    trades: int


@dataclass(frozen=True)
class Backtest:
    """One strategy on one instrument.

    Attributes:
        equity: at each close.
        position: 1 where units are held after the day's close, else 0.
        summary: of the equity.
    """

    equity: Days
    position: Days
    summary: Summary


@dataclass(frozen=True)
class Accuracy:
    """How close forecasts of the next close came, over the days whose next close is known.

    Attributes:
        mae: mean absolute error.
        rmse: root of the mean squared error.
        mase: mae over that of the last value on the same days.
        direction: share of days on which forecast and next close are both above today's close, or both not.
        low: lower end of the 95 % binomial interval of `direction` (Wilson).
        high: its upper end.
        days: how many.
    """

    mae: float
    rmse: float
    mase: float
    direction: float
    low: float
    high: float
    days: int


def signals(close: Days, forecast: Days, threshold: float = 0.0) -> Int[np.ndarray, " day"]:
    """1 on days whose forecast of the next close is above the close by more than the threshold, else 0."""
    _check(close=close, forecast=forecast)
    return (forecast > close * (1 + threshold)).astype(np.int64)


def backtest(
    open: Days,
    close: Days,
    wanted: Int[np.ndarray, " day"],
    *,
    capital: float = 100_000.0,
    fee: float = 0.001,
    execution: Execution = "open",
    simulator: Simulator = "auto",
) -> Backtest:
    """The strategy that holds the instrument while it is wanted.

    Args:
        open: prices; only `execution="open"` trades at them.
        close: prices.
        wanted: 1 or 0, decided at the close of each day; the last day's is never traded.
        capital: at the first close.
        fee: share of every trade's value.
        execution: at the next open, or at the same close.
        simulator: "bt", the package, which knows closes without fees; "own"; or by "auto" bt where it serves and is
            installed.

    Raises:
        UserError: prices are not positive numbers, or the simulator does not serve.
    """
    _check(open=open, close=close, wanted=wanted)
    one_of("execution", execution, Execution)
    one_of("simulator", simulator, Simulator)
    if not 0 <= fee < 1:
        raise UserError(f"fee must be from 0 to below 1; got {fee}")
    if not capital > 0:
        raise UserError(f"capital must be positive; got {capital}")
    serves = execution == "close" and fee == 0
    if simulator == "bt" and not serves:
        raise UserError("bt simulates trades at the close without fees; use execution close with fee 0, or own")
    if simulator == "bt" and importlib.util.find_spec("bt") is None:
        raise UserError("bt is not installed; for --simulator bt: pip install 'recurra-forecast[trading]'")
    position, trades = _positions(wanted, execution)
    if simulator == "bt" or (simulator == "auto" and serves and importlib.util.find_spec("bt")):
        equity = _with_bt(close, position, capital)
    else:
        equity = _simulated(open if execution == "open" else close, close, position, capital, fee)
    return Backtest(equity, position, summarised(equity, trades))


def buy_and_hold(close: Days, *, capital: float = 100_000.0) -> Backtest:
    """The instrument from the first close to the last, without fees."""
    _check(close=close)
    equity = capital * close / close[0]
    return Backtest(equity, np.ones(len(close)), summarised(equity, 0))


def random_signals(days: int, trades: int, seed: int) -> Int[np.ndarray, " day"]:
    """Wishes that change on random days, as often as a strategy of so many trades; flat before the first.

    Raises:
        UserError: there are not so many days.
    """
    if trades > days - 1:
        raise UserError(f"{trades} trades need {trades + 1} days; got {days}")
    changes = np.random.default_rng(seed).choice(days - 1, size=trades, replace=False)
    toggled = np.zeros(days, np.int64)
    toggled[changes] = 1
    return np.asarray(toggled.cumsum() % 2)


def random_control(
    open: Days, close: Days, trades: int, *, seeds: Sequence[int] = tuple(range(100)), **options: Any
) -> list[Backtest]:
    """Strategies of random signals with the same number of trades, one a seed; options are those of `backtest`."""
    options = {**options, "simulator": "own"}  # the same numbers, a thousand times as fast
    return [backtest(open, close, random_signals(len(close), trades, seed), **options) for seed in seeds]


def summarised(equity: Days, trades: int) -> Summary:
    """Summary of an equity curve."""
    returns = equity[1:] / equity[:-1] - 1
    spread = float(returns.std(ddof=1)) if len(returns) > 1 else 0.0
    return Summary(
        total_return=float(equity[-1] / equity[0] - 1),
        max_drawdown=float((equity / np.maximum.accumulate(equity) - 1).min()),
        sharpe=float(returns.mean()) / spread * YEAR**0.5 if spread else 0.0,
        trades=trades,
    )


def accuracy(close: Days, forecast: Days) -> Accuracy:
    """Errors of forecasts of the next close, each made at the close of its day; the last day's has nothing to meet.

    Raises:
        UserError: there are less than two days, or prices are not positive numbers.
    """
    _check(close=close, forecast=forecast)
    today, tomorrow, said = close[:-1], close[1:], forecast[:-1]
    errors, naive = said - tomorrow, float(np.abs(today - tomorrow).mean())
    mae = float(np.abs(errors).mean())
    days, right = len(errors), float(((said > today) == (tomorrow > today)).mean())
    z = 1.959963984540054
    middle, width = right + z * z / (2 * days), z * (right * (1 - right) / days + z * z / (4 * days * days)) ** 0.5
    scale = 1 + z * z / days
    return Accuracy(
        mae=mae,
        rmse=float(np.sqrt((errors**2).mean())),
        mase=mae / naive if naive else float("inf"),
        direction=right,
        low=(middle - width) / scale,
        high=(middle + width) / scale,
        days=days,
    )


def trading_table(
    open: Days,
    close: Days,
    forecasts: Mapping[str, Days],
    *,
    threshold: float = 0.0,
    seeds: Sequence[int] = tuple(range(100)),
    **options: Any,
) -> pd.DataFrame:
    """One row a forecast, and beside each the spread of random signals with as many trades; buy-and-hold first.

    Args:
        open: prices.
        close: prices.
        forecasts: name to forecasts of the next close, made at each close.
        threshold: see `signals`.
        seeds: of the random signals.
        options: of `backtest`.

    Returns:
        Columns strategy, total_return, max_drawdown, sharpe, trades; and of the random signals random_low,
        random_median and random_high (5, 50 and 95 % of their returns) and `beaten`, the share that earned less.
    """
    capital = {"capital": options["capital"]} if "capital" in options else {}
    rows: list[dict[str, Any]] = [{"strategy": "buy and hold", **vars(buy_and_hold(close, **capital).summary)}]
    for name, forecast in forecasts.items():
        summary = backtest(open, close, signals(close, forecast, threshold), **options).summary
        control = random_control(open, close, summary.trades, seeds=seeds, **options)
        returns = np.array([one.summary.total_return for one in control])
        low, median, high = np.quantile(returns, [0.05, 0.5, 0.95])
        spread = {"random_low": low, "random_median": median, "random_high": high}
        beaten = {"beaten": float((returns < summary.total_return).mean())}
        rows.append({"strategy": name, **vars(summary), **spread, **beaten})
    return pd.DataFrame(rows)


def _positions(wanted: NDArray[np.int64], execution: Execution) -> tuple[Days, int]:
    """Position after each close, and how often it changes: from flat, and nothing is traded at the last close."""
    held = np.asarray(wanted, np.float64)
    position = np.concatenate([[0.0], held[:-1]]) if execution == "open" else np.append(held[:-1], held[-2:-1])
    return position, int(np.abs(np.diff(position, prepend=0.0)).sum())


def _simulated(price: Days, close: Days, position: Days, capital: float, fee: float) -> Days:
    """Equity at each close of a strategy that trades at `price` when its position changes."""
    cash, units, equity = capital, 0.0, np.empty(len(close))
    for day, held in enumerate(position):
        if held and not units:
            cash, units = 0.0, cash / (price[day] * (1 + fee))
        elif units and not held:
            cash, units = units * price[day] * (1 - fee), 0.0
        equity[day] = cash + units * close[day]
    return equity


def _with_bt(close: Days, position: Days, capital: float) -> Days:
    """The same by the package bt, at closes without fees."""
    import bt

    dates = pd.bdate_range("2000-01-03", periods=len(close))
    prices, weights = (pd.DataFrame({"unit": values}, index=dates) for values in (close, position))
    strategy = bt.Strategy("long or flat", [bt.algos.WeighTarget(weights), bt.algos.Rebalance()])
    test = bt.Backtest(strategy, prices, initial_capital=capital, integer_positions=False, progress_bar=False)
    test.run()
    return np.asarray(test.strategy.values.loc[dates], dtype=np.float64)


def _check(**series: NDArray[Any]) -> None:
    """Refuses series of different lengths or of less than two days, or with values that are no prices.

    Raises:
        UserError: as said.
    """
    lengths = {name: len(values) for name, values in series.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"{', '.join(f'{name} has {count} days' for name, count in lengths.items())}; expected the same"
        )
    if min(lengths.values()) < 2:
        raise UserError(f"{next(iter(lengths))} has {min(lengths.values())} days; expected 2 at least")
    for name, values in series.items():
        wrong = ~np.isfinite(values) | (values <= 0 if name in ("open", "close") else False)
        if wrong.any():
            expected = "a finite number" if name not in ("open", "close") else "a positive number"
            raise UserError(
                f"{name}: day {int(wrong.argmax())} is {values[int(wrong.argmax())]:g}; expected {expected}"
            )
