"""Forecasts one day ahead beside the last value and an exact autoregression, and what each earns, over several seeds.

One run proves nothing here: the returns of one network from several seeds spread more than any claimed effect. So each
row is one run, `spread` shows their mean and range, and random signals stand beside every return.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from recurra.core.errors import UserError
from recurra.forecast.models.resnls import ResNLS, Variant
from recurra.forecast.protocols.resnls import OneStep, ResnlsSettings, forecast_test_days
from recurra.forecast.trading import accuracy, backtest, buy_and_hold, random_control, signals

Array = NDArray[np.float64]
Days = Float[np.ndarray, " day"]
ERRORS = ("mae", "rmse", "mase", "direction")


def last_values(closes: Days, first: int) -> OneStep:
    """The day before, for each day from `first` on."""
    return OneStep(first, closes[first - 1 : -1], float(closes[-1]), [])


def autoregression(closes: Days, first: int, order: int = 5) -> OneStep:
    """Least squares with intercept on the days before `first`, for each day from there on.

    Raises:
        UserError: there are too few days.
    """
    if first < 2 * order + 2:
        raise UserError(f"{first} days to fit; an autoregression of order {order} needs {2 * order + 2}")
    view = np.lib.stride_tricks.sliding_window_view(closes, order)
    design = np.concatenate([view, np.ones((len(view), 1))], axis=1)
    fitted = np.linalg.lstsq(design[: first - order], closes[order:first], rcond=None)[0]
    forecast = design[first - order :] @ fitted
    return OneStep(first, forecast[:-1], float(forecast[-1]), [])


def resnls_runs(
    closes: Days,
    settings: ResnlsSettings,
    *,
    variant: Variant = "paper",
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    **options: Any,
) -> dict[int, OneStep]:
    """A ResNLS trained from each seed, which decides its first weights and the order of its batches.

    Args:
        closes: (day), oldest first.
        settings: of the trainings; their seed is replaced.
        variant: of the model.
        seeds: of the runs.
        options: further arguments of the model.
    """
    runs = {}
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = ResNLS(variant=variant, **options)
            runs[seed] = forecast_test_days(model, closes, ResnlsSettings(**{**vars(settings), "seed": seed}))
    return runs


def one_day_table(
    opens: Days, closes: Days, runs: Mapping[str, Mapping[int, OneStep]], *, order: int = 5, **options: Any
) -> pd.DataFrame:
    """One row a run: errors, directional accuracy with interval, return, trades and random signals with as many.

    Args:
        opens: (day), of the whole series.
        closes: (day), of the whole series.
        runs: name to runs by seed; all of the same test days.
        order: of the autoregression beside them.
        options: of `backtest`.
    """
    first = next(iter(next(iter(runs.values())).values())).first
    simple = {"last value": {0: last_values(closes, first)}, f"AR({order})": {0: autoregression(closes, first, order)}}
    days = slice(first - 1, None)  # the first test day is forecast at the close before it
    held = buy_and_hold(closes[days]).summary
    rows: list[dict[str, Any]] = []
    for name, by_seed in {**simple, **runs}.items():
        for seed, run in by_seed.items():
            forecast = np.append(run.forecast, run.after)
            errors = accuracy(closes[days], forecast)
            summary = backtest(opens[days], closes[days], signals(closes[days], forecast), **options).summary
            control = random_control(opens[days], closes[days], summary.trades, **options)
            returns = np.array([one.summary.total_return for one in control])
            chance = dict(zip(("random_low", "random_high"), np.quantile(returns, [0.05, 0.95]), strict=True))
            beaten = {"beaten": float((returns < summary.total_return).mean()), "hold": held.total_return}
            rows.append({"forecast": name, "seed": seed, **vars(errors), **vars(summary), **chance, **beaten})
    return pd.DataFrame(rows)


def spread(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, least and greatest of errors, return and trades of each forecast over its seeds."""
    columns = [*ERRORS, "total_return", "trades", "beaten"]
    grouped = table.groupby("forecast", sort=False)[columns].agg(["mean", "min", "max"])
    grouped.columns = [f"{name}_{what}" for name, what in grouped.columns]
    return grouped.reset_index()
