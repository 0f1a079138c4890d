"""One two-dimensional linear recurrence, evaluated in the orders that give the same numbers; and its two relatives.

Over the grid of variates v and columns t (time), elementwise in the last axis, states outside the grid given or 0:

    h1[v,t] = a1[v,t] h1[v,t-1] + a2[v,t] h2[v,t-1] + b1[v,t]
    h2[v,t] = a3[v,t] h1[v-1,t] + a4[v,t] h2[v-1,t] + b2[v,t]

No associative element of fixed size exists for it while a2 and a3 are both present (what a block of k rows does to its
border has rank k), so every exact order keeps one sequential axis: rows, columns or anti-diagonals.

`order_free` replaces the variate before v by the mean of all variates, `companion` replaces a1 by a shift register, and
`convolution` is the recurrence with constant coefficients as one FFT.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from recurra.core.checks import one_of
from recurra.kernels import linear_scan, ssm2d_scan

Order = Literal["auto", "row", "column", "wavefront", "loop"]
Column = tuple[Tensor, Tensor]
State = TypeVar("State")


class Coefficients(NamedTuple):
    """a1 to a4 of the recurrence, each what broadcasts from the right to (batch, variate, column, width)."""

    a1: Tensor
    a2: Tensor
    a3: Tensor
    a4: Tensor

    def over(self, shape: Sequence[int]) -> "Coefficients":
        """The same, expanded to this shape."""
        return Coefficients(*(a.expand(*shape) for a in self))

    def swapped(self) -> "Coefficients":
        """Those of the grid with both axes exchanged: time for variates, and with them the two states."""
        return Coefficients(*(a.transpose(-3, -2) if a.dim() > 2 else a for a in self[::-1]))


def grid_scan(
    a: Coefficients, b1: Tensor, b2: Tensor, left: Column | None = None, *, order: Order = "auto"
) -> tuple[Tensor, Tensor]:
    """h1 and h2 in every cell.

    Args:
        a: coefficients.
        b1: (batch, variate, column, width).
        b2: same shape.
        left: h1 and h2 of the column before the first, each (batch, variate, width); zero if None.
        order: "auto", the kernel that `recurra.kernels` chooses; "row", variates one after the other, each by one scan
            along time; "column", the other way round; "wavefront", anti-diagonals; "loop", cell by cell.

    Raises:
        ValueError: a shape does not fit, or the order is none of these.
    """
    one_of("order", order, Order)
    if order in ("auto", "loop"):
        return ssm2d_scan(*a, b1, b2, left, backend="reference" if order == "loop" else None)
    if left is None:
        left = b1.new_zeros(b1[:, :, 0].shape), b1.new_zeros(b1[:, :, 0].shape)
    run: Callable[..., tuple[Tensor, Tensor]] = {"row": _rows, "column": _columns, "wavefront": _diagonals}[order]
    return run(a.over(b1.shape), b1, b2, left)


def _before(first: Tensor, x: Tensor) -> Tensor:
    """x one step later along axis 1, `first` in front."""
    return torch.cat([first[:, None], x[:, :-1]], 1)


def _rows(a: Coefficients, b1: Tensor, b2: Tensor, left: Column) -> tuple[Tensor, Tensor]:
    h1 = h2 = torch.zeros_like(b1[:, 0])  # (batch, column, width), of the variate before
    rows = []
    for v in range(b1.shape[1]):
        a1, a2, a3, a4 = (x[:, v] for x in a)
        h2 = a3 * h1 + a4 * h2 + b2[:, v]
        h1, _ = linear_scan(a1, a2 * _before(left[1][:, v], h2) + b1[:, v], left[0][:, v])
        rows.append((h1, h2))
    return torch.stack([row[0] for row in rows], 1), torch.stack([row[1] for row in rows], 1)


def _columns(a: Coefficients, b1: Tensor, b2: Tensor, left: Column) -> tuple[Tensor, Tensor]:
    h1, h2 = left  # (batch, variate, width), of the column before
    columns = []
    for t in range(b1.shape[2]):
        a1, a2, a3, a4 = (x[:, :, t] for x in a)
        h1 = a1 * h1 + a2 * h2 + b1[:, :, t]
        h2, _ = linear_scan(a4, a3 * _before(torch.zeros_like(h1[:, 0]), h1) + b2[:, :, t])
        columns.append((h1, h2))
    return torch.stack([column[0] for column in columns], 2), torch.stack([column[1] for column in columns], 2)


def _diagonals(a: Coefficients, b1: Tensor, b2: Tensor, left: Column) -> tuple[Tensor, Tensor]:
    batch, variates, steps, width = b1.shape
    cells = [
        (v, s - v) for s in range(variates + steps - 1) for v in range(max(0, s - steps + 1), min(variates, s + 1))
    ]
    # At v the state in the newest cell of that variate; column 0 starts from what is left of it.
    h1, h2 = (torch.cat([torch.zeros_like(x[:, :1]), x], 1) for x in left)  # (batch, 1 + variate, width)
    found, start = [], 0
    for s in range(variates + steps - 1):
        low, high = max(0, s - steps + 1), min(variates, s + 1)
        v = torch.arange(low, high, device=b1.device)
        a1, a2, a3, a4, c1, c2 = (x[:, v, s - v] for x in (*a, b1, b2))
        new1 = a1 * h1[:, low + 1 : high + 1] + a2 * h2[:, low + 1 : high + 1] + c1
        new2 = a3 * h1[:, low:high] + a4 * h2[:, low:high] + c2
        h1 = torch.cat([h1[:, : low + 1], new1, h1[:, high + 1 :]], 1)
        h2 = torch.cat([h2[:, : low + 1], new2, h2[:, high + 1 :]], 1)
        found.append((new1, new2))
        start += high - low
    where = torch.tensor([v * steps + t for v, t in cells], device=b1.device).argsort()
    h1, h2 = (torch.cat([pair[i] for pair in found], 1)[:, where] for i in (0, 1))
    return h1.view(batch, variates, steps, width), h2.view(batch, variates, steps, width)


def order_free(a: Coefficients, b1: Tensor, b2: Tensor, left: Column | None = None) -> tuple[Tensor, Tensor]:
    """h1 and h2 where what stands before each variate is the mean m of all of them, itself included:

        h2[v,t] = a3[v,t] m1[t] + a4[v,t] m2[t] + b2[v,t]

    The mean of both sides gives m2 = (mean(a3) m1 + mean(b2)) / (1 - mean(a4)), so nothing is iterated. With
    |a3| <= rho (1 - a4) the states obey the bound of the ordered recurrence. Permuting the variates permutes
    the result.

    Args:
        a: coefficients, a4 < 1.
        b1: (batch, variate, column, width).
        b2: same shape.
        left: h1 and h2 of the column before the first, each (batch, variate, width); zero if None.
    """
    a = a.over(b1.shape)
    h1, h2 = left or (torch.zeros_like(b1[:, :, 0]), torch.zeros_like(b1[:, :, 0]))
    columns = []
    for t in range(b1.shape[2]):
        a1, a2, a3, a4 = (x[:, :, t] for x in a)
        h1 = a1 * h1 + a2 * h2 + b1[:, :, t]
        m1 = h1.mean(1, keepdim=True)
        m2 = (a3.mean(1, keepdim=True) * m1 + b2[:, :, t].mean(1, keepdim=True)) / (1 - a4.mean(1, keepdim=True))
        h2 = a3 * m1 + a4 * m2 + b2[:, :, t]
        columns.append((h1, h2))
    return torch.stack([column[0] for column in columns], 2), torch.stack([column[1] for column in columns], 2)


def companion(
    column: Tensor, keep: Tensor, a: Coefficients, b1: Tensor, b2: Tensor, left: Column | None = None
) -> tuple[Tensor, Tensor]:
    """h1 and h2 where a1 is `keep` times a companion matrix: ones below the diagonal, `column` in the last column.

    The states n = 0 to N-1 of a channel are a shift register with feedback, which holds every autoregression of order
    N: with column = 0, keep = 1 and b1 = x in state 0, state n is x[v,t-n].

    Args:
        column: (state, channel).
        keep: what broadcasts to (batch, variate, column, 1, channel).
        a: as of `grid_scan`; a1 is not used.
        b1: (batch, variate, column, state * channel).
        b2: same shape.
        left: h1 and h2 of the column before the first, each (batch, variate, state * channel); zero if None.
    """
    shape = b1.shape
    keep = keep.expand(*shape[:3], 1, column.shape[1])
    h1, h2 = left or (torch.zeros_like(b1[:, :, 0]), torch.zeros_like(b1[:, :, 0]))
    _, a2, a3, a4 = a.over(shape)
    columns = []
    for t in range(shape[2]):
        register = h1.reshape(*shape[:2], *column.shape)  # (batch, variate, state, channel)
        moved = keep[:, :, t] * (F.pad(register[..., :-1, :], (0, 0, 1, 0)) + column * register[..., -1:, :])
        h1 = moved.flatten(-2) + a2[:, :, t] * h2 + b1[:, :, t]
        h2, _ = linear_scan(a4[:, :, t], a3[:, :, t] * _before(torch.zeros_like(h1[:, 0]), h1) + b2[:, :, t])
        columns.append((h1, h2))
    return torch.stack([pair[0] for pair in columns], 2), torch.stack([pair[1] for pair in columns], 2)


def read(h1: Tensor, h2: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    """y = sum over states of c1 h1 + c2 h2.

    Args:
        h1: (batch, variate, column, state * channel), or without the column.
        h2: same shape.
        c1: what broadcasts to (batch, variate, column, state, channel) and has as many states.
        c2: likewise.
    """
    states = (*h1.shape[:-1], c1.shape[-2], -1)
    y: Tensor = torch.addcmul(c1 * h1.reshape(states), c2, h2.reshape(states)).sum(-2)
    return y


def impulse_response(
    a: Coefficients, b1: Tensor, b2: Tensor, c1: Tensor, c2: Tensor, variates: int, steps: int
) -> Tensor:
    """(variate, column, channel): what a 1 in the first cell makes of every other; coefficients constant.

    Args:
        a: each (state * channel,).
        b1: (state, channel).
        b2: likewise.
        c1: likewise.
        c2: likewise.
        variates: rows of the grid.
        steps: columns of the grid.
    """
    where = (0, 0, 0, steps - 1, 0, variates - 1)
    unit1, unit2 = (F.pad(b.flatten()[None, None], where)[None] for b in (b1, b2))
    return read(*grid_scan(a, unit1, unit2), c1, c2)[0]


def convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """Causal convolution of (batch, variate, column, channel) with an impulse response over both axes, by FFT."""
    size = [2 * n for n in kernel.shape[:2]]
    product = torch.fft.rfft2(x, s=size, dim=(1, 2)) * torch.fft.rfft2(kernel, s=size, dim=(0, 1))
    y: Tensor = torch.fft.irfft2(product, s=size, dim=(1, 2))[:, : x.shape[1], : x.shape[2]]
    return y


def closed_loop(
    feed: Callable[[State], Tensor], advance: Callable[[Tensor, State], tuple[Tensor, State]], state: State, steps: int
) -> tuple[Tensor, Tensor, State]:
    """Inputs that a model makes for itself, its output for them, and its last state:

        x[v,t] = feed(state of column t-1), for example the sum over states of K1 h1[v,t-1] + K2 h2[v,t-1]

    which is a two-dimensional system again, of transition a1 + b1 K1, a2 + b1 K2 along time; each new column costs the
    same however long the past was (after SpaceTime, Zhang et al. 2023, arXiv:2302.09489, in one dimension).

    Args:
        feed: next input (batch, variate, channel) out of a state.
        advance: output and state after one more column (batch, variate, 1, channel).
        state: of the last column known.
        steps: columns to go on for, at least 1.
    """
    inputs, outputs = [], []
    for _ in range(steps):
        x = feed(state)[:, :, None]
        y, state = advance(x, state)
        inputs.append(x)
        outputs.append(y)
    return torch.cat(inputs, 2), torch.cat(outputs, 2), state
