"""Noise of coils and its whitening, against covariances that are known."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.mri.noise import measure_noise


def white(coils: int, samples: int, seed: int = 0) -> np.ndarray:
    """Complex noise of variance one."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(coils, samples)) + 1j * rng.normal(size=(coils, samples))) / np.sqrt(2)


def mixing(coils: int, seed: int = 0) -> np.ndarray:
    """How coils of unlike gain pick up each other's noise."""
    rng = np.random.default_rng((seed, 1))
    return rng.uniform(1e-6, 1e-4, (coils, 1)) * (np.eye(coils) + 0.3 * white(coils, coils, seed + 7))


def scan(coils: int, samples: int, seed: int = 0, draw: int = 0) -> np.ndarray:
    """Noise of the coils of this seed; another draw is other noise of the same coils."""
    return (mixing(coils, seed) @ white(coils, samples, seed + 1000 * draw + 99)).astype(np.complex64)


@given(coils=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_whitened_noise_is_white_on_the_scale_of_the_scan(coils: int, seed: int) -> None:
    noise = measure_noise([scan(coils, 20_000, seed)])
    truth = mixing(coils, seed) @ mixing(coils, seed).conj().T
    # noise that the covariance was not estimated from
    other = noise.whiten(scan(coils, 20_000, seed, draw=1))
    found = other.astype(np.complex128) @ other.conj().T / 20_000
    # Each entry of a covariance from N samples has the deviation 1/√N = 0.7 %, of two of them √2 more; five of these.
    np.testing.assert_allclose(found / noise.level**2, np.eye(coils), atol=0.05)
    assert noise.level**2 == pytest.approx(np.trace(truth).real / coils, rel=0.05)
    assert noise.level**2 == pytest.approx(np.mean(noise.deviation**2), rel=1e-12)


def test_the_samples_themselves_become_exactly_white() -> None:
    samples = scan(8, 500)
    noise = measure_noise([samples])
    found = noise.whiten(samples).astype(np.complex128)
    np.testing.assert_allclose(found @ found.conj().T / 500 / noise.level**2, np.eye(8), atol=1e-5)


def test_one_coil_stays_as_it_is() -> None:
    kspace = white(1, 12, 3).astype(np.complex64).reshape(1, 3, 4)
    assert measure_noise([scan(1, 50)]).whiten(kspace) is kspace


def test_white_noise_needs_no_whitening() -> None:
    kspace = white(4, 12, 3).astype(np.complex64)
    np.testing.assert_allclose(
        measure_noise([(white(4, 200_000) * 3).astype(np.complex64)]).whiten(kspace), kspace, atol=0.02
    )


@given(scale=st.floats(1e-6, 1e6), receiver=st.floats(0.1, 1), dwell=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_unit_and_the_bandwidth_of_the_scan_change_nothing(
    scale: float, receiver: float, dwell: float, seed: int
) -> None:
    samples, kspace = scan(6, 200, seed), scan(6, 30, seed + 1)
    plain = measure_noise([samples]).whiten(kspace)
    other = measure_noise([samples * np.float32(scale)], dwell=[5.0], image_dwell=dwell, receiver_bandwidth=receiver)
    np.testing.assert_allclose(other.whiten(kspace), plain, atol=1e-5 * np.abs(plain).max())


def test_coils_may_come_in_any_order_and_on_any_scale() -> None:
    """The image of the whitened coils is the same: their root sum of squares is that of ψ⁻¹, however ψ is split."""
    samples, kspace = scan(6, 300), scan(6, 40, 1)
    order = np.array([3, 1, 5, 0, 4, 2])
    gain = np.array([1, 10, 1e3, 1e-3, 1e-6, 5], np.float32)[:, None]
    plain, turned, louder = measure_noise([samples]), measure_noise([samples[order]]), measure_noise([gain * samples])

    def rss(of: np.ndarray) -> np.ndarray:
        return np.linalg.norm(of.astype(np.complex128), axis=0)

    np.testing.assert_allclose(rss(turned.whiten(kspace[order])), rss(plain.whiten(kspace)), rtol=1e-5)
    np.testing.assert_allclose(
        rss(louder.whiten(gain * kspace)) / louder.level, rss(plain.whiten(kspace)) / plain.level, rtol=1e-4
    )


def test_readouts_of_other_bandwidth_count_as_at_the_images() -> None:
    """Twice the dwell time is half the bandwidth, so half the variance."""
    slow, fast = scan(3, 400_000, 2), scan(3, 200_000, 2) * np.float32(np.sqrt(2))
    noise = measure_noise([slow, fast], dwell=[10.0, 5.0], image_dwell=10.0)
    truth = mixing(3, 2) @ mixing(3, 2).conj().T
    scale = np.trace(truth).real / 3
    np.testing.assert_allclose(noise.covariance / scale, truth / scale, atol=0.03)
    # a receiver that passes 80 % of the bandwidth hides a fifth of the noise that the middle of the band has
    assert measure_noise([slow], receiver_bandwidth=0.8).level == pytest.approx(
        measure_noise([slow]).level / np.sqrt(0.8)
    )
    assert measure_noise([slow], dwell=[10.0], image_dwell=5.0).level == pytest.approx(
        measure_noise([slow]).level * np.sqrt(2)
    )
    assert noise.samples == 600_000


def test_a_dead_coil_stays_zero_and_takes_no_part() -> None:
    samples, kspace = scan(4, 200), scan(4, 12, 1)
    alive = measure_noise([samples[[0, 2, 3]]])
    samples[1] = kspace[1] = 0
    noise = measure_noise([samples])
    assert noise.dead == [1]
    assert noise.level == pytest.approx(alive.level, rel=1e-12)
    found = noise.whiten(kspace)
    assert not found[1].any()
    np.testing.assert_allclose(found[[0, 2, 3]], alive.whiten(kspace[[0, 2, 3]]), rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"^coil 1 has no noise in the noise scan but samples in the images, so .*out$"
    ):
        noise.whiten(scan(4, 12, 1))


def test_what_is_said_of_it() -> None:
    coils = np.concatenate([white(1, 9000), 2 * white(1, 9000, 1), 0 * white(1, 9000)]).astype(np.complex64)
    noise = measure_noise([coils])
    np.testing.assert_allclose(noise.deviation, [1, 2, 0], rtol=0.05)
    assert noise.correlation < 0.05
    one, other = white(2, 9000)
    coils = np.stack([one, (0.8j * one + 0.6 * other) * 7]).astype(np.complex64)
    assert measure_noise([coils]).correlation == pytest.approx(0.8, abs=0.03)
    assert measure_noise([scan(1, 9)]).correlation == 0


def test_averages_of_whitened_coils_have_less_noise() -> None:
    """What it is for: the least-squares image of unlike coils is the one of least variance."""
    maps = white(8, 1, 11)
    kspace = (maps + 0.1 / 3e-5 * scan(8, 50_000, 4)).astype(np.complex64)
    noise = measure_noise([scan(8, 2000, 4, draw=1)])

    def deviation(data: np.ndarray, maps: np.ndarray) -> float:
        image = (maps.conj() * data).sum(0) / (np.abs(maps) ** 2).sum(0)
        assert np.mean(image) == pytest.approx(1, abs=0.02)
        return float(np.std(image))

    assert deviation(noise.whiten(kspace), noise.whiten(maps.astype(np.complex64))) < 0.6 * deviation(kspace, maps)


@pytest.mark.parametrize(
    ("readouts", "options", "line"),
    [
        ([], {}, "there is no noise scan; leave whitening out"),
        ([scan(8, 31)], {}, "the noise scan has 31 samples of 8 coils, fewer than 32; leave whitening out"),
        ([scan(8, 32), scan(4, 32)], {}, "the noise scan has readouts of 4 and of 8 coils; leave whitening out"),
        ([scan(2, 90) * np.nan], {}, "the noise scan has NaN or infinite samples; leave whitening out"),
        ([scan(2, 90) * 0], {}, "the noise scan is zero in all coils; leave whitening out"),
        (
            [scan(3, 90)[[0, 1, 1]]],
            {},
            "the noise scan has coils whose noise is the same or a sum of that of others; leave whitening out",
        ),
        (
            [np.concatenate([scan(3, 90), scan(3, 90).sum(0, keepdims=True)])],
            {},
            "the noise scan has coils whose noise is the same or a sum of that of others; leave whitening out",
        ),
        (
            [scan(2, 90)] * 2,
            {"dwell": [5.0, 0.0]},
            "the noise scan states dwell times for 1 of 2 readouts, not for all or none; leave whitening out",
        ),
        ([scan(2, 90)], {"receiver_bandwidth": 0.0}, "receiver_bandwidth must be above 0 and at most 1; got 0.0"),
    ],
)
def test_what_is_refused(readouts: Any, options: Any, line: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole line is compared
        measure_noise(readouts, **options)
    assert str(caught.value) == line


def test_other_coils_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^the noise scan has 3 coils and the k-space 4; leave whitening out$"):
        measure_noise([scan(3, 90)]).whiten(scan(4, 10))
