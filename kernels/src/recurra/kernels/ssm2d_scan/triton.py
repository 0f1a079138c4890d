"""CUDA backend: a program walks over the rows of a batch row and scans each along its columns; README.md."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from recurra.kernels.gpu_scan import compose
from recurra.kernels.sequences import wide

# Values of a tile (columns times width), its greatest width, and the warps that hold it.
TILE, WIDTH, WARPS = 2048, 16, 8


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    a1, a2, a3, a4, b1, b2, left_h, left_g, above_h, above_g, h, g,
    a1_b, a1_v, a1_t, a2_b, a2_v, a2_t, a3_b, a3_v, a3_t, a4_b, a4_v, a4_t,
    cell_v, cell_t, rows, columns, width,
    WIDE: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """h and g of one batch row; above_h and above_g hold the row above in WIDE, and then the row itself."""
    batch = tl.cast(tl.program_id(0), tl.int64)
    n = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    there, place = n < width, tl.arange(0, COLUMNS)[:, None]
    a1, a2, a3, a4 = a1 + batch * a1_b + n, a2 + batch * a2_b + n, a3 + batch * a3_b + n, a4 + batch * a4_b + n
    cells, line = batch * rows * columns * width + n, batch * columns * width + n
    for row in range(rows):
        v = tl.cast(row, tl.int64)
        # g needs the row above alone.
        for first in range(0, columns, COLUMNS):
            t = tl.cast(first, tl.int64) + place
            mask, cell, old = (t < columns) & there, cells + v * cell_v + t * cell_t, line + t * width
            x = tl.load(above_h + old, mask=mask, other=0.0) * tl.load(a3 + v * a3_v + t * a3_t, mask=mask, other=0.0)
            x += tl.load(above_g + old, mask=mask, other=0.0) * tl.load(a4 + v * a4_v + t * a4_t, mask=mask, other=0.0)
            x += tl.load(b2 + cell, mask=mask, other=0.0).to(WIDE)
            tl.store(above_g + old, x, mask=mask)
            tl.store(g + cell, x.to(g.dtype.element_ty), mask=mask)
        tl.debug_barrier()  # other threads wrote the column before
        start = (batch * rows + v) * width + n
        carry = tl.load(left_h + start, mask=there, other=0.0).to(WIDE)
        g_left = tl.load(left_g + start, mask=there, other=0.0).to(WIDE)
        for first in range(0, columns, COLUMNS):
            t = tl.cast(first, tl.int64) + place
            mask, cell, old = (t < columns) & there, cells + v * cell_v + t * cell_t, line + t * width
            g_before = tl.load(above_g + old - width, mask=mask & (t > 0), other=0.0)
            x = tl.load(a2 + v * a2_v + t * a2_t, mask=mask, other=0.0).to(WIDE) * tl.where(t == 0, g_left, g_before)
            x += tl.load(b1 + cell, mask=mask, other=0.0).to(WIDE)
            a = tl.load(a1 + v * a1_v + t * a1_t, mask=mask, other=1.0).to(WIDE)
            x += tl.where(place == 0, a * carry, 0.0)
            _, x = tl.associative_scan((a, x), 0, compose)
            carry = tl.sum(tl.where(place == COLUMNS - 1, x, 0.0), 0)[None, :]
            tl.store(above_h + old, x, mask=mask)
            tl.store(h + cell, x.to(h.dtype.element_ty), mask=mask)
        tl.debug_barrier()


@triton.jit
def adjoint_kernel(  # type: ignore[no-untyped-def]
    a1, a2, a3, a4, dh, dg, d_above_h, d_above_g, p, q,
    a1_b, a1_v, a1_t, a2_b, a2_v, a2_t, a3_b, a3_v, a3_t, a4_b, a4_v, a4_t,
    cell_v, cell_t, rows, columns, width,
    WIDE: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """p and q of one batch row, in WIDE; d_above_h and d_above_g hold what the row below gives, and then the row."""
    batch = tl.cast(tl.program_id(0), tl.int64)
    n = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    there, place = n < width, tl.arange(0, COLUMNS)[:, None]
    a1, a2, a3, a4 = a1 + batch * a1_b + n, a2 + batch * a2_b + n, a3 + batch * a3_b + n, a4 + batch * a4_b + n
    cells, line = batch * rows * columns * width + n, batch * columns * width + n
    tiles = tl.cdiv(columns, COLUMNS)
    for above in range(rows):
        v = tl.cast(rows - 1 - above, tl.int64)
        # p needs what the row below gave alone.
        carry = tl.zeros((1, WIDTH), WIDE)
        for tile in range(tiles):
            t = tl.cast((tiles - 1 - tile) * COLUMNS, tl.int64) + place
            mask, cell, old = (t < columns) & there, cells + v * cell_v + t * cell_t, line + t * width
            x = tl.load(dh + cell, mask=mask, other=0.0).to(WIDE) + tl.load(d_above_h + old, mask=mask, other=0.0)
            a = tl.load(a1 + v * a1_v + (t + 1) * a1_t, mask=(t + 1 < columns) & there, other=1.0).to(WIDE)
            x += tl.where(place == COLUMNS - 1, a * carry, 0.0)
            _, x = tl.associative_scan((a, x), 0, compose, reverse=True)
            carry = tl.sum(tl.where(place == 0, x, 0.0), 0)[None, :]
            tl.store(p + cell, x, mask=mask)
        tl.debug_barrier()  # other threads wrote the column behind
        for first in range(0, columns, COLUMNS):
            t = tl.cast(first, tl.int64) + place
            mask, cell, old = (t < columns) & there, cells + v * cell_v + t * cell_t, line + t * width
            behind = (t + 1 < columns) & there
            x = tl.load(p + cell + cell_t, mask=behind, other=0.0)
            x *= tl.load(a2 + v * a2_v + (t + 1) * a2_t, mask=behind, other=0.0).to(WIDE)
            x += tl.load(dg + cell, mask=mask, other=0.0).to(WIDE) + tl.load(d_above_g + old, mask=mask, other=0.0)
            tl.store(q + cell, x, mask=mask)
            tl.store(d_above_h + old, tl.load(a3 + v * a3_v + t * a3_t, mask=mask, other=0.0).to(WIDE) * x, mask=mask)
            tl.store(d_above_g + old, tl.load(a4 + v * a4_v + t * a4_t, mask=mask, other=0.0).to(WIDE) * x, mask=mask)
        tl.debug_barrier()


@triton.jit
def _either(states, inner, border, outer, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    # A neighbour within the cells, or on their border.
    value = tl.load(states, mask=inner, other=0.0).to(WIDE)
    return value + tl.load(border, mask=outer, other=0.0).to(WIDE)


@triton.jit
def _coefficient(da, value, cell, part, n, mask, width, FULL: tl.constexpr):  # type: ignore[no-untyped-def]
    # Every value where the coefficient changes from cell to cell, else their sum over the tile.
    if FULL:
        tl.store(da + cell, value, mask=mask)
    else:
        tl.store(da + part * width + n, tl.sum(tl.where(mask, value, 0.0), 0)[None, :], mask=n < width)


@triton.jit
def coefficients_kernel(  # type: ignore[no-untyped-def]
    p, q, h, g, left_h, left_g, top_h, top_g, da1, da2, da3, da4, rows, columns, width,
    FULL1: tl.constexpr, FULL2: tl.constexpr, FULL3: tl.constexpr, FULL4: tl.constexpr,
    WIDE: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of a1 to a4 of COLUMNS cells of a batch row, whose states are known: no order among the programs."""
    chunks = tl.num_programs(1)
    batch, chunk = tl.cast(tl.program_id(0), tl.int64), tl.cast(tl.program_id(1), tl.int64)
    n = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)[None, :]
    place = chunk * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    v, t = place // columns, place % columns
    mask = (place < rows * columns) & (n < width)
    cell, part = (batch * rows * columns + place) * width + n, batch * chunks + chunk
    left, top = (batch * rows + v) * width + n, (batch * columns + t) * width + n
    adjoint, inner, outer = tl.load(p + cell, mask=mask, other=0.0), mask & (t > 0), mask & (t == 0)
    value = _either(h + cell - width, inner, left_h + left, outer, WIDE)
    _coefficient(da1, adjoint * value, cell, part, n, mask, width, FULL1)
    value = _either(g + cell - width, inner, left_g + left, outer, WIDE)
    _coefficient(da2, adjoint * value, cell, part, n, mask, width, FULL2)
    adjoint, inner, outer = tl.load(q + cell, mask=mask, other=0.0), mask & (v > 0), mask & (v == 0)
    up = cell - columns * width
    value = _either(h + up, inner, top_h + top, outer, WIDE)
    _coefficient(da3, adjoint * value, cell, part, n, mask, width, FULL3)
    value = _either(g + up, inner, top_g + top, outer, WIDE)
    _coefficient(da4, adjoint * value, cell, part, n, mask, width, FULL4)


