"""Models and data of recurra.forecast."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from bench_cases.case import Case, Run, Variants, inference
from bench_cases.tpgn_definition import definition

# Window, horizon, hidden, norm, batch: the published configurations, and long windows.
TPGN = {
    "ETTh1, 168 to 168": (168, 168, 2, True, 32),
    "ECL, 168 to 168": (168, 168, 32, False, 32),
    "Traffic, 168 to 336": (168, 336, 128, True, 32),
}
LONG = {f"{steps}": (steps, steps, 32, False, 8) for steps in (720, 1440, 2880, 4320, 8640)}


def tpgn(window: int, horizon: int, hidden: int, norm: bool, batch: int) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """A model of hourly data, and a batch: windows, marks, what follows."""
    from recurra.forecast.models.tpgn import TPGN

    torch.manual_seed(0)
    model = TPGN(window=window, horizon=horizon, features=4, hidden=hidden, norm=norm)
    past, target = torch.randn(batch, window, 1), torch.randn(batch, horizon, 1)
    return model, (past, torch.rand(batch, window + horizon, 4) - 0.5, target)


def step(model: Any, forward: Callable[..., torch.Tensor], data: tuple[torch.Tensor, ...]) -> Run:
    """Forward, loss and backward; the gradients are the result."""
    past, marks, target = data

    def run() -> torch.Tensor:
        model.zero_grad()
        F.mse_loss(forward(past, marks), target).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    return run


def tpgn_training(sizes: tuple[Any, ...], small: bool, device: str) -> Variants:
    model, data = tpgn(*(48, 48, *sizes[2:]) if small else sizes)
    return {
        "definition": lambda: step(model, partial(definition, model), data),
        "recurra": lambda: step(model, model, data),
    }


def by_expansion(x: torch.Tensor) -> torch.Tensor:
    """ReGENN's adjacency by its definition: the batch once for each variable, kept where that one is positive."""
    variables = x.shape[-1]
    repeated = x[None].repeat(variables, 1, 1, 1)  # (variable j, sample, time, variable i)
    kept = repeated * (x > 0).movedim(-1, 0)[..., None].to(x.dtype)
    adjacency = kept.sum((1, 2)).T
    diagonal = (2 * adjacency.diagonal() - adjacency.sum(1)).clamp_min(0)
    return adjacency - torch.diag(adjacency.diagonal()) + torch.diag(diagonal)


def graph(variables: int, small: bool, device: str) -> Variants:
    from recurra.forecast.models.graph_evolution import co_occurrence

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(32, 84, 8 if small else variables, generator=generator).sub(0.3).clamp_min(0).to(device)
    return {
        "by expansion": lambda: inference(lambda: by_expansion(x)),
        "one product": lambda: inference(lambda: co_occurrence(x)),
    }


CASES = {
    # The sums behind a gradient have some ten thousand terms.
    **{
        f"tpgn training, {n}": Case("forecast", partial(tpgn_training, s), 1e-4, 15, least=0.05)
        for n, s in TPGN.items()
    },
    **{f"tpgn training, {n} steps": Case("forecast", partial(tpgn_training, s), 1e-4) for n, s in LONG.items()},
    **{
        f"regenn graph {variables}": Case(
            "forecast", lambda small, device, variables=variables: graph(variables, small, device), 1e-5, 9, least=0.02
        )
        for variables in (31, 128)
    },
}
