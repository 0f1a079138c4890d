"""Masks of whole columns, and what every mask has in common. What each stands for is told in `masks`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy.random import RandomState
from numpy.typing import NDArray

Seed = int | tuple[int, ...] | RandomState | None
Line = NDArray[np.bool_]
Plane = NDArray[np.bool_]


class Mask(NamedTuple):
    """Which samples are taken, which of them calibrate the coil maps, and the acceleration that was asked for."""

    sampling: Bool[NDArray[np.bool_], "row width"]
    acs: Bool[NDArray[np.bool_], "row width"]
    acceleration: float


def file_seed(path: str | Path) -> tuple[int, ...]:
    """Seed of a file's mask: the characters of its name without the folder."""
    return tuple(map(ord, Path(path).name))


class MaskGenerator:
    """A kind of mask: `generator((height, width), seed=...)` gives a `Mask`.

    Args:
        accelerations: one is picked for each mask.
        center_fractions: share of the columns fully sampled in the centre that belongs to each acceleration, or their
            number where it is one or more.
    """

    def __init__(self, accelerations: Sequence[int | float], center_fractions: Sequence[int | float]) -> None:
        kind = type(self).__name__
        if not accelerations or len(accelerations) != len(center_fractions):
            raise ValueError(
                f"{kind}: accelerations and center_fractions must be equally long and not empty; "
                f"got {list(accelerations)} and {list(center_fractions)}"
            )
        if min(accelerations) < 1:
            raise ValueError(f"{kind}: accelerations must be at least 1; got {list(accelerations)}")
        if min(center_fractions) < 0:
            raise ValueError(f"{kind}: center_fractions must not be negative; got {list(center_fractions)}")
        self.accelerations = tuple(accelerations)
        self.center_fractions = tuple(center_fractions)

    def __call__(self, shape: tuple[int, int], *, seed: Seed = None, padding: tuple[int, int] | None = None) -> Mask:
        """A mask for a matrix of this (height, width).

        Args:
            shape: height and width of the k-space.
            seed: equal seeds give equal masks; a `RandomState` is drawn from, None draws a new seed.
            padding: first column and first column after those measured; outside of them nothing is sampled. An end
                of 0 (a header without limits) means that all are measured.

        Raises:
            ValueError: the fractions and accelerations leave no mask for this shape.
        """
        rng = seed if isinstance(seed, RandomState) else RandomState(seed)
        choice = int(rng.randint(0, len(self.accelerations)))
        center, acceleration = self.center_fractions[choice], self.accelerations[choice]
        sampling, acs = self.draw(shape, center, acceleration, rng)
        sampling = np.atleast_2d(sampling)
        if padding is not None and padding[1] > 0:
            sampling = sampling.copy()
            sampling[:, : padding[0]] = False
            sampling[:, padding[1] :] = False
        if not sampling.any():
            raise ValueError(f"{type(self).__name__} keeps no sample of a {shape[0]} x {shape[1]} matrix: {self!r}")
        return Mask(sampling, np.atleast_2d(acs), float(acceleration))

    def __repr__(self) -> str:
        """The call that builds it."""
        fractions, accelerations = list(self.center_fractions), list(self.accelerations)
        return f"{type(self).__name__}(accelerations={accelerations}, center_fractions={fractions})"

    def draw(
        self, shape: tuple[int, int], center: int | float, acceleration: int | float, rng: RandomState
    ) -> tuple[Line | Plane, Line | Plane]:
        """The sampling and the calibration mask, as a line of columns or as a plane."""
        raise NotImplementedError


class ColumnMask(MaskGenerator):
    """Whole columns: a fully sampled centre and what `outer` adds to it."""

    def draw(
        self, shape: tuple[int, int], center: int | float, acceleration: int | float, rng: RandomState
    ) -> tuple[Line, Line]:
        """The columns taken and the central ones."""
        columns = shape[1]
        low = self.center_lines(columns, center, acceleration)
        acs = np.zeros(columns, bool)
        start = (columns - low + 1) // 2
        acs[start : start + low] = True
        return acs | self.outer(columns, low, acceleration, rng), acs

    def center_lines(self, columns: int, center: int | float, acceleration: int | float) -> int:
        """Number of fully sampled columns."""
        return round(columns * center) if center < 1 else int(center)

    def outer(self, columns: int, low: int, acceleration: int | float, rng: RandomState) -> Line:
        """Columns taken anywhere, the centre included."""
        raise NotImplementedError


class Random(ColumnMask):
    """Each column by chance, so that the expected number is columns / acceleration (fastMRI `random`)."""

    def outer(self, columns: int, low: int, acceleration: int | float, rng: RandomState) -> Line:
        """Columns with the probability that is left after the centre."""
        probability = (columns / acceleration - low) / (columns - low) if low < columns else 1.0
        return np.asarray(rng.uniform(size=columns) < probability)


class Equispaced(ColumnMask):
    """Every R-th column from a random offset; the centre comes on top (fastMRI `equispaced`)."""

    def outer(self, columns: int, low: int, acceleration: int | float, rng: RandomState) -> Line:
        """Every R-th column."""
        line = np.zeros(columns, bool)
        line[rng.randint(0, round(acceleration)) :: round(acceleration)] = True
        return line