class _Problem(NamedTuple):
    """The recurrence with its shorter axis as rows: transposed, h and g change their parts."""

    turned: bool
    a: list[Tensor]
    rows: int
    columns: int
    width: int

    def pair(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return (second, first) if self.turned else (first, second)

    def borders(self, left: Sequence[Tensor], top: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """What precedes the columns, and the rows."""
        return (top[::-1], left[::-1]) if self.turned else (left, top)

    def strides(self) -> list[int]:
        """Of the coefficients, 0 where they do not change, and of a cell along rows and columns."""
        steps = [0 if a.shape[axis] == 1 else a.stride(axis) for a in self.a for axis in range(3)]
        down, along = self.columns * self.width, self.width
        return [*steps, *((self.width, self.rows * self.width) if self.turned else (down, along))]

    def constants(self, dtype: torch.dtype) -> dict[str, Any]:
        """Tile and arithmetic."""
        width = min(WIDTH, triton.next_power_of_2(max(self.width, 1)))
        columns = min(TILE // width, max(16, triton.next_power_of_2(max(self.columns, 1))))
        return {"WIDE": tl.float64 if dtype == torch.float64 else tl.float32, "COLUMNS": columns, "WIDTH": width}


def _problem(inputs: Any) -> _Problem:
    _, rows, columns, width = inputs.b1.shape
    a = [x.detach().contiguous() for x in inputs[:4]]
    if rows > columns:
        return _Problem(True, [x.transpose(1, 2) for x in a[::-1]], columns, rows, width)
    return _Problem(False, a, rows, columns, width)


def _grid(problem: _Problem, batch: int, constants: dict[str, Any]) -> tuple[int, int]:
    return batch, triton.cdiv(problem.width, constants["WIDTH"])


def forward(options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
    """h and g."""
    problem, kind, b = _problem(inputs), wide(inputs.b1.dtype), [x.detach().contiguous() for x in inputs[4:6]]
    h, g = torch.empty_like(b[0]), torch.empty_like(b[1], dtype=b[0].dtype)
    if not h.numel():
        return h, g
    left, top = problem.borders(*([x.detach().contiguous() for x in inputs[i : i + 2]] for i in (6, 8)))
    above = [x.to(kind, copy=True) for x in top]
    constants = problem.constants(kind)
    forward_kernel[_grid(problem, h.shape[0], constants)](
        *problem.a, *problem.pair(*b), *left, *above, *problem.pair(h, g),
        *problem.strides(), problem.rows, problem.columns, problem.width, **constants, num_warps=WARPS,
    )  # fmt: skip
    return h, g


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Gradients of every input: the adjoints p and q by the reversed scan, those of the coefficients from them."""
    problem, kind, shape = _problem(inputs), wide(inputs.b1.dtype), inputs.b1.shape
    if not inputs.b1.numel():
        return [torch.zeros_like(x, dtype=kind) for x in inputs]
    p, q = (inputs.b1.new_empty(shape, dtype=kind) for _ in "pq")
    d_above = [inputs.b1.new_zeros((shape[0], problem.columns, shape[3]), dtype=kind) for _ in "hg"]
    constants = problem.constants(kind)
    adjoint_kernel[_grid(problem, shape[0], constants)](
        *problem.a, *problem.pair(*(d.contiguous() for d in gradients)), *d_above, *problem.pair(p, q),
        *problem.strides(), problem.rows, problem.columns, problem.width, **constants, num_warps=WARPS,
    )  # fmt: skip
    first = problem.pair(p, q)[0].select(1 if problem.turned else 2, 0)
    d_left = [(a[:, :, 0].to(kind) * first) for a in problem.a[:2]]
    (lefts, tops) = problem.borders(d_left, d_above)
    da = _coefficients(inputs, results, p, q) if any(wanted[:4]) else [None] * 4
    return [*da, p, q, *lefts, *tops]


def _coefficients(inputs: Any, results: Sequence[Tensor], p: Tensor, q: Tensor) -> list[Tensor]:
    batch, rows, columns, width = p.shape
    block = min(WIDTH, triton.next_power_of_2(width))
    tile = TILE // 2 // block  # it holds four products at once
    chunks = triton.cdiv(rows * columns, tile)
    full = [a.shape[1] * a.shape[2] > 1 for a in inputs[:4]]
    da = [p.new_empty(p.shape if each else (batch, chunks, 1, width)) for each in full]
    borders = [x.detach().contiguous() for x in inputs[6:]]
    coefficients_kernel[batch, chunks, triton.cdiv(width, block)](
        p, q, *(r.contiguous() for r in results[:2]), *borders, *da, rows, columns, width, *full,
        tl.float64 if p.dtype == torch.float64 else tl.float32, tile, block, num_warps=WARPS,
    )  # fmt: skip
    return [d.sum_to_size(a.shape) for d, a in zip(da, inputs[:4], strict=True)]
