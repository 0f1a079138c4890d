"""Selective two-dimensional state space model over variates and time: what Chimera's heads are made of."""

from math import log, sqrt
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recurra.core.checks import at_least_one, one_of
from recurra.forecast.models import chimera_scan
from recurra.forecast.models.chimera_scan import Coefficients, Column, convolution, grid_scan, impulse_response, read

Mode = Literal["zoh_held", "zoh_per_matrix", "euler_b"]
Scan = Literal["auto", "row", "column", "wavefront", "fft", "loop"]
Structure = Literal["diagonal", "companion"]
Coupling = Literal["full", "one_way", "none"]
Steps = tuple[float, float]


class Discrete(NamedTuple):
    """The recurrence's coefficients, (..., state, channel) each."""

    a1: Tensor
    a2: Tensor
    a3: Tensor
    a4: Tensor
    b1: Tensor
    b2: Tensor

    def flat(self) -> Coefficients:
        """a1 to a4 with states and channels in one axis, as the scans take them."""
        return Coefficients(*(x.flatten(-2) for x in self[:4]))


def phi(step: Tensor, a: Tensor) -> Tensor:
    """(exp(step a) - 1) / a, and its limit `step` for a = 0: what a unit input, held over the step, adds to a state."""
    # Where a is 0 a number next to it gives the limit; the division of two tensors as large as the grid is avoided.
    near = torch.where(a == 0, -1e-12, a)
    return torch.expm1(step * near) * near.reciprocal()


