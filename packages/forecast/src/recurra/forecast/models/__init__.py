"""Forecasting models by name."""

from recurra.forecast.models.forecaster import Forecaster

MODELS: dict[str, type[Forecaster]] = {}

__all__ = ["MODELS", "Forecaster"]
