"""What all operations over time share: padding, episode borders, direction, dtypes and their checks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of carried states and arithmetic: float32 for 16 bit, else the dtype itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def loop(
    step: Callable[..., tuple[Tensor, ...]],
    xs: Sequence[Tensor],
    state: tuple[Tensor, ...],
    *,
    lengths: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> tuple[list[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """States after every step, and the last: the definition of every scan over time.

    A sequence's padding leaves its state alone, which in reverse makes it start at its own last step.

    Args:
        step: (state..., x_t...) -> new state.
        xs: each (batch, time, ...), or (1 | batch, 1, ...) for what does not change.
        state: the initial state, each (batch, ...).
        lengths: (batch,), steps of each sequence.
        reset: (batch, time), true where the state is set to the initial one before the step.
        reverse: from the last step to the first.

    Returns:
        For every step in order of time its state, zero in the padding; and the state after each sequence's end.
    """
    steps = 0 if any(x.shape[1] == 0 for x in xs) else max(x.shape[1] for x in xs)
    initial, states = state, []
    # Unbound, not indexed: each index's gradient would fill a tensor as large as all steps.
    parts = [x.unbind(1) if x.shape[1] == steps else x.unbind(1) * steps for x in map(_masked(lengths, steps), xs)]
    for t in reversed(range(steps)) if reverse else range(steps):
        old = state
        if reset is not None:
            old = tuple(torch.where(_like(reset[:, t], s), i, s) for i, s in zip(initial, state, strict=True))
        new = step(*old, *(part[t] for part in parts))
        if lengths is None:
            state = new
            states.append(new)
        else:
            live = t < lengths
            state = tuple(torch.where(_like(live, s), n, s) for n, s in zip(new, state, strict=True))
            states.append(tuple(torch.where(_like(live, n), n, 0) for n in new))
    return states[::-1] if reverse else states, state


def stacked(values: Sequence[Tensor], lead: Tensor, shape: Sequence[int]) -> Tensor:
    """The values of all steps along time; of this shape, with a gradient like any other, where there are none."""
    return torch.stack(list(values), 1) if values else lead.new_zeros(shape) + lead.sum()


def _masked(lengths: Tensor | None, steps: int) -> Callable[[Tensor], Tensor]:
    # The padding may hold NaN, whose product with a zero gradient is NaN.
    def masked(x: Tensor) -> Tensor:
        if lengths is None or x.shape[1] != steps or x.shape[0] != lengths.shape[0]:
            return x
        return torch.where(_like(torch.arange(steps, device=x.device) < lengths[:, None], x), x, 0)

    return masked


def _like(flags: Tensor, value: Tensor) -> Tensor:
    return flags.reshape(*flags.shape, *[1] * (value.dim() - flags.dim()))


def check_dtype(name: str, value: Tensor, lead: Tensor) -> None:
    """Refuses a tensor that is not of the leading one's dtype, nor of the dtype its state is carried in."""
    if value.dtype not in (lead.dtype, wide(lead.dtype)) or value.device != lead.device:
        either = " or ".join(dict.fromkeys(str(d) for d in (lead.dtype, wide(lead.dtype))))
        raise ValueError(f"{name} is {value.dtype} on {value.device}; expected {either} on {lead.device}")


def check_sequence(
    batch: int, steps: int, lengths: Tensor | None, reset: Tensor | None, device: torch.device | None = None
) -> None:
    """Refuses lengths and episode borders that do not fit a (batch, steps) sequence on this device.

    Values of lengths are looked at on the CPU alone: elsewhere that would wait for the device.
    """
    for name, value in (("lengths", lengths), ("reset", reset)):
        if value is not None and device is not None and value.device != device:
            raise ValueError(f"{name} is on {value.device}; expected it on {device}, with the sequence")
    if lengths is not None:
        if lengths.shape != (batch,) or lengths.dtype != torch.int64:
            raise ValueError(
                f"lengths has shape {tuple(lengths.shape)} of {lengths.dtype}; expected ({batch},) of torch.int64"
            )
        if lengths.device.type == "cpu" and batch and _readable(lengths):
            low, high = int(lengths.min()), int(lengths.max())
            if low < 0 or high > steps:
                raise ValueError(f"lengths go from {low} to {high}; expected 0 to {steps}, the number of steps")
    if reset is not None and (reset.shape != (batch, steps) or reset.dtype != torch.bool):
        raise ValueError(
            f"reset has shape {tuple(reset.shape)} of {reset.dtype}; expected ({batch}, {steps}) of torch.bool"
        )


