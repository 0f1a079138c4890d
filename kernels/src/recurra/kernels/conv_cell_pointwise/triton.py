"""CUDA backend: one program a block of values, gates in float32 (float64 for float64); README.md."""

from collections.abc import Sequence
from typing import Any

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from recurra.kernels.conv_cell_pointwise.layout import Rows, rows_of
from recurra.kernels.gpu_math import sigmoid, tanh

BLOCK, WARPS = 1024, 4
_NUMBER = {"gru": 0, "mgu": 1, "indrnn": 2, "gru_before_reset": 3, "gru_before_update": 4}


@triton.jit
def _places(total, inner, gates, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    flat = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    outer = flat // inner
    place = flat - outer * inner
    return flat, outer, place, outer * gates * inner + place, flat < total


@triton.jit
def _load(pointer, offset, mask, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(pointer + offset, mask=mask, other=0.0).to(WIDE)


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    gi, gh, h, out, total, inner, period,
    CELL: tl.constexpr, HIDDEN: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """h' for BLOCK values; `gh` holds u for indrnn."""
    gates: tl.constexpr = 3 if CELL == 0 else (2 if CELL == 1 or CELL == 4 else 1)
    flat, outer, place, first, mask = _places(total, inner, gates, BLOCK)
    old = _load(h, flat, mask, WIDE)
    a = _load(gi, first, mask, WIDE)
    if CELL == 2:
        scale = _load(gh, place if LAST else outer % period, mask, WIDE)
        s = a + scale * old
        new = tl.where(s <= 0, 0.0, s)
    else:
        if HIDDEN:
            a += _load(gh, first, mask, WIDE)
        if CELL == 0:
            z = sigmoid(_load(gi, first + inner, mask, WIDE) + _load(gh, first + inner, mask, WIDE))
            third = first + 2 * inner
            n = tanh(_load(gi, third, mask, WIDE) + sigmoid(a) * _load(gh, third, mask, WIDE))
            new = (1 - z) * n + z * old
        elif CELL == 1:
            f = sigmoid(a)
            c = tanh(_load(gi, first + inner, mask, WIDE) + f * _load(gh, first + inner, mask, WIDE))
            new = c + f * (old - c)
        elif CELL == 3:
            new = sigmoid(a) * old
        else:
            b = _load(gi, first + inner, mask, WIDE)
            if HIDDEN:
                b += _load(gh, first + inner, mask, WIDE)
            new = old + sigmoid(a) * (tanh(b) - old)
    tl.store(out + flat, new.to(out.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(  # type: ignore[no-untyped-def]
    d, gi, gh, h, dgi, dgh, dh, total, inner, period,
    CELL: tl.constexpr, HIDDEN: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of gi, gh (gru and mgu; elsewhere gi's) and h for BLOCK values."""
    gates: tl.constexpr = 3 if CELL == 0 else (2 if CELL == 1 or CELL == 4 else 1)
    flat, outer, place, first, mask = _places(total, inner, gates, BLOCK)
    kind = dgi.dtype.element_ty
    g = _load(d, flat, mask, WIDE)
    old = _load(h, flat, mask, WIDE)
    a = _load(gi, first, mask, WIDE)
    second = first + inner
    if CELL == 2:
        scale = _load(gh, place if LAST else outer % period, mask, WIDE)
        g = tl.where(a + scale * old <= 0, 0.0, g)
        tl.store(dgi + first, g.to(kind), mask=mask)
        d_old = g * scale
    else:
        if HIDDEN:
            a += _load(gh, first, mask, WIDE)
        gate = sigmoid(a)
        if CELL == 0:
            third = second + inner
            z = sigmoid(_load(gi, second, mask, WIDE) + _load(gh, second, mask, WIDE))
            hn = _load(gh, third, mask, WIDE)
            n = tanh(_load(gi, third, mask, WIDE) + gate * hn)
            dn = g * (1 - z) * (1 - n * n)
            dz = g * (old - n) * z * (1 - z)
            dr = dn * hn * gate * (1 - gate)
            tl.store(dgi + first, dr.to(kind), mask=mask)
            tl.store(dgi + second, dz.to(kind), mask=mask)
            tl.store(dgi + third, dn.to(kind), mask=mask)
            tl.store(dgh + first, dr.to(kind), mask=mask)
            tl.store(dgh + second, dz.to(kind), mask=mask)
            tl.store(dgh + third, (dn * gate).to(kind), mask=mask)
            d_old = g * z
        elif CELL == 1:
            hc = _load(gh, second, mask, WIDE)
            c = tanh(_load(gi, second, mask, WIDE) + gate * hc)
            dc = g * (1 - gate) * (1 - c * c)
            df = (g * (old - c) + dc * hc) * gate * (1 - gate)
            tl.store(dgi + first, df.to(kind), mask=mask)
            tl.store(dgi + second, dc.to(kind), mask=mask)
            tl.store(dgh + first, df.to(kind), mask=mask)
            tl.store(dgh + second, (dc * gate).to(kind), mask=mask)
            d_old = g * gate
        elif CELL == 3:
            tl.store(dgi + first, (g * old * gate * (1 - gate)).to(kind), mask=mask)
            d_old = g * gate
        else:
            b = _load(gi, second, mask, WIDE)
            if HIDDEN:
                b += _load(gh, second, mask, WIDE)
            c = tanh(b)
            tl.store(dgi + first, (g * (c - old) * gate * (1 - gate)).to(kind), mask=mask)
            tl.store(dgi + second, (g * gate * (1 - c * c)).to(kind), mask=mask)
            d_old = g * (1 - gate)
    tl.store(dh + flat, d_old.to(dh.dtype.element_ty), mask=mask)


def forward(options: Any, inputs: Any, saving: bool) -> tuple[Tensor]:
    """h' of the cell, in h's memory layout."""
    cell, h = options.cell, inputs.h
    rows = rows_of(cell, *inputs)
    out = torch.empty_like(rows.h)
    second = _second(rows)
    if out.numel():
        forward_kernel[_grid(rows)](
            rows.gi, second, rows.h, out, *_sizes(rows), *_constants(cell, rows), num_warps=WARPS
        )
    return (rows.restore(out, h.shape),)


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Gradients of gi, gh, h and u."""
    cell, (gi, gh, h, u) = options.cell, inputs
    rows, d = rows_of(cell, gi, gh, h, u), gradients[0].to(h.dtype)
    dgi, dh = torch.empty_like(rows.gi), torch.empty_like(rows.h)
    dgh = torch.empty_like(rows.gi) if cell in ("gru", "mgu") else dgi
    if dh.numel():
        backward_kernel[_grid(rows)](
            rows.like_h(d), rows.gi, _second(rows), rows.h, dgi, dgh, dh,
            *_sizes(rows), *_constants(cell, rows), num_warps=WARPS,
        )  # fmt: skip
    d_gi = rows.restore(dgi, gi.shape)
    du = None
    if u is not None:
        axes = [axis for axis in range(h.dim()) if axis != 1]
        wide = torch.promote_types(h.dtype, torch.float32)
        du = (d_gi.to(wide) * h.to(wide)).sum(axes).reshape(u.shape).to(u.dtype)
    return d_gi, None if gh is None else rows.restore(dgh, gh.shape), rows.restore(dh, h.shape), du


def _second(rows: Rows) -> Tensor:
    if rows.u is not None:
        return rows.u
    return rows.gi if rows.gh is None else rows.gh


def _grid(rows: Rows) -> tuple[int]:
    return (triton.cdiv(rows.h.numel(), BLOCK),)


def _sizes(rows: Rows) -> tuple[int, int, int]:
    period = 1 if rows.u is None else rows.u.shape[0]
    return rows.h.numel(), rows.h.shape[2], period


def _constants(cell: str, rows: Rows) -> tuple[int, bool, bool, tl.dtype, int]:
    wide = tl.float64 if rows.h.dtype == torch.float64 else tl.float32
    return _NUMBER[cell], rows.gh is not None, rows.channels_last, wide, BLOCK
