"""Fourier transforms, coil operators and their small relatives, on complex tensors.

K-space and coil sensitivities are (batch, coil, *spatial), images (batch, *spatial), all complex64 or complex128;
masks are boolean and broadcast to k-space.

Which Fourier transform a network was trained with is part of the network: an image that carries another checkerboard
phase, or sits in another corner, is another input. So every model names its convention:

    centered-*      fftshift(FFT(ifftshift(x))), the zero frequency and the image in the middle of their arrays
    uncentered-*    FFT(x), both in the corner
    recentered-*    FFT(ifftshift(x)) forward and fftshift(IFFT(k)) back: the image in the middle, the zero frequency in
                    the corner. On k-space whose zero frequency is in the middle this is the uncentered transform with
                    the image put back in the middle, where padding does not cut through it.
    *-ortho, *-backward, *-forward    the scale factor: 1/√N both ways, 1/N on the inverse, 1/N on the forward transform
"""

from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float, Inexact
from torch import Tensor

from recurra.core.checks import one_of

FFTConvention = Literal[
    "centered-ortho",
    "centered-backward",
    "centered-forward",
    "uncentered-ortho",
    "uncentered-backward",
    "uncentered-forward",
    "recentered-ortho",
]


def _convention(name: str) -> tuple[str, str]:
    """The parts of a convention's name: which sides are shifted, and the scale."""
    one_of("fft", name, FFTConvention)
    shift, scale = name.split("-")
    return shift, scale


def fft(
    x: Complex[Tensor, "*axes"], convention: FFTConvention = "centered-ortho", dim: int = 2
) -> Complex[Tensor, "*axes"]:
    """K-space of images, transformed over the last `dim` axes."""
    shift, scale = _convention(convention)
    axes = tuple(range(-dim, 0))
    if shift != "uncentered":
        x = torch.fft.ifftshift(x, dim=axes)
    k: Tensor = torch.fft.fftn(x, dim=axes, norm=scale)
    return torch.fft.fftshift(k, dim=axes) if shift == "centered" else k


def ifft(
    k: Complex[Tensor, "*axes"], convention: FFTConvention = "centered-ortho", dim: int = 2
) -> Complex[Tensor, "*axes"]:
    """Images of k-space, transformed over the last `dim` axes."""
    shift, scale = _convention(convention)
    axes = tuple(range(-dim, 0))
    if shift == "centered":
        k = torch.fft.ifftshift(k, dim=axes)
    x: Tensor = torch.fft.ifftn(k, dim=axes, norm=scale)
    return x if shift == "uncentered" else torch.fft.fftshift(x, dim=axes)


def sense_reduce(
    z: Complex[Tensor, "#batch #coil *spatial"], sensitivity: Complex[Tensor, "#batch coil *spatial"]
) -> Complex[Tensor, "batch *spatial"]:
    """One image of coil images: Σ_c conj(S_c) z_c."""
    return (sensitivity.conj() * z).sum(1)


def sense_expand(
    image: Complex[Tensor, "#batch *spatial"], sensitivity: Complex[Tensor, "#batch coil *spatial"]
) -> Complex[Tensor, "batch coil *spatial"]:
    """The image as every coil sees it: S_c x."""
    return sensitivity * image.unsqueeze(1)


def data_gradient(
    image: Complex[Tensor, "batch *spatial"],
    kspace: Complex[Tensor, "batch coil *spatial"],
    sensitivity: Complex[Tensor, "#batch coil *spatial"],
    mask: Bool[Tensor, "..."],
    convention: FFTConvention = "centered-ortho",
    dim: int = 2,
) -> Complex[Tensor, "batch *spatial"]:
    """Gradient of the data's log-likelihood by the image: Σ_c conj(S_c) F⁻¹ m (F S_c x - y_c)."""
    error = fft(sense_expand(image, sensitivity), convention, dim) - kspace
    return sense_reduce(ifft(torch.where(mask, error, 0), convention, dim), sensitivity)


def rss(z: Inexact[Tensor, "batch coil *spatial"]) -> Float[Tensor, "batch *spatial"]:
    """Root of the sum of squares over coils; where all coils are zero, so is its gradient."""
    # vector_norm knows the subgradient at zero, the root of a sum does not.
    norm: Tensor = torch.linalg.vector_norm(z, dim=1)
    return norm


def rss_components(z: Complex[Tensor, "batch coil *spatial"]) -> Complex[Tensor, "batch *spatial"]:
    """Root of the sum of squares over coils, of real and imaginary parts apart.

    What ATOMMIC and mridc call "RSS". The magnitude is right, the phase is lost.
    """
    return torch.complex(rss(z.real), rss(z.imag))


def atommic_rss_complex(z: Complex[Tensor, "batch coil *spatial"]) -> Float[Tensor, "batch *spatial"]:
    """√(Σ_c |z_c|), without the square: what ATOMMIC computes under the name of `rss_complex`.

    Its published networks with learned sensitivities were trained with it. Use `rss` for anything else.
    """
    return z.abs().sum(1).sqrt()


def divide_nonzero(
    z: Complex[Tensor, "batch coil *spatial"], norm: Float[Tensor, "batch *spatial"]
) -> Complex[Tensor, "batch coil *spatial"]:
    """Coil images divided by one image; zero where that is zero."""
    norm = norm.unsqueeze(1)
    # A safe divisor, not a masked quotient: the gradient of 0/0 would be NaN behind the mask.
    return torch.where(norm == 0, 0, z / torch.where(norm == 0, 1, norm))


def center_crop(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """The middle (height, width) of the last two axes.

    Raises:
        ValueError: the crop is larger than the image.
    """
    height, width = shape
    if not (0 < height <= x.shape[-2] and 0 < width <= x.shape[-1]):
        raise ValueError(f"cannot crop an image of {x.shape[-2]} x {x.shape[-1]} to {height} x {width}")
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def upright(image: Tensor, convention: FFTConvention, centered: bool, *, back: bool = False) -> Tensor:
    """An image as a person sees it, of one as a network's convention makes it of a file's k-space.

    A plain transform of k-space whose own is centred shows the middle of the image in the corner, and the reverse.

    Args:
        image: (..., height, width).
        convention: of the network.
        centered: whether a centred transform gives the upright image of the file's k-space (`RawSlice.centered`).
        back: from the upright image to the network's.
    """
    if not turns(convention, centered):
        return image
    # Rolled by N//2 one way and (N+1)//2 the other; these differ for odd sizes.
    roll = torch.fft.fftshift if centered != back else torch.fft.ifftshift
    rolled: Tensor = roll(image, dim=(-2, -1))
    return rolled


def turns(convention: FFTConvention, centered: bool) -> bool:
    """Whether a network of this convention sees the images of such files with their middle in the corner."""
    return convention.startswith("uncentered") == centered


def complex_abs(x: Complex[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Magnitude."""
    return x.abs()


def to_channels(x: Complex[Tensor, "batch *spatial"]) -> Float[Tensor, "batch 2 *spatial"]:
    """Real and imaginary part as two channels."""
    return torch.stack([x.real, x.imag], dim=1)


def from_channels(x: Float[Tensor, "batch 2 *spatial"]) -> Complex[Tensor, "batch *spatial"]:
    """The complex image of two channels; half precision becomes single, which complex arithmetic needs."""
    real, imag = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).unbind(1)
    return torch.complex(real, imag)
