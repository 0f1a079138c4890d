"""Classical reconstructions to compare a trained network with: zero filling, CG-SENSE, compressed sensing.

    zero_filled    root of the sum of squares of the inverse FFT
    cg_sense       min ½‖m F S x - y‖² + ½ λ ‖x‖²     Pruessmann et al. 2001, doi:10.1002/mrm.1241
    l1_wavelet     min ½‖m F S x - y‖² + λ ‖W x‖₁     Lustig et al. 2007, doi:10.1002/mrm.21391; over ESPIRiT maps it is
                                                      the L1-ESPIRiT of Uecker et al. 2014, doi:10.1002/mrm.24751

All take what a `Reconstructor` takes and return its kind of image; those that the maps combine are zero where the maps
are, as a network's are (`within_support`). The maps have a root sum of squares of one, which is the intensity
correction of Pruessmann et al.; samples on a grid need no density compensation.

They rely on smooth images, so `fft` is the convention that decodes the file, which is not always the one a network was
trained with: under "uncentered-ortho" on k-space whose zero frequency is in the middle of the array, images carry a
checkerboard that no wavelet basis compresses.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Complex, Float, Shaped
from torch import Tensor

from recurra.mri import operators
from recurra.mri.operators import FFTConvention, from_channels, ifft, rss, sense_expand, sense_reduce, to_channels
from recurra.mri.sensitivity import within_support

Kspace = Complex[Tensor, "batch coil height width"]
Sensitivity = Complex[Tensor, "#batch coil height width"]
Mask = Bool[Tensor, "#batch 1 #height #width"]
Image = Complex[Tensor, "batch height width"]

_PLAIN: FFTConvention = "uncentered-ortho"
_DEEPEST = 4
"""Wavelet levels at most; a shift by their whole period, 16 pixels, changes nothing."""


def zero_filled(
    kspace: Kspace,
    sensitivity: Sensitivity | None = None,
    mask: Mask | None = None,
    *,
    fft: FFTConvention = "centered-ortho",
) -> Shaped[Tensor, "batch height width"]:
    """Root of the sum of squares of the coil images of k-space as it is; maps and mask are not needed."""
    return rss(ifft(kspace, fft))


def cg_sense(
    kspace: Kspace,
    sensitivity: Sensitivity,
    mask: Mask,
    *,
    fft: FFTConvention = "centered-ortho",
    regularization: float | None = None,
    iterations: int = 80,
) -> Image:
    """Least-squares image under a Tikhonov penalty, by conjugate gradients from zero on.

    Args:
        kspace: Sampled k-space.
        sensitivity: Coil maps, RSS 1 inside the object.
        mask: True where sampled.
        fft: Convention that decodes `kspace`.
        regularization: λ. The operator has norm 1, so λ is relative and does not depend on the data's scale. By default
            the standard deviation of the noise over the largest magnitude of S^H F^-1 y, but 0.005 at least: without
            it, errors of the maps are amplified where the noise is low.
        iterations: Of conjugate gradients. 80 settle it to 1e-4 for any λ from 0.005 on.
    """
    scan = _Scan.of(kspace, sensitivity, mask, fft)
    weight = scan.weight(regularization, 0.005, 1.0)
    x, residual = torch.zeros_like(scan.zero_filled), scan.zero_filled
    direction, energy = residual, _inner(residual, residual)
    for _ in range(iterations):
        applied = scan.normal(direction) + weight * direction
        length = _ratio(energy, _inner(direction, applied))
        x, residual = x + length * direction, residual - length * applied
        before, energy = energy, _inner(residual, residual)
        direction = residual + _ratio(energy, before) * direction
    return scan.finish(x)


def l1_wavelet(
    kspace: Kspace,
    sensitivity: Sensitivity,
    mask: Mask,
    *,
    fft: FFTConvention = "centered-ortho",
    regularization: float | None = None,
    iterations: int = 100,
    wavelet: str = "db2",
    cycle_spinning: bool = True,
) -> Image:
    """Compressed sensing with a wavelet penalty, by FISTA (Beck and Teboulle 2009, doi:10.1137/080716542).

    An orthogonal wavelet basis has a grid, which shows in the image. Cycle spinning (Coifman and Donoho 1995) moves it
    to another place in every iteration, as BART does; the image is the mean of the last third of the iterates. The
    sequence of places is always the same.

    Args:
        kspace: Sampled k-space.
        sensitivity: Coil maps, RSS 1 inside the object.
        mask: True where sampled.
        fft: Convention that decodes `kspace`.
        regularization: λ as a fraction of the largest magnitude of the zero-filled image S^H F^-1 y, so that the result
            scales with the data. By default a fifth of the standard deviation of the noise over that magnitude, but
            0.002 at least, since little noise leaves the aliasing to be removed.
        iterations: Of FISTA.
        wavelet: Name of an orthogonal one known to PyWavelets.
        cycle_spinning: Move the grid; without it this is the minimum of the equation above.

    Raises:
        ValueError: the wavelet is not orthogonal.
    """
    scan = _Scan.of(kspace, sensitivity, mask, fft)
    peak = scan.zero_filled.abs().amax((1, 2), keepdim=True)
    weight = scan.weight(regularization, 0.002, 0.2) * peak
    norm = rss(scan.sensitivity).square().amax((1, 2), keepdim=True)  # bounds that of the operator
    step = _ratio(torch.ones_like(norm), norm)
    basis = _Basis.of(wavelet, *kspace.shape[-2:])
    height, width = kspace.shape[-2:]
    # The unknown lives on a grid that the levels divide; what is beyond the image is seen by the penalty alone.
    x = scan.zero_filled.new_zeros(len(kspace), *basis.shape)
    point, momentum, mean = x, 1.0, torch.zeros_like(x)
    generator = torch.Generator().manual_seed(0)
    averaged = max(1, iterations // 3) if cycle_spinning else 1
    for iteration in range(iterations):
        moved = point.clone()
        moved[:, :height, :width] -= step * (scan.normal(point[:, :height, :width]) - scan.zero_filled)
        shift = torch.randint(basis.period, (2,), generator=generator).tolist() if cycle_spinning else (0, 0)
        coefficients = basis.analysis(moved.roll(shift, (1, 2)))
        magnitude = coefficients.abs()
        coefficients = coefficients * _ratio(torch.relu(magnitude - step * weight), magnitude)
        before, x = x, basis.synthesis(coefficients).roll([-s for s in shift], (1, 2))
        previous, momentum = momentum, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        point = x + (previous - 1) / momentum * (x - before)
        if iteration >= iterations - averaged:
            mean += x / averaged
    return scan.finish(mean[:, :height, :width])


BASELINES: dict[str, Callable[..., Tensor]] = {
    "zero_filled": zero_filled,
    "cg_sense": cg_sense,
    "l1_wavelet": l1_wavelet,
}


@dataclass(frozen=True)
class _Scan:
    """A batch as the solvers see it: upright images and maps, k-space of the plain transform.

    Columns that are sampled or not as a whole fold nothing along the rows: there k-space stays an image.
    """

    zero_filled: Tensor
    sensitivity: Tensor
    mask: Tensor
    axes: int
    upright: bool
    noise: Tensor

    @classmethod
    def of(cls, kspace: Tensor, sensitivity: Tensor, mask: Tensor, fft: FFTConvention) -> "_Scan":
        """That batch, from what a reconstructor takes."""
        images, upright = ifft(torch.where(mask, kspace, 0), fft), not fft.startswith("uncentered")
        if not upright:
            images, sensitivity = (torch.fft.fftshift(z, dim=(-2, -1)) for z in (images, sensitivity))
        if fft.startswith("centered"):
            mask = torch.fft.ifftshift(mask, dim=(-2, -1))
        noise = noise_level(operators.fft(images, _PLAIN), mask.expand(len(kspace), 1, *kspace.shape[-2:]))
        return cls(
            sense_reduce(images, sensitivity), sensitivity, mask, 1 if mask.shape[-2] == 1 else 2, upright, noise
        )

    def normal(self, image: Tensor) -> Tensor:
        """S^H F^-1 m F S x."""
        samples = operators.fft(sense_expand(image, self.sensitivity), _PLAIN, self.axes)
        return sense_reduce(ifft(torch.where(self.mask, samples, 0), _PLAIN, self.axes), self.sensitivity)

    def weight(self, given: float | None, least: float, share: float) -> Tensor:
        """λ of every item as (batch, 1, 1): as given, or a share of the noise relative to the zero-filled image."""
        if given is not None:
            return torch.full_like(self.noise, given)[:, None, None]
        peak = self.zero_filled.abs().amax((1, 2))
        return (share * _ratio(self.noise, peak)).clamp_min(least)[:, None, None]

    def finish(self, image: Tensor) -> Tensor:
        """The image where the maps are, in the layout of the caller's."""
        image = within_support(image, self.sensitivity)
        return image if self.upright else torch.fft.ifftshift(image, dim=(-2, -1))


