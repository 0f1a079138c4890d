"""Linear recurrences: a layer of decaying averages, and diagonal state spaces (S4D).

Both run on `recurra.kernels.linear_scan`: h_t = a_t h_(t-1) + b_t.
"""

from math import log, pi, sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn

from recurra.core.checks import one_of
from recurra.core.nn.recurrent import Recurrent, check_input, check_state, run_packed, without_padding
from recurra.core.nn.states import HiddenState
from recurra.kernels import linear_scan
from recurra.kernels.sequences import wide


class LinearRecurrence(Recurrent[HiddenState]):
    """Layer whose state only decays and takes in:

        h' = a ⊙ h + W x + b

    with a fixed in time, one number a unit, of any sign; or decided by the input ("gated impulse linear recurrence",
    Martin and Cundy 2018, arXiv:1709.04057):

        a  = σ(V x + c)
        h' = a ⊙ h + (1 - a) ⊙ tanh(W x + b)

    Keys: `weight_ih_l{k}` W, `bias_l{k}` b, `a_l{k}` a (hidden,) or `weight_a_l{k}` V and `bias_a_l{k}` c.

    Args:
        input: width of x.
        hidden: units of a layer.
        num_layers: layers.
        bidirectional: every layer also reads backwards; outputs are concatenated.
        dropout: share of the outputs of every layer but the last that is zeroed.
        bias: whether b and c are there.
        decay: fixed, or input.
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
        bias: bool = True,
        decay: Literal["fixed", "input"] = "fixed",
    ) -> None:
        super().__init__(input, hidden, num_layers=num_layers, bidirectional=bidirectional, dropout=dropout)
        one_of("decay", decay, ("fixed", "input"))
        self.state_widths, self.decay = (hidden,), decay
        for ending in self.suffixes:
            width = self.layer_inputs(ending)
            self.register_parameter(f"weight_ih{ending}", nn.Parameter(torch.empty(hidden, width)))
            self.register_parameter(f"bias{ending}", nn.Parameter(torch.empty(hidden)) if bias else None)
            if decay == "fixed":
                self.register_parameter(f"a{ending}", nn.Parameter(torch.empty(hidden)))
            else:
                self.register_parameter(f"weight_a{ending}", nn.Parameter(torch.empty(hidden, width)))
                self.register_parameter(f"bias_a{ending}", nn.Parameter(torch.empty(hidden)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw maps uniformly between ∓1/√width; memories reach from 1 to 1000 steps, spaced by their logarithm."""
        reach = torch.logspace(0, 3, self.hidden)
        for name, value in self.named_parameters():
            if name.startswith("weight"):
                nn.init.uniform_(value, -1 / sqrt(value.shape[1]), 1 / sqrt(value.shape[1]))
            elif name.startswith("bias_l"):
                nn.init.zeros_(value)
            else:
                a = torch.exp(-1 / reach)
                with torch.no_grad():
                    value.copy_(torch.logit(a) if name.startswith("bias_a") else a)

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
        b = F.linear(x, getattr(self, f"weight_ih{ending}"), getattr(self, f"bias{ending}"))
        if self.decay == "fixed":
            a = getattr(self, f"a{ending}")
        else:
            a = torch.sigmoid(F.linear(x, getattr(self, f"weight_a{ending}"), getattr(self, f"bias_a{ending}")))
            b = (1 - a) * torch.tanh(b)
        h0 = None if state is None else state[0]
        h, last = linear_scan(a, b, h0, lengths=lengths, reset=reset, reverse=ending.endswith("_reverse"))
        return h, (last,)


