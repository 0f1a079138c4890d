"""Steps in the order in which they are taken: what padding, episode borders and direction come down to."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recurra.kernels.sequences import wide


class Steps(NamedTuple):
    """Sequences in the order in which their steps are taken, and where they begin, pause and end.

    Attributes:
        x: (batch, time, ..., width), 0 in the padding.
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


def arrange(
    x: Tensor, start: Sequence[Tensor | None], lengths: Tensor | None, reset: Tensor | None, reverse: bool
) -> Steps:
    """The sequences x (batch, time, ...), and their borders, as steps in the order in which they are taken."""
    batch, length = x.shape[:2]
    kind, time = wide(x.dtype), torch.arange(x.shape[1], device=x.device)
    ends = torch.full((batch, 1), length, device=x.device) if lengths is None else lengths[:, None]
    live, first, final = time < ends, (time == 0).expand(batch, length), time == ends - 1
    if reverse:
        first, final = final, first & live
    fresh = live & (first if reset is None else first | reset)
    shown = torch.where(live.reshape(batch, length, *[1] * (x.dim() - 2)), x.detach().to(kind), 0)
    parts = [shown, live[..., None], fresh[..., None], (final & live)[..., None]]
    shown, live, fresh, final = (p.flip(1) if reverse else p for p in parts)
    return Steps(shown, tuple(s.detach().to(kind) for s in start if s is not None), live, fresh, final)


def following(value: Tensor) -> Tensor:
    """What belongs to the step after each, 0 at the last."""
    return torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
