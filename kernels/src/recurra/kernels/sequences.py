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
    steps = max(x.shape[1] for x in xs)
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


def check_sequence(batch: int, steps: int, lengths: Tensor | None, reset: Tensor | None) -> None:
    """Refuses lengths and episode borders that do not fit a (batch, steps) sequence.

    Values of lengths are looked at on the CPU alone: elsewhere that would wait for the device.
    """
    if lengths is not None:
        if lengths.shape != (batch,) or lengths.dtype != torch.int64:
            raise ValueError(
                f"lengths has shape {tuple(lengths.shape)} of {lengths.dtype}; expected ({batch},) of torch.int64"
            )
        if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and batch and not _traced(lengths):
            low, high = int(lengths.min()), int(lengths.max())
            if low < 0 or high > steps:
                raise ValueError(f"lengths go from {low} to {high}; expected 0 to {steps}, the number of steps")
    if reset is not None and (reset.shape != (batch, steps) or reset.dtype != torch.bool):
        raise ValueError(
            f"reset has shape {tuple(reset.shape)} of {reset.dtype}; expected ({batch}, {steps}) of torch.bool"
        )


def _traced(value: Tensor) -> bool:
    return torch._C._are_functorch_transforms_active() or isinstance(value, torch._subclasses.FakeTensor)
