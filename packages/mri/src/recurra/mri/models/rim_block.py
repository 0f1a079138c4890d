"""The recurrent inference machine: a network that walks from an estimate of an image to a better one.

Lønning et al. 2019, doi:10.1016/j.media.2019.01.005 (GRU cells); Karkalousos et al. 2020, arXiv:2012.07819 (IndRNN
cells). Authors' code: wdika/mridc and wdika/atommic, whose key names are kept.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from recurra.core.checks import one_of, whole_numbers
from recurra.core.nn import ConvGRUCell, ConvIndRNNCell, ConvMGUCell
from recurra.core.nn.conv_cells import CONVOLUTIONS, Dim, same_padding
from recurra.mri.operators import (
    FFTConvention,
    data_gradient,
    fft,
    from_channels,
    ifft,
    rss_components,
    sense_expand,
    sense_reduce,
    to_channels,
)

Cell = Literal["gru", "mgu", "indrnn"]
DataConsistency = Literal["implicit", "explicit"]
Combine = Literal["sense", "rss"]
CELLS: dict[str, type[ConvGRUCell] | type[ConvMGUCell] | type[ConvIndRNNCell]] = {
    "gru": ConvGRUCell,
    "mgu": ConvMGUCell,
    "indrnn": ConvIndRNNCell,
}


class ConvNonlinear(nn.Module):
    """A convolution that repeats border pixels outwards, and an activation."""

    def __init__(
        self,
        input: int,
        hidden: int,
        *,
        kernel: int,
        dilation: int = 1,
        bias: bool = True,
        nonlinear: Literal["relu", "leakyrelu"] | None = "relu",
        dim: Dim = 2,
    ) -> None:
        super().__init__()
        self.padding = same_padding(kernel, dilation)
        self.nonlinear = nonlinear
        self.conv_layer = CONVOLUTIONS[dim](input, hidden, kernel, dilation=dilation, bias=bias)
        nn.init.kaiming_normal_(self.conv_layer.weight, nonlinearity="relu")
        if self.conv_layer.bias is not None:
            nn.init.zeros_(self.conv_layer.bias)

    def forward(self, x: Float[Tensor, "batch input *spatial"]) -> Float[Tensor, "batch feature *spatial"]:
        """Return features of the same size."""
        axes = x.ndim - 2
        y: Tensor = self.conv_layer(F.pad(x, (self.padding,) * 2 * axes, mode="replicate"))
        if self.nonlinear is None:
            return y
        return F.relu(y) if self.nonlinear == "relu" else F.leaky_relu(y)


class RecurrentLayer(nn.Module):
    """A convolution (or none) and a recurrent cell."""

    def __init__(self, convs: nn.Module, rnn: nn.Module) -> None:
        super().__init__()
        self.convs, self.rnn = convs, rnn

    def forward(
        self, x: Float[Tensor, "batch input *spatial"], h: Float[Tensor, "batch hidden *spatial"]
    ) -> Float[Tensor, "batch hidden *spatial"]:
        """Return the next state."""
        state: Tensor = self.rnn(self.convs(x), h)
        return state


class RIMBlock(nn.Module):
    """Estimates of an image by a recurrent network that sees the estimate and its data gradient:

        g_t     = Σ_c conj(S_c) F⁻¹ m (F S_c x_t - y_c) / max(σ, 1)
        Δ_t, h' = network([x_t, g_t], h)
        x_t+1   = x_t + Δ_t

    Each list has one entry a layer. All but the last layer are a convolution with ReLU followed by a recurrent cell (a
    size of 0 leaves one of them out); the last is the convolution that gives Δ, one channel each for its real and its
    imaginary part.
    With explicit data consistency an estimate is the k-space ỹ - F S x instead, where ỹ is y moved towards the k-space
    that was handed in, by the learned `dc_weight` where it was sampled.

    Args:
        conv_filters: channels of the convolutions.
        conv_kernels: their sizes.
        conv_dilations: their dilations.
        conv_bias: whether they have biases.
        recurrent_filters: channels of the cells.
        recurrent_kernels: sizes of their convolutions.
        recurrent_dilations: their dilations.
        recurrent_bias: whether they have biases.
        cell: kind of the cells.
        steps: number of estimates.
        dim: number of spatial axes.
        data_consistency: whether estimates are images or data-consistent k-space.
        combine: how coil images become the first estimate; "rss" loses the phase.
        fft: convention of the Fourier transform.
        fft_dim: how many of the last axes k-space is in; all if None.
    """

    def __init__(
        self,
        *,
        conv_filters: Sequence[int] = (64, 64, 2),
        conv_kernels: Sequence[int] = (5, 3, 3),
        conv_dilations: Sequence[int] = (1, 2, 1),
        conv_bias: Sequence[bool] = (True, True, False),
        recurrent_filters: Sequence[int] = (64, 64, 0),
        recurrent_kernels: Sequence[int] = (1, 1, 0),
        recurrent_dilations: Sequence[int] = (1, 1, 0),
        recurrent_bias: Sequence[bool] = (True, True, False),
        cell: Cell = "indrnn",
        steps: int = 8,
        dim: Dim = 2,
        data_consistency: DataConsistency = "implicit",
        combine: Combine = "sense",
        fft: FFTConvention = "centered-ortho",
        fft_dim: int | None = None,
    ) -> None:
        super().__init__()
        one_of("cell", cell, Cell)
        one_of("data_consistency", data_consistency, DataConsistency)
        one_of("combine", combine, Combine)
        whole_numbers(steps=steps)
        convs = _layers(filters=conv_filters, kernels=conv_kernels, dilations=conv_dilations, bias=conv_bias)
        cells = _layers(
            filters=recurrent_filters, kernels=recurrent_kernels, dilations=recurrent_dilations, bias=recurrent_bias
        )
        if len(convs) != len(cells) or conv_filters[-1] != 2 or recurrent_filters[-1] != 0:
            raise ValueError(
                f"conv_filters and recurrent_filters must be as long as each other and end with 2 and 0; "
                f"got {tuple(conv_filters)} and {tuple(recurrent_filters)}"
            )
        self.steps, self.fft, self.fft_dim = steps, fft, dim if fft_dim is None else fft_dim
        self.data_consistency, self.combine = data_consistency, combine
        self.recurrent_filters = tuple(f for f in recurrent_filters if f)

        channels = 4  # real and imaginary part of the image and of its gradient
        self.layers = nn.ModuleList()
        for conv, rnn in zip(convs[:-1], cells[:-1], strict=True):
            layer: nn.Module = nn.Identity()
            if conv["filters"]:
                layer = ConvNonlinear(channels, dim=dim, **_options(conv))
                channels = conv["filters"]
            if rnn["filters"]:
                layer = RecurrentLayer(layer, CELLS[cell](channels, dim=dim, **_options(rnn)))
                channels = rnn["filters"]
            self.layers.append(layer)
        self.final_layer = nn.Sequential(ConvNonlinear(channels, nonlinear=None, dim=dim, **_options(convs[-1])))
        if data_consistency == "explicit":
            self.dc_weight = nn.Parameter(torch.ones(1))

    def forward(
        self,
        current: Complex[Tensor, "_ #coil *spatial"],
        kspace: Complex[Tensor, "batch coil *spatial"],
        sensitivity: Complex[Tensor, "#batch coil *spatial"],
        mask: Bool[Tensor, "#batch 1 *mask"],
        *,
        image: Complex[Tensor, "#batch *spatial"] | None = None,
        hidden: Sequence[Tensor] | None = None,
        sigma: float | Tensor = 1.0,
        checkpointing: bool = False,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the estimates after every step, and the hidden states after the last.

        Args:
            current: k-space to start from; the measured one in a first block.
            kspace: the measured k-space y.
            sensitivity: coil sensitivities S.
            mask: True where k-space was sampled.
            image: estimate to start from, instead of the image of `current`.
            hidden: states to start from, one a recurrent layer; zeros if None.
            sigma: noise level; 1 if less.
            checkpointing: recompute every step in the backward pass.
        """
        if image is None:
            image = self.combine_coils(current, sensitivity)
        if hidden is None:
            batch, _, *spatial = kspace.shape
            hidden = [kspace.real.new_zeros(batch, f, *spatial) for f in self.recurrent_filters]
        image = image.expand(kspace.shape[0], *image.shape[1:])
        state, sigma = list(hidden), max(float(sigma), 1.0)
        estimates = []
        for _ in range(self.steps):
            args = image, state, kspace, sensitivity, mask, sigma
            if checkpointing and torch.is_grad_enabled():
                image, state = checkpoint(self._step, *args, use_reentrant=False, preserve_rng_state=False)
            else:
                image, state = self._step(*args)
            estimates.append(image)
        if self.data_consistency == "explicit":
            start = kspace - torch.where(mask, current - kspace, 0) * self.dc_weight
            estimates = [start - fft(sense_expand(x, sensitivity), self.fft, self.fft_dim) for x in estimates]
        return estimates, state

    def _step(
        self, image: Tensor, hidden: list[Tensor], kspace: Tensor, sensitivity: Tensor, mask: Tensor, sigma: float
    ) -> tuple[Tensor, list[Tensor]]:
        """The next estimate and states."""
        gradient = data_gradient(image, kspace, sensitivity, mask, self.fft, self.fft_dim) / sigma
        features = torch.cat([to_channels(image), to_channels(gradient)], dim=1)  # (batch, 4, *spatial)
        states: list[Tensor] = []
        for layer in self.layers:
            if isinstance(layer, RecurrentLayer):
                features = layer(features, hidden[len(states)])
                states.append(features)
            else:
                features = layer(features)
        return image + from_channels(self.final_layer(features)), states

    def combine_coils(
        self,
        kspace: Complex[Tensor, "_ #coil *spatial"],
        sensitivity: Complex[Tensor, "_ coil *spatial"],
        combine: Combine | None = None,
    ) -> Complex[Tensor, "_ *spatial"]:
        """Return one image of k-space, combined the block's way or another."""
        coils = ifft(kspace, self.fft, self.fft_dim)
        return rss_components(coils) if (combine or self.combine) == "rss" else sense_reduce(coils, sensitivity)


def _layers(**lists: Sequence[int]) -> list[dict[str, int]]:
    """Lists with one entry a layer, regrouped by layer."""
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        told = ", ".join(f"{n} {name}" for name, n in lengths.items())
        raise ValueError(f"the lists of layers must have one entry a layer each; got {told}")
    return [dict(zip(lists, layer, strict=True)) for layer in zip(*lists.values(), strict=True)]


def _options(layer: dict[str, int]) -> dict[str, Any]:
    """Arguments of a layer that follow its input channels."""
    return {
        "hidden": layer["filters"],
        "kernel": layer["kernels"],
        "dilation": layer["dilations"],
        "bias": bool(layer["bias"]),
    }
