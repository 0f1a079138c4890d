"""Noise of the receive coils, from a scan without excitation, and k-space in which it is white.

Coils differ in noise and pick up each other's. The least-squares problems of SENSE, and the gradient of every network
here, weigh all coils alike, which is right only for noise that is equal and independent:

    ψ = mean over samples of n nᴴ        covariance of the noise (Roemer et al. 1990; Pruessmann et al. 1999)
    ψ = L Lᴴ,  k_white = c L⁻¹ k         pre-whitening by Cholesky decomposition (Pruessmann et al. 2001)
    c² = mean of ψ's diagonal            Kellman & McVeigh 2005 choose it otherwise, for images in units of SNR

This c keeps the sum of the noise variances over coils, and with it the noise floor of a root-sum-of-squares image: what
is made of whitened k-space stays on the scale of the file. It also makes the whitening independent of the unit of the
noise scan, of its bandwidth, and of the receiver's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Complex64, Complex128, Float64
from numpy.typing import NDArray

SAMPLES_PER_COIL = 4
"""Fewest noise samples for each coil. A covariance from N samples of n coils is wrong by up to the factor
(1 ± √(n/N))² in some direction (Marchenko & Pastur 1967): with 4 a coil, by 0.25 to 2.25."""

_SINGULAR = 1e-10  # well above what rounding to complex64 leaves of a channel that is a sum of others, squared


@dataclass(frozen=True)
class Noise:
    """What a noise scan says about the coils.

    Attributes:
        covariance: ψ, in squared units of the k-space samples; that of a single complex sample, so its real and its
            imaginary part have half of it each.
        samples: how many samples of each coil it was estimated from.
    """

    covariance: Complex128[NDArray[np.complex128], "coil coil"]
    samples: int

    @cached_property
    def deviation(self) -> Float64[NDArray[np.float64], "coil"]:
        """Standard deviation of each coil's noise; zero for a dead coil."""
        return np.asarray(np.sqrt(self.covariance.diagonal().real))

    @property
    def dead(self) -> list[int]:
        """Coils without any noise, which are not connected; counted from 0."""
        return [int(coil) for coil in np.flatnonzero(self.deviation == 0)]

    @property
    def level(self) -> float:
        """Root of the mean noise variance over the living coils; that of each of them after whitening."""
        return float(np.sqrt(np.mean(self.deviation[self.deviation > 0] ** 2)))

    @property
    def correlation(self) -> float:
        """Largest correlation between two coils, from 0 to 1; 0 for a single coil."""
        alive = self.deviation > 0
        between = np.abs(_correlation(self.covariance[np.ix_(alive, alive)]))
        np.fill_diagonal(between, 0)
        return float(between.max(initial=0))

    @cached_property
    def whitening(self) -> Complex128[NDArray[np.complex128], "coil coil"]:
        """c L⁻¹. A dead coil has a row and a column of zeros: it takes no part."""
        alive = np.flatnonzero(self.deviation > 0)
        size = self.deviation[alive]
        # The factor of the correlation matrix is as exact when coils are on scales that differ by many powers of ten.
        factor = np.linalg.cholesky(_correlation(self.covariance[np.ix_(alive, alive)]))
        result = np.zeros_like(self.covariance)
        result[np.ix_(alive, alive)] = self.level * np.linalg.inv(factor) / size
        return result

    def whiten(
        self, kspace: Complex64[NDArray[np.complex64], "coil *samples"]
    ) -> Complex64[NDArray[np.complex64], "coil *samples"]:
        """K-space in which the noise of all living coils is independent and has the deviation `level`.

        Calibration samples and coil maps that are to go with it are whitened by the same function: the coils of the
        result are mixtures of the measured ones. A single coil stays as it is. A dead coil stays zero.

        Args:
            kspace: samples, or coil maps, with the coils in front.

        Raises:
            ValueError: there are other coils than in the noise scan, or one that is dead there has samples.
        """
        coils = len(self.deviation)
        if len(kspace) != coils:
            raise ValueError(f"the noise scan has {coils} coils and the k-space {len(kspace)}; leave whitening out")
        for coil in self.dead:
            if np.any(kspace[coil]):
                raise ValueError(
                    f"coil {coil} has no noise in the noise scan but samples in the images, so the scan is not of "
                    "these coils; leave whitening out"
                )
        if coils == 1:
            return kspace
        mixed = self.whitening @ kspace.reshape(coils, -1)
        return np.asarray(mixed.reshape(kspace.shape), np.complex64)


