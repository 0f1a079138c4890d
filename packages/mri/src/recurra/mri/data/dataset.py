"""Slices for training: from files or generated, masked and scaled; their randomness depends on the seed alone.

A sample is a dict that torch's default collation turns into a batch:
kspace (coil, height, width) complex64, sensitivity like it, mask (1, 1 or height, width) bool, target (row, column)
float32 on the same scale, reference like it but complex64, scale, acceleration, file, index.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra.core.errors import FileError, blaming
from recurra.core.sampling import Cached, EpochDataset
from recurra.mri.data.phantom import phantom_slice
from recurra.mri.data.reading import open_parts, open_volume
from recurra.mri.data.volume import BadSlice, Found, RawSlice, Volume
from recurra.mri.masks import MaskGenerator, Seed, file_seed
from recurra.mri.operators import center_crop, sense_reduce, turns, upright
from recurra.mri.preprocess import PreparedSlice, Preprocess


class SliceDataset(EpochDataset):
    """The slices of fully sampled files, whose images are the targets; of echoes, repetitions and so on all.

    Args:
        files: k-space files of any known format.
        preprocess: what is done to a slice.
        mask: undersamples the slices.
        seed: of the masks; None gives each file its own mask, the same in every epoch, as for validation.
        coils: number of coils that the files must have; 1 admits fastMRI's single-coil files.
        outer_slices: slices left out at both ends of a volume.
        acquisitions: take only volumes of these (fastMRI's attribute of this name); none takes all.
        cache: share of the slices that is kept in memory as read.
        crop: compare the part of the image alone that the scanner shows.
        axes: order of the axes of `kspace` in fastMRI's files, where it is another than theirs.
        whiten: make the noise of the coils white where a file has a noise scan.
        skip_bad_slices: leave slices out that hold NaN or infinite samples; all are read for it.

    Raises:
        ValueError: a file cannot be read or was measured undersampled, or nothing is left to train on.
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
        axes: str | None = None,
        whiten: bool = True,
        skip_bad_slices: bool = False,
    ) -> None:
        self.preprocess, self.mask, self.crop = preprocess, mask, crop
        self.reading: dict[str, Any] = {"coils": coils, "axes": axes, "whiten": whiten}
        self.seed, self.fixed = seed or 0, seed is None
        self.slices: list[tuple[Path, int]] = []
        self._parts: list[str | None] = []
        self.shapes: list[tuple[int, ...]] = []
        # What the samples of a file say is found once, not with every slice.
        self._found: dict[tuple[Path, str | None], Found] = {}
        for path in map(Path, files):
            for volume in open_parts(path, **self.reading):
                if acquisitions and volume.attributes.get("acquisition") not in acquisitions:
                    continue
                with blaming(path):
                    self._found[path, volume.part] = volume.found
                _refuse_undersampled(path, volume.mask, volume.found.sampling.evidence)
                kept: Sequence[int] = range(outer_slices, len(volume) - outer_slices)
                if not kept:
                    raise ValueError(
                        f"{path}: has {len(volume)} slices; nothing is left without the outer {outer_slices}"
                    )
                kept = [index for index in kept if not skip_bad_slices or _is_good(volume, index)]
                self.slices += [(path, index) for index in kept]
                self._parts += [volume.part] * len(kept)
                self.shapes += [volume.shape[1:]] * len(kept)
        if not self.slices:
            wanted = f" of acquisition {', '.join(acquisitions)}" if acquisitions else ""
            raise ValueError(f"no slices{wanted} in {len(files)} files; nothing to train on")
        self._source = Cached(self._load, list(zip(self.slices, self._parts, strict=True)), cache)

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of a slice."""
        raw = self._source(index)
        _refuse_undersampled(raw.path, raw.mask, f"slice {raw.index}: {raw.sampling.evidence}")
        if not raw.centered and not self.preprocess.fft.startswith("uncentered"):
            raise ValueError(
                f"{raw.path}: Calgary-Campinas k-space belongs to the plain Fourier transform; "
                f"use fft: uncentered-ortho in place of {self.preprocess.fft}"
            )
        seed = file_seed(raw.path) if self.fixed else self.seed_of(index)
        prepared = prepare(raw, self.preprocess, generator=self.mask, seed=seed)
        # Seen through another transform than its own the image has no middle to crop to.
        size = None if turns(self.preprocess.fft, raw.centered) or not self.crop else raw.recon_size
        return sample(prepared, raw.path.name, raw.index, size)

    def _load(self, item: tuple[tuple[Path, int], str | None]) -> RawSlice:
        (path, index), part = item
        with open_volume(path, part=part, **self.reading) as volume:
            volume.found = self._found[path, part]
            return volume.slice(index)


def _refuse_undersampled(path: Path, mask: np.ndarray | None, evidence: str) -> None:
    """No truth is known of what was measured undersampled."""
    if mask is not None:
        raise FileError(
            path,
            f"was measured undersampled ({evidence}); training compares with the image of fully sampled k-space. "
            "Take the file out of the training and validation data",
        )


def _is_good(volume: Volume, index: int) -> bool:
    try:
        volume.kspace(index)
    except BadSlice:
        return False
    return True


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
            seen = partial(upright, convention=self.preprocess.fft, centered=True, back=True)
            prepared.target = seen(torch.from_numpy(np.abs(image))) / prepared.scale
            images = seen(torch.from_numpy(maps * image))
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
        prepared = steps(
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
    prepared.sampling = raw.sampling
    return prepared


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
