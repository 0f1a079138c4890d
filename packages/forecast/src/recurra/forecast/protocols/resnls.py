"""The training and the split of ResNLS's authors, and the same without their mistakes.

Published: batches of consecutive days in order, a loss that compares every forecast of a batch with every target of it,
and a scale from all days, the test's too. Honest: shuffled batches, each forecast against its own target, a scale from
the training days alone. Both forecast one day ahead.
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from recurra.core.checks import at_least_one, one_of
from recurra.core.errors import UserError
from recurra.core.schedules import constant, cosine
from recurra.forecast.losses import LOSSES
from recurra.forecast.models.resnls import ResNLS

Array = NDArray[np.float64]
TRAIN_SHARE = 0.9087
"""Share of the days that the authors train on."""


@dataclass(frozen=True)
class ResnlsSettings:
    """Options of a training; the defaults are honest.

    Attributes:
        loss: "MSE", or as published "PairwiseMSE"; a name of `LOSSES`.
        shuffle: batches of days in random order; published are consecutive ones.
        scale_from: days whose least and greatest value become 0 and 1: "train", or as published "all".
        train_share: first days that are trained on, rounded up.
        batch_size: days of a step.
        epochs: passes over the training days.
        learning_rate: of Adam.
        schedule: "none", as published, or "cosine" down to nothing: the last steps of a constant rate leave the level
            of the forecasts to chance.
        seed: of the order.
    """

    loss: str = "MSE"
    shuffle: bool = True
    scale_from: Literal["train", "all"] = "train"
    train_share: float = TRAIN_SHARE
    batch_size: int = 64
    epochs: int = 50
    learning_rate: float = 1e-3
    schedule: Literal["none", "cosine"] = "cosine"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
            ValueError: a value is out of range.
        """
        at_least_one(batch_size=self.batch_size, epochs=self.epochs)
        one_of("loss", self.loss, LOSSES)
        one_of("scale_from", self.scale_from, ("train", "all"))
        one_of("schedule", self.schedule, ("none", "cosine"))
        if not 0 < self.train_share < 1:
            raise ValueError(f"train_share must be between 0 and 1; got {self.train_share}")


PUBLISHED = ResnlsSettings(loss="PairwiseMSE", shuffle=False, scale_from="all", schedule="none")
"""What the authors' code does, with `ResNLS(variant="published")`."""


@dataclass(frozen=True)
class OneStep:
    """Forecasts of the test days.

    Attributes:
        first: index of the first test day.
        forecast: of each test day, made the day before, in the units of the series.
        after: of the day after the last, which the series does not hold.
        losses: of every training step.
    """

    first: int
    forecast: Array
    after: float
    losses: list[float]


def windows(series: Array, window: int) -> tuple[Float[Tensor, "day window 1"], Float[Tensor, "day 1 1"]]:
    """Windows of a series and the value after each, in float32.

    Raises:
        UserError: the series is not longer than the window.
    """
    if len(series) <= window:
        raise UserError(f"series has {len(series)} values; expected more than the window, {window}")
    view = np.lib.stride_tricks.sliding_window_view(series, window + 1).astype(np.float32)
    values = torch.from_numpy(view)[..., None]
    return values[:, :window], values[:, window:]


def train_resnls(model: ResNLS, series: Array, settings: ResnlsSettings) -> list[float]:
    """Trains the model on a series that is already scaled; the loss of every step.

    Raises:
        UserError: the series is too short or not finite.
    """
    if not np.isfinite(series).all():
        raise UserError(f"series: value {int((~np.isfinite(series)).argmax())} is not finite; fill it first")
    past, target = windows(series, model.window)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=settings.learning_rate)
    loss_of = LOSSES[settings.loss]()
    generator = torch.Generator().manual_seed(settings.seed)
    steps = settings.epochs * ceil(len(past) / settings.batch_size)
    factor = cosine(total=steps, warmup=0) if settings.schedule == "cosine" else constant(total=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    for _ in range(settings.epochs):
        order = torch.randperm(len(past), generator=generator) if settings.shuffle else torch.arange(len(past))
        model.train()
        for rows in torch.split(order, settings.batch_size):
            optimizer.zero_grad()
            loss = loss_of(model(past[rows]), target[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    model.eval()
    return losses


def forecast_test_days(model: ResNLS, closes: Array, settings: ResnlsSettings) -> OneStep:
    """Trains on the first days of a series and forecasts each of the others from the days before it.

    Args:
        model: trained in place; one step ahead.
        closes: (day), in original units, oldest first.
        settings: of the training.

    Raises:
        UserError: the model forecasts several steps, or the series does not serve.
    """
    if model.horizon != 1:
        raise UserError(f"the model forecasts {model.horizon} steps; expected one step ahead")
    first = ceil(settings.train_share * len(closes))
    known = closes if settings.scale_from == "all" else closes[:first]
    low, high = float(np.min(known)), float(np.max(known))
    if not high > low:
        raise UserError(f"series is constant at {low:g}; it has no scale from 0 to 1")
    values = (closes - low) / (high - low)
    losses = train_resnls(model, values[:first], settings)
    view = np.lib.stride_tricks.sliding_window_view(values[first - model.window :], model.window)
    with torch.no_grad():
        forecast = model(torch.from_numpy(view.astype(np.float32))[..., None])[:, 0, 0].double().numpy()
    forecast = forecast * (high - low) + low
    return OneStep(first, forecast[:-1], float(forecast[-1]), losses)
