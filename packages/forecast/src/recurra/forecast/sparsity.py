"""Penalties that draw coefficients to 0, how they set in, and how far coefficients are from the true ones.

AR-Net (Triebe, Laptev and Rajagopal 2019, arXiv:1911.12436, equations 8 to 11) and the three programs that followed it,
which differ in form, weight and schedule: the paper's code ("v0_1"), the package arnet 1.2 ("v1_2") and NeuralProphet.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

TINY = 1e-9
"""Within roots, whose slope at 0 is infinite."""


def squashed(weights: Float[Tensor, "*shape"], c1: float, c2: float, *, tiny: float = TINY) -> Float[Tensor, "*shape"]:
    """2 / (1 + exp(-c1 |w|^(1/c2))) - 1 of every weight: 0 at 0, towards 1 from there, steep first.

    Args:
        weights: any shape.
        c1: how fast it grows.
        c2: root that is taken.
        tiny: within the root; with 0, as in the paper's code, the gradient at 0 is NaN.
    """
    # Written as its authors do: training towards 0 magnifies round-off, and theirs is what ours is compared with.
    return 2 / (1 + torch.exp(-c1 * (weights.abs() + tiny).pow(1 / c2))) - 1


def logarithmic(weights: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1/(3e) + |w|) - log(1/(3e)) of every weight: NeuralProphet's, whose slope is finite everywhere."""
    offset = 1 / (3 * math.e)
    return torch.log(offset + weights.abs()) - math.log(offset)


def lambda_v0_1(sparsity: float) -> float:
    """Weight of the penalty in the paper's code, for the share of coefficients that are expected not to be 0."""
    return 0.02 * (1 / sparsity - 1)


def lambda_v1_2(sparsity: float, noise: float = 1.0) -> float:
    """Weight of the penalty in arnet 1.2; the noise is 1, or the mean absolute first difference of the series."""
    return 0.01 * noise * ((1 + 1e-9) / (sparsity + 1e-9) - 1)


def ramp_v0_1(progress: float, epochs: int, delay: float) -> float:
    """Share of the penalty: epoch / delay until it is 1, constant within an epoch.

    Args:
        progress: share of the training that is done with this step, (step + 1) / steps.
        epochs: of the training.
        delay: epochs until the penalty is whole.
    """
    epoch = math.ceil(progress * epochs - 1e-6) - 1
    return min(1.0, max(0, epoch) / delay) if delay else 1.0


def ramp_v1_2(progress: float, start: float = 0.0, full: float = 0.5) -> float:
    """Share of the penalty: the square of the way from `start` to `full`, both shares of the training."""
    way = (progress - start) / (full - start)
    return min(1.0, max(0.0, way) ** 2)


def ramp_neuralprophet(progress: float, start: float = 0.66, full: float = 1.0) -> float:
    """Share of the penalty: half a cosine up from `start` to `full`, both shares of the training."""
    way = min(1.0, max(0.0, (progress - start) / (full - start)))
    return 0.5 * (1 - math.cos(math.pi * way))


def symmetric_error(estimated: Array, true: Array) -> float:
    """sTPE in percent: 100 Σ|ŵ - w| / Σ(|ŵ| + |w|) over all coefficients, 0 to 100.

    Args:
        estimated: coefficients, any shape.
        true: of the same shape, with 0 for lags that do not count.
    """
    return float(100 * np.abs(estimated - true).sum() / (1e-8 + np.abs(estimated).sum() + np.abs(true).sum()))


def mean_symmetric_error(estimated: Array, true: Array) -> float:
    """SMAPE of coefficients in percent: the mean of 100 |ŵ - w| / (|ŵ| + |w|), 0 to 100."""
    return float(100 * np.mean(np.abs(estimated - true) / (1e-8 + np.abs(estimated) + np.abs(true))))


def noise_of(series: Array) -> float:
    """Mean absolute first difference of a series (time,), what arnet 1.2 takes for its noise."""
    return float(np.abs(np.diff(series)).mean())
