"""Gated units: Elman network, GRU, minimal gated unit, LSTM and sLSTM, dense or in heads.

Parameters are those of torch.nn, name by name and row by row, so that its state dicts load as they are, with _reverse
for the second direction:

    weight_ih_l{k}   (gates * hidden, width)
    weight_hh_l{k}   (gates * hidden, hidden / heads)
    bias_ih_l{k}, bias_hh_l{k}   (gates * hidden,), or one bias_l{k} for units that torch.nn does not have

With several heads a unit sees the states of its own head alone: the recurrent matrix is block-diagonal, and `weight_hh`
holds its blocks.

The recurrences are `recurra.kernels.gated_scan`, whose reference backend is the equations below line by line.
"""

from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn

from recurra.core.checks import one_of
from recurra.core.nn.gated_layers import GatedLayers
from recurra.core.nn.layouts import copy_weights, torch_arguments
from recurra.core.nn.states import CellState, ExponentialState, HiddenState

_TORCH = ("bias_ih", "bias_hh")


class Elman(GatedLayers[HiddenState]):
    """Elman's network (Elman 1990, doi:10.1207/s15516709cog1402_1), torch.nn.RNN:

        h' = tanh(W x + b + U h + c)       or relu for tanh

    Arguments of `GRU` but `reset`, and `nonlinearity`.
    """

    state_type = HiddenState

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
        nonlinearity: Literal["tanh", "relu"] = "tanh",
    ) -> None:
        one_of("nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(
            input,
            hidden,
            cell=f"elman_{nonlinearity}",
            gates=1,
            biases=_TORCH,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            heads=heads,
            bias=bias,
        )
        self.nonlinearity = nonlinearity

    @classmethod
    def from_torch(cls, module: nn.RNN) -> "Elman":
        """The same network with the same weights; sequences come batch first, whatever `module` wants."""
        arguments = torch_arguments(module)
        return copy_weights(module, cls(**arguments, nonlinearity=module.nonlinearity))

    def to_torch(self) -> nn.RNN:
        """The same network with the same weights in torch.nn, batch first; one head only."""
        return copy_weights(self, nn.RNN(**self.torch_arguments(), nonlinearity=self.nonlinearity))


class GRU(GatedLayers[HiddenState]):
    """Gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), reset gate after the product, as torch.nn.GRU:

        r  = σ(W_r x + b_r + U_r h + c_r)
        z  = σ(W_z x + b_z + U_z h + c_z)
        n  = tanh(W_n x + b_n + r ⊙ (U_n h + c_n))
        h' = (1 - z) ⊙ n + z ⊙ h

    or before it, as in the paper, where z = 1 takes the candidate instead of the state:

        n  = tanh(W_n x + b_n + U_n (r ⊙ h))
        h' = (1 - z) ⊙ h + z ⊙ n

    Rows r, z, n. Before the product there is one bias, `bias_l{k}`.

    Args:
        input: width of x.
        hidden: units of a layer.
        num_layers: layers.
        bidirectional: every layer also reads backwards; outputs are concatenated.
        dropout: share of the outputs of every layer but the last that is zeroed.
        heads: blocks of the recurrent matrices.
        bias: whether b and c are there.
        reset: where the reset gate acts.
    """

    state_type = HiddenState

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
        reset: Literal["after", "before"] = "after",
    ) -> None:
        one_of("reset", reset, ("after", "before"))
        super().__init__(
            input,
            hidden,
            cell="gru" if reset == "after" else "gru_before",
            gates=3,
            biases=_TORCH if reset == "after" else ("bias",),
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            heads=heads,
            bias=bias,
        )
        self.reset = reset

    def folded_bias(self, ending: str) -> Tensor | None:
        """The bias as the kernels take it: c_n is inside the reset gate, so it stays apart from b_n."""
        if not self.bias or self.reset == "before":
            return super().folded_bias(ending)
        b, c = (getattr(self, name + ending).view(3, self.heads, -1) for name in _TORCH)
        return torch.cat([b[:2] + c[:2], b[2:], c[2:]])

    def _set_bias(self, bias: Tensor, ending: str) -> None:
        if self.reset == "before":
            return super()._set_bias(bias, ending)
        getattr(self, f"bias_ih{ending}").copy_(bias[:3].flatten())
        getattr(self, f"bias_hh{ending}").zero_()[2 * self.hidden :].copy_(bias[3])

    @classmethod
    def from_torch(cls, module: nn.GRU) -> "GRU":
        """The same network with the same weights; sequences come batch first, whatever `module` wants."""
        return copy_weights(module, cls(**torch_arguments(module)))

    def to_torch(self) -> nn.GRU:
        """The same network with the same weights in torch.nn, batch first; one head and reset after only."""
        if self.reset == "before":
            raise ValueError("torch.nn.GRU resets after the product; this unit has reset='before'")
        return copy_weights(self, nn.GRU(**self.torch_arguments()))


