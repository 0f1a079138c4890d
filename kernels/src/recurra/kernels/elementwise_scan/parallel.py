"""Time-parallel backend, in plain torch on any device: all steps at once, log2(time) passes each.

indrnn_linear and indrnn_relu are scans of an associative composition; the other cells are solved by Newton's method
and certified: every result satisfies h_t = f(h_(t-1), x_t) to a tolerance, or is the sequential kernel's.
README.md has the mathematics.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recurra.kernels.elementwise_scan import doubling
from recurra.kernels.elementwise_scan.reference import STEPS
from recurra.kernels.elementwise_scan.slopes import SLOPES
from recurra.kernels.sequences import loop
from recurra.kernels.steps import Steps, arrange, following

# Of the carried dtype's epsilon: what rounding in one step can leave, with room for slopes above 1.
TOLERANCE = 8
ITERATIONS = 24


class Newton:
    """The backend with a tolerance and a bound on iterations of its own; reports what it did.

    Attributes:
        iterations: (batch,) int64, Newton steps of each sequence of the last forward pass; -1 where the sequential
            kernel computed it.
    """

    def __init__(self, tolerance: float | None = None, max_iterations: int = ITERATIONS) -> None:
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.iterations = torch.empty(0, dtype=torch.int64)

    def forward(self, options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
        """y and the last state; c after every step where a backward pass of diag_lstm_cifg may follow."""
        steps = arrange(inputs.wx, inputs[2:4], inputs.lengths, inputs.reset, options.reverse)
        u = inputs.params.detach().to(steps.x.dtype)
        states, self.iterations = self._solve(options.cell, u, steps)
        rows = (self.iterations < 0).nonzero()[:, 0]
        if len(rows):
            found = _sequential(options.cell, u, steps.pick(rows))
            states = [s.index_copy(0, rows, f) for s, f in zip(states, found, strict=True)]
        last = steps.last(states)
        y, *memory = (s.flip(1) if options.reverse else s for s in states)
        return [y.to(inputs.wx.dtype), *last, *(memory if saving else [])]

    def backward(
        self,
        options: Any,
        inputs: Any,
        results: Sequence[Tensor],
        gradients: Sequence[Tensor],
        wanted: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        """Gradients by one linear scan from the last step to the first with the transposed slopes: exact."""
        return backward(options, inputs, results, gradients, wanted)

    def _solve(self, cell: str, u: Tensor, steps: Steps) -> tuple[list[Tensor], Tensor]:
        """States after every step, 0 in the padding, and iterations; -1 where the certificate is missing."""
        batch = steps.x.shape[0]
        tolerance = TOLERANCE * torch.finfo(u.dtype).eps if self.tolerance is None else self.tolerance
        exact = cell in ("indrnn_relu", "indrnn_linear")
        states = _scan(cell, u, steps) if exact else _first_guess(cell, u, steps)
        iterations = torch.full((batch,), -1, device=u.device)
        waiting = torch.arange(batch, device=u.device)
        for iteration in range(1 if exact else self.max_iterations + 1):
            part, now = steps.pick(waiting), [s[waiting] for s in states]
            old = part.before(now)
            after = STEPS[cell](u, *old, part.x)
            error = [torch.where(part.live, f - s, 0) for f, s in zip(after, now, strict=True)]
            # Not finite is not below.
            good = torch.stack([_largest(e) < tolerance * (1 + _largest(s)) for e, s in zip(error, now, strict=True)])
            good = good.all(0)
            first = good & (iterations[waiting] < 0)
            iterations[waiting[first]] = iteration
            iterations[waiting[~good]] = -1
            # One correction more than the certificate asks for takes the error to the rounding of the states.
            done = good & ~first
            waiting = waiting[~done]
            if exact or iteration == self.max_iterations or not len(waiting):
                break
            keep = ~done
            part, old, after, error, now = part.pick(keep), *([v[keep] for v in g] for g in (old, after, error, now))
            better = _improved(cell, u, part, old, after, error, now)
            states = [s.index_copy(0, waiting, b) for s, b in zip(states, better, strict=True)]
        return states, iterations


def forward(options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
    """y and the last state, to the default tolerance."""
    return Newton().forward(options, inputs, saving)


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Gradients by one linear scan from the last step to the first with the transposed slopes: exact."""
    steps = arrange(inputs.wx, inputs[2:4], inputs.lengths, inputs.reset, options.reverse)
    u = inputs.params.detach().to(steps.x.dtype)
    trajectories = [results[0].to(u.dtype), *results[3:]]
    d_y, *d_last = (g.to(u.dtype) for g in gradients)
    if options.reverse:
        trajectories, d_y = [s.flip(1) for s in trajectories], d_y.flip(1)
    old, count = steps.before(trajectories), range(len(d_last))
    slopes = SLOPES[options.cell](u, old, trajectories, steps.x)
    given = steps.given(d_y, d_last)
    through = [[torch.where(steps.live & ~steps.fresh, j, 0) for j in row] for row in slopes.state]
    # The state after step t acts through the slopes of step t + 1.
    later = [[following(through[i][j]).flip(1) for i in count] for j in count]
    adjoint = [s.flip(1) for s in doubling.linear(later, [g.flip(1) for g in given])]
    d_x = [doubling.total(a * d for a, d in zip(adjoint, row, strict=True)) for row in slopes.inputs]
    d_x = [torch.where(steps.live, d, 0) for d in d_x]
    d_u = torch.stack([(d_x[k] * torch.where(steps.live, v, 0)).sum((0, 1)) for k, v in slopes.params])
    started = [doubling.total(adjoint[i] * slopes.state[i][j] for i in count) for j in count]
    d_start = [torch.where(steps.fresh, s, 0).sum(1) for s in started]
    empty = ~steps.live.any(1)
    d_start = [torch.where(empty, d, s) for d, s in zip(d_last, d_start, strict=True)]
    d_wx = torch.stack(d_x, 2).reshape(inputs.wx.shape)
    d_wx = d_wx.flip(1) if options.reverse else d_wx
    return d_wx, d_u.reshape(inputs.params.shape), *d_start, *[None] * (4 - len(d_start))


