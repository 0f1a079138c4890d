"""How one opened volume becomes images: a few slices at a time whatever its length."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from recurra.core.device import PrecisionName, choose_device, in_precision
from recurra.core.errors import FileError, UserError, blaming, nearest
from recurra.core.files import find_inputs, guard_inputs, open_output
from recurra.core.inference import (
    Origin,
    Result,
    Results,
    Runs,
    each_file,
    file_digest,
    kept,
    load,
    options_digest,
    share,
)
from recurra.core.processes import Work
from recurra.core.screen import progress
from recurra.core.verbs import Inputs
from recurra.mri.data import Volume, open_volume
from recurra.mri.data.dataset import prepare
from recurra.mri.data.maps import MapsFile
from recurra.mri.figures import preview_png
from recurra.mri.masks import MASKS, MaskGenerator, file_seed
from recurra.mri.models.reconstructor import Maps, Reconstructor
from recurra.mri.operators import center_crop
from recurra.mri.outputs import OutputFormat, origin_of, volume_writer
from recurra.mri.preprocess import PreparedSlice, Preprocess
from recurra.mri.sensitivity import within_support

if TYPE_CHECKING:
    from recurra.mri.verbs import Undersampling

SUFFIXES = (".h5", ".hdf5", ".dat")


def load_checkpoint(checkpoint: str | Path | Reconstructor) -> Reconstructor:
    """The model of a checkpoint folder, of a shipped checkpoint's name (rim-small), or of a hub name (owner/name)."""
    kind: type[Any] = Reconstructor
    model: Reconstructor = load(kind, checkpoint, package="recurra.mri")
    return model


@dataclass(frozen=True)
class Reconstruction:
    """A way from volumes to images: a checkpoint and how it is used; the options are those of the verbs."""

    checkpoint: str | Path | Reconstructor
    maps: str | None = None
    undersampling: "Undersampling | None" = None
    coils: int | None = None
    fft: str | None = None
    device: str = "auto"
    batch_size: int = 1
    precision: PrecisionName = "32"
    quiet: bool = False

    @cached_property
    def target(self) -> torch.device:
        """Where the network computes."""
        return choose_device(self.device)

    @cached_property
    def model(self) -> Reconstructor:
        """The network, on its device."""
        model = load_checkpoint(self.checkpoint)
        return (model if self.fft is None else with_convention(model, self.fft)).to(self.target)

    @cached_property
    def steps(self) -> Preprocess:
        """What the network expects before it."""
        estimates = {name: name for name in get_args(Maps)}
        maps: Any = estimates.get(self.maps or "", self.model.maps)
        return Preprocess(fft=self.model.fft, maps=maps, scaling=self.model.scaling)

    @cached_property
    def solve(self) -> Callable[..., Tensor]:
        """The network in its form for inference: masked k-space, maps, mask -> image, each with a batch axis."""
        network = in_precision(self.model.prepared(), self.target, self.precision)
        if not self.model.combines_by_maps:
            return network
        return lambda kspace, maps, mask: within_support(network(kspace, maps, mask), maps)

    @property
    def own_files(self) -> list[Path]:
        """Files that it reads beside the inputs: of the checkpoint, and coil maps."""
        folder = Path(str(self.checkpoint))
        given = isinstance(self.checkpoint, str | Path) and folder.is_dir()
        maps = [] if self.maps is None else [Path(self.maps.partition(":")[0])]
        return [*(folder.iterdir() if given else ()), *(path for path in maps if path.is_file())]

    def check(self) -> "Reconstruction":
        """This, once every option is known to serve.

        Raises:
            ValueError: one does not, or the checkpoint is none.
        """
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1; got {self.batch_size}")
        if self.maps is not None and self.maps not in get_args(Maps) and not {"/", "."} & set(self.maps):
            hint = nearest(self.maps, get_args(Maps))
            raise UserError(f"maps must be espirit, rss, unit or FILE.h5[:dataset]; got {self.maps!r}{hint}")
        _generator(self.undersampling)
        _ = self.target, self.solve, self.steps
        return self

    def digest(self, **more: object) -> str:
        """Digest of the model and of the options that change the numbers."""
        drawn = None if self.undersampling is None else asdict(self.undersampling)
        given = Path(str(self.maps).partition(":")[0])
        own = self.maps not in get_args(Maps) and given.is_file()
        maps = file_digest(given) if own else None
        options = {"maps": self.maps, "given": maps, "drawn": drawn, "coils": self.coils, "precision": self.precision}
        return options_digest(self.model, options | more)

    def slices(self, volume: Volume, steps: Preprocess | None = None) -> Iterator[PreparedSlice]:
        """The slices of a volume as the network takes them, read one by one.

        Args:
            volume: an open file.
            steps: other ones than the network's.

        Raises:
            ValueError: samples, mask or maps do not serve; the line names the file.
        """
        steps = steps or self.steps
        with blaming(volume.path):
            given = None if self.maps is None or self.maps in get_args(Maps) else MapsFile(self.maps, volume.shape)
        generator, seed = None, None
        if self.undersampling is not None and volume.mask is None:
            generator = _generator(self.undersampling)
            seed = file_seed(volume.path) if self.undersampling.seed is None else self.undersampling.seed
        for index in range(len(volume)):
            maps = None if given is None else given(index)
            if maps is not None and steps.fft.startswith("uncentered") and volume.centered:
                # Maps in a file are upright, this network's images are not.
                maps = torch.fft.ifftshift(maps, dim=(-2, -1))
            yield prepare(volume.slice(index), steps, generator=generator, seed=seed, sensitivity=maps)

    def images(self, volume: Volume, advance: Callable[..., None]) -> Iterator[NDArray[np.float32]]:
        """The magnitude images of a volume's slices, in order; never more than a batch is in memory."""
        slices = self.slices(volume)
        while batch := list(islice(slices, self.batch_size)):
            kspace, maps, mask = batched(batch)
            with blaming(volume.path, ValueError):
                image = self.solve(kspace.to(self.target), maps.to(self.target), mask.to(self.target))
            yield from magnitudes(volume, self.steps, image, torch.stack([one.scale for one in batch]))
            advance(len(batch))


