"""Chimera, a forecaster made of two-dimensional state space models over variates and time.

Behrouz, Santacatterina, Zabih: "Chimera: Effectively Modeling Multivariate Time Series with 2-Dimensional State Space
Models", NeurIPS 2024, arXiv:2406.04320. The authors have published no code. From the paper: two states, one carried
along time and one along variates; discretisation with a step each; selective B, C and steps; modules for trend and
season that differ in their steps; forward and backward over variates; gating; a closed loop for long horizons. Ours:
the held discretisation, which is bounded for all inputs, sizes, the wiring of a block, the head, and the linear map
beside it.
"""

from math import ceil
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from recurra.core.checks import at_least_one, one_of
from recurra.forecast.models.chimera_scan import closed_loop, read
from recurra.forecast.models.chimera_ssm import Coupling, Mode, Scan, Structure, VariatesSSM, sum_of, turned
from recurra.forecast.models.forecaster import Forecaster, Layout

Norm = Literal["standard", "mean", "last", "none"]
Head = Literal["direct", "closed_loop"]
Steps = tuple[float, float]


class StateEnergies(NamedTuple):
    """Mean squares of the states of one block in every cell; modules are trend and season.

    time: (batch, module, variate, column), of h1, which moves along time. variate: likewise, of h2.
    """

    time: Tensor
    variate: Tensor