def discretise(
    a: tuple[Tensor, Tensor, Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    steps: tuple[Tensor, Tensor],
    mode: Mode = "zoh_held",
    *,
    bounded: bool = False,
) -> Discrete:
    """Coefficients of the recurrence for the steps D1 along time and D2 along variates:

        mode             a1         a2            a3            a4         b1             b2
        zoh_held         exp(D1 A1) phi(D1,A1) A2 phi(D2,A4) A3 exp(D2 A4) phi(D1,A1) B1  phi(D2,A4) B2
        zoh_per_matrix   exp(D1 A1) exp(D1 A2)    exp(D2 A3)    exp(D2 A4) phi(D1,A1) B1  phi(D2,A4) B2
        euler_b          exp(D1 A1) D1 A2         D2 A3         exp(D2 A4) D1 B1          D2 B2

    `zoh_held` is the exact solution where the other state and the input are held over the step. With
    |A2| <= rho |A1|, |A3| <= rho |A4| and rho < 1 it is bounded for any steps, however they depend on the input:
    max|h| <= max(|B1|/|A1|, |B2|/|A4|) max|x| / (1 - rho).

    Args:
        a: A1 to A4, each (state, channel); A1 and A4 below 0.
        b: B1 and B2, each what broadcasts to (..., state, channel).
        steps: D1 and D2 above 0, (..., 1, channel).
        mode: convention.
        bounded: make the other modes stable too. `zoh_per_matrix` halves a1 to a4, as Baron et al. 2023
            (arXiv:2306.06635) halve the sums, since all four tend to 1 for small steps and the number of paths through
            the grid then grows without end; `euler_b` clips |a2| to 1 - a1 and |a3| to 1 - a4.
    """
    one_of("mode", mode, Mode)
    (big1, big2, big3, big4), (step1, step2) = a, steps
    a1, a4 = torch.exp(step1 * big1), torch.exp(step2 * big4)
    if mode == "euler_b":
        a2, a3 = step1 * big2, step2 * big3
        if bounded:
            a2, a3 = a2.clamp(a1 - 1, 1 - a1), a3.clamp(a4 - 1, 1 - a4)
        return Discrete(a1, a2, a3, a4, step1 * b[0], step2 * b[1])
    held1, held2 = phi(step1, big1), phi(step2, big4)
    if mode == "zoh_held":
        return Discrete(a1, held1 * big2, held2 * big3, a4, held1 * b[0], held2 * b[1])
    half = 0.5 if bounded else 1.0
    a2, a3 = torch.exp(step1 * big2), torch.exp(step2 * big3)
    return Discrete(half * a1, half * a2, half * a3, half * a4, held1 * b[0], held2 * b[1])


def stable(a: Coefficients) -> bool:
    """Whether the recurrence with these constant coefficients, none below 0, forgets every input.

    That is, whether the spectral radius of [[a1, a2], [a3, a4]] is below 1 everywhere.
    """
    a1, a2, a3, a4 = a
    return bool(((a1 < 1) & (a4 < 1) & ((1 - a1) * (1 - a4) > a2 * a3)).all())


class _Held(torch.autograd.Function):
    """exp(D A), phi(D, A) A' and phi(D, A) B x of one axis: `discretise` with few tensors as large as the grid.

    Arguments are D (..., 1, channel), A and A'/A (state, channel), B (..., state, 1) and x (..., 1, channel).
    """

    @staticmethod
    def forward(ctx: Any, step: Tensor, own: Tensor, ratio: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        moved = (step * own).expm1_()
        kept, held = moved + 1, (b * x).div_(own)
        driven = held * moved
        ctx.save_for_backward(step, own, ratio, b, x, moved, kept, held, driven)
        return kept, moved * ratio, driven

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_own: Tensor, d_other: Tensor, d_driven: Tensor) -> tuple[Tensor, ...]:
        step, own, ratio, b, x, moved, kept, held, driven = ctx.saved_tensors
        product = torch.mul(d_driven, driven)
        d_a = -_over_cells(product) / own
        d_ratio = _over_cells(torch.mul(d_other, moved, out=product))
        torch.mul(d_driven, moved, out=product).div_(own)  # the gradient of b x
        d_b = product @ x.transpose(-2, -1)
        d_x = product.mul_(b).sum(-2, keepdim=True)
        through = torch.addcmul(d_own, d_driven, held, out=product).addcmul_(d_other, ratio)
        through.mul_(kept)  # the gradient of D A
        d_step = (through * own).sum(-2, keepdim=True)
        return d_step, d_a + _over_cells(through.mul_(step)), d_ratio, d_b, d_x


def _held(*arguments: Tensor) -> tuple[Tensor, ...]:
    results: tuple[Tensor, ...] = _Held.apply(*arguments)  # type: ignore[no-untyped-call]
    return results


def _over_cells(x: Tensor) -> Tensor:
    return x.flatten(0, -3).sum(0)


class GridSSM(nn.Module):
    """y[v,t] = C1 h1[v,t] + C2 h2[v,t] + skip x[v,t] of one direction over the variates, N states a channel.

    Keys: `A_log` (2, state, channel), log of -A1 and -A4; `A_cross` (1 or 2, state, channel), of A2 and A3; `column`
    (state, channel) of a companion matrix; `step_bias` (2, channel), `skip` (channel,). Selective: `to_rank.weight`
    (rank, channel), `to_steps.weight` (2 channel, rank), rows D1 then D2, `to_states.weight` (4 state, channel), rows
    B1, B2, C1, C2. Otherwise `B` and `C`, (2, state, channel).

    Args:
        channels: width of x and y.
        states: of every channel and of both kinds.
        selective: D1, D2, B1, B2, C1 and C2 depend on the input of the cell; A does not.
        mode: discretisation, see `discretise`; made stable in every mode.
        rho: how close the coupling may come to the edge of the bound, from 0 up to but not 1.
        structure: "diagonal", or "companion": a1 is a shift register with feedback that holds autoregressions; its
            column is scaled to an absolute sum of at most 1, D1 says how fast it forgets, and A4 is one number a
            channel, so that the bound holds for the sum over the states of a channel.
        coupling: "full"; "one_way", variates inform time but not the other way round (a3 = 0); "none" (a2 = a3 = 0).
        scan: order of evaluation; "fft" for selective=False only.
        order_free: the predecessor of a variate is the mean of all.
        rank: of the projections to D1 and D2.
        time_steps: D1 of the untrained model is log-uniform between these.
        variate_steps: likewise D2.
        coupling_start: deviation of the untrained `A_cross`; 0 starts uncoupled.
    """

    def __init__(
        self,
        channels: int,
        states: int,
        *,
        selective: bool = True,
        mode: Mode = "zoh_held",
        rho: float = 0.9,
        structure: Structure = "diagonal",
        coupling: Coupling = "full",
        scan: Scan = "auto",
        order_free: bool = False,
        rank: int = 2,
        time_steps: Steps = (1e-2, 1.0),
        variate_steps: Steps = (1e-2, 1.0),
        coupling_start: float = 0.0,
    ) -> None:
        super().__init__()
        at_least_one(channels=channels, states=states, rank=rank)
        for name, value, choices in (
            ("mode", mode, Mode),
            ("structure", structure, Structure),
            ("coupling", coupling, Coupling),
            ("scan", scan, Scan),
        ):
            one_of(name, value, choices)
        if not 0 <= rho < 1:
            raise ValueError(f"rho must be at least 0 and below 1; got {rho}")
        if structure == "companion" and mode != "zoh_held":
            raise ValueError(f"structure=companion needs mode=zoh_held; got {mode!r}")
        if scan == "fft" and selective:
            raise ValueError("scan=fft needs selective=False: coefficients that depend on the input have no kernel")
        if scan != "auto" and (order_free or structure == "companion"):
            raise ValueError(f"scan must be auto with order_free or structure=companion; got {scan!r}")
        if order_free and structure == "companion":
            raise ValueError("order_free needs structure=diagonal; got 'companion'")
        self.channels, self.states, self.selective, self.mode, self.rho = channels, states, selective, mode, rho
        self.structure, self.coupling, self.scan, self.order_free = structure, coupling, scan, order_free
        self.time_steps, self.variate_steps, self.coupling_start = time_steps, variate_steps, coupling_start
        self._make_parameters(rank)
        self.reset_parameters()

    def _make_parameters(self, rank: int) -> None:
        shape = (self.states, self.channels)
        self.A_log = nn.Parameter(torch.empty(2, *shape))
        crossing = {"full": 2, "one_way": 1, "none": 0}[self.coupling]
        if crossing:
            self.A_cross = nn.Parameter(torch.empty(crossing, *shape))
        if self.structure == "companion":
            self.column = nn.Parameter(torch.empty(shape))
        self.step_bias = nn.Parameter(torch.empty(2, self.channels))
        self.skip = nn.Parameter(torch.empty(self.channels))
        if self.selective:
            self.to_rank = nn.Linear(self.channels, rank, bias=False)
            self.to_steps = nn.Linear(rank, 2 * self.channels, bias=False)
            self.to_states = nn.Linear(self.channels, 4 * self.states, bias=False)
        else:
            self.B = nn.Parameter(torch.empty(2, *shape))
            self.C = nn.Parameter(torch.empty(2, *shape))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uncoupled unless asked (or `zoh_per_matrix`, which cannot be), A1 and A4 = -1 to -N, skip 1."""
        self.A_log.copy_(torch.arange(1, self.states + 1).log()[:, None].expand_as(self.A_log))
        nn.init.ones_(self.skip)
        if self.coupling != "none":
            nn.init.normal_(self.A_cross, std=self.coupling_start)
        if self.structure == "companion":
            nn.init.zeros_(self.column)
        for bias, (low, high) in zip(self.step_bias, (self.time_steps, self.variate_steps), strict=True):
            step = torch.exp(torch.rand(self.channels) * (log(high) - log(low)) + log(low))
            bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        for weight in (self.to_rank.weight, self.to_steps.weight, self.to_states.weight) if self.selective else ():
            nn.init.uniform_(weight, -1 / sqrt(weight.shape[1]), 1 / sqrt(weight.shape[1]))
        for weight in () if self.selective else (self.B, self.C):
            nn.init.normal_(weight, std=1 / sqrt(self.states))

    def forward(
        self, x: Float[Tensor, "batch variate column channel"], state: Column | None = None
    ) -> tuple[Float[Tensor, "batch variate column channel"], Column | None]:
        """y, and h1 and h2 of the last column, which go before the columns that follow; None of scan=fft.

        Args:
            x: the grid; 16-bit values are accumulated in float32.
            state: what a call with the columns before returned; zeros if None.

        Raises:
            ValueError: a shape does not fit, or a state was given to scan=fft.
        """
        if x.dim() != 4 or x.shape[-1] != self.channels or not x.shape[2]:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (batch, variate, column, {self.channels})")
        kind, x = x.dtype, x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        with torch.autocast(x.device.type, enabled=False):
            if self.scan == "fft":
                return self._convolved(x, state).to(kind), None
            h1, h2, y = self.run(x, state)
        return y.to(kind), (h1[:, :, -1], h2[:, :, -1])

    def run(self, x: Tensor, state: Column | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """h1 and h2 of every cell, (batch, variate, column, state * channel), and y."""
        b, c, steps = self.projections(x)
        a, driven1, driven2 = self._driven(x, b, steps)
        if self.structure == "companion":
            column = self.column / self.column.abs().sum(0, keepdim=True).clamp_min(1)
            h1, h2 = chimera_scan.companion(column, torch.exp(-steps[0]), a, driven1, driven2, state)
        elif self.order_free:
            h1, h2 = chimera_scan.order_free(a, driven1, driven2, state)
        else:
            h1, h2 = grid_scan(a, driven1, driven2, state, order=self.scan)  # type: ignore[arg-type]
        return h1, h2, read(h1, h2, *c) + self.skip * x

    def projections(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(B1, B2), (C1, C2) and the steps (D1, D2) in every cell, or for all if not selective."""
        bias = self.step_bias
        if not self.selective:
            step1, step2 = F.softplus(bias)[:, None]
            return (self.B[0], self.B[1]), (self.C[0], self.C[1]), (step1, step2)
        raw = self.to_steps(self.to_rank(x)) + bias.flatten()
        step1, step2 = F.softplus(raw)[..., None, :].chunk(2, -1)
        b1, b2, c1, c2 = self.to_states(x)[..., None].chunk(4, -2)
        return (b1, b2), (c1, c2), (step1, step2)

    def _driven(
        self, x: Tensor, b: tuple[Tensor, Tensor], steps: tuple[Tensor, Tensor]
    ) -> tuple[Coefficients, Tensor, Tensor]:
        """a1 to a4, b1 x and b2 x as the scans take them."""
        x = x[..., None, :]
        if not (self.selective and self.mode == "zoh_held" and torch.is_grad_enabled()):
            d = self.coefficients(b, steps)
            return d.flat(), (d.b1 * x).flatten(-2), (d.b2 * x).flatten(-2)
        own1, cross2, cross3, own4 = self.rates()
        a1, a2, driven1 = (t.flatten(-2) for t in _held(steps[0], own1, cross2 / own1, b[0], x))
        a4, a3, driven2 = (t.flatten(-2) for t in _held(steps[1], own4, cross3 / own4, b[1], x))
        return Coefficients(a1, a2, a3, a4), driven1, driven2

    def coefficients(self, b: tuple[Tensor, Tensor], steps: tuple[Tensor, Tensor]) -> Discrete:
        """The recurrence's coefficients for these B and steps."""
        d = discretise(self.rates(), b, steps, self.mode, bounded=True)
        absent = {"full": (), "one_way": ("a3",), "none": ("a2", "a3")}[self.coupling]
        return d._replace(**{name: d.a1.new_zeros(self.A_log[0].shape) for name in absent})

    def rates(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A1 to A4, (state, channel) each; A2 and A3 are 0 where they are not coupled."""
        own1, own4 = -torch.exp(self.A_log)
        if self.structure == "companion":
            own1, own4 = -torch.ones_like(own1), own4[:1].expand_as(own4)
        crossing = list(self.A_cross) if self.coupling != "none" else []
        if self.mode == "zoh_per_matrix":
            # Below 0 as the own ones are; exp(step * 0) would be 1, the closest coupling of all.
            crossing = [own * torch.exp(raw) for own, raw in zip((own1, own4), crossing, strict=False)]
        else:
            # Signs are free: the bound is on the absolute values.
            crossing = [-own * self.rho * torch.tanh(raw) for own, raw in zip((own1, own4), crossing, strict=False)]
        cross2, cross3 = [*crossing, *[torch.zeros_like(own1)] * 2][:2]
        return own1, cross2, cross3, own4

    def _convolved(self, x: Tensor, state: Column | None) -> Tensor:
        if state is not None:
            raise ValueError("scan=fft takes no state: a convolution starts from nothing")
        b, c, steps = self.projections(x)
        d = self.coefficients(b, steps)
        kernel = impulse_response(d.flat(), d.b1, d.b2, *c, x.shape[1], x.shape[2])
        return convolution(x, kernel) + self.skip * x

    def extra_repr(self) -> str:
        """Sizes and form."""
        return (
            f"{self.channels}, {self.states}, selective={self.selective}, mode={self.mode}, coupling={self.coupling}, "
            f"structure={self.structure}, scan={self.scan}, order_free={self.order_free}"
        )


class VariatesSSM(nn.Module):
    """Sum of a model that reads the variates first to last and, if bidirectional, one that reads them last to first.

    Keys: `directions.0`, `directions.1`: one `GridSSM` each.

    Args:
        channels: width of input and output.
        states: of every channel.
        bidirectional: both directions; of no use, and left out, where the variates have no order.
        options: of `GridSSM`.
    """

    def __init__(self, channels: int, states: int, *, bidirectional: bool = True, **options: Any) -> None:
        super().__init__()
        count = 2 if bidirectional and not options.get("order_free") else 1
        self.directions = nn.ModuleList(GridSSM(channels, states, **options) for _ in range(count))

    def forward(
        self, x: Float[Tensor, "batch variate column channel"], state: tuple[Column, ...] | None = None
    ) -> tuple[Float[Tensor, "batch variate column channel"], tuple[Column | None, ...]]:
        """Output, and the state of each direction, variates in the order in which it reads them.

        Args:
            x: the grid.
            state: what a call with the columns before returned; zeros if None.
        """
        given = state or (None,) * len(self.directions)
        results = [ssm(turned(x, i), s) for i, (ssm, s) in enumerate(zip(self.directions, given, strict=True))]
        return sum_of([turned(y, i) for i, (y, _) in enumerate(results)]), tuple(last for _, last in results)

    def last_states(self, x: Tensor) -> Tensor:
        """h1 and h2 of every direction in the last column, (batch, variate, direction * 2 * state * channel)."""
        found = []
        for i, ssm in enumerate(self.directions):
            h1, h2, _ = ssm.run(turned(x, i))  # type: ignore[operator]
            found.append(turned(torch.cat([h1[:, :, -1], h2[:, :, -1]], -1), i))
        return torch.cat(found, -1)

    def energies(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squares of h1 and h2 in every cell, (batch, variate, column) each, summed over the directions."""
        found = [[], []]  # type: list[list[Tensor]]
        for i, ssm in enumerate(self.directions):
            h1, h2, _ = ssm.run(turned(x, i))  # type: ignore[operator]
            for squares, h in zip(found, (h1, h2), strict=True):
                squares.append(turned(h.square().mean(-1), i))
        return sum_of(found[0]), sum_of(found[1])


def turned(x: Tensor, direction: int) -> Tensor:
    """The grid with its variates in the order in which this direction reads them."""
    return x.flip(1) if direction else x


def sum_of(tensors: list[Tensor]) -> Tensor:
    """Their sum."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
