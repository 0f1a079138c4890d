"""Cascades of (independently) recurrent inference machines: RIM, IRIM and CIRIM.

Karkalousos et al. 2022, arXiv:2111.15498. Authors' code: wdika/mridc and wdika/atommic, whose key names are kept below
`cascades`. A RIM is a `CIRIM` of one cascade with GRU cells, an IRIM one with IndRNN cells. Where this deviates:

* the code of the paper and ATOMMIC disagree about what a cascade hands to the next: both ways are here (`semantics`);
* ATOMMIC stops with an error on explicit data consistency in more than one cascade; here the next cascade starts from
  the coil-combined k-space, as in the paper's code;
* GRU and MGU cells work in one and three dimensions too.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import Any, Literal

import torch
from jaxtyping import Bool, Complex
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recurra.core.checks import one_of, whole_numbers
from recurra.core.nn.conv_cells import Dim
from recurra.mri.models.reconstructor import Maps, Reconstructor, Scaling
from recurra.mri.models.rim_block import Cell, Combine, DataConsistency, RIMBlock
from recurra.mri.models.unet import LearnedSensitivity
from recurra.mri.operators import FFTConvention

Semantics = Literal["paper", "atommic"]
SensitivityNet = Literal["none", "normunet"]

__all__ = ["CIRIM", "RIMBlock"]


class CIRIM(Reconstructor):
    """Cascades of (independently) recurrent inference machines; one cascade is a RIM.

    K `RIMBlock`s with weights of their own. What block c hands to block c+1:

        semantics   hidden states   gradient   estimate
        paper       none (zeros)    cut        its last image, or (explicit data consistency) the image of its k-space
        atommic     its last        flows      the same

    Args:
        conv_filters: and the other lists: the layers, see `RIMBlock`.
        conv_kernels: see `RIMBlock`.
        conv_dilations: see `RIMBlock`.
        conv_bias: see `RIMBlock`.
        recurrent_filters: see `RIMBlock`.
        recurrent_kernels: see `RIMBlock`.
        recurrent_dilations: see `RIMBlock`.
        recurrent_bias: see `RIMBlock`.
        depth: half the input channels of a block; image and gradient make 4, so 2 is its only value.
        cell: kind of the recurrent cells.
        cascades: number of blocks K.
        steps: estimates a block makes, rounded up to a multiple of 8 as the authors do.
        round_steps: whether to round.
        dim: number of spatial axes.
        fft_dim: how many of the last axes k-space is in; all if None.
        data_consistency: "implicit": by the gradient alone; "explicit": a step towards the data after every block too.
        semantics: what one block hands to the next.
        keep_prediction: with implicit data consistency and the paper's semantics, hand on the image itself. If not, it
            goes through the inverse Fourier transform like k-space: what the authors' code does, and of no use.
        accumulate: train on every estimate, the later the more; else on the last alone.
        combine: how coil images become one: at the end of explicit data consistency and, with ATOMMIC's semantics, for
            the first estimate. "rss" loses the phase.
        sensitivity_net: learn the coil sensitivities from the centre of k-space, ignoring those given.
        sensitivity_filters: first channels of that network.
        sensitivity_pools: its poolings.
        compat_rss: normalise learned sensitivities as ATOMMIC does.
        fft: convention of the Fourier transform.
        maps: how coil sensitivities are estimated.
        scaling: how k-space is scaled.
    """

    def __init__(
        self,
        *,
        conv_filters: tuple[int, ...] = (64, 64, 2),
        conv_kernels: tuple[int, ...] = (5, 3, 3),
        conv_dilations: tuple[int, ...] = (1, 2, 1),
        conv_bias: tuple[bool, ...] = (True, True, False),
        recurrent_filters: tuple[int, ...] = (64, 64, 0),
        recurrent_kernels: tuple[int, ...] = (1, 1, 0),
        recurrent_dilations: tuple[int, ...] = (1, 1, 0),
        recurrent_bias: tuple[bool, ...] = (True, True, False),
        depth: int = 2,
        cell: Cell = "indrnn",
        cascades: int = 5,
        steps: int = 8,
        round_steps: bool = True,
        dim: Dim = 2,
        fft_dim: Dim | None = None,
        data_consistency: DataConsistency = "implicit",
        semantics: Semantics = "paper",
        keep_prediction: bool = True,
        accumulate: bool = True,
        combine: Combine = "sense",
        sensitivity_net: SensitivityNet = "none",
        sensitivity_filters: int = 8,
        sensitivity_pools: int = 4,
        compat_rss: bool = False,
        fft: FFTConvention = "centered-ortho",
        maps: Maps = "espirit",
        scaling: Scaling = "max_image",
    ) -> None:
        super().__init__(fft=fft, maps=maps, scaling=scaling, dim=dim, fft_dim=fft_dim)
        one_of("semantics", semantics, Semantics)
        one_of("combine", combine, Combine)
        one_of("sensitivity_net", sensitivity_net, SensitivityNet)
        whole_numbers(cascades=cascades, steps=steps)
        if depth != 2:
            raise ValueError(f"depth must be 2, for image and gradient have 4 channels; got {depth!r}")
        if sensitivity_net == "normunet" and (dim, self.fft_dim) != (2, 2):
            raise ValueError(f"sensitivity_net 'normunet' needs dim and fft_dim of 2; got {dim} and {self.fft_dim}")
        self.steps = 8 * ceil(steps / 8) if round_steps else steps
        self.semantics, self.keep_prediction, self.accumulate = semantics, keep_prediction, accumulate
        self.explicit = data_consistency == "explicit"
        block = partial(
            RIMBlock,
            conv_filters=conv_filters,
            conv_kernels=conv_kernels,
            conv_dilations=conv_dilations,
            conv_bias=conv_bias,
            recurrent_filters=recurrent_filters,
            recurrent_kernels=recurrent_kernels,
            recurrent_dilations=recurrent_dilations,
            recurrent_bias=recurrent_bias,
        )
        self.combine = combine
        common: dict[str, Any] = {"cell": cell, "steps": self.steps, "dim": dim}
        # The paper's code combines coils by their sensitivities wherever an estimate starts.
        common |= {"combine": "sense" if semantics == "paper" else combine}
        common |= {"data_consistency": data_consistency, "fft": fft, "fft_dim": fft_dim}
        self.cascades = nn.ModuleList(block(**common) for _ in range(cascades))
        self.sensitivity_net: LearnedSensitivity | None = None
        if sensitivity_net == "normunet":
            self.sensitivity_net = LearnedSensitivity(sensitivity_filters, sensitivity_pools, compat_rss=compat_rss)

    def forward(
        self,
        kspace: Complex[Tensor, "batch coil *spatial"],
        sensitivity: Complex[Tensor, "#batch coil *spatial"],
        mask: Bool[Tensor, "#batch 1 *mask"],
        *,
        image: Complex[Tensor, "#batch *spatial"] | None = None,
        sigma: float | Tensor = 1.0,
    ) -> Complex[Tensor, "batch *spatial"]:
        """Return the last estimate of the last cascade.

        Args:
            kspace: zero wherever `mask` is False.
            sensitivity: coil sensitivities.
            mask: True where k-space was sampled.
            image: estimate to start from, instead of the zero-filled reconstruction.
            sigma: noise level; 1 if less.

        Raises:
            ValueError: shapes or types do not fit together.
        """
        self.check(kspace, sensitivity, mask, image=image, sigma=sigma)
        maps = self.refine_maps(kspace, sensitivity, mask)
        return self.trajectory(kspace, maps, mask, image=image, sigma=sigma)[0][-1][-1]

    def estimates(
        self,
        kspace: Complex[Tensor, "batch coil *spatial"],
        sensitivity: Complex[Tensor, "#batch coil *spatial"],
        mask: Bool[Tensor, "#batch 1 *mask"],
    ) -> list[tuple[float, Tensor]]:
        """Images whose losses a training step sums: all, later ones with larger weights, or the last alone.

        Both over cascades and over steps weights grow by equal factors from 0.1 to 1, and are divided by their number.
        """
        if not self.accumulate:
            return [(1.0, self(kspace, sensitivity, mask))]
        self.check(kspace, sensitivity, mask)
        images, _ = self.trajectory(kspace, self.refine_maps(kspace, sensitivity, mask), mask)
        return [
            (w * v, x)
            for w, cascade in zip(_growing_weights(len(images)), images, strict=True)
            for v, x in zip(_growing_weights(len(cascade)), cascade, strict=True)
        ]

    def refine_maps(
        self,
        kspace: Complex[Tensor, "batch coil *spatial"],
        sensitivity: Complex[Tensor, "#batch coil *spatial"],
        mask: Bool[Tensor, "#batch 1 *mask"],
    ) -> Complex[Tensor, "_ coil *spatial"]:
        """Return the sensitivities of the model's own network, if it has one, else those given."""
        return sensitivity if self.sensitivity_net is None else self.sensitivity_net(kspace, mask, self.fft)

    @property
    def combines_by_maps(self) -> bool:
        """Whether the sensitivities given combine the image: neither a network's nor a root sum of squares."""
        return self.sensitivity_net is None and not (self.explicit and self.combine == "rss")

    def trajectory(
        self,
        kspace: Complex[Tensor, "batch coil *spatial"],
        sensitivity: Complex[Tensor, "#batch coil *spatial"],
        mask: Bool[Tensor, "#batch 1 *mask"],
        *,
        image: Complex[Tensor, "#batch *spatial"] | None = None,
        hidden: Sequence[Tensor] | None = None,
        sigma: float | Tensor = 1.0,
    ) -> tuple[list[list[Tensor]], list[Tensor]]:
        """Return every estimate of every cascade, and the hidden states after the last, with `sensitivity` as it is."""
        current, state, images = kspace, hidden, []
        last_state: list[Tensor] = []
        for block in self.cascades:
            assert isinstance(block, RIMBlock)
            run = self._recomputed(partial(block, image=image, hidden=state, sigma=sigma))
            outputs, last_state = run(current, kspace, sensitivity, mask)
            if self.explicit:
                images.append([block.combine_coils(k, sensitivity, self.combine) for k in outputs])
            else:
                images.append(outputs)
            last, state = outputs[-1], last_state
            if self.semantics == "paper":
                last, state = last.detach(), None
            if self.explicit:
                current, image = last, None
            elif self.keep_prediction or self.semantics == "atommic":
                image = last
            else:
                current, image = last.unsqueeze(1), None
        return images, last_state

    def check(self, kspace: Tensor, sensitivity: Tensor, mask: Tensor, **options: Tensor | float | None) -> None:
        """Raise a ValueError that says what is wrong with the arguments of `forward`, if anything is."""
        image = options.get("image")
        if isinstance(image, Tensor) and image.shape == (1, *kspace.shape[2:]):  # one for the whole batch
            options["image"] = image.expand(kspace.shape[0], *image.shape[1:])
        super().check(kspace, sensitivity, mask, **options)

    def _recomputed(self, block: Callable[..., Any]) -> Callable[..., Any]:
        """The block, keeping no activations if asked to: recomputed whole, or step by step if it is the only one."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block
        if len(self.cascades) == 1:
            return partial(block, checkpointing=True)
        return partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)


def _growing_weights(n: int) -> list[float]:
    """Weights from 0.1 to 1 in equal ratios, divided by their number; a single one is 0.1."""
    weights: list[float] = (torch.logspace(-1, 0, n, dtype=torch.float64) / n).tolist()
    return weights
