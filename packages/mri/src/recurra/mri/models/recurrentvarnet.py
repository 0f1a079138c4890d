"""RecurrentVarNet: gradient steps in k-space, regularised by a recurrent network in image space.

Yiasemis et al. 2022, arXiv:2111.09639. Authors' code: NKI-AI/direct, whose key names are kept. As in the code, and
other than in the paper's text, the state initialiser sees the k-space of its image. Defaults are the network published
for Calgary-Campinas; for fastMRI the authors took `hidden=96, layers=3`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recurra.core.checks import one_of, whole_numbers
from recurra.core.nn import Conv2dGRU, NormConv2dGRU
from recurra.mri.models.reconstructor import Maps, Reconstructor, Scaling
from recurra.mri.models.unet import SensitivityRefinement
from recurra.mri.operators import (
    FFTConvention,
    fft,
    from_channels,
    ifft,
    rss,
    sense_expand,
    sense_reduce,
    to_channels,
)

Initializer = Literal["none", "sense", "zero_filled", "input_image"]
Refine = Literal["none", "unet"]


class RecurrentInit(nn.Module):
    """First state of a recurrent network, from an image: dilated convolutions, then one 1x1 convolution a layer.

    Args:
        in_channels: channels of the image.
        hidden: channels of the state.
        layers: layers of the state.
        channels: channels of the dilated 3x3 convolutions.
        dilations: their dilations.
        multiscale: how many of the last convolutions the state is made of.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        layers: int,
        *,
        channels: tuple[int, ...] = (32, 32, 64, 64),
        dilations: tuple[int, ...] = (1, 1, 2, 4),
        multiscale: int = 1,
    ) -> None:
        super().__init__()
        if len(channels) != len(dilations) or not 1 <= multiscale <= len(channels):
            raise ValueError(
                f"the initializer needs as many channels as dilations and multiscale of 1 to that number; "
                f"got {len(channels)}, {len(dilations)} and {multiscale}"
            )
        self.multiscale = multiscale
        inputs = (in_channels, *channels[:-1])
        self.conv_blocks = nn.ModuleList(
            nn.Sequential(nn.ReplicationPad2d(d), nn.Conv2d(i, o, 3, dilation=d))
            for i, o, d in zip(inputs, channels, dilations, strict=True)
        )
        features = sum(channels[-multiscale:])
        self.out_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(features, hidden, 1)) for _ in range(layers))

    def forward(self, x: Float[Tensor, "batch input height width"]) -> Float[Tensor, "batch hidden height width layer"]:
        """Return the state."""
        features: list[Tensor] = []
        for block in self.conv_blocks:
            x = torch.relu(block(x))
            features.append(x)
        x = torch.cat(features[-self.multiscale :], dim=1)
        return torch.stack([torch.relu(block(x)) for block in self.out_blocks], dim=-1)


class RecurrentVarNetBlock(nn.Module):
    """One step in k-space, with a learned step size α and a recurrent network H:

    w, h' = H(Σ_c conj(S_c) F⁻¹ k_c, h)
    k'    = k - α m (k - y) + F S w
    """

    def __init__(
        self,
        hidden: int = 64,
        layers: int = 4,
        *,
        normalized: bool = False,
        fft: FFTConvention = "centered-ortho",
        fft_dim: int = 2,
    ) -> None:
        super().__init__()
        self.fft: FFTConvention = fft
        self.fft_dim = fft_dim
        self.learning_rate = nn.Parameter(torch.ones(1))
        self.regularizer = (NormConv2dGRU if normalized else Conv2dGRU)(2, hidden, num_layers=layers)

    def forward(
        self,
        current: Complex[Tensor, "batch coil height width"],
        kspace: Complex[Tensor, "batch coil height width"],
        sensitivity: Complex[Tensor, "#batch coil height width"],
        mask: Bool[Tensor, "#batch 1 #height #width"],
        state: Float[Tensor, "batch hidden height width layer"] | None = None,
    ) -> tuple[Complex[Tensor, "batch coil height width"], Float[Tensor, "batch hidden height width layer"]]:
        """Return the next k-space and state."""
        image = sense_reduce(ifft(current, self.fft, self.fft_dim), sensitivity)
        w, state = self.regularizer(to_channels(image), state)
        error = torch.where(mask, current - kspace, 0)
        prior = fft(sense_expand(from_channels(w), sensitivity), self.fft, self.fft_dim)
        return current - self.learning_rate * error + prior, state


