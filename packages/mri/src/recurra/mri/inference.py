"""How one opened volume becomes images: a few slices at a time whatever its length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from jaxtyping import Complex64, Float32
from numpy.typing import NDArray
from torch import Tensor

from recurra.core.checks import one_of
from recurra.core.device import PrecisionName, choose_device, in_precision
from recurra.core.errors import FileError, UserError, blaming, nearest
from recurra.core.inference import (
    file_digest,
    load,
    options_digest,
)
from recurra.mri.data import Volume
from recurra.mri.data.axes import parse_axes
from recurra.mri.data.dataset import prepare
from recurra.mri.data.maps import MapsFile
from recurra.mri.data.reading import open_parts
from recurra.mri.data.volume import BadSlice
from recurra.mri.masks import MASKS, MaskGenerator, file_seed
from recurra.mri.models.reconstructor import Maps, Reconstructor
from recurra.mri.operators import center_crop, fft, ifft, upright
from recurra.mri.outputs import Part
from recurra.mri.partial_fourier import PartialFourier, complete
from recurra.mri.preprocess import PreparedSlice, Preprocess
from recurra.mri.sensitivity import within_support

if TYPE_CHECKING:
    from recurra.mri.verbs import Undersampling


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
    axes: str | None = None
    part: str | None = None
    whiten: bool = True
    skip_bad_slices: bool = False
    image: Part = "magnitude"
    partial_fourier: PartialFourier = "zero"
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
        if self.axes is not None:
            parse_axes(self.axes)
        for name, kind in (("image", Part), ("partial_fourier", PartialFourier)):
            one_of(name, getattr(self, name), kind)
        _generator(self.undersampling)
        _ = self.target, self.solve, self.steps
        return self

    def digest(self, **more: object) -> str:
        """Digest of the model and of the options that change the numbers."""
        drawn = None if self.undersampling is None else asdict(self.undersampling)
        given = Path(str(self.maps).partition(":")[0])
        maps = file_digest(given) if self.given_maps and given.is_file() else None
        options = {"maps": self.maps, "given": maps, "drawn": drawn, "coils": self.coils, "precision": self.precision}
        options |= {"axes": self.axes, "part": self.part, "whiten": self.whiten}
        # The last number counts changes of this software that change the numbers.
        options |= {"image": self.image, "partial_fourier": self.partial_fourier, "rules": 2}
        return options_digest(self.model, options | more)

    @property
    def given_maps(self) -> bool:
        """Whether coil maps come from a file."""
        return self.maps is not None and self.maps not in get_args(Maps)

    def volumes(self, path: Path) -> Iterator[Volume]:
        """The volumes of a file, one after the other: its echoes, repetitions and so on, or the one that is asked for.

        Raises:
            FileError: the file cannot be read.
        """
        # Maps in a file are of the coils as they were measured.
        reading = {"coils": self.coils, "axes": self.axes, "whiten": self.whiten and not self.given_maps}
        opened = open_parts(path, part=self.part, **reading)
        while True:
            with blaming(path):
                volume = next(opened, None)
                if volume is None:
                    return
                _ = volume.found
            yield volume

    def slices(
        self, volume: Volume, steps: Preprocess | None = None, *, bad: dict[int, str] | None = None
    ) -> Iterator[tuple[int, PreparedSlice]]:
        """Number and slice, as the network takes it, of a volume; read one by one.

        Args:
            volume: an open file.
            steps: other ones than the network's.
            bad: receives why a slice is left out that holds values that are no numbers; None refuses it.

        Raises:
            ValueError: samples, mask or maps do not serve; the line names the file.
        """
        steps = steps or self.steps
        with blaming(volume.path):
            given = MapsFile(str(self.maps), volume.shape) if self.given_maps else None
        generator, seed = None, None
        if self.undersampling is not None:
            generator = _generator(self.undersampling)
            seed = file_seed(volume.path) if self.undersampling.seed is None else self.undersampling.seed
        for index in range(len(volume)):
            try:
                raw = volume.slice(index)
            except BadSlice as error:
                if bad is None:
                    raise
                bad[index] = error.reason
                continue
            if generator is not None and raw.mask is not None:
                raise FileError(
                    volume.path,
                    f"was measured undersampled (slice {index}: {raw.sampling.evidence}); --mask undersamples fully "
                    "sampled files, leave it out",
                )
            maps = None if given is None else upright(given(index), steps.fft, volume.centered, back=True)
            yield index, prepare(raw, steps, generator=generator, seed=seed, sensitivity=maps)

    def images(
        self, volume: Volume, advance: Callable[..., None], *, bad: dict[int, str] | None = None
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Number and image of a volume's slices, in order; never more than a batch is in memory."""
        slices = self.slices(volume, bad=bad)
        while batch := list(islice(slices, self.batch_size)):
            prepared = [one for _, one in batch]
            kspace, maps, mask = batched(prepared)
            with blaming(volume.path, ValueError):
                image = self.solve(kspace.to(self.target), maps.to(self.target), mask.to(self.target))
            scale = torch.stack([one.scale for one in prepared])
            made: NDArray[Any]
            if (self.image, self.partial_fourier) == ("magnitude", "zero"):
                made = magnitudes(volume, self.steps, image, scale)
            else:
                made = self._complex(volume, image, prepared)
            yield from zip((index for index, _ in batch), made, strict=True)
            advance(len(batch))

    def _complex(
        self, volume: Volume, images: Tensor, slices: Sequence[PreparedSlice]
    ) -> Complex64[NDArray[np.complex64], "slice row column"]:
        """Complex images of a volume in the file's own scale, upright, completed if that is wanted, and cropped."""
        if not images.is_complex():
            name = type(self.model).__name__
            raise UserError(f"{name} gives magnitudes; phase, complex images and partial Fourier need complex ones")
        # Under its own convention an image may carry a checkerboard phase; that is no phase of the scan.
        centered = ifft(fft(images.cpu(), self.steps.fft), "centered-ortho")
        with blaming(volume.path, ValueError):
            done = [
                complete(image, rows=one.sampling.rows, columns=one.sampling.columns, method=self.partial_fourier)
                for image, one in zip(centered, slices, strict=True)
                if one.sampling is not None
            ]
        scale = torch.stack([one.scale for one in slices])
        return _cropped(volume, upright(torch.stack(done), "centered-ortho", volume.centered), scale)

    def remarks(self, volume: Volume) -> list[str]:
        """What a user should hear about how a volume was read and what is made of it; a line each."""
        said = volume.remarks
        if self.given_maps and self.whiten and volume.noise:
            said.append("the noise scan is not used: the coil maps given are of the coils as they were measured")
        if seam := seam_of(self.model, volume.centered):
            said.append(seam)
        return said


def seam_of(model: Reconstructor, centered: bool = True) -> str:
    """What to say of a network that sees images with their middle in the corner, or nothing."""
    if model.fft != "uncentered-ortho" or not centered:
        return ""
    return (
        "this checkpoint sees centred k-space through uncentered-ortho, which leaves a seam through the middle of the "
        "image; --fft recentered-ortho is the same transform without it"
    )


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
    return _cropped(volume, upright(images.abs().float().cpu(), steps.fft, volume.centered), scale)


def _cropped(volume: Volume, images: Tensor, scale: Tensor) -> NDArray[Any]:
    """Upright images in the file's own scale, cropped to the scanner's matrix."""
    images = images * scale.cpu()[:, None, None]
    if not torch.isfinite(images).all():
        raise FileError(volume.path, "the reconstruction is not finite; the checkpoint does not fit these data")
    if volume.recon_size is not None:
        images = center_crop(images, volume.recon_size)
    return np.ascontiguousarray(images.numpy())


def with_convention(model: Reconstructor, fft: str) -> Reconstructor:
    """The same weights under another Fourier convention."""
    other = type(model)(**{**model.config, "fft": fft})
    other.load_state_dict(model.state_dict())
    return other.eval()
