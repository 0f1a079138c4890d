"""A rolling backtest of recurra.forecast beside one forecast call for each origin."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench_cases.case import Case, Run, Variants


@cache
def trained(origins: int) -> tuple[Any, pd.DataFrame]:
    """A linear model of hourly values, and its table, in which as many origins come after the training rows."""
    from recurra.forecast import fit

    length = 2000 + origins
    draw = np.random.default_rng(0)
    values = 10 + np.sin(np.arange(length) * 2 * np.pi / 24) + draw.normal(0, 0.3, length).cumsum() * 0.05
    frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024-01-01", periods=length, freq="h"), "y": values})
    share = (2000 - 96) / length
    split = f"data.fractions=[{share * 0.8:.12f},{share * 0.2:.12f},{1 - share:.12f}]"
    model = fit(frame, "linear", ["model.window=168", "model.horizon=24", "data.split=fractions", split])
    return model, frame


def backtest(small: bool, device: str) -> Variants:
    origins = 20 if small else 1000
    model, frame = trained(origins)

    def one_by_one() -> Run:
        def run() -> torch.Tensor:
            found = []
            for origin in range(len(frame) - 24 - origins + 1, len(frame) - 24 + 1):
                made = model.forecast(frame.iloc[origin - 168 : origin], levels=[80])
                found.append(made["LinearMap"].to_numpy())
            return torch.tensor(np.stack(found))

        return run

    def rolling() -> Run:
        from recurra.forecast.backtesting import Backtesting, run_backtest

        def run() -> torch.Tensor:
            with tempfile.TemporaryDirectory() as folder:
                how = Backtesting(model, origins=origins, levels=("80",), quiet=True, preview=False)
                run_backtest(how, frame, Path(folder) / "out", overwrite=False)
                rows = pd.read_csv(Path(folder) / "out" / "backtest.csv")
            return torch.tensor(rows["LinearMap"].to_numpy().reshape(-1, 24))

        return run

    return {"a call per origin": one_by_one, "backtest": rolling}


CASES = {"rolling backtest, 1000 origins": Case("forecast", backtest, 1e-5, 1)}
