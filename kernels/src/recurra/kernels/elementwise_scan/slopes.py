"""First derivatives of the cells' steps: for Newton's method and for the backward pass over all steps at once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Slopes(NamedTuple):
    """Derivatives of a step s' = f(s, x) at given s and x.

    Attributes:
        state: state[i][j] = ∂s'_i/∂s_j.
        inputs: inputs[k][i] = ∂s'_i/∂x_k for each row k of the inputs.
        params: for each row of the parameters (k, v): it enters as a product with v, added to x_k.
    """

    state: Sequence[Sequence[Tensor]]
    inputs: Sequence[Sequence[Tensor]]
    params: Sequence[tuple[int, Tensor]]


def _indrnn(slope: Tensor, u: Tensor, h: Tensor) -> Slopes:
    return Slopes([[slope * u]], [[slope]], [(0, h)])


def _indrnn_relu(u: Tensor, old: Sequence[Tensor], new: Sequence[Tensor], x: Tensor) -> Slopes:
    return _indrnn((new[0] > 0).to(x.dtype), u, old[0])


def _indrnn_tanh(u: Tensor, old: Sequence[Tensor], new: Sequence[Tensor], x: Tensor) -> Slopes:
    return _indrnn(1 - new[0].square(), u, old[0])


def _indrnn_linear(u: Tensor, old: Sequence[Tensor], new: Sequence[Tensor], x: Tensor) -> Slopes:
    return _indrnn(torch.ones_like(x), u, old[0])


def _diag_gru(a: Tensor, old: Sequence[Tensor], new: Sequence[Tensor], x: Tensor) -> Slopes:
    (a_z, a_r, a_n), (x_z, x_r, x_n), (h,) = a.unbind(), x.unbind(-2), old
    z, r = torch.sigmoid(x_z + a_z * h), torch.sigmoid(x_r + a_r * h)
    n = torch.tanh(x_n + a_n * (r * h))
    by_z, by_n = (n - h) * z * (1 - z), z * (1 - n * n)
    by_r = by_n * a_n * h * r * (1 - r)
    state = (1 - z) + by_z * a_z + by_r * a_r + by_n * a_n * r
    return Slopes([[state]], [[by_z], [by_r], [by_n]], [(0, h), (1, h), (2, r * h)])


def _diag_lstm_cifg(a: Tensor, old: Sequence[Tensor], new: Sequence[Tensor], x: Tensor) -> Slopes:
    (a_f, a_o, a_c, c_f, c_o), (x_f, x_o, x_c), (h, c) = a.unbind(), x.unbind(-2), old
    f, g = torch.sigmoid(x_f + a_f * h + c_f * c), torch.tanh(x_c + a_c * h)
    later = f * c + (1 - f) * g
    o, squashed = torch.sigmoid(x_o + a_o * h + c_o * later), torch.tanh(later)
    # ∂c'/∂x_f, ∂c'/∂x_c, ∂h'/∂x_o, ∂h'/∂c'.
    by_f, by_g, by_o = (c - g) * f * (1 - f), (1 - f) * (1 - g * g), squashed * o * (1 - o)
    by_c, none = o * (1 - squashed * squashed) + by_o * c_o, torch.zeros_like(h)
    from_h, from_c = by_f * a_f + by_g * a_c, f + by_f * c_f
    state = [[by_o * a_o + by_c * from_h, by_c * from_c], [from_h, from_c]]
    inputs = [[by_c * by_f, by_f], [by_o, none], [by_c * by_g, by_g]]
    return Slopes(state, inputs, [(0, h), (1, h), (2, h), (0, c), (1, later)])


SLOPES: dict[str, Any] = {
    "indrnn_relu": _indrnn_relu,
    "indrnn_tanh": _indrnn_tanh,
    "indrnn_linear": _indrnn_linear,
    "diag_gru": _diag_gru,
    "diag_lstm_cifg": _diag_lstm_cifg,
}
