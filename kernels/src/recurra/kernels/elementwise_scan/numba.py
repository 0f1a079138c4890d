"""CPU backend: one pass over memory forward, one backward; the inner loops run over the width, vectorised by LLVM.

The state before a step is read from y itself. Derivations are in README.md.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra.kernels.cpu_math import sigmoid, tanh
from recurra.kernels.jit import array, flags_array, instance, jit_distinct, lengths_array, over_blocks
from recurra.kernels.sequences import wide

# A thread is worth waking for this many values.
GRAIN = 1 << 15

STEP: Callable[..., None]  # a cell's, in the copies of the loops below


@jit_distinct
def _indrnn_relu(x, u, h, c, y, w0, w1):  # type: ignore[no-untyped-def]
    x_t, u_t = x[0, w0:w1], u[0, w0:w1]
    for i in range(w1 - w0):
        value = x_t[i] + u_t[i] * h[i]
        y[i] = 0 if value <= 0 else value  # NaN stays NaN


@jit_distinct
def _indrnn_tanh(x, u, h, c, y, w0, w1):  # type: ignore[no-untyped-def]
    x_t, u_t = x[0, w0:w1], u[0, w0:w1]
    for i in range(w1 - w0):
        y[i] = tanh(x_t[i] + u_t[i] * h[i])


@jit_distinct
def _indrnn_linear(x, u, h, c, y, w0, w1):  # type: ignore[no-untyped-def]
    x_t, u_t = x[0, w0:w1], u[0, w0:w1]
    for i in range(w1 - w0):
        y[i] = x_t[i] + u_t[i] * h[i]


@jit_distinct
def _diag_gru(x, u, h, c, y, w0, w1):  # type: ignore[no-untyped-def]
    x_z, x_r, x_n = x[0, w0:w1], x[1, w0:w1], x[2, w0:w1]
    a_z, a_r, a_n = u[0, w0:w1], u[1, w0:w1], u[2, w0:w1]
    for i in range(w1 - w0):
        z = sigmoid(x_z[i] + a_z[i] * h[i])
        r = sigmoid(x_r[i] + a_r[i] * h[i])
        n = tanh(x_n[i] + a_n[i] * (r * h[i]))
        y[i] = h[i] + z * (n - h[i])


@jit_distinct
def _diag_lstm_cifg(x, u, h, c, y, w0, w1):  # type: ignore[no-untyped-def]
    x_f, x_o, x_c = x[0, w0:w1], x[1, w0:w1], x[2, w0:w1]
    a_f, a_o, a_c, c_f, c_o = u[0, w0:w1], u[1, w0:w1], u[2, w0:w1], u[3, w0:w1], u[4, w0:w1]
    for i in range(w1 - w0):
        f = sigmoid(x_f[i] + a_f[i] * h[i] + c_f[i] * c[i])
        g = tanh(x_c[i] + a_c[i] * h[i])
        new = g + f * (c[i] - g)
        y[i] = sigmoid(x_o[i] + a_o[i] * h[i] + c_o[i] * new) * tanh(new)
        c[i] = new


# Of eight bits, so that it takes the type of its partner; a plain 1 would make all of float32 float64.
ONE = np.int8(1)

# Each of the following turns (dh, dc), gradients of the state after a step, into those of the state before it. Where
# memory is the limit they go from the last unit to the first, as they do from the last step: reading in one direction,
# which the processor foresees, takes half the time.


@jit_distinct
def _indrnn_relu_back(x, u, h, c, y, c_new, dy, dh, dc, dx, du, w0, w1):  # type: ignore[no-untyped-def]
    u_t, dx_t, du_t = u[0, w0:w1], dx[0, w0:w1], du[0, w0:w1]
    for i in range(w1 - w0 - 1, -1, -1):
        dx_t[i] = 0 if y[i] <= 0 else dy[i] + dh[i]
        d = dx_t[i]
        du_t[i] += d * h[i]
        dh[i] = d * u_t[i]


@jit_distinct
def _indrnn_tanh_back(x, u, h, c, y, c_new, dy, dh, dc, dx, du, w0, w1):  # type: ignore[no-untyped-def]
    u_t, dx_t, du_t = u[0, w0:w1], dx[0, w0:w1], du[0, w0:w1]
    for i in range(w1 - w0 - 1, -1, -1):
        d = dy[i] + dh[i]
        d -= d * y[i] * y[i]
        dx_t[i] = d
        du_t[i] += d * h[i]
        dh[i] = d * u_t[i]


@jit_distinct
def _indrnn_linear_back(x, u, h, c, y, c_new, dy, dh, dc, dx, du, w0, w1):  # type: ignore[no-untyped-def]
    u_t, dx_t, du_t = u[0, w0:w1], dx[0, w0:w1], du[0, w0:w1]
    for i in range(w1 - w0 - 1, -1, -1):
        d = dy[i] + dh[i]
        dx_t[i] = d
        du_t[i] += d * h[i]
        dh[i] = d * u_t[i]


@jit_distinct
def _diag_gru_back(x, u, h, c, y, c_new, dy, dh, dc, dx, du, w0, w1):  # type: ignore[no-untyped-def]
    x_z, x_r, x_n = x[0, w0:w1], x[1, w0:w1], x[2, w0:w1]
    a_z, a_r, a_n = u[0, w0:w1], u[1, w0:w1], u[2, w0:w1]
    dx_z, dx_r, dx_n = dx[0, w0:w1], dx[1, w0:w1], dx[2, w0:w1]
    da_z, da_r, da_n = du[0, w0:w1], du[1, w0:w1], du[2, w0:w1]
    for i in range(w1 - w0):
        z = sigmoid(x_z[i] + a_z[i] * h[i])
        r = sigmoid(x_r[i] + a_r[i] * h[i])
        n = tanh(x_n[i] + a_n[i] * (r * h[i]))
        d = dy[i] + dh[i]
        d_n = d * z * (ONE - n * n)
        d_z = d * (n - h[i]) * z * (ONE - z)
        d_r = d_n * a_n[i] * h[i] * r * (ONE - r)
        dx_z[i], dx_r[i], dx_n[i] = d_z, d_r, d_n
        da_z[i] += d_z * h[i]
        da_r[i] += d_r * h[i]
        da_n[i] += d_n * (r * h[i])
        dh[i] = d * (ONE - z) + d_z * a_z[i] + d_r * a_r[i] + d_n * a_n[i] * r


@jit_distinct
def _diag_lstm_cifg_back(x, u, h, c, y, c_new, dy, dh, dc, dx, du, w0, w1):  # type: ignore[no-untyped-def]
    x_f, x_o, x_c = x[0, w0:w1], x[1, w0:w1], x[2, w0:w1]
    a_f, a_o, a_c, c_f, c_o = u[0, w0:w1], u[1, w0:w1], u[2, w0:w1], u[3, w0:w1], u[4, w0:w1]
    dx_f, dx_o, dx_c = dx[0, w0:w1], dx[1, w0:w1], dx[2, w0:w1]
    da_f, da_o, da_c, dc_f, dc_o = du[0, w0:w1], du[1, w0:w1], du[2, w0:w1], du[3, w0:w1], du[4, w0:w1]
    for i in range(w1 - w0):
        f = sigmoid(x_f[i] + a_f[i] * h[i] + c_f[i] * c[i])
        g = tanh(x_c[i] + a_c[i] * h[i])
        o = sigmoid(x_o[i] + a_o[i] * h[i] + c_o[i] * c_new[i])
        squashed = tanh(c_new[i])
        d = dy[i] + dh[i]
        d_o = d * squashed * o * (ONE - o)
        d_c = dc[i] + d * o * (ONE - squashed * squashed) + d_o * c_o[i]
        d_f = d_c * (c[i] - g) * f * (ONE - f)
        d_g = d_c * (ONE - f) * (ONE - g * g)
        dx_f[i], dx_o[i], dx_c[i] = d_f, d_o, d_g
        da_f[i] += d_f * h[i]
        da_o[i] += d_o * h[i]
        da_c[i] += d_g * h[i]
        dc_f[i] += d_f * c[i]
        dc_o[i] += d_o * c_new[i]
        dh[i] = d_f * a_f[i] + d_o * a_o[i] + d_g * a_c[i]
        dc[i] = d_c * f + d_f * c_f[i]


def _forward_rows(x, u, h0, c0, lengths, reset, reverse, y, h, c, saved, r0, r1, w0, w1):  # type: ignore[no-untyped-def]
    for row in range(r0, r1):
        n = lengths[row]
        old, memory, memory0 = h0[row, w0:w1], c[row, w0:w1], c0[row, w0:w1]
        memory[:] = memory0
        for s in range(n):
            t = n - 1 - s if reverse else s
            if reset.size > 0 and reset[row, t]:
                old = h0[row, w0:w1]
                memory[:] = memory0
            new = y[row, t, w0:w1]
            STEP(x[row, t], u, old, memory, new, w0, w1)
            if saved.size > 0:
                saved[row, t, w0:w1] = memory
            old = new
        h[row, w0:w1] = old
        y[row, n:, w0:w1] = 0
        if saved.size > 0:
            saved[row, n:, w0:w1] = 0


def _backward_rows(x, u, h0, c0, lengths, reset, reverse, y, c, dy, dh, dc, dx, du, dh0, dc0, r0, r1, w0, w1):  # type: ignore[no-untyped-def]
    for row in range(r0, r1):
        n = lengths[row]
        d_h, d_c, start, memory = dh[row, w0:w1], dc[row, w0:w1], h0[row, w0:w1], c0[row, w0:w1]
        du[row, :, w0:w1] = 0
        dh0[row, w0:w1] = 0
        dc0[row, w0:w1] = 0
        for s in range(n - 1, -1, -1):
            t = n - 1 - s if reverse else s
            before = t + 1 if reverse else t - 1
            fresh = s == 0 or (reset.size > 0 and reset[row, t])
            old, old_c = (start, memory) if fresh else (y[row, before, w0:w1], c[row, before, w0:w1])
            now, now_c, d_y = y[row, t, w0:w1], c[row, t, w0:w1], dy[row, t, w0:w1]
            STEP(x[row, t], u, old, old_c, now, now_c, d_y, d_h, d_c, dx[row, t], du[row], w0, w1)
            if fresh:
                dh0[row, w0:w1] += d_h
                dc0[row, w0:w1] += d_c
                d_h[:] = 0
                d_c[:] = 0
        if n == 0:
            dh0[row, w0:w1] = d_h
            dc0[row, w0:w1] = d_c
        dx[row, n:, :, w0:w1] = 0


STEPS = {
    "indrnn_relu": (_indrnn_relu, _indrnn_relu_back),
    "indrnn_tanh": (_indrnn_tanh, _indrnn_tanh_back),
    "indrnn_linear": (_indrnn_linear, _indrnn_linear_back),
    "diag_gru": (_diag_gru, _diag_gru_back),
    "diag_lstm_cifg": (_diag_lstm_cifg, _diag_lstm_cifg_back),
}


@functools.cache
def _compiled(cell: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """The loops over rows and time around a cell's steps, forward and backward."""
    step, back = STEPS[cell]
    forward_rows = instance(_forward_rows, f"{cell}_forward", STEP=step)
    return jit_distinct(forward_rows), jit_distinct(instance(_backward_rows, f"{cell}_backward", STEP=back))


