"""How PGN's h is computed over all rows and places at once; `Rule` says what each way has.

Here W is (channel * hidden, feature, reach) and G (channel * gate, feature and hidden, 1): grouped convolutions'.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# Places at a time in the frequency domain.
PLACES = 64


@runtime_checkable
class Rule(Protocol):
    """How h is computed from x and the weights W, b, G, g."""

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, gate_bias: Tensor, /) -> Tensor:
        """h (channel, hidden, row and place), by operations that autograd and tracers follow."""

    def values(self, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, gate_bias: Tensor, /) -> tuple[Tensor, ...]:
        """h, and what `gradients` needs."""

    def gradients(self, grad: Tensor, weights: Sequence[Tensor], kept: Sequence[Tensor], /) -> tuple[Tensor, ...]:
        """Of the weights, given that of h."""


def trained(x: Tensor) -> bool:
    """Whether the weights' gradients are all that may be asked for."""
    return torch.is_grad_enabled() and not x.requires_grad and not torch.compiler.is_compiling()


# --- the history H: a convolution over the strict past of each row


def apart(weight: Tensor, channels: int) -> Float[Tensor, "channel output input width"]:
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
    matrix: Tensor = line.unfold(-1, rows, 1).transpose(2, 3).flip(2).reshape(channels, -1, features * rows)
    return matrix


def _of_toeplitz(grad: Float[Tensor, "channel to of"], shape: torch.Size, rows: int) -> Tensor:
    """The gradient of the weights, given the matrix's."""
    channels, hidden, features, reach = shape
    lines = F.pad(grad.view(channels, hidden, rows, features, rows), (rows, 0))
    # Of each row one further to the right than of the one before, so that equal distances are below each other.
    *whole, row, line, _ = lines.stride()
    below = lines.as_strided((channels, hidden, rows, features, reach), (*whole, row + 1, line, 1), rows - reach)
    return below.sum(2)


def convolved(
    x: Float[Tensor, "channel feature row place"], weight: Float[Tensor, "channel hidden feature reach"]
) -> Float[Tensor, "channel hidden row place"]:
    """The history without its bias, in the frequency domain: time grows with rows * log(rows), not their square."""
    rows = x.shape[2]
    return _applied(_spectrum(x), _response(weight, rows), rows)


def _spectrum(x: Float[Tensor, "channel feature row place"]) -> Tensor:
    """(channel, frequency, feature, place)."""
    spectrum: Tensor = torch.fft.rfft(x, 2 * x.shape[2], dim=2).transpose(1, 2)  # no end meets the beginning
    return spectrum


def _response(weight: Float[Tensor, "channel hidden feature reach"], rows: int) -> Tensor:
    """(channel, frequency, hidden, feature)."""
    response: Tensor = torch.fft.rfft(F.pad(weight.flip(-1), (1, 0)), 2 * rows).movedim(-1, 1)
    return response


def _applied(spectrum: Tensor, response: Tensor, rows: int) -> Tensor:
    """The history of this spectrum."""
    history: Tensor = torch.fft.irfft(torch.matmul(response, spectrum).transpose(1, 2), 2 * rows, dim=2)[:, :, :rows]
    return history


# --- the gate: σ(s) ⊙ H + (1 - σ(s)) ⊙ tanh(t)


