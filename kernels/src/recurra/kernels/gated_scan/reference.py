"""One step of every gated cell; equations and their sources in README.md."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from recurra.kernels.sequences import loop, stacked, wide


def product(r: Tensor, h: Tensor) -> list[Tensor]:
    """U h of each gate in r (gate, head, new, old), each (batch, head, new)."""
    return list(torch.einsum("gnde,bne->gbnd", r, h).unbind(0))


def elman_tanh(h: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    """Elman's unit."""
    return ((x[:, 0] + product(u, h)[0]).tanh(),)


def elman_relu(h: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    """Elman's unit with a rectifier."""
    return ((x[:, 0] + product(u, h)[0]).relu(),)


def gru(h: Tensor, x: Tensor, u: Tensor, c_n: Tensor) -> tuple[Tensor, ...]:
    """Reset after the product (torch.nn.GRU): z keeps the old state."""
    u_r, u_z, u_n = product(u, h)
    r, z = (x[:, 0] + u_r).sigmoid(), (x[:, 1] + u_z).sigmoid()
    n = (x[:, 2] + r * (u_n + c_n)).tanh()
    return ((1 - z) * n + z * h,)


def gru_before(h: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    """Reset before the product (Cho et al. 2014): z takes the new candidate."""
    u_r, u_z = product(u[:2], h)
    r, z = (x[:, 0] + u_r).sigmoid(), (x[:, 1] + u_z).sigmoid()
    n = (x[:, 2] + product(u[2:], r * h)[0]).tanh()
    return ((1 - z) * h + z * n,)


def mgu(h: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    """Minimal gated unit (Zhou et al. 2016): f takes the new candidate."""
    f = (x[:, 0] + product(u[:1], h)[0]).sigmoid()
    c = (x[:, 1] + product(u[1:], f * h)[0]).tanh()
    return ((1 - f) * h + f * c,)


def mgu_after(h: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    """The minimal gated unit of CIRIM: f keeps the old state."""
    u_f, u_c = product(u, h)
    f = (x[:, 0] + u_f).sigmoid()
    c = (x[:, 1] + f * u_c).tanh()
    return ((1 - f) * c + f * h,)


def lstm(h: Tensor, c: Tensor, x: Tensor, u: Tensor, projection: Tensor | None = None) -> tuple[Tensor, ...]:
    """torch.nn.LSTM, with its projection where one is given."""
    i, f, g, o = (x[:, k] + u_k for k, u_k in enumerate(product(u, h)))
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if projection is None else product(projection[None], h)[0]), c


def slstm(h: Tensor, c: Tensor, n: Tensor, m: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    """Exponential gates, stabilised by m, which starts afresh wherever n is 0."""
    i, f, z, o = (x[:, k] + u_k for k, u_k in enumerate(product(u, h)))
    kept = logsigmoid(f) + m
    m = torch.where(n == 0, i, torch.maximum(i, kept))
    i, f = (i - m).exp(), (kept - m).exp()
    c = f * c + i * z.tanh()
    n = torch.maximum(f * n + i, torch.ones_like(n))
    return o.sigmoid() * c / n, c, n, m


STEPS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    step.__name__: step for step in (elman_tanh, elman_relu, gru, gru_before, mgu, mgu_after, lstm, slstm)
}


def gated_scan(options: Any, inputs: Any) -> tuple[Tensor, ...]:
    """y and the last state, by a loop over time."""
    carried = wide(inputs.wx.dtype)
    x, u = inputs.wx.to(carried), inputs.r.to(carried)
    fixed = [u]
    if inputs.bias is not None:
        bias = inputs.bias.to(carried)
        x = x + bias[: x.shape[2]]
        fixed += [bias[3]] if options.cell == "gru" else []
    elif options.cell == "gru":
        fixed.append(u.new_zeros(()))
    if inputs.projection is not None:
        fixed.append(inputs.projection.to(carried))
    step = STEPS[options.cell]
    states, last = loop(
        lambda *old_and_x: step(*old_and_x, *fixed),
        (x,),
        tuple(s.to(carried) for s in (inputs.h, inputs.c, inputs.n, inputs.m) if s is not None),
        lengths=inputs.lengths,
        reset=inputs.reset,
        reverse=options.reverse,
    )
    y = stacked([s[0] for s in states], x, (x.shape[0], 0, *inputs.h.shape[1:]))
    return y.to(inputs.wx.dtype), *last
