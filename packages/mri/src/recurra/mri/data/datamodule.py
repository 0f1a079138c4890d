"""Data of a recipe: what its section `data` may name, and the loaders that training asks for.

Importing this imports Lightning; only training does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning import LightningDataModule
from torch.utils.data import DataLoader, default_collate

from recurra.mri.data.dataset import EpochDataset, PhantomDataset, SliceDataset
from recurra.mri.masks import MaskGenerator
from recurra.mri.operators import FFTConvention
from recurra.mri.preprocess import Maps, Preprocess, Scaling

_SUFFIXES = (".h5", ".hdf5", ".dat")


@runtime_checkable
class Preparation(Protocol):
    """What a model says about its input; a `Preprocess` says as much."""

    @property
    def fft(self) -> FFTConvention:
        """Fourier convention."""

    @property
    def maps(self) -> Maps:
        """How coil maps are estimated."""

    @property
    def scaling(self) -> Scaling:
        """What the k-space is divided by."""


class MRIData(LightningDataModule):
    """Training and validation slices.

    Args:
        preparation: the model: it says how its input is made.
        batch_size: slices a batch of the plain loaders; the training engine has its own.
        workers: processes that prepare slices.
    """

    def __init__(self, preparation: Preparation | None, *, batch_size: int = 1, workers: int = 0, **steps: Any) -> None:
        super().__init__()
        if preparation is not None:
            steps = {"fft": preparation.fft, "maps": preparation.maps, "scaling": preparation.scaling, **steps}
        self.preprocess = Preprocess(**steps)
        self.batch_size, self.workers = batch_size, workers
        self.train: EpochDataset
        self.val: EpochDataset

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Loader of the training slices."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Loader of the validation slices, in order."""
        return self._loader(self.val, shuffle=False)

    def describe(self) -> str:
        """What it is, for the model card."""
        raise NotImplementedError

    def _loader(self, dataset: EpochDataset, *, shuffle: bool) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            dataset, batch_size=self.batch_size, shuffle=shuffle, num_workers=self.workers, collate_fn=collate
        )


