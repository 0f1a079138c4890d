"""The one-cycle policy of fastai (Smith 2018, arXiv:1803.09820) and the Adam that goes with it."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Factor = Callable[[int], float]


def one_cycle(*, total: int, start: float = 0.25, div: float = 25.0, div_final: float = 1e4) -> Factor:
    """Half a cosine from 1/div up to 1, then half a cosine down to 1/div_final.

    Args:
        total: optimizer steps of the training.
        start: share of them in which it rises.
        div: how much smaller the first learning rate is than the highest.
        div_final: how much smaller the last one is.
    """
    return lambda step: _cycle(step / max(total, 1), start, (1 / div, 1.0, 1 / div_final))


def momentum_cycle(
    *, total: int, start: float = 0.25, momenta: tuple[float, float, float] = (0.95, 0.85, 0.95)
) -> Factor:
    """The momentum of every step of that policy: first, at the highest learning rate, and last."""
    return lambda step: _cycle(step / max(total, 1), start, momenta)


def _cycle(position: float, start: float, values: tuple[float, float, float]) -> float:
    """Between the first two values up to `start`, between the last two from there on; position 0 to 1."""
    rising = position < start
    way = position / start if rising else min(1.0, (position - start) / (1 - start))
    first, last = values[:2] if rising else values[1:]
    return first + (last - first) * 0.5 * (1 - math.cos(math.pi * way))


class FastaiAdam(Optimizer):
    """Adam as fastai computes it.

        g1 = m g1 + (1 - m) g,    g2 = s g2 + (1 - s) g²
        w = (1 - lr wd) w,        then w -= lr g1 / (1 - m^t) / (√(g2 / (1 - s^t)) + eps)

    It differs from torch's where the momentum m changes: the first moment is corrected by its present value. Weight
    decay spares what has one axis, biases and norms. The momentum goes against the learning rate, as in the one-cycle
    policy: from the first of `momenta` at the first learning rate to the second at the highest, `lr`, and to the third
    at the last, which is `final` times `lr`. Without a schedule it stays what it is first.

    Args:
        params: what is trained.
        lr: the highest learning rate.
        momenta: m first, at the highest learning rate, and last.
        square_momentum: s.
        eps: added to the root.
        weight_decay: wd, decoupled.
        final: the last learning rate as a share of the highest; one over the schedule's `div_final`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float = 1e-3,
        momenta: tuple[float, float, float] = (0.95, 0.85, 0.95),
        square_momentum: float = 0.99,
        eps: float = 1e-5,
        weight_decay: float = 0.01,
        final: float = 1e-4,
    ) -> None:
        defaults = {
            "lr": lr,
            "momenta": momenta,
            "square_momentum": square_momentum,
            "eps": eps,
            "weight_decay": weight_decay,
            "final": final,
            "highest": lr,
            "first": None,
            "latest": None,
            "falling": False,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; what the closure gives, where one computes the loss anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["momentum"] = self._momentum(group)
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _momentum(self, group: dict[str, Any]) -> float:
        """What belongs to the group's learning rate."""
        rate = group["lr"] / group["highest"]
        first, middle, last = group["momenta"]
        if group["first"] is None:
            group["first"] = group["latest"] = rate
        group["falling"] = group["falling"] or rate < group["latest"]
        group["latest"] = rate
        if group["falling"]:
            return float(middle + (last - middle) * (1 - rate) / (1 - group["final"]))
        span = 1 - group["first"]
        return float(first + (middle - first) * (rate - group["first"]) / span) if span else float(first)

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[weight], weight.grad
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        step, momentum, square = int(state["step"]), group["momentum"], group["square_momentum"]
        if weight.ndim > 1 and group["weight_decay"]:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        state["mean"].mul_(momentum).add_(gradient, alpha=1 - momentum)
        state["square"].mul_(square).addcmul_(gradient, gradient, value=1 - square)
        scale = (state["square"] / (1 - square**step)).sqrt_().add_(group["eps"])
        weight.addcdiv_(state["mean"], scale, value=-group["lr"] / (1 - momentum**step))


def fastai_adam(
    params: Iterable[nn.Parameter],
    *,
    lr: float = 1e-3,
    momenta: tuple[float, float, float] = (0.95, 0.85, 0.95),
    square_momentum: float = 0.99,
    eps: float = 1e-5,
    weight_decay: float = 0.01,
    final: float = 1e-4,
) -> Optimizer:
    """Adam as fastai computes it; see `FastaiAdam`."""
    return FastaiAdam(
        params,
        lr=lr,
        momenta=momenta,
        square_momentum=square_momentum,
        eps=eps,
        weight_decay=weight_decay,
        final=final,
    )
