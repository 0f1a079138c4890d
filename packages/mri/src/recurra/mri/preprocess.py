"""From the k-space of a slice to what a network sees: the same steps in training and in reconstruction.

Order and numbers are those of NKI-AI/direct: zero the padded samples, draw the mask, estimate the coil maps from its
calibration samples, mask, divide by a scale measured on the masked k-space. The image of a network is multiplied by
that scale again.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Complex, Complex64, Float
from numpy.typing import NDArray
from torch import Tensor

from recurra.core.checks import one_of
from recurra.mri.masks import MaskGenerator, Seed
from recurra.mri.models.reconstructor import Maps, Scaling
from recurra.mri.operators import FFTConvention, ifft, rss, sense_reduce
from recurra.mri.sampling import Sampling
from recurra.mri.sensitivity import acs_rectangle, espirit_maps, rss_maps, unit_maps


@dataclass
class PreparedSlice:
    """A slice as a network takes it; tensors have no batch axis.

    Attributes:
        kspace: masked and scaled, complex (coil, height, width).
        sensitivity: coil maps, complex (coil, height, width).
        mask: the samples taken, (1, 1 or height, width).
        acs: calibration samples, (1, 1 or height, width).
        full: k-space as it was before the mask, not scaled (coil, height, width).
        fft: Fourier convention of its images.
        scale: what the k-space was divided by.
        acceleration: that of the drawn mask; else the share of samples taken, inverted.
        sampling: that of the file, if it comes from one.
    """

    kspace: Complex[Tensor, "coil height width"]
    sensitivity: Complex[Tensor, "coil height width"]
    mask: Bool[Tensor, "1 row width"]
    acs: Bool[Tensor, "1 acs_row width"]
    full: Complex[Tensor, "coil height width"]
    fft: FFTConvention
    scale: Float[Tensor, ""]
    acceleration: float
    sampling: Sampling | None = None

    @property
    def undersampled(self) -> str:
        """How it is known that the file itself was measured undersampled here; else nothing."""
        return "" if self.sampling is None or self.sampling.mask is None else self.sampling.evidence

    @cached_property
    def target(self) -> Float[Tensor, "height width"]:
        """Root sum of squares of the images of `full`, scaled; a truth only if that was fully sampled."""
        return rss(self._images)[0]

    @cached_property
    def reference(self) -> Complex[Tensor, "height width"]:
        """The same as one complex image, combined by the coil maps."""
        return sense_reduce(self._images, self.sensitivity[None])[0]

    @cached_property
    def _images(self) -> Complex[Tensor, "1 coil height width"]:
        return ifft(self.full, self.fft)[None] / self.scale


@dataclass(frozen=True)
class Preprocess:
    """The steps from raw k-space to a `PreparedSlice`.

    Attributes:
        fft: Fourier convention of the network.
        maps: how coil maps are estimated; a single coil always has the unit map.
        scaling: `quantile` of the masked k-space's magnitude, the maximum of its coil images, or none.
        quantile: that quantile; None for the maximum.
        gaussian_sigma: damps the calibration samples of RSS maps.
        padding_eps: samples whose magnitude over coils is below this share of the mean are padding; 0 keeps all.
        coil_compression: number of virtual coils; None keeps the measured ones.
    """

    fft: FFTConvention = "centered-ortho"
    maps: Maps = "rss"
    scaling: Scaling = "quantile"
    quantile: float | None = 0.99
    gaussian_sigma: float | None = 0.7
    padding_eps: float = 0.001
    coil_compression: int | None = None

    def __post_init__(self) -> None:
        """Refuses unknown choices.

        Raises:
            ValueError: a choice is none of those named.
        """
        one_of("maps", self.maps, Maps)
        one_of("scaling", self.scaling, Scaling)

    def __call__(
        self,
        kspace: Complex64[NDArray[np.complex64], "coil height width"] | Complex[Tensor, "coil height width"],
        *,
        generator: MaskGenerator | None = None,
        seed: Seed = None,
        mask: NDArray[np.bool_] | None = None,
        acs_lines: int | None = None,
        padding: tuple[int, int] | None = None,
        sensitivity: Tensor | None = None,
        calibration: NDArray[np.complex64] | None = None,
    ) -> PreparedSlice:
        """The slice, prepared.

        Args:
            kspace: as measured.
            generator: undersamples fully sampled k-space; not used when there is a `mask`.
            seed: of the generator's draw.
            mask: the file's own sampling pattern (1 or height, width).
            acs_lines: how many central lines it says are calibration.
            padding: first measured column and first column after those measured.
            sensitivity: known coil maps (coil, height, width), complex.
            calibration: calibration lines of a scan of their own (coil, height, width), zero elsewhere: coil maps are
                estimated from them.

        Raises:
            ValueError: the mask leaves too few calibration samples, or the maps are of another size.
        """
        full = torch.from_numpy(kspace) if isinstance(kspace, np.ndarray) else kspace
        if sensitivity is not None and sensitivity.shape != full.shape:
            raise ValueError(f"coil maps have shape {tuple(sensitivity.shape)}; the k-space has {tuple(full.shape)}")
        if padding is not None and padding[1] > 0:
            full = full.clone()
            full[..., : padding[0]] = 0
            full[..., padding[1] :] = 0
        empty = padding_mask(full, self.padding_eps) if mask is None else None
        if empty is not None:
            full = torch.where(empty, 0, full)
        sampling, acs, acceleration = _choose_mask(full, generator, seed, mask, acs_lines, padding)
        if empty is not None:
            sampling = _without_padding(sampling, empty)
        if self.coil_compression is not None and self.coil_compression < full.shape[0]:
            if sensitivity is not None or calibration is not None:
                raise ValueError("coil_compression and given coil maps exclude each other; leave one of them out")
            full = compress_coils(full, acs, self.coil_compression)
        masked = torch.where(sampling, full, 0)
        if sensitivity is None and calibration is not None:
            lines = torch.from_numpy(calibration)
            sensitivity = self.estimate_maps(
                lines, acs_of_mask(lines.abs().sum((0, 1), keepdim=True)[0] > 0, full.shape[1])
            )
        if sensitivity is None:
            sensitivity = self.estimate_maps(full, acs)
        sensitivity = sensitivity.to(full.dtype)
        scale = self.scale(masked)
        return PreparedSlice(
            kspace=masked / scale,
            sensitivity=sensitivity,
            mask=sampling[None],
            acs=acs[None],
            full=full,
            fft=self.fft,
            scale=scale,
            acceleration=acceleration,
        )

    def estimate_maps(
        self, kspace: Complex[Tensor, "coil height width"], acs: Bool[Tensor, "row width"]
    ) -> Complex[Tensor, "coil height width"]:
        """Coil maps from the calibration samples."""
        if self.maps == "unit" or kspace.shape[0] == 1:
            return unit_maps(kspace)
        if self.maps == "espirit":
            # A calibration region two kernels wide: with less the maps have holes within the object.
            narrow = min(acs_rectangle(acs, kspace.shape[-2]))
            return espirit_maps(kspace, acs, self.fft, kernel_width=6 if narrow < 6 else min(6, narrow // 2))
        return rss_maps(kspace, acs, self.fft, gaussian_sigma=self.gaussian_sigma)

    def scale(self, masked: Complex[Tensor, "coil height width"]) -> Float[Tensor, ""]:
        """What the k-space is divided by; one for k-space of zeros."""
        if self.scaling == "none":
            return torch.ones((), dtype=masked.real.dtype)
        size = masked.abs() if self.scaling == "quantile" else ifft(masked, self.fft).abs()
        scale = quantile_scale(size, self.quantile) if self.scaling == "quantile" else size.max()
        return torch.where(scale > 0, scale, 1)


def padding_mask(
    kspace: Complex[Tensor, "coil height width"], eps: float = 0.001
) -> Bool[Tensor, "height width"] | None:
    """Samples that were never measured: their magnitude summed over coils is below `eps` times the mean of it."""
    if eps <= 0:
        return None
    magnitude = kspace.abs().sum(0)
    return magnitude < eps * magnitude.mean()


def quantile_scale(magnitude: Float[Tensor, "coil height width"], quantile: float | None) -> Float[Tensor, ""]:
    """The quantile of the magnitudes over all coils that are not empty; their maximum without a quantile."""
    values = magnitude[magnitude.flatten(1).any(1)].flatten()
    if not len(values):
        return magnitude.new_zeros(())
    if quantile is None:
        return values.max()
    rank = int((1 - quantile) * len(values)) + 1  # among the largest
    return values.kthvalue(max(len(values) + 1 - rank, 1)).values


def normalize_atommic(
    kspace: Complex[Tensor, "coil height width"],
    kind: Literal["max", "minmax"] = "max",
    convention: FFTConvention = "centered-ortho",
) -> tuple[Complex[Tensor, "coil height width"], float, float]:
    """Images less the offset, over the scale, as k-space; then offset and scale (wdika/atommic `normalize_inputs`).

    Its `minmax` subtracts a real constant from complex images; it is here for the numbers of its networks.
    """
    from recurra.mri.operators import fft

    images = ifft(kspace, convention)
    magnitude = images.abs()
    offset = float(magnitude.min()) if kind == "minmax" else 0.0
    scale = float(magnitude.max()) - offset or 1.0
    return fft((images - offset) / scale, convention), offset, scale


def acs_of_mask(mask: Bool[Tensor, "row width"], height: int, lines: int | None = None) -> Bool[Tensor, "row width"]:
    """The fully sampled centre of a mask: columns for a mask of columns, else the largest rectangle in the middle."""
    rows, columns = acs_rectangle(mask, height)
    if lines is not None and mask.shape[0] == 1:
        columns = min(columns, lines)
    width = mask.shape[1]
    acs = torch.zeros_like(mask)
    left = width // 2 - columns // 2
    if mask.shape[0] == 1:
        acs[:, left : left + columns] = True
    else:
        top = height // 2 - rows // 2
        acs[top : top + rows, left : left + columns] = True
    return acs


def compress_coils(
    kspace: Complex[Tensor, "coil height width"], acs: Bool[Tensor, "row width"], coils: int
) -> Complex[Tensor, "virtual height width"]:
    """Geometric coil compression (Zhang et al. 2013): fewer virtual coils, at each readout position the best ones.

    The bases of neighbouring positions are turned into each other, so that virtual coils stay smooth. Calibration
    samples that leave rows out cannot be transformed along the readout; then one basis serves all positions.
    """
    if bool((acs == acs[:1]).all()):
        columns = acs[0] if acs.any() else torch.ones_like(acs[0])
        hybrid = torch.fft.ifft(torch.fft.ifftshift(kspace, dim=1), dim=1, norm="ortho")
        calibration = hybrid[..., columns].transpose(0, 1)  # (row, coil, column)
        basis = torch.linalg.svd(calibration, full_matrices=False).U[..., :coils].clone()
        for row in range(1, len(basis)):
            u, _, vh = torch.linalg.svd(basis[row].mH @ basis[row - 1])
            basis[row] = basis[row] @ (u @ vh)
        compressed: Tensor = torch.einsum("ycv,cyx->vyx", basis.conj(), hybrid)
        virtual: Tensor = torch.fft.fftshift(torch.fft.fft(compressed, dim=1, norm="ortho"), dim=1)
        return virtual
    vectors = torch.linalg.svd(kspace[:, acs.expand(kspace.shape[1:])], full_matrices=False).U[:, :coils]
    result: Tensor = torch.einsum("cv,cyx->vyx", vectors.conj(), kspace)
    return result


def _choose_mask(
    kspace: Complex[Tensor, "coil height width"],
    generator: MaskGenerator | None,
    seed: Seed,
    mask: NDArray[np.bool_] | None,
    acs_lines: int | None,
    padding: tuple[int, int] | None,
) -> tuple[Tensor, Tensor, float]:
    """Sampling and calibration mask (1 or height, width), and the acceleration."""
    height, width = kspace.shape[-2:]
    if mask is not None:
        sampling = torch.from_numpy(mask)
        if sampling.ndim != 2 or sampling.shape[1] != width or sampling.shape[0] not in (1, height):
            raise ValueError(
                f"the mask has shape {tuple(sampling.shape)}; k-space of {height} x {width} needs (1, {width}) or "
                f"({height}, {width})"
            )
        if not sampling.any():
            raise ValueError("the mask keeps no sample; expected at least one that is true")
        if padding is not None and padding[1] > 0:
            sampling = sampling.clone()
            sampling[:, : padding[0]] = False
            sampling[:, padding[1] :] = False
        return sampling, acs_of_mask(sampling, height, acs_lines), float(sampling.numel() / sampling.sum())
    if generator is not None:
        drawn = generator((height, width), seed=seed, padding=padding)
        return torch.from_numpy(drawn.sampling), torch.from_numpy(drawn.acs), drawn.acceleration
    everything = torch.ones(1, width, dtype=torch.bool)
    return everything, everything, 1.0


def _without_padding(sampling: Bool[Tensor, "row width"], empty: Bool[Tensor, "height width"]) -> Tensor:
    """The mask without padded samples; it stays a line as long as whole columns are padded or none."""
    whole = empty.all(0)
    if bool((empty == whole).all()):
        return sampling & ~whole
    return sampling & ~empty