def _scan(cell: str, u: Tensor, steps: Steps) -> list[Tensor]:
    # A step from the initial state is a constant, and so is one of the padding.
    (start,) = steps.start
    slope = torch.where(steps.live & ~steps.fresh, u, 0)
    value = torch.where(steps.fresh, steps.x + u * start[:, None], steps.x)
    if cell == "indrnn_linear":
        return doubling.linear([[slope]], [value])
    return [torch.where(steps.live, doubling.rectified(slope, value), 0)]


def _first_guess(cell: str, u: Tensor, steps: Steps) -> list[Tensor]:
    nothing = torch.zeros_like(steps.live, dtype=u.dtype).expand(-1, -1, u.shape[-1])
    guess = STEPS[cell](u, *steps.before([nothing for _ in steps.start]), steps.x)
    return [torch.where(steps.live, s, 0) for s in guess]


def _improved(
    cell: str,
    u: Tensor,
    steps: Steps,
    old: Sequence[Tensor],
    after: Sequence[Tensor],
    error: Any,
    now: Sequence[Tensor],
) -> list[Tensor]:
    """The states after one Newton step; where it overflows, those after one plain step."""
    slopes = SLOPES[cell](u, old, after, steps.x).state
    slopes = [[torch.where(steps.live & ~steps.fresh, j, 0) for j in row] for row in slopes]
    moves = doubling.linear(slopes, error)
    better = []
    for s0, s, f, move in zip(steps.start, now, after, moves, strict=True):
        # No state of these cells exceeds 1 and its initial value.
        bound = s0[:, None].abs().clamp(min=1)
        value = torch.where(torch.isfinite(move), s + move, f).clamp(-bound, bound)
        better.append(torch.where(steps.live, value, 0))
    return better


def _sequential(cell: str, u: Tensor, steps: Steps) -> list[Tensor]:
    # The steps are in order and hold their own borders, so the definition's loop is enough where no kernel serves.
    from recurra.kernels.elementwise_scan import OP, Inputs, Options

    options = Options(cell, False)
    c0 = steps.start[1] if len(steps.start) > 1 else None
    inputs = Inputs(steps.x, u, steps.start[0], c0, None, steps.fresh[..., 0].contiguous())
    able = [n for n in ("numba", "triton") if n in OP.backends and OP.backends[n].supports(options, inputs) is None]
    if able:
        y, *rest = OP.kernel(able[0]).forward(options, inputs, True)
        states = [y, *rest[2:]]
    else:
        taken, _ = loop(
            lambda *s: STEPS[cell](u, *s), (steps.x,), steps.start, lengths=None, reset=inputs.reset, reverse=False
        )
        states = [torch.stack(s, 1) for s in zip(*taken, strict=True)]
    return [torch.where(steps.live, s, 0) for s in states]


def _largest(value: Tensor) -> Tensor:
    return value.abs().flatten(1).amax(1) if value.numel() else value.new_zeros(len(value))
