"""h[v,t] = a1 h[v,t-1] + a2 g[v,t-1] + b1, g[v,t] = a3 h[v-1,t] + a4 g[v-1,t] + b2."""

from typing import Any

import torch
from torch import Tensor

from recurra.kernels.sequences import wide


def ssm2d_scan(options: Any, inputs: Any) -> tuple[Tensor, Tensor]:
    """h and g, by a loop over rows and columns."""
    dtype, shape = inputs.b1.dtype, inputs.b1.shape
    inputs = inputs._make(x.to(wide(dtype)) for x in inputs)
    if not inputs.b1.numel():
        return _nothing(inputs).to(dtype), _nothing(inputs).to(dtype)
    # Unbound, not indexed: each index's gradient would fill a tensor as large as the whole.
    grids = [[row.unbind(1) for row in x.expand(shape).unbind(1)] for x in inputs[:6]]
    above = list(zip(inputs.top_h.unbind(1), inputs.top_g.unbind(1), strict=True))
    rows_h, rows_g = [], []
    for v, (h, g) in enumerate(zip(inputs.left_h.unbind(1), inputs.left_g.unbind(1), strict=True)):
        row = []
        for t, (h_above, g_above) in enumerate(above):
            a1, a2, a3, a4, b1, b2 = (grid[v][t] for grid in grids)
            h, g = a1 * h + a2 * g + b1, a3 * h_above + a4 * g_above + b2
            row.append((h, g))
        above = row
        rows_h.append(torch.stack([h for h, _ in row], 1))
        rows_g.append(torch.stack([g for _, g in row], 1))
    return torch.stack(rows_h, 1).to(dtype), torch.stack(rows_g, 1).to(dtype)


def _nothing(inputs: Any) -> Tensor:
    # An empty result that still depends on every input, as its gradients' owner expects.
    borders = inputs.left_h[:, :, None] + inputs.left_g[:, :, None] + inputs.top_h[:, None] + inputs.top_g[:, None]
    result: Tensor = sum(inputs[:6], borders)
    return result
