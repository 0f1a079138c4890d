"""The scores of the M4 competition beside its benchmark, Naive2 (Makridakis, Spiliotis, Assimakopoulos 2020)."""

import math

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Array = NDArray[np.float64]


def naive2(history: Float[np.ndarray, " time"], horizon: int, season: int) -> Float[np.ndarray, " horizon"]:
    """The last value of the seasonally adjusted history, with the seasonal indices of the steps ahead put back.

    The history is adjusted where its autocorrelation at the season is significant at 90 %; the indices are those of the
    classical multiplicative decomposition. A history with values of 0 or below has none.

    Args:
        history: values, oldest first, none missing.
        horizon: steps ahead.
        season: steps of the season; 1 for none.
    """
    y = np.asarray(history, np.float64)
    indices = np.ones(season)
    if _is_seasonal(y, season) and y.min() > 0:
        from statsmodels.tsa.seasonal import seasonal_decompose

        seasonal = seasonal_decompose(y, model="multiplicative", period=season).seasonal
        y, indices = y / seasonal, np.asarray(seasonal[-season:])
    return np.asarray(y[-1] * np.resize(indices, horizon))


def owa(scores: dict[str, float], reference: dict[str, float]) -> float | None:
    """Overall weighted average: the mean of smape and mase, each over that of Naive2; None where one has no score.

    Args:
        scores: of `Scorer.scores`.
        reference: of Naive2 on the same windows.
    """
    if not all(name in scores and reference.get(name, 0.0) > 0 for name in ("smape", "mase")):
        return None
    return sum(scores[name] / reference[name] for name in ("smape", "mase")) / 2


def _is_seasonal(y: Array, season: int) -> bool:
    if season < 2 or len(y) < 3 * season or not (y != y[0]).any():
        return False
    c = y - y.mean()
    correlation = np.array([c[k:] @ c[: len(c) - k] for k in range(1, season + 1)]) / (c @ c)
    limit = 1.645 * math.sqrt((1 + 2 * float(np.square(correlation[:-1]).sum())) / len(y))
    return bool(abs(correlation[-1]) > limit)
