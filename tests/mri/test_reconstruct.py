"""Reconstruction of files: what is written, in which orientation and scale, and with how much memory."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recurra.mri import Undersampling, load_checkpoint, reconstruct
from recurra.mri.data.header import write_header
from recurra.mri.data.phantom import phantom_slice
from recurra.mri.data.sample import write_volume
from recurra.mri.masks import MASKS

Command = Callable[..., Any]
Array = NDArray[Any]

AXES = (-2, -1)
EQUISPACED = Undersampling("equispaced_fraction", 4.0, 0.2)


def coil_images(kspace: Array) -> Array:
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, AXES), norm="ortho"), AXES)


def crop(images: Array, size: tuple[int, int]) -> Array:
    top, left = (images.shape[-2] - size[0]) // 2, (images.shape[-1] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]


def rss(kspace: Array) -> Array:
    return np.asarray(np.sqrt((np.abs(coil_images(kspace)) ** 2).sum(axis=-3)))


def combined(kspace: Array, acs: Array | bool = True) -> Array:
    """Coil images over maps from the calibration samples, damped as the network's preparation does."""
    window = np.exp(-((np.linspace(-1, 1, kspace.shape[-1]) / 0.7) ** 2))
    images = coil_images(np.where(acs, kspace, 0) * window)
    maps = images / np.sqrt((np.abs(images) ** 2).sum(1, keepdims=True))
    return np.asarray(np.abs((maps.conj() * coil_images(kspace)).sum(1)))


def result_of(model: Path, file: Path, out: Path, **options: Any) -> Array:
    """The reconstruction of a file, which must succeed."""
    (result,) = reconstruct(model, file, out, **{"preview": False, "quiet": True, "device": "cpu", **options})
    assert result.error is None, result.error
    with h5py.File(result.outputs[0]) as written:
        images: Array = written["reconstruction"][()]
    return images


