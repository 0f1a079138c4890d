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
    """The loop over the depth; `arrays` are x, packed, out of `size` bytes a value."""
    x, packed, out = arrays
    word, lanes = ir.IntType(64), BYTES // size
    scalar = ir.FloatType() if size == 4 else ir.DoubleType()
    vector = ir.VectorType(scalar, lanes)
    kind = ir.FunctionType(vector, [vector] * 3)
    fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{lanes}f{8 * size}")  # type: ignore[no-untyped-call]
    depth, width = (cgutils.unpack_tuple(builder, a.shape)[1] for a in (x, out))  # type: ignore[no-untyped-call]
    numbers = [builder.add(row, word(r)) for r in range(rows)]
    lefts = [builder.gep(x.data, [builder.mul(r, depth)]) for r in numbers]
    targets = [builder.gep(out.data, [builder.add(builder.mul(r, width), column)]) for r in numbers]
    right = builder.gep(packed.data, [start])

    def place(pointer: Any, v: int) -> Any:
        return builder.bitcast(builder.gep(pointer, [word(v * lanes)]), vector.as_pointer())

    def spread(value: Any) -> Any:
        unset, first = ir.Constant(vector, ir.Undefined), ir.IntType(32)(0)
        mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        return builder.shuffle_vector(builder.insert_element(unset, value, first), unset, mask)

    before, loop, after = builder.block, builder.append_basic_block("depth"), builder.append_basic_block("stored")
    some = builder.icmp_signed(">", depth, word(0))
    builder.cbranch(some, loop, after)
    builder.position_at_end(loop)
    zero = ir.Constant(vector, [0.0] * lanes)
    k = builder.phi(word)
    sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)]
    base = builder.gep(right, [builder.mul(k, word(vectors * lanes))])
    values = [builder.load(place(base, v), align=size) for v in range(vectors)]
    news = []
    for r in range(rows):
        left = spread(builder.load(builder.gep(lefts[r], [k])))
        news.append([builder.call(fma, [left, values[v], sums[r][v]]) for v in range(vectors)])
    following = builder.add(k, word(1))
    for phi, new in [
        (k, following),
        *((s, n) for ss, ns in zip(sums, news, strict=True) for s, n in zip(ss, ns, strict=True)),
    ]:
        phi.add_incoming(word(0) if phi is k else zero, before)
        phi.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
    builder.position_at_end(after)
    totals = []
    for new in (n for ns in news for n in ns):
        total = builder.phi(vector)
        total.add_incoming(zero, before)
        total.add_incoming(new, loop)
        totals.append(total)
    for index, total in enumerate(totals):
        builder.store(total, place(targets[index // vectors], index % vectors), align=size)


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
