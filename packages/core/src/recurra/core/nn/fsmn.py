"""Feedforward sequential memory networks: a finite window over time instead of a recurrence.

Zhang et al. 2015, arXiv:1512.08301, as in FRCRN (Zhao et al. 2022, arXiv:2206.07293) and MossFormer2 (Zhao et al. 2023,
arXiv:2312.11825), whose key names and shapes are kept (modelscope/ClearerVoice-Studio). Their code drops axes of size
one; ours keeps every shape. The window is `recurra.kernels.memory_conv`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from recurra.core.checks import at_least_one, one_of
from recurra.core.nn.recurrent import check_input, check_state, run_packed, without_padding
from recurra.core.nn.sequence_norm import instance_norm
from recurra.core.nn.states import ComplexWindowState, WindowState
from recurra.kernels import memory_conv


def _taps(channels: int, members: int, taps: int) -> nn.Conv2d:
    """Holder of the taps (channels, members, taps, 1) of groups of `members` channels each."""
    return nn.Conv2d(channels, channels, (taps, 1), groups=channels // members, bias=False)


class FSMN(nn.Module):
    """Memory block over time:

        p = W_2 relu(W_1 x + b)
        m = p + Σ_k a_k ⊙ p_(t+k)                    k from -left to right
        y = x + m

    `memory` says what the window sees, with K = lorder:

        causal          K - 1 steps back and the present one (FRCRN)
        bidirectional   K - 1 steps back and ahead (MossFormer2, where the class is called Uni)
        dual            the same twice: m_1 = p + a * p, m = m_1 + c * m_1, c mixing groups of four channels

    Keys: `linear` W_1, b; `project` W_2; `conv1` a (input, 1, taps, 1); `conv2` c (input, 4, taps, 1).

    Args:
        input: width of x and y.
        hidden: width between W_1 and W_2.
        lorder: steps the window reaches back, the present one included.
        memory: see above.
    """

    def __init__(
        self,
        input: int,
        hidden: int,
        *,
        lorder: int = 20,
        memory: Literal["causal", "bidirectional", "dual"] = "causal",
    ) -> None:
        super().__init__()
        one_of("memory", memory, ("causal", "bidirectional", "dual"))
        at_least_one(lorder=lorder)
        if memory == "dual" and input % 4:
            raise ValueError(f"input must be divided by 4 where memory is dual; got {input}")
        self.input, self.hidden, self.lorder, self.memory = input, hidden, lorder, memory
        self.left, self.right = lorder - 1, 0 if memory == "causal" else lorder - 1
        taps = self.left + 1 + self.right
        self.linear = nn.Linear(input, hidden)
        self.project = nn.Linear(hidden, input, bias=False)
        self.conv1 = _taps(input, 1, taps)
        if memory == "dual":
            self.conv2 = _taps(input, 4, taps)

    def forward(
        self,
        x: Float[Tensor, "batch time input"],
        state: tuple[Tensor, ...] | None = None,
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        cu_seqlens: Int[Tensor, " border"] | None = None,
    ) -> tuple[Float[Tensor, "batch time input"], WindowState | None]:
        """Output at every step, and what the next steps need of these: the last lorder - 1 frames of p.

        Args:
            x: sequences; padding may hold anything.
            state: what an earlier call returned; silence if None. Only a causal memory has one.
            lengths: int64, steps of each sequence, in any order; the output is 0 past a sequence's end.
            cu_seqlens: borders of sequences laid end to end, x being (1, total, input).

        Raises:
            ValueError: a shape does not fit, or a state is given to a memory that reads ahead.
        """
        check_input(x, "batch time input", self.input)
        if cu_seqlens is not None:
            packed: tuple[Tensor, WindowState | None] = run_packed(self, x, state, cu_seqlens, lengths)
            return packed
        past = self._past(state, x.shape[0])
        x = without_padding(x, lengths)
        p = self.project(F.relu(self.linear(x)))
        m = p + self._window(self.conv1, p, lengths, past)
        if self.memory == "dual":
            m = m + self._window(self.conv2, m, lengths, None)
        last = None if self.memory != "causal" else WindowState(_last_frames(p, past, self.left, lengths)[None])
        return without_padding(x + m, lengths), last

    def step(
        self, x: Float[Tensor, "batch input"], state: tuple[Tensor, ...] | None = None
    ) -> tuple[Float[Tensor, "batch input"], WindowState]:
        """Output and state after one more step: the numbers that `forward` gives over the whole sequence.

        Raises:
            ValueError: the memory reads ahead, or a shape does not fit.
        """
        if self.memory != "causal":
            raise ValueError(
                f"step needs memory='causal'; this unit's is {self.memory!r} and reads ahead: call forward"
            )
        check_input(x, "batch input", self.input)
        y, new = self(x[:, None], state)
        return y[:, 0], new

    def _past(self, state: tuple[Tensor, ...] | None, batch: int) -> Tensor | None:
        if state is None:
            return None
        if self.memory != "causal":
            raise ValueError(f"state needs memory='causal'; this unit's is {self.memory!r}: leave state out")
        check_state(state, WindowState, [(1, batch, self.left, self.input)])
        return state[0][0]

    def _window(self, taps: nn.Conv2d, p: Tensor, lengths: Tensor | None, past: Tensor | None) -> Tensor:
        return memory_conv(p, taps.weight[..., 0], left=self.left, right=self.right, lengths=lengths, past=past)

    def extra_repr(self) -> str:
        """Sizes and window."""
        return f"{self.input}, {self.hidden}, lorder={self.lorder}, memory={self.memory!r}"


def _last_frames(p: Tensor, past: Tensor | None, count: int, lengths: Tensor | None) -> Tensor:
    """The last `count` frames of [past, p] before each sequence's end, silence where there were fewer."""
    frames = torch.cat([p.new_zeros(p.shape[0], count, p.shape[2]) if past is None else past.to(p.dtype), p], 1)
    if lengths is None:
        return frames[:, p.shape[1] :]
    where = lengths[:, None] + torch.arange(count, device=p.device)
    return frames.gather(1, where[..., None].expand(-1, -1, p.shape[2]))