def write_plain(path: Path, **datasets: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


@pytest.fixture(scope="session")
def idle(make_checkpoint: Callable[..., Path]) -> Path:
    """A model that changes nothing: what comes out are the coil images, combined."""
    return make_checkpoint(idle=True)


# --- what is written


def test_submission_file_of_fastmri(idle: Path, volume: Path, phantoms: Array, tmp_path: Path) -> None:
    result_of(idle, volume, tmp_path)
    with h5py.File(tmp_path / volume.name) as file:
        assert list(file) == ["reconstruction"]
        assert file["reconstruction"].dtype == np.dtype("<f4")
        assert file["reconstruction"].shape == (3, 40, 40)  # the header's matrix, cut out of 48 x 40
        images = file["reconstruction"][()]
    np.testing.assert_allclose(images, crop(combined(phantoms), (40, 40)), rtol=1e-3, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["knee.h5"]


def test_without_header_the_whole_matrix(idle: Path, phantoms: Array, tmp_path: Path) -> None:
    images = result_of(idle, write_plain(tmp_path / "a.h5", kspace=phantoms), tmp_path / "out")
    np.testing.assert_allclose(images, combined(phantoms), rtol=1e-3, atol=1e-5)


def test_all_formats_hold_the_same_image(checkpoint: Path, volume: Path, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    pydicom = pytest.importorskip("pydicom")
    formats = ("nifti", "fastmri", "dicom")
    (result,) = reconstruct(checkpoint, volume, tmp_path, formats=formats, device="cpu", quiet=True)
    assert [path.name for path in result.outputs] == ["knee.nii", "knee.h5", "knee_dicom", "knee.png"]
    with h5py.File(tmp_path / "knee.h5") as file:
        images = file["reconstruction"][()]
    nifti = nibabel.load(tmp_path / "knee.nii")
    np.testing.assert_array_equal(np.moveaxis(np.asarray(nifti.dataobj), -1, 0), images)
    # The middle of the image lies where the middle of the k-space does, whatever was cut away.
    np.testing.assert_allclose((nifti.affine @ [20, 20, 0, 1])[:3], 0, atol=1e-6)
    slices = sorted((tmp_path / "knee_dicom").iterdir())
    assert len(slices) == 3
    for path, image in zip(slices, images, strict=True):
        data = pydicom.dcmread(path)
        np.testing.assert_allclose(data.pixel_array * float(data.RescaleSlope), image, atol=image.max() / 65535)
        # DICOM's position is that of the first pixel, in a frame whose first two axes point the other way.
        corner = nifti.affine @ [0, 0, slices.index(path), 1]
        np.testing.assert_allclose(np.array(data.ImagePositionPatient, float), corner[:3] * [-1, -1, 1], atol=1e-5)


def test_formats_on_the_command_line(command: Command, checkpoint: Path, volume: Path, tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    result = command("reconstruct", checkpoint, volume, "-o", tmp_path, "--format", "nifti", "-q", "--no-preview")
    assert result.exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["knee.nii"]
    wrong = command("reconstruct", checkpoint, volume, "-o", tmp_path, "--format", "fastmri,png", "-q")
    assert wrong.exit_code == 1
    assert wrong.stderr == "format must be one or more of fastmri, nifti, dicom; got png\n"


# --- invariances


@pytest.mark.parametrize("size", [2, 8])
def test_batch_size_changes_nothing(checkpoint: Path, volume: Path, tmp_path: Path, size: int) -> None:
    one = result_of(checkpoint, volume, tmp_path / "one", undersampling=EQUISPACED)
    many = result_of(checkpoint, volume, tmp_path / "many", undersampling=EQUISPACED, batch_size=size)
    np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5 * one.max())


def test_slices_with_masks_of_different_form_share_a_batch(checkpoint: Path, phantoms: Array, tmp_path: Path) -> None:
    kspace = phantoms.copy()
    kspace[0, :, :5, :5] = 0  # as a scanner fills corners up: this slice alone has a mask of single samples
    file = write_plain(tmp_path / "a.h5", kspace=kspace)
    one = result_of(checkpoint, file, tmp_path / "one")
    many = result_of(checkpoint, file, tmp_path / "many", batch_size=2)
    np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5 * one.max())


@pytest.mark.parametrize("scaling", ["max_image", "quantile"])
@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_come_out_as_they_went_in(
    make_checkpoint: Callable[..., Path], phantoms: Array, tmp_path: Path, unit: float, scaling: str
) -> None:
    model = make_checkpoint(scaling=scaling)
    plain = write_plain(tmp_path / "a.h5", kspace=phantoms[:1])
    scaled = write_plain(tmp_path / "b.h5", kspace=(phantoms[:1] * unit).astype(np.complex64))
    given = Undersampling("equispaced_fraction", 4.0, 0.2, seed=1)
    one = result_of(model, plain, tmp_path / "one", undersampling=given)
    other = result_of(model, scaled, tmp_path / "other", undersampling=given)
    np.testing.assert_allclose(other / unit, one, rtol=1e-3, atol=1e-5 * one.max())
    assert one.max() > 0.1


def test_precision_bf16_is_close(checkpoint: Path, volume: Path, tmp_path: Path) -> None:
    exact = result_of(checkpoint, volume, tmp_path / "exact", undersampling=EQUISPACED)
    rough = result_of(checkpoint, volume, tmp_path / "rough", undersampling=EQUISPACED, precision="bf16")
    error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.05  # eight bits of mantissa in the convolutions, none lost in transforms


def test_precision_fp16_needs_a_gpu(command: Command, checkpoint: Path, volume: Path, tmp_path: Path) -> None:
    options = ["--device", "cpu", "--precision", "fp16", "-q"]
    result = command("reconstruct", checkpoint, volume, "-o", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert result.stderr == "precision fp16 needs a GPU; use --precision bf16 or --precision 32\n"


# --- what the file says


def test_single_coil(command: Command, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    kspace = np.stack([phantom_slice(32, 24, 1, (3, index), noise=0.0)[0][0] for index in range(2)])
    file = write_plain(tmp_path / "single.h5", kspace=kspace)
    model = make_checkpoint(idle=True)
    refused = command("reconstruct", model, file, "-o", tmp_path / "out", "-q")
    assert refused.exit_code == 1
    assert "For single-coil files pass --coils 1" in refused.stderr
    assert command("reconstruct", model, file, "-o", tmp_path / "out", "-q", "--coils", 1).exit_code == 0
    with h5py.File(tmp_path / "out" / "single.h5") as written:
        images = written["reconstruction"][()]
    np.testing.assert_allclose(images, np.abs(coil_images(kspace)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("planar", [False, True])
def test_a_mask_in_the_file_wins(idle: Path, phantoms: Array, tmp_path: Path, planar: bool) -> None:
    acs = np.zeros((48, 40) if planar else 40, bool)
    acs[(slice(20, 28), slice(16, 24)) if planar else slice(15, 25)] = True
    mask = acs.copy()
    mask[(slice(1, None, 2), slice(None, None, 3)) if planar else slice(None, None, 3)] = True
    measured = np.where(mask, phantoms, 0)
    whole = write_plain(tmp_path / "whole.h5", kspace=phantoms, mask=mask)  # holds more than its mask admits
    images = result_of(idle, whole, tmp_path / "a")
    file = write_plain(tmp_path / "file.h5", kspace=measured, mask=mask.astype(np.float32))
    np.testing.assert_array_equal(result_of(idle, file, tmp_path / "b"), images)
    (refused,) = reconstruct(idle, file, tmp_path / "c", undersampling=EQUISPACED, quiet=True)
    assert refused.error == (
        f"{file}: was measured undersampled (slice 0: dataset 'mask'); --mask undersamples fully sampled files, "
        "leave it out"
    )
    expected = combined(measured, acs)
    np.testing.assert_allclose(images, expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_undersampling_is_that_of_the_file_name(idle: Path, volume: Path, phantoms: Array, tmp_path: Path) -> None:
    given = Undersampling("random", 4.0, 0.2)
    images = result_of(idle, volume, tmp_path / "a", undersampling=given)
    mask = MASKS["random"]([4.0], [0.2])((48, 40), seed=tuple(map(ord, volume.name))).sampling
    file = write_plain(tmp_path / "b.h5", kspace=np.where(mask, phantoms, 0), mask=mask[0])
    whole = result_of(idle, file, tmp_path / "b")
    np.testing.assert_allclose(images, crop(whole, (40, 40)), rtol=1e-3, atol=1e-4 * images.max())
    again = result_of(idle, volume, tmp_path / "c", undersampling=given)
    np.testing.assert_array_equal(again, images)
    other = result_of(idle, volume, tmp_path / "d", undersampling=Undersampling("random", 4.0, 0.2, seed=5))
    assert not np.allclose(other, images, rtol=1e-2)


def test_columns_of_padding_count_for_nothing(idle: Path, phantoms: Array, tmp_path: Path) -> None:
    height, width = phantoms.shape[-2:]
    header = write_header(
        (height, width, 1),
        (height, width, 1),
        encoded_fov=(float(height), float(width), 5.0),
        recon_fov=(float(height), float(width), 5.0),
        limits=(width // 2 - 5, width - 11),
        coils=3,
    )
    measured = phantoms.copy()
    measured[..., :5] = measured[..., -5:] = 0
    rubbish = measured.copy()
    rubbish[..., :5] = rubbish[..., -5:] = 5e-4 * np.abs(measured).mean()
    clean = result_of(idle, write_plain(tmp_path / "a.h5", kspace=measured), tmp_path / "a")
    file = write_plain(tmp_path / "b.h5", kspace=rubbish, ismrmrd_header=header.encode())
    np.testing.assert_allclose(result_of(idle, file, tmp_path / "b"), clean, rtol=1e-4, atol=1e-5)


def test_columns_that_hold_samples_are_no_padding(idle: Path, phantoms: Array, tmp_path: Path) -> None:
    """Whatever the header's limits say: never filled in, or of another matrix."""
    height, width = phantoms.shape[-2:]
    plain = result_of(idle, write_plain(tmp_path / "a.h5", kspace=phantoms), tmp_path / "a")
    for name, matrix, limits in (
        ("unfilled", (height, width), (0, 0)),
        ("narrow", (height, width), (width // 2 - 5, width - 11)),
        ("other", (height + 8, width + 8), (width // 2, width - 3)),
    ):
        fov = (float(matrix[0]), float(matrix[1]), 5.0)
        header = write_header((*matrix, 1), (*matrix, 1), encoded_fov=fov, recon_fov=fov, limits=limits, coils=3)
        file = write_plain(tmp_path / f"{name}.h5", kspace=phantoms, ismrmrd_header=header.encode())
        (result,) = reconstruct(idle, file, tmp_path / name, quiet=True)
        assert any("limits" in note for note in result.notes), name
        with h5py.File(tmp_path / name / f"{name}.h5") as written:
            np.testing.assert_array_equal(written["reconstruction"][()], plain, err_msg=name)


def test_given_maps(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """True maps of every slice, and of all: the noise-free image comes out to rounding."""
    drawn = [phantom_slice(32, 24, 4, (1, index), noise=0.0) for index in range(2)]
    kspace, maps, image = (np.stack(parts) for parts in zip(*drawn, strict=True))
    model = make_checkpoint(idle=True)
    file = write_plain(tmp_path / "k.h5", kspace=kspace, sensitivity=maps)
    images = result_of(model, file, tmp_path / "a", maps=str(file))
    np.testing.assert_allclose(images, np.abs(image), atol=1e-5)
    one = write_plain(tmp_path / "one.h5", kspace=kspace[:1])
    given = write_plain(tmp_path / "m.h5", other=maps[0])
    images = result_of(model, one, tmp_path / "b", maps=f"{given}:other")
    np.testing.assert_allclose(images, np.abs(image[:1]), atol=1e-5)


# --- orientation


def interleaved(centered: Array) -> Array:
    """Calgary-Campinas' layout: parts in turn, DC in the middle, magnitudes upright by the plain transform."""
    images = coil_images(centered)
    kspace = np.fft.fftshift(np.fft.fft2(images, norm="ortho"), AXES)
    kspace[..., int(np.ceil(0.85 * kspace.shape[-1])) :] = 0  # what the scanner fills up itself
    parts = np.stack([kspace.real, kspace.imag], -1)  # (slice, coil, height, width, 2)
    return parts.transpose(0, 2, 3, 1, 4).reshape(*parts.shape[:1], *parts.shape[2:4], -1).astype(np.float32)


def correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize("fft", ["centered-ortho", "uncentered-ortho", "recentered-ortho"])
def test_calgary_campinas_comes_out_upright(
    make_checkpoint: Callable[..., Path], phantoms: Array, tmp_path: Path, fft: str
) -> None:
    file = write_plain(tmp_path / "e1.h5", kspace=interleaved(phantoms))
    images = result_of(make_checkpoint(idle=True, fft=fft, maps="rss"), file, tmp_path / "out")
    target = rss(phantoms)
    assert images.shape == target.shape
    for image, truth in zip(images, target, strict=True):
        assert correlation(image, truth) > 0.85
        assert correlation(np.fft.fftshift(image), truth) < 0.5


@pytest.mark.parametrize("fft", ["uncentered-ortho", "uncentered-backward", "centered-backward", "recentered-ortho"])
@pytest.mark.parametrize("maps", ["rss", "espirit", "given"])
def test_every_convention_comes_out_upright(
    make_checkpoint: Callable[..., Path], tmp_path: Path, fft: str, maps: str
) -> None:
    drawn = [phantom_slice(48, 40, 4, (4, index), noise=0.0) for index in range(2)]
    kspace, true_maps, image = (np.stack(parts) for parts in zip(*drawn, strict=True))
    file = tmp_path / "knee.h5"
    write_volume(file, kspace)
    given = write_plain(tmp_path / "maps.h5", sensitivity=true_maps)
    model = make_checkpoint(idle=True, fft=fft, maps="rss" if maps == "given" else maps)
    images = result_of(model, file, tmp_path / "out", maps=str(given) if maps == "given" else None)
    truth = np.abs(image)[:, 4:44]
    if fft.endswith("backward"):  # the unitary transform is the other one
        truth = truth / np.sqrt(48 * 40)
    if maps == "espirit":  # background is zero there
        assert correlation(images, truth) > 0.98
    else:
        np.testing.assert_allclose(images, truth, rtol=1e-3, atol=2e-3 * truth.max())


def test_a_network_trained_on_the_plain_transform_is_rolled(
    make_checkpoint: Callable[..., Path], volume: Path, tmp_path: Path
) -> None:
    """With weights that are not zero: the image, rolled, is what the network itself makes of the samples."""
    model = make_checkpoint(fft="uncentered-ortho", maps="unit", scaling="none")
    images = result_of(model, volume, tmp_path)
    with h5py.File(volume) as file:
        kspace = torch.from_numpy(file["kspace"][:1])
    maps = torch.full_like(kspace, 3**-0.5)
    with torch.no_grad():
        expected = load_checkpoint(model)(kspace, maps, torch.ones(1, 1, 1, 40, dtype=torch.bool)).abs()
    upright = np.fft.fftshift(expected.numpy(), AXES)[:, 4:44]
    np.testing.assert_allclose(images[:1], upright, rtol=1e-3, atol=1e-4 * upright.max())


# --- raw data


def write_ismrmrd(path: Path, kspace: Array, recon: tuple[int, int], columns: Array) -> Path:
    """The volume (slice, coil, height, width) as a scanner's acquisitions: one a slice and column of those given."""
    slices, coils, height, _ = kspace.shape
    index = [(name, "<u2") for name in ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice")]
    index += [(name, "<u2") for name in ("contrast", "phase", "repetition", "set", "segment")]
    head = [("version", "<u2"), ("flags", "<u8"), ("number_of_samples", "<u2"), ("active_channels", "<u2")]
    head += [("discard_pre", "<u2"), ("discard_post", "<u2"), ("center_sample", "<u2"), ("position", "<f4", 3)]
    head += [("read_dir", "<f4", 3), ("phase_dir", "<f4", 3), ("slice_dir", "<f4", 3), ("idx", index)]
    numbers = h5py.vlen_dtype(np.float32)
    table = np.zeros(slices * len(columns), [("head", head), ("traj", numbers), ("data", numbers)])
    places = [(slice_, column) for column in columns for slice_ in range(slices)]  # slices interleaved
    for row, (slice_, column) in zip(table, places, strict=True):
        row["head"]["number_of_samples"], row["head"]["active_channels"] = height, coils
        row["head"]["center_sample"] = height // 2
        row["head"]["idx"]["kspace_encode_step_1"], row["head"]["idx"]["slice"] = column, slice_
        row["traj"] = np.zeros(0, np.float32)
        row["data"] = np.ascontiguousarray(kspace[slice_, :, :, column]).view(np.float32).ravel()
    text = _header(kspace.shape, recon)
    with h5py.File(path, "w") as file:
        file["dataset/data"] = table
        file.create_dataset("dataset/xml", data=np.array([text], object), dtype=h5py.string_dtype("ascii"))
    return path


def _header(shape: tuple[int, ...], recon: tuple[int, int]) -> bytes:
    _, coils, height, width = shape
    return write_header(
        (height, width, 1),
        (*recon, 1),
        encoded_fov=(float(height), float(width), 5.0),
        recon_fov=(float(recon[0]), float(recon[1]), 5.0),
        limits=(width // 2, width - 1),
        coils=coils,
    ).encode()


@pytest.mark.parametrize("undersampled", [False, True])
def test_raw_and_fastmri_files_of_one_scan_agree(checkpoint: Path, tmp_path: Path, undersampled: bool) -> None:
    kspace = np.stack([phantom_slice(64, 32, 3, (8, index), noise=0.002)[0] for index in range(2)])
    columns = np.arange(32)
    datasets: dict[str, Any] = {"kspace": kspace, "ismrmrd_header": _header(kspace.shape, (32, 32))}
    if undersampled:
        mask = np.zeros(32, bool)
        mask[::3] = mask[12:20] = True
        columns = np.flatnonzero(mask)
        datasets |= {"kspace": np.where(mask, kspace, 0), "mask": mask}
    fastmri = result_of(checkpoint, write_plain(tmp_path / "a.h5", **datasets), tmp_path / "a")
    raw = write_ismrmrd(tmp_path / "b.h5", kspace, (32, 32), columns)
    assert fastmri.shape == (2, 32, 32)
    np.testing.assert_array_equal(result_of(checkpoint, raw, tmp_path / "b"), fastmri)


# --- memory

MEMORY = """
import resource, sys
from pathlib import Path
import torch
from recurra.mri import reconstruct
torch.set_num_threads(1)
folder = Path(sys.argv[1])
for name in ("short", "long"):
    (result,) = reconstruct(sys.argv[2], folder / f"{name}.h5", folder / "out", device="cpu", quiet=True)
    assert result.error is None, result.error
    print(result.slices, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_memory_does_not_grow_with_the_number_of_slices(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    model = make_checkpoint(steps=1, conv_filters=(1, 1, 2), recurrent_filters=(1, 1, 0), maps="unit")
    kspace = phantom_slice(192, 192, 2, 0)[0]
    for name, count in (("short", 4), ("long", 200)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            data = file.create_dataset("kspace", (count, 2, 192, 192), np.complex64)
            for index in range(count):
                data[index] = kspace
    command = [sys.executable, "-c", MEMORY, str(tmp_path), str(model)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (few, short), (many, long) = (map(int, line.split()) for line in result.stdout.splitlines())
    assert (few, many) == (4, 200)
    # The images alone are 28 MiB, their k-space is 113 MiB.
    assert long - short < 10 * 1024
