"""CPU backend: the whole loop over time is one compiled function; weight gradients are one product after it.

Work is done in float32, or float64 for float64. Heads and sequences are independent, so threads share them out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra.kernels.gated_scan import FORMS, kept_dtype, numba_cells, numba_loops
from recurra.kernels.gated_scan.gradients import before, gates_again, outer, weight_gradients
from recurra.kernels.gated_scan.numba_product import pack, padded
from recurra.kernels.jit import array, flags_array, lengths_array, over_ranges
from recurra.kernels.sequences import wide

# A thread is worth waking for this many multiplications.
GRAIN = 1 << 20
# Sequences that run side by side: more would leave the cache.
ROWS = 64
CELLS: dict[str, type[numba_cells.Packed]] = {
    "elman_tanh": numba_cells.ElmanTanh,
    "elman_relu": numba_cells.ElmanRelu,
    "gru": numba_cells.Gru,
    "gru_before": numba_cells.GruBefore,
    "mgu": numba_cells.Mgu,
    "mgu_after": numba_cells.MguAfter,
    "lstm": numba_cells.Lstm,
    "slstm": numba_cells.Slstm,
}


def _cell(options: Any, inputs: Any) -> type[numba_cells.Packed]:
    return CELLS[options.cell] if inputs.projection is None else numba_cells.LstmProjected


def _weights(options: Any, inputs: Any) -> tuple[Tensor, Tensor | None]:
    """Weights (head, new, old) of a step's first product, and of the second where there is one."""
    r = inputs.r.detach().to(wide(inputs.wx.dtype))
    split = {"gru_before": 2, "mgu": 1}.get(options.cell, len(r))
    first = r[:split].transpose(0, 1).flatten(1, 2)
    if inputs.projection is not None:
        return first, inputs.projection.detach().to(r.dtype)
    return first, r[split] if split < len(r) else None


def _packed(options: Any, inputs: Any, *, back: bool) -> numba_cells.Packed:
    first, second = _weights(options, inputs)
    turned = [w.transpose(1, 2) if back and w is not None else w for w in (first, second)]
    none = np.empty((len(first), 0), first[:0].numpy().dtype)
    return _cell(options, inputs)(*(none if w is None else pack(w) for w in turned))


