"""Parallel gated network: the recurrence's state is computed from a window of the past, not from the state before."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from recurra.core.checks import at_least_one
from recurra.core.nn.recurrent import check_input, check_state
from recurra.core.nn.states import WindowState


class PGN(nn.Module):
    """Unit of TPGN (Jia et al. 2024, arXiv:2409.17703), PGN_2d of the authors' code Water2sea/TPGN:

        H_r = W [x_(r-w), ..., x_(r-1)] + b        a window of `window` rows, strictly past
        s, t = G [x_r, H_r] + g
        h_r = σ(s) ⊙ H_r + (1 - σ(s)) ⊙ tanh(t)
        y   = Σ_r F_r h_r + f

    over rows r of a grid, e.g. days, alike and in parallel for its columns, e.g. hours of the day. Every channel has
    weights of its own. Before the first row there are zeros.

    Keys: `hidden_MLP` W, b; `gate` G, g; `fc` F, f: grouped convolutions, a channel a group.

    Args:
        input: features of a channel: its value and its time marks.
        hidden: width of h.
        rows: number of rows y is made of.
        window: rows the window reaches back.
        channels: channels.
    """

    def __init__(self, input: int, hidden: int, *, rows: int, window: int, channels: int = 1) -> None:
        super().__init__()
        at_least_one(input=input, hidden=hidden, rows=rows, window=window, channels=channels)
        self.input, self.hidden, self.rows, self.window, self.channels = input, hidden, rows, window, channels
        self.hidden_MLP = nn.Conv1d(channels * input, channels * hidden, window, groups=channels)
        self.gate = nn.Conv1d(channels * (input + hidden), 2 * channels * hidden, 1, groups=channels)
        self.fc = nn.Conv1d(channels * hidden, channels * hidden, rows, groups=channels)

    def forward(
        self,
        x: Float[Tensor, "batch row column channel value"],
        marks: Float[Tensor, "batch row column channel mark"] | None = None,
    ) -> Float[Tensor, "batch column channel hidden"]:
        """y, made of all rows.

        Args:
            x: values.
            marks: what is known of the time of each, further features after x's.

        Raises:
            ValueError: a shape does not fit.
        """
        h, _ = self.states(x, marks)
        batch, rows, columns, _, _ = h.shape
        if rows != self.rows:
            raise ValueError(f"x has {rows} rows; expected {self.rows}, the number the unit was made for")
        y = self.fc(h.permute(0, 2, 3, 4, 1).reshape(batch * columns, self.channels * self.hidden, rows))
        collapsed: Tensor = y.reshape(batch, columns, self.channels, self.hidden)
        return collapsed

    def states(
        self,
        x: Float[Tensor, "batch row column channel value"],
        marks: Float[Tensor, "batch row column channel mark"] | None = None,
        state: tuple[Tensor, ...] | None = None,
    ) -> tuple[Float[Tensor, "batch row column channel hidden"], WindowState]:
        """h of every row, and what the rows that follow need of these: the last `window` inputs.

        Args:
            x: values, any number of rows.
            marks: further features.
            state: what a call with the rows before returned; zeros if None.
        """
        features = x if marks is None else torch.cat([x, marks], -1)
        check_input(features, "batch row column channel feature", self.input)
        batch, rows, columns, channels, _ = features.shape
        if channels != self.channels:
            raise ValueError(f"x has {channels} channels; expected {self.channels}, the number the unit was made for")
        shape = (batch, self.window, columns, channels, self.input)
        if state is not None:
            check_state(state, WindowState, [(1, *shape)])
        past = features.new_zeros(shape) if state is None else state[0][0].to(features.dtype)
        seen = torch.cat([past, features], 1)
        if not rows:
            return features.new_zeros(batch, 0, columns, channels, self.hidden), WindowState(seen[None])
        # The present row is no part of its own window.
        window = self._of_rows(self.hidden_MLP, seen[:, :-1])
        s, t = self._of_rows(self.gate, torch.cat([features, window], -1)).chunk(2, -1)
        h = torch.lerp(torch.tanh(t), window, torch.sigmoid(s))
        return h, WindowState(seen[:, rows:][None])

    def step(
        self, x: Float[Tensor, "batch column channel input"], state: tuple[Tensor, ...] | None = None
    ) -> tuple[Float[Tensor, "batch column channel hidden"], WindowState]:
        """h and state after one more row of values and marks: the numbers that `states` gives over all rows."""
        check_input(x, "batch column channel input", self.input)
        h, state = self.states(x[:, None], None, state)
        return h[:, 0], state

    def _of_rows(self, convolution: nn.Conv1d, x: Tensor) -> Tensor:
        """A convolution over rows, with a column's channels and features for its channels."""
        batch, _, columns, channels, _ = x.shape
        y = F.conv1d(
            x.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1),
            convolution.weight,
            convolution.bias,
            groups=channels,
        )
        return y.reshape(batch, columns, channels, convolution.out_channels // channels, -1).permute(0, 4, 1, 2, 3)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.input}, {self.hidden}, rows={self.rows}, window={self.window}, channels={self.channels}"
