"""States of the units: named tuples that go from one call to the next.

A state of None stands for zeros. The batch is the second axis of every tensor, the first counts layers and directions
as in torch.nn: (layer * direction, batch, ...), forward before backward.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Same = TypeVar("Same", bound="_Carried")


class _Carried:
    """What is done with a state between two calls."""

    __slots__ = ()

    def _each(self: Same, function: Any) -> Same:
        return type(self)(*(function(t) for t in self))  # type: ignore[attr-defined]

    def detach(self: Same) -> Same:
        """The state apart from the graph that made it, for truncated backpropagation through time."""
        return self._each(lambda t: t.detach())

    def to(self: Same, *args: Any, **kwargs: Any) -> Same:
        """The state on another device or in another dtype; arguments of `Tensor.to`."""
        return self._each(lambda t: t.to(*args, **kwargs))

    def select(self: Same, batch: int | slice | Sequence[int] | Tensor) -> Same:
        """The state of some sequences of the batch; the batch axis stays, also for one number.

        Args:
            batch: a number, a slice, numbers, or a tensor of numbers or flags (batch,).
        """
        if isinstance(batch, int):
            batch = [batch]
        index = batch if isinstance(batch, slice | Tensor) else list(batch)
        return self._each(lambda t: t[:, index])

    def reorder(self: Same, index: Tensor) -> Same:
        """The state whose sequence i was sequence index[i], as a beam search wants it.

        Args:
            index: (new batch,) of integers; a number may come several times.
        """
        if index.dim() != 1 or index.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"index has shape {tuple(index.shape)} of {index.dtype}; expected (batch,) of torch.int64")
        return self._each(lambda t: t.index_select(1, index))


class _Hidden(NamedTuple):
    h: Tensor


class HiddenState(_Carried, _Hidden):
    """State of `GRU`, `MGU`, `Elman`, `IndRNN`, `DiagGRU`, `LinearRecurrence` (layer * direction, batch, hidden).

    That of `S4D` is complex or real, (1, batch, input, hidden).
    """

    __slots__ = ()


class _Cell(NamedTuple):
    h: Tensor
    c: Tensor


class CellState(_Carried, _Cell):
    """State of `LSTM` and `DiagLSTM`: h (layer * direction, batch, hidden | projection) and cell c (.., hidden)."""

    __slots__ = ()


class _Exponential(NamedTuple):
    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor


class ExponentialState(_Carried, _Exponential):
    """State of `SLSTM`: h, cell c, normaliser n and stabiliser m, each (layer * direction, batch, hidden)."""

    __slots__ = ()


class _Grid(NamedTuple):
    h: Tensor
    g: Tensor


class GridState(_Carried, _Grid):
    """State of `SSM2D` in its last column: h and g, each (direction, batch, row, hidden)."""

    __slots__ = ()


class _Window(NamedTuple):
    past: Tensor


class WindowState(_Carried, _Window):
    """What units with a finite window remember: the last frames, (part, batch, frame, ...); part is 1 of `FSMN`."""

    __slots__ = ()


class _ComplexWindow(NamedTuple):
    real1: Tensor
    imag1: Tensor
    real2: Tensor
    imag2: Tensor


class ComplexWindowState(_Carried, _ComplexWindow):
    """State of `ComplexFSMN`: last frames of its four memories, each (real and imaginary, batch, frame, width)."""

    __slots__ = ()
