"""What the units for sequences share: layers, directions, dropout, padding, episodes, states."""

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recurra.core.checks import at_least_one
from recurra.kernels import pack_padded, pad_packed

State = TypeVar("State", bound=tuple[Tensor, ...])


def check_input(x: Tensor, form: str, width: int) -> None:
    """Refuses an input that has not the axes of `form`, e.g. "batch time input", or whose last is not `width` wide."""
    axes = form.split()
    if x.dim() != len(axes):
        raise ValueError(f"x has shape {tuple(x.shape)}; expected ({', '.join(axes)})")
    if x.shape[-1] != width:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; expected {axes[-1]} = {width}, the width the unit was made for"
        )


def check_state(state: Any, kind: type[Any], shapes: list[tuple[int, ...]]) -> None:
    """Refuses a state that is no tuple of tensors of these shapes."""
    found = [tuple(t.shape) for t in state] if isinstance(state, tuple) else None
    if found != shapes:
        given = f"shapes {found}" if found is not None else type(state).__name__
        names = ", ".join(kind._fields)
        raise ValueError(f"state is {given}; expected {kind.__name__}({names}) of shapes {shapes}")


def valid_steps(lengths: Tensor, steps: int) -> Bool[Tensor, "batch time"]:
    """True up to each sequence's end."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def without_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The sequences with zeros in their padding, where NaN would spoil the gradients of weights."""
    return x if lengths is None else torch.where(valid_steps(lengths, x.shape[1])[..., None], x, 0)


def run_packed(
    unit: nn.Module, x: Tensor, state: Any, cu_seqlens: Tensor, lengths: Tensor | None, reset: Tensor | None = None
) -> tuple[Tensor, Any]:
    """Output and state of a unit for sequences laid end to end, (1, total, width), with borders `cu_seqlens`."""
    if lengths is not None:
        raise ValueError("lengths and cu_seqlens are both given; pass one, cu_seqlens for sequences laid end to end")
    padded, lengths = pad_packed(x, cu_seqlens)
    options: dict[str, Any] = {"lengths": lengths}
    if reset is not None:
        options["reset"] = pad_packed(reset, cu_seqlens, padded.shape[1])[0]
    y, state = unit(padded, state, **options)
    return pack_padded(y, lengths, x.shape[1]), state


