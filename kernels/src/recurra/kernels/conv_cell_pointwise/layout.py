"""Any memory layout as rows (outer, gate, inner), so that one kernel serves all."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Contiguous views (or copies) of one call's arguments.

    Attributes:
        gi: (outer, gates, inner).
        gh: same, or None.
        h: (outer, 1, inner).
        u: (inner,) if the channel is innermost, (channel, 1) if it varies with the outer index, or None.
        channels_last: whether the channel is innermost.
    """

    gi: Tensor
    gh: Tensor | None
    h: Tensor
    u: Tensor | None
    channels_last: bool

    @property
    def inputs(self) -> tuple[Tensor | None, ...]:
        """What the kernels of the cell read, in their order."""
        return (self.gi, self.gh if self.u is None else self.u, self.h)

    def like_h(self, tensor: Tensor) -> Tensor:
        """A tensor of h's logical shape as rows."""
        moved = tensor.movedim(1, -1) if self.channels_last else tensor
        return moved.contiguous().reshape(self.h.shape)

    def restore(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Rows back to the logical shape (batch, channel, *spatial)."""
        if not self.channels_last:
            return rows.view(shape)
        return rows.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def rows_of(cell: str, gi: Tensor, gh: Tensor | None, h: Tensor, u: Tensor | None) -> Rows:
    """The arguments as rows; h's layout decides, others are copied where theirs differs."""
    batch, channels = h.shape[:2]
    last = not h.is_contiguous() and h.movedim(1, -1).is_contiguous()
    pixels = h[0, 0].numel() if batch and channels else 0
    # IndRNN scales by channel: outside channels-last a row is one channel, so that the scale is constant in it.
    if last:
        outer, inner = batch * pixels, channels
    elif cell == "indrnn":
        outer, inner = batch * channels, pixels
    else:
        outer, inner = batch, channels * pixels

    def rows(tensor: Tensor) -> Tensor:
        moved = tensor.movedim(1, -1) if last else tensor
        gates = tensor.shape[1] // max(channels, 1)
        return moved.detach().contiguous().reshape(outer, gates, inner)

    scale = None
    if u is not None:
        scale = u.detach().reshape(-1).contiguous() if last else u.detach().reshape(-1, 1).contiguous()
    return Rows(rows(gi), None if gh is None else rows(gh), rows(h), scale, last)
