"""Steps in the order in which they are taken: what padding, episode borders and direction come down to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recurra.kernels.sequences import wide


class Steps(NamedTuple):
    """Sequences in the order in which their steps are taken, and where they begin, pause and end.

    Attributes:
        x: (batch, time, [rows,] width), 0 in the padding.
        start: initial states, each (batch, width).
        live: (batch, time, 1), false in the padding.
        fresh: (batch, time, 1), true where a step starts from the initial state.
        final: (batch, time, 1), true at a sequence's last step.
    """

    x: Tensor
    start: tuple[Tensor, ...]
    live: Tensor
    fresh: Tensor
    final: Tensor

    def before(self, states: Sequence[Tensor]) -> list[Tensor]:
        """The state that each step starts from."""
        shifted = [torch.cat([s[:, :1], s[:, :-1]], 1) for s in states]
        return [torch.where(self.fresh, s0[:, None], s) for s0, s in zip(self.start, shifted, strict=True)]

    def last(self, states: Sequence[Tensor]) -> list[Tensor]:
        """The state that each sequence ends with."""
        empty = ~self.live.any(1)
        ends = [torch.where(self.final, s, 0).sum(1) for s in states]
        return [torch.where(empty, s0, end) for s0, end in zip(self.start, ends, strict=True)]

    def given(self, d_y: Tensor, d_last: Sequence[Tensor]) -> list[Tensor]:
        """Gradients that reach the state after each step from outside."""
        each = [torch.where(self.live, d_y, 0), *(torch.zeros_like(d_y) for _ in d_last[1:])]
        return [g + torch.where(self.final, d[:, None], 0) for g, d in zip(each, d_last, strict=True)]

    def pick(self, rows: Tensor) -> "Steps":
        """Some of the sequences."""
        x, start, *flags = self
        return Steps(x[rows], tuple(s[rows] for s in start), *(flag[rows] for flag in flags))


def arrange(options: Any, inputs: Any) -> Steps:
    """The sequences of a call as steps in the order in which they are taken."""
    wx, _, h0, c0, lengths, reset = inputs
    batch, length = wx.shape[:2]
    kind, time = wide(wx.dtype), torch.arange(wx.shape[1], device=wx.device)
    ends = torch.full((batch, 1), length, device=wx.device) if lengths is None else lengths[:, None]
    live, first, final = time < ends, (time == 0).expand(batch, length), time == ends - 1
    if options.reverse:
        first, final = final, first & live
    fresh = live & (first if reset is None else first | reset)
    x = torch.where(live.reshape(batch, length, *[1] * (wx.dim() - 2)), wx.to(kind), 0)
    parts = [x, live[..., None], fresh[..., None], (final & live)[..., None]]
    x, live, fresh, final = (p.flip(1) if options.reverse else p for p in parts)
    return Steps(x, tuple(s.detach().to(kind) for s in (h0, c0) if s is not None), live, fresh, final)
