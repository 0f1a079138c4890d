"""One step back of every gated cell for one sequence and head, compiled; derivations in README.md.

`dh` comes in as the gradient of the step's h and leaves as that part of the old h's which passes by the products.
Where a step has two products, `recede` writes the gradient of the second's result to `inner` and `retreat` reads that
of its operand from `dm`. `retreat` writes the gradients of the gates, to `dwx` by the input and to `du` by the first
product.
"""

from collections.abc import Callable
from typing import Any

from numba.extending import overload

from recurra.kernels.cpu_math import exp, log_sigmoid, sigmoid, tanh
from recurra.kernels.gated_scan.numba_cells import (
    OPTIONS,
    ElmanRelu,
    ElmanTanh,
    Gru,
    GruBefore,
    Lstm,
    LstmProjected,
    Mgu,
    MguAfter,
    Packed,
    Slstm,
)
from recurra.kernels.jit import jit


def recede(cell: Packed, *step: Any) -> None:
    """Before the second product's transpose."""


def retreat(cell: Packed, *step: Any) -> None:
    """Before the first product's transpose."""


def _elman_tanh(cell, gates, old, old_rest, rest, dm, dh, drest, dwx, du, b, t, n, row):  # type: ignore[no-untyped-def]
    zero, one = dh.dtype.type(0), dh.dtype.type(1)
    for d in range(dwx.shape[4]):
        y = gates[b, t, 0, n, d]
        g = dh[row, d] * (one - y * y)
        dwx[b, t, 0, n, d], du[row, d], dh[row, d] = g, g, zero


def _elman_relu(cell, gates, old, old_rest, rest, dm, dh, drest, dwx, du, b, t, n, row):  # type: ignore[no-untyped-def]
    zero = dh.dtype.type(0)
    for d in range(dwx.shape[4]):
        g = dh[row, d] if gates[b, t, 0, n, d] > zero else zero
        dwx[b, t, 0, n, d], du[row, d], dh[row, d] = g, g, zero


def _gru(cell, gates, old, old_rest, rest, dm, dh, drest, dwx, du, b, t, n, row):  # type: ignore[no-untyped-def]
    width, one = dwx.shape[4], dh.dtype.type(1)
    du_r, du_z, du_n = du[row, :width], du[row, width : 2 * width], du[row, 2 * width : 3 * width]
    for d in range(width):
        r, z, new, inner = gates[b, t, 0, n, d], gates[b, t, 1, n, d], gates[b, t, 2, n, d], gates[b, t, 3, n, d]
        g = dh[row, d]
        dn = g * (one - z) * (one - new * new)
        dz = g * (old[b, t, n, d] - new) * z * (one - z)
        dr = dn * inner * r * (one - r)
        dwx[b, t, 0, n, d], dwx[b, t, 1, n, d], dwx[b, t, 2, n, d] = dr, dz, dn
        du_r[d], du_z[d], du_n[d] = dr, dz, dn * r
        dh[row, d] = g * z


def _gru_before_end(cell, gates, dh, inner, dwx, b, t, n, row):  # type: ignore[no-untyped-def]
    one = dh.dtype.type(1)
    for d in range(dwx.shape[4]):
        new = gates[b, t, 2, n, d]
        dn = dh[row, d] * gates[b, t, 1, n, d] * (one - new * new)
        inner[row, d] = dn
        dwx[b, t, 2, n, d] = dn


def _gru_before(cell, gates, old, old_rest, rest, dm, dh, drest, dwx, du, b, t, n, row):  # type: ignore[no-untyped-def]
    width, one = dwx.shape[4], dh.dtype.type(1)
    du_r, du_z = du[row, :width], du[row, width : 2 * width]
    for d in range(width):
        r, z, new, h = gates[b, t, 0, n, d], gates[b, t, 1, n, d], gates[b, t, 2, n, d], old[b, t, n, d]
        dr = dm[row, d] * h * r * (one - r)
        dz = dh[row, d] * (new - h) * z * (one - z)
        dwx[b, t, 0, n, d], dwx[b, t, 1, n, d] = dr, dz
        du_r[d], du_z[d] = dr, dz
        dh[row, d] = dh[row, d] * (one - z) + dm[row, d] * r