def _gates(x: Tensor, history: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """s and t."""
    channels, features, _ = x.shape
    present, past = apart(weight, channels)[..., 0].tensor_split([features], 2)
    return torch.baddbmm(torch.baddbmm(bias.view(channels, -1, 1), present, x), past, history)


def _mixed(history: Tensor, gates: Tensor) -> Tensor:
    """The mixture."""
    s, t = gates.chunk(2, 1)
    # tanh(t): torch's takes five times as long as its σ, and what differs is one unit in the last place of 1.
    return torch.lerp(2 * torch.sigmoid(2 * t) - 1, history, torch.sigmoid(s))


def _mixed_(history: Tensor, gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mixture, σ(s) and tanh(t), with no gradient; the gates are written over."""
    share, t = gates.chunk(2, 1)
    t.mul_(-2)
    torch.sigmoid_(gates)
    candidate = torch.rsub(t, 1, alpha=2)
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


# --- both: `plain` for any use, `values` and `gradients`, of the weights alone, in few steps


class Direct:
    """H, then the gate."""

    @staticmethod
    def plain(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, gate_bias: Tensor) -> Tensor:
        """h (channel, hidden, row and place)."""
        channels, _, rows, places = x.shape
        matrix = _toeplitz(apart(weight, channels), rows)
        history = torch.bmm(matrix, x.flatten(1, 2)).view(channels, -1, rows * places)
        history = history + bias.view(channels, -1, 1)
        return _mixed(history, _gates(x.flatten(2), history, gate, gate_bias))

    @staticmethod
    def values(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, gate_bias: Tensor) -> tuple[Tensor, ...]:
        """h, and what its gradients need."""
        channels, features, rows, places = x.shape
        seen = _lines(x, bias.shape[0] // channels)
        history = seen[:, features:-1]
        matrix = _toeplitz(apart(weight, channels), rows)
        torch.bmm(matrix, x.flatten(1, 2), out=history.view(channels, -1, places))
        history += bias.view(channels, -1, 1)
        return *_gated(seen, features, gate, gate_bias), x

    @staticmethod
    def gradients(grad: Tensor, weights: Sequence[Tensor], kept: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of the weights, given that of h."""
        weight, _, gate, _ = weights
        *kept, x = kept
        channels, _, rows, places = x.shape
        of_history, of_bias, of_gate, of_gate_bias = _of_gated(grad, gate, *kept)
        of_matrix = torch.bmm(of_history.view(channels, -1, places), x.flatten(1, 2).transpose(1, 2))
        of_weight = _of_toeplitz(of_matrix, apart(weight, channels).shape, rows)
        return of_weight.reshape(weight.shape), of_bias.flatten(), of_gate.view(gate.shape), of_gate_bias.flatten()


class Spectral:
    """As `Direct`, with H in the frequency domain; some places at a time, which stay in the processor's memory."""

    @staticmethod
    def plain(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, gate_bias: Tensor) -> Tensor:
        """h (channel, hidden, row and place)."""
        channels = x.shape[0]
        history = convolved(x, apart(weight, channels)).flatten(2) + bias.view(channels, -1, 1)
        return _mixed(history, _gates(x.flatten(2), history, gate, gate_bias))

    @staticmethod
    def values(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, gate_bias: Tensor) -> tuple[Tensor, ...]:
        """h, and what its gradients need."""
        channels, features, rows, _ = x.shape
        hidden = bias.shape[0] // channels
        response = _response(apart(weight, channels), rows)
        parts, kept = [], []
        for part in torch.split(x, PLACES, 3):
            seen = _lines(part, hidden)
            history = seen[:, features:-1].view(channels, hidden, rows, -1)
            torch.add(_applied(_spectrum(part), response, rows), bias.view(channels, -1, 1, 1), out=history)
            h, *of_part = _gated(seen, features, gate, gate_bias)
            parts.append(h.view(history.shape))
            kept += [*of_part, part]
        return torch.cat(parts, 3).flatten(2), *kept

    @staticmethod
    def gradients(grad: Tensor, weights: Sequence[Tensor], kept: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of the weights, given that of h."""
        weight, _, gate, _ = weights
        rows = kept[3].shape[2]
        split = torch.split(grad.view(*grad.shape[:2], rows, -1), PLACES, 3)
        sums: list[Tensor] = []
        for i, part in enumerate(split):
            *of_part, x = kept[4 * i : 4 * i + 4]
            of_history, *others = _of_gated(part.flatten(2), gate, *of_part)
            of_response = _spectrum(of_history.view(part.shape)) @ _spectrum(x).mH
            found = [of_response, *others]
            sums = [total.add_(new) for total, new in zip(sums, found, strict=True)] if sums else found
        of_response, of_bias, of_gate, of_gate_bias = sums
        of_weight = torch.fft.irfft(of_response.movedim(1, -1), 2 * rows)[..., 1 : weight.shape[2] + 1].flip(-1)
        return of_weight.reshape(weight.shape), of_bias.flatten(), of_gate.view(gate.shape), of_gate_bias.flatten()


def _lines(x: Tensor, hidden: int) -> Tensor:
    """Lines [x, H, 1], H yet to be written: the gate is one map of them, with its bias."""
    channels, features, rows, places = x.shape
    seen = x.new_empty(channels, features + hidden + 1, rows * places)
    seen[:, :features].copy_(x.flatten(2))
    seen[:, -1].fill_(1)
    return seen


def _gated(seen: Tensor, features: int, gate: Tensor, gate_bias: Tensor) -> tuple[Tensor, ...]:
    """h, and what `_of_gated` needs."""
    channels = seen.shape[0]
    whole = torch.cat([gate.view(channels, -1, gate.shape[1]), gate_bias.view(channels, -1, 1)], 2)
    h, share, candidate = _mixed_(seen[:, features:-1], torch.bmm(whole, seen))
    return h, seen, share, candidate


def _of_gated(grad: Tensor, gate: Tensor, seen: Tensor, share: Tensor, candidate: Tensor) -> tuple[Tensor, ...]:
    """Gradients of H, its bias, the gate's weight and bias."""
    channels, hidden, _ = grad.shape
    of_history, of_gates = _of_mixed(grad, seen[:, -hidden - 1 : -1], share, candidate)
    past = gate.view(channels, -1, gate.shape[1])[..., -hidden:]
    of_history.baddbmm_(past.transpose(1, 2), of_gates)
    of_whole = torch.bmm(of_gates, seen.transpose(1, 2))
    return of_history, of_history.sum(2), of_whole[..., :-1].contiguous(), of_whole[..., -1]


class Composed:
    """H and the gate as maps of the rows that are reached: s, t = G' [W x + b] + G x + g is linear in these too."""

    @staticmethod
    def plain(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, gate_bias: Tensor) -> Tensor:
        """h (channel, hidden, row and place)."""
        return _mixed(*Composed._maps(x, weight, bias, gate, gate_bias)[2:])

    @staticmethod
    def _maps(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, gate_bias: Tensor) -> tuple[Tensor, ...]:
        channels, features, reach = x.shape[0], x.shape[1], weight.shape[2]
        reached = _reached(x, reach)
        of_past = F.pad(apart(weight, channels), (0, 1)).flatten(2)  # the row itself is no part of its past
        present, past = apart(gate, channels)[..., 0].tensor_split([features], 2)
        composed = past @ of_past + F.pad(present.unsqueeze(-1), (reach, 0)).flatten(2)
        shift, gate_shift = bias.view(channels, -1, 1), gate_bias.view(channels, -1, 1)
        history = torch.baddbmm(shift, of_past, reached)
        gates = torch.baddbmm(torch.baddbmm(gate_shift, past, shift), composed, reached)
        return reached, of_past, history, gates

    @staticmethod
    def values(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, gate_bias: Tensor) -> tuple[Tensor, ...]:
        """h, and what its gradients need."""
        reached, of_past, history, gates = Composed._maps(x, weight, bias, gate, gate_bias)
        h, share, candidate = _mixed_(history, gates)
        return h, reached, of_past, history, share, candidate

    @staticmethod
    def gradients(grad: Tensor, weights: Sequence[Tensor], kept: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of the weights, given that of h."""
        weight, bias, gate, _ = weights
        reached, of_past, history, share, candidate = kept
        channels, features = grad.shape[0], weight.shape[1]
        of_history, of_gates = _of_mixed(grad, history, share, candidate)
        past = apart(gate, channels)[:, :, features:, 0]
        shift, gate_shift = of_history.sum(2, keepdim=True), of_gates.sum(2, keepdim=True)
        of_composed = torch.bmm(of_gates, reached.transpose(1, 2))
        of_weight = torch.bmm(of_history, reached.transpose(1, 2)).baddbmm_(past.transpose(1, 2), of_composed)
        shift = shift.baddbmm_(past.transpose(1, 2), gate_shift)
        of_gate_past = torch.bmm(of_composed, of_past.transpose(1, 2))
        of_gate_past.baddbmm_(gate_shift, bias.view(channels, 1, -1))
        split = (channels, -1, features, weight.shape[2] + 1)
        of_gate = torch.cat([of_composed.view(split)[..., -1], of_gate_past], 2)
        return (
            *(of_weight.view(split)[..., :-1].reshape(weight.shape), shift.flatten()),
            *(of_gate.view(gate.shape), gate_shift.flatten()),
        )


class Ruled(torch.autograd.Function):
    """A rule with its gradients: what is many small steps to autograd are few here."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, x: Tensor, *weights: Tensor) -> Tensor:
        """h."""
        h, *kept = rule.values(x, *weights)
        ctx.save_for_backward(*weights, *kept)
        ctx.rule = rule
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of the weights."""
        weights, kept = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        return None, None, *ctx.rule.gradients(grad, weights, kept)