def _arrays(options: Any, inputs: Any, kind: torch.dtype) -> tuple[Any, ...]:
    wx, params, h0, c0, lengths, reset = inputs
    batch, steps = wx.shape[:2]
    x, u = array(wx, kind), np.atleast_2d(array(params, kind))
    x = x if x.ndim == 4 else x[:, :, None]
    fixed = lengths_array(lengths, batch, steps), flags_array(reset), options.reverse
    start = array(h0, kind)
    # The cells without a second state get one of no width.
    return x, u, start, start[:, :0].copy() if c0 is None else array(c0, kind), *fixed


def forward(options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
    """y and the last state; c after every step where a backward pass of diag_lstm_cifg may follow."""
    wx, kind = inputs.wx, wide(inputs.wx.dtype)
    given = _arrays(options, inputs, kind)
    batch, steps, width = wx.shape[0], wx.shape[1], wx.shape[-1]
    # Of torch, whose memory begins at a cache line.
    y = torch.empty((batch, steps, width), dtype=kind).numpy()
    h, c = np.empty_like(given[2]), np.empty_like(given[3])
    saved = np.empty((batch, steps if saving else 0, c.shape[1]), y.dtype)
    run = _compiled(options.cell)[0]
    over_blocks(
        lambda r0, r1, w0, w1: run(*given, y, h, c, saved, r0, r1, w0, w1), batch, width, GRAIN // max(steps, 1)
    )
    results = [y, h] if inputs.c0 is None else [y, h, c, saved] if saving else [y, h, c]
    first, *rest = map(torch.from_numpy, results)
    return [first if kind == wx.dtype else first.to(wx.dtype), *rest]


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Gradients of wx, the parameters and the initial state; those of the parameters summed row by row, in order."""
    kind = wide(inputs.wx.dtype)
    given = _arrays(options, inputs, kind)
    x, u, h0, c0 = given[:4]
    batch, steps, width = x.shape[0], x.shape[1], x.shape[3]
    y, dy, dh = array(results[0], kind), array(gradients[0], kind), array(gradients[1], kind).copy()
    # dh and dc are consumed by the kernel.
    if inputs.c0 is None:
        c, dc = np.empty((batch, steps, 0), y.dtype), c0
    else:
        c, dc = array(results[3], kind), array(gradients[2], kind).copy()
    dx, du = torch.empty(x.shape, dtype=kind).numpy(), np.empty((batch, *u.shape), u.dtype)
    dh0, dc0 = np.empty_like(h0), np.empty_like(c0)
    old, new = (y, c, dy, dh, dc), (dx, du, dh0, dc0)
    run = _compiled(options.cell)[1]
    over_blocks(lambda r0, r1, w0, w1: run(*given, *old, *new, r0, r1, w0, w1), batch, width, GRAIN // max(steps, 1))
    d_params = torch.from_numpy(du[0] if batch == 1 else du.sum(0)).reshape(inputs.params.shape)
    d_wx, d_h0 = torch.from_numpy(dx).reshape(inputs.wx.shape), torch.from_numpy(dh0)
    return d_wx, d_params, d_h0, None if inputs.c0 is None else torch.from_numpy(dc0), None, None