def measure_noise(
    readouts: Sequence[Complex64[NDArray[np.complex64], "coil _"]],
    *,
    dwell: Sequence[float] | None = None,
    image_dwell: float | None = None,
    receiver_bandwidth: float = 1.0,
) -> Noise:
    """The noise of the coils, as it is in the image's samples.

    Noise variance is proportional to the bandwidth, so to the inverse dwell time; a readout's counts as
    ψ · dwell / (image_dwell · receiver_bandwidth), which is the convention of Gadgetron's NoiseAdjustGadget (Kellman &
    McVeigh 2005). Where no dwell time is known, all count alike. Whitening depends on neither the image's
    dwell time nor the receiver's bandwidth, only `Noise.level` does.

    Args:
        readouts: of the noise scan, with the same coils each.
        dwell: time between the samples of each readout (ISMRMRD: sample_time_us), in any unit; None or zeros where it
            is unknown.
        image_dwell: the same of the image's readouts, in the same unit; by default that of the first readout.
        receiver_bandwidth: bandwidth of the noise over the sampling bandwidth of the noise scan (ISMRMRD:
            relativeReceiverNoiseBandwidth; 0.79 on Siemens scanners).

    Raises:
        ValueError: there are too few samples, values that are no numbers, no noise at all, or coils whose noise is a
            sum of that of others.
    """
    if not readouts:
        raise ValueError("there is no noise scan; leave whitening out")
    coils = {one.shape[0] for one in readouts}
    if len(coils) > 1:
        raise ValueError(f"the noise scan has readouts of {min(coils)} and of {max(coils)} coils; leave whitening out")
    total = np.zeros((coil := coils.pop(), coil), np.complex128)
    factors = _bandwidths(dwell, image_dwell, receiver_bandwidth, len(readouts))
    for samples, factor in zip(readouts, factors, strict=True):
        exact = samples.astype(np.complex128)
        if not np.isfinite(exact).all():
            raise ValueError("the noise scan has NaN or infinite samples; leave whitening out")
        total += factor * (exact @ exact.conj().T)
    count = sum(one.shape[1] for one in readouts)
    if count < SAMPLES_PER_COIL * coil:
        raise ValueError(
            f"the noise scan has {count} samples of {coil} coils, fewer than {SAMPLES_PER_COIL * coil}; leave "
            "whitening out"
        )
    noise = Noise(total / count, count)
    alive = noise.deviation > 0
    if not alive.any():
        raise ValueError("the noise scan is zero in all coils; leave whitening out")
    if np.linalg.eigvalsh(_correlation(noise.covariance[np.ix_(alive, alive)]))[0] < _SINGULAR:
        raise ValueError(
            "the noise scan has coils whose noise is the same or a sum of that of others; leave whitening out"
        )
    return noise


def _bandwidths(dwell: Sequence[float] | None, image: float | None, receiver: float, count: int) -> list[float]:
    """What each readout's noise variance is multiplied by."""
    if not 0 < receiver <= 1:
        raise ValueError(f"receiver_bandwidth must be above 0 and at most 1; got {receiver}")
    known = [] if dwell is None else [time for time in dwell if time > 0]
    if dwell is None or not known:
        return [1 / receiver] * count
    if len(known) < count:
        raise ValueError(
            f"the noise scan states dwell times for {len(known)} of {count} readouts, not for all or none; leave "
            "whitening out"
        )
    return [time / ((image or known[0]) * receiver) for time in known]


def _correlation(covariance: NDArray[np.complex128]) -> NDArray[np.complex128]:
    size = np.sqrt(covariance.diagonal().real)
    return np.asarray(covariance / size[:, None] / size)