def _over_sequences(work: Any, inputs: Any) -> None:
    """Calls work(head, first sequence, number of sequences) for all, over torch's threads."""
    batch, steps, gates, heads, width = inputs.wx.shape

    def part(start: int, stop: int) -> None:
        while start < stop:
            n, b = divmod(start, batch)
            count = min(stop - start, batch - b, ROWS)
            work(n, b, count)
            start += count

    products = max(steps * gates * width * inputs.r.shape[3], 1)
    over_ranges(part, batch * heads, -(-GRAIN // products))


def _others(states: Sequence[Tensor | None], like: Tensor, dtype: torch.dtype) -> Tensor:
    """The states but h in one tensor (batch, state, head, width)."""
    found = [s.detach().to(dtype) for s in states if s is not None]
    return torch.stack(found, 1) if found else like.new_empty((like.shape[0], 0, *like.shape[3:]), dtype=dtype)


def forward(options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
    """y, the last state, and what `_shapes` says is saved."""
    wx, kind, form = inputs.wx, wide(inputs.wx.dtype), FORMS[options.cell]
    batch, steps, _, heads, width = wx.shape
    keep = saving and options.save == "gates" and form.saved > 0
    new = torch.empty if inputs.lengths is None else torch.zeros
    y = new((batch, steps, heads, inputs.h.shape[2]), dtype=kind)
    gates = new((batch, steps if keep else 0, form.saved, heads, width), dtype=kind)
    count = len(form.states) - 1
    states = new((batch, steps if saving else 0, count, heads, width), dtype=kind)
    h_last, rest_last = torch.empty(inputs.h.shape, dtype=kind), torch.empty((batch, count, heads, width), dtype=kind)
    bias = wx.new_zeros((form.biases, heads, width)) if inputs.bias is None else inputs.bias
    fixed = array(wx, kind), array(bias, kind), array(inputs.h, kind), _others(inputs[5:8], wx, kind).numpy()
    how = lengths_array(inputs.lengths, batch, steps), flags_array(inputs.reset), options.reverse
    cell = _packed(options, inputs, back=False)
    outputs = tuple(t.numpy() for t in (y, gates, states, h_last, rest_last))
    columns = [0 if w is None else w.shape[1] for w in _weights(options, inputs)]

    def work(n: int, b: int, rows: int) -> None:
        shapes = (y.shape[3],), (count, width), (padded(columns[0]),), (width,), (padded(columns[1]),)
        scratch = [np.zeros((rows, *shape), outputs[0].dtype) for shape in shapes]
        spare = np.empty((1, 1, max(form.saved, 1), heads, width), outputs[0].dtype)
        last = spare, np.empty(rows, np.int64)
        numba_loops.forward_loop(cell, *fixed, *how, keep, saving, outputs, (*scratch, *last), n, b)

    _over_sequences(work, inputs)
    results = [y.to(wx.dtype), h_last, *(s.contiguous() for s in rest_last.unbind(1))]
    if keep:
        narrow = kept_dtype(options.cell, wx.dtype)
        results.append(gates.clamp_(-65504, 65504).to(narrow) if narrow == torch.float16 else gates.to(narrow))
    return [*results, states] if saving and count else results


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Gradients by the loop backwards, then those of the weights."""
    wx, kind, form = inputs.wx, wide(inputs.wx.dtype), FORMS[options.cell]
    heads, width = wx.shape[3:]
    y, saved, count = results[0].to(kind), results[1 + len(form.states) :], len(form.states) - 1
    old = before(y, inputs.h, inputs, reverse=options.reverse).contiguous()
    rest0 = _others(inputs[5:8], wx, kind)
    rest = saved[-1].contiguous() if count else y.new_empty((*y.shape[:2], 0, heads, width))
    old_rest = before(rest, rest0, inputs, reverse=options.reverse)
    if form.saved == 0:
        gates = y.unsqueeze(2)
    else:
        gates = saved[0].to(kind) if options.save == "gates" else gates_again(options, inputs, old)
    trail = tuple(t.detach().contiguous() for t in (gates, old, old_rest, rest))
    dwx, d_projected, dh0, drest0 = _loop_back(options, inputs, trail, gradients)
    dr, dbias = weight_gradients(options, inputs, gates, old, dwx) if wanted[1] or wanted[2] else (None, None)
    d_projection = None
    if inputs.projection is not None and wanted[3]:
        d_projection = outer(d_projected.unsqueeze(2), gates[:, :, 3] * rest[:, :, 0].tanh())[0]
    others = [*drest0.unbind(1), None, None, None][:3]
    return dwx, dr, None if inputs.bias is None else dbias, d_projection, dh0, *others, None, None


def _loop_back(options: Any, inputs: Any, trail: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of wx, of the projection's result, of h and of the other initial states."""
    wx, kind = inputs.wx, wide(inputs.wx.dtype)
    batch, steps, _, heads, width = wx.shape
    new = torch.empty if inputs.lengths is None else torch.zeros
    hidden, count = inputs.h.shape[2], trail[3].shape[2]
    found = [
        new(wx.shape, dtype=kind),
        new((batch, steps if inputs.projection is not None else 0, heads, hidden), dtype=kind),
    ]
    found += [torch.zeros(inputs.h.shape, dtype=kind), torch.zeros((batch, count, heads, width), dtype=kind)]
    outputs, saved = tuple(t.numpy() for t in found), tuple(t.numpy() for t in trail)
    last = array(gradients[1], kind), _others(gradients[2:], wx, kind).numpy()
    how = lengths_array(inputs.lengths, batch, steps), flags_array(inputs.reset), options.reverse
    cell, dy = _packed(options, inputs, back=True), array(gradients[0], kind)
    columns = [0 if w is None else w.shape[1] for w in _weights(options, inputs)]

    def work(n: int, b: int, rows: int) -> None:
        shapes = (hidden,), (count, width), (columns[0],), (padded(hidden),), (columns[1],), (padded(width),)
        scratch = [np.zeros((rows, *shape), dy.dtype) for shape in shapes]
        numba_loops.backward_loop(cell, saved, dy, last, *how, outputs, (*scratch, np.empty(rows, np.int64)), n, b)

    _over_sequences(work, inputs)
    return found