class S4D(nn.Module):
    """Diagonal state space of every channel (Gu et al. 2022, arXiv:2206.11893), a linear recurrence in discrete time:

        s' = A s + B x,   y = C s + D x              A diagonal, continuous time, one step being dt
        zoh        Ā = exp(dt A),                    B̄ = (Ā - 1) / A B
        bilinear   Ā = (1 + dt A/2) / (1 - dt A/2),  B̄ = dt B / (1 - dt A/2)
        h_t = Ā h_(t-1) + B̄ x_t,   y_t = C h_t + D x_t

    Equal to a convolution with C Ā^k B̄ (`kernel`). A starts as -1/2 + iπn ("lin": h is complex, one of each conjugate
    pair, and y takes twice the real part) or -(n + 1) ("real"), B as 1, C normal, D as 1, dt between the limits,
    uniformly in its logarithm. The real part of A stays negative, being -exp(`log_decay`).

    Args:
        input: channels; all share nothing.
        hidden: states of a channel.
        discretisation: see above.
        init: see above.
        dt_min: shortest first step.
        dt_max: longest first step.
    """

    def __init__(
        self,
        input: int,
        hidden: int,
        *,
        discretisation: Literal["zoh", "bilinear"] = "zoh",
        init: Literal["lin", "real"] = "lin",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        super().__init__()
        one_of("discretisation", discretisation, ("zoh", "bilinear"))
        one_of("init", init, ("lin", "real"))
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"dt_min and dt_max must be positive and in order; got {dt_min} and {dt_max}")
        self.input, self.hidden, self.discretisation, self.init = input, hidden, discretisation, init
        self.dt_min, self.dt_max = dt_min, dt_max
        self.log_dt = nn.Parameter(torch.empty(input))
        self.log_decay = nn.Parameter(torch.empty(input, hidden))
        if init == "lin":
            self.frequency = nn.Parameter(torch.empty(input, hidden))
        parts = (2,) if init == "lin" else ()
        self.B = nn.Parameter(torch.empty(input, hidden, *parts))
        self.C = nn.Parameter(torch.empty(input, hidden, *parts))
        self.D = nn.Parameter(torch.empty(input))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw dt and C; A, B and D start as they always do."""
        n = torch.arange(self.hidden, dtype=torch.float64).expand(self.input, -1)
        with torch.no_grad():
            self.log_dt.uniform_(log(self.dt_min), log(self.dt_max))
            self.D.fill_(1)
            if self.init == "lin":
                self.log_decay.fill_(log(0.5))
                self.frequency.copy_(pi * n)
                self.B.copy_(torch.tensor([1.0, 0.0]).expand(self.B.shape))
                self.C.normal_(std=sqrt(0.5))  # complex normal of variance 1
            else:
                self.log_decay.copy_(torch.log(n + 1))
                self.B.fill_(1)
                self.C.normal_()

    def discrete(self) -> tuple[Tensor, Tensor]:
        """Ā and B̄, each (input, hidden), complex or real."""
        dt, decay, B = _wide(self.log_dt).exp()[:, None], -_wide(self.log_decay).exp(), self._matrix(self.B)
        A = torch.complex(decay, _wide(self.frequency)) if self.init == "lin" else decay
        if self.discretisation == "zoh":
            return torch.exp(dt * A), torch.expm1(dt * A) / A * B
        return (1 + dt * A / 2) / (1 - dt * A / 2), dt * B / (1 - dt * A / 2)

    def kernel(self, length: int) -> Float[Tensor, "length input"]:
        """Response of every channel to an impulse, D left out: C Ā^k B̄ for k from 0."""
        a, b = self.discrete()
        powers = a ** torch.arange(length, device=a.device)[:, None, None]
        return self._output(powers * b)

    def forward(
        self,
        x: Float[Tensor, "batch time input"],
        state: tuple[Tensor, ...] | None = None,
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        reset: Bool[Tensor, "batch time"] | None = None,
        cu_seqlens: Int[Tensor, " border"] | None = None,
    ) -> tuple[Float[Tensor, "batch time input"], HiddenState]:
        """Output at every step, and the state after each sequence's last; arguments as for every recurrent unit."""
        check_input(x, "batch time input", self.input)
        if cu_seqlens is not None:
            packed: tuple[Tensor, HiddenState] = run_packed(self, x, state, cu_seqlens, lengths, reset)
            return packed
        if state is not None:
            check_state(state, HiddenState, [(1, x.shape[0], self.input, self.hidden)])
        x = without_padding(x, lengths)
        a, b = self.discrete()
        h0 = None if state is None else state[0][0]
        h, last = linear_scan(a, b * _wide(x)[..., None], h0, lengths=lengths, reset=reset)
        return (self._output(h) + self.D * x).to(x.dtype), HiddenState(last[None])

    def step(
        self, x: Float[Tensor, "batch input"], state: tuple[Tensor, ...] | None = None
    ) -> tuple[Float[Tensor, "batch input"], HiddenState]:
        """Output and state after one more step: the numbers that `forward` gives over the whole sequence."""
        check_input(x, "batch input", self.input)
        y, new = self(x[:, None], state)
        return y[:, 0], new

    def _matrix(self, value: Tensor) -> Float[Tensor, "input hidden"] | Complex[Tensor, "input hidden"]:
        return torch.view_as_complex(_wide(value)) if self.init == "lin" else _wide(value)

    def _output(self, h: Tensor) -> Tensor:
        y = (h * self._matrix(self.C)).sum(-1)
        return 2 * y.real if self.init == "lin" else y

    def extra_repr(self) -> str:
        """Sizes and form."""
        return f"{self.input}, {self.hidden}, discretisation={self.discretisation!r}, init={self.init!r}"


def _wide(value: Tensor) -> Tensor:
    # There are no complex numbers of 16 bit, and steps of dt A would drown in them.
    return value.to(wide(value.dtype))
