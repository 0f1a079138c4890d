"""Models of recurra.forecast against their plain definitions."""

from functools import partial
from unittest import mock

import torch
from torch import Tensor

from bench_cases.case import Case, Run, Variants


def chimera(variates: int, batch: int, inner: int, small: bool, device: str) -> Variants:
    """A training step's forward and backward, one column a step of 336; the recurrence by plain torch or by ours."""
    from recurra.forecast.models import chimera_ssm
    from recurra.forecast.models.chimera import Chimera

    window = 8 if small else 336
    torch.manual_seed(0)
    model = Chimera(window=window, horizon=24, patch=1, width=8, inner=inner, states=4, linear=False).to(device)
    past = torch.randn(batch, window, 3 if small else variates, device=device)

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        model(past).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def plainly() -> Tensor:
        with mock.patch.multiple(chimera_ssm, grid_scan=by_rows, _held=held):
            return step()

    runs: dict[str, Run] = {"row loop in torch": plainly, "recurra": step}
    return {name: partial(lambda run: run, run) for name, run in runs.items()}


def held(step: Tensor, own: Tensor, ratio: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """The discretisation as its equations say it."""
    moved = torch.expm1(step * own)
    return moved + 1, moved * ratio, moved / own * b * x


def by_rows(
    a: tuple[Tensor, Tensor, Tensor, Tensor], b1: Tensor, b2: Tensor, left: None = None, *, order: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The recurrence a variate at a time, step by step along time."""
    a1, a2, a3, a4 = (x.expand(b1.shape).unbind(1) for x in a)
    h1 = h2 = torch.zeros_like(b1[:, 0])
    rows = []
    for v, (b1_v, b2_v) in enumerate(zip(b1.unbind(1), b2.unbind(1), strict=True)):
        h2 = a3[v] * h1 + a4[v] * h2 + b2_v
        x = torch.cat([b1_v[:, :1], b1_v[:, 1:] + a2[v][:, 1:] * h2[:, :-1]], 1)
        h, steps = torch.zeros_like(x[:, 0]), []
        for a_t, x_t in zip(a1[v].unbind(1), x.unbind(1), strict=True):
            h = a_t * h + x_t
            steps.append(h)
        h1 = torch.stack(steps, 1)
        rows.append((h1, h2))
    return torch.stack([row[0] for row in rows], 1), torch.stack([row[1] for row in rows], 1)


CASES = {
    "chimera 7 variates": Case("forecast", partial(chimera, 7, 1, 4), 1e-4, 3),
    "chimera 7 variates, batch 8, width 16": Case("forecast", partial(chimera, 7, 8, 16), 1e-4, 3),
    "chimera 321 variates": Case("forecast", partial(chimera, 321, 1, 4), 1e-3, 1),
}
