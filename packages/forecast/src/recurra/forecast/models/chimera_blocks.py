"""What Chimera is made of between its embedding and its forecast: gated blocks, and the heads."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from recurra.forecast.models.chimera_scan import closed_loop, read
from recurra.forecast.models.chimera_ssm import VariatesSSM, sum_of, turned


class StateEnergies(NamedTuple):
    """Mean squares of the states of one block in every cell; modules are trend and season.

    time: (batch, module, variate, column), of h1, which moves along time. variate: likewise, of h2.
    """

    time: Tensor
    variate: Tensor


class Block(nn.Module):
    """x + W_out(SiLU(z) ⊙ (trend(u) + season(u))), with u = SiLU(conv(u')) and (u', z) = W_in RMSNorm(x).

    The convolution runs along time, each channel by itself, and sees no later column. Without gates, and with modules
    that are not selective, the block is linear: x + W_out(trend(W_in x) + season(W_in x)).

    Args:
        width: of x.
        inner: of u and z.
        states: of every channel of either module.
        kernel: columns that the convolution sees.
        gated: with norm, convolution and gate.
        dropout: share of the update that is dropped in training.
        modules: options of the trend module and of the season module.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        states: int,
        *,
        kernel: int,
        gated: bool,
        dropout: float,
        modules: dict[str, dict[str, Any]],
    ) -> None:
        super().__init__()
        self.gated = gated
        self.enter = nn.Linear(width, 2 * inner if gated else inner, bias=False)
        if gated:
            self.norm = nn.RMSNorm(width, eps=1e-5)
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
        update: Tensor = self.dropout(self.leave(y * gate))
        return x + update

    def inside(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """u and SiLU(z), (batch, variate, column, inner) each."""
        if not self.gated:
            return self.enter(x), 1.0
        u, gate = self.enter(self.norm(x)).chunk(2, -1)
        columns = F.pad(u.flatten(0, 1).transpose(1, 2), (self.conv.kernel_size[0] - 1, 0))
        return F.silu(self.conv(columns).transpose(1, 2).reshape(u.shape)), F.silu(gate)

    def last_states(self, x: Tensor) -> Tensor:
        """All states of the last column, (batch, variate, state), for the grid that the block is given."""
        u, _ = self.inside(x)
        return torch.cat([ssm.last_states(u) for ssm in self.modules_by_name.values()], -1)  # type: ignore[operator]

    def energies(self, x: Tensor) -> StateEnergies:
        """Of the states, for the grid that the block is given."""
        u, _ = self.inside(x)
        found = [ssm.energies(u) for ssm in self.modules_by_name.values()]  # type: ignore[operator]
        return StateEnergies(torch.stack([h1 for h1, _ in found], 1), torch.stack([h2 for _, h2 in found], 1))


class DirectHead(nn.Module):
    """The last columns of a variate -> its values in the horizon, by one linear map for all variates or one for each.

    Keys: `weight` (map, output, column * width), `bias` (map, output), of 1 map or one a variate.
    """

    def __init__(self, width: int, columns: int, outputs: int, *, maps: int, dropout: float) -> None:
        super().__init__()
        self.columns = columns
        self.dropout = nn.Dropout(dropout)
        one = nn.Linear(columns * width, outputs)
        self.weight = nn.Parameter(one.weight.detach().repeat(maps, 1, 1))
        self.bias = nn.Parameter(one.bias.detach().repeat(maps, 1))

    def forward(self, x: Float[Tensor, "batch variate column width"]) -> Float[Tensor, "batch variate output"]:
        """The values of each variate."""
        y: Tensor = (self.dropout(self.read(x))[..., None, :] @ self.weight.mT)[..., 0, :] + self.bias
        return y

    def read(self, x: Tensor) -> Tensor:
        """What the maps are given, (batch, variate, column * width)."""
        return x[:, :, -self.columns :].flatten(2)


class ClosedLoopHead(nn.Module):
    """Goes on from the last column, its own feedback K h as next input, and maps every new column to a patch.

    Keys: `ssm` (not selective), `feedback` (direction, 2, state, width) with K1 and K2, `weight` and `bias`.
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
        one = nn.Linear(width, outputs)
        self.weight, self.bias = one.weight, one.bias

    def forward(self, x: Float[Tensor, "batch variate column width"]) -> Float[Tensor, "batch variate output"]:
        """The values of each variate, one patch after the other."""
        _, state = self.ssm(x)
        _, y, _ = closed_loop(self.feed, self.ssm, state, self.columns)
        patches = F.linear(self.dropout(y), self.weight, self.bias)  # (batch, variate, new column, patch output)
        return patches.flatten(2)

    def feed(self, states: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
        """K1 h1 + K2 h2 of both directions, (batch, variate, width)."""
        return sum_of(
            [turned(read(*s, k[0], k[1]), i) for i, (s, k) in enumerate(zip(states, self.feedback, strict=True))]
        )
