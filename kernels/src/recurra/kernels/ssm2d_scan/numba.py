"""CPU backend: row by row, column by column within a row, sixteen values of the width at a time; README.md."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra.kernels.jit import array, instance, jit, jit_distinct, over_grid
from recurra.kernels.sequences import wide

LANES = 16
# A thread is worth waking for this many values.
GRAIN = 1 << 15
# Unsigned, because an index that may count from the end keeps LLVM from vectorising; `_whole` and `_any` set it.
WIDTH = np.uint64(0)


def _inlined(function: Any) -> Any:
    return jit(function, forceinline=True)


def _whole(function: Any) -> Any:
    # Of a number of values that is known when it is compiled, the inner loop is one vector without a remainder.
    return jit_distinct(instance(function, f"{function.__name__}_whole", WIDTH=np.uint64(LANES)))


def _any(function: Any) -> Any:
    return jit_distinct(instance(function, f"{function.__name__}_any", WIDTH=np.uint64(0)))


def _cells(a, vary, b, above, out, state, first, lanes):  # type: ignore[no-untyped-def]
    # One row. No calls inside the loop: each would count references to its arrays.
    (a1, a2, a3, a4), (b1, b2), (h_above, g_above), (h, g), (h_left, g_left) = a, b, above, out, state
    vary1, vary2, vary3, vary4 = vary
    width = WIDTH if WIDTH > 0 else lanes
    for column in range(b1.shape[0]):
        t = np.uint64(column)
        t1, t2, t3, t4 = vary1 * t, vary2 * t, vary3 * t, vary4 * t
        for c in range(width):
            i = first + c
            new_h = a1[t1, i] * h_left[c] + a2[t2, i] * g_left[c] + b1[t, i]
            new_g = a3[t3, i] * h_above[t, i] + a4[t4, i] * g_above[t, i] + b2[t, i]
            h[t, i], g[t, i] = new_h, new_g
            h_left[c], g_left[c] = new_h, new_g


_row_whole, _row_any = _whole(_cells), _any(_cells)


@_inlined
def _at(a, row, v):  # type: ignore[no-untyped-def]
    # The coefficients of a row, whether or not they change from batch row to batch row and from row to row.
    return a[min(row, a.shape[0] - 1), min(v, a.shape[1] - 1)]


@_inlined
def _all_at(a, row, v):  # type: ignore[no-untyped-def]
    return _at(a[0], row, v), _at(a[1], row, v), _at(a[2], row, v), _at(a[3], row, v)


@jit
def _varies(x):  # type: ignore[no-untyped-def]
    return np.uint64(1 if x.shape[2] > 1 else 0)


@jit
def _forward(a, b, left, top, out, state, row, n0, n1):  # type: ignore[no-untyped-def]
    (b1, b2), (h, g), rows = b, out, b[0].shape[1]
    vary = _varies(a[0]), _varies(a[1]), _varies(a[2]), _varies(a[3])
    for first in range(n0, n1, LANES):
        lanes = min(LANES, n1 - first)
        for v in range(rows):
            state[0][:lanes] = left[0][row, v, first : first + lanes]
            state[1][:lanes] = left[1][row, v, first : first + lanes]
            above = (top[0][row], top[1][row]) if v == 0 else (h[row, v - 1], g[row, v - 1])
            b_row, out_row = (b1[row, v], b2[row, v]), (h[row, v], g[row, v])
            a_row, place, count = _all_at(a, row, v), np.uint64(first), np.uint64(lanes)
            if lanes == LANES:
                _row_whole(a_row, vary, b_row, above, out_row, state, place, count)
            else:
                _row_any(a_row, vary, b_row, above, out_row, state, place, count)


def _cells_back(a, vary, da, d_out, above, before, shift, db, d_above, d_left, columns, first, lanes):  # type: ignore[no-untyped-def]
    # Columns of one row, whose states one column before are at t + shift. d_above and d_left hold the adjoints that
    # come from the row below and the column behind, and take those for the row above and the column before.
    (a1, a2, a3, a4), (da1, da2, da3, da4), (h_before, g_before) = a, da, before
    (dh, dg), (h_above, g_above), (db1, db2) = d_out, above, db
    (dh_above, dg_above), (dh_left, dg_left) = d_above, d_left
    vary1, vary2, vary3, vary4 = vary
    width = WIDTH if WIDTH > 0 else lanes
    for column in range(columns[1] - 1, columns[0] - 1, -1):
        t, t_before = np.uint64(column), np.uint64(column) + shift
        t1, t2, t3, t4 = vary1 * t, vary2 * t, vary3 * t, vary4 * t
        for c in range(width):
            i = first + c
            p = dh[t, i] + dh_left[c] + dh_above[t, i]
            q = dg[t, i] + dg_left[c] + dg_above[t, i]
            db1[t, i], db2[t, i] = p, q
            dh_left[c], dg_left[c] = a1[t1, i] * p, a2[t2, i] * p
            dh_above[t, i], dg_above[t, i] = a3[t3, i] * q, a4[t4, i] * q
            da1[t1, i] += p * h_before[t_before, i]
            da2[t2, i] += p * g_before[t_before, i]
            da3[t3, i] += q * h_above[t, i]
            da4[t4, i] += q * g_above[t, i]


_row_back_whole, _row_back_any = _whole(_cells_back), _any(_cells_back)


@jit
def _add_fixed(da, part, v, first, lanes):  # type: ignore[no-untyped-def]
    # A row's sum for a coefficient that is the same in all columns: short sums first lose less to rounding.
    if da.shape[1] == 1:
        da[min(v, da.shape[0] - 1), 0, first : first + lanes] += part[0, first : first + lanes]
        part[:] = 0


@_inlined
def _target(da, part, v):  # type: ignore[no-untyped-def]
    return part if da.shape[1] == 1 else da[min(v, da.shape[0] - 1)]


@jit
def _backward(a, d_out, out, left, top, da, db, d_left, d_top, carry, parts, row, n0, n1):  # type: ignore[no-untyped-def]
    (h, g), rows, columns, minus = out, out[0].shape[1], out[0].shape[2], np.uint64(0) - np.uint64(1)
    vary = _varies(a[0]), _varies(a[1]), _varies(a[2]), _varies(a[3])
    da1, da2, da3, da4 = da[0][row], da[1][row], da[2][row], da[3][row]
    p1, p2, p3, p4 = parts
    d_above = d_top[0][row], d_top[1][row]
    for first in range(n0, n1, LANES):
        lanes = min(LANES, n1 - first)
        for v in range(rows - 1, -1, -1):
            carry[0][:], carry[1][:] = 0, 0
            above = (top[0][row], top[1][row]) if v == 0 else (h[row, v - 1], g[row, v - 1])
            targets = _target(da1, p1, v), _target(da2, p2, v), _target(da3, p3, v), _target(da4, p4, v)
            a_row, place, count = _all_at(a, row, v), np.uint64(first), np.uint64(lanes)
            dy, y, db_row = (d_out[0][row, v], d_out[1][row, v]), (h[row, v], g[row, v]), (db[0][row, v], db[1][row, v])
            start, here, behind = (left[0][row], left[1][row]), (0, min(1, columns)), (1, columns)
            if lanes == LANES:
                _row_back_whole(a_row, vary, targets, dy, above, y, minus, db_row, d_above, carry, behind, place, count)
            else:
                _row_back_any(a_row, vary, targets, dy, above, y, minus, db_row, d_above, carry, behind, place, count)
            _row_back_any(
                a_row, vary, targets, dy, above, start, np.uint64(v), db_row, d_above, carry, here, place, count
            )
            d_left[0][row, v, first : first + lanes] = carry[0][:lanes]
            d_left[1][row, v, first : first + lanes] = carry[1][:lanes]
            _add_fixed(da1, p1, v, first, lanes)
            _add_fixed(da2, p2, v, first, lanes)
            _add_fixed(da3, p3, v, first, lanes)
            _add_fixed(da4, p4, v, first, lanes)


def _arrays(values: Sequence[Tensor], kind: torch.dtype) -> tuple[Any, ...]:
    return tuple(array(value, kind) for value in values)


def _pair(shape: Sequence[int], kind: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty(*shape, dtype=kind), torch.empty(*shape, dtype=kind)


def forward(options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
    """h and g."""
    kind, shape = wide(inputs.b1.dtype), inputs.b1.shape
    a, b, left, top = (_arrays(inputs[i:j], kind) for i, j in ((0, 4), (4, 6), (6, 8), (8, 10)))
    out = _pair(shape, kind)
    written = _arrays(out, kind)
    grain = GRAIN // max(shape[1] * shape[2], 1)

    def work(row: int, n0: int, n1: int) -> None:
        _forward(a, b, left, top, written, _arrays(_pair((LANES,), kind), kind), row, n0, n1)

    over_grid(work, shape[0], shape[3], max(grain, LANES))
    return [t.to(inputs.b1.dtype) for t in out]


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Gradients of every input: the recurrence of the adjoints p of h and q of g, from the last cell to the first."""
    kind, (batch, rows, columns, width) = wide(inputs.b1.dtype), inputs.b1.shape
    a, left, top = (_arrays(inputs[i:j], kind) for i, j in ((0, 4), (6, 8), (8, 10)))
    out, d_out = _arrays(results[:2], kind), _arrays(gradients, kind)
    da = [torch.zeros((batch, *t.shape[1:]), dtype=kind) for t in inputs[:4]]
    db, d_left = _pair(inputs.b1.shape, kind), _pair((batch, rows, width), kind)
    d_top = torch.zeros(batch, columns, width, dtype=kind), torch.zeros(batch, columns, width, dtype=kind)
    written = tuple(_arrays(group, kind) for group in (da, db, d_left, d_top))

    def work(row: int, n0: int, n1: int) -> None:
        carry, parts = _arrays(_pair((LANES,), kind), kind), tuple(np.zeros((1, width), a[0].dtype) for _ in a)
        _backward(a, d_out, out, left, top, *written, carry, parts, row, n0, n1)

    grain = GRAIN // max(rows * columns, 1)
    over_grid(work, batch, width, max(grain, LANES))
    fixed = [t.sum(0, keepdim=True) if x.shape[0] == 1 != batch else t for t, x in zip(da, inputs[:4], strict=True)]
    return [*fixed, *db, *d_left, *d_top]
