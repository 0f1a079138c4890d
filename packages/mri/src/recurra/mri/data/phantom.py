"""Random anatomical-like phantoms: ground truth, coil maps and k-space of a slice that never existed.

A network that is to generalise from drawings to patients must not meet a narrow family of drawings, so each slice
draws its own kind (head, limb, overlapping "dead leaves" whose sizes follow the power law of natural images), tissue
contrast, warp, texture exponents, edge widths, phase, coil array and noise. Outside the body the signal is exactly
zero; noise is added in k-space. Everything follows from the seed alone.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Complex64
from numpy.typing import NDArray

Image = NDArray[np.floating[Any]]
Seed = int | tuple[int, ...]

_ORDER = 5  # cosine terms an axis of the smooth fields: nothing finer than a fifth of the field of view


def phantom_slice(
    height: int, width: int, coils: int, seed: Seed, *, noise: float | None = None, rows: int | None = None
) -> tuple[
    Complex64[NDArray[np.complex64], "coil height width"],
    Complex64[NDArray[np.complex64], "coil height width"],
    Complex64[NDArray[np.complex64], "height width"],
]:
    """The k-space (centred, orthonormal), coil maps (root sum of squares one) and noise-free image of a random slice.

    Args:
        height: rows of the matrix, at least 16.
        width: columns of the matrix, at least 16.
        coils: number of receive coils; a single coil has the unit map.
        seed: an integer or several, e.g. (seed, epoch, index); equal seeds give equal slices.
        noise: standard deviation of the complex noise of a coil relative to the image's maximum (which is one);
            by default drawn between 0.1 % and 3 %.
        rows: keep a strip of so many rows about a random one with signal, as if the readout had seen no more.

    Raises:
        ValueError: when the matrix is smaller than 16 x 16 or there is no coil.
    """
    if height < 16 or width < 16 or coils < 1:
        raise ValueError(
            f"phantom needs a matrix of at least 16 x 16 and at least one coil; got {height} x {width}, {coils} coils"
        )
    rng = np.random.default_rng(seed)
    magnitude = _magnitude(rng, height, width)
    image = (magnitude * _phase(rng, height, width)).astype(np.complex64)
    maps = coil_maps(rng, height, width, coils)
    if rows is not None and rows < height:
        seen = np.flatnonzero(magnitude.any(1))  # about a row with signal: empty strips teach nothing
        top = int(np.clip(rng.choice(seen) - rows // 2 if len(seen) else 0, 0, height - rows))
        image, maps = image[top : top + rows], maps[:, top : top + rows]
    level = float(np.exp(rng.uniform(np.log(1e-3), np.log(3e-2)))) if noise is None else noise
    kspace = _centered_fft(maps * image)
    if level > 0:
        samples = rng.standard_normal((*kspace.shape, 2), dtype=np.float32)
        kspace += np.float32(level / np.sqrt(2)) * samples.view(np.complex64)[..., 0]
    return kspace, maps, image


def coil_maps(
    rng: np.random.Generator, height: int, width: int, coils: int
) -> Complex64[NDArray[np.complex64], "coil height width"]:
    """Smooth complex sensitivities of an array of coils around the body, root sum of squares one everywhere.

    Each coil is a sum of three separable Gaussians of different widths (near its loop steep, far away flat) with
    linear and quadratic phase of their own: as smooth as a loop's field, and one small matrix product a coil.
    """
    if coils == 1:
        return np.ones((1, height, width), np.complex64)
    y, x = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    angle = 2 * np.pi * (np.arange(coils) + rng.uniform(-0.3, 0.3, coils) + rng.uniform()) / coils
    distance = rng.uniform(0.8, 1.6) + rng.uniform(-0.15, 0.15, coils)
    spread = rng.uniform(0.45, 1.1) * np.array([0.6, 1.0, 2.2])
    weight = np.array([0.7, 1.0, rng.uniform(0.15, 0.5)]) * np.exp(rng.normal(0, 0.2, (coils, 1)))
    term = (coils, 3, 1)
    # The terms of a coil differ little in phase: beating against each other they would cut holes into its field.
    tilt = rng.normal(0, 0.8, (2, coils, 1, 1)) + rng.normal(0, 0.2, (2, *term))
    bend = rng.normal(0, 0.3, (2, coils, 1, 1)) + rng.normal(0, 0.1, (2, *term))
    rows = _lobe(y, np.sin(angle) * distance, spread, tilt[0], bend[0])
    columns = _lobe(x, np.cos(angle) * distance, spread, tilt[1], bend[1])
    turn = np.exp(1j * (angle[:, None] + rng.normal(0, 0.2, (coils, 3))))
    maps = np.matmul(((weight * turn)[..., None] * rows).transpose(0, 2, 1), columns).astype(np.complex64)
    return np.asarray(maps / np.sqrt(np.sum(maps.real**2 + maps.imag**2, axis=0)), dtype=np.complex64)


def _lobe(
    axis: NDArray[np.float64],
    centre: NDArray[np.float64],
    spread: NDArray[np.float64],
    tilt: NDArray[np.float64],
    bend: NDArray[np.float64],
) -> NDArray[np.complex128]:
    """One axis of the separable Gaussians (coil, term, samples)."""
    offset = axis - centre[:, None, None]
    return np.asarray(np.exp(-0.5 * (offset / spread[None, :, None]) ** 2 + 1j * (tilt * offset + bend * offset**2)))


def _centered_fft(images: NDArray[np.complex64]) -> NDArray[np.complex64]:
    axes = (-2, -1)
    spectrum = np.fft.fft2(np.fft.ifftshift(images, axes), axes=axes, norm="ortho")
    return np.fft.fftshift(spectrum, axes).astype(np.complex64)


def _magnitude(rng: np.random.Generator, height: int, width: int) -> Image:
    """A non-negative image of maximum one: one of the kinds, under a bias field, cut out by its body."""
    kinds: list[Callable[[np.random.Generator, int, int], tuple[Image, Image]]] = [_head, _limb, _leaves]
    image, body = kinds[rng.choice(3, p=[0.6, 0.15, 0.25])](rng, height, width)
    bias = np.exp(rng.uniform(0.0, 0.35) * _smooth_field(rng, height, width, order=3))
    image = np.clip(image, 0, None) * body * bias
    return np.asarray(image / image.max(), dtype=np.float32)


def _phase(rng: np.random.Generator, height: int, width: int) -> NDArray[np.complex64]:
    field = rng.uniform(0.1, 1.5) * _smooth_field(rng, height, width, order=_ORDER)
    if rng.random() < 0.3:  # veins and air interfaces: susceptibility bends the phase locally
        field += rng.uniform(0.05, 0.3) * _texture(rng, height, width, exponent=rng.uniform(1.5, 2.5))[0]
    field += rng.uniform(-np.pi, np.pi)
    return np.asarray(np.cos(field) + 1j * np.sin(field), dtype=np.complex64)


def _head(rng: np.random.Generator, height: int, width: int) -> tuple[Image, Image]:
    """Scalp, skull, liquor, folded cortex, white matter, deep grey nuclei, ventricles, vessels and lesions."""
    u, v, pixel = _body_coordinates(rng, height, width)
    edge = rng.uniform(0.6, 1.8) * pixel
    radius = np.hypot(u, v)
    brain_radius = rng.uniform(0.78, 0.88)
    skull_radius = brain_radius + rng.uniform(0.02, 0.06)
    scalp_radius = min(skull_radius + rng.uniform(0.02, 0.07), 0.97)
    white, grey, liquor, bone, fat = _contrast(rng)
    fine, coarse = _texture(rng, height, width, exponent=rng.uniform(1.0, 2.0))
    folds, depth = _folds(rng, height, width, wavelength=rng.uniform(0.12, 0.3) / pixel)

    cortex = rng.uniform(0.06, 0.14)
    rim = radius + rng.uniform(0.02, 0.07) * depth
    image = np.full((height, width), fat, np.float32) * (1 + rng.uniform(0.05, 0.3) * coarse)
    image = _paint(image, _inside(scalp_radius - radius, edge), bone)
    image = _paint(image, _inside(skull_radius - radius, edge), liquor)
    ribbon = rng.uniform(0.25, 0.5)
    outer = np.clip((rim - (brain_radius - 3.5 * cortex)) / cortex, 0, 1)
    brain = _inside(brain_radius - rim, edge)
    image = _paint(image, brain, grey * (1 + 0.04 * fine))
    # The white matter reaches into the gyri: it ends where the folded field says, not at a fixed radius.
    reach = brain_radius - cortex * (0.6 + 2.2 * np.clip(np.abs(folds), 0, 1.2) * outer)
    image = _paint(image, _inside(reach - rim, edge) * brain, white * (1 + rng.uniform(0.01, 0.06) * fine))
    sulci = _inside(ribbon * 0.35 - np.abs(folds + 0.3 * depth), 0.25) * outer * brain
    image = _paint(image, sulci * rng.uniform(0.5, 1.0), liquor)
    image = _midline(rng, image, u, v, brain_radius, edge, (grey, liquor))
    image = _spots(rng, image, count=int(rng.integers(0, 40)), reach=0.75, largest=0.05)
    return image.astype(np.float32), _inside(1 - radius, edge)


def _contrast(rng: np.random.Generator) -> tuple[float, float, float, float, float]:
    """Signal of white matter, grey matter, liquor, bone and fat for a random sequence."""
    weighting = rng.choice(4)
    named = [(0.9, 0.65, 0.2, 0.05, 1.2), (0.4, 0.6, 1.0, 0.05, 0.6), (0.55, 0.75, 0.1, 0.05, 0.5)]
    if weighting < 3:
        return tuple(float(max(s * np.exp(rng.normal(0, 0.15)), 0)) for s in named[weighting])  # type: ignore[return-value]
    return tuple(float(s) for s in rng.uniform(0.02, 1.0, 5))  # type: ignore[return-value]


def _midline(
    rng: np.random.Generator,
    image: Image,
    u: Image,
    v: Image,
    brain_radius: float,
    edge: float,
    tissue: tuple[float, float],
) -> Image:
    """The image with nuclei, ventricles, the fissure between the hemispheres and eyes when the slice is low."""
    grey, liquor = tissue
    side = np.abs(u)
    nucleus = _ellipse(side, v, rng.uniform(0.15, 0.25), rng.uniform(-0.1, 0.15), rng.uniform(0.06, 0.12), 0.14, 0.4)
    image = _paint(image, _inside(nucleus, edge), grey * rng.uniform(0.85, 1.1))
    horn, size = rng.uniform(0.05, 0.12), rng.uniform(0.03, 0.09)
    for centre, tilt in ((-0.2, 0.4), (0.25, -0.5)):
        shape = _ellipse(side, v, horn, centre + rng.normal(0, 0.04), size, rng.uniform(0.12, 0.26), tilt)
        image = _paint(image, _inside(shape, edge), liquor)
    fissure = _inside(rng.uniform(0.004, 0.015) - side, edge) * _inside(np.abs(v) - rng.uniform(0.15, 0.45), edge)
    image = _paint(image, fissure * _inside(brain_radius - np.hypot(u, v), edge), liquor)
    if rng.random() < 0.25:
        eye = _ellipse(side, v, 0.4, -0.72, 0.13, 0.13, 0.0)
        image = _paint(image, _inside(eye, edge), liquor)
    return image


def _limb(rng: np.random.Generator, height: int, width: int) -> tuple[Image, Image]:
    """Subcutaneous fat, striated muscle, and bones with dark cortex, bright marrow and a rim of cartilage."""
    u, v, pixel = _body_coordinates(rng, height, width)
    edge = rng.uniform(0.6, 1.8) * pixel
    radius = np.hypot(u, v)
    muscle, marrow, fat, cartilage = rng.uniform(0.15, 1.0, 4)
    fine, coarse = _texture(rng, height, width, exponent=rng.uniform(1.0, 2.0))
    folds, depth = _folds(rng, height, width, wavelength=rng.uniform(0.05, 0.15) / pixel)
    image = (fat * (1 + 0.1 * coarse)).astype(np.float32)
    inner = rng.uniform(0.7, 0.93) + 0.05 * depth
    strands = np.clip(np.abs(folds) * 4, 0, 1)
    image = _paint(image, _inside(inner - radius, edge), muscle * (1 + 0.1 * fine) * (0.6 + 0.4 * strands))
    for _ in range(int(rng.integers(1, 4))):
        place = rng.uniform(-0.4, 0.4, 2)
        axes = rng.uniform(0.15, 0.4, 2)
        bone = _ellipse(u + 0.04 * depth, v, place[0], place[1], axes[0], axes[1], rng.uniform(0, np.pi))
        rim = rng.uniform(0.02, 0.06)
        image = _paint(image, _inside(bone + 0.04, edge), cartilage)
        image = _paint(image, _inside(bone, edge), 0.03)
        image = _paint(image, _inside(bone - rim, edge), marrow * (1 + rng.uniform(0.03, 0.2) * fine))
    image = _spots(rng, image, count=int(rng.integers(3, 30)), reach=0.7, largest=0.06)
    return image.astype(np.float32), _inside(1 - radius, edge)


def _leaves(rng: np.random.Generator, height: int, width: int) -> tuple[Image, Image]:
    """Overlapping textured ellipses with sizes of the power law of natural images ("dead leaves")."""
    u, v, pixel = _body_coordinates(rng, height, width)
    fine, coarse = _texture(rng, height, width, exponent=rng.uniform(1.0, 2.2))
    image = (rng.uniform(0.1, 0.8) * (1 + rng.uniform(0.0, 0.25) * coarse)).astype(np.float32)
    image = _spots(rng, image, count=int(rng.integers(40, 200)), reach=1.2, largest=rng.uniform(0.15, 0.5))
    image = image * (1 + rng.uniform(0.0, 0.1) * fine)
    return image.astype(np.float32), _inside(1 - np.hypot(u, v), rng.uniform(0.6, 2.0) * pixel)


def _spots(rng: np.random.Generator, image: Image, *, count: int, reach: float, largest: float) -> Image:
    """The image under `count` small ellipses and rods, painted in their bounding boxes only."""
    height, width = image.shape
    scale = min(height, width) / 2
    for _ in range(count):
        size = max(largest * scale * (1 + 12 * rng.uniform()) ** -1.0, 0.7)
        long, short = size, max(size * rng.uniform(0.15, 1.0), 0.5)
        row = height / 2 * (1 + reach * rng.uniform(-0.8, 0.8))
        column = width / 2 * (1 + reach * rng.uniform(-0.8, 0.8))
        box = (
            slice(max(int(row - long - 2), 0), int(row + long + 3)),
            slice(max(int(column - long - 2), 0), int(column + long + 3)),
        )
        y, x = np.ogrid[box[0].start : min(box[0].stop, height), box[1].start : min(box[1].stop, width)]
        shape = _ellipse(x - column, y - row, 0.0, 0.0, long, short, rng.uniform(0, np.pi))
        value = image[int(row) % height, int(column) % width] * np.exp(rng.normal(0, 0.6)) + rng.uniform(-0.1, 0.1)
        cover = _inside(shape * short, rng.uniform(0.7, 3.0)) * rng.uniform(0.4, 1.0)
        image[box] = _paint(image[box], cover, max(value, 0.0))
    return image


def _body_coordinates(rng: np.random.Generator, height: int, width: int) -> tuple[Image, Image, float]:
    """Warped, rotated coordinates in which the body is the unit disk, and the size of a pixel in them."""
    scale = min(height, width) / 2
    y = ((np.arange(height, dtype=np.float32) - height / 2) / scale)[:, None]
    x = ((np.arange(width, dtype=np.float32) - width / 2) / scale)[None, :]
    fill = rng.uniform(0.6, 0.95)
    stretch = min(rng.uniform(1.0, 1.6), 0.97 * max(height, width) / (2 * scale * fill))
    half_x, half_y = (fill * stretch, fill) if width > height else (fill, fill * stretch)
    turn = rng.normal(0, 0.1)
    y, x = y - rng.uniform(-0.06, 0.06), x - rng.uniform(-0.06, 0.06)
    u = (np.cos(turn) * x + np.sin(turn) * y) / half_x
    v = (-np.sin(turn) * x + np.cos(turn) * y) / half_y
    amount = rng.uniform(0.0, 0.05)
    u = u + amount * _smooth_field(rng, height, width, order=_ORDER)
    v = v + amount * _smooth_field(rng, height, width, order=_ORDER)
    return u.astype(np.float32), v.astype(np.float32), 1 / (fill * scale)


def _smooth_field(rng: np.random.Generator, height: int, width: int, *, order: int) -> Image:
    """A smooth field of about unit deviation: a cosine series whose amplitudes fall with the frequency."""
    order_y, order_x = np.arange(order)[:, None], np.arange(order)[None, :]
    amplitude = rng.normal(size=(order, order)) / (1 + np.hypot(order_y, order_x)) ** 1.5
    amplitude[0, 0] = 0
    amplitude /= np.sqrt(np.sum(amplitude**2) / 4)
    rows = np.cos(np.pi * order_y * np.linspace(0, 1, height)[None, :])
    columns = np.cos(np.pi * order_x.T * np.linspace(0, 1, width)[None, :])
    return np.asarray(rows.T @ amplitude @ columns, dtype=np.float32)


@lru_cache(maxsize=32)
def _frequency(height: int, width: int) -> Image:
    """Distance from the origin of k-space in cycles a pixel, of the plain (unshifted) transform."""
    distance = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    return np.asarray(distance, dtype=np.float32)


def _texture(rng: np.random.Generator, height: int, width: int, *, exponent: float) -> tuple[Image, Image]:
    """Two independent fields of unit deviation with amplitude spectrum 1/frequency**exponent."""
    frequency = _frequency(height, width)
    return _filtered_noise(rng, np.asarray((frequency + 2 / max(height, width)) ** -exponent, dtype=np.float32))


def _folds(rng: np.random.Generator, height: int, width: int, *, wavelength: float) -> tuple[Image, Image]:
    """Two band-passed fields: their level sets are winding ribbons of about half the wavelength (pixels)."""
    ratio = np.log2(np.maximum(_frequency(height, width), 1e-6) * np.float32(max(wavelength, 4.0)))
    return _filtered_noise(rng, np.exp(-((ratio / 0.5) ** 2)))


def _filtered_noise(rng: np.random.Generator, gain: Image) -> tuple[Image, Image]:
    white = rng.standard_normal((*gain.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    gain = gain.copy()
    gain[0, 0] = 0
    field = np.fft.ifft2(white * gain).astype(np.complex64)
    field /= field.real.std() + 1e-12
    return np.ascontiguousarray(field.real), np.ascontiguousarray(field.imag)


def _ellipse(
    x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]], x0: float, y0: float, a: float, b: float, turn: float
) -> Image:
    """Depth inside an ellipse: 1 at its centre, 0 on its edge, negative outside (in units of its half axes)."""
    across = (np.cos(turn) * (x - x0) + np.sin(turn) * (y - y0)) / a
    along = (-np.sin(turn) * (x - x0) + np.cos(turn) * (y - y0)) / b
    return np.asarray(1 - np.hypot(across, along), dtype=np.float32)


def _inside(depth: NDArray[np.floating[Any]], edge: float) -> Image:
    """Cover 0..1 of a region given its depth, with an edge of the given width; exactly 0 outside of it."""
    return np.asarray(np.clip(0.5 + depth / edge, 0, 1), dtype=np.float32)


def _paint(image: Image, cover: Image, value: Image | float) -> Image:
    return np.asarray(image + cover * (value - image), dtype=np.float32)
