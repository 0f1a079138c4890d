"""Forecasting models by name."""

from recurra.forecast.models.arnet import ARNet
from recurra.forecast.models.autoregression import AutoRegression
from recurra.forecast.models.chimera import Chimera
from recurra.forecast.models.forecaster import Forecaster
from recurra.forecast.models.linear import LinearMap
from recurra.forecast.models.regenn import ReGENN
from recurra.forecast.models.resnls import ResNLS
from recurra.forecast.models.tpgn import TPGN

MODELS: dict[str, type[Forecaster]] = {
    "ARNet": ARNet,
    "AutoRegression": AutoRegression,
    "Chimera": Chimera,
    "LinearMap": LinearMap,
    "ReGENN": ReGENN,
    "ResNLS": ResNLS,
    "TPGN": TPGN,
}

__all__ = ["MODELS", "TPGN", "ARNet", "AutoRegression", "Chimera", "Forecaster", "LinearMap", "ReGENN", "ResNLS"]