class Block(nn.Module):
    """x + W_out(SiLU(z) ⊙ (trend(u) + season(u))), with u = SiLU(conv(u')) and (u', z) = W_in RMSNorm(x).

    The convolution runs along time, each channel by itself, and sees no later column.

    Args:
        width: of x.
        inner: of u and z.
        states: of every channel of either module.
        kernel: columns that the convolution sees.
        dropout: share of the update that is dropped in training.
        modules: options of the trend module and of the season module.
    """

    def __init__(
        self, width: int, inner: int, states: int, *, kernel: int, dropout: float, modules: dict[str, dict[str, Any]]
    ) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, kernel, groups=inner)
        self.modules_by_name = nn.ModuleDict(
            {name: VariatesSSM(inner, states, **options) for name, options in modules.items()}
        )
        self.leave = nn.Linear(inner, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch variate column width"]) -> Float[Tensor, "batch variate column width"]:
        """The grid after the block."""
        u, gate = self.inside(x)
        y = sum_of([ssm(u)[0] for ssm in self.modules_by_name.values()])
        update: Tensor = self.dropout(self.leave(y * F.silu(gate)))
        return x + update

    def inside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u and z, (batch, variate, column, inner) each."""
        u, gate = self.enter(self.norm(x)).chunk(2, -1)
        columns = F.pad(u.flatten(0, 1).transpose(1, 2), (self.conv.kernel_size[0] - 1, 0))
        return F.silu(self.conv(columns).transpose(1, 2).reshape(u.shape)), gate

    def energies(self, x: Tensor) -> StateEnergies:
        """Of the states, for the grid that the block is given."""
        u, _ = self.inside(x)
        found = [ssm.energies(u) for ssm in self.modules_by_name.values()]  # type: ignore[operator]
        return StateEnergies(torch.stack([h1 for h1, _ in found], 1), torch.stack([h2 for _, h2 in found], 1))


class DirectHead(nn.Module):
    """All columns of a variate -> its values in the horizon, by one linear map for all variates."""

    def __init__(self, width: int, columns: int, outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(columns * width, outputs)

    def forward(self, x: Float[Tensor, "batch variate column width"]) -> Float[Tensor, "batch variate output"]:
        """The values of each variate."""
        y: Tensor = self.linear(self.dropout(x.flatten(2)))
        return y


class ClosedLoopHead(nn.Module):
    """Goes on from the last column, its own feedback K h as next input, and maps every new column to a patch.

    Keys: `ssm` (not selective), `feedback` (direction, 2, state, width) with K1 and K2, `linear`.
    """

    def __init__(
        self, width: int, states: int, columns: int, outputs: int, *, dropout: float, options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.columns = columns
        self.ssm = VariatesSSM(width, states, selective=False, **options)
        self.feedback = nn.Parameter(torch.zeros(len(self.ssm.directions), 2, states, width))
        nn.init.normal_(self.feedback, std=0.1 / states)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Float[Tensor, "batch variate column width"]) -> Float[Tensor, "batch variate output"]:
        """The values of each variate, one patch after the other."""
        _, state = self.ssm(x)
        _, y, _ = closed_loop(self.feed, self.ssm, state, self.columns)
        patches: Tensor = self.linear(self.dropout(y))  # (batch, variate, new column, patch output)
        return patches.flatten(2)

    def feed(self, states: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
        """K1 h1 + K2 h2 of both directions, (batch, variate, width)."""
        return sum_of(
            [turned(read(*s, k[0], k[1]), i) for i, (s, k) in enumerate(zip(states, self.feedback, strict=True))]
        )


class Chimera(Forecaster):
    """Patches of every variate as a grid -> blocks of selective two-dimensional state space models -> the horizon.

    Keys: `embedding`; `blocks.I`; `head`; `linear` (horizon, window) if linear; `variate_embedding` and `affine` for
    a fixed number of variates.

    Args:
        window: steps that it sees.
        horizon: steps that it forecasts.
        quantiles: of the forecasts beside the point.
        calibration: rows of residuals that intervals are made of.
        channels: variates that the residuals are kept apart for.
        patch: steps of a patch, which is one column of the grid; a window that is no multiple of it is continued before
            its first step by that step's value.
        width: of a cell between blocks.
        inner: of a cell inside a block.
        states: of every channel and of both kinds.
        layers: blocks.
        kernel: columns that the convolution along time sees.
        rank: of the projections to the steps.
        selective: steps, B and C depend on the input.
        mode: discretisation, see `chimera_ssm.discretise`.
        rho: how close the coupling of time and variates may come to the edge of the bound, below 1.
        structure: of the transition along time, see `chimera_ssm.GridSSM`.
        coupling: of time and variates.
        scan: order of evaluation; all give the same numbers.
        bidirectional: read the variates in both directions.
        order_free: the variates have no order: permuting them permutes the forecast.
        trend_steps: range of the untrained time steps of the trend module: short ones, that is slow states.
        season_steps: likewise of the season module.
        variate_steps: likewise along variates, of both.
        head: "direct", or "closed_loop" on the last column.
        norm: what each window and variate is freed of: mean and deviation, its mean, its last value, or nothing.
        affine: a learned scale and shift of each variate after that; needs variates.
        variates: number of variates that get an embedding of their own; 0 for none, which serves any number.
        linear: add a linear map of the window, one for all variates; the head then starts from 0. `initialise` fits it.
        train_linear: the map is trained along; otherwise it stays as `initialise` made it.
        dropout: share dropped of every block's update and of what the head sees.
    """

    layout: Layout = "variates"  # type: ignore[misc]

    def __init__(
        self,
        *,
        window: int,
        horizon: int,
        quantiles: tuple[float, ...] = (),
        calibration: tuple[int, int, int] = (0, 0, 0),
        patch: int = 24,
        width: int = 32,
        inner: int = 32,
        states: int = 4,
        layers: int = 1,
        kernel: int = 4,
        rank: int = 2,
        selective: bool = True,
        mode: Mode = "zoh_held",
        rho: float = 0.9,
        structure: Structure = "diagonal",
        coupling: Coupling = "full",
        scan: Scan = "auto",
        bidirectional: bool = True,
        order_free: bool = False,
        trend_steps: Steps = (1e-3, 1e-2),
        season_steps: Steps = (1e-1, 1.0),
        variate_steps: Steps = (1e-2, 1.0),
        head: Head = "direct",
        norm: Norm = "standard",
        affine: bool = False,
        variates: int = 0,
        linear: bool = True,
        train_linear: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(window=window, horizon=horizon, quantiles=quantiles, calibration=calibration)
        at_least_one(patch=patch, width=width, inner=inner, layers=layers, kernel=kernel)
        one_of("head", head, Head)
        one_of("norm", norm, Norm)
        if affine and not variates:
            raise ValueError("affine needs variates: each has a scale and a shift of its own")
        if head == "closed_loop" and scan == "fft":
            raise ValueError("head=closed_loop needs the states of the last column, which scan=fft does not make")
        self.patch, self.norm, self.columns = patch, norm, ceil(window / patch)
        both: dict[str, Any] = {"mode": mode, "rho": rho, "structure": structure, "coupling": coupling, "scan": scan}
        both |= {"bidirectional": bidirectional, "order_free": order_free, "variate_steps": variate_steps}
        modules = {
            name: {"selective": selective, "rank": rank, "time_steps": steps, **both}
            for name, steps in (("trend", trend_steps), ("season", season_steps))
        }
        self.embedding = nn.Linear(patch, width)
        self.variate_embedding = nn.Parameter(torch.zeros(variates, width)) if variates else None
        # Log of the scale, and the shift.
        self.affine = nn.Parameter(torch.zeros(variates, 2)) if affine else None
        self.blocks = nn.ModuleList(
            Block(width, inner, states, kernel=kernel, dropout=dropout, modules=modules) for _ in range(layers)
        )
        self.final_norm = nn.RMSNorm(width, eps=1e-5)
        each = 1 + len(quantiles)
        if head == "direct":
            self.head: DirectHead | ClosedLoopHead = DirectHead(width, self.columns, each * horizon, dropout=dropout)
        else:
            options = {**both, "time_steps": season_steps}
            new = ceil(horizon / patch)
            self.head = ClosedLoopHead(width, states, new, each * patch, dropout=dropout, options=options)
        self.linear = nn.Parameter(torch.zeros(horizon, window), requires_grad=train_linear) if linear else None
        if linear:
            nn.init.zeros_(self.head.linear.weight)
            nn.init.zeros_(self.head.linear.bias)

    def forward(
        self,
        past: Float[Tensor, "batch window variate"],
        marks: Float[Tensor, "batch steps mark"] | None = None,
        covariates: Float[Tensor, "batch steps covariate"] | None = None,
    ) -> Float[Tensor, "batch horizon variate *quantile"]:
        """The forecast; with `quantiles`, a last axis of the point forecast and then each quantile, never crossing.

        Args:
            past: values, oldest first, none missing.
            marks: not taken.
            covariates: not taken.

        Raises:
            ValueError: a shape does not fit.
        """
        self.check(past, marks, covariates)
        x, shift, scale = self._normalised(past.transpose(1, 2))  # (batch, variate, window)
        grid = self._embedded(x)
        for block in self.blocks:
            grid = block(grid)
        y = self.head(self.final_norm(grid)).unflatten(2, (-1, 1 + len(self.quantiles)))[:, :, : self.horizon]
        y = torch.cat([y[..., :1] + self._linearly(x)[..., None], y[..., 1:]], -1) if self.linear is not None else y
        y = (_in_order(y, self.quantiles) * scale + shift).transpose(1, 2)  # (batch, horizon, variate, 1 + quantile)
        return y if self.quantiles else y[..., 0]

    def linear_forecast(self, past: Float[Tensor, "batch window variate"]) -> Float[Tensor, "batch horizon variate"]:
        """What the linear map says alone: the point forecast without the recurrence."""
        if self.linear is None:
            raise ValueError("this Chimera has no linear map; it was made with linear=False")
        self.check(past)
        x, shift, scale = self._normalised(past.transpose(1, 2))
        return (self._linearly(x) * scale[..., 0] + shift[..., 0]).transpose(1, 2)

    def energies(self, past: Float[Tensor, "batch window variate"]) -> list[StateEnergies]:
        """Energies of the states of every block, first block first."""
        self.check(past)
        grid, found = self._embedded(self._normalised(past.transpose(1, 2))[0]), []
        for block in self.blocks:
            found.append(block.energies(grid))  # type: ignore[operator]
            grid = block(grid)
        return found

    @torch.no_grad()
    def initialise(self, windows: Tensor, targets: Tensor, *, ridge: float = 1e-2) -> None:
        """Fit the linear map to these windows by ridge regression, in closed form; all variates count alike.

        Args:
            windows: (sample, window, variate); may be a strided view, of which some hundred samples are read at a time.
            targets: (sample, horizon, variate), what followed.
            ridge: added to the mean product of the inputs' diagonal; the scale is that of the data.

        Raises:
            ValueError: a shape does not fit, or there is no sample.
        """
        if self.linear is None:
            return
        if not len(windows) or len(targets) != len(windows):
            raise ValueError(
                f"windows and targets have {len(windows)} and {len(targets)} samples; expected as many, at least 1"
            )
        size, count = self.window, 0
        gram = windows.new_zeros(size, size, dtype=torch.float64)
        product = windows.new_zeros(size, self.horizon, dtype=torch.float64)
        for past, future in zip(torch.split(windows, 256), torch.split(targets, 256), strict=True):
            x, y = past.double().transpose(1, 2).flatten(0, 1), future.double().transpose(1, 2).flatten(0, 1)
            mean = x.mean(1, keepdim=True)
            x, y = x - mean, y - mean
            gram, product, count = gram + x.T @ x, product + x.T @ y, count + len(x)
        gram = gram / count + ridge * torch.eye(size, dtype=torch.float64, device=gram.device)
        self.linear.copy_(torch.linalg.solve(gram, product / count).T)

    def _normalised(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The windows (batch, variate, window), and the shift and scale (batch, variate, 1, 1) that bring them back."""
        # From the last value first: constant series become 0 exactly, and large offsets cost no digits.
        last = x[..., -1:]
        x = x - last
        mean = x.mean(-1, keepdim=True)
        # The floor is relative, so that a forecast scales with its series, and rounding is not taken for a signal.
        scale = torch.sqrt((x - mean).square().mean(-1, keepdim=True) + (1e-6 * (last + mean)).square() + 1e-24)
        if self.norm in ("mean", "none"):
            scale = torch.ones_like(scale)
        centre = {"last": torch.zeros_like(mean), "none": -last}.get(self.norm, mean)
        x, shift = x - centre, last + centre
        if self.affine is not None:
            scale = scale * torch.exp(-self.affine[:, :1])
            x, shift = x + self.affine[:, 1:] * scale, shift - self.affine[:, 1:] * scale
        return x / scale, shift[..., None], scale[..., None]

    def _embedded(self, x: Tensor) -> Tensor:
        """The grid (batch, variate, column, width)."""
        missing = self.columns * self.patch - self.window
        x = torch.cat([x[..., :1].expand(*x.shape[:-1], missing), x], -1) if missing else x
        grid: Tensor = self.embedding(x.reshape(*x.shape[:-1], self.columns, self.patch))
        if self.variate_embedding is None:
            return grid
        if x.shape[1] != len(self.variate_embedding):
            raise ValueError(f"past has {x.shape[1]} variates; this Chimera was made for {len(self.variate_embedding)}")
        return grid + self.variate_embedding[:, None]

    def _linearly(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        return F.linear(x - mean, self.linear) + mean  # type: ignore[arg-type]


def _in_order(y: Tensor, quantiles: tuple[float, ...]) -> Tensor:
    """Point and quantiles out of the head's (..., 1 + quantile) numbers.

    The quantile next to the median is the point plus its number; every other lies beyond its neighbour by a softplus.
    """
    if not quantiles:
        return y
    middle = min(range(len(quantiles)), key=lambda i: abs(quantiles[i] - 0.5))
    point, below, centre, above = (
        y[..., :1],
        y[..., 1 : middle + 1],
        y[..., :1] + y[..., middle + 1 : middle + 2],
        y[..., middle + 2 :],
    )
    up = centre + F.softplus(above).cumsum(-1)
    down = centre - F.softplus(below).flip(-1).cumsum(-1).flip(-1)
    return torch.cat([point, down, centre, up], -1)
