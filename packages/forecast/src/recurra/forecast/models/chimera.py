"""Chimera, a forecaster made of two-dimensional state space models over variates and time.

Behrouz, Santacatterina, Zabih: "Chimera: Effectively Modeling Multivariate Time Series with 2-Dimensional State Space
Models", NeurIPS 2024, arXiv:2406.04320. The authors have published no code. From the paper: two states, one carried
along time and one along variates; discretisation with a step each; selective B, C and steps; modules for trend and
season that differ in their steps; forward and backward over variates; gating; a closed loop for long horizons. Ours:
the held discretisation, which is bounded for all inputs, sizes, the wiring of a block, the head, and the linear map
beside it.
"""

from collections.abc import Iterable
from math import ceil
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from recurra.core.checks import at_least_one, one_of
from recurra.forecast.models.chimera_blocks import Block, ClosedLoopHead, DirectHead, StateEnergies
from recurra.forecast.models.chimera_ssm import Coupling, Mode, Scan, Structure
from recurra.forecast.models.forecaster import Forecaster, Layout

Norm = Literal["standard", "mean", "last", "none"]
Head = Literal["direct", "last", "states", "closed_loop"]
Steps = tuple[float, float]


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
        coupling_start: deviation of the untrained coupling; 0 starts from two scans that know nothing of each other.
        gated: blocks have norm, convolution and gate. Without, and with selective=False, the model is linear in its
            window, and the embedding starts as the mean of the patch.
        head: "direct" from all columns, "last" from the last one, "states" from it and from the states that the last
            block has there, or "closed_loop" going on from it.
        individual: each variate has a head of its own, unless it is a closed loop; needs variates.
        norm: what each window and variate is freed of: mean and deviation, its mean, its last value, or nothing.
        affine: a learned scale and shift of each variate after that; needs variates.
        variates: number of variates that get an embedding of their own; 0 for none, which serves any number.
        linear: add a linear map of the window, one for all variates; the head then starts from 0. `initialise` fits
            both.
        ridge: of the fit of the linear map, added to the mean squares of the window's values.
        head_ridge: of the fit of the head, added to the mean squares of what it reads, each scaled to 1.
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
        coupling_start: float = 0.0,
        gated: bool = True,
        head: Head = "direct",
        individual: bool = False,
        norm: Norm = "standard",
        affine: bool = False,
        variates: int = 0,
        linear: bool = True,
        ridge: float = 1e-2,
        head_ridge: float = 100.0,
        train_linear: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(window=window, horizon=horizon, quantiles=quantiles, calibration=calibration)
        at_least_one(patch=patch, width=width, inner=inner, layers=layers, kernel=kernel)
        one_of("norm", norm, Norm)
        _check_head(head, scan, individual=individual, affine=affine, variates=variates)
        self.reads_states, self.ridge, self.head_ridge = head == "states", ridge, head_ridge
        self.patch, self.norm, self.columns = patch, norm, ceil(window / patch)
        both: dict[str, Any] = {"mode": mode, "rho": rho, "structure": structure, "coupling": coupling, "scan": scan}
        both |= {"bidirectional": bidirectional, "order_free": order_free, "variate_steps": variate_steps}
        both |= {"coupling_start": coupling_start}
        modules = {
            name: {"selective": selective, "rank": rank, "time_steps": steps, **both}
            for name, steps in (("trend", trend_steps), ("season", season_steps))
        }
        self.embedding = nn.Linear(patch, width)
        if not gated:
            nn.init.constant_(self.embedding.weight, 1 / patch)
            nn.init.zeros_(self.embedding.bias)
        self.variate_embedding = nn.Parameter(torch.zeros(variates, width)) if variates else None
        # Log of the scale, and the shift.
        self.affine = nn.Parameter(torch.zeros(variates, 2)) if affine else None
        self.blocks = nn.ModuleList(
            Block(width, inner, states, kernel=kernel, gated=gated, dropout=dropout, modules=modules)
            for _ in range(layers)
        )
        self.final_norm = nn.RMSNorm(width, eps=1e-5) if gated else nn.Identity()
        each = 1 + len(quantiles)
        self.head: DirectHead | ClosedLoopHead
        if head == "closed_loop":
            options = {**both, "time_steps": season_steps}
            new = ceil(horizon / patch)
            self.head = ClosedLoopHead(width, states, new, each * patch, dropout=dropout, options=options)
        else:
            read, maps = self.columns if head == "direct" else 1, variates if individual else 1
            directions = 1 if order_free or not bidirectional else 2
            cell = width + (2 * len(modules) * directions * states * inner if head == "states" else 0)
            self.head = DirectHead(cell, read, each * horizon, maps=maps, dropout=dropout)
        self.linear = nn.Parameter(torch.zeros(horizon, window), requires_grad=train_linear) if linear else None
        if linear:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

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
        y = self.head(self._features(x)).unflatten(2, (-1, 1 + len(self.quantiles)))[:, :, : self.horizon]
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
    def initialise(self, windows: Tensor, targets: Tensor) -> None:
        """Fit the linear map to these windows by ridge regression, in closed form, and then the head to what is left.

        The head reads the untrained recurrence, as that of an echo state network does (Jaeger 2001); of a closed loop
        it stays as it is.

        Args:
            windows: (sample, window, variate); may be a strided view, of which some hundred samples are read at a time.
            targets: (sample, horizon, variate), what followed.

        Raises:
            ValueError: a shape does not fit, or there is no sample.
        """
        if not len(windows) or len(targets) != len(windows):
            raise ValueError(
                f"windows and targets have {len(windows)} and {len(targets)} samples; expected as many, at least 1"
            )
        pieces = [*zip(torch.split(windows, 256), torch.split(targets, 256), strict=True)]
        training = self.training
        self.eval()
        if self.linear is not None:
            self.linear.copy_(_ridge(map(_centred, pieces), self.ridge)[0])
        if self.linear is not None and isinstance(self.head, DirectHead):
            maps, each = len(self.head.weight), 1 + len(self.quantiles)
            fitted = _ridge((self._left_over(*piece, maps) for piece in pieces), self.head_ridge, scaled=True)
            self.head.weight[:, ::each] = fitted
        self.train(training)

    def _left_over(self, past: Tensor, future: Tensor, maps: int) -> tuple[Tensor, Tensor]:
        """What each of the head's maps reads (map, sample, feature), and what it should make of it."""
        x, shift, scale = self._normalised(past.transpose(1, 2))
        features = self.head.read(self._features(x)) * scale[..., 0]  # type: ignore[operator]
        residual = future.transpose(1, 2) - self._linearly(x) * scale[..., 0] - shift[..., 0]
        if maps == 1:
            return features.flatten(0, 1)[None], residual.flatten(0, 1)[None]
        return features.transpose(0, 1), residual.transpose(0, 1)

    def _features(self, x: Tensor) -> Tensor:
        """What the head is given, (batch, variate, column, width)."""
        grid = self._embedded(x)
        for block in self.blocks:
            before, grid = grid, block(grid)
        features: Tensor = self.final_norm(grid)
        if not self.reads_states:
            return features
        states = self.blocks[-1].last_states(before)  # type: ignore[operator]
        return torch.cat([features[:, :, -1], states], -1)[:, :, None]

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


