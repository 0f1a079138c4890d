"""Parallel gated network: the recurrence's state is computed from a window of the past, not from the state before."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from recurra.core.checks import at_least_one
from recurra.core.nn.pgn_rules import Composed, Direct, Rule, Ruled, Spectral, apart, trained
from recurra.core.nn.recurrent import check_input, check_state
from recurra.core.nn.states import WindowState

# With more rows the window is applied in the frequency domain: with fewer, products with zeros cost less.
FFT_ROWS = 64


class PGN(nn.Module):
    """Unit of TPGN (Jia et al. 2024, arXiv:2409.17703), PGN_2d of the authors' code Water2sea/TPGN:

        H_r = W [x_(r-w), ..., x_(r-1)] + b        a window of `window` rows, strictly past
        s, t = G [x_r, H_r] + g
        h_r = σ(s) ⊙ H_r + (1 - σ(s)) ⊙ tanh(t)
        y   = Σ_r F_r h_r + f

    over rows r of a grid, e.g. days, alike and in parallel for its columns, e.g. hours of the day. Every channel has
    weights of its own. Before the first row there are zeros.

    Keys: `hidden_MLP` W, b; `gate` G, g; `fc` F, f: grouped convolutions, a channel a group. `states` computes them as
    such; `gated`, and so `forward`, gives the same numbers by products of large matrices.

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
        features = x if marks is None else torch.cat([x, marks], -1)
        self._check(features)
        batch, rows, columns = features.shape[:3]
        if rows != self.rows:
            raise ValueError(f"x has {rows} rows; expected {self.rows}, the number the unit was made for")
        h = self.gated(features.permute(3, 4, 1, 0, 2).flatten(3))
        y = torch.bmm(apart(self.fc.weight, self.channels).flatten(2), h.flatten(1, 2))
        if self.fc.bias is not None:
            y = y + self.fc.bias.view(self.channels, -1, 1)
        return y.view(self.channels, self.hidden, batch, columns).permute(2, 3, 0, 1)

    def gated(self, x: Float[Tensor, "channel feature row place"]) -> Float[Tensor, "channel hidden row place"]:
        """h of every row at many places at once, whatever places are: columns, and members of a batch.

        Args:
            x: values and marks.
        """
        channels, _, rows, places = x.shape
        weights, rule = self.weights(rows), self.rule(rows)
        h = Ruled.apply(rule, x, *weights) if trained(x) else rule.plain(x, *weights)  # type: ignore[no-untyped-call]
        gated: Tensor = h.view(channels, self.hidden, rows, places)
        return gated

    def weights(self, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W, b, G, g for so many rows: taps that reach further back see only zeros."""
        mlp, gate = self.hidden_MLP, self.gate
        assert mlp.bias is not None
        assert gate.bias is not None
        reach = min(self.window, max(rows - 1, 1))
        taps = mlp.weight if reach == self.window else mlp.weight[..., -reach:]
        return taps, mlp.bias, gate.weight, gate.bias

    def rule(self, rows: int) -> Rule:
        """The quickest for so many rows."""
        if rows > FFT_ROWS and not torch.compiler.is_compiling():
            return Spectral
        # One map of the window to G [x, H] too, where that has fewer products than G has.
        return Composed if self.input * rows <= self.input + self.hidden else Direct

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
        self._check(features)
        batch, rows, columns, channels, _ = features.shape
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

    def _check(self, features: Tensor) -> None:
        check_input(features, "batch row column channel feature", self.input)
        channels = features.shape[3]
        if channels != self.channels:
            raise ValueError(f"x has {channels} channels; expected {self.channels}, the number the unit was made for")

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
