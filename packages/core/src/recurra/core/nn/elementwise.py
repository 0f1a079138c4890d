"""Units none of whose states sees another: IndRNN, and the diagonal GRU and LSTM.

All recurrent weights are vectors, so a layer mixes its units only in the projection of its input. The recurrences are
`recurra.kernels.elementwise_scan`, whose reference backend is the equations below line by line.
"""

from math import sqrt
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.core.checks import one_of
from recurra.core.nn.recurrent import Recurrent, State
from recurra.core.nn.sequence_norm import SequenceBatchNorm
from recurra.core.nn.states import CellState, HiddenState
from recurra.kernels import elementwise_scan


class IndRNN(Recurrent[HiddenState]):
    """Independently recurrent network (Li et al. 2018, arXiv:1803.04831; deep form 2019, arXiv:1910.06251):

        h' = act(W x + b + u ⊙ h)

    A gradient over L steps carries u^L: |u| <= mag^(1/L) keeps it from exploding, |u| >= mag^(-1/L) from vanishing. The
    authors let L be the length of the sequences and `mag` 2 to 10; at some 20 steps no constraint is wanted.

    `weight_ih_l{k}` is W (hidden, width), `bias_l{k}` b, `weight_hh_l{k}` u (hidden,), with torch.nn's ending _reverse.
    A unit of one layer loads the authors' names, without _l0, too. Weight decay is for W alone: `parameter_groups`.

    Args:
        input: width of x; None for the recurrence alone, whose x is as wide as `hidden` and taken for W x + b.
        hidden: units of a layer.
        num_layers: layers.
        bidirectional: every layer also reads backwards; outputs are concatenated.
        dropout: share of the outputs of every layer but the last that is zeroed, the same at every step of a sequence.
        nonlinearity: act.
        bias: whether b is there.
        batch_norm: normalise over batch and time the layer's output ("after", where states do not cross batches) or
            W x + b ("before").
        steps: L; keeps every u in [-mag^(1/L), mag^(1/L)] while training. None: no constraint, u starts in [0, 1].
        mag: see above.
        long_memory: the last layer starts with u in [mag^(-1/L), mag^(1/L)], for tasks that read only the last step.
    """

    state_type = HiddenState

    def __init__(
        self,
        input: int | None,
        hidden: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        nonlinearity: Literal["relu", "tanh", "linear"] = "relu",
        bias: bool = True,
        batch_norm: Literal["after", "before"] | None = None,
        steps: int | None = None,
        mag: float = 5.0,
        long_memory: bool = False,
    ) -> None:
        super().__init__(
            hidden if input is None else input,
            hidden,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
        )
        one_of("nonlinearity", nonlinearity, ("relu", "tanh", "linear"))
        one_of("batch_norm", batch_norm, ("after", "before", None))
        if (steps is not None and steps < 1) or mag < 1:
            raise ValueError(f"steps and mag must be at least 1; got {steps} and {mag}")
        if long_memory and steps is None:
            raise ValueError("long_memory needs steps, the length of the sequences; got None")
        self.state_widths = (hidden,)
        self.nonlinearity, self.batch_norm, self.long_memory = nonlinearity, batch_norm, long_memory
        self.bound = None if steps is None else mag ** (1 / steps)
        self._make_parameters(projected=input is not None, bias=bias)
        self.reset_parameters()

    def _make_parameters(self, *, projected: bool, bias: bool) -> None:
        hidden = self.hidden
        for ending in self.suffixes:
            if projected or not ending.startswith("_l0"):
                weight = nn.Parameter(torch.empty(hidden, self.layer_inputs(ending)))
                self.register_parameter(f"weight_ih{ending}", weight)
                self.register_parameter(f"bias{ending}", nn.Parameter(torch.empty(hidden)) if bias else None)
            self.register_parameter(f"weight_hh{ending}", nn.Parameter(torch.empty(hidden)))
            if self.batch_norm == "before":
                self.add_module(f"norm{ending}", SequenceBatchNorm(hidden))
        if self.batch_norm == "after":
            for layer in range(self.num_layers):
                self.add_module(f"norm_l{layer}", SequenceBatchNorm(hidden * self.directions))

    def reset_parameters(self) -> None:
        """Draw u uniformly as described above and W by He's rule with slope 8; biases start at zero."""
        bound = 1.0 if self.bound is None else self.bound
        for name, value in self.named_parameters(recurse=False):
            if name.startswith("weight_ih"):
                nn.init.kaiming_uniform_(value, a=8)
            elif name.startswith("bias"):
                nn.init.zeros_(value)
            else:
                last = name.startswith(f"weight_hh_l{self.num_layers - 1}")
                nn.init.uniform_(value, 1 / bound if last and self.long_memory else 0.0, bound)

    def parameter_groups(self, weight_decay: float = 1e-4) -> list[dict[str, Any]]:
        """Groups for an optimizer: decay for W alone, none for u, biases and normalisation (the authors' training)."""
        named = dict(self.named_parameters())
        decayed = [value for name, value in named.items() if name.startswith("weight_ih")]
        others = [value for name, value in named.items() if not name.startswith("weight_ih")]
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

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
        u = self.get_parameter(f"weight_hh{ending}")
        if self.training and self.bound is not None:
            # Through `data`, which leaves graphs of earlier calls valid: nothing they saved changes, as it is clamped.
            u.data.clamp_(-self.bound, self.bound)
        if hasattr(self, f"weight_ih{ending}"):
            x = F.linear(x, getattr(self, f"weight_ih{ending}"), getattr(self, f"bias{ending}"))
        if self.batch_norm == "before":
            x = self.get_submodule(f"norm{ending}")(x, lengths)
        return elementwise_scan(
            cast(Any, f"indrnn_{self.nonlinearity}"),
            x,
            u,
            state,
            lengths=lengths,
            reset=reset,
            reverse=ending.endswith("_reverse"),
        )

    def between_layers(self, x: Tensor) -> Tensor:
        """Dropout with one mask a sequence."""
        return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.dropout, self.training)

    def after_layer(self, x: Tensor, layer: int, lengths: Tensor | None) -> Tensor:
        """Batch normalisation, where it follows the activation."""
        if self.batch_norm != "after":
            return x
        normalised: Tensor = self.get_submodule(f"norm_l{layer}")(x, lengths)
        return normalised


