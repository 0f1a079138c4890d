"""Parallel gated network: the recurrence's state is computed from a window of the past, not from the state before."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recurra.core.checks import at_least_one
from recurra.core.nn.recurrent import check_input, check_state
from recurra.core.nn.states import WindowState


# Rows from which on the window is applied in the frequency domain: below, products with zeros cost less than transforms.
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
        y = torch.bmm(self.of_channels(self.fc).flatten(2), h.flatten(1, 2)) + self.fc.bias.view(self.channels, -1, 1)
        return y.view(self.channels, self.hidden, batch, columns).permute(2, 3, 0, 1)

    def gated(self, x: Float[Tensor, "channel feature row place"]) -> Float[Tensor, "channel hidden row place"]:
        """h of every row at many places at once, whatever places are: columns, and members of a batch.

        Args:
            x: values and marks.
        """
        channels, features, rows, _ = x.shape
        window = min(self.window, max(rows - 1, 1))  # what reaches further back sees zeros
        weight = self.of_channels(self.hidden_MLP)[..., -window:]
        bias = self.hidden_MLP.bias.view(channels, -1, 1)
        present, past = self.of_channels(self.gate)[..., 0].split([features, self.hidden], 2)
        gate_bias = self.gate.bias.view(channels, -1, 1)
        if features * rows <= features + self.hidden:
            # G [x, H] is a map of the rows too, one with fewer products than G has.
            reached = windows(x, window)
            within = F.pad(weight, (0, 1))  # the present row is no part of its own window
            of_gate = (past @ within.flatten(2)).view(channels, -1, *within.shape[2:])
            of_gate = of_gate + F.pad(present.unsqueeze(-1), (window, 0))
            history = torch.bmm(within.flatten(2), reached) + bias
            gates = torch.bmm(of_gate.flatten(2), reached) + torch.baddbmm(gate_bias, past, bias)
        else:
            by_frequency = rows > FFT_ROWS and not torch.compiler.is_compiling()
            history = (convolved if by_frequency else toeplitz)(x, weight).flatten(2) + bias
            gates = torch.bmm(present, x.flatten(2)).baddbmm(past, history) + gate_bias
        if torch.is_grad_enabled() and history.requires_grad:
            h: Tensor = _Mixed.apply(history, gates)
        else:
            h = _mixed(history, gates)[0]
        return h.view(channels, self.hidden, rows, -1)

    def of_channels(self, convolution: nn.Conv1d) -> Float[Tensor, "channel output input width"]:
        """Weights of a grouped convolution, apart for each channel."""
        return convolution.weight.view(self.channels, -1, *convolution.weight.shape[1:])

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


# --- a convolution over the strict past of each row, with the window's weights for each channel


def windows(
    x: Float[Tensor, "channel feature row place"], width: int
) -> Float[Tensor, "channel feature_and_offset row_and_place"]:
    """Each row with the `width` before it, zeros before the first: the offset runs from the oldest to the row itself."""
    padded = F.pad(x, (0, 0, width, 0))
    return padded.unfold(2, x.shape[2], 1).transpose(3, 4).flatten(1, 2).flatten(2)


def toeplitz(
    x: Float[Tensor, "channel feature row place"], weight: Float[Tensor, "channel hidden feature window"]
) -> Float[Tensor, "channel hidden row place"]:
    """As one product: the matrix holds the weights of every pair of rows, zeros above its diagonal."""
    channels, features, rows, places = x.shape
    # Row r of the matrix is this line of weights, shifted by r.
    line = F.pad(weight, (rows - 1 - weight.shape[-1], rows))
    matrix = line.unfold(-1, rows, 1).flip(3).transpose(2, 3).reshape(channels, -1, features * rows)
    return torch.bmm(matrix, x.flatten(1, 2)).view(channels, -1, rows, places)


def convolved(
    x: Float[Tensor, "channel feature row place"], weight: Float[Tensor, "channel hidden feature window"]
) -> Float[Tensor, "channel hidden row place"]:
    """In the frequency domain, where time grows with rows * log(rows), not with their square."""
    rows = x.shape[2]
    length = 2 * rows  # no end meets the beginning
    spectrum = torch.fft.rfft(x, length, dim=2).transpose(1, 2)  # (channel, frequency, feature, place)
    response = torch.fft.rfft(F.pad(weight.flip(-1), (1, 0)), length).movedim(-1, 1)
    product = torch.matmul(response, spectrum).transpose(1, 2)
    return torch.fft.irfft(product, length, dim=2)[:, :, :rows]


# --- σ(s) ⊙ H + (1 - σ(s)) ⊙ tanh(t)


def _mixed(history: Tensor, gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mixture, σ(s) and tanh(t)."""
    s, t = gates.chunk(2, 1)
    share, candidate = torch.sigmoid(s), torch.tanh(t)
    return torch.lerp(candidate, history, share), share, candidate


class _Mixed(torch.autograd.Function):
    """The mixture; its gradients go where the product that follows wants them, in six passes and without a copy."""

    @staticmethod
    def forward(ctx: Any, history: Tensor, gates: Tensor) -> Tensor:
        mixture, share, candidate = _mixed(history, gates)
        ctx.save_for_backward(history, share, candidate)
        return mixture

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        history, share, candidate = ctx.saved_tensors
        of_history = grad * share
        of_gates = grad.new_empty(grad.shape[0], 2 * grad.shape[1], grad.shape[2])
        of_s, of_t = of_gates.chunk(2, 1)
        torch.ops.aten.tanh_backward(grad - of_history, candidate, grad_input=of_t)
        torch.sub(history, candidate, out=of_s).mul_(of_history)
        torch.addcmul(of_s, of_s, share, value=-1, out=of_s)  # (H - tanh(t)) ⊙ σ ⊙ (1 - σ)
        return of_history, of_gates
