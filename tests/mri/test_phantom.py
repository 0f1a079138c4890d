"""The phantoms: determinism, diversity, the physics they promise."""

import numpy as np
import pytest

from recurra.mri.data.phantom import phantom_slice


def test_equal_seeds_give_equal_slices_and_other_seeds_others() -> None:
    first = phantom_slice(64, 48, 4, (3, 1, 7))
    again = phantom_slice(64, 48, 4, (3, 1, 7))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    images = [phantom_slice(64, 48, 4, (3, 1, index))[2] for index in range(8)]
    distances = [np.abs(np.abs(a) - np.abs(b)).max() for n, a in enumerate(images) for b in images[:n]]
    assert min(distances) > 0.1


@pytest.mark.parametrize(("height", "width", "coils"), [(230, 180, 8), (51, 64, 3), (16, 17, 1)])
def test_shapes_types_and_scale(height: int, width: int, coils: int) -> None:
    kspace, maps, image = phantom_slice(height, width, coils, 5)
    assert kspace.shape == maps.shape == (coils, height, width)
    assert image.shape == (height, width)
    assert kspace.dtype == maps.dtype == image.dtype == np.complex64
    assert np.abs(image).max() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(np.sum(np.abs(maps) ** 2, axis=0), 1.0, atol=1e-5)


def test_without_noise_the_kspace_is_the_transform_of_the_coil_images() -> None:
    kspace, maps, image = phantom_slice(45, 64, 4, 9, noise=0.0)
    axes = (-2, -1)
    coil_images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes), norm="ortho"), axes)
    np.testing.assert_allclose(coil_images, maps * image, atol=1e-5)
    np.testing.assert_allclose(np.sum(maps.conj() * coil_images, axis=0), image, atol=1e-5)


def test_the_noise_has_the_level_asked_for() -> None:
    clean = phantom_slice(96, 96, 4, 2, noise=0.0)[0]
    noisy = phantom_slice(96, 96, 4, 2, noise=0.02)[0]
    difference = noisy - clean
    assert np.sqrt(np.mean(np.abs(difference) ** 2)) == pytest.approx(0.02, rel=0.02)
    assert abs(np.mean(difference)) < 1e-3


def test_the_background_is_exactly_zero_and_large_and_the_body_is_there() -> None:
    shares = [np.mean(phantom_slice(128, 96, 2, (1, index))[2] == 0) for index in range(10)]
    assert min(shares) > 0.05
    assert max(shares) < 0.9


def test_the_spectrum_falls_as_that_of_natural_images_does() -> None:
    """Amplitude over frequency: the mean slope in the logarithm lies between a cloud's (-2) and noise's (0)."""
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None, :])
    bands = [(0.02, 0.04), (0.04, 0.08), (0.08, 0.16), (0.16, 0.32)]
    slopes = []
    for index in range(12):
        spectrum = np.abs(np.fft.fft2(np.abs(phantom_slice(128, 128, 1, (4, index))[2])))
        amplitude = [spectrum[(frequency > low) & (frequency <= high)].mean() for low, high in bands]
        slopes.append(np.polyfit(np.arange(4), np.log2(amplitude), 1)[0])
    assert -2.2 < np.mean(slopes) < -0.8
    assert np.std(slopes) > 0.1


def test_the_maps_are_smooth() -> None:
    maps = phantom_slice(128, 128, 8, 11)[1]
    assert np.abs(np.diff(maps, axis=-1)).max() < 0.15


@pytest.mark.parametrize(("height", "width", "coils"), [(8, 64, 1), (64, 15, 1), (64, 64, 0)])
def test_too_small_is_refused(height: int, width: int, coils: int) -> None:
    line = f"phantom needs a matrix of at least 16 x 16 and at least one coil; got {height} x {width}, {coils} coils"
    with pytest.raises(ValueError, match=line):
        phantom_slice(height, width, coils, 0)
