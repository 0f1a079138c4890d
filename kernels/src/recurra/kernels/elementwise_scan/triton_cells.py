"""The cells' equations and slopes, as tiles of any shape: for the CUDA kernels.

CELL: 0 indrnn_relu, 1 indrnn_tanh, 2 diag_gru, 3 diag_lstm_cifg; x and w are tuples, rows of wx and of the parameters.
"""

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

from recurra.kernels.gpu_math import sigmoid, tanh
from recurra.kernels.gpu_scan import load

NUMBERS = {"indrnn_relu": 0, "indrnn_tanh": 1, "diag_gru": 2, "diag_lstm_cifg": 3}


@triton.jit
def weights(params, unit, there, width, CELL: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each unit's parameters."""
    count: tl.constexpr = 1 if CELL < 2 else (3 if CELL == 2 else 5)
    w = ()
    for k in tl.static_range(count):
        w = w + (load(params + k * width + unit, there, WIDE),)
    return w


@triton.jit
def slopes_at(y, u, CELL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Slopes of indrnn_relu and indrnn_tanh in h and in x, from their result y."""
    s = tl.where(y > 0, 1.0, 0.0).to(y.dtype) if CELL == 0 else 1 - y * y
    return u * s, s


@triton.jit
def cell(h, c, x, w, CELL: tl.constexpr):  # type: ignore[no-untyped-def]
    """h', c' (c alone for diag_lstm_cifg), and slopes.

    Of one state: (dh'/dh, dh'/dx of each row, r for diag_gru). Of two, with gh and gc the whole gradients of h' and of
    c', the latter without what h' gives it: (q, k, w, e, f, o, g) such that gc gains q gh; then the gradient of h is
    e gh + k gc, that of c is w gc, and those of x are f gc, o gh, g gc.
    """
    if CELL < 2:
        s = x[0] + w[0] * h
        new = tl.where(s <= 0, 0.0, s) if CELL == 0 else tanh(s)
        slopes = slopes_at(new, w[0], CELL)
    elif CELL == 2:
        z = sigmoid(x[0] + w[0] * h)
        r = sigmoid(x[1] + w[1] * h)
        n = tanh(x[2] + w[2] * (r * h))
        new = (1 - z) * h + z * n
        s_z = (n - h) * z * (1 - z)
        s_n = z * (1 - n * n)
        s_r = s_n * w[2] * h * r * (1 - r)
        slopes = ((1 - z) + s_z * w[0] + s_r * w[1] + s_n * w[2] * r, s_z, s_r, s_n, r)
    else:
        f = sigmoid(x[0] + w[0] * h + w[3] * c)
        g = tanh(x[2] + w[2] * h)
        old, c = c, f * c + (1 - f) * g
        o = sigmoid(x[1] + w[1] * h + w[4] * c)
        m = tanh(c)
        new = o * m
        s_f, s_o, s_g = (old - g) * f * (1 - f), m * o * (1 - o), (1 - f) * (1 - g * g)
        q = o * (1 - m * m) + s_o * w[4]
        slopes = (q, s_f * w[0] + s_g * w[2], f + s_f * w[3], s_o * w[1], s_f, s_o, s_g)
    return new, c, slopes
