"""What section `data` of a recipe may name; the options are the signatures here."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate

from recurra.core.sampling import Data, find_files
from recurra.mri.data.dataset import PhantomDataset, SliceDataset
from recurra.mri.masks import MaskGenerator
from recurra.mri.models.reconstructor import Reconstructor
from recurra.mri.preprocess import Preprocess

SUFFIXES = (".h5", ".hdf5", ".dat")


Preparation = Reconstructor | Preprocess
"""What says how a network's input is made."""


def files(
    path: str = ".",
    *,
    train_files: str | None = None,
    val_files: str | None = None,
    coils: int | None = None,
    acquisitions: Sequence[str] = (),
    outer_slices: int = 0,
    cache: float = 0.0,
    crop: bool = True,
    axes: str | None = None,
    whiten: bool = True,
    skip_bad_slices: bool = False,
    gaussian_sigma: float | None = 0.7,
    coil_compression: int | None = None,
    workers: int = 2,
    mask: MaskGenerator | None = None,
    preparation: Preparation | None = None,
    seed: int = 0,
) -> Data:
    """Slices of files in folders: `train` and `val` below a root, or as two lists.

    Args:
        path: root; its folders are called train and val, or multicoil_train and multicoil_val and so on.
        train_files: a text file with one path a line, relative to it, in the place of the folder.
        val_files: the same for validation.
        gaussian_sigma: damps the calibration samples of RSS maps; None for none.
        coil_compression: number of virtual coils; None keeps the measured ones.
        workers: processes that prepare slices.
        preparation: the model.
        seed: of the training masks.

    The other options are those of `SliceDataset`.
    """
    preprocess = _preprocess(preparation, gaussian_sigma=gaussian_sigma, coil_compression=coil_compression)

    def part(name: str, listed: str | None, seed: int | None) -> SliceDataset:
        folders = (name, name.title(), f"multicoil_{name}", f"singlecoil_{name}")
        return SliceDataset(
            find_files(path, folders, listed, SUFFIXES, "k-space files"),
            preprocess,
            mask=mask,
            seed=seed,
            coils=coils,
            outer_slices=outer_slices,
            acquisitions=acquisitions,
            cache=cache,
            crop=crop,
            axes=axes,
            whiten=whiten,
            skip_bad_slices=skip_bad_slices,
        )

    train, val = part("train", train_files, seed), part("val", val_files, None)
    about = f"{len(train)} training and {len(val)} validation slices of {Path(path).resolve().name}"
    return Data(train, val, collate, workers, about)


def calgary_campinas(
    path: str = ".",
    *,
    train_files: str | None = None,
    val_files: str | None = None,
    coils: int | None = None,
    outer_slices: int = 50,
    cache: float = 0.0,
    gaussian_sigma: float | None = 0.7,
    workers: int = 2,
    mask: MaskGenerator | None = None,
    preparation: Preparation | None = None,
    seed: int = 0,
) -> Data:
    """`files` of Calgary-Campinas, in folders Train and Val, without the outer 50 slices at both ends."""
    return files(**locals())


def phantoms(
    *,
    train: int = 1000,
    val: int = 20,
    height: int = 192,
    width: int = 160,
    coils: int | tuple[int, int] = 8,
    noise: float | None = None,
    rows: int | None = None,
    known_maps: bool = False,
    clean_target: bool = True,
    gaussian_sigma: float | None = 0.7,
    workers: int = 0,
    mask: MaskGenerator | None = None,
    preparation: Preparation | None = None,
    seed: int = 0,
) -> Data:
    """Slices generated as they are needed.

    Args:
        train: samples of an epoch.
        val: validation samples, the same in every epoch.
        rows: train on strips of so many rows; validation sees whole slices and estimated coil maps.
        gaussian_sigma: damps the calibration samples of RSS maps; None for none.
        workers: processes that prepare slices.
        preparation: the model.

    The other options are those of `PhantomDataset`.
    """
    preprocess = _preprocess(preparation, gaussian_sigma=gaussian_sigma)
    shape: dict[str, Any] = {"height": height, "width": width, "coils": coils, "noise": noise, "mask": mask}
    shape["clean_target"] = clean_target
    training = PhantomDataset(train, preprocess, seed=seed, rows=rows, known_maps=known_maps, **shape)
    # Far from any training seed, and independent of it: runs with other seeds are validated alike.
    validation = PhantomDataset(val, preprocess, seed=2**31 - 1, fixed=True, **shape)
    about = f"generated phantoms, {train} an epoch, {coils} coils, {height} x {width}"
    return Data(training, validation, collate, workers, about)


def sample(
    *,
    train: int = 16,
    val: int = 4,
    height: int = 64,
    width: int = 48,
    coils: int = 4,
    mask: MaskGenerator | None = None,
    preparation: Preparation | None = None,
    seed: int = 0,
) -> Data:
    """Few and small `phantoms`, for tests and demonstrations."""
    return phantoms(noise=0.005, **locals())


def _preprocess(preparation: Preparation | None, **steps: Any) -> Preprocess:
    """What is done to a slice, as the model says."""
    if preparation is not None:
        steps |= {"fft": preparation.fft, "maps": preparation.maps, "scaling": preparation.scaling}
    return Preprocess(**steps)


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of samples.

    Raises:
        ValueError: they differ in size.
    """
    shapes = {tuple(one["kspace"].shape) for one in samples}
    if len(shapes) > 1:
        sizes = " and ".join(" x ".join(map(str, shape)) for shape in sorted(shapes)[:2])
        raise ValueError(
            f"slices of different sizes cannot share a batch ({sizes}, coil x height x width); use train.batch_size=1"
        )
    # A line of columns and a plane of samples fit together as planes.
    rows = max(one["mask"].shape[1] for one in samples)
    for one in samples:
        one["mask"] = one["mask"].expand(-1, rows, -1)
    batch: dict[str, Any] = default_collate(samples)
    return batch


DATA: dict[str, Callable[..., Data]] = {
    "FastMRI": files,
    "CalgaryCampinas": calgary_campinas,
    "Files": files,
    "Phantom": phantoms,
    "Sample": sample,
}