class Recurrent(nn.Module, ABC, Generic[State]):
    """Layers of a recurrence over time, in one or both directions; the recurrence itself is the subclass's.

    Subclasses set `state_type` and `state_widths`, name their parameters with `suffix`, and define `run_layer`.
    """

    state_type: type[State]
    state_widths: tuple[int, ...]
    """Widths of a layer's state; the first is that of its output."""

    def __init__(
        self, input: int, hidden: int, *, num_layers: int = 1, bidirectional: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        at_least_one(input=input, hidden=hidden, num_layers=num_layers)
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be from 0 to 1; got {dropout}")
        self.input, self.hidden, self.num_layers = input, hidden, num_layers
        self.bidirectional, self.dropout = bidirectional, dropout
        self.register_load_state_dict_pre_hook(_accept_names_without_layer)  # type: ignore[no-untyped-call]

    @property
    def directions(self) -> int:
        """1, or 2 if bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def state_names(self) -> tuple[str, ...]:
        """What the state is made of: h, or more."""
        names: tuple[str, ...] = self.state_type._fields  # type: ignore[attr-defined]
        return names

    @property
    def suffixes(self) -> list[str]:
        """Endings of parameter names, in the order of layers and directions: _l0, _l0_reverse, _l1, ..."""
        return [suffix(layer, d == 1) for layer in range(self.num_layers) for d in range(self.directions)]

    def layer_inputs(self, ending: str) -> int:
        """Width of what the layer with this ending reads."""
        return self.input if ending.startswith("_l0") else self.state_widths[0] * self.directions

    @abstractmethod
    def run_layer(
        self,
        x: Tensor,
        ending: str,
        state: tuple[Tensor, ...] | None,
        *,
        lengths: Tensor | None,
        reset: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Output and last state of one layer in one direction.

        Args:
            x: (batch, time, width), zero in the padding.
            ending: of the names of the layer's parameters.
            state: each (batch, width), zeros if None.
            lengths: (batch,).
            reset: (batch, time).
        """

    def between_layers(self, x: Tensor) -> Tensor:
        """Dropout, drawn for every step anew."""
        return F.dropout(x, self.dropout, self.training)

    def after_layer(self, x: Tensor, layer: int, lengths: Tensor | None) -> Tensor:
        """What follows a layer; nothing."""
        return x

    def forward(
        self,
        x: Float[Tensor, "batch time input"],
        state: tuple[Tensor, ...] | None = None,
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        reset: Bool[Tensor, "batch time"] | None = None,
        cu_seqlens: Int[Tensor, " border"] | None = None,
    ) -> tuple[Float[Tensor, "batch time output"], State]:
        """Output of the last layer at every step, and the state after each sequence's last step.

        Args:
            x: sequences; padding may hold anything.
            state: what an earlier call returned, to go on where it ended; zeros if None.
            lengths: int64, steps of each sequence, in any order, zeros allowed. The output is 0 past a sequence's end.
            reset: true where an episode begins: the state is set to the initial one before this step.
            cu_seqlens: borders of sequences laid end to end, as `recurra.kernels.pad_packed` takes them; x, reset and
                the output are then (1, total, ...), and the state has one entry a sequence.

        Raises:
            ValueError: a shape does not fit, or lengths exceed the steps there are.
        """
        check_input(x, "batch time input", self.input)
        if cu_seqlens is not None:
            return run_packed(self, x, state, cu_seqlens, lengths, reset)
        states, last = self._layer_states(state, x.shape[0]), []
        x = without_padding(x, lengths)
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = self.between_layers(x)
            parts = []
            for direction in range(self.directions):
                given = states[layer * self.directions + direction]
                y, new = self.run_layer(x, suffix(layer, direction == 1), given, lengths=lengths, reset=reset)
                parts.append(y)
                last.append(new)
            x = self.after_layer(torch.cat(parts, -1) if self.bidirectional else parts[0], layer, lengths)
        return x, self.state_type(*(torch.stack(tensors) for tensors in zip(*last, strict=True)))

    def step(
        self, x: Float[Tensor, "batch input"], state: tuple[Tensor, ...] | None = None
    ) -> tuple[Float[Tensor, "batch output"], State]:
        """Output and state after one more step: the numbers that `forward` gives over the whole sequence.

        While training, dropout is drawn anew.

        Raises:
            ValueError: the unit also reads backwards, or a shape does not fit.
        """
        if self.bidirectional:
            raise ValueError("step needs a unit that reads forwards alone; this one is bidirectional: call forward")
        check_input(x, "batch input", self.input)
        y, new = self(x[:, None], state)
        return y[:, 0], new

    def extra_repr(self) -> str:
        """Sizes, and what is not as by default."""
        more = [f"{name}={getattr(self, name)}" for name in ("bidirectional", "dropout") if getattr(self, name)]
        layers = [f"num_layers={self.num_layers}"] if self.num_layers > 1 else []
        return ", ".join([str(self.input), str(self.hidden), *layers, *more])

    def _layer_states(self, state: tuple[Tensor, ...] | None, batch: int) -> list[tuple[Tensor, ...] | None]:
        count = self.num_layers * self.directions
        if state is None:
            return [None] * count
        check_state(state, self.state_type, [(count, batch, width) for width in self.state_widths])
        return list(zip(*(t.unbind(0) for t in state), strict=True))


def suffix(layer: int, reverse: bool) -> str:
    """Ending of the parameter names of a layer and direction, as torch.nn has it: _l0, _l0_reverse, _l1, ..."""
    return f"_l{layer}_reverse" if reverse else f"_l{layer}"


def _accept_names_without_layer(unit: Recurrent[Any], state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Lets a unit of one layer load weights named without it: weight_hh for weight_hh_l0."""
    if unit.num_layers == 1 and not unit.bidirectional:
        for name in [*unit._parameters, *unit._buffers]:
            plain = prefix + name.removesuffix("_l0")
            if plain in state:
                state[prefix + name] = state.pop(plain)
