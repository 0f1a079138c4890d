"""Two-dimensional state space over the grid of variates and time."""

from math import sqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from recurra.core.checks import at_least_one
from recurra.core.nn.recurrent import check_input, check_state, valid_steps
from recurra.core.nn.states import GridState
from recurra.kernels import ssm2d_scan


class SSM2D(nn.Module):
    """Roesser's model (Roesser 1975, doi:10.1109/TAC.1975.1100844) over rows v and columns t:

        h[v,t] = a_1 ⊙ h[v,t-1] + a_2 ⊙ g[v,t-1] + B_1 x[v,t]
        g[v,t] = a_3 ⊙ h[v-1,t] + a_4 ⊙ g[v-1,t] + B_2 x[v,t]
        y[v,t] = C_1 h[v,t] + C_2 g[v,t] + D ⊙ x[v,t]

    h moves along the columns, g along the rows. In Chimera (Behrouz et al. 2024, arXiv:2406.04320) rows are variates
    and columns time. Coefficients are scaled down until |a_1| + |a_2| <= 1 and |a_3| + |a_4| <= 1, so that no response
    grows. No column sees a later one, so a grid may come column by column.

    Keys: `A` (4, hidden), before scaling; `B` (2 hidden, input), rows B_1, B_2; `C` (input, 2 hidden), columns C_1,
    C_2; `D` (input,); `weight_a` (4 hidden, input) if selective; `_reverse` for the second direction.

    Args:
        input: width of x and y.
        hidden: width of h and g.
        selective: the coefficients depend on the input: A + `weight_a` x.
        bidirectional: a second model reads the rows from the last to the first; outputs add up.
    """

    def __init__(self, input: int, hidden: int, *, selective: bool = False, bidirectional: bool = False) -> None:
        super().__init__()
        at_least_one(input=input, hidden=hidden)
        self.input, self.hidden, self.selective, self.bidirectional = input, hidden, selective, bidirectional
        self.endings = ("", "_reverse") if bidirectional else ("",)
        for ending in self.endings:
            self.register_parameter(f"A{ending}", nn.Parameter(torch.empty(4, hidden)))
            self.register_parameter(f"B{ending}", nn.Parameter(torch.empty(2 * hidden, input)))
            self.register_parameter(f"C{ending}", nn.Parameter(torch.empty(input, 2 * hidden)))
            if selective:
                self.register_parameter(f"weight_a{ending}", nn.Parameter(torch.empty(4 * hidden, input)))
        self.D = nn.Parameter(torch.empty(input))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw B, C and `weight_a` uniformly between ∓1/√width; own states keep 0.25 to 0.99 a step, D is 1."""
        nn.init.ones_(self.D)
        for ending in self.endings:
            for name in ("B", "C", *(["weight_a"] if self.selective else [])):
                weight = getattr(self, name + ending)
                nn.init.uniform_(weight, -1 / sqrt(weight.shape[1]), 1 / sqrt(weight.shape[1]))
            with torch.no_grad():
                total, crossing = torch.rand(2, self.hidden) * 0.49 + 0.5, torch.rand(2, self.hidden) / 2
                own, other = total * (1 - crossing), total * crossing
                getattr(self, f"A{ending}").copy_(torch.stack([own[0], other[0], other[1], own[1]]))

    def forward(
        self,
        x: Float[Tensor, "batch row column input"],
        state: tuple[Tensor, ...] | None = None,
        *,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch row column input"], GridState]:
        """Output in every cell, and h, g of the last column.

        Args:
            x: the grids; columns past their end may hold anything.
            state: what a call with the columns before returned; zeros if None.
            lengths: int64, columns of each grid; the output is 0 past a grid's end.

        Raises:
            ValueError: a shape does not fit.
        """
        check_input(x, "batch row column input", self.input)
        batch, rows, columns, _ = x.shape
        if state is not None:
            check_state(state, GridState, [(len(self.endings), batch, rows, self.hidden)] * 2)
        valid = None if lengths is None else valid_steps(lengths, columns)[:, None, :, None]
        x = x if valid is None else torch.where(valid, x, 0)
        y, last = self.D * x, []
        for i, ending in enumerate(self.endings):
            left = None if state is None else (_turned(state[0][i], ending), _turned(state[1][i], ending))
            out, new = self._scan(_turned(x, ending), ending, left, lengths)
            y = y + _turned(out, ending)
            last.append([_turned(t, ending) for t in new])
        y = y if valid is None else torch.where(valid, y, 0)
        return y, GridState(*(torch.stack(tensors) for tensors in zip(*last, strict=True)))

    def step(
        self, x: Float[Tensor, "batch row input"], state: tuple[Tensor, ...] | None = None
    ) -> tuple[Float[Tensor, "batch row input"], GridState]:
        """Output and state after one more column: the numbers that `forward` gives over the whole grid."""
        check_input(x, "batch row input", self.input)
        y, new = self(x[:, :, None], state)
        return y[:, :, 0], new

    def coefficients(self, x: Tensor, ending: str = "") -> tuple[Tensor, ...]:
        """a_1 to a_4, each (hidden,), or (batch, row, column, hidden) if selective."""
        a = getattr(self, f"A{ending}")
        if self.selective:
            a = F.linear(x, getattr(self, f"weight_a{ending}"), a.flatten())
        pairs = a.reshape(*x.shape[:-1], 2, 2, self.hidden) if self.selective else a.reshape(2, 2, self.hidden)
        scaled: Tensor = pairs / pairs.abs().sum(-2, keepdim=True).clamp_min(1)
        return scaled.flatten(-3, -2).unbind(-2)

    def _scan(
        self, x: Tensor, ending: str, left: tuple[Tensor, Tensor] | None, lengths: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Output of one model, and its h and g in each grid's last column."""
        b1, b2 = F.linear(x, getattr(self, f"B{ending}")).chunk(2, -1)
        a1, a2, a3, a4 = self.coefficients(x, ending)
        h, g = ssm2d_scan(a1, a2, a3, a4, b1, b2, left)
        y = F.linear(torch.cat([h, g], -1), getattr(self, f"C{ending}"))
        return y, (_last_column(h, left and left[0], lengths), _last_column(g, left and left[1], lengths))

    def extra_repr(self) -> str:
        """Sizes and form."""
        flags = [f"{name}=True" for name in ("selective", "bidirectional") if getattr(self, name)]
        return ", ".join([str(self.input), str(self.hidden), *flags])


def _turned(value: Tensor, ending: str) -> Tensor:
    """Rows in the order in which the model with this ending reads them."""
    return value.flip(1) if ending else value


def _last_column(h: Tensor, left: Tensor | None, lengths: Tensor | None) -> Tensor:
    """The state in each grid's last column; the one before the first where a grid has none."""
    before = h.new_zeros(h.shape[0], h.shape[1], h.shape[3]) if left is None else left.to(h.dtype)
    if lengths is None:
        return h[:, :, -1] if h.shape[2] else before
    columns = torch.cat([before[:, :, None], h], 2)
    index = lengths[:, None, None, None].expand(-1, h.shape[1], 1, h.shape[3])
    return columns.gather(2, index)[:, :, 0]
