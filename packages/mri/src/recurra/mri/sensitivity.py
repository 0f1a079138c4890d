"""Coil sensitivity maps from the calibration samples in the centre of k-space.

Maps and k-space are complex (coil, height, width); the image they belong to is that of the named Fourier convention.
"""

import torch
from jaxtyping import Bool, Complex, Float, Inexact
from torch import Tensor

from recurra.mri.operators import FFTConvention, divide_nonzero, ifft, rss

_CHUNK = 2**22
"""Elements of the covariances held at a time."""


def unit_maps(kspace: Complex[Tensor, "coil height width"]) -> Complex[Tensor, "coil height width"]:
    """Equal maps with a root sum of squares of one; the right ones for a single coil."""
    return torch.full_like(kspace, kspace.shape[0] ** -0.5)


def rss_maps(
    kspace: Complex[Tensor, "coil height width"],
    acs: Bool[Tensor, "rows width"],
    convention: FFTConvention = "centered-ortho",
    *,
    gaussian_sigma: float | None = None,
) -> Complex[Tensor, "coil height width"]:
    """Coil images of the calibration samples over their root sum of squares; zero where that is zero.

    Args:
        kspace: k-space.
        acs: calibration samples.
        convention: Fourier transform of the image.
        gaussian_sigma: damps the calibration samples along the width by exp(-(u / sigma)²), u from -1 to 1.

    Raises:
        ValueError: there is no calibration sample.
    """
    if not acs.any():
        raise ValueError(
            "coil maps need calibration samples; the mask has none fully sampled in the centre. "
            "Use a larger center fraction or give the maps"
        )
    calibration = torch.where(acs, kspace, 0)
    if gaussian_sigma is not None:
        u = torch.linspace(-1, 1, kspace.shape[-1], dtype=kspace.real.dtype, device=kspace.device)
        calibration = calibration * torch.exp(-((u / gaussian_sigma) ** 2))
    images = ifft(calibration, convention)[None]
    return divide_nonzero(images, rss(images))[0]


def espirit_maps(
    kspace: Complex[Tensor, "coil height width"],
    acs: Bool[Tensor, "rows width"],
    convention: FFTConvention = "centered-ortho",
    *,
    calib_width: int | None = 24,
    threshold: float = 0.02,
    kernel_width: int = 6,
    crop: float = 0.95,
    max_iter: int = 100,
    magnitude_only: bool = False,
) -> Complex[Tensor, "coil height width"]:
    """ESPIRiT maps (Uecker et al. 2014), phase referenced to the first coil, zero where the eigenvalue is <= crop.

    The numbers are those of `sigpy.mri.app.EspiritCalib`. The covariance of a pixel depends on the kernels through
    their autocorrelation alone, whose few samples are summed once: all kernels cost as much as one. Work goes by rows,
    so that 32 coils need no gigabytes.

    Args:
        kspace: k-space with its centre in the middle of the array.
        acs: calibration samples; the largest rectangle of them about the middle is used.
        convention: Fourier transform of the image.
        calib_width: at most so many rows and columns of the rectangle.
        threshold: singular vectors below this share of the largest value are noise.
        kernel_width: side of the k-space kernels.
        crop: eigenvalues up to here are background.
        max_iter: power iterations.
        magnitude_only: give the magnitudes alone, as NKI-AI/direct does (it multiplies the maps by their own
            conjugate); for its numbers only, since the phases are lost.

    Raises:
        ValueError: there are fewer calibration samples than a kernel has.
    """
    height, width = kspace.shape[-2:]
    rows, columns = acs_rectangle(acs, height)
    if calib_width is not None:
        rows, columns = min(rows, calib_width), min(columns, calib_width)
    if min(rows, columns) < kernel_width:
        raise ValueError(
            f"ESPIRiT maps need at least {kernel_width} x {kernel_width} calibration samples; the mask has {rows} x "
            f"{columns} (height x width) fully sampled in the centre. Use a larger center fraction, maps=rss, or give "
            "the maps"
        )
    top, left = height // 2 - rows // 2, width // 2 - columns // 2
    calibration = kspace[:, top : top + rows, left : left + columns]
    correlation = _kernel_correlation(calibration, threshold, kernel_width)
    maps = _dominant_eigenvectors(correlation, (height, width), crop, max_iter)
    if magnitude_only:
        maps = maps.abs().to(maps.dtype)
    # The plain transform has the image's middle in the corner; a phase common to all coils is no part of the maps.
    return torch.fft.ifftshift(maps, dim=(-2, -1)) if convention.startswith("uncentered") else maps


def _kernel_correlation(
    calibration: Complex[Tensor, "coil rows columns"], threshold: float, kernel: int
) -> Complex[Tensor, "coil coil lag lag"]:
    """Σ over the signal kernels of K_c[p] conj(K_d[p - lag]), for lags -(kernel-1)..kernel-1 of both axes."""
    coils = calibration.shape[0]
    patches = calibration.unfold(1, kernel, 1).unfold(2, kernel, 1)  # (coil, row, column, kernel, kernel)
    matrix = patches.permute(1, 2, 0, 3, 4).reshape(-1, coils * kernel**2)
    _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    signal = vectors[values > threshold * values.max()]
    projector = (signal.T @ signal.conj()).reshape(coils, kernel, kernel, coils, kernel, kernel)
    size = 2 * kernel - 1
    correlation: Tensor = projector.new_zeros(coils, coils, size, size)
    for p in range(kernel):
        for q in range(kernel):
            # lag = (p, q) - (row, column) of the other kernel, for all of its places at once
            block = projector[:, p, q].flip(2, 3)
            correlation[:, :, p : p + kernel, q : q + kernel] += block
    return correlation / (kernel * kernel)


