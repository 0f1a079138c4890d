"""Parameters and layers of the gated units."""

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from recurra.core.nn import layouts
from recurra.core.nn.recurrent import Recurrent, State, suffix
from recurra.kernels import gated_layer


class GatedLayers(Recurrent[State]):
    """Layers of a gated cell, with parameters named and laid out as torch.nn's.

    Args:
        input: width of x.
        hidden: units of a layer.
        cell: what `recurra.kernels.gated_scan` calls the recurrence.
        gates: how many gates it has.
        biases: names of its biases, which add up.
        num_layers: layers.
        bidirectional: every layer also reads backwards.
        dropout: between layers.
        heads: blocks of the recurrent matrices.
        bias: whether there are biases.
        proj_size: width of the projected state; 0 for none.
    """

    def __init__(
        self,
        input: int,
        hidden: int,
        *,
        cell: str,
        gates: int,
        biases: tuple[str, ...],
        num_layers: int,
        bidirectional: bool,
        dropout: float,
        heads: int,
        bias: bool,
        proj_size: int = 0,
    ) -> None:
        super().__init__(input, hidden, num_layers=num_layers, bidirectional=bidirectional, dropout=dropout)
        if heads < 1 or hidden % heads:
            raise ValueError(f"heads must divide hidden {hidden}; got {heads}")
        if not 0 <= proj_size < hidden or proj_size % heads:
            raise ValueError(f"proj_size must be 0, or below hidden {hidden} and divided by heads; got {proj_size}")
        self.cell, self.gates, self.biases = cell, gates, biases if bias else ()
        self.heads, self.bias, self.proj_size = heads, bias, proj_size
        output = proj_size or hidden
        self.state_widths = (output, *(hidden,) * (len(self.state_names) - 1))
        rows = self.gates * hidden
        for ending in self.suffixes:
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (rows, self.layer_inputs(ending)),
                "weight_hh": (rows, output // heads),
            }
            shapes |= dict.fromkeys(self.biases, (rows,))
            if proj_size:
                shapes["weight_hr"] = (proj_size, hidden // heads)
            for name, shape in shapes.items():
                self.register_parameter(name + ending, nn.Parameter(torch.empty(shape)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw everything uniformly between ∓1/√hidden."""
        bound = 1 / sqrt(self.hidden)
        for value in self.parameters():
            nn.init.uniform_(value, -bound, bound)

    def folded_bias(self, ending: str) -> Tensor | None:
        """The bias of one layer and direction as the kernels take it, (row, head, width)."""
        if not self.bias:
            return None
        first, *more = (getattr(self, name + ending) for name in self.biases)
        total: Tensor = first + more[0] if more else first
        return total.view(self.gates, self.heads, -1)

    def run_layer(
        self,
        x: Tensor,
        ending: str,
        state: tuple[Tensor, ...] | None,
        *,
        lengths: Tensor | None,
        reset: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Output and last state of one layer in one direction."""
        heads = self.heads
        r = getattr(self, f"weight_hh{ending}").view(self.gates, heads, self.hidden // heads, -1)
        projection = (
            getattr(self, f"weight_hr{ending}").view(heads, -1, self.hidden // heads) if self.proj_size else None
        )
        cell: Any = self.cell
        y, last = gated_layer(
            cell,
            x,
            getattr(self, f"weight_ih{ending}").view(*r.shape[:3], x.shape[2]),
            r,
            self.folded_bias(ending),
            None if state is None else tuple(s.reshape(len(s), heads, s.shape[1] // heads) for s in state),
            projection=projection,
            lengths=lengths,
            reset=reset,
            reverse=ending.endswith("_reverse"),
        )
        return y.flatten(2), tuple(s.flatten(1) for s in last)

    def torch_arguments(self) -> dict[str, Any]:
        """Arguments of torch.nn's network of the same form; only one head has one."""
        if self.heads > 1:
            raise ValueError(f"torch.nn has dense units only; this one has heads={self.heads}")
        return {
            "input_size": self.input,
            "hidden_size": self.hidden,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "dropout": self.dropout if self.num_layers > 1 else 0.0,
            "bias": self.bias,
            "batch_first": True,
        }

    @torch.no_grad()
    def load_flashrnn(
        self, R: Tensor, b: Tensor | None, function: layouts.Function, *, layer: int = 0, reverse: bool = False
    ) -> None:
        """Takes one layer's recurrent weights and biases over from FlashRNN.

        Args:
            R: (gate, head, new, old) as flashrnn() takes it.
            b: (bias, head, width) as flashrnn() takes it; None for a unit made with bias=False.
            function: flashrnn()'s own name of the recurrence.
            layer: which layer.
            reverse: the layer's second direction.

        Raises:
            ValueError: another recurrence, or shapes that do not fit the unit.
        """
        if layouts.CELLS.get(function) != self.cell:
            raise ValueError(
                f"function must be the recurrence of a {type(self).__name__}, {self.cell}; got {function!r}"
            )
        ending, width = suffix(layer, reverse), self.hidden // self.heads
        if ending not in self.suffixes:
            raise ValueError(f"layer{ending} is none of {', '.join(self.suffixes)}")
        if R.shape != (self.gates, self.heads, width, width):
            raise ValueError(f"R has shape {tuple(R.shape)}; expected {(self.gates, self.heads, width, width)}")
        if (b is None) == self.bias:
            raise ValueError(f"b is {'absent' if b is None else 'given'}; the unit was made with bias={self.bias}")
        r, bias = layouts.from_flashrnn(R, b, function)
        self.get_parameter(f"weight_hh{ending}").copy_(r.flatten(0, 2))
        if bias is not None:
            self._set_bias(bias.flatten(1), ending)

    def _set_bias(self, bias: Tensor, ending: str) -> None:
        """Writes a bias in the kernels' form (row, hidden) over the unit's own."""
        for name in self.biases:
            self.get_parameter(name + ending).zero_()
        self.get_parameter(self.biases[0] + ending).copy_(bias.flatten())

    def extra_repr(self) -> str:
        """Sizes, and what is not as by default."""
        more = [f"{name}={getattr(self, name)}" for name in ("proj_size",) if getattr(self, name)]
        more += [f"heads={self.heads}"] if self.heads > 1 else []
        more += [] if self.bias else ["bias=False"]
        return ", ".join([super().extra_repr(), *more])