class MGU(GatedLayers[HiddenState]):
    """Minimal gated unit (Zhou et al. 2016, arXiv:1603.09420), gate before the product, as in the paper:

        f  = σ(W_f x + U_f h + b_f)
        c  = tanh(W_c x + U_c (f ⊙ h) + b_c)
        h' = (1 - f) ⊙ h + f ⊙ c

    or after it, as in CIRIM (Karkalousos et al. 2022, arXiv:2111.15498), where f = 1 keeps the state:

        c  = tanh(W_c x + b_c + f ⊙ (U_c h))
        h' = (1 - f) ⊙ c + f ⊙ h

    Rows f, c. Arguments of `GRU`, `reset` before by default.
    """

    state_type = HiddenState

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
        reset: Literal["after", "before"] = "before",
    ) -> None:
        one_of("reset", reset, ("after", "before"))
        super().__init__(
            input,
            hidden,
            cell="mgu" if reset == "before" else "mgu_after",
            gates=2,
            biases=("bias",),
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            heads=heads,
            bias=bias,
        )
        self.reset = reset


class LSTM(GatedLayers[CellState]):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; Gers et al. 2000), torch.nn.LSTM:

        i, f, o = σ(W x + b + U h + c)     each with its own W, b, U, c
        g  = tanh(W_g x + b_g + U_g h + c_g)
        c' = f ⊙ c + i ⊙ g
        h' = o ⊙ tanh(c')                  and W_hr times that with `proj_size`

    Rows i, f, g, o. Arguments of `GRU` but `reset`; `proj_size`, the width of h, projected by `weight_hr_l{k}`
    (proj_size, hidden / heads), 0 for none; `forget_bias`, what the forget gate's two biases add up to at first, 1
    being usual, None to draw them like the rest.
    """

    state_type = CellState

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
        proj_size: int = 0,
        forget_bias: float | None = None,
    ) -> None:
        if forget_bias is not None and not bias:
            raise ValueError(f"forget_bias needs bias=True; got bias=False and forget_bias={forget_bias}")
        self.forget_bias = forget_bias
        super().__init__(
            input,
            hidden,
            cell="lstm",
            gates=4,
            biases=_TORCH,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            heads=heads,
            bias=bias,
            proj_size=proj_size,
        )

    def reset_parameters(self) -> None:
        """Draw everything uniformly between ∓1/√hidden, but for the forget gate's bias where one is asked for."""
        super().reset_parameters()
        if self.forget_bias is not None:
            rows = slice(self.hidden, 2 * self.hidden)
            for ending in self.suffixes:
                nn.init.constant_(getattr(self, f"bias_ih{ending}")[rows], self.forget_bias)
                nn.init.zeros_(getattr(self, f"bias_hh{ending}")[rows])

    @classmethod
    def from_torch(cls, module: nn.LSTM) -> "LSTM":
        """The same network with the same weights; sequences come batch first, whatever `module` wants."""
        return copy_weights(module, cls(**torch_arguments(module), proj_size=module.proj_size))

    def to_torch(self) -> nn.LSTM:
        """The same network with the same weights in torch.nn, batch first; one head only."""
        return copy_weights(self, nn.LSTM(**self.torch_arguments(), proj_size=self.proj_size))


class SLSTM(GatedLayers[ExponentialState]):
    """LSTM with exponential gates and a normalised memory (Beck et al. 2024, arXiv:2405.04517), as FlashRNN has it:

        i, f, z, o = W x + U h + b         each with its own W, U, b
        l  = logsigmoid(f) + m
        m' = max(i, l)                     i alone at a fresh start, where n = 0
        c' = exp(l - m') c + exp(i - m') tanh(z)
        n' = max(exp(l - m') n + exp(i - m'), 1)
        h' = σ(o) c' / n'

    Rows i, f, z, o. Arguments of `GRU` but `reset`.
    """

    state_type = ExponentialState

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
        super().__init__(
            input,
            hidden,
            cell="slstm",
            gates=4,
            biases=("bias",),
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            heads=heads,
            bias=bias,
        )

    def reset_parameters(self) -> None:
        """Draw U within ∓1/√(units of a head), W within ∓1/√hidden; forget biases rise from 3 to 6, others are 0."""
        super().reset_parameters()
        width = self.hidden // self.heads
        for ending in self.suffixes:
            nn.init.uniform_(getattr(self, f"weight_hh{ending}"), -1 / sqrt(width), 1 / sqrt(width))
            if self.bias:
                bias = getattr(self, f"bias{ending}")
                nn.init.zeros_(bias)
                with torch.no_grad():
                    bias[self.hidden : 2 * self.hidden] = torch.linspace(3, 6, width).repeat(self.heads)