def _readable(value: Tensor) -> bool:
    traced = torch._C._are_functorch_transforms_active() or isinstance(value, torch._subclasses.FakeTensor)
    return not torch.compiler.is_compiling() and not traced


def pad_packed(x: Tensor, cu_seqlens: Tensor, max_length: int | None = None) -> tuple[Tensor, Tensor]:
    """Sequences laid end to end as a padded batch, and their lengths; differentiable, zero in the padding.

    Args:
        x: (1, total, *width), the steps of all sequences one after another.
        cu_seqlens: (sequences + 1,) int32 or int64 from 0 to total: where each sequence begins, and the end.
        max_length: steps of the padded batch; the longest sequence's if None, for which a GPU is waited for.

    Returns:
        (sequences, max_length, *width) and int64 (sequences,).

    Raises:
        ValueError: shapes or dtypes do not fit; on the CPU also if cu_seqlens does not rise from 0 to total.
    """
    check_packed(x, cu_seqlens)
    lengths = cu_seqlens.diff().to(torch.int64)
    if max_length is None:
        max_length = int(lengths.max()) if len(lengths) else 0
    elif len(lengths) and lengths.device.type == "cpu" and _readable(lengths) and int(lengths.max()) > max_length:
        raise ValueError(f"max_length is {max_length}; expected at least {int(lengths.max())}, the longest sequence")
    padded = x.new_zeros(len(lengths) * max_length, *x.shape[2:])
    padded = padded.index_copy(0, _places(lengths, x.shape[1], max_length), x[0])
    return padded.reshape(len(lengths), max_length, *x.shape[2:]), lengths


def pack_padded(y: Tensor, lengths: Tensor, total: int | None = None) -> Tensor:
    """A padded batch as sequences laid end to end: the inverse of `pad_packed`; differentiable.

    Args:
        y: (sequences, time, *width).
        lengths: (sequences,) int64 in 0..time.
        total: their sum; computed if None, for which a GPU is waited for.

    Returns:
        (1, total, *width).
    """
    check_sequence(y.shape[0], y.shape[1], lengths, None)
    if total is None:
        total = int(lengths.sum())
    return y.flatten(0, 1).index_select(0, _places(lengths, total, y.shape[1]))[None]


def check_packed(x: Tensor, cu_seqlens: Tensor) -> None:
    """Refuses what are not sequences laid end to end with their borders."""
    if x.dim() < 2 or x.shape[0] != 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (1, total, *width) with cu_seqlens")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cu_seqlens has shape {tuple(cu_seqlens.shape)} of {cu_seqlens.dtype}; expected (sequences + 1,) of "
            "torch.int64"
        )
    if cu_seqlens.device.type == "cpu" and _readable(cu_seqlens):
        first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
        if first != 0 or last != x.shape[1] or bool((cu_seqlens.diff() < 0).any()):
            raise ValueError(f"cu_seqlens goes from {first} to {last}; expected it to rise from 0 to {x.shape[1]}")


def _places(lengths: Tensor, total: int, width: int) -> Tensor:
    """Where in a flattened padded batch the steps of sequences laid end to end are."""
    ends = lengths.cumsum(0)
    step = torch.arange(total, device=lengths.device)
    sequence = torch.searchsorted(ends, step, right=True)
    return step + (width * torch.arange(len(ends), device=ends.device) - ends + lengths)[sequence]
