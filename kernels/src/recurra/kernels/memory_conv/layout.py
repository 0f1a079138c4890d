"""How the backends take the tensors of a memory, whose input is a list of buffers."""

from typing import Self

from torch import Tensor

# As many buffers as a CUDA kernel takes pointers.
BUFFERS = 8


class Inputs(tuple[Tensor | None, ...]):
    """weight (output, member, tap), lengths (batch,), past (batch, left * dilation, channel), then the buffers.

    Attributes:
        buffers: each (batch, time, channel); their concatenation is the input.
    """

    def __new__(cls, weight: Tensor, lengths: Tensor | None, past: Tensor | None, *buffers: Tensor) -> Self:
        """One flat tuple, whose length depends on the number of buffers."""
        return super().__new__(cls, (weight, lengths, past, *buffers))

    @property
    def weight(self) -> Tensor:
        """(output, member, tap)."""
        assert self[0] is not None
        return self[0]

    @property
    def lengths(self) -> Tensor | None:
        """(batch,), steps of each sequence."""
        return self[1]

    @property
    def past(self) -> Tensor | None:
        """(batch, left * dilation, channel), the steps before the first."""
        return self[2]

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """The parts of the input, along the channels."""
        return self[3:]  # type: ignore[return-value]


def mirror(weight: Tensor, channels: int) -> Tensor:
    """The weight (channel, output of its group, tap) by which dx is a window over dy: taps reversed, groups turned."""
    outputs, members, taps = weight.shape
    groups = channels // members
    grouped = weight.reshape(groups, outputs // groups, members, taps)
    return grouped.flip(3).transpose(1, 2).reshape(channels, outputs // groups, taps)
