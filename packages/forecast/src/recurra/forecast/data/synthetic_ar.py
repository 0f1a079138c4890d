"""Autoregressive series made as AR-Net's authors make theirs, number for number, from numpy's legacy generator."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_TRIES = 100


def random_coefficients(order: int, generator: np.random.RandomState) -> Array:
    """Coefficients (order,), lag 1 first, of a stationary process: uniform, scaled down where large, of mean 0.

    The one coefficient of order 1 is therefore 0, as in the authors' program.

    Raises:
        ValueError: no stationary process came up in 100 draws.
    """
    for _ in range(_TRIES):
        drawn = generator.uniform(-1, 1, order)
        size = np.abs(drawn).sum()
        if size > 1:
            drawn = drawn / (size + 1e-5)
            drawn = drawn * (0.5 + 0.5 * generator.rand(1))
        drawn = drawn - drawn.mean()
        if is_stationary(drawn):
            return np.asarray(drawn)
    raise ValueError(f"no stationary coefficients of order {order} in {_TRIES} draws")


def is_stationary(coefficients: Array) -> bool:
    """Whether every root of the polynomial 1 - w_1 z - ... - w_p z^p lies outside the unit circle."""
    from statsmodels.tsa.arima_process import ArmaProcess

    return bool(ArmaProcess(np.concatenate([[1.0], -coefficients])).isstationary)


def ar_series(
    coefficients: Array, length: int, generator: np.random.RandomState, *, noise: float = 1.0, burn_in: int = 0
) -> Array:
    """A series (length,) of mean 0 with these coefficients, lag 1 first, and normal innovations.

    Args:
        coefficients: (lag,).
        length: of the series.
        generator: of the innovations.
        noise: their standard deviation.
        burn_in: values that are made first and left out; the authors leave out none.
    """
    from statsmodels.tsa.arima_process import ArmaProcess

    process = ArmaProcess(np.concatenate([[1.0], -coefficients]))
    made = process.generate_sample(length, scale=noise, distrvs=generator.standard_normal, burnin=burn_in)
    return np.asarray(made - made.mean())


def padded(coefficients: dict[int, float], lags: int) -> Array:
    """Coefficients (lags,), lag 1 first, out of those of some lags."""
    full = np.zeros(lags)
    full[np.array(list(coefficients)) - 1] = list(coefficients.values())
    return full
