"""Exact autoregression of recurra.forecast beside statsmodels and a lag matrix; the linear map beside its windows."""

from functools import partial
from typing import Any

import numpy as np
import torch

from bench_cases.case import Case, Run, Variants


def ar_process(length: int) -> Any:
    from recurra.forecast.data.synthetic_ar import ar_series, padded

    return ar_series(padded({1: 0.2, 2: 0.3, 3: -0.5}, 3), length, np.random.RandomState(0), burn_in=1000)


def autoregression(lags: int, small: bool, device: str) -> Variants:
    """Coefficients, standard errors and log-likelihood of an autoregression with a constant."""
    lags = 8 if small else lags
    series = ar_process(600 if small else 25_000)

    def statsmodels() -> Run:
        from statsmodels.tsa.ar_model import AutoReg

        def run() -> list[torch.Tensor]:
            result = AutoReg(series, lags=lags, trend="c").fit()
            return [torch.tensor(result.params), torch.tensor(result.bse), torch.tensor([result.llf, result.sigma2])]

        return run

    def lag_matrix() -> Run:
        def run() -> list[torch.Tensor]:
            windows = np.lib.stride_tricks.sliding_window_view(series, lags + 1)[:, ::-1]
            design = np.column_stack([np.ones(len(windows)), windows[:, 1:]])
            return [torch.tensor(np.linalg.lstsq(design, windows[:, 0])[0])]

        return run

    def ours() -> Run:
        from recurra.forecast.models.autoregression import AutoRegression

        model = AutoRegression(window=lags)

        def run() -> list[torch.Tensor]:
            model.fit([series])
            scores = torch.stack([model.statistics[1], model.variance])
            return [torch.tensor(model.params), torch.tensor(model.param_errors), scores]

        return run

    return {"statsmodels": statsmodels, "lstsq": lag_matrix, "recurra": ours}


def linear_map(horizon: int, small: bool, device: str) -> Variants:
    """A ridge from 336 values to the horizon over every window of seven series."""
    window, length, horizon = (24, 300, 12) if small else (336, 8640, horizon)
    series = [ar_process(length + 10 * i) for i in range(7)]

    def windows() -> Run:
        def run() -> torch.Tensor:
            rows = [np.lib.stride_tricks.sliding_window_view(one, window + horizon) for one in series]
            matrix = np.concatenate(rows)
            x, y = matrix[:, :window], matrix[:, window:]
            mean = x.mean(1, keepdims=True)
            x, y = x - mean, y - mean
            system = x.T @ x + 0.01 * len(x) * np.eye(window)
            return torch.tensor(np.linalg.solve(system, x.T @ y).T)

        return run

    def ours() -> Run:
        from recurra.forecast.models.linear import LinearMap

        model = LinearMap(window=window, horizon=horizon).double()
        return lambda: model.fit(series).map.weight.detach()

    return {"windows": windows, "recurra": ours}


CASES = {
    # The scores of a fit without standard errors are not compared.
    **{
        f"autoregression p={lags}": Case("forecast", partial(autoregression, lags), 1e-6, 1, unlike=("lstsq",))
        for lags in (100, 1000, 2000)
    },
    **{f"linear map 336-{horizon}": Case("forecast", partial(linear_map, horizon), 1e-6, 3) for horizon in (96, 720)},
}
