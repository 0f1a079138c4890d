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
neither read nor changed.
"""

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
    "Poisson2D",
    "Poisson2DDirect",
    "Random",
    "Seed",
    "centered_disk",
    "circular_acs",
    "file_seed",
    "sigpy_poisson",
]
