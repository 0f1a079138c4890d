"""Sampling masks of accelerated MRI, bit-equal to those the field's public models were trained with.

Every generator draws from numpy's legacy `RandomState`, in the order of the code it stands for:

- `random`, `equispaced`, `equispaced_fraction`, `magic`, `magic_fraction`: columns, as facebookresearch/fastMRI. The
  masks of NKI-AI/direct are these with its own names (FastMRIRandom, FastMRIEquispaced = `equispaced_fraction`,
  FastMRIMagic = `magic_fraction`); its Cartesian* masks are the same with a number of centre lines (16) in the place
  of a fraction (0.08).
- `gaussian1d`, `gaussian2d`, `equispaced2d`: as wdika/atommic.
- `poisson2d`: mikgroup/sigpy. `calgary_campinas`: drawn from the challenge's own collection.
- `gaussian1d_direct`, `gaussian2d_direct`, `poisson2d_direct`: same statistics as those of NKI-AI/direct, which draw
  from the C library and differ between platforms.

The seed of a file's mask is `file_seed(name)`: all slices of a volume share one mask. numpy's global generator is
neither read nor changed. `mixed` picks among several kinds, for training one network for all of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import RandomState

from recurra.mri.masks_2d import (
    CalgaryCampinas,
    Equispaced2D,
    Gaussian2D,
    Gaussian2DDirect,
    Poisson2D,
    Poisson2DDirect,
    centered_disk,
    circular_acs,
    sigpy_poisson,
)
from recurra.mri.masks_columns import (
    Equispaced,
    EquispacedFraction,
    Gaussian1D,
    Gaussian1DDirect,
    Magic,
    MagicFraction,
    Mask,
    MaskGenerator,
    Random,
    Seed,
    file_seed,
)


class Mixed(MaskGenerator):
    """One of several kinds for each mask, so that one network learns them all.

    Args:
        masks: a section each as in a recipe: `name` and the options of that kind.
        weights: how often each kind is picked; equally often by default.
    """

    def __init__(self, masks: Sequence[Mapping[str, Any]], weights: Sequence[float] | None = None) -> None:
        unknown = [str(one.get("name")) for one in masks if one.get("name") not in MASKS]
        if not masks or unknown:
            known = ", ".join(MASKS)
            raise ValueError(f"Mixed: masks must name one or more of {known}; got {', '.join(unknown) or 'none'}")
        if weights is not None and (len(weights) != len(masks) or min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(f"Mixed: weights must be {len(masks)} numbers that are not negative; got {list(weights)}")
        self.kinds = [MASKS[one["name"]](**{key: one[key] for key in one if key != "name"}) for one in masks]
        self.weights = np.asarray(weights if weights is not None else [1.0] * len(masks)) / (
            sum(weights or ()) or len(masks)
        )
        accelerations = [value for kind in self.kinds for value in kind.accelerations]
        super().__init__(accelerations, [value for kind in self.kinds for value in kind.center_fractions])

    def __call__(self, shape: tuple[int, int], *, seed: Seed = None, padding: tuple[int, int] | None = None) -> Mask:
        """A mask of the kind that is drawn first, from the same seed."""
        rng = seed if isinstance(seed, RandomState) else RandomState(seed)
        kind = self.kinds[int(rng.choice(len(self.kinds), p=self.weights))]
        return kind(shape, seed=rng, padding=padding)


MASKS: dict[str, type[MaskGenerator]] = {
    "random": Random,
    "equispaced": Equispaced,
    "equispaced_fraction": EquispacedFraction,
    "magic": Magic,
    "magic_fraction": MagicFraction,
    "gaussian1d": Gaussian1D,
    "gaussian2d": Gaussian2D,
    "equispaced2d": Equispaced2D,
    "poisson2d": Poisson2D,
    "calgary_campinas": CalgaryCampinas,
    "gaussian1d_direct": Gaussian1DDirect,
    "gaussian2d_direct": Gaussian2DDirect,
    "poisson2d_direct": Poisson2DDirect,
    "mixed": Mixed,
}

__all__ = [
    "MASKS",
    "CalgaryCampinas",
    "Equispaced",
    "Equispaced2D",
    "EquispacedFraction",
    "Gaussian1D",
    "Gaussian1DDirect",
    "Gaussian2D",
    "Gaussian2DDirect",
    "Magic",
    "MagicFraction",
    "Mask",
    "MaskGenerator",
    "Mixed",
    "Poisson2D",
    "Poisson2DDirect",
    "Random",
    "Seed",
    "centered_disk",
    "circular_acs",
    "file_seed",
    "sigpy_poisson",
]
