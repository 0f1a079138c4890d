"""Optimizers and learning-rate schedules that a recipe can name."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

Factor = Callable[[int], float]


def adam(
    params: Iterable[nn.Parameter],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam (Kingma and Ba 2015)."""
    return torch.optim.Adam(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def adamw(
    params: Iterable[nn.Parameter],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    return torch.optim.AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def sgd(
    params: Iterable[nn.Parameter], *, lr: float = 1e-2, momentum: float = 0.0, weight_decay: float = 0.0
) -> Optimizer:
    """Stochastic gradient descent."""
    return torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay)


def _warmup_steps(warmup: int | float, total: int) -> int:
    """Length of a warm-up given in steps, or below 1 as a fraction of the training."""
    return round(warmup * total) if warmup < 1 else int(warmup)


def constant(*, total: int, warmup: int | float = 0.0) -> Factor:
    """Factor 1, after a linear warm-up."""
    ramp = _warmup_steps(warmup, total)
    return lambda step: min(1.0, (step + 1) / (ramp + 1))


def inverse_square_root(*, total: int, warmup: int | float = 0.1) -> Factor:
    """Linear warm-up, then sqrt((warmup + 1) / (step + 1))."""
    ramp = _warmup_steps(warmup, total)
    return lambda step: (step + 1) / (ramp + 1) if step <= ramp else math.sqrt((ramp + 1) / (step + 1))


def cosine(*, total: int, warmup: int | float = 0.1, minimum: float = 0.0) -> Factor:
    """Linear warm-up, then half a cosine down to `minimum` (as a factor) at the end of the training."""
    ramp = _warmup_steps(warmup, total)

    def factor(step: int) -> float:
        if step < ramp:
            return (step + 1) / (ramp + 1)
        done = min(1.0, (step - ramp) / max(1, total - ramp))
        return minimum + (1.0 - minimum) * 0.5 * (1.0 + math.cos(math.pi * done))

    return factor


def steps(
    *, total: int, every: int = 20_000, factor: float = 0.2, warmup: int | float = 1000, start: float = 1 / 3
) -> Factor:
    """Times `factor` after every `every` steps; linear warm-up from `start`."""
    ramp = _warmup_steps(warmup, total)
    return lambda step: factor ** (step // every) * (start + (1 - start) * min(1.0, step / ramp) if ramp else 1.0)


def per_epoch(*, total: int, epoch: int, factor: float = 0.5, hold: int = 2) -> Factor:
    """Times `factor` after every epoch, from the end of epoch `hold` on."""
    return lambda step: factor ** max(0, step // max(1, epoch) + 1 - hold)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"Adam": adam, "AdamW": adamw, "SGD": sgd}
SCHEDULES: dict[str, Callable[..., Factor]] = {
    "none": constant,
    "InverseSquareRoot": inverse_square_root,
    "Cosine": cosine,
    "Step": steps,
    "PerEpoch": per_epoch,
}