class _Diagonal(Recurrent[State]):
    """What the units of ParaRNN share: the block-diagonal projection B of the input, and names A, B, b, C."""

    cell: Literal["diag_gru", "diag_lstm_cifg"]

    def __init__(
        self,
        input: int,
        hidden: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        heads: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(input, hidden, num_layers=num_layers, bidirectional=bidirectional, dropout=dropout)
        self.state_widths = (hidden,) * len(self.state_names)
        self.heads = heads
        for ending in self.suffixes:
            width = self.layer_inputs(ending)
            if heads < 1 or width % heads or hidden % heads:
                raise ValueError(f"heads must divide input {width} and hidden {hidden}; got {heads}")
            self.register_parameter(f"A{ending}", nn.Parameter(torch.empty(3, hidden)))
            self.register_parameter(f"B{ending}", nn.Parameter(torch.empty(heads, width // heads, 3, hidden // heads)))
            self.register_parameter(f"b{ending}", nn.Parameter(torch.empty(3, hidden)) if bias else None)
            if self.cell == "diag_lstm_cifg":
                self.register_parameter(f"C{ending}", nn.Parameter(torch.empty(2, hidden)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw A, C ~ N(0, 4 / (5 hidden)) and B by Xavier's rule; the first gate's biases fall from 0 to -1."""
        for name, value in self.named_parameters():
            if name.startswith(("A", "C")):
                nn.init.normal_(value, std=2 / sqrt(5 * self.hidden))
            elif name.startswith("B"):
                outputs = self.hidden if self.cell == "diag_gru" else value.shape[3]
                bound = sqrt(6 / (value.shape[1] + outputs))
                nn.init.uniform_(value, -bound, bound)
            else:
                nn.init.zeros_(value)
                with torch.no_grad():
                    value[0] = -torch.linspace(0, 1, self.hidden)

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
        a, b = getattr(self, f"A{ending}"), getattr(self, f"B{ending}")
        if self.cell == "diag_lstm_cifg":
            a = torch.cat([a, getattr(self, f"C{ending}")])
        parts = x.reshape(*x.shape[:2], self.heads, b.shape[1])
        wx = torch.einsum("bthi,higd->btghd", parts, b).flatten(3)
        bias = getattr(self, f"b{ending}")
        if bias is not None:
            wx = wx + bias.to(wx.dtype)
        return elementwise_scan(
            self.cell, wx, a, state, lengths=lengths, reset=reset, reverse=ending.endswith("_reverse")
        )


class DiagGRU(_Diagonal[HiddenState]):
    """Gated recurrent unit with vectors for recurrent weights (ParaRNN, arXiv:2510.21450):

        z  = σ(a_z ⊙ h + B_z x + b_z)
        r  = σ(a_r ⊙ h + B_r x + b_r)
        n  = tanh(a_n ⊙ (r ⊙ h) + B_n x + b_n)
        h' = (1 - z) ⊙ h + z ⊙ n

    Keys and shapes of apple/ml-pararnn, with torch.nn's endings of layers: `A_l{k}` (3, hidden), rows z, r, n;
    `B_l{k}` (heads, input / heads, 3, hidden / heads); `b_l{k}` (3, hidden). A unit of one layer loads A, B, b, too.

    Args:
        input: width of x.
        hidden: units of a layer.
        num_layers: layers.
        bidirectional: every layer also reads backwards; outputs are concatenated.
        dropout: share of the outputs of every layer but the last that is zeroed.
        heads: blocks of B.
        bias: whether b is there.
    """

    state_type = HiddenState
    cell = "diag_gru"


class DiagLSTM(_Diagonal[CellState]):
    """LSTM with coupled gates, peepholes, and vectors for recurrent weights (ParaRNN, arXiv:2510.21450):

        f  = σ(a_f ⊙ h + c_f ⊙ c + B_f x + b_f)
        g  = tanh(a_c ⊙ h + B_c x + b_c)
        c' = f ⊙ c + (1 - f) ⊙ g
        o  = σ(a_o ⊙ h + c_o ⊙ c' + B_o x + b_o)
        h' = o ⊙ tanh(c')

    The peephole of o sees the new c. Arguments and keys of `DiagGRU`, rows f, o, c; `C_l{k}` (2, hidden), rows c_f,
    c_o.
    """

    state_type = CellState
    cell = "diag_lstm_cifg"
