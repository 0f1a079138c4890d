"""Writes generated volumes in fastMRI's on-disk format: folders train, val and test as the public data have them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Complex64, Float32
from numpy.typing import NDArray

from recurra.core.hdf5 import created
from recurra.mri.data.header import write_header
from recurra.mri.data.phantom import phantom_slice
from recurra.mri.masks import Gaussian2D, Mask, Random, file_seed

_ACQUISITIONS = ("AXT1", "AXT2", "AXFLAIR")


def write_sample(
    folder: str | Path,
    *,
    slices: int = 4,
    seed: int = 0,
    height: int = 192,
    width: int = 160,
    coils: int = 8,
    train: int = 4,
    val: int = 2,
    acceleration: float = 4.0,
) -> list[Path]:
    """The files written below the folder, each with slices that no other file has.

    Training and validation volumes are fully sampled and have the truth, without noise, as `reconstruction_rss`; of
    the two test volumes one is masked by columns, the other by single samples, and neither has an image.

    Args:
        folder: receives train/, val/ and test/.
        slices: slices of a volume.
        seed: another seed, other phantoms.
        height: rows of the k-space (readout).
        width: columns of the k-space (phase encoding).
        coils: receive coils.
        train: number of training volumes.
        val: number of validation volumes.
        acceleration: of the test volumes.
    """
    columns = Random([acceleration], [0.32 / acceleration])
    samples = Gaussian2D([acceleration], center_scale=0.08)
    paths = []
    for part, (name, count) in enumerate((("train", train), ("val", val), ("test", 2))):
        for number in range(count):
            path = Path(folder) / name / f"phantom_{name}_{number}.h5"
            drawn = [phantom_slice(height, width, coils, (seed, part, number, index)) for index in range(slices)]
            mask = None
            if name == "test":
                mask = (columns if number == 0 else samples)((height, width), seed=file_seed(path))
            write_volume(
                path,
                np.stack([kspace for kspace, _, _ in drawn]),
                images=np.stack([np.abs(image) for _, _, image in drawn]),
                mask=mask,
                acquisition=_ACQUISITIONS[number % len(_ACQUISITIONS)],
            )
            paths.append(path)
    return paths


def write_volume(
    path: Path,
    kspace: Complex64[NDArray[np.complex64], "slice coil height width"],
    *,
    images: Float32[NDArray[np.float32], "slice height width"] | None = None,
    mask: Mask | None = None,
    recon_size: tuple[int, int] | None = None,
    acquisition: str = "AXT1",
    voxel: Sequence[float] = (1.0, 1.0, 5.0),
) -> None:
    """Writes a fastMRI volume: fully sampled with its image, or masked without; whole, or not at all.

    Args:
        path: the file.
        kspace: centred, orthonormal.
        images: the truth; by default the root sum of squares of the k-space's images, with their noise.
        mask: applied to the k-space; a mask of columns is stored as one axis, as in the public test data.
        recon_size: rows and columns of the image; by default the central square.
        acquisition: attribute of this name.
        voxel: size in mm along readout, phase encoding and slice.
    """
    _, coils, height, width = kspace.shape
    rows, columns = recon_size or (min(height, width),) * 2
    header = write_header(
        (height, width, 1),
        (rows, columns, 1),
        encoded_fov=(height * voxel[0], width * voxel[1], voxel[2]),
        recon_fov=(rows * voxel[0], columns * voxel[1], voxel[2]),
        limits=(width // 2, width - 1),
        coils=coils,
    )
    attributes: dict[str, Any] = {"acquisition": acquisition, "patient_id": path.stem}
    with created(path) as file:
        file["ismrmrd_header"] = header.encode()
        if mask is None:
            file["kspace"] = kspace
            truth = _cropped(_images(kspace) if images is None else images, (rows, columns))
            file["reconstruction_rss"] = truth
            attributes |= {"max": float(truth.max()), "norm": float(np.linalg.norm(truth))}
        else:
            file["kspace"] = np.where(mask.sampling, kspace, np.complex64(0))
            file["mask"] = mask.sampling[0] if len(mask.sampling) == 1 else mask.sampling
            attributes |= {"acceleration": mask.acceleration, "num_low_frequency": int(mask.acs.any(0).sum())}
        for key, value in attributes.items():
            file.attrs[key] = value


def _images(kspace: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Root sum of squares over the coils."""
    axes = (-2, -1)
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes), norm="ortho"), axes)
    return np.asarray(np.sqrt(np.sum(np.abs(images) ** 2, axis=1)), dtype=np.float32)


def _cropped(images: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """The middle of the images."""
    top, left = (images.shape[-2] - size[0]) // 2, (images.shape[-1] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]