class DilatedDenseMemory(nn.Module):
    """The last of `depth` windows, each reading all those before it; DilatedDenseNet of MossFormer2. From i = 0 on:

        s_0 = x,   s_(i+1) = PReLU(norm(a_i * [s_i, ..., s_0]))        dilation 2^i

    norm is over time, a sequence and a channel at a time. Group g of the i-th window reads channels g (i + 1) to
    g (i + 1) + i of the concatenation, newest first, which is not channel g of every s.

    Args:
        channels: width of x and of the result.
        lorder: steps a window reaches back and ahead, the present one included, times the dilation.
        depth: number of windows.
    """

    def __init__(self, channels: int, *, lorder: int = 20, depth: int = 2) -> None:
        super().__init__()
        if lorder < 1 or depth < 1:
            raise ValueError(f"lorder and depth must be at least 1; got {lorder} and {depth}")
        self.channels, self.lorder, self.depth = channels, lorder, depth
        for i in range(depth):
            taps = nn.Conv2d(channels * (i + 1), channels, (2 * lorder - 1, 1), groups=channels, bias=False)
            self.add_module(f"conv{i + 1}", taps)
            self.add_module(f"norm{i + 1}", nn.InstanceNorm2d(channels, affine=True))
            self.add_module(f"prelu{i + 1}", nn.PReLU(channels))

    def forward(
        self, x: Float[Tensor, "batch time channel"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch time channel"]:
        """The last window's output; lengths as for `FSMN`."""
        check_input(x, "batch time channel", self.channels)
        layers, reach = [x], self.lorder - 1
        for i in range(self.depth):
            taps, norm, slope = (getattr(self, f"{part}{i + 1}") for part in ("conv", "norm", "prelu"))
            s = memory_conv(layers, taps.weight[..., 0], left=reach, right=reach, dilation=2**i, lengths=lengths)
            s = instance_norm(s, norm.weight, norm.bias, lengths, norm.eps)
            layers.insert(0, torch.where(s > 0, s, slope.weight * s))
        return layers[0]


class DilatedFSMN(nn.Module):
    """Memory block whose window is a dense stack of dilated ones (MossFormer2):

        p = W_2 relu(W_1 x + b)
        y = x + memory(p)

    Keys: `linear`, `project`, and `conv` for the `DilatedDenseMemory`. It reads ahead, so it has no state and no step.

    Args:
        input: width of x and y.
        hidden: width between W_1 and W_2.
        lorder: steps the first window reaches back and ahead, the present one included.
        depth: number of windows, each reaching twice as far as the one before.
    """

    def __init__(self, input: int, hidden: int, *, lorder: int = 20, depth: int = 2) -> None:
        super().__init__()
        self.input, self.hidden = input, hidden
        self.linear = nn.Linear(input, hidden)
        self.project = nn.Linear(hidden, input, bias=False)
        self.conv = DilatedDenseMemory(input, lorder=lorder, depth=depth)

    def forward(
        self,
        x: Float[Tensor, "batch time input"],
        state: None = None,
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        cu_seqlens: Int[Tensor, " border"] | None = None,
    ) -> tuple[Float[Tensor, "batch time input"], None]:
        """Output at every step, and None for a state; arguments as for `FSMN`."""
        check_input(x, "batch time input", self.input)
        if cu_seqlens is not None:
            return run_packed(self, x, None, cu_seqlens, lengths)[0], None
        x = without_padding(x, lengths)
        p = self.project(F.relu(self.linear(x)))
        return without_padding(x + self.conv(p, lengths), lengths), None

    def step(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Refused: the windows read ahead."""
        raise ValueError("step needs a unit that reads no step ahead; DilatedFSMN does: call forward")


class ComplexFSMN(nn.Module):
    """Two causal memory blocks on complex signals, each of a real and an imaginary network (FRCRN):

        real' = F_re(real) - F_im(imag)
        imag' = F_re(imag) + F_im(real)

    The biases of the `FSMN`s F take part in both lines, so this is not a map that is linear over the complex numbers.
    Keys: `fsmn_re_L1`, `fsmn_im_L1`, `fsmn_re_L2`, `fsmn_im_L2`, applied in this order of L.

    Args:
        input: width of x and y.
        hidden: width inside each FSMN.
        lorder: steps the windows reach back, the present one included.
    """

    def __init__(self, input: int, hidden: int, *, lorder: int = 20) -> None:
        super().__init__()
        self.input, self.hidden, self.lorder = input, hidden, lorder
        self.fsmn_re_L1, self.fsmn_im_L1 = (FSMN(input, hidden, lorder=lorder) for _ in range(2))
        self.fsmn_re_L2, self.fsmn_im_L2 = (FSMN(input, hidden, lorder=lorder) for _ in range(2))

    def forward(
        self,
        x: Float[Tensor, "batch time input 2"],
        state: tuple[Tensor, ...] | None = None,
        *,
        lengths: Int[Tensor, " batch"] | None = None,
        cu_seqlens: Int[Tensor, " border"] | None = None,
    ) -> tuple[Float[Tensor, "batch time input 2"], ComplexWindowState]:
        """Output at every step, the last axis (real, imaginary), and the state; arguments as for `FSMN`."""
        check_input(x, "batch time input 2", 2)
        check_input(x[..., 0], "batch time input", self.input)
        if cu_seqlens is not None:
            packed: tuple[Tensor, ComplexWindowState] = run_packed(self, x, state, cu_seqlens, lengths)
            return packed
        batch = x.shape[0]
        if state is not None:
            check_state(state, ComplexWindowState, [(2, batch, self.lorder - 1, self.input)] * 4)
        parts, last = torch.cat(x.unbind(-1)), []
        for i, (re, im) in enumerate(((self.fsmn_re_L1, self.fsmn_im_L1), (self.fsmn_re_L2, self.fsmn_im_L2))):
            pasts = (None, None) if state is None else tuple(s.flatten(0, 1)[None] for s in state[2 * i : 2 * i + 2])
            twice = None if lengths is None else lengths.repeat(2)
            of_re, past_re = re(parts, None if pasts[0] is None else WindowState(pasts[0]), lengths=twice)
            of_im, past_im = im(parts, None if pasts[1] is None else WindowState(pasts[1]), lengths=twice)
            parts = torch.cat([of_re[:batch] - of_im[batch:], of_re[batch:] + of_im[:batch]])
            last += [past[0].reshape(2, batch, *past.shape[2:]) for (past,) in (past_re, past_im)]
        return parts.reshape(2, batch, *parts.shape[1:]).movedim(0, -1), ComplexWindowState(*last)

    def step(
        self, x: Float[Tensor, "batch input 2"], state: tuple[Tensor, ...] | None = None
    ) -> tuple[Float[Tensor, "batch input 2"], ComplexWindowState]:
        """Output and state after one more step: the numbers that `forward` gives over the whole sequence."""
        check_input(x, "batch input 2", 2)
        y, new = self(x[:, None], state)
        return y[:, 0], new
