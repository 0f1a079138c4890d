"""Data terms of the prepared models: the masked Fourier operator F⁻¹ m F and the data gradient built on it."""

import torch
from jaxtyping import Bool, Complex
from torch import Tensor

from recurra.mri.operators import FFTConvention, ifft, sense_reduce

# Values transformed together: coil images that stay in the second-level cache.
GROUP = 1 << 17


class MaskedFourier:
    """The operator F⁻¹ m F on coil images.

    It is a circular convolution, so it does not see the shifts of the image, and a mask that is constant along an axis
    leaves that axis alone.

    Args:
        mask: True where k-space was sampled.
        convention: of the Fourier transform.
        axes: how many of the last axes are transformed.
    """

    def __init__(self, mask: Bool[Tensor, "#batch 1 #height #width"], convention: FFTConvention, axes: int) -> None:
        self.mask, self.convention, self.count = mask, convention, axes
        transformed = list(range(-axes, 0))
        self.axes = [axis for axis in transformed if not _constant(mask, axis)]
        if convention.startswith("centered"):
            mask = torch.fft.ifftshift(mask, dim=transformed)
        for axis in transformed:
            if axis not in self.axes:
                mask = mask.narrow(axis, 0, 1)
        self.weights = mask.to(torch.complex64)

    def __call__(self, coils: Complex[Tensor, "coil height width"], index: int) -> Complex[Tensor, "coil height width"]:
        """F⁻¹ m F of coil images of the batch's entry `index`; they are written over."""
        weights = self.weights[index if len(self.weights) > 1 else 0]
        if not self.axes:
            return coils.mul_(weights)
        if len(self.axes) == 1:
            axis = self.axes[0]
            masked: Tensor = torch.fft.ifft(torch.fft.fft(coils, dim=axis).mul_(weights), dim=axis)
        else:
            masked = torch.fft.ifftn(torch.fft.fftn(coils, dim=self.axes).mul_(weights), dim=self.axes)
        return masked

    def correct(
        self,
        coils: Complex[Tensor, "batch coil height width"],
        measured: Complex[Tensor, "batch coil height width"],
        rate: float,
    ) -> None:
        """Moves coil images in place towards the measured ones: z - rate (F⁻¹ m F z - measured)."""
        for index, (images, data) in enumerate(zip(coils, measured, strict=True)):
            for part in groups(images):
                error = self(images[part].clone(), index).sub_(data[part])
                images[part].sub_(error, alpha=rate)


class DataGradient:
    """scale Σ_c conj(S_c) F⁻¹ m (F S_c x - y_c), its part without x computed once.

    Args:
        fourier: F⁻¹ m F.
        kspace: the measured y.
        maps: coil sensitivities S, one a batch entry.
        scale: a factor.
    """

    def __init__(
        self,
        fourier: MaskedFourier,
        kspace: Complex[Tensor, "batch coil height width"],
        maps: Complex[Tensor, "batch coil height width"],
        scale: float | Tensor,
    ) -> None:
        self.fourier, self.maps, self.scale = fourier, maps, scale
        data = torch.where(fourier.mask, kspace, 0)
        self.constant = sense_reduce(ifft(data, fourier.convention, fourier.count), maps).conj().resolve_conj()

    def __call__(self, image: Complex[Tensor, "batch height width"]) -> Complex[Tensor, "batch height width"]:
        """The gradient at an image."""
        # Summed as its conjugate, Σ S conj(z): the maps need no conjugate copy.
        total = self.constant.neg()
        for index, maps in enumerate(self.maps):
            for part in groups(maps):
                coils = self.fourier(maps[part] * image[index], index).conj_physical_()
                total[index] += coils.mul_(maps[part]).sum(0)
        return total.conj_physical_().mul_(self.scale)


def groups(coils: Tensor) -> list[slice]:
    """Ranges of coils to be worked on together."""
    size = max(1, GROUP // max(coils[0].numel(), 1))
    return [slice(start, start + size) for start in range(0, len(coils), size)]


def _constant(mask: Tensor, axis: int) -> bool:
    return mask.shape[axis] == 1 or bool((mask == mask.narrow(axis, 0, 1)).all())