def _dominant_eigenvectors(
    correlation: Complex[Tensor, "coil coil lag lag"], shape: tuple[int, int], crop: float, max_iter: int
) -> Complex[Tensor, "coil height width"]:
    """Per pixel the dominant eigenvector of the covariance with this autocorrelation, by power iteration."""
    coils, _, size, _ = correlation.shape
    height, width = shape
    along_y, along_x = (_phases(n, size, correlation) for n in shape)
    columns = correlation @ along_x  # (coil, coil, lag, width)
    maps = correlation.new_empty(coils, height, width)
    chunk = max(1, _CHUNK // (coils**2 * width))
    for start in range(0, height, chunk):
        phases = along_y[:, start : start + chunk]  # (lag, rows)
        covariance = torch.einsum("cdlw,ly->ywcd", columns, phases).flatten(0, 1)
        vector, value = _power_iteration(covariance, max_iter)
        reference = vector[:, :1]
        vector = vector * (reference / reference.abs()).conj() * (value > crop)
        maps[:, start : start + chunk] = vector[..., 0].T.reshape(coils, -1, width)
    found: Tensor = torch.nan_to_num(maps)  # without signal the eigenvalue is 0 and its vector 0/0
    return found


def _power_iteration(
    covariance: Complex[Tensor, "pixel coil coil"], max_iter: int
) -> tuple[Complex[Tensor, "pixel coil 1"], Float[Tensor, "pixel 1 1"]]:
    """Dominant eigenvector and eigenvalue of every matrix, from a vector of ones.

    Within the object a few iterations settle it: pixels that do not move any more are left out of the rest.
    """
    pixels, coils, _ = covariance.shape
    vectors, values = covariance.new_ones(pixels, coils, 1), covariance.real.new_zeros(pixels, 1, 1)
    active, vector = torch.arange(pixels, device=covariance.device), vectors
    for iteration in range(max_iter):
        before = vector
        vector = covariance @ vector
        value = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
        vector = vector / value
        if iteration % 5 == 4 or iteration == max_iter - 1:
            vectors[active], values[active] = vector, value
            moving = (vector - before).abs().amax((1, 2)) > 5e-7
            covariance, vector, active = covariance[moving], vector[moving], active[moving]
    return vectors, values


def _phases(samples: int, size: int, like: Tensor) -> Complex[Tensor, "lag samples"]:
    """exp(2πi lag x) of the lags about 0 and the places x about the middle."""
    lag = torch.arange(size, dtype=torch.float64) - size // 2
    place = (torch.arange(samples, dtype=torch.float64) - samples // 2) / samples
    return torch.exp(2j * torch.pi * lag[:, None] * place).to(like.dtype).to(like.device)


def acs_rectangle(acs: Bool[Tensor, "rows width"], height: int) -> tuple[int, int]:
    """Rows and columns of the largest full rectangle of calibration samples about the middle.

    A mask of one row stands for all rows. Of all such rectangles the one with the longest shorter side is taken.
    """
    plane = acs.expand(height, -1) if acs.shape[0] == 1 else acs
    width = plane.shape[1]
    if acs.shape[0] == 1:
        return height, _centered_run(acs[0])
    best = (0, 0)
    for rows in range(1, height + 1):
        top = height // 2 - rows // 2
        columns = _centered_run(plane[top : top + rows].all(0))
        if min(rows, columns) > min(best):
            best = rows, min(columns, width)
    return best


def _centered_run(line: Bool[Tensor, " samples"]) -> int:
    """Longest n such that the n samples from the middle - n//2 on are all true."""
    middle = line.shape[0] // 2
    missing = (~line).nonzero()[:, 0]
    before = int(missing[missing < middle].max()) + 1 if (missing < middle).any() else 0
    after = int(missing[missing >= middle].min()) if (missing >= middle).any() else line.shape[0]
    left, right = middle - before, after - middle
    # n // 2 samples lie left of the middle and n - n // 2 right of it
    return 0 if right == 0 else min(2 * left + 1, 2 * right)


def map_support(maps: Complex[Tensor, "coil height width"]) -> Float[Tensor, "height width"]:
    """Root of the sum of squares of the maps: one inside the object, zero where they know nothing."""
    return rss(maps[None])[0]


def within_support(
    image: Inexact[Tensor, "batch *spatial"], maps: Complex[Tensor, "#batch coil *spatial"]
) -> Inexact[Tensor, "batch *spatial"]:
    """An image combined by coil maps, zero where all the maps are zero: nothing that was measured speaks of it there.

    Every image that the maps combine, a network's or a solver's, passes here once, so that none is judged by what it
    makes up outside the object. Root-sum-of-squares images are no such images.
    """
    inside: Tensor = maps.abs().amax(1) > 0
    return torch.where(inside, image, 0)