class RecurrentVarNet(Reconstructor):
    """Recurrent Variational Network: T blocks from the measured k-space on, root sum of squares at the end.

    Args:
        steps: number of blocks T.
        hidden: channels of the recurrent networks.
        layers: their layers.
        shared: one set of weights for all blocks.
        normalized: normalise the input of the recurrent networks.
        initializer: what the first state is made from: nothing (zeros), the coil-combined zero-filled image, the coil
            images themselves, or an image given with the input.
        initializer_channels: channels of the initialiser's convolutions.
        initializer_dilations: their dilations.
        initializer_multiscale: how many of them the state is made of.
        refine: send the coil sensitivities through a U-Net first.
        refine_filters: first channels of that U-Net.
        refine_pools: its poolings.
        fft: convention of the Fourier transform.
        fft_dim: 2, or 1 if only the columns are in k-space.
        maps: how coil sensitivities are estimated.
        scaling: how k-space is scaled.
    """

    def __init__(
        self,
        *,
        steps: int = 8,
        hidden: int = 128,
        layers: int = 4,
        shared: bool = False,
        normalized: bool = False,
        initializer: Initializer = "sense",
        initializer_channels: tuple[int, ...] = (32, 32, 64, 64),
        initializer_dilations: tuple[int, ...] = (1, 1, 2, 4),
        initializer_multiscale: int = 3,
        refine: Refine = "unet",
        refine_filters: int = 8,
        refine_pools: int = 4,
        fft: FFTConvention = "centered-ortho",
        fft_dim: Literal[1, 2] = 2,
        maps: Maps = "rss",
        scaling: Scaling = "quantile",
    ) -> None:
        super().__init__(fft=fft, maps=maps, scaling=scaling, fft_dim=fft_dim)
        one_of("initializer", initializer, Initializer)
        one_of("refine", refine, Refine)
        whole_numbers(steps=steps, hidden=hidden, layers=layers)
        self.steps, self.start = steps, initializer
        self.initializer: RecurrentInit | None = None
        if initializer != "none":
            self.initializer = RecurrentInit(
                2,
                hidden,
                layers,
                channels=initializer_channels,
                dilations=initializer_dilations,
                multiscale=initializer_multiscale,
            )
        self.block_list = nn.ModuleList(
            RecurrentVarNetBlock(hidden, layers, normalized=normalized, fft=fft, fft_dim=fft_dim)
            for _ in range(1 if shared else steps)
        )
        self.refinement = SensitivityRefinement(refine_filters, refine_pools) if refine == "unet" else None

    def forward(
        self,
        kspace: Complex[Tensor, "batch coil height width"],
        sensitivity: Complex[Tensor, "#batch coil height width"],
        mask: Bool[Tensor, "#batch 1 #height #width"],
        *,
        image: Complex[Tensor, "batch height width"] | None = None,
        padding: Bool[Tensor, "#batch 1 #height #width"] | None = None,
    ) -> Float[Tensor, "batch height width"]:
        """Return the root sum of squares of the reconstructed coil images.

        Args:
            kspace: zero wherever `mask` is False.
            sensitivity: coil sensitivities.
            mask: True where k-space was sampled.
            image: what the state is made from if `initializer` is "input_image".
            padding: True where the scanner never samples, which stays zero.

        Raises:
            ValueError: shapes or types do not fit together, or there is no image where one is needed.
        """
        self.check(kspace, sensitivity, mask, image=image, padding=padding)
        maps = self.refine_maps(kspace, sensitivity, mask)
        prediction = self.trajectory(kspace, maps, mask, image=image)[0][-1]
        if padding is not None:
            prediction = torch.where(padding, 0, prediction)
        return rss(self.to_image(prediction))

    def refine_maps(
        self,
        kspace: Complex[Tensor, "batch coil height width"],
        sensitivity: Complex[Tensor, "#batch coil height width"],
        mask: Bool[Tensor, "#batch 1 #height #width"],
    ) -> Complex[Tensor, "_ coil height width"]:
        """Return the sensitivities refined by the model's U-Net, if it has one."""
        return sensitivity if self.refinement is None else self.refinement(sensitivity)

    def trajectory(
        self,
        kspace: Complex[Tensor, "batch coil height width"],
        sensitivity: Complex[Tensor, "#batch coil height width"],
        mask: Bool[Tensor, "#batch 1 #height #width"],
        *,
        image: Complex[Tensor, "batch height width"] | None = None,
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return the k-space after every block, and the last state, with `sensitivity` as it is."""
        state = self._first_state(kspace, sensitivity, image)
        current, predictions = kspace, []
        for step in range(self.steps):
            block: Callable[..., Any] = self.block_list[step % len(self.block_list)]
            if self.checkpointing and torch.is_grad_enabled():
                block = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
            current, state = block(current, kspace, sensitivity, mask, state)
            predictions.append(current)
        return predictions, state

    def _first_state(self, kspace: Tensor, sensitivity: Tensor, image: Tensor | None) -> Tensor | None:
        """The learned initial state; None for zeros."""
        if self.initializer is None:
            return None
        if self.start == "zero_filled":
            # The sum over coils of their images' k-space.
            start = kspace.sum(1)
        elif self.start == "sense":
            start = self.to_kspace(sense_reduce(self.to_image(kspace), sensitivity))
        elif image is None:
            raise ValueError("initializer 'input_image' needs an image; pass image=")
        else:
            start = self.to_kspace(image)
        state: Tensor = self.initializer(to_channels(start))
        return state
