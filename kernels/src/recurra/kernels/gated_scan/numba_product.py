"""Matrix product of few rows with packed weights: the part of a time step that costs most.

A tile of rows by columns stays in registers while the depth runs, which takes LLVM's vectors by hand: its own
vectoriser keeps the sums in memory. README.md has the speed beside a BLAS.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor
from torch.nn.functional import pad

from recurra.kernels.jit import jit

# Bytes of a vector and vectors across a tile: 16 sums of 4 rows fit the registers of AVX-512, 8 those of others.
BYTES, ACROSS = (64, 4) if llvmlite.binding.get_host_cpu_features().get("avx512f") else (32, 2)
# Columns are padded to this many.
COLUMNS = 16


def pack(weights: Tensor) -> Any:
    """Weights (head, new, old) as (head, values): panels of columns, each with the depth `old` outermost."""
    heads, new, old = weights.shape
    lanes = BYTES // weights.element_size()
    columns = pad(weights.detach(), (0, 0, 0, -new % COLUMNS)).transpose(1, 2)  # (head, old, column)
    packed = np.empty((heads, columns.shape[2] * old), columns[:0].numpy().dtype)
    start = 0
    for vectors in (ACROSS, 2, 1):
        width = vectors * lanes
        count = (columns.shape[2] - start) // width
        stop = start + count * width
        panels = columns[:, :, start:stop].reshape(heads, old, count, width).transpose(1, 2)
        packed[:, start * old : stop * old] = panels.reshape(heads, count * old * width).numpy()
        start = stop
    return packed


def padded(columns: int) -> int:
    """Columns of a product's result."""
    return columns + -columns % COLUMNS


def _tile(rows: int, vectors: int) -> Callable[..., None]:
    """Compiled out[row : row + rows, column : ...] = x[row : row + rows] @ panel, `vectors` wide."""

    @intrinsic
    def tile(typing, x, row, packed, start, out, column):  # type: ignore[no-untyped-def]
        def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
            arrays = [context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 2, 4)]
            _emit(builder, arrays, signature.args[0].dtype.bitwidth // 8, args[1], args[3], args[5], rows, vectors)
            return context.get_dummy_value()

        return types.void(x, row, packed, start, out, column), build

    return tile


def _emit(builder: Any, arrays: Any, size: int, row: Any, start: Any, column: Any, rows: int, vectors: int) -> None:
    """One tile; `arrays` are x, packed, out of `size` bytes a value."""
    x, packed, out = arrays
    word = ir.IntType(64)
    vector = ir.VectorType(ir.FloatType() if size == 4 else ir.DoubleType(), BYTES // size)
    depth, width = (cgutils.unpack_tuple(builder, a.shape)[1] for a in (x, out))  # type: ignore[no-untyped-call]
    numbers = [builder.add(row, word(r)) for r in range(rows)]
    lefts = [builder.gep(x.data, [builder.mul(r, depth)]) for r in numbers]
    targets = [builder.gep(out.data, [builder.add(builder.mul(r, width), column)]) for r in numbers]
    sums = _over_depth(builder, lefts, builder.gep(packed.data, [start]), depth, vector, vectors)
    for index, total in enumerate(sums):
        builder.store(total, _place(builder, targets[index // vectors], index % vectors, vector), align=size)


def _over_depth(builder: Any, lefts: Any, right: Any, depth: Any, vector: Any, vectors: int) -> list[Any]:
    """Sums over k of left[k] * right[k, :], row by row, each in `vectors` vectors that stay in registers."""
    word, size = ir.IntType(64), BYTES // vector.count
    kind = ir.FunctionType(vector, [vector] * 3)
    name = f"llvm.fma.v{vector.count}f{8 * size}"
    fma = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
    before, loop, after = builder.block, builder.append_basic_block("depth"), builder.append_basic_block("stored")
    builder.cbranch(builder.icmp_signed(">", depth, word(0)), loop, after)
    builder.position_at_end(loop)
    k, zero = builder.phi(word), ir.Constant(vector, [0.0] * vector.count)
    sums = [builder.phi(vector) for _ in range(vectors * len(lefts))]
    base = builder.gep(right, [builder.mul(k, word(vectors * vector.count))])
    values = [builder.load(_place(builder, base, v, vector), align=size) for v in range(vectors)]
    spread = [_spread(builder, builder.load(builder.gep(left, [k])), vector) for left in lefts]
    pairs = [(left, value) for left in spread for value in values]
    new = [builder.call(fma, [left, value, old]) for (left, value), old in zip(pairs, sums, strict=True)]
    following = builder.add(k, word(1))
    for phi, first, then in [(k, word(0), following), *((s, zero, n) for s, n in zip(sums, new, strict=True))]:
        phi.add_incoming(first, before)
        phi.add_incoming(then, loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
    builder.position_at_end(after)
    totals = [builder.phi(vector) for _ in new]
    for total, value in zip(totals, new, strict=True):
        total.add_incoming(zero, before)
        total.add_incoming(value, loop)
    return totals


def _place(builder: Any, pointer: Any, index: int, vector: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [ir.IntType(64)(index * vector.count)]), vector.as_pointer())


def _spread(builder: Any, value: Any, vector: Any) -> Any:
    unset, lane = ir.Constant(vector, ir.Undefined), ir.IntType(32)
    mask = ir.Constant(ir.VectorType(lane, vector.count), [0] * vector.count)
    return builder.shuffle_vector(builder.insert_element(unset, value, lane(0)), unset, mask)


_wide4, _wide2, _wide1 = _tile(4, ACROSS), _tile(2, ACROSS), _tile(1, ACROSS)
_half4, _half1 = _tile(4, 2), _tile(1, 2)
_slim4, _slim1 = _tile(4, 1), _tile(1, 1)


@jit
def multiply(x, packed, out):  # type: ignore[no-untyped-def]
    """out (row, padded new) = x (row, old) @ the packed weights of one head."""
    rows, depth, width = x.shape[0], x.shape[1], out.shape[1]
    lanes = BYTES // out.itemsize
    column = 0
    while column < width:
        start = column * depth
        if width - column >= ACROSS * lanes:
            row = 0
            while row + 4 <= rows:
                _wide4(x, row, packed, start, out, column)
                row += 4
            if row + 2 <= rows:
                _wide2(x, row, packed, start, out, column)
                row += 2
            if row < rows:
                _wide1(x, row, packed, start, out, column)
            column += ACROSS * lanes
        elif width - column >= 2 * lanes:
            row = 0
            while row + 4 <= rows:
                _half4(x, row, packed, start, out, column)
                row += 4
            while row < rows:
                _half1(x, row, packed, start, out, column)
                row += 1
            column += 2 * lanes
        else:
            row = 0
            while row + 4 <= rows:
                _slim4(x, row, packed, start, out, column)
                row += 4
            while row < rows:
                _slim1(x, row, packed, start, out, column)
                row += 1
            column += lanes
