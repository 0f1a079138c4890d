"""Recurrent cells whose units see no state but their own."""

from typing import Any

import torch
from torch import Tensor

from recurra.kernels.sequences import loop, stacked, wide


def elementwise_scan(options: Any, inputs: Any) -> tuple[Tensor, ...]:
    """y and the last states, by a loop over time."""
    wx, params, h0, c0, lengths, reset = inputs
    carried = wide(wx.dtype)
    weights, step = params.to(carried), STEPS[options.cell]
    states, last = loop(
        lambda *state_and_x: step(weights, *state_and_x),
        (wx.to(carried),),
        tuple(s.to(carried) for s in (h0, c0) if s is not None),
        lengths=lengths,
        reset=reset,
        reverse=options.reverse,
    )
    y = stacked([state[0] for state in states], wx, (*wx.shape[:2], wx.shape[-1]))
    return y.to(wx.dtype), *last


def indrnn_relu(u: Tensor, h: Tensor, x: Tensor) -> tuple[Tensor]:
    """h' = relu(x + u h); the gradient is 0 where h' is."""
    return (torch.relu(x + u * h),)


def indrnn_tanh(u: Tensor, h: Tensor, x: Tensor) -> tuple[Tensor]:
    """h' = tanh(x + u h)."""
    return (torch.tanh(x + u * h),)


def indrnn_linear(u: Tensor, h: Tensor, x: Tensor) -> tuple[Tensor]:
    """h' = x + u h."""
    return (x + u * h,)


def diag_gru(a: Tensor, h: Tensor, x: Tensor) -> tuple[Tensor]:
    """z = σ(x_z + a_z h), r = σ(x_r + a_r h), n = tanh(x_n + a_n (r h)), h' = (1-z) h + z n."""
    (a_z, a_r, a_n), (x_z, x_r, x_n) = a.unbind(), x.unbind(-2)
    z, r = torch.sigmoid(x_z + a_z * h), torch.sigmoid(x_r + a_r * h)
    n = torch.tanh(x_n + a_n * (r * h))
    return ((1 - z) * h + z * n,)


def diag_lstm_cifg(a: Tensor, h: Tensor, c: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """f = σ(x_f + a_f h + c_f c), c' = f c + (1-f) tanh(x_c + a_c h), o = σ(x_o + a_o h + c_o c'), h' = o tanh(c')."""
    (a_f, a_o, a_c, c_f, c_o), (x_f, x_o, x_c) = a.unbind(), x.unbind(-2)
    f = torch.sigmoid(x_f + a_f * h + c_f * c)
    c = f * c + (1 - f) * torch.tanh(x_c + a_c * h)
    o = torch.sigmoid(x_o + a_o * h + c_o * c)
    return o * torch.tanh(c), c


STEPS: dict[str, Any] = {
    step.__name__: step for step in (indrnn_relu, indrnn_tanh, indrnn_linear, diag_gru, diag_lstm_cifg)
}