def _check_head(head: Head, scan: Scan, *, individual: bool, affine: bool, variates: int) -> None:
    """Raise a ValueError if these options do not go together."""
    one_of("head", head, Head)
    if affine and not variates:
        raise ValueError("affine needs variates: each has a scale and a shift of its own")
    if individual and not variates:
        raise ValueError("individual needs variates: each has a head of its own")
    if head in ("states", "closed_loop") and scan == "fft":
        raise ValueError(f"head={head} needs the states of the last column, which scan=fft does not make")


def _centred(piece: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Windows and what followed, free of the windows' means, all variates as one map."""
    x, y = (t.double().transpose(1, 2).flatten(0, 1) for t in piece)
    mean = x.mean(1, keepdim=True)
    return (x - mean)[None], (y - mean)[None]


def _ridge(pieces: Iterable[tuple[Tensor, Tensor]], ridge: float, *, scaled: bool = False) -> Tensor:
    """(map, output, feature): the ridge regressions of pieces (map, sample, feature) and (map, sample, output)."""
    gram, product, count = torch.zeros(()), torch.zeros(()), 0
    for x, y in pieces:
        x, y = x.double(), y.double()
        gram, product, count = gram + x.mT @ x, product + x.mT @ y, count + x.shape[1]
    gram, product = gram / count, product / count
    scale = gram.diagonal(dim1=1, dim2=2).sqrt().clamp_min(1e-30) if scaled else torch.ones_like(gram[:, 0])
    gram = gram / scale[:, :, None] / scale[:, None]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    weight: Tensor = torch.linalg.solve(gram + ridge * eye, product / scale[:, :, None]) / scale[:, :, None]
    return weight.mT


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
