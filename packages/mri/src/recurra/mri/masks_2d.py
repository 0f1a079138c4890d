"""Masks of single samples of both axes. What each stands for is told in `masks`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from numpy.random import RandomState
from numpy.typing import NDArray

from recurra.mri.masks_columns import MaskGenerator, Plane, bell, normal_places, repeat


def centered_disk(shape: tuple[int, int], fraction: int | float) -> Bool[NDArray[np.bool_], "height width"]:
    """A disk of the given fraction of all samples about (H//2, W//2), its edge excluded (NKI-AI/direct)."""
    radius = int(np.sqrt(shape[0] * shape[1] * fraction / np.pi))
    return _squared_distance(shape) < radius**2


def circular_acs(shape: tuple[int, int], radius: int = 18) -> Bool[NDArray[np.bool_], "height width"]:
    """The calibration disk of the Calgary-Campinas masks about (H//2, W//2), its edge included."""
    return _squared_distance(shape) <= radius**2


class Gaussian2D(MaskGenerator):
    """Samples with Gaussian density, drawn without replacement, and a full ellipse in the centre (wdika/atommic).

    Args:
        accelerations: one is picked for each mask.
        center_fractions: full width at half maximum of the density, the field of view being 2.
        center_scale: half axes of the ellipse as a share of the matrix.
    """

    def __init__(
        self,
        accelerations: Sequence[int | float],
        center_fractions: Sequence[int | float] = (0.7,),
        *,
        center_scale: float = 0.02,
    ) -> None:
        super().__init__(accelerations, repeat(center_fractions, accelerations))
        self.center_scale = center_scale

    def draw(
        self, shape: tuple[int, int], center: int | float, acceleration: int | float, rng: RandomState
    ) -> tuple[Plane, Plane]:
        """int(H W / R) samples by density, and the ellipse."""
        height, width = shape
        y, x = np.ogrid[:height, :width]
        row, column = (y - height / 2) / (self.center_scale * height), (x - width / 2) / (self.center_scale * width)
        acs = row**2 + column**2 < 1
        density = np.sqrt(np.outer(bell(height, center), bell(width, center)))
        density = (density / density.sum()).ravel()
        drawn = rng.choice(height * width, size=int(height * width / acceleration), replace=False, p=density)
        plane = acs.ravel().copy()
        plane[drawn] = True
        return plane.reshape(shape), acs


class Equispaced2D(MaskGenerator):
    """Every (R/2)-th sample of both axes and a full rectangle in the centre; nothing is random (wdika/atommic)."""

    def draw(
        self, shape: tuple[int, int], center: int | float, acceleration: int | float, rng: RandomState
    ) -> tuple[Plane, Plane]:
        """Both axes share the acceleration and the fraction half and half."""
        height, width = shape
        step = max(int(acceleration / 2), 1)
        rows, columns = round(height * center / 2), round(width * center / 2)
        top, left = (height - rows + 1) // 2, (width - columns + 1) // 2
        acs = np.zeros(shape, bool)
        acs[top : top + rows, left : left + columns] = True
        plane = acs.copy()
        plane[::step, ::step] = True
        return plane, acs


class Poisson2D(MaskGenerator):
    """Variable-density Poisson disks and a full rectangle in the centre, by mikgroup/sigpy.

    Args:
        accelerations: one is picked for each mask.
        center_fractions: side of the calibration rectangle as a share of each axis, or in samples from one on.
        tolerance: how far the reached acceleration may be off; widened when no seed reaches it.
        crop_corner: leave the corners of k-space out.
        attempts: seeds tried before the tolerance is doubled.
    """

    def __init__(
        self,
        accelerations: Sequence[int | float],
        center_fractions: Sequence[int | float],
        *,
        tolerance: float = 0.3,
        crop_corner: bool = True,
        attempts: int = 3,
    ) -> None:
        super().__init__(accelerations, center_fractions)
        if min(accelerations) <= 1:
            raise ValueError(f"Poisson2D: accelerations must be above 1; got {list(accelerations)}")
        self.tolerance = tolerance
        self.crop_corner = crop_corner
        self.attempts = attempts

    def draw(
        self, shape: tuple[int, int], center: int | float, acceleration: int | float, rng: RandomState
    ) -> tuple[Plane, Plane]:
        """Disks whose radius grows with the distance from the centre, found by bisection."""
        height, width = shape
        rows, columns = (round(n * center) if center < 1 else int(center) for n in shape)
        acs = np.zeros(shape, bool)
        acs[int(height / 2 - rows / 2) : int(height / 2 + rows / 2)] = True
        acs[:, : int(width / 2 - columns / 2)] = False
        acs[:, int(width / 2 + columns / 2) :] = False
        seeds = [int(seed) for seed in rng.randint(0, 2**31 - 1, 3 * self.attempts)]
        return self.disks(shape, acceleration, (rows, columns), seeds), acs

    def disks(
        self, shape: tuple[int, int], acceleration: int | float, calibration: tuple[int, int], seeds: Sequence[int]
    ) -> Plane:
        """The first of sigpy's masks that reaches the acceleration."""
        tolerance = self.tolerance
        for trial, seed in enumerate(seeds):
            try:
                return sigpy_poisson(
                    shape, acceleration, calibration, seed, crop_corner=self.crop_corner, tolerance=tolerance
                )
            except ValueError:
                if (trial + 1) % self.attempts == 0:
                    tolerance *= 2
        raise ValueError(
            f"{type(self).__name__}: no Poisson-disk mask of a {shape[0]} x {shape[1]} matrix comes within "
            f"{tolerance / 2:g} of acceleration {acceleration:g}; raise tolerance or lower the center fraction"
        )


class Poisson2DDirect(Poisson2D):
    """Poisson disks and a full disk of a share of all samples in the centre, like those of NKI-AI/direct."""

    def draw(
        self, shape: tuple[int, int], center: int | float, acceleration: int | float, rng: RandomState
    ) -> tuple[Plane, Plane]:
        """Disks without a rectangle, and the central disk."""
        acs = centered_disk(shape, center)
        seeds = [int(seed) for seed in rng.randint(0, 2**31 - 1, 3 * self.attempts)]
        return self.disks(shape, acceleration, (0, 0), seeds) | acs, acs


class Gaussian2DDirect(MaskGenerator):
    """Samples at normally distributed places until H W / R are taken, and a disk (like NKI-AI/direct)."""

    def draw(
        self, shape: tuple[int, int], center: int | float, acceleration: int | float, rng: RandomState
    ) -> tuple[Plane, Plane]:
        """Samples beyond the disk, by rejection."""
        acs = centered_disk(shape, center)
        plane = acs.copy()
        missing = max(round(plane.size / acceleration) - int(acs.sum()), 0)
        normal_places(plane, missing, 0.2 * np.array(shape), rng)
        return plane, acs


class CalgaryCampinas(MaskGenerator):
    """One of the Poisson-disk masks that the Calgary-Campinas challenge prescribes.

    Args:
        file: `.npz` of the collection: for each `R5_218x170` packed bits (mask, byte) with `R5_218x170_shape`, or
            the masks (mask, height, width) themselves.
        accelerations: of those in the file; one is picked for each mask.
    """

    def __init__(self, file: str, *, accelerations: Sequence[int | float] = (5, 10)) -> None:
        super().__init__(accelerations, [0.0] * len(accelerations))
        self.file = file
        self._masks: dict[str, NDArray[np.bool_]] = {}

    def draw(
        self, shape: tuple[int, int], center: int | float, acceleration: int | float, rng: RandomState
    ) -> tuple[Plane, Plane]:
        """One of the hundred masks, and the disk of radius 18."""
        name = f"R{acceleration:g}_{shape[0]}x{shape[1]}"
        if name not in self._masks:
            self._masks[name] = self._read(name)
        masks = self._masks[name]
        return masks[int(rng.randint(0, len(masks)))], circular_acs(shape)

    def _read(self, name: str) -> NDArray[np.bool_]:
        with np.load(self.file, allow_pickle=False) as stored:
            if name not in stored:
                known = ", ".join(key for key in stored.files if not key.endswith("_shape"))
                raise ValueError(f"{self.file}: no masks {name!r}; expected one of {known}")
            masks = stored[name]
            if f"{name}_shape" in stored:
                count, height, width = (int(n) for n in stored[f"{name}_shape"])
                masks = np.unpackbits(masks, axis=1)[:, : height * width].reshape(count, height, width)
        return np.asarray(masks, dtype=bool)


def sigpy_poisson(
    shape: tuple[int, int],
    acceleration: int | float,
    calibration: tuple[int, int],
    seed: int,
    *,
    crop_corner: bool = True,
    tolerance: float = 0.3,
    max_attempts: int = 30,
) -> Plane:
    """The mask of `sigpy.mri.poisson`, bit by bit.

    Only sigpy's disks are used: its own bisection never ends when no slope reaches the acceleration (as when the
    calibration alone has too many samples), and two masks of one call share no state.

    Raises:
        ValueError: the acceleration is not reached within the tolerance.
    """
    from sigpy.mri import samp  # imports numba: seconds

    height, width = shape
    y, x = np.mgrid[:height, :width]
    across = np.maximum(abs(x - width / 2) - calibration[1] / 2, 0)
    along = np.maximum(abs(y - height / 2) - calibration[0] / 2, 0)
    radius = np.sqrt((across / across.max()) ** 2 + (along / along.max()) ** 2)
    low, high = 0.0, float(max(shape))
    for _ in range(40):
        slope = (low + high) / 2
        radius_x = np.clip((1 + radius * slope) * width / max(shape), 1, None)
        radius_y = np.clip((1 + radius * slope) * height / max(shape), 1, None)
        mask = samp._poisson(width, height, max_attempts, radius_x, radius_y, calibration, seed)
        if crop_corner:
            mask *= radius < 1
        reached = mask.size / max(float(mask.sum()), 1.0)
        if abs(reached - acceleration) < tolerance:
            return np.asarray(mask > 0)
        low, high = (slope, high) if reached < acceleration else (low, slope)
    raise ValueError(f"no Poisson-disk mask reaches acceleration {acceleration:g} within {tolerance:g}")


def _squared_distance(shape: tuple[int, int]) -> NDArray[np.int64]:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((y - shape[0] // 2) ** 2 + (x - shape[1] // 2) ** 2, dtype=np.int64)