def noise_level(
    kspace: Complex[Tensor, "batch coil height width"], mask: Bool[Tensor, "batch 1 height width"]
) -> Float[Tensor, " batch"]:
    """Standard deviation of the noise in the real part of a sample, from the median of the outermost samples.

    Those are the tenth of all samples farthest from the centre, where signal has faded; what is left of it there makes
    the estimate too large, not too small.

    Args:
        kspace: Sampled k-space of an orthonormal transform, its zero frequency in the corner.
        mask: True where sampled.
    """
    y, x = (torch.fft.fftfreq(n, device=kspace.device) for n in kspace.shape[-2:])
    radius = torch.hypot(y[:, None], x)
    levels = []
    for samples, taken in zip(kspace, mask[:, 0], strict=True):
        taken = taken & samples.any(0)  # samples of nothing are padding
        outermost = radius[taken].sort().values[int(0.9 * taken.sum()) :]
        if not len(outermost):
            levels.append(samples.real.new_zeros(()))
            continue
        outside = samples[:, taken & (radius >= outermost[0])].abs()
        levels.append(outside.median() / math.sqrt(2 * math.log(2)))
    return torch.stack(levels)


@dataclass(frozen=True)
class _Basis:
    """An orthogonal wavelet basis of periodic images; a level is a matrix along the rows and one along the columns."""

    matrices: list[tuple[Tensor, Tensor]]
    shape: tuple[int, int]
    period: int

    @classmethod
    def of(cls, wavelet: str, height: int, width: int) -> "_Basis":
        """The basis with as many levels as the filters fit in, on the next larger grid that these divide."""
        import pywt

        levels = min(max(pywt.dwt_max_level(min(height, width), pywt.Wavelet(wavelet).dec_len), 1), _DEEPEST)
        period = 2**levels
        shape = -(-height // period) * period, -(-width // period) * period
        matrices = [
            (_filter_matrix(wavelet, shape[0] >> level), _filter_matrix(wavelet, shape[1] >> level))
            for level in range(levels)
        ]
        return cls(matrices, shape, period)

    def analysis(self, image: Tensor) -> Tensor:
        """Coefficients: the coarse ones in the corner, finer ones about them."""
        x = to_channels(image)
        for rows, columns in self.matrices:
            h, w = len(rows), len(columns)
            x[..., :h, :w] = rows.to(x) @ x[..., :h, :w] @ columns.to(x).mT
        return from_channels(x)

    def synthesis(self, coefficients: Tensor) -> Tensor:
        """The image of coefficients: adjoint and inverse of `analysis`."""
        x = to_channels(coefficients)
        for rows, columns in reversed(self.matrices):
            h, w = len(rows), len(columns)
            x[..., :h, :w] = rows.to(x).mT @ x[..., :h, :w] @ columns.to(x)
        return from_channels(x)


@lru_cache(maxsize=16)
def _filter_matrix(wavelet: str, size: int) -> Tensor:
    """One level along an axis: low-pass outputs in the upper half, high-pass outputs in the lower, both periodic."""
    import pywt

    if not pywt.Wavelet(wavelet).orthogonal:
        raise ValueError(f"wavelet must be an orthogonal one, such as haar, db4 or sym4; got {wavelet!r}")
    matrix = torch.zeros(size, size, dtype=torch.float64)
    start = 2 * torch.arange(size // 2)
    for half, taps in enumerate(pywt.Wavelet(wavelet).filter_bank[2:]):
        for offset, tap in enumerate(taps):
            matrix[half * (size // 2) + start // 2, (start + offset) % size] += tap
    return matrix


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Real part of the inner product of every item, (batch, 1, 1)."""
    return (a.conj() * b).real.sum((1, 2), keepdim=True)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and zero where b is."""
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))
