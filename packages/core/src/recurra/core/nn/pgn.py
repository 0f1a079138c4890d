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
        y = torch.bmm(_apart(self.fc.weight, self.channels).flatten(2), h.flatten(1, 2))
        if self.fc.bias is not None:
            y = y + self.fc.bias.view(self.channels, -1, 1)
        return y.view(self.channels, self.hidden, batch, columns).permute(2, 3, 0, 1)

    def gated(self, x: Float[Tensor, "channel feature row place"]) -> Float[Tensor, "channel hidden row place"]:
        """h of every row at many places at once, whatever places are: columns, and members of a batch.

        Args:
            x: values and marks.
        """
        channels, features, rows, places = x.shape
        mlp, gate = self.hidden_MLP, self.gate
        assert mlp.bias is not None
        assert gate.bias is not None
        # Taps that reach further back see only zeros.
        reach = min(self.window, max(rows - 1, 1))
        taps = mlp.weight if reach == self.window else mlp.weight[..., -reach:]
        weights = (taps, mlp.bias, gate.weight, gate.bias)
        if rows > FFT_ROWS and not torch.compiler.is_compiling():
            history = convolved(x, _apart(taps, channels)).flatten(2) + mlp.bias.view(channels, -1, 1)
            h = _mixed(history, _gates(x.flatten(2), history, gate.weight, gate.bias))[0]
        else:
            # One map of the window to G [x, H] too, where that has fewer products than G has.
            rule = _Composed if features * rows <= features + self.hidden else _Direct
            fast = torch.is_grad_enabled() and not x.requires_grad
            h = rule.apply(x, *weights) if fast else rule.values(x, *weights)[0]  # type: ignore[no-untyped-call]
        gated: Tensor = h.view(channels, self.hidden, rows, places)
        return gated

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


# --- the history H: a convolution over the strict past of each row


def _apart(weight: Tensor, channels: int) -> Float[Tensor, "channel output input width"]:
    """Weights of a grouped convolution, apart for each channel."""
    return weight.view(channels, -1, *weight.shape[1:])


def _reached(x: Float[Tensor, "channel feature row place"], reach: int) -> Float[Tensor, "channel seen row_and_place"]:
    """Of each row the features of the `reach` rows before it and of itself, oldest first; zeros before the first."""
    padded = F.pad(x, (0, 0, reach, 0))
    return padded.unfold(2, x.shape[2], 1).transpose(3, 4).flatten(1, 2).flatten(2)


def _toeplitz(weight: Float[Tensor, "channel hidden feature reach"], rows: int) -> Float[Tensor, "channel to of"]:
    """The weights of every pair of rows, (hidden, row) by (feature, row), with zeros where a row is not before."""
    channels, _, features, reach = weight.shape
    # Each row of the matrix is this line, shifted by one.
    line = F.pad(weight, (rows - 1 - reach, rows))
    matrix: Tensor = line.unfold(-1, rows, 1).flip(3).transpose(2, 3).reshape(channels, -1, features * rows)
    return matrix


def _of_toeplitz(grad: Float[Tensor, "channel to of"], shape: torch.Size, rows: int) -> Tensor:
    """The gradient of the weights, given the matrix's."""
    channels, hidden, features, reach = shape
    pairs = grad.view(channels, hidden, rows, features, rows).transpose(2, 3).flip(3)
    # In lines of twice the length less one, each stands one further to the right than the one before.
    skewed = F.pad(pairs, (0, rows)).flatten(3)[..., :-rows].unflatten(3, (rows, -1))  # type: ignore[no-untyped-call]
    of_weight: Tensor = skewed.sum(3)[..., rows - 1 - reach : rows - 1]
    return of_weight


def convolved(
    x: Float[Tensor, "channel feature row place"], weight: Float[Tensor, "channel hidden feature reach"]
) -> Float[Tensor, "channel hidden row place"]:
    """The history without its bias, in the frequency domain: time grows with rows * log(rows), not their square."""
    rows = x.shape[2]
    length = 2 * rows  # no end meets the beginning
    spectrum = torch.fft.rfft(x, length, dim=2).transpose(1, 2)  # (channel, frequency, feature, place)
    response = torch.fft.rfft(F.pad(weight.flip(-1), (1, 0)), length).movedim(-1, 1)
    product = torch.matmul(response, spectrum).transpose(1, 2)
    history: Tensor = torch.fft.irfft(product, length, dim=2)[:, :, :rows]
    return history


# --- the gate: σ(s) ⊙ H + (1 - σ(s)) ⊙ tanh(t)


