"""The call signature that every reconstruction model has."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Complex, Inexact
from torch import Tensor

from recurra.core.checkpoint import Pretrained
from recurra.core.checks import one_of
from recurra.core.prepared import Prepared, prepare
from recurra.mri.operators import FFTConvention, fft, ifft

Maps = Literal["espirit", "rss", "unit"]
Scaling = Literal["quantile", "max_image", "none"]
COMPLEX = ("kspace", "sensitivity", "image", "initial_kspace")
NUMBERS = ("sigma", "likelihood_scale")
AXES = {1: ("width",), 2: ("height", "width"), 3: ("depth", "height", "width")}


class Reconstructor(Pretrained, ABC):
    """Masked k-space and coil sensitivities -> image.

    A reconstructor knows how its input has to be made (`fft`, `maps`, `scaling`), so that a checkpoint needs nothing
    beside it.

    Args:
        fft: convention of the Fourier transform, see `recurra.mri.operators`.
        maps: how coil sensitivities are estimated.
        scaling: what k-space is divided by: a quantile of its magnitudes, the largest magnitude of the zero-filled coil
            images, or nothing.
        dim: number of spatial axes.
        fft_dim: how many of the last spatial axes k-space is in; all of them if None. The others, such as slices that
            are reconstructed together, are image axes from the start.

    Attributes:
        checkpointing: recompute activations in the backward pass instead of keeping them. Changes memory and time, no
            numbers.
        unexportable: why no program can be made of it by tracing, or None.
    """

    checkpointing: bool = False
    unexportable: ClassVar[str | None] = None

    def __init__(
        self,
        *,
        fft: FFTConvention,
        maps: Maps,
        scaling: Scaling,
        dim: Literal[1, 2, 3] = 2,
        fft_dim: Literal[1, 2, 3] | None = None,
    ) -> None:
        super().__init__()
        one_of("fft", fft, FFTConvention)
        one_of("maps", maps, Maps)
        one_of("scaling", scaling, Scaling)
        one_of("dim", dim, Literal[1, 2, 3])
        if fft_dim is not None and not 1 <= fft_dim <= dim:
            raise ValueError(f"fft_dim must be between 1 and dim = {dim}; got {fft_dim!r}")
        self.fft: FFTConvention = fft
        self.maps: Maps = maps
        self.scaling: Scaling = scaling
        self.dim: int = dim
        self.fft_dim: int = dim if fft_dim is None else fft_dim

    @abstractmethod
    def forward(
        self,
        kspace: Complex[Tensor, "batch coil *spatial"],
        sensitivity: Complex[Tensor, "#batch coil *spatial"],
        mask: Bool[Tensor, "#batch 1 *mask"],
    ) -> Inexact[Tensor, "batch *spatial"]:
        """Return the reconstruction: complex, or real and not negative, whichever the model gives.

        Args:
            kspace: zero wherever `mask` is False.
            sensitivity: coil sensitivities, in the model's image layout.
            mask: True where k-space was sampled; size 1 along an axis stands for all of it.

        Raises:
            ValueError: shapes or types do not fit together.
        """

    def estimates(
        self,
        kspace: Complex[Tensor, "batch coil *spatial"],
        sensitivity: Complex[Tensor, "#batch coil *spatial"],
        mask: Bool[Tensor, "#batch 1 *mask"],
    ) -> list[tuple[float, Tensor]]:
        """Images whose losses a training step sums, each with its weight; the last one is the reconstruction."""
        return [(1.0, self(kspace, sensitivity, mask))]

    def refine_maps(
        self,
        kspace: Complex[Tensor, "batch coil *spatial"],
        sensitivity: Complex[Tensor, "#batch coil *spatial"],
        mask: Bool[Tensor, "#batch 1 *mask"],
    ) -> Complex[Tensor, "_ coil *spatial"]:
        """Return the sensitivities the model reconstructs with: those given, or what its own network makes of them."""
        return sensitivity

    @property
    def combines_by_maps(self) -> bool:
        """Whether the image is one that the sensitivities given combine, of which nothing is known where they are zero.

        Not so where a network of the model's own makes the sensitivities, or the image is a root sum of squares.
        """
        return False

    def prepared(self) -> Prepared:
        """Return the model in a form for inference alone: the same numbers, sooner."""
        return prepare(self)

    def to_image(self, kspace: Complex[Tensor, "*axes"]) -> Complex[Tensor, "*axes"]:
        """Inverse Fourier transform in the model's convention."""
        return ifft(kspace, self.fft, self.fft_dim)

    def to_kspace(self, image: Complex[Tensor, "*axes"]) -> Complex[Tensor, "*axes"]:
        """Fourier transform in the model's convention."""
        return fft(image, self.fft, self.fft_dim)

    def check(self, kspace: Tensor, sensitivity: Tensor, mask: Tensor, **options: Tensor | float | None) -> None:
        """Raise a ValueError that says what is wrong with the arguments of `forward`, if anything is."""
        expected = f"({', '.join(('batch', 'coil', *AXES[self.dim]))})"
        given = {"kspace": kspace, "sensitivity": sensitivity}
        for name, tensor in {**given, **options}.items():
            if name in COMPLEX and isinstance(tensor, Tensor) and not tensor.is_complex():
                raise ValueError(f"{name} has type {tensor.dtype}; expected complex64, see torch.view_as_complex")
        if kspace.ndim != self.dim + 2:
            raise ValueError(f"kspace has shape {tuple(kspace.shape)}; expected {expected}")
        if sensitivity.shape[1:] != kspace.shape[1:] or sensitivity.shape[0] not in (1, kspace.shape[0]):
            raise ValueError(
                f"sensitivity has shape {tuple(sensitivity.shape)}; expected that of kspace, {tuple(kspace.shape)}"
            )
        _check_mask("mask", "True where k-space was sampled", mask, kspace)
        for name, value in options.items():
            _check_option(name, value, kspace)


def _check_mask(name: str, meaning: str, mask: Tensor, kspace: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} has type {mask.dtype}; expected bool, {meaning}")
    wanted = (kspace.shape[0], 1, *kspace.shape[2:])
    fits = mask.ndim == kspace.ndim and all(m in (1, n) for m, n in zip(mask.shape, wanted, strict=True))
    if not fits:
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)}; expected {wanted}, where any size may be 1 "
            f"(kspace has shape {tuple(kspace.shape)})"
        )


def _check_option(name: str, value: Tensor | float | None, kspace: Tensor) -> None:
    """The same for what some models take beside."""
    if not isinstance(value, Tensor):
        return
    batch, _, *spatial = kspace.shape
    expected = {"image": (batch, *spatial), "initial_kspace": tuple(kspace.shape)}
    if name == "padding":
        _check_mask("padding", "True where the scanner never samples", value, kspace)
    elif name in expected and tuple(value.shape) != expected[name]:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; expected {expected[name]} (kspace has shape {tuple(kspace.shape)})"
        )
    elif name in NUMBERS and value.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected one number for the whole batch")