def _mgu_end(cell, gates, dh, inner, dwx, b, t, n, row):  # type: ignore[no-untyped-def]
    one = dh.dtype.type(1)
    for d in range(dwx.shape[4]):
        c = gates[b, t, 1, n, d]
        dc = dh[row, d] * gates[b, t, 0, n, d] * (one - c * c)
        inner[row, d] = dc
        dwx[b, t, 1, n, d] = dc


def _mgu(cell, gates, old, old_rest, rest, dm, dh, drest, dwx, du, b, t, n, row):  # type: ignore[no-untyped-def]
    one = dh.dtype.type(1)
    for d in range(dwx.shape[4]):
        f, c, h = gates[b, t, 0, n, d], gates[b, t, 1, n, d], old[b, t, n, d]
        df = (dh[row, d] * (c - h) + dm[row, d] * h) * f * (one - f)
        dwx[b, t, 0, n, d], du[row, d] = df, df
        dh[row, d] = dh[row, d] * (one - f) + dm[row, d] * f


def _mgu_after(cell, gates, old, old_rest, rest, dm, dh, drest, dwx, du, b, t, n, row):  # type: ignore[no-untyped-def]
    width, one = dwx.shape[4], dh.dtype.type(1)
    du_f, du_c = du[row, :width], du[row, width : 2 * width]
    for d in range(width):
        f, c, inner = gates[b, t, 0, n, d], gates[b, t, 1, n, d], gates[b, t, 2, n, d]
        g = dh[row, d]
        dc = g * (one - f) * (one - c * c)
        df = (g * (old[b, t, n, d] - c) + dc * inner) * f * (one - f)
        dwx[b, t, 0, n, d], dwx[b, t, 1, n, d] = df, dc
        du_f[d], du_c[d] = df, dc * f
        dh[row, d] = g * f


@jit
def _lstm_gates(gates, old_rest, rest, ds, drest, dwx, du, b, t, n, row):  # type: ignore[no-untyped-def]
    width, one = dwx.shape[4], ds.dtype.type(1)
    du_i, du_f = du[row, :width], du[row, width : 2 * width]
    du_g, du_o = du[row, 2 * width : 3 * width], du[row, 3 * width : 4 * width]
    for d in range(width):
        i, f, g, o = gates[b, t, 0, n, d], gates[b, t, 1, n, d], gates[b, t, 2, n, d], gates[b, t, 3, n, d]
        out = tanh(rest[b, t, 0, n, d])
        do = ds[row, d] * out * o * (one - o)
        dc = drest[row, 0, d] + ds[row, d] * o * (one - out * out)
        di, df = dc * g * i * (one - i), dc * old_rest[b, t, 0, n, d] * f * (one - f)
        dg = dc * i * (one - g * g)
        dwx[b, t, 0, n, d], dwx[b, t, 1, n, d], dwx[b, t, 2, n, d], dwx[b, t, 3, n, d] = di, df, dg, do
        du_i[d], du_f[d], du_g[d], du_o[d] = di, df, dg, do
        drest[row, 0, d] = dc * f


def _lstm(cell, gates, old, old_rest, rest, dm, dh, drest, dwx, du, b, t, n, row):  # type: ignore[no-untyped-def]
    _lstm_gates(gates, old_rest, rest, dh, drest, dwx, du, b, t, n, row)
    for d in range(dh.shape[1]):
        dh[row, d] = 0


def _lstm_projected_end(cell, gates, dh, inner, dwx, b, t, n, row):  # type: ignore[no-untyped-def]
    for d in range(dh.shape[1]):
        inner[row, d] = dh[row, d]
        dh[row, d] = 0


