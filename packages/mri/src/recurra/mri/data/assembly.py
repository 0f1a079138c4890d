"""From measured lines to k-space: what all raw formats have in common.

Rules: noise, navigator and phase-correction lines are left out; reversed readouts are flipped; a line lies at its
encoding step, the centre step at column W//2, its own centre sample at row H//2; lines measured more than once
(averages, segments) are averaged; the readout oversampling is cut away in image space. Echoes, repetitions, phases and
sets are volumes of their own, the parts of a file, and never slices of one.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Complex64, Float64
from numpy.typing import NDArray

from recurra.mri.data.geometry import Geometry, slice_order, unevenness
from recurra.mri.data.volume import Volume, chosen_part
from recurra.mri.noise import Noise

LINE = np.dtype(
    [
        ("source", np.int64),  # where the format finds the samples
        ("step", np.int64),
        ("partition", np.int64),
        ("slice", np.int64),
        ("contrast", np.int64),
        ("phase", np.int64),
        ("set", np.int64),
        ("repetition", np.int64),
        ("samples", np.int64),
        ("coils", np.int64),
        ("center", np.int64),  # sample of the readout that is the centre of k-space
        ("pre", np.int64),  # samples to drop before and after
        ("post", np.int64),
        ("reversed", np.bool_),
        ("calibration", np.bool_),  # for parallel imaging alone
        ("position", np.float64, (3,)),  # of the slice's middle, mm, right-anterior-superior
    ]
)
# What makes volumes of their own, and how they are called.
_PARTS = {"contrast": "echo", "repetition": "repetition", "phase": "phase", "set": "set"}
_SPILLED = 0.01
"""Share of a readout that may lie beyond the matrix: some converters count the centre sample one off."""


class AssembledVolume(Volume):
    """Slices put together from measured lines.

    Args:
        path: the file.
        lines: of type `LINE`; what is no image or calibration line is not among them.
        matrix: readout samples (with oversampling) and phase encoding steps.
        center_step: encoding step of the centre of k-space.
        readout: readout samples to keep of the oversampled ones.
        separate_calibration: calibration lines come from a scan of their own: they are kept apart.
        voxel: size along rows, columns and slices, mm.
        directions: unit vectors of rows, columns and slices for each line (line, 3, 3), right-anterior-superior; None
            if they are not stated.
        coils: number of coils that the file must have.
        part: name of the echo, repetition and so on to take; the first by default.
        attributes: what else the file says.
        remarks: what a user should hear.
        facts_of: what is stated of the sequence of an echo, counted from 0.
        measure: the noise of the coils, None without a noise scan; a ValueError says why a scan does not serve.
        about: the other arguments of `Volume`.
    """

    origin_is_known = True

    def __init__(
        self,
        path: Path,
        lines: NDArray[Any],
        *,
        matrix: tuple[int, int],
        center_step: int,
        readout: int,
        separate_calibration: bool,
        voxel: tuple[float, float, float],
        directions: Float64[NDArray[np.float64], "line 3 3"] | None,
        coils: int | None = None,
        part: str | None = None,
        attributes: dict[str, Any] | None = None,
        measure: Callable[[], Noise | None] = lambda: None,
        facts_of: Callable[[int], dict[str, object]] = lambda echo: {},
        remarks: tuple[str, ...] = (),
        **about: Any,
    ) -> None:
        self._check(path, lines, matrix, center_step, coils)
        self._matrix, self._readout = matrix, readout
        self._first = matrix[1] // 2 - center_step
        apart = lines["calibration"] & separate_calibration
        self._calibration, ours = lines[apart], ~apart
        if not ours.any():
            raise ValueError(f"{path}: has calibration lines but no image lines")
        keys = np.stack([lines[name][ours] for name in _PARTS], axis=1)
        kinds = np.unique(keys, axis=0)
        names = _part_names(kinds)
        number = chosen_part(path, names if len(kinds) > 1 else (), part)
        chosen = np.flatnonzero(ours)[(keys == kinds[number]).all(1)]
        numbers, firsts, owner = np.unique(lines["slice"][chosen], return_index=True, return_inverse=True)
        order, geometry = _geometry(
            lines["position"][chosen][firsts],
            None if directions is None else directions[chosen][firsts],
            (readout, matrix[1]),
            voxel,
        )
        self._lines, self._numbers = lines[chosen], numbers[order]
        self._owner = np.argsort(order)[owner.ravel()]
        sampled = np.zeros((len(numbers), 1, matrix[1]), bool)
        sampled[self._owner, 0, self._lines["step"] + self._first] = True
        if bool((sampled == sampled[:1]).all()):
            sampled = sampled[:1]
        facts = dict(attributes or {})
        said = list(remarks)
        noise = None
        try:
            noise = measure()
        except ValueError as error:
            said.append(f"the noise scan is not used: {str(error).removesuffix('; leave whitening out')}")
        if len(kinds) > 1:
            varying = [
                name for name, column in zip(_PARTS.values(), kinds.T, strict=True) if len(np.unique(column)) > 1
            ]
            what = " and ".join("echoes" if name == "echo" else f"{name}s" for name in varying)
            facts |= {what.replace(" and ", "_"): f"{names[number]}, one of {', '.join(names)}"}
            said.append(f"holds {len(kinds)} volumes ({what}), which are kept apart: {', '.join(names)}")
        _, times = np.unique(np.stack([self._owner, self._lines["step"]]), axis=1, return_counts=True)
        if times.max() > 1:
            facts["averages"] = int(times.max())
        super().__init__(
            path,
            shape=(len(numbers), int(lines["coils"][0]), readout, matrix[1]),
            mask=None if sampled.all() else sampled,
            mask_name="the list of measured lines",
            axes="slice, coil, height, width: put together from the measured lines",
            geometry=geometry,
            attributes=facts,
            parts=names if len(kinds) > 1 else (),
            part=names[number] if len(kinds) > 1 else None,
            remarks=tuple(said),
            noise=noise,
            facts=facts_of(int(kinds[number, 0])) | _numbers(kinds, number),
            **about,
        )

    def calibration(self, index: int) -> Complex64[NDArray[np.complex64], "coil height width"] | None:
        """Calibration lines of a slice that were measured in a scan of their own, zero elsewhere; None without any."""
        lines = self._calibration[self._calibration["slice"] == self._numbers[self._index(index)]]
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
        starts = matrix[0] // 2 - lines["center"] + np.where(lines["reversed"], lines["post"], lines["pre"])
        lengths = lines["samples"] - lines["pre"] - lines["post"]
        spilled = np.maximum(-starts, 0) + np.maximum(starts + lengths - matrix[0], 0)
        if (spilled > np.maximum(2, _SPILLED * lengths)).any():
            worst = int(spilled.argmax())
            raise ValueError(
                f"{path}: a readout of {lines['samples'][worst]} samples, centre {lines['center'][worst]}, does not "
                f"fit the header's matrix of {matrix[0]}: {spilled[worst]} samples would be lost"
            )
        columns = lines["step"] + matrix[1] // 2 - center_step
        if columns.min() < 0 or columns.max() >= matrix[1]:
            raise ValueError(
                f"{path}: phase encoding steps {lines['step'].min()} to {lines['step'].max()} do not fit a matrix of "
                f"{matrix[1]} columns with centre {center_step}"
            )


def _part_names(kinds: NDArray[np.int64]) -> tuple[str, ...]:
    """Names such as echo2_repetition1: of all numbers that differ, counted from one."""
    varying = [column for column in range(kinds.shape[1]) if len(np.unique(kinds[:, column])) > 1]
    words = list(_PARTS.values())
    return tuple("_".join(f"{words[column]}{kind[column] + 1}" for column in varying) for kind in kinds)


def _numbers(kinds: NDArray[np.int64], number: int) -> dict[str, object]:
    """What tells the volumes of one file apart in DICOM."""
    if len(kinds) == 1:
        return {}
    echo, repetition = (int(value) + 1 for value in kinds[number, :2])
    numbers: dict[str, object] = {"SeriesNumber": number + 1, "EchoNumbers": echo}
    return numbers | {"TemporalPositionIdentifier": repetition, "AcquisitionNumber": repetition}


def _geometry(
    positions: NDArray[np.float64],
    directions: NDArray[np.float64] | None,
    matrix: tuple[int, int],
    voxel: tuple[float, float, float],
) -> tuple[NDArray[np.int64], Geometry]:
    """The order of the slices in space, and where they are; positions and directions are in the order of numbers."""
    if directions is None or not np.allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-3):
        numbered = np.arange(len(positions), dtype=np.int64)
        return numbered, Geometry(matrix, voxel)
    order, evidence = slice_order(positions, directions[0, :, 2])
    positions, directions = positions[order], directions[order]
    geometry = Geometry(
        matrix,
        voxel,
        directions[0],
        positions,
        f"directions stated by the scanner; {evidence}",
        unevenness(positions, directions),
    )
    return order, geometry


def remove_oversampling(kspace: NDArray[np.complex128], readout: int) -> NDArray[np.complex128]:
    """K-space of the central `readout` rows of the image; amplitudes of the samples stay as they are."""
    height = kspace.shape[-2]
    if readout >= height:
        return kspace
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, -2), axis=-2), -2)
    start = height // 2 - readout // 2
    image = image[..., start : start + readout, :]
    return np.asarray(np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, -2), axis=-2), -2))
