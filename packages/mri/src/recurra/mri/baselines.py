"""Classical reconstructions to compare a trained network with: zero filling, CG-SENSE, compressed sensing.

    zero_filled    root of the sum of squares of the inverse FFT
    cg_sense       min ½‖m F S x - y‖² + ½ λ ‖x‖²     Pruessmann et al. 2001
    l1_wavelet     min ½‖m F S x - y‖² + λ ‖W x‖₁     Lustig et al. 2007, db4 wavelets, FISTA

All take what a `Reconstructor` takes and return its kind of image. The iterative ones run SigPy's applications, item by
item on the CPU. They rely on smooth images, so `fft` is the convention that decodes the file, which is not always the
one a network was trained with: under "uncentered-ortho" on k-space whose zero frequency is in the middle of the array,
images carry a checkerboard that no wavelet basis compresses.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Complex, Shaped
from torch import Tensor

from recurra.mri.operators import FFTConvention, ifft, rss
from recurra.mri.sensitivity import within_support

Kspace = Complex[Tensor, "batch coil height width"]
Mask = Bool[Tensor, "#batch 1 #height #width"]
Image = Complex[Tensor, "batch height width"]


def zero_filled(
    kspace: Kspace,
    sensitivity: Kspace | None = None,
    mask: Mask | None = None,
    *,
    fft: FFTConvention = "centered-ortho",
) -> Shaped[Tensor, "batch height width"]:
    """Root of the sum of squares of the coil images of k-space as it is; maps and mask are not needed."""
    return rss(ifft(kspace, fft))


def cg_sense(
    kspace: Kspace,
    sensitivity: Kspace,
    mask: Mask,
    *,
    fft: FFTConvention = "centered-ortho",
    regularization: float = 0.01,
    iterations: int = 100,
) -> Image:
    """Least-squares image under a Tikhonov penalty, by conjugate gradients.

    Args:
        kspace: Sampled k-space.
        sensitivity: Coil maps, RSS 1 inside the object.
        mask: True where sampled.
        fft: Convention that decodes `kspace`.
        regularization: λ. The operator has norm 1, so λ is relative and does not depend on the data's scale.
        iterations: At most.
    """
    from sigpy.mri.app import SenseRecon

    def solve(y: np.ndarray, maps: np.ndarray, sampled: np.ndarray) -> np.ndarray:
        app = SenseRecon(y, maps, regularization, weights=sampled, show_pbar=False, max_iter=iterations)
        return np.asarray(app.run())

    return _each(solve, kspace, sensitivity, mask, fft)


def l1_wavelet(
    kspace: Kspace,
    sensitivity: Kspace,
    mask: Mask,
    *,
    fft: FFTConvention = "centered-ortho",
    regularization: float = 0.002,
    iterations: int = 100,
    wavelet: str = "db4",
) -> Image:
    """Compressed sensing with a wavelet penalty.

    Args:
        kspace: Sampled k-space.
        sensitivity: Coil maps, RSS 1 inside the object.
        mask: True where sampled.
        fft: Convention that decodes `kspace`.
        regularization: λ as a fraction of the largest magnitude of the zero-filled image S^H F^-1 y, so that the result
            scales with the data. The default is the best of 0.001, 0.002, 0.004 and 0.01 for an 8-channel brain slice
            with 0.2 % noise at 8x Poisson-disk and 4x random column sampling; noisier data want more.
        iterations: Of FISTA.
        wavelet: Name known to PyWavelets.
    """
    from sigpy.mri.app import L1WaveletRecon

    def solve(y: np.ndarray, maps: np.ndarray, sampled: np.ndarray) -> np.ndarray:
        # A bound on the operator's norm as the step: SigPy would estimate it from numpy's global random state.
        step = 1 / float((np.abs(maps) ** 2).sum(0).max())
        options = {"wave_name": wavelet, "max_iter": iterations, "alpha": step, "show_pbar": False}
        app = L1WaveletRecon(y, maps, regularization * _peak(y, maps), weights=sampled, **options)
        return np.asarray(app.run())

    return _each(solve, kspace, sensitivity, mask, fft)


BASELINES: dict[str, Callable[..., Tensor]] = {
    "zero_filled": zero_filled,
    "cg_sense": cg_sense,
    "l1_wavelet": l1_wavelet,
}


def _each(
    solve: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    kspace: Tensor,
    sensitivity: Tensor,
    mask: Tensor,
    fft: FFTConvention,
) -> Tensor:
    """Runs a solver that knows the centred orthonormal transform alone on every item of the batch."""
    shift, scale = fft.split("-")
    pixels = kspace.shape[-2] * kspace.shape[-1]
    unit = {"ortho": 1.0, "backward": 1 / math.sqrt(pixels), "forward": math.sqrt(pixels)}[scale]
    mask = mask.expand(len(kspace), 1, *kspace.shape[-2:])
    if shift != "centered":
        kspace, mask = torch.fft.fftshift(kspace, dim=(-2, -1)), torch.fft.fftshift(mask, dim=(-2, -1))
    if shift == "uncentered":
        sensitivity = torch.fft.fftshift(sensitivity, dim=(-2, -1))
    sensitivity = sensitivity.expand_as(kspace)
    images = []
    for y, maps, sampled in zip(kspace * unit, sensitivity, mask, strict=True):
        weights = sampled[0].to(kspace.real.dtype).cpu().numpy()
        images.append(torch.from_numpy(solve(y.cpu().numpy(), maps.cpu().numpy(), weights)))
    image = within_support(torch.stack(images).to(kspace.device), sensitivity)
    return torch.fft.ifftshift(image, dim=(-2, -1)) if shift == "uncentered" else image


def _peak(kspace: np.ndarray, maps: np.ndarray) -> float:
    """Largest magnitude of the zero-filled SENSE image."""
    coil_images = ifft(torch.from_numpy(kspace)[None])[0]
    return float((torch.from_numpy(maps).conj() * coil_images).sum(0).abs().max())
