"""One step of every gated cell for one sequence and head, compiled: the arithmetic between the matrix products.

`begin` follows the first product. Where a second depends on it (two stages), `begin` writes its operand to `middle`
and `finish` follows it; else `begin` already ends the step. Gates are saved at [gb, gt], as `_shapes` says.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numba.extending import overload

from recurra.kernels.cpu_math import exp, log_sigmoid, sigmoid, tanh
from recurra.kernels.jit import Distinct


class Packed(NamedTuple):
    """Weights of the products, (head, values) each; the class names the cell for numba's choice of functions."""

    first: Any
    second: Any


class ElmanTanh(Packed):
    """Cell elman_tanh."""


class ElmanRelu(Packed):
    """Cell elman_relu."""


class Gru(Packed):
    """Cell gru."""


class GruBefore(Packed):
    """Cell gru_before."""


class Mgu(Packed):
    """Cell mgu."""


class MguAfter(Packed):
    """Cell mgu_after."""


class Lstm(Packed):
    """Cell lstm."""


class LstmProjected(Packed):
    """Cell lstm with a projection."""


class Slstm(Packed):
    """Cell slstm."""


def begin(cell: Packed, *step: Any) -> None:
    """After the first product, in `pre`."""


def finish(cell: Packed, *step: Any) -> None:
    """After the second product, in `late`."""


def _elman_tanh(cell, wx, bias, pre, middle, h, rest, gates, b, t, n, row, gb, gt):  # type: ignore[no-untyped-def]
    for d in range(wx.shape[4]):
        h[row, d] = tanh(wx[b, t, 0, n, d] + bias[0, n, d] + pre[row, d])


def _elman_relu(cell, wx, bias, pre, middle, h, rest, gates, b, t, n, row, gb, gt):  # type: ignore[no-untyped-def]
    zero = h.dtype.type(0)
    for d in range(wx.shape[4]):
        x = wx[b, t, 0, n, d] + bias[0, n, d] + pre[row, d]
        h[row, d] = zero if x <= zero else x


def _gru(cell, wx, bias, pre, middle, h, rest, gates, b, t, n, row, gb, gt):  # type: ignore[no-untyped-def]
    width = wx.shape[4]
    u_r, u_z, u_n = pre[row, :width], pre[row, width : 2 * width], pre[row, 2 * width : 3 * width]
    one = h.dtype.type(1)
    for d in range(width):
        reset = sigmoid(wx[b, t, 0, n, d] + bias[0, n, d] + u_r[d])
        z = sigmoid(wx[b, t, 1, n, d] + bias[1, n, d] + u_z[d])
        inner = u_n[d] + bias[3, n, d]
        new = tanh(wx[b, t, 2, n, d] + bias[2, n, d] + reset * inner)
        h[row, d] = (one - z) * new + z * h[row, d]
        gates[gb, gt, 0, n, d] = reset
        gates[gb, gt, 1, n, d] = z
        gates[gb, gt, 2, n, d] = new
        gates[gb, gt, 3, n, d] = inner


def _gru_before(cell, wx, bias, pre, middle, h, rest, gates, b, t, n, row, gb, gt):  # type: ignore[no-untyped-def]
    width = wx.shape[4]
    u_r, u_z = pre[row, :width], pre[row, width : 2 * width]
    for d in range(width):
        reset = sigmoid(wx[b, t, 0, n, d] + bias[0, n, d] + u_r[d])
        z = sigmoid(wx[b, t, 1, n, d] + bias[1, n, d] + u_z[d])
        middle[row, d] = reset * h[row, d]
        u_z[d] = z
        gates[gb, gt, 0, n, d] = reset
        gates[gb, gt, 1, n, d] = z


def _gru_before_end(cell, wx, bias, pre, late, h, gates, b, t, n, row, gb, gt):  # type: ignore[no-untyped-def]
    width = wx.shape[4]
    z, one = pre[row, width : 2 * width], h.dtype.type(1)
    for d in range(width):
        new = tanh(wx[b, t, 2, n, d] + bias[2, n, d] + late[row, d])
        h[row, d] = (one - z[d]) * h[row, d] + z[d] * new
        gates[gb, gt, 2, n, d] = new


def _mgu(cell, wx, bias, pre, middle, h, rest, gates, b, t, n, row, gb, gt):  # type: ignore[no-untyped-def]
    for d in range(wx.shape[4]):
        f = sigmoid(wx[b, t, 0, n, d] + bias[0, n, d] + pre[row, d])
        middle[row, d] = f * h[row, d]
        pre[row, d] = f
        gates[gb, gt, 0, n, d] = f


def _mgu_end(cell, wx, bias, pre, late, h, gates, b, t, n, row, gb, gt):  # type: ignore[no-untyped-def]
    one = h.dtype.type(1)
    for d in range(wx.shape[4]):
        f, c = pre[row, d], tanh(wx[b, t, 1, n, d] + bias[1, n, d] + late[row, d])
        h[row, d] = (one - f) * h[row, d] + f * c
        gates[gb, gt, 1, n, d] = c