def batched(slices: Sequence[PreparedSlice]) -> tuple[Tensor, Tensor, Tensor]:
    """K-space, maps and mask of slices, with a batch axis."""
    # A line of columns and a plane of samples fit together as planes.
    rows = max(one.mask.shape[1] for one in slices)
    masks = [one.mask.expand(-1, rows, -1) for one in slices]
    kspace, maps = zip(*((one.kspace, one.sensitivity) for one in slices), strict=True)
    return torch.stack(kspace), torch.stack(maps), torch.stack(masks)


def _generator(undersampling: "Undersampling | None") -> MaskGenerator | None:
    if undersampling is None:
        return None
    known = [name for name in MASKS if name not in ("calgary_campinas", "mixed")]  # these are no single pattern
    if undersampling.mask not in known:
        raise UserError(f"mask must be one of {', '.join(known)}; got {undersampling.mask!r}")
    return MASKS[undersampling.mask]([undersampling.acceleration], [undersampling.center_fraction])


def magnitudes(
    volume: Volume, steps: Preprocess, images: Tensor, scale: Tensor
) -> Float32[NDArray[np.float32], "slice row column"]:
    """Upright magnitudes in the file's own scale, cropped to the scanner's matrix; NaN and infinity are refused.

    Args:
        volume: where they come from.
        steps: those before the network.
        images: (slice, height, width), complex or real.
        scale: (slice,), what the k-space was divided by.
    """
    magnitude = images.abs().float().cpu() * scale.cpu()[:, None, None]
    if not torch.isfinite(magnitude).all():
        raise FileError(volume.path, "the reconstruction is not finite; the checkpoint does not fit these data")
    corner_origin = steps.fft.startswith("uncentered")
    if corner_origin and volume.centered:
        magnitude = torch.fft.fftshift(magnitude, dim=(-2, -1))
    elif not corner_origin and not volume.centered:
        magnitude = torch.fft.ifftshift(magnitude, dim=(-2, -1))
    if volume.recon_size is not None:
        rows, columns = volume.recon_size
        # Some FLAIR files have fewer columns than their header's matrix: fastMRI then crops to a square of the columns.
        rows, columns = (rows, columns) if columns <= magnitude.shape[-1] else (magnitude.shape[-1],) * 2
        magnitude = center_crop(magnitude, (min(rows, magnitude.shape[-2]), columns))
    return np.ascontiguousarray(magnitude.numpy())