class FileData(MRIData):
    """Slices of files in folders: `train` and `val` below a root, or as two lists.

    Args:
        path: root; its folders are called train and val, or multicoil_train and multicoil_val and so on.
        train_files: a text file with one path a line, relative to it, in the place of the folder.
        val_files: the same for validation.
        coils: number of coils that the files must have; 1 admits single-coil files.
        acquisitions: take only volumes of these.
        outer_slices: slices left out at both ends of a volume.
        cache: share of the slices that is kept in memory.
        crop: compare the part of the image alone that the scanner shows.
        gaussian_sigma: damps the calibration samples of RSS maps; None for none.
        coil_compression: number of virtual coils; None keeps the measured ones.
        workers: processes that prepare slices.
        mask: undersamples the slices.
        preparation: the model.
        seed: of the training masks.
    """

    def __init__(
        self,
        path: str = ".",
        *,
        train_files: str | None = None,
        val_files: str | None = None,
        coils: int | None = None,
        acquisitions: Sequence[str] = (),
        outer_slices: int = 0,
        cache: float = 0.0,
        crop: bool = True,
        gaussian_sigma: float | None = 0.7,
        coil_compression: int | None = None,
        workers: int = 2,
        mask: MaskGenerator | None = None,
        preparation: Preparation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(preparation, workers=workers, gaussian_sigma=gaussian_sigma, coil_compression=coil_compression)
        self.path = path
        chosen: dict[str, Any] = {
            "mask": mask,
            "coils": coils,
            "outer_slices": outer_slices,
            "acquisitions": acquisitions,
            "cache": cache,
            "crop": crop,
        }
        self.train = SliceDataset(find_files(path, "train", train_files), self.preprocess, seed=seed, **chosen)
        self.val = SliceDataset(find_files(path, "val", val_files), self.preprocess, **chosen)

    def describe(self) -> str:
        """Numbers of slices and the folder's name."""
        return f"{len(self.train)} training and {len(self.val)} validation slices of {Path(self.path).resolve().name}"


class CalgaryCampinasData(FileData):
    """Calgary-Campinas volumes, without the outer 50 slices at both ends.

    Args:
        path: root with the folders Train and Val, or train and val.
        options: those of `FileData`.
    """

    def __init__(
        self,
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
    ) -> None:
        super().__init__(
            path,
            train_files=train_files,
            val_files=val_files,
            coils=coils,
            outer_slices=outer_slices,
            cache=cache,
            gaussian_sigma=gaussian_sigma,
            workers=workers,
            mask=mask,
            preparation=preparation,
            seed=seed,
        )


class PhantomData(MRIData):
    """Slices generated as they are needed.

    Args:
        train: samples of an epoch.
        val: validation samples, the same in every epoch.
        height: rows of the k-space.
        width: columns of the k-space.
        coils: receive coils, or their smallest and largest number.
        noise: standard deviation relative to the image's maximum; by default drawn for each slice.
        rows: train on strips of so many rows; validation sees whole slices and estimated coil maps.
        known_maps: train with the generator's coil maps.
        clean_target: compare with the phantom itself rather than with the image of its noisy k-space.
        gaussian_sigma: damps the calibration samples of RSS maps; None for none.
        workers: processes that prepare slices.
        mask: undersamples the slices.
        preparation: the model.
        seed: of phantoms and masks.
    """

    def __init__(
        self,
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
    ) -> None:
        super().__init__(preparation, workers=workers, gaussian_sigma=gaussian_sigma)
        shape: dict[str, Any] = {"height": height, "width": width, "coils": coils, "noise": noise, "mask": mask}
        shape["clean_target"] = clean_target
        self.size = f"{coils} coils, {height} x {width}"
        self.train = PhantomDataset(train, self.preprocess, seed=seed, rows=rows, known_maps=known_maps, **shape)
        # Far from any training seed, and independent of it: runs with other seeds are validated alike.
        self.val = PhantomDataset(val, self.preprocess, seed=2**31 - 1, fixed=True, **shape)

    def describe(self) -> str:
        """Numbers and size of the phantoms."""
        return f"generated phantoms, {len(self.train)} an epoch, {self.size}"


class SampleData(PhantomData):
    """Few and small generated slices, for tests and demonstrations.

    Args:
        train: samples of an epoch.
        val: validation samples.
        height: rows of the k-space.
        width: columns of the k-space.
        coils: receive coils.
        mask: undersamples the slices.
        preparation: the model.
        seed: of phantoms and masks.
    """

    def __init__(
        self,
        *,
        train: int = 16,
        val: int = 4,
        height: int = 64,
        width: int = 48,
        coils: int = 4,
        mask: MaskGenerator | None = None,
        preparation: Preparation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            train=train,
            val=val,
            height=height,
            width=width,
            coils=coils,
            noise=0.005,
            mask=mask,
            preparation=preparation,
            seed=seed,
        )


def find_files(root: str, part: str, listed: str | None) -> list[Path]:
    """The files of a part: those listed, else those in the root's folder of that name.

    Raises:
        ValueError: there is no such folder, or it is empty.
        OSError: the list cannot be read.
    """
    if listed is not None:
        lines = Path(listed).read_text(encoding="utf-8").splitlines()
        return [Path(listed).parent / line.strip() for line in lines if line.strip()]
    folders = [Path(root) / name for name in (part, part.title(), f"multicoil_{part}", f"singlecoil_{part}")]
    for folder in folders:
        found = sorted(one for one in folder.glob("*") if one.suffix.lower() in _SUFFIXES)
        if found:
            return found
    raise ValueError(f"{root}: no k-space files in {', '.join(one.name for one in folders)}; set data.path")


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


DATA: dict[str, type[MRIData]] = {
    "FastMRI": FileData,
    "CalgaryCampinas": CalgaryCampinasData,
    "Files": FileData,
    "Phantom": PhantomData,
    "Sample": SampleData,
}
