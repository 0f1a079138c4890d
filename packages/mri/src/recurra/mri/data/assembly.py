"""From measured lines to k-space: what all raw formats have in common.

Rules: noise, navigator and phase-correction lines are left out; reversed readouts are flipped; a line lies at its
encoding step, the centre step at column W//2, its own centre sample at row H//2; lines measured more than once
(averages, repetitions, segments) are averaged; the readout oversampling is cut away in image space. Contrasts,
phases and sets of a slice are volumes of their own, one after the other.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Complex64
from numpy.typing import NDArray

from recurra.mri.data.volume import Volume

LINE = np.dtype(
    [
        ("source", np.int64),  # where the format finds the samples
        ("step", np.int64),
        ("partition", np.int64),
        ("slice", np.int64),
        ("contrast", np.int64),
        ("phase", np.int64),
        ("set", np.int64),
        ("samples", np.int64),
        ("coils", np.int64),
        ("center", np.int64),  # sample of the readout that is the centre of k-space
        ("pre", np.int64),  # samples to drop before and after
        ("post", np.int64),
        ("reversed", np.bool_),
        ("calibration", np.bool_),  # for parallel imaging alone
    ]
)


class AssembledVolume(Volume):
    """Slices put together from measured lines.

    Args:
        path: the file.
        lines: of type `LINE`; what is no image or calibration line is not among them.
        matrix: readout samples (with oversampling) and phase encoding steps.
        center_step: encoding step of the centre of k-space.
        readout: readout samples to keep of the oversampled ones.
        separate_calibration: calibration lines come from a scan of their own: they are kept apart.
        coils: number of coils that the file must have.
        about: the other arguments of `Volume`.
    """

    def __init__(
        self,
        path: Path,
        lines: NDArray[Any],
        *,
        matrix: tuple[int, int],
        center_step: int,
        readout: int,
        separate_calibration: bool,
        coils: int | None = None,
        **about: Any,
    ) -> None:
        self._check(path, lines, matrix, center_step, coils)
        self._matrix, self._readout = matrix, readout
        self._first = matrix[1] // 2 - center_step
        apart = lines["calibration"] & separate_calibration
        self._lines, self._calibration = lines[~apart], lines[apart]
        if not len(self._lines):
            raise ValueError(f"{path}: has calibration lines but no image lines")
        keys = np.stack([self._lines[name] for name in ("contrast", "phase", "set", "slice")], axis=1)
        self._slices, owner = np.unique(keys, axis=0, return_inverse=True)
        self._owner = owner.ravel()
        taken = {tuple(np.unique(self._lines["step"][self._owner == n])) for n in range(len(self._slices))}
        if len(taken) > 1:
            counts = sorted(len(steps) for steps in taken)
            raise ValueError(f"{path}: slices are sampled differently ({counts[0]} and {counts[-1]} lines each)")
        sampled = np.zeros((1, matrix[1]), bool)
        sampled[0, np.array(next(iter(taken))) + self._first] = True
        shape = (len(self._slices), int(lines["coils"][0]), readout, matrix[1])
        super().__init__(path, shape=shape, mask=None if sampled.all() else sampled, **about)

    def calibration(self, index: int) -> Complex64[NDArray[np.complex64], "coil height width"] | None:
        """Calibration lines of a slice that were measured in a scan of their own, zero elsewhere; None without any."""
        lines = self._calibration[self._calibration["slice"] == self._slices[self._index(index)][-1]]
        return self._assemble(lines) if len(lines) else None

    @abstractmethod
    def _samples(self, sources: NDArray[np.int64]) -> Sequence[NDArray[np.complex64]]:
        """The samples (coil, sample) of lines, as measured."""

    def _read(self, index: int) -> NDArray[np.complex64]:
        return self._assemble(self._lines[self._owner == index])

    def _assemble(self, lines: NDArray[Any]) -> NDArray[np.complex64]:
        height, width = self._matrix
        kspace = np.zeros((self.shape[1], height, width), np.complex128)
        times = np.zeros((height, width), np.int64)
        lines = lines[np.argsort(lines["source"])]
        for line, samples in zip(lines, self._samples(lines["source"]), strict=True):
            samples = samples[:, line["pre"] : line["samples"] - line["post"]]
            # The centre is that of the readout as it is stored, after flipping.
            samples = samples[:, ::-1] if line["reversed"] else samples
            start = height // 2 - int(line["center"]) + int(line["post" if line["reversed"] else "pre"])
            rows = slice(max(start, 0), min(start + samples.shape[1], height))
            column = line["step"] + self._first
            kspace[:, rows, column] += samples[:, rows.start - start : rows.stop - start]
            times[rows, column] += 1
        kspace /= np.maximum(times, 1)
        return remove_oversampling(kspace, self._readout).astype(np.complex64)

    @staticmethod
    def _check(path: Path, lines: NDArray[Any], matrix: tuple[int, int], center_step: int, coils: int | None) -> None:
        if not len(lines):
            raise ValueError(f"{path}: has no image lines; expected Cartesian readouts")
        if lines["partition"].any():
            raise ValueError(
                f"{path}: is a 3-D scan of {lines['partition'].max() + 1} partitions; only 2-D slices can be read"
            )
        found = np.unique(lines["coils"])
        if len(found) > 1:
            raise ValueError(f"{path}: lines have between {found[0]} and {found[-1]} coils; expected one number")
        if coils is not None and found[0] != coils:
            raise ValueError(f"{path}: has {found[0]} coils; expected {coils} as given by --coils")
        columns = lines["step"] + matrix[1] // 2 - center_step
        if columns.min() < 0 or columns.max() >= matrix[1]:
            raise ValueError(
                f"{path}: phase encoding steps {lines['step'].min()} to {lines['step'].max()} do not fit a matrix of "
                f"{matrix[1]} columns with centre {center_step}"
            )


def remove_oversampling(kspace: NDArray[np.complex128], readout: int) -> NDArray[np.complex128]:
    """K-space of the central `readout` rows of the image; amplitudes of the samples stay as they are."""
    height = kspace.shape[-2]
    if readout >= height:
        return kspace
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, -2), axis=-2), -2)
    start = height // 2 - readout // 2
    image = image[..., start : start + readout, :]
    return np.asarray(np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, -2), axis=-2), -2))
