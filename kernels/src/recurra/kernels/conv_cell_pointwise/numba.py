"""CPU backend: one pass over memory for all gates, vectorised by LLVM; float32 and float64.

Arrays come as rows (outer, gate, inner), which holds for both memory layouts: README.md.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra.kernels.conv_cell_pointwise.layout import Rows, rows_of
from recurra.kernels.cpu_math import sigmoid, tanh
from recurra.kernels.jit import jit, jit_distinct, over_ranges

# A thread is worth waking for this many values.
GRAIN = 1 << 15


@jit
def _target(out, spare, o, i0, i1):  # type: ignore[no-untyped-def]
    # In place, a row is written aside first: LLVM's vector loop runs only where nothing overlaps.
    if spare is None:
        return out[o, 0, i0:i1]
    return spare[: i1 - i0]


@jit
def _gru(gi, gh, h, out, bias, spare, g, o0, o1, i0, i1):  # type: ignore[no-untyped-def]
    one = h.dtype.type(1)
    n_inner = i1 - i0
    for o in range(o0, o1):
        ir, iz, i_n = gi[o, g, i0:i1], gi[o, g + 1, i0:i1], gi[o, g + 2, i0:i1]
        hr, hz, hn = gh[o, g, i0:i1], gh[o, g + 1, i0:i1], gh[o, g + 2, i0:i1]
        old, new = h[o, 0, i0:i1], _target(out, spare, o, i0, i1)
        if bias is not None:
            br, bz, bn = bias[0], bias[1], bias[2]
            for i in range(n_inner):
                r = sigmoid(ir[i] + br[i] + hr[i])
                z = sigmoid(iz[i] + bz[i] + hz[i])
                n = tanh(i_n[i] + bn[i] + r * hn[i])
                new[i] = (one - z) * n + z * old[i]
        else:
            for i in range(n_inner):
                r = sigmoid(ir[i] + hr[i])
                z = sigmoid(iz[i] + hz[i])
                n = tanh(i_n[i] + r * hn[i])
                new[i] = (one - z) * n + z * old[i]
        if spare is not None:
            out[o, 0, i0:i1] = new


@jit
def _mgu(gi, gh, h, out, bias, spare, g, o0, o1, i0, i1):  # type: ignore[no-untyped-def]
    n_inner = i1 - i0
    for o in range(o0, o1):
        i_f, ic = gi[o, g, i0:i1], gi[o, g + 1, i0:i1]
        hf, hc = gh[o, g, i0:i1], gh[o, g + 1, i0:i1]
        old, new = h[o, 0, i0:i1], _target(out, spare, o, i0, i1)
        if bias is not None:
            bf, bc = bias[0], bias[1]
            for i in range(n_inner):
                f = sigmoid(i_f[i] + bf[i] + hf[i])
                c = tanh(ic[i] + bc[i] + f * hc[i])
                new[i] = c + f * (old[i] - c)
        else:
            for i in range(n_inner):
                f = sigmoid(i_f[i] + hf[i])
                c = tanh(ic[i] + f * hc[i])
                new[i] = c + f * (old[i] - c)
        if spare is not None:
            out[o, 0, i0:i1] = new


@jit
def _indrnn(gi, u, h, out, bias, spare, g, o0, o1, i0, i1):  # type: ignore[no-untyped-def]
    zero = h.dtype.type(0)
    n_inner = i1 - i0
    for o in range(o0, o1):
        x, old, new = gi[o, g, i0:i1], h[o, 0, i0:i1], _target(out, spare, o, i0, i1)
        if u.ndim == 1:  # one scale an inner index
            scale = u[i0:i1]
            for i in range(n_inner):
                s = x[i] + scale[i] * old[i]
                if bias is not None:
                    s += bias[0, i]
                new[i] = zero if s <= zero else s
        else:  # one scale an outer index
            factor = u[o % u.shape[0], 0]
            for i in range(n_inner):
                s = x[i] + factor * old[i]
                new[i] = zero if s <= zero else s
        if spare is not None:
            out[o, 0, i0:i1] = new


@jit
def _reset(gi, gh, h, out, bias, spare, g, o0, o1, i0, i1):  # type: ignore[no-untyped-def]
    n_inner = i1 - i0
    for o in range(o0, o1):
        x, old, new = gi[o, g, i0:i1], h[o, 0, i0:i1], _target(out, spare, o, i0, i1)
        if gh is not None:
            y = gh[o, g, i0:i1]
            for i in range(n_inner):
                s = x[i] + y[i]
                if bias is not None:
                    s += bias[0, i]
                new[i] = sigmoid(s) * old[i]
        else:
            for i in range(n_inner):
                s = x[i]
                if bias is not None:
                    s += bias[0, i]
                new[i] = sigmoid(s) * old[i]
        if spare is not None:
            out[o, 0, i0:i1] = new


@jit
def _update(gi, gh, h, out, bias, spare, g, o0, o1, i0, i1):  # type: ignore[no-untyped-def]
    n_inner = i1 - i0
    for o in range(o0, o1):
        xu, xc = gi[o, g, i0:i1], gi[o, g + 1, i0:i1]
        old, new = h[o, 0, i0:i1], _target(out, spare, o, i0, i1)
        if gh is not None:
            yu, yc = gh[o, g, i0:i1], gh[o, g + 1, i0:i1]
            for i in range(n_inner):
                su, sc = xu[i] + yu[i], xc[i] + yc[i]
                if bias is not None:
                    su += bias[0, i]
                    sc += bias[1, i]
                new[i] = old[i] + sigmoid(su) * (tanh(sc) - old[i])
        else:
            for i in range(n_inner):
                su, sc = xu[i], xc[i]
                if bias is not None:
                    su += bias[0, i]
                    sc += bias[1, i]
                new[i] = old[i] + sigmoid(su) * (tanh(sc) - old[i])
        if spare is not None:
            out[o, 0, i0:i1] = new


@jit_distinct
def _gru_backward(d, gi, gh, h, dgi, dgh, dh, o0, o1, i0, i1):  # type: ignore[no-untyped-def]
    one = h.dtype.type(1)
    for o in range(o0, o1):
        ir, iz, i_n = gi[o, 0, i0:i1], gi[o, 1, i0:i1], gi[o, 2, i0:i1]
        hr, hz, hn = gh[o, 0, i0:i1], gh[o, 1, i0:i1], gh[o, 2, i0:i1]
        g, old, d_old = d[o, 0, i0:i1], h[o, 0, i0:i1], dh[o, 0, i0:i1]
        dir_, diz, din = dgi[o, 0, i0:i1], dgi[o, 1, i0:i1], dgi[o, 2, i0:i1]
        dhr, dhz, dhn = dgh[o, 0, i0:i1], dgh[o, 1, i0:i1], dgh[o, 2, i0:i1]
        for i in range(g.size):
            r = sigmoid(ir[i] + hr[i])
            z = sigmoid(iz[i] + hz[i])
            n = tanh(i_n[i] + r * hn[i])
            dn = g[i] * (one - z) * (one - n * n)
            dz = g[i] * (old[i] - n) * z * (one - z)
            dr = dn * hn[i] * r * (one - r)
            dir_[i], diz[i], din[i] = dr, dz, dn
            dhr[i], dhz[i], dhn[i] = dr, dz, dn * r
            d_old[i] = g[i] * z


@jit_distinct
def _mgu_backward(d, gi, gh, h, dgi, dgh, dh, o0, o1, i0, i1):  # type: ignore[no-untyped-def]
    one = h.dtype.type(1)
    for o in range(o0, o1):
        i_f, ic, hf, hc = gi[o, 0, i0:i1], gi[o, 1, i0:i1], gh[o, 0, i0:i1], gh[o, 1, i0:i1]
        g, old, d_old = d[o, 0, i0:i1], h[o, 0, i0:i1], dh[o, 0, i0:i1]
        dif, dic, dhf, dhc = dgi[o, 0, i0:i1], dgi[o, 1, i0:i1], dgh[o, 0, i0:i1], dgh[o, 1, i0:i1]
        for i in range(g.size):
            f = sigmoid(i_f[i] + hf[i])
            c = tanh(ic[i] + f * hc[i])
            dc = g[i] * (one - f) * (one - c * c)
            df = (g[i] * (old[i] - c) + dc * hc[i]) * f * (one - f)
            dif[i], dic[i], dhf[i], dhc[i] = df, dc, df, dc * f
            d_old[i] = g[i] * f


@jit_distinct
def _indrnn_backward(d, gi, u, h, dgi, dh, o0, o1, i0, i1):  # type: ignore[no-untyped-def]
    zero = h.dtype.type(0)
    for o in range(o0, o1):
        x, g, old = gi[o, 0, i0:i1], d[o, 0, i0:i1], h[o, 0, i0:i1]
        dx, d_old = dgi[o, 0, i0:i1], dh[o, 0, i0:i1]
        if u.ndim == 1:
            scale = u[i0:i1]
            for i in range(g.size):
                dx[i] = zero if x[i] + scale[i] * old[i] <= zero else g[i]
                d_old[i] = dx[i] * scale[i]
        else:
            factor = u[o % u.shape[0], 0]
            for i in range(g.size):
                dx[i] = zero if x[i] + factor * old[i] <= zero else g[i]
                d_old[i] = dx[i] * factor


@jit_distinct
def _reset_backward(d, gi, gh, h, dgi, dh, o0, o1, i0, i1):  # type: ignore[no-untyped-def]
    one = h.dtype.type(1)
    for o in range(o0, o1):
        x, g, old = gi[o, 0, i0:i1], d[o, 0, i0:i1], h[o, 0, i0:i1]
        y = x if gh is None else gh[o, 0, i0:i1]
        dx, d_old = dgi[o, 0, i0:i1], dh[o, 0, i0:i1]
        for i in range(g.size):
            r = sigmoid(x[i] if gh is None else x[i] + y[i])
            dx[i] = g[i] * old[i] * r * (one - r)
            d_old[i] = g[i] * r


@jit_distinct
def _update_backward(d, gi, gh, h, dgi, dh, o0, o1, i0, i1):  # type: ignore[no-untyped-def]
    one = h.dtype.type(1)
    for o in range(o0, o1):
        xu, xc, g, old = gi[o, 0, i0:i1], gi[o, 1, i0:i1], d[o, 0, i0:i1], h[o, 0, i0:i1]
        yu, yc = (xu, xc) if gh is None else (gh[o, 0, i0:i1], gh[o, 1, i0:i1])
        du, dc, d_old = dgi[o, 0, i0:i1], dgi[o, 1, i0:i1], dh[o, 0, i0:i1]
        for i in range(g.size):
            z = sigmoid(xu[i] if gh is None else xu[i] + yu[i])
            c = tanh(xc[i] if gh is None else xc[i] + yc[i])
            du[i] = g[i] * (c - old[i]) * z * (one - z)
            dc[i] = g[i] * z * (one - c * c)
            d_old[i] = g[i] * (one - z)


_FORWARD = {"gru": _gru, "mgu": _mgu, "indrnn": _indrnn, "gru_before_reset": _reset, "gru_before_update": _update}
_BACKWARD = {"gru": _gru_backward, "mgu": _mgu_backward, "indrnn": _indrnn_backward}
_BACKWARD |= {"gru_before_reset": _reset_backward, "gru_before_update": _update_backward}


def forward(options: Any, inputs: Any, saving: bool) -> tuple[Tensor]:
    """h' of the cell, in h's memory layout."""
    cell, h = options.cell, inputs.h
    rows = rows_of(cell, *inputs)
    out = torch.empty_like(rows.h)
    _run(_FORWARD[cell], rows, (*_arrays(rows.inputs), out.numpy(), None, None, 0))
    return (rows.restore(out, h.shape),)


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Gradients of gi, gh, h and u."""
    cell, (gi, gh, h, u) = options.cell, inputs
    rows, d = rows_of(cell, gi, gh, h, u), gradients[0].to(h.dtype)
    dgi, dh = torch.empty_like(rows.gi), torch.empty_like(rows.h)
    two = cell in ("gru", "mgu")
    dgh = torch.empty_like(rows.gi) if two else None
    outputs = (dgi, dgh, dh) if two else (dgi, dh)
    _run(_BACKWARD[cell], rows, _arrays((rows.like_h(d), *rows.inputs, *outputs)))
    d_gi = rows.restore(dgi, gi.shape)
    d_gh = None if gh is None else rows.restore(dgi if dgh is None else dgh, gh.shape)
    du = None
    if u is not None:
        du = (d_gi * h).sum([axis for axis in range(h.dim()) if axis != 1]).reshape(u.shape)
    return d_gi, d_gh, rows.restore(dh, h.shape), du


