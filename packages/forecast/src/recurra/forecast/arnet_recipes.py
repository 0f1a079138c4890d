"""How AR-Net was trained by its authors, step by step, without an engine around it; and what NeuralProphet adds.

The recipes of the same name (arnet-paper, arnet-v1_2) train by the engine, which shuffles; these two functions are the
definition that they are held against.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra.core.checks import one_of
from recurra.forecast.models.arnet import ARNet
from recurra.forecast.onecycle import FastaiAdam, one_cycle

Array = NDArray[np.float64]
Base = Literal["mae", "mse", "smoothl1"]


@dataclass
class Trajectory:
    """What happened in a training, one value a step but for `epochs`.

    Attributes:
        losses: with the penalty.
        epochs: their mean over each epoch.
        rates: learning rates.
        momenta: of the optimizer.
    """

    losses: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    momenta: list[float] = field(default_factory=list)


def tabulated(
    series: Float[Tensor, "time"], window: int, horizon: int = 1
) -> tuple[Float[Tensor, "row window"], Float[Tensor, "row horizon"]]:
    """Every window, oldest value first, and the values that follow it; both are views."""
    rows = series.unfold(0, window + horizon, 1)
    return rows[:, :window], rows[:, window:]


def train_v0_1(
    model: ARNet,
    x: Float[Tensor, "row window"],
    y: Float[Tensor, "row horizon"],
    *,
    batch_size: int = 128,
    lr: float = 2e-4,
    decay: float = 0.9,
    generator: torch.Generator | None = None,
) -> Trajectory:
    """Train as the paper's code: Adam, the learning rate times `decay` after each of the model's `epochs`.

    Args:
        model: trained in place; its regulariser is "v0_1".
        x: windows.
        y: what follows them.
        batch_size: rows of a step; the last batch may be smaller.
        lr: first learning rate.
        decay: of the learning rate.
        generator: of the order of the rows; None leaves them in order.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, decay)
    batches = -(-len(x) // batch_size)
    trajectory = Trajectory()
    for epoch in range(model.epochs):
        order = torch.arange(len(x)) if generator is None else torch.randperm(len(x), generator=generator)
        for i, rows in enumerate(torch.split(order, batch_size)):
            trajectory.rates.append(optimizer.param_groups[0]["lr"])
            progress = (epoch * batches + i + 1) / (batches * model.epochs)
            trajectory.losses.append(_step(model, optimizer, x[rows], y[rows], progress))
        trajectory.epochs.append(float(np.mean(trajectory.losses[-batches:])))
        schedule.step()
    return trajectory


def train_one_cycle(
    model: ARNet,
    x: Float[Tensor, "row window"],
    y: Float[Tensor, "row horizon"],
    *,
    lr: float,
    epochs: int = 20,
    batch_size: int = 32,
    div: float = 25.0,
    div_final: float = 1e4,
    start: float = 0.25,
    momenta: tuple[float, float, float] = (0.95, 0.85, 0.95),
    square_momentum: float = 0.99,
    eps: float = 1e-5,
    weight_decay: float = 0.01,
    loss: nn.Module | None = None,
    shown: bool = False,
    generator: torch.Generator | None = None,
) -> Trajectory:
    """Train as arnet 1.2 under fastai: one cycle of learning rate and momentum, an incomplete batch left out.

    Under fastai 2.7 its penalty changes the loss that is shown and not the one that is differentiated: the weights are
    those of a training without it. `shown` does the same.

    Args:
        model: trained in place; its regulariser is "v1_2" or "none".
        x: windows.
        y: what follows them.
        lr: highest learning rate.
        epochs: of the training.
        batch_size: rows of a step.
        div: how much smaller the first learning rate is.
        div_final: how much smaller the last one is.
        start: share of the training in which it rises.
        momenta: first, at the highest learning rate, and last.
        square_momentum: of the second moment.
        eps: of the optimizer.
        weight_decay: decoupled, of weights alone.
        loss: the mean squared error by default; arnet 1.2 has SmoothL1Loss.
        shown: the penalty is added to the loss after its gradient is taken.
        generator: of the order of the rows; None leaves them in order.
    """
    optimizer = FastaiAdam(
        model.parameters(),
        lr=lr,
        momenta=momenta,
        square_momentum=square_momentum,
        eps=eps,
        weight_decay=weight_decay,
        final=1 / div_final,
    )
    batches = len(x) // batch_size
    total = batches * epochs
    factor = one_cycle(total=total, start=start, div=div, div_final=div_final)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    trajectory = Trajectory()
    for step in range(total):
        if step % batches == 0:
            order = torch.arange(len(x)) if generator is None else torch.randperm(len(x), generator=generator)
        rows = order[step % batches * batch_size :][:batch_size]
        trajectory.rates.append(optimizer.param_groups[0]["lr"])
        trajectory.losses.append(_step(model, optimizer, x[rows], y[rows], (step + 1) / total, loss, shown=shown))
        trajectory.momenta.append(optimizer.param_groups[0]["momentum"])
        if (step + 1) % batches == 0:
            trajectory.epochs.append(float(np.mean(trajectory.losses[-batches:])))
        schedule.step()
    return trajectory


def _step(
    model: ARNet,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    progress: float,
    loss: nn.Module | None = None,
    *,
    shown: bool = False,
) -> float:
    """One update; the loss before it, with the penalty."""
    forecast = model(x[..., None])[..., 0]
    value: Tensor = nn.functional.mse_loss(forecast, y) if loss is None else loss(forecast, y)
    penalty = model.penalty(progress)
    whole = value if penalty is None else value + penalty
    before = float(whole.detach())
    optimizer.zero_grad()
    (value if shown else whole).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return before


def best_learning_rate(
    model: ARNet,
    x: Float[Tensor, "row window"],
    y: Float[Tensor, "row horizon"],
    *,
    batch_size: int = 32,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 300,
    generator: torch.Generator | None = None,
) -> float:
    """The learning rate at which the running loss is least while it grows from `low` to `high`: arnet 1.2's choice.

    The running loss is the mean of momentum 0.98, corrected for its beginning; the search ends where it is four times
    the least. The model keeps its weights.
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer, running, least, best = FastaiAdam(model.parameters(), lr=low), 0.0, math.inf, low
    # The momentum would follow the learning rate, which here follows no cycle.
    optimizer.param_groups[0]["momenta"] = (0.95, 0.95, 0.95)
    loss = nn.SmoothL1Loss()
    for step in range(steps):
        rate = low * (high / low) ** (step / (steps - 1))
        optimizer.param_groups[0]["lr"] = rate
        rows = torch.randint(len(x), (batch_size,), generator=generator)
        value = _step(model, optimizer, x[rows], y[rows], 1e-9, loss)
        running = 0.98 * running + 0.02 * value
        smooth = running / (1 - 0.98 ** (step + 1))
        if smooth < least:
            least, best = smooth, rate
        if not smooth <= 4 * least:
            break
    model.load_state_dict(state)
    return best


# --- NeuralProphet


def automatic_batches(samples: int) -> tuple[int, int]:
    """Batch size and epochs that NeuralProphet chooses for so many samples."""
    batch_size = min(2048, max(8, 2 ** (1 + int(1.5 * math.log10(samples)))))
    epochs = 10 * math.ceil(100 / samples * 2 ** (2.25 * math.log10(10 + samples)))
    return batch_size, min(500, max(20, epochs))


def pinball(
    forecast: Float[Tensor, "batch horizon quantile"],
    target: Float[Tensor, "batch horizon 1"],
    quantiles: tuple[float, ...],
    *,
    base: Base = "smoothl1",
    beta: float = 0.3,
) -> Float[Tensor, "batch horizon quantile"]:
    """NeuralProphet's quantile loss, element by element: a base loss, tilted, and twice that of the median.

    Args:
        forecast: the median first.
        target: what came.
        quantiles: of the forecasts, 0.5 first.
        base: absolute, squared, or smooth absolute error.
        beta: where the last becomes linear.
    """
    one_of("base", base, Base)
    levels = torch.tensor(quantiles).to(forecast)
    target = target.expand_as(forecast)
    if base == "smoothl1":
        size = nn.functional.smooth_l1_loss(forecast, target, reduction="none", beta=beta)
    else:
        size = (forecast - target).abs() if base == "mae" else (forecast - target).square()
    tilted = torch.where(target >= forecast, levels, 1 - levels) * size
    return torch.cat([2 * tilted[..., :1], tilted[..., 1:]], -1)
