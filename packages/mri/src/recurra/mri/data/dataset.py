"""Slices for training: from files or generated, masked and scaled; their randomness depends on the seed alone.

A sample is a dict that torch's default collation turns into a batch:
kspace (coil, height, width) complex64, sensitivity like it, mask (1, 1 or height, width) bool, target (row, column)
float32 on the same scale, reference like it but complex64, scale, acceleration, file, index.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra.core.errors import FileError
from recurra.core.sampling import Cached, EpochDataset
from recurra.mri.data.phantom import phantom_slice
from recurra.mri.data.reading import open_volume
from recurra.mri.data.volume import RawSlice
from recurra.mri.masks import MaskGenerator, Seed, file_seed
from recurra.mri.operators import center_crop, sense_reduce
from recurra.mri.preprocess import PreparedSlice, Preprocess


class SliceDataset(EpochDataset):
    """The slices of files.

    Args:
        files: k-space files of any known format.
        preprocess: what is done to a slice.
        mask: undersamples fully sampled slices; the mask of a file wins.
        seed: of the masks; None gives each file its own mask, the same in every epoch, as for validation.
        coils: number of coils that the files must have; 1 admits fastMRI's single-coil files.
        outer_slices: slices left out at both ends of a volume.
        acquisitions: take only volumes of these (fastMRI's attribute of this name); none takes all.
        cache: share of the slices that is kept in memory as read.
        crop: compare the part of the image alone that the scanner shows.

    Raises:
        ValueError: a file cannot be read, or nothing is left to train on.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        preprocess: Preprocess,
        *,
        mask: MaskGenerator | None = None,
        seed: int | None = None,
        coils: int | None = None,
        outer_slices: int = 0,
        acquisitions: Sequence[str] = (),
        cache: float = 0.0,
        crop: bool = True,
    ) -> None:
        self.preprocess, self.mask, self.coils, self.crop = preprocess, mask, coils, crop
        self.seed, self.fixed = seed or 0, seed is None
        self.slices: list[tuple[Path, int]] = []
        self.shapes: list[tuple[int, ...]] = []
        for path in map(Path, files):
            with open_volume(path, coils=coils) as volume:
                if acquisitions and volume.attributes.get("acquisition") not in acquisitions:
                    continue
                kept = range(outer_slices, len(volume) - outer_slices)
                if not kept:
                    raise ValueError(
                        f"{path}: has {len(volume)} slices; nothing is left without the outer {outer_slices}"
                    )
                self.slices += [(path, index) for index in kept]
                self.shapes += [volume.shape[1:]] * len(kept)
        if not self.slices:
            wanted = f" of acquisition {', '.join(acquisitions)}" if acquisitions else ""
            raise ValueError(f"no slices{wanted} in {len(files)} files; nothing to train on")
        self._source = Cached(self._load, self.slices, cache)

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of a slice."""
        raw = self._source(index)
        if not raw.centered and not self.preprocess.fft.startswith("uncentered"):
            raise ValueError(
                f"{raw.path}: Calgary-Campinas k-space belongs to the plain Fourier transform; "
                f"use fft: uncentered-ortho in place of {self.preprocess.fft}"
            )
        seed = file_seed(raw.path) if self.fixed else self.seed_of(index)
        prepared = prepare(raw, self.preprocess, generator=self.mask, seed=seed)
        size = raw.recon_size
        # Seen through another transform than its own the image has no middle to crop to.
        upright = raw.centered != self.preprocess.fft.startswith("uncentered")
        if not (self.crop and upright):
            size = None
        return sample(prepared, raw.path.name, raw.index, size)

    def _load(self, item: tuple[Path, int]) -> RawSlice:
        path, index = item
        with open_volume(path, coils=self.coils) as volume:
            return volume.slice(index)


class PhantomDataset(EpochDataset):
    """Generated slices: never the same twice.

    Args:
        count: samples of an epoch.
        preprocess: what is done to a slice.
        mask: undersamples the slices.
        seed: of phantoms and masks.
        height: rows of the k-space.
        width: columns of the k-space.
        coils: receive coils, or their smallest and largest number.
        noise: standard deviation relative to the image's maximum; by default drawn for each slice.
        rows: keep a strip of so many rows. Column masks fold nothing along the rows, so strips teach as much a pixel.
        known_maps: use the generator's coil maps, for every other slice only where there is signal; else estimate them.
        fixed: the same slices in every epoch, as for validation.
        clean_target: the target is the phantom itself; else the image of its noisy k-space.
    """

    def __init__(
        self,
        count: int,
        preprocess: Preprocess,
        *,
        mask: MaskGenerator | None = None,
        seed: int = 0,
        height: int = 192,
        width: int = 160,
        coils: int | tuple[int, int] = 8,
        noise: float | None = None,
        rows: int | None = None,
        known_maps: bool = False,
        fixed: bool = False,
        clean_target: bool = True,
    ) -> None:
        if count < 1:
            raise ValueError(f"PhantomDataset: count must be at least 1; got {count}")
        self.count, self.preprocess, self.mask, self.seed = count, preprocess, mask, seed
        self.coils = (coils, coils) if isinstance(coils, int) else coils
        self.height, self.width, self.rows, self.noise = height, width, rows, noise
        self.known_maps, self.fixed, self.clean_target = known_maps, fixed, clean_target
        self.shapes = [(self._coils(index), rows or height, width) for index in range(count)]

    def __len__(self) -> int:
        """Number of slices of an epoch."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of an index in the current epoch."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        seed = self.seed_of(index)
        kspace, maps, image = phantom_slice(
            self.height, self.width, self._coils(index), seed, noise=self.noise, rows=self.rows
        )
        known = None
        if self.known_maps:
            known = torch.from_numpy(maps * (image != 0) if index % 2 else maps)
        prepared = self.preprocess(kspace, generator=self.mask, seed=seed, sensitivity=known)
        if self.clean_target:
            # The plain transform shows centred k-space with the image's middle in the corner.
            corner = self.preprocess.fft.startswith("uncentered")
            magnitude = np.fft.ifftshift(np.abs(image)) if corner else np.abs(image)
            prepared.target = torch.from_numpy(magnitude) / prepared.scale
            images = torch.from_numpy(np.fft.ifftshift(maps * image, axes=(-2, -1)) if corner else maps * image)
            prepared.reference = sense_reduce(images[None], prepared.sensitivity[None])[0] / prepared.scale
        return sample(prepared, f"phantom_{'_'.join(map(str, seed))}", index, None)

    def _coils(self, index: int) -> int:
        """Coils of a sample: an index has the same number in every epoch, so that its shape is known beforehand."""
        low, high = self.coils
        return int(np.random.default_rng((self.seed, index)).integers(low, high + 1))


def prepare(
    raw: RawSlice,
    steps: Preprocess,
    *,
    generator: MaskGenerator | None,
    seed: Seed,
    sensitivity: Tensor | None = None,
) -> PreparedSlice:
    """A slice of a file as a network takes it.

    Raises:
        FileError: the mask leaves too few calibration samples, or the maps are of another size.
    """
    try:
        return steps(
            raw.kspace,
            generator=generator,
            seed=seed,
            mask=raw.mask,
            acs_lines=raw.acs_lines,
            padding=raw.padding,
            sensitivity=sensitivity,
            calibration=raw.calibration,
        )
    except ValueError as error:
        raise FileError(raw.path, f"slice {raw.index}: {error}") from error


def sample(prepared: PreparedSlice, file: str, index: int, size: tuple[int, int] | None) -> dict[str, Any]:
    """The dict of a prepared slice."""
    return {
        "kspace": prepared.kspace,
        "sensitivity": prepared.sensitivity,
        "mask": prepared.mask,
        "target": prepared.target if size is None else center_crop(prepared.target, size),
        "reference": prepared.reference if size is None else center_crop(prepared.reference, size),
        "scale": prepared.scale,
        "acceleration": prepared.acceleration,
        "file": file,
        "index": index,
    }