def _mgu_after(cell, wx, bias, pre, middle, h, rest, gates, b, t, n, row, gb, gt):  # type: ignore[no-untyped-def]
    width = wx.shape[4]
    u_f, u_c, one = pre[row, :width], pre[row, width : 2 * width], h.dtype.type(1)
    for d in range(width):
        f = sigmoid(wx[b, t, 0, n, d] + bias[0, n, d] + u_f[d])
        c = tanh(wx[b, t, 1, n, d] + bias[1, n, d] + f * u_c[d])
        h[row, d] = (one - f) * c + f * h[row, d]
        gates[gb, gt, 0, n, d] = f
        gates[gb, gt, 1, n, d] = c
        gates[gb, gt, 2, n, d] = u_c[d]


def _lstm(cell, wx, bias, pre, middle, h, rest, gates, b, t, n, row, gb, gt):  # type: ignore[no-untyped-def]
    width = wx.shape[4]
    u_i, u_f = pre[row, :width], pre[row, width : 2 * width]
    u_g, u_o = pre[row, 2 * width : 3 * width], pre[row, 3 * width : 4 * width]
    for d in range(width):
        i = sigmoid(wx[b, t, 0, n, d] + bias[0, n, d] + u_i[d])
        f = sigmoid(wx[b, t, 1, n, d] + bias[1, n, d] + u_f[d])
        g = tanh(wx[b, t, 2, n, d] + bias[2, n, d] + u_g[d])
        o = sigmoid(wx[b, t, 3, n, d] + bias[3, n, d] + u_o[d])
        c = f * rest[row, 0, d] + i * g
        rest[row, 0, d] = c
        middle[row, d] = o * tanh(c)
        gates[gb, gt, 0, n, d] = i
        gates[gb, gt, 1, n, d] = f
        gates[gb, gt, 2, n, d] = g
        gates[gb, gt, 3, n, d] = o


def _lstm_end(cell, wx, bias, pre, late, h, gates, b, t, n, row, gb, gt):  # type: ignore[no-untyped-def]
    for d in range(h.shape[1]):
        h[row, d] = late[row, d]


def _slstm(cell, wx, bias, pre, middle, h, rest, gates, b, t, n, row, gb, gt):  # type: ignore[no-untyped-def]
    width = wx.shape[4]
    u_i, u_f = pre[row, :width], pre[row, width : 2 * width]
    u_z, u_o = pre[row, 2 * width : 3 * width], pre[row, 3 * width : 4 * width]
    zero, one = h.dtype.type(0), h.dtype.type(1)
    for d in range(width):
        i = wx[b, t, 0, n, d] + bias[0, n, d] + u_i[d]
        f = wx[b, t, 1, n, d] + bias[1, n, d] + u_f[d]
        z = wx[b, t, 2, n, d] + bias[2, n, d] + u_z[d]
        o = wx[b, t, 3, n, d] + bias[3, n, d] + u_o[d]
        kept = log_sigmoid(f) + rest[row, 2, d]
        m = i if rest[row, 1, d] == zero else max(i, kept)
        e_i, e_f = exp(i - m), exp(kept - m)
        c = e_f * rest[row, 0, d] + e_i * tanh(z)
        norm = max(e_f * rest[row, 1, d] + e_i, one)
        rest[row, 0, d], rest[row, 1, d], rest[row, 2, d] = c, norm, m
        h[row, d] = sigmoid(o) * c / norm
        gates[gb, gt, 0, n, d] = i
        gates[gb, gt, 1, n, d] = f
        gates[gb, gt, 2, n, d] = z
        gates[gb, gt, 3, n, d] = o


def _nothing(cell, wx, bias, pre, late, h, gates, b, t, n, row, gb, gt):  # type: ignore[no-untyped-def]
    pass


FIRST: dict[type[Packed], Callable[..., None]] = {
    ElmanTanh: _elman_tanh,
    ElmanRelu: _elman_relu,
    Gru: _gru,
    GruBefore: _gru_before,
    Mgu: _mgu,
    MguAfter: _mgu_after,
    Lstm: _lstm,
    LstmProjected: _lstm,
    Slstm: _slstm,
}
LAST: dict[type[Packed], Callable[..., None]] = {GruBefore: _gru_before_end, Mgu: _mgu_end, LstmProjected: _lstm_end}

OPTIONS: Any = {"fastmath": {"contract"}, "error_model": "numpy", "pipeline_class": Distinct}


@overload(begin, jit_options=OPTIONS, strict=False)
def _begin(cell, wx, bias, pre, middle, h, rest, gates, b, t, n, row, gb, gt):  # type: ignore[no-untyped-def]
    return FIRST[cell.instance_class]


@overload(finish, jit_options=OPTIONS, strict=False)
def _finish(cell, wx, bias, pre, late, h, gates, b, t, n, row, gb, gt):  # type: ignore[no-untyped-def]
    return LAST.get(cell.instance_class, _nothing)
