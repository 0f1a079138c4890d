"""Convolutional recurrent cells of the recurrent inference machines, in one, two and three dimensions.

One step x, h -> h' of a recurrence over iterations whose state is an image. The gates are those of the cells of the
same name for sequences; matrices become convolutions, so that every pixel sees its neighbourhood.

    GRU     Cho et al. 2014, arXiv:1406.1078; as in Lønning et al. 2019, doi:10.1016/j.media.2019.01.005
    MGU     Zhou et al. 2016, arXiv:1603.09420
    IndRNN  Li et al. 2018, arXiv:1803.04831; as in Karkalousos et al. 2022, arXiv:2111.15498

Key names and initial weights are those of the authors' code (wdika/mridc, wdika/atommic). Their GRU and MGU are
two-dimensional whatever they are asked for; one and three dimensions of these two are an extension.

All that follows the convolutions is one operation, `recurra.kernels.conv_cell_pointwise`; its reference backend is the
equations below, line by line.
"""

from math import sqrt
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recurra.core.checks import one_of
from recurra.kernels import conv_cell_pointwise

Dim = Literal[1, 2, 3]
CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


def same_padding(kernel: int, dilation: int = 1) -> int:
    """How many pixels to add on each side of an image so that a convolution keeps its size.

    Raises:
        ValueError: there is no such number.
    """
    if kernel < 1 or dilation < 1 or dilation * (kernel - 1) % 2:
        raise ValueError(
            f"kernel must be odd and dilation at least 1, to keep the size of an image; got {kernel} and {dilation}"
        )
    return dilation * (kernel - 1) // 2


def _same_convolution(
    channels: int, features: int, kernel: int, dilation: int, *, bias: bool, dim: int
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """A convolution that keeps the size of an image with zeros around it."""
    one_of("dim", dim, CONVOLUTIONS)
    padding = same_padding(kernel, dilation)
    return CONVOLUTIONS[dim](channels, features, kernel, padding=padding, dilation=dilation, bias=bias)


class ConvGRUCell(nn.Module):
    """Gated recurrent unit, reset gate after the product:

        r  = σ(W_r * x + b_r + U_r * h)
        z  = σ(W_z * x + b_z + U_z * h)
        n  = tanh(W_n * x + b_n + r ⊙ (U_n * h))
        h' = (1 - z) ⊙ n + z ⊙ h

    `ih` holds W and b of r, z, n in this order, `hh` holds U.
    """

    def __init__(
        self, input: int, hidden: int, *, kernel: int = 1, dilation: int = 1, bias: bool = True, dim: Dim = 2
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.ih = _same_convolution(input, 3 * hidden, kernel, dilation, bias=bias, dim=dim)
        self.hh = _same_convolution(hidden, 3 * hidden, kernel, dilation, bias=False, dim=dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw orthogonal weights; biases start at zero."""
        nn.init.orthogonal_(self.ih.weight)
        nn.init.orthogonal_(self.hh.weight)
        if self.ih.bias is not None:
            nn.init.zeros_(self.ih.bias)

    def forward(
        self, x: Float[Tensor, "batch input *spatial"], h: Float[Tensor, "batch hidden *spatial"]
    ) -> Float[Tensor, "batch hidden *spatial"]:
        """Return the next state."""
        return conv_cell_pointwise("gru", self.ih(x), self.hh(h), h)


class ConvMGUCell(nn.Module):
    """Minimal gated unit, gate after the product:

        f  = σ(W_f * x + b_f + U_f * h)
        c  = tanh(W_c * x + b_c + f ⊙ (U_c * h))
        h' = (1 - f) ⊙ c + f ⊙ h

    The authors' code lets f = 1 keep the state, where the paper's f = 1 takes the candidate. `ih` holds W and b of f, c
    in this order, `hh` holds U.
    """

    def __init__(
        self, input: int, hidden: int, *, kernel: int = 1, dilation: int = 1, bias: bool = True, dim: Dim = 2
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.ih = _same_convolution(input, 2 * hidden, kernel, dilation, bias=bias, dim=dim)
        self.hh = _same_convolution(hidden, 2 * hidden, kernel, dilation, bias=False, dim=dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw Xavier-uniform weights, those of the input larger by √2; biases start at zero."""
        nn.init.xavier_uniform_(self.ih.weight, gain=sqrt(2))
        nn.init.xavier_uniform_(self.hh.weight)
        if self.ih.bias is not None:
            nn.init.zeros_(self.ih.bias)

    def forward(
        self, x: Float[Tensor, "batch input *spatial"], h: Float[Tensor, "batch hidden *spatial"]
    ) -> Float[Tensor, "batch hidden *spatial"]:
        """Return the next state."""
        return conv_cell_pointwise("mgu", self.ih(x), self.hh(h), h)


class ConvIndRNNCell(nn.Module):
    """Independently recurrent unit: the state of a channel feeds back by one number alone.

        h' = relu(W * x + b + u ⊙ h)

    `ih` holds W and b; `hh` is u, one number a channel.
    """

    def __init__(
        self, input: int, hidden: int, *, kernel: int = 1, dilation: int = 1, bias: bool = True, dim: Dim = 2
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.kernel = kernel
        self.ih = _same_convolution(input, hidden, kernel, dilation, bias=bias, dim=dim)
        self.hh = nn.Parameter(torch.empty(1, hidden, *(1,) * dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw normal weights with standard deviation 1 / (hidden (1 + kernel²)); biases start at zero."""
        std = 1 / (self.hidden * (1 + self.kernel**2))
        nn.init.normal_(self.ih.weight, std=std)
        nn.init.normal_(self.hh, std=std)
        if self.ih.bias is not None:
            nn.init.zeros_(self.ih.bias)

    def forward(
        self, x: Float[Tensor, "batch input *spatial"], h: Float[Tensor, "batch hidden *spatial"]
    ) -> Float[Tensor, "batch hidden *spatial"]:
        """Return the next state."""
        return conv_cell_pointwise("indrnn", self.ih(x), None, h, u=self.hh)