def with_convention(model: Reconstructor, fft: str) -> Reconstructor:
    """The same weights under another Fourier convention."""
    other = type(model)(**{**model.config, "fft": fft})
    other.load_state_dict(model.state_dict())
    return other.eval()


# --- files


class VolumeResult(Result):
    """What became of one file; its units are slices."""

    @property
    def slices(self) -> int:
        """How many were reconstructed."""
        return self.count


@dataclass(frozen=True)
class _ToFiles:
    """Writes what a reconstruction makes of a file, in every format, and the middle slice as a picture."""

    how: Reconstruction
    out: Path
    formats: tuple[OutputFormat, ...]
    preview: bool

    def __call__(self) -> Work[Result]:
        """The work, in the process that does it."""
        options = self.how.check().digest()
        return lambda path: self.result(path, str(Origin(file_digest(path), options)))

    def outputs(self, path: Path) -> list[Path]:
        """Where the results of an input go; the HDF5 file has the input's name, as the leader board wants it."""
        names = {"fastmri": f"{path.stem}.h5", "nifti": f"{path.stem}.nii", "dicom": f"{path.stem}_dicom"}
        return [self.out / names[kind] for kind in self.formats]

    def result(self, path: Path, origin: str) -> Result:
        with blaming(path):
            opened = open_volume(path, coils=self.how.coils)
        with opened as volume, progress(len(volume), path.name, quiet=self.how.quiet) as advance:
            written = self.write(volume, self.how.images(volume, advance), origin)
            return VolumeResult(path, written, len(volume))

    def write(self, volume: Volume, images: Iterator[NDArray[np.float32]], origin: str) -> list[Path]:
        first = next(images)
        shape = (len(volume), *first.shape)
        written = self.outputs(volume.path)
        affine = volume.image_affine(shape[1:])
        with ExitStack() as stack:
            writers = [
                stack.enter_context(volume_writer(path, shape, format=kind, affine=affine, origin=origin))
                for path, kind in zip(written, self.formats, strict=True)
            ]
            middle = first
            for index, image in enumerate(chain([first], images)):
                for writer in writers:
                    writer.write(image)
                if index == len(volume) // 2:
                    middle = image
        if self.preview:
            written.append(self.out / f"{volume.path.stem}.png")
            preview_png(written[-1], middle, title=f"{volume.path.name}, slice {len(volume) // 2}")
        return written

    def kept(self, path: Path) -> Result | None:
        """What an earlier run with the same options made of the same input, if all of it is whole."""
        outputs = self.outputs(path)
        there = [output for output in outputs if output.exists()]
        if not there:
            return None
        origin = Origin(file_digest(path), self.how.digest())
        found = {output: origin_of(output) for output in there}
        pictures = [self.out / f"{path.stem}.png"] if self.preview else []
        made = {output: text for output, (text, _) in found.items()}
        if not kept(made, len(outputs), origin, pictures):
            return None
        return VolumeResult(path, outputs + pictures, found[outputs[0]][1])


def reconstruct_files(
    how: Reconstruction, inputs: Inputs, out: Path, *, formats: Sequence[str], preview: bool, runs: Runs
) -> Results:
    """What the verb `reconstruct` does, with its options."""
    known = get_args(OutputFormat)
    unknown = sorted(set(formats) - set(known))
    if unknown or not formats:
        raise UserError(f"format must be one or more of {', '.join(known)}; got {', '.join(unknown) or 'none'}")
    _ = how.target
    found = find_inputs(inputs, SUFFIXES)
    chosen: Any = tuple(dict.fromkeys(formats))
    work = _ToFiles(how, out, chosen, preview)
    outputs = [output for _, path in share(found, runs.shard) for output in work.outputs(path)]
    guard_inputs(outputs, [*found, *how.own_files])
    previews = [out / f"{path.stem}.png" for _, path in share(found, runs.shard)] if preview else []
    for output in outputs:
        if output.is_dir() and not output.name.endswith("_dicom"):
            raise UserError(f"{output}: is a folder, and a file is to be written there; choose another --out")
    for output in () if runs.resume else (*outputs, *previews):
        open_output(output, runs.overwrite)
    how.check()
    prepare = work if runs.workers == 1 else replace(work, how=replace(how))  # without what it has loaded
    return each_file(found, prepare, out, runs, kept=work.kept, kind=VolumeResult)