def update(
    cell: str,
    gi: Tensor,
    gh: Tensor | None,
    h: Tensor,
    u: Tensor | None,
    bias: Tensor | None,
    block: int,
    out: Tensor,
) -> None:
    """Writes h' into `out`, all of them (pixel, gates * channel) matrices; `out` may be `h`."""
    channels = h.shape[1]

    def split(matrix: Tensor | None) -> Any:
        return None if matrix is None else matrix.view(matrix.shape[0], -1, channels).numpy()

    second = split(gh) if u is None else u.numpy()
    offset = None if bias is None else bias.view(-1, channels).numpy()
    arrays = (split(gi), second, split(h), split(out), offset)
    kernel, kind = _FORWARD[cell], arrays[2].dtype

    def work(start: int, stop: int) -> None:
        kernel(*arrays, np.empty(channels, kind), block, start, stop, 0, channels)

    over_ranges(work, h.shape[0], max(GRAIN // channels, 1))


def _run(kernel: Any, rows: Rows, arrays: tuple[Any, ...]) -> None:
    outer, _, inner = rows.h.shape
    if outer >= torch.get_num_threads():
        over_ranges(lambda a, b: kernel(*arrays, a, b, 0, inner), outer, max(GRAIN // max(inner, 1), 1))
    else:
        over_ranges(lambda a, b: kernel(*arrays, 0, outer, a, b), inner, max(GRAIN // max(outer, 1), 1))


def _arrays(tensors: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    return tuple(None if tensor is None else tensor.detach().numpy() for tensor in tensors)
