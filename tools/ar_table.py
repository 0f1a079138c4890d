"""AR-Net against the exact autoregression: error of the coefficients and cost, as one table.

    python tools/ar_table.py             the published comparison: 100 000 points, and 1 000 points with spread lags
    python tools/ar_table.py cost        cost against the order, and against statsmodels and numpy's lstsq

True coefficients are 0.2, 0.3 and -0.5, the noise 1. sTPE is 100 Σ|ŵ - w| / Σ(|ŵ| + |w|) over all p coefficients; MSE
is that of the next value on a quarter more points that follow. Seconds are of one processor core, threads as they are
set.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recurra.core.screen import print_table
from recurra.forecast.arnet_recipes import tabulated, train_one_cycle, train_v0_1
from recurra.forecast.data.synthetic_ar import ar_series, padded
from recurra.forecast.models.arnet import ARNet
from recurra.forecast.models.autoregression import AutoRegression
from recurra.forecast.sparsity import symmetric_error

Array = NDArray[np.float64]
DENSE = {1: 0.2, 2: 0.3, 3: -0.5}
SPREAD = {1: 0.2, 3: 0.3, 10: -0.5}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives and the processor seconds it took."""
    begun = time.process_time()
    return work(), time.process_time() - begun


def exact(series: Array, lags: int, prune: float | None) -> Array:
    return AutoRegression(window=lags, prune=prune).fit([series]).coefficients.numpy()


def arnet(series: Array, lags: int, seed: int, *, small: bool, cycle: bool = False) -> Array:
    """The published recipe; for a small series more epochs, smaller batches and twice the penalty, which is ours."""
    torch.manual_seed(seed)
    x, y = tabulated(torch.from_numpy(series).float(), lags)
    generator = torch.Generator().manual_seed(seed)
    sparsity, epochs = min(1.0, 3 / lags), 60 if small else 10
    if cycle:
        model = ARNet(window=lags, regulariser="v1_2", sparsity=sparsity)
        train_one_cycle(model, x, y, lr=0.02, loss=torch.nn.SmoothL1Loss(), generator=generator)
    else:
        model = ARNet(window=lags, regulariser="v0_1", sparsity=sparsity, epochs=epochs, strength=2.0 if small else 1.0)
        options = {"lr": 1e-2, "batch_size": 32, "decay": 0.93} if small else {}
        train_v0_1(model, x, y, generator=generator, **options)  # type: ignore[arg-type]
    return model.coefficients()[0].detach().double().numpy()


def score(estimated: Array, truth: Array, held_out: Array) -> tuple[float, float]:
    """sTPE in percent, and mean squared error of the next value."""
    lags = len(truth)
    windows = np.lib.stride_tricks.sliding_window_view(held_out, lags + 1)
    residual = windows[:, -1] - windows[:, :-1] @ estimated[::-1]
    return symmetric_error(estimated, truth), float(np.mean(residual**2))


def coefficients(seeds: int = 3) -> list[list[object]]:
    """Rows of the table of errors: the mean over seeds."""
    rows: list[list[object]] = []
    for length, true, lags in ((100_000, DENSE, 3), (100_000, DENSE, 20), (100_000, DENSE, 100), (1_000, SPREAD, 20)):
        small, found = length < 10_000, dict[str, list[tuple[float, float, float]]]()
        for seed in range(seeds):
            truth = padded(true, lags)
            series = ar_series(truth, length * 5 // 4, np.random.RandomState(seed), burn_in=1000)
            train, held_out = series[:length], series[length:]
            prune = 3.0 if small else 4.0
            for name, fit in {
                "least squares": lambda: exact(train, lags, None),  # noqa: B023 - called at once
                f"exact, lags within {prune:g} s.e. pruned": lambda: exact(train, lags, prune),  # noqa: B023
                "AR-Net, penalty of v0_1": lambda: arnet(train, lags, seed, small=small),  # noqa: B023
                "AR-Net, penalty of v1_2, one cycle": lambda: arnet(train, lags, seed, small=small, cycle=True),  # noqa: B023
            }.items():
                if name.endswith("cycle") and not small:
                    continue  # 60 000 steps of 32 rows
                estimated, seconds = timed(fit)
                found.setdefault(name, []).append((*score(estimated, truth, held_out), seconds))
        for name, values in found.items():
            rows.append([length, lags, ", ".join(map(str, true)), name, *map(float, np.mean(values, 0))])
    return rows


def cost(length: int = 25_000) -> list[list[object]]:
    """Rows of the table of cost: seconds by order."""
    from statsmodels.tsa.ar_model import AutoReg

    series, rows = ar_series(padded(DENSE, 3), length, np.random.RandomState(0), burn_in=1000), list[list[object]]()
    exact(series, 10, None)  # what is loaded at the first call is no cost of the order
    train_v0_1(ARNet(window=3, epochs=1), *tabulated(torch.from_numpy(series[:500]).float(), 3))
    for lags in (10, 100, 300, 1000, 2000):
        ours = min(timed(lambda: exact(series, lags, None))[1] for _ in range(5))  # noqa: B023
        result, theirs = timed(lambda: AutoReg(series, lags=lags, trend="c").fit())  # noqa: B023
        theirs += timed(lambda: (result.params, result.bse, result.sigma2, result.llf, result.aic))[1]  # noqa: B023
        windows = np.lib.stride_tricks.sliding_window_view(series, lags + 1)
        plain = timed(
            lambda: np.linalg.lstsq(np.column_stack([np.ones(len(windows)), windows[:, :-1]]), windows[:, -1])  # noqa: B023
        )[1]
        difference = float(np.abs(exact(series, lags, None) - result.params[1:]).max())
        x, y = tabulated(torch.from_numpy(series).float(), lags)
        net = timed(lambda: train_v0_1(ARNet(window=lags, epochs=1), x, y))[1]  # noqa: B023
        rows.append([lags, ours, theirs, theirs / ours, plain, plain / ours, difference, net])
        print(rows[-1], file=sys.stderr)
    return rows


if __name__ == "__main__":
    if sys.argv[1:] == ["cost"]:
        names = ("p", "exact, s", "AutoReg, s", "ratio", "lstsq, s", "ratio", "difference", "AR-Net, s an epoch")
        print_table(names, cost(), title="Cost of an autoregression of order p on 25 000 points")
    elif not sys.argv[1:]:
        names = ("points", "p", "true lags", "method", "sTPE %", "MSE", "seconds")
        print_table(names, coefficients(), title="Coefficients of AR(3), mean of 3 seeds")
    else:
        raise SystemExit(__doc__)
