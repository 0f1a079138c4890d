"""The recurrent inference machine of direct.

Lønning et al. 2019, doi:10.1016/j.media.2019.01.005, as NKI-AI/direct builds it (key names kept): `Conv2dGRU` instead
of single cells, weights shared over the steps or not, a learned first state, four ways to make the first image. The
authors' code fails without skip connections outside training; here it does not.
"""

from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recurra.core.checks import one_of, whole_numbers
from recurra.core.nn import Conv2dGRU, NormConv2dGRU
from recurra.mri.models.reconstructor import Maps, Reconstructor, Scaling
from recurra.mri.models.recurrentvarnet import RecurrentInit, Refine
from recurra.mri.models.unet import SensitivityRefinement
from recurra.mri.operators import FFTConvention, data_gradient, from_channels, sense_reduce, to_channels

Start = Literal["sense", "zero_filled", "input_image", "input_kspace"]


class DirectRIM(Reconstructor):
    """Estimates of an image by a recurrent network that sees the estimate and its data gradient:

        g_t     = s Σ_c conj(S_c) F⁻¹ m (F S_c x_t - y_c)
        Δ_t, h' = network_t([x_t, g_t], h)
        x_t+1   = x_t + Δ_t

    Args:
        hidden: channels of the network.
        depth: its layers.
        length: number of steps.
        shared: one network for all steps.
        skip: add Δ to the estimate; else Δ is the next estimate.
        start: first estimate: the coil-combined zero-filled image, the plain sum of the coil images, an image given
            with the input, or the coil-combined image of a k-space given with the input.
        learned_initializer: make the first state from the first estimate; else it is zero.
        initializer_channels: channels of the initialiser's convolutions.
        initializer_dilations: their dilations.
        initializer_multiscale: how many of them the state is made of.
        instance_norm: normalise the input of every gate.
        dense_connect: number of earlier layers that every layer sees.
        normalized: normalise the input of the network.
        likelihood_scale: the factor s, such as one over the noise variance.
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
        hidden: int = 128,
        depth: int = 2,
        length: int = 16,
        shared: bool = True,
        skip: bool = True,
        start: Start = "sense",
        learned_initializer: bool = False,
        initializer_channels: tuple[int, ...] = (32, 32, 64, 64),
        initializer_dilations: tuple[int, ...] = (1, 1, 2, 4),
        initializer_multiscale: int = 1,
        instance_norm: bool = False,
        dense_connect: int = 0,
        normalized: bool = False,
        likelihood_scale: float = 1.0,
        refine: Refine = "none",
        refine_filters: int = 8,
        refine_pools: int = 4,
        fft: FFTConvention = "centered-ortho",
        fft_dim: Literal[1, 2] = 2,
        maps: Maps = "rss",
        scaling: Scaling = "quantile",
    ) -> None:
        super().__init__(fft=fft, maps=maps, scaling=scaling, fft_dim=fft_dim)
        one_of("start", start, Start)
        one_of("refine", refine, Refine)
        whole_numbers(hidden=hidden, depth=depth, length=length)
        self.length, self.skip, self.start, self.likelihood_scale = length, skip, start, likelihood_scale
        self.initializer: RecurrentInit | None = None
        if learned_initializer:
            self.initializer = RecurrentInit(
                2,
                hidden,
                depth,
                channels=initializer_channels,
                dilations=initializer_dilations,
                multiscale=initializer_multiscale,
            )
        network = partial(
            NormConv2dGRU if normalized else Conv2dGRU,
            *(4, hidden, 2),
            num_layers=depth,
            instance_norm=instance_norm,
            dense_connect=dense_connect,
        )
        self.cell_list = nn.ModuleList(network() for _ in range(1 if shared else length))
        self.refinement = SensitivityRefinement(refine_filters, refine_pools) if refine == "unet" else None

    def forward(
        self,
        kspace: Complex[Tensor, "batch coil height width"],
        sensitivity: Complex[Tensor, "#batch coil height width"],
        mask: Bool[Tensor, "#batch 1 #height #width"],
        *,
        image: Complex[Tensor, "batch height width"] | None = None,
        initial_kspace: Complex[Tensor, "batch coil height width"] | None = None,
        likelihood_scale: float | Tensor | None = None,
    ) -> Complex[Tensor, "batch height width"]:
        """Return the last estimate.

        Args:
            kspace: zero wherever `mask` is False.
            sensitivity: coil sensitivities.
            mask: True where k-space was sampled.
            image: first estimate, whatever `start` is.
            initial_kspace: what the first estimate is made from if `start` is "input_kspace".
            likelihood_scale: takes the place of the model's.

        Raises:
            ValueError: shapes or types do not fit together, or there is nothing to start from.
        """
        given = {"image": image, "initial_kspace": initial_kspace, "likelihood_scale": likelihood_scale}
        self.check(kspace, sensitivity, mask, **given)
        maps = self.refine_maps(kspace, sensitivity, mask)
        images, _ = self.trajectory(
            kspace, maps, mask, image=image, initial_kspace=initial_kspace, likelihood_scale=likelihood_scale
        )
        return images[-1]

    def estimates(
        self,
        kspace: Complex[Tensor, "batch coil height width"],
        sensitivity: Complex[Tensor, "#batch coil height width"],
        mask: Bool[Tensor, "#batch 1 #height #width"],
    ) -> list[tuple[float, Tensor]]:
        """Images whose losses a training step sums: every step's, with equal weights of sum 1."""
        self.check(kspace, sensitivity, mask)
        images, _ = self.trajectory(kspace, self.refine_maps(kspace, sensitivity, mask), mask)
        return [(1 / len(images), x) for x in images]

    def refine_maps(
        self,
        kspace: Complex[Tensor, "batch coil height width"],
        sensitivity: Complex[Tensor, "#batch coil height width"],
        mask: Bool[Tensor, "#batch 1 #height #width"],
    ) -> Complex[Tensor, "_ coil height width"]:
        """Return the sensitivities refined by the model's U-Net, if it has one."""
        return sensitivity if self.refinement is None else self.refinement(sensitivity)

    @property
    def combines_by_maps(self) -> bool:
        """Whether the sensitivities given combine the image, not those of its own network."""
        return self.refinement is None

    def trajectory(
        self,
        kspace: Complex[Tensor, "batch coil height width"],
        sensitivity: Complex[Tensor, "#batch coil height width"],
        mask: Bool[Tensor, "#batch 1 #height #width"],
        *,
        image: Complex[Tensor, "batch height width"] | None = None,
        initial_kspace: Complex[Tensor, "batch coil height width"] | None = None,
        state: Float[Tensor, "batch hidden height width layer"] | None = None,
        likelihood_scale: float | Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Return the estimate after every step, and the last state, with `sensitivity` as it is."""
        x = self._first_image(kspace, sensitivity, initial_kspace) if image is None else image
        scale = self.likelihood_scale if likelihood_scale is None else likelihood_scale
        if self.initializer is not None and state is None:
            state = self.initializer(to_channels(x))
        step = self._step
        if self.checkpointing and torch.is_grad_enabled():
            step = partial(checkpoint, step, use_reentrant=False, preserve_rng_state=False)
        images = []
        for t in range(self.length):
            network = self.cell_list[t % len(self.cell_list)]
            x, state = step(network, x, state, kspace, sensitivity, mask, scale)
            images.append(x)
        assert state is not None
        return images, state

    def _step(
        self,
        network: nn.Module,
        x: Tensor,
        state: Tensor | None,
        kspace: Tensor,
        sensitivity: Tensor,
        mask: Tensor,
        scale: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The next estimate and state."""
        gradient = scale * data_gradient(x, kspace, sensitivity, mask, self.fft, self.fft_dim)
        delta, state = network(torch.cat([to_channels(x), to_channels(gradient)], dim=1), state)
        delta = from_channels(delta)
        return (x + delta if self.skip else delta), state

    def _first_image(self, kspace: Tensor, sensitivity: Tensor, initial_kspace: Tensor | None) -> Tensor:
        """The estimate that the first step improves."""
        if self.start == "zero_filled":
            return self.to_image(kspace).sum(1)
        if self.start == "input_image":
            raise ValueError("start 'input_image' needs an image; pass image=")
        if self.start == "input_kspace":
            if initial_kspace is None:
                raise ValueError("start 'input_kspace' needs a k-space; pass initial_kspace=")
            kspace = initial_kspace
        return sense_reduce(self.to_image(kspace), sensitivity)