def _lstm_projected(cell, gates, old, old_rest, rest, dm, dh, drest, dwx, du, b, t, n, row):  # type: ignore[no-untyped-def]
    _lstm_gates(gates, old_rest, rest, dm, drest, dwx, du, b, t, n, row)


def _slstm(cell, gates, old, old_rest, rest, dm, dh, drest, dwx, du, b, t, n, row):  # type: ignore[no-untyped-def]
    width = dwx.shape[4]
    zero, half, one = dh.dtype.type(0), dh.dtype.type(0.5), dh.dtype.type(1)
    du_i, du_f = du[row, :width], du[row, width : 2 * width]
    du_z, du_o = du[row, 2 * width : 3 * width], du[row, 3 * width : 4 * width]
    for d in range(width):
        i, f = gates[b, t, 0, n, d], gates[b, t, 1, n, d]
        z, o = tanh(gates[b, t, 2, n, d]), sigmoid(gates[b, t, 3, n, d])
        c_old, n_old = old_rest[b, t, 0, n, d], old_rest[b, t, 1, n, d]
        c, norm, m = rest[b, t, 0, n, d], rest[b, t, 1, n, d], rest[b, t, 2, n, d]
        kept = log_sigmoid(f) + old_rest[b, t, 2, n, d]
        # At a fresh start m is i, though a gate computed again may differ from the first in its last bit.
        fresh = n_old == zero
        e_i, e_f = one if fresh else exp(i - m), exp(kept - m)
        g = dh[row, d] / norm
        dc = drest[row, 0, d] + g * o
        dn = drest[row, 1, d] - g * o * c / norm
        # torch.maximum halves the gradient where both sides are equal.
        total = e_f * n_old + e_i
        dn = dn if total > one else half * dn if total == one else zero
        by_i, by_f = (dc * z + dn) * e_i, (dc * c_old + dn * n_old) * e_f
        dm_new = drest[row, 2, d] - by_i - by_f
        share = one if fresh or i > kept else half if i == kept else zero
        di, d_kept = by_i + share * dm_new, by_f + (one - share) * dm_new
        # Not 1 - sigmoid(f), whose small values are all rounding.
        df, dz, do = d_kept / (one + exp(f)), dc * e_i * (one - z * z), g * c * o * (one - o)
        dwx[b, t, 0, n, d], dwx[b, t, 1, n, d], dwx[b, t, 2, n, d], dwx[b, t, 3, n, d] = di, df, dz, do
        du_i[d], du_f[d], du_z[d], du_o[d] = di, df, dz, do
        drest[row, 0, d], drest[row, 1, d], drest[row, 2, d] = dc * e_f, dn * e_f, d_kept
        dh[row, d] = zero


def _nothing(cell, gates, dh, inner, dwx, b, t, n, row):  # type: ignore[no-untyped-def]
    pass


RETREAT: dict[type[Packed], Callable[..., None]] = {
    ElmanTanh: _elman_tanh,
    ElmanRelu: _elman_relu,
    Gru: _gru,
    GruBefore: _gru_before,
    Mgu: _mgu,
    MguAfter: _mgu_after,
    Lstm: _lstm,
    LstmProjected: _lstm_projected,
    Slstm: _slstm,
}
RECEDE: dict[type[Packed], Callable[..., None]] = {
    GruBefore: _gru_before_end,
    Mgu: _mgu_end,
    LstmProjected: _lstm_projected_end,
}


@overload(recede, jit_options=OPTIONS, strict=False)
def _recede(cell, gates, dh, inner, dwx, b, t, n, row):  # type: ignore[no-untyped-def]
    return RECEDE.get(cell.instance_class, _nothing)


@overload(retreat, jit_options=OPTIONS, strict=False)
def _retreat(cell, gates, old, old_rest, rest, dm, dh, drest, dwx, du, b, t, n, row):  # type: ignore[no-untyped-def]
    return RETREAT[cell.instance_class]