def _gates(x: Tensor, history: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """s and t."""
    channels, features, _ = x.shape
    present, past = _apart(weight, channels)[..., 0].tensor_split([features], 2)
    return torch.baddbmm(torch.baddbmm(bias.view(channels, -1, 1), present, x), past, history)


def _mixed(history: Tensor, gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mixture, σ(s) and tanh(t)."""
    s, t = gates.chunk(2, 1)
    # tanh(t): torch's takes five times as long as its σ, and what differs is one unit in the last place of 1.
    share, candidate = torch.sigmoid(s), 2 * torch.sigmoid(2 * t) - 1
    return torch.lerp(candidate, history, share), share, candidate


def _of_mixed(grad: Tensor, history: Tensor, share: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of H and of (s, t)."""
    of_history = grad * share
    of_gates = grad.new_empty(grad.shape[0], 2 * grad.shape[1], grad.shape[2])
    of_s, of_t = of_gates.chunk(2, 1)
    torch.ops.aten.tanh_backward(grad - of_history, candidate, grad_input=of_t)
    torch.sub(history, candidate, out=of_s).mul_(of_history)
    torch.addcmul(of_s, of_s, share, value=-1, out=of_s)  # (H - tanh(t)) ⊙ σ ⊙ (1 - σ)
    return of_history, of_gates


# --- both, with gradients of the weights alone: what is many small steps to autograd are few here


class _Direct(torch.autograd.Function):
    """H, then the gate."""

    @staticmethod
    def values(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, gate_bias: Tensor) -> tuple[Tensor, ...]:
        channels, _, rows, places = x.shape
        matrix = _toeplitz(_apart(weight, channels), rows)
        history = torch.bmm(matrix, x.flatten(1, 2)).view(channels, -1, rows * places)
        history = history + bias.view(channels, -1, 1)
        h, share, candidate = _mixed(history, _gates(x.flatten(2), history, gate, gate_bias))
        return h, history, share, candidate

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, gate_bias: Tensor) -> Tensor:
        h, *kept = _Direct.values(x, weight, bias, gate, gate_bias)
        ctx.save_for_backward(x, weight, gate, *kept)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gate, history, share, candidate = ctx.saved_tensors
        channels, features, rows, places = x.shape
        of_history, of_gates = _of_mixed(grad, history, share, candidate)
        past = _apart(gate, channels)[:, :, features:, 0]
        of_history = of_history.baddbmm_(past.transpose(1, 2), of_gates)
        of_gate = [torch.bmm(of_gates, seen.transpose(1, 2)) for seen in (x.flatten(2), history)]
        of_matrix = torch.bmm(of_history.reshape(channels, -1, places), x.flatten(1, 2).transpose(1, 2))
        of_weight = _of_toeplitz(of_matrix, _apart(weight, channels).shape, rows)
        return (
            *(None, of_weight.reshape(weight.shape), of_history.sum(2).flatten()),
            *(torch.cat(of_gate, 2).view(gate.shape), of_gates.sum(2).flatten()),
        )


class _Composed(torch.autograd.Function):
    """H and the gate as maps of the rows that are reached: s, t = G' [W x + b] + G x + g is linear in these too."""

    @staticmethod
    def values(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, gate_bias: Tensor) -> tuple[Tensor, ...]:
        channels, features, reach = x.shape[0], x.shape[1], weight.shape[2]
        reached = _reached(x, reach)
        of_past = F.pad(_apart(weight, channels), (0, 1)).flatten(2)  # the row itself is no part of its past
        present, past = _apart(gate, channels)[..., 0].tensor_split([features], 2)
        composed = past @ of_past + F.pad(present.unsqueeze(-1), (reach, 0)).flatten(2)
        shift, gate_shift = bias.view(channels, -1, 1), gate_bias.view(channels, -1, 1)
        history = torch.baddbmm(shift, of_past, reached)
        gates = torch.baddbmm(torch.baddbmm(gate_shift, past, shift), composed, reached)
        h, share, candidate = _mixed(history, gates)
        return h, reached, of_past, history, share, candidate

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, gate_bias: Tensor) -> Tensor:
        h, *kept = _Composed.values(x, weight, bias, gate, gate_bias)
        ctx.save_for_backward(weight, bias, gate, *kept)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, gate, reached, of_past, history, share, candidate = ctx.saved_tensors
        channels, features = grad.shape[0], weight.shape[1]
        of_history, of_gates = _of_mixed(grad, history, share, candidate)
        past = _apart(gate, channels)[:, :, features:, 0]
        shift, gate_shift = of_history.sum(2, keepdim=True), of_gates.sum(2, keepdim=True)
        of_composed = torch.bmm(of_gates, reached.transpose(1, 2))
        of_weight = torch.bmm(of_history, reached.transpose(1, 2)).baddbmm_(past.transpose(1, 2), of_composed)
        shift = shift.baddbmm_(past.transpose(1, 2), gate_shift)
        of_gate_past = torch.bmm(of_composed, of_past.transpose(1, 2))
        of_gate_past.baddbmm_(gate_shift, bias.view(channels, 1, -1))
        split = (channels, -1, features, weight.shape[2] + 1)
        of_gate = torch.cat([of_composed.view(split)[..., -1], of_gate_past], 2)
        return (
            *(None, of_weight.view(split)[..., :-1].reshape(weight.shape), shift.flatten()),
            *(of_gate.view(gate.shape), gate_shift.flatten()),
        )
