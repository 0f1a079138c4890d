"""Forecasts of the last steps of a panel of samples beside the simple ones that they must beat.

Errors are of all elements, (sample, step, variable), in original units: not the means over batches that ReGENN's
authors report.
"""

from collections.abc import Mapping

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from recurra.core.errors import UserError
from recurra.forecast.models.regenn import ReGENN
from recurra.forecast.protocols.regenn import History, forecast_last
from recurra.forecast.protocols.scaling import Panel

Forecast = Float[Tensor, "sample horizon variable"]
DRIFT_STEPS = 7
"""Steps whose mean change the drift goes on with."""


def last_value(past: Panel, horizon: int) -> Forecast:
    """The last value again and again."""
    return past[:, -1:].expand(-1, horizon, -1)


def drift(past: Panel, horizon: int, steps: int = DRIFT_STEPS) -> Forecast:
    """The last value, moving on by the mean change of the last steps."""
    if past.shape[1] <= steps:
        raise UserError(f"past has {past.shape[1]} steps; the drift of {steps} needs {steps + 1}")
    change = (past[:, -1:] - past[:, -1 - steps : past.shape[1] - steps]) / steps
    return past[:, -1:] + change * torch.arange(1, horizon + 1)[None, :, None]


def leak_alone(history: History, horizon: int) -> Forecast:
    """The last scaled value times the scale of the steps that are forecast: what the published protocol gives away."""
    panel, steps = history.panel, history.panel.values.shape[1]
    scale = panel.scale_of(torch.arange(len(panel.values)), steps - horizon, horizon)
    last = panel.values[:, steps - horizon - 1 : steps - horizon]
    return panel.restored(last.expand(-1, horizon, -1), scale)


def panel_scores(target: Panel, forecasts: Mapping[str, Panel], protocol: str) -> pd.DataFrame:
    """One row a forecast: forecast, protocol, mae and rmse of all elements."""
    rows = []
    for name, forecast in forecasts.items():
        error = (forecast - target).double()
        errors = {"mae": float(error.abs().mean()), "rmse": float(error.square().mean().sqrt())}
        rows.append({"forecast": name, "protocol": protocol, **errors})
    return pd.DataFrame(rows)


def regenn_table(model: ReGENN, history: History, data: Panel) -> pd.DataFrame:
    """The trained model on the last steps of its panel, beside last value and drift; published, also the leak alone.

    Args:
        model: with the weights to be judged.
        history: of its training.
        data: what it was trained on, in original units.
    """
    horizon = model.horizon
    past = data[:, :-horizon]
    forecasts = {"last value": last_value(past, horizon), "drift": drift(past, horizon)}
    if history.protocol == "published":
        forecasts["last ratio x future scale (the leak alone)"] = leak_alone(history, horizon)
    forecasts["ReGENN"] = forecast_last(model, history)
    return panel_scores(data[:, -horizon:], forecasts, history.protocol)
