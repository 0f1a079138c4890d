"""What a backward pass does before and after its loop over time, in plain torch."""

from typing import Any

import torch
from torch import Tensor


def before(values: Tensor, first: Tensor, inputs: Any, *, reverse: bool) -> Tensor:
    """States (batch, time, ...) as they were before each step: one step earlier, `first` where a sequence begins."""
    steps, first = values.shape[1], first.to(values.dtype)[:, None]
    if steps == 0:
        return values
    parts = [values[:, 1:], first] if reverse else [first, values[:, :-1]]
    shifted = torch.cat(parts, 1)
    fresh = inputs.reset
    if reverse and inputs.lengths is not None:
        start = torch.arange(steps, device=values.device) == inputs.lengths[:, None] - 1
        fresh = start if fresh is None else fresh | start
    return (
        shifted
        if fresh is None
        else torch.where(fresh.reshape(*fresh.shape, *[1] * (values.dim() - 2)), first, shifted)
    )


def gates_again(options: Any, inputs: Any, old: Tensor) -> Tensor:
    """The gates that `save="gates"` would have kept, from the states h before each step."""
    x, r = inputs.wx.to(old.dtype), inputs.r.to(old.dtype)
    if inputs.lengths is not None:  # the padding may hold NaN
        live = torch.arange(x.shape[1], device=x.device) < inputs.lengths[:, None]
        x = torch.where(live[..., None, None, None], x, 0)
    inner = x.new_zeros(()) if inputs.bias is None or options.cell != "gru" else inputs.bias[3].to(old.dtype)
    if inputs.bias is not None:
        x = x + inputs.bias[: x.shape[2]].to(old.dtype)

    def recurrent(rows: slice, state: Tensor) -> Tensor:
        found: Tensor = torch.einsum("gnde,btne->btgnd", r[rows], state)
        return found

    if options.cell in ("lstm", "slstm"):
        gates: Tensor = x + recurrent(slice(4), old)
        if options.cell == "slstm":
            return gates
        return torch.cat([gates[:, :, :2].sigmoid(), gates[:, :, 2:3].tanh(), gates[:, :, 3:].sigmoid()], 2)
    if options.cell in ("gru", "mgu_after"):
        u = recurrent(slice(len(r)), old)
        opened, inside = (x[:, :, :-1] + u[:, :, :-1]).sigmoid(), u[:, :, -1:] + inner
        return torch.cat([opened, (x[:, :, -1:] + opened[:, :, :1] * inside).tanh(), inside], 2)
    opened = (x[:, :, :-1] + recurrent(slice(len(r) - 1), old)).sigmoid()
    last = (x[:, :, -1:] + recurrent(slice(len(r) - 1, None), opened[:, :, 0] * old)).tanh()
    return torch.cat([opened, last], 2)


def weight_gradients(options: Any, inputs: Any, gates: Tensor, old: Tensor, dwx: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of r and bias, from the gates, the h before each step and the gradient of wx."""
    if options.cell == "gru":
        inside = dwx[:, :, 2:] * gates[:, :, :1]
        dr = torch.cat([outer(dwx[:, :, :2], old), outer(inside, old)])
        return dr, torch.cat([dwx.sum((0, 1)), inside.sum((0, 1))])
    if options.cell == "mgu_after":
        dr = torch.cat([outer(dwx[:, :, :1], old), outer(dwx[:, :, 1:] * gates[:, :, :1], old)])
    elif options.cell in ("gru_before", "mgu"):
        dr = torch.cat([outer(dwx[:, :, :-1], old), outer(dwx[:, :, -1:], gates[:, :, 0] * old)])
    else:
        dr = outer(dwx, old)
    return dr, dwx.sum((0, 1))


def outer(results: Tensor, operands: Tensor) -> Tensor:
    """Gradient (gate, head, new, old) of weights from (batch, time, gate, head, new) by (batch, time, head, old)."""
    _, _, gates, heads, new = results.shape
    if heads > 1:
        return torch.einsum("btgnd,btne->gnde", results, operands)
    left, right = results.reshape(-1, gates * new), operands.reshape(-1, operands.shape[3])
    return (left.t() @ right).view(gates, 1, new, right.shape[1])