class EquispacedFraction(ColumnMask):
    """Nearly equispaced columns, R of all together with the centre (the masks of the public fastMRI data)."""

    def outer(self, columns: int, low: int, acceleration: int | float, rng: RandomState) -> Line:
        """Columns at the rounded multiples of the adjusted spacing."""
        if low * acceleration >= columns:
            raise ValueError(_crowded(self, columns, low, acceleration))
        spacing = acceleration * (low - columns) / (low * acceleration - columns)
        offset = rng.randint(0, round(spacing))
        line = np.zeros(columns, bool)
        line[np.around(np.arange(offset, columns - 1, spacing)).astype(int)] = True
        return line


class Magic(ColumnMask):
    """Equispaced columns whose two halves interleave under conjugation (Defazio 2019, arXiv:1912.01101)."""

    def outer(self, columns: int, low: int, acceleration: int | float, rng: RandomState) -> Line:
        """Positive and negative frequencies with offsets that never mirror each other."""
        stride = self.stride(columns, low, acceleration)
        offset = int(rng.randint(0, stride))
        first_positive, first_negative = (offset + 1, offset + 2) if offset % 2 == 0 else (offset + 2, offset - 1)
        positive, negative = np.zeros((columns + 1) // 2, bool), np.zeros(columns // 2, bool)
        positive[first_positive::stride] = True
        negative[first_negative::stride] = True
        return np.fft.fftshift(np.concatenate((positive, negative[::-1])))

    def stride(self, columns: int, low: int, acceleration: int | float) -> int:
        """Distance of the outer columns."""
        return int(acceleration)


class MagicFraction(Magic):
    """`Magic` with the stride adjusted so that centre and outer columns together are columns / acceleration."""

    def center_lines(self, columns: int, center: int | float, acceleration: int | float) -> int:
        """Between one line and all that may be sampled."""
        low = super().center_lines(columns, center, acceleration)
        return max(min(low, round(columns / acceleration)), 1)

    def stride(self, columns: int, low: int, acceleration: int | float) -> int:
        """Distance that spreads what the centre left over all columns."""
        left = round(columns / acceleration) - low
        if left <= 0:
            raise ValueError(_crowded(self, columns, low, acceleration))
        return round(columns / left)


class Gaussian1D(MaskGenerator):
    """Columns with Gaussian density, drawn without replacement; the second number is the FWHM (wdika/atommic).

    Args:
        accelerations: one is picked for each mask.
        center_fractions: full width at half maximum of the density, the field of view being 2.
        center_scale: share of the columns that is fully sampled in the centre.
        corner_origin: move the centre of the mask to the corner, as the original does (it shifts it once too often);
            for its bits only, since k-space has its centre in the middle.
    """

    def __init__(
        self,
        accelerations: Sequence[int | float],
        center_fractions: Sequence[int | float] = (0.7,),
        *,
        center_scale: float = 0.02,
        corner_origin: bool = False,
    ) -> None:
        super().__init__(accelerations, repeat(center_fractions, accelerations))
        self.center_scale = center_scale
        self.corner_origin = corner_origin

    def draw(
        self, shape: tuple[int, int], center: int | float, acceleration: int | float, rng: RandomState
    ) -> tuple[Line, Line]:
        """int(W / R) columns by density, and the centre."""
        columns = shape[1]
        low = int(columns * self.center_scale)
        acs = np.zeros(columns, bool)
        acs[(columns - low) // 2 : (columns - low) // 2 + low] = True
        density = bell(columns, center)
        drawn = rng.choice(columns, size=int(columns / acceleration), replace=False, p=density / density.sum())
        line = acs.copy()
        line[drawn] = True
        if self.corner_origin:
            line, acs = (np.roll(one, -3 * (columns // 2)) for one in (line, acs))
        return line, acs


class Gaussian1DDirect(ColumnMask):
    """Columns at normally distributed places until W / R are taken, and the centre (like NKI-AI/direct)."""

    def outer(self, columns: int, low: int, acceleration: int | float, rng: RandomState) -> Line:
        """Columns beyond the centre, by rejection."""
        line = np.zeros(columns, bool)
        start = (columns - low + 1) // 2
        line[start : start + low] = True
        missing = max(round(columns / acceleration) - low, 0)
        normal_places(line, missing, 6 * np.sqrt(columns // 2), rng)
        return line


def normal_places(
    taken: NDArray[np.bool_], missing: int, spread: NDArray[np.float64] | float, rng: RandomState
) -> None:
    """Takes `missing` more samples at normally distributed places about the centre."""
    size = np.array(taken.shape)
    while missing > 0:
        places = np.floor(size // 2 + spread * rng.normal(size=(4 * missing + 16, taken.ndim))).astype(int)
        for place in map(tuple, places[np.all((places >= 0) & (places < size), axis=1)]):
            if missing > 0 and not taken[place]:
                taken[place] = True
                missing -= 1


def bell(size: int, width_at_half: int | float) -> NDArray[np.float64]:
    """Gaussian of this full width at half maximum over -1..1."""
    sigma = width_at_half / np.sqrt(8 * np.log(2))
    return np.asarray(np.exp(-(np.linspace(-1.0, 1.0, size) ** 2) / (2 * sigma**2)))


def repeat(values: Sequence[int | float], accelerations: Sequence[int | float]) -> Sequence[int | float]:
    """One value serves all accelerations."""
    return tuple(values) * len(accelerations) if len(values) == 1 else values


def _crowded(generator: MaskGenerator, columns: int, low: int, acceleration: int | float) -> str:
    return (
        f"{type(generator).__name__}: the {low} centre lines of {columns} columns already exceed acceleration "
        f"{acceleration:g}; use a smaller center fraction or acceleration"
    )
