"""One step of every gated cell on tiles, forward and backward; equations in README.md, layouts in `_shapes`.

Tiles are (rows of the batch, units). Tuples stand in the order of the gates and of the states.
"""

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

from recurra.kernels.gpu_math import exp, inverse, sigmoid, tanh


@triton.jit
def cell_step(p, old, CELL: tl.constexpr):  # type: ignore[no-untyped-def]
    """The new state and the gates to save, from the sum of the input's and the recurrent part of every gate.

    Where a gate scales the recurrent part of the last one, that comes before the input's: p ends in (U h, W x).
    """
    if CELL == "elman_tanh":
        h = tanh(p[0])
        return (h,), (h,)
    elif CELL == "elman_relu":
        # Not maximum, which would hide a NaN.
        h = tl.where(p[0] <= 0, 0.0, p[0])
        return (h,), (h,)
    elif CELL == "gru":
        r, z = sigmoid(p[0]), sigmoid(p[1])
        n = tanh(p[3] + r * p[2])
        return (n + z * (old[0] - n),), (r, z, n, p[2])
    elif CELL == "gru_before":
        r, z, n = sigmoid(p[0]), sigmoid(p[1]), tanh(p[2])
        return (old[0] + z * (n - old[0]),), (r, z, n)
    elif CELL == "mgu":
        f, c = sigmoid(p[0]), tanh(p[1])
        return (old[0] + f * (c - old[0]),), (f, c)
    elif CELL == "mgu_after":
        f = sigmoid(p[0])
        c = tanh(p[2] + f * p[1])
        return (c + f * (old[0] - c),), (f, c, p[1])
    elif CELL == "lstm":
        i, f, g, o = sigmoid(p[0]), sigmoid(p[1]), tanh(p[2]), sigmoid(p[3])
        c = f * old[1] + i * g
        return (o * tanh(c), c), (i, f, g, o)
    else:
        return _slstm(p, old)


@triton.jit
def _slstm(p, old):  # type: ignore[no-untyped-def]
    a, b, z, o = p[0], p[1], tanh(p[2]), sigmoid(p[3])
    # log sigmoid; the sum's small term is lost only where the other is larger by its precision.
    kept = tl.minimum(b, 0.0) - tl.log(1 + exp(-tl.abs(b))) + old[3]
    m = tl.where(old[2] == 0, a, tl.maximum(a, kept))
    i, f = exp(a - m), exp(kept - m)
    c = f * old[1] + i * z
    n = tl.maximum(f * old[2] + i, 1.0)
    return (o * c * inverse(n), c, n, m), (i, f, z, o)


@triton.jit
def candidate_back(gates, d, CELL: tl.constexpr):  # type: ignore[no-untyped-def]
    """The gradient of the candidate of gru_before or mgu before its tanh."""
    if CELL == "gru_before":
        return d[0] * gates[1] * (1 - gates[2] * gates[2])
    else:
        return d[0] * gates[0] * (1 - gates[1] * gates[1])


@triton.jit
def before_back(gates, old, d, dn, through, CELL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Gradients of the gates of gru_before or mgu, and of h but for the gates' own product.

    dn is the candidate's gradient, `through` that of the scaled h.
    """
    if CELL == "gru_before":
        r, z, n = gates[0], gates[1], gates[2]
        dr = through * old[0] * r * (1 - r)
        dz = d[0] * (n - old[0]) * z * (1 - z)
        return (dr, dz, dn), (d[0] * (1 - z) + through * r,)
    else:
        f, c = gates[0], gates[1]
        df = (d[0] * (c - old[0]) + through * old[0]) * f * (1 - f)
        return (df, dn), (d[0] * (1 - f) + through * f,)


@triton.jit
def cell_back(gates, old, new, d, CELL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Gradients of the gates, of the last gate's recurrent part, and of the old state but for the gates' product.

    `old` and `new` are h where the cell has no other state, else the others.
    """
    if CELL == "elman_tanh":
        da = d[0] * (1 - new[0] * new[0])
        return (da,), da, (tl.zeros_like(da),)
    elif CELL == "elman_relu":
        da = tl.where(new[0] > 0, d[0], 0.0)
        return (da,), da, (tl.zeros_like(da),)
    elif CELL == "gru":
        r, z, n, u = gates[0], gates[1], gates[2], gates[3]
        dn = d[0] * (1 - z) * (1 - n * n)
        dz = d[0] * (old[0] - n) * z * (1 - z)
        return (dn * u * r * (1 - r), dz, dn), dn * r, (d[0] * z,)
    elif CELL == "mgu_after":
        f, c, u = gates[0], gates[1], gates[2]
        dc = d[0] * (1 - f) * (1 - c * c)
        df = (d[0] * (old[0] - c) + dc * u) * f * (1 - f)
        return (df, dc), dc * f, (d[0] * f,)
    elif CELL == "lstm":
        i, f, g, o = gates[0], gates[1], gates[2], gates[3]
        s = tanh(new[0])
        dc = d[1] + d[0] * o * (1 - s * s)
        da = d[0] * s * o * (1 - o)
        grads = (dc * g * i * (1 - i), dc * old[0] * f * (1 - f), dc * i * (1 - g * g), da)
        return grads, da, (tl.zeros_like(dc), dc * f)
    else:
        return _slstm_back(gates, old, new, d)


@triton.jit
def _slstm_back(gates, old, new, d):  # type: ignore[no-untyped-def]
    i, f, z, o = gates[0], gates[1], gates[2], gates[3]
    # n is at least 1 but in padding, where it is 0.
    c, n, m = new[0], tl.maximum(new[1], 1.0), new[2]
    c_old, n_old, m_old = old[0], old[1], old[2]
    over = inverse(n)
    q = d[0] * over
    do = q * c * o * (1 - o)
    dc = d[1] + q * o
    dn = d[2] - q * o * c * over
    # A maximum's gradient is halved where both are equal, as they are at every fresh start.
    raw = f * n_old + i
    dn *= tl.where(raw > 1, 1.0, tl.where(raw == 1, 0.5, 0.0))
    da = (dc * z + dn) * i
    dkept = (dc * c_old + dn * n_old) * f
    dm = d[3] - da - dkept
    # m is what its exponential is 1 of.
    kept_wins = tl.where(n_old == 0, 0.0, tl.where(f == 1, tl.where(i == 1, 0.5, 1.0), 0.0))
    da += (1 - kept_wins) * dm
    dkept += kept_wins * dm
    # kept = log sigmoid(b) + m_old and f = exp(kept - m): the sigmoid's value again. A vanished f has no gradient.
    gate = tl.where(f > 0, tl.minimum(f * exp(tl.minimum(m - m_old, 88.0)), 1.0), 0.0)
    db = dkept * (1 - gate)
    return (da, db, dc * i * (1 - z * z), do), do, (tl.zeros_like(dc), dc * f, dn * f, dkept)
