"""Raw-data formats: what is written is what is read, by the assembly rules of scanners."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.core.testing import assert_close, golden, golden_files
from recurra.mri.data import open_volume, write_sample
from recurra.mri.data.assembly import AssembledVolume, remove_oversampling
from recurra.mri.data.header import write_header
from recurra.mri.data.phantom import phantom_slice
from recurra.mri.data.reading import open_parts
from recurra.mri.data.sample import write_volume
from recurra.mri.masks import Random

AXES = (-2, -1)


def image(kspace: np.ndarray) -> np.ndarray:
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, AXES), norm="ortho"), AXES)


def rss(kspace: np.ndarray) -> np.ndarray:
    return np.sqrt((np.abs(image(kspace)) ** 2).sum(axis=-3))


def crop(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, left = (images.shape[-2] - size[0]) // 2, (images.shape[-1] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]


def random_kspace(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


# fastMRI ------------------------------------------------------------------------------------------------------------


@given(
    slices=st.integers(1, 3),
    coils=st.integers(1, 4),
    height=st.integers(4, 20),
    width=st.integers(4, 20),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_fastmri_round_trip(
    slices: int, coils: int, height: int, width: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("v") / "v.h5"
    kspace = random_kspace(slices, coils, height, width, seed=seed)
    write_volume(path, kspace, voxel=(1.5, 0.5, 4.0))
    with open_volume(path) as volume:
        assert volume.format == "fastMRI"
        assert volume.shape == kspace.shape
        assert volume.centered
        assert volume.mask is None
        assert volume.padding is None
        assert volume.recon_size == (min(height, width),) * 2
        for index in range(slices):
            np.testing.assert_array_equal(volume.kspace(index), kspace[index])
            expected = crop(rss(kspace[index]), volume.recon_size)
            np.testing.assert_allclose(volume.target(index), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), (1.5, 0.5, 4.0))
        middle = volume.affine @ [height // 2, width // 2, 0, 1]
        np.testing.assert_allclose(middle[:3], 0)
        assert volume.attributes["acquisition"] == "AXT1"


def test_the_sample_is_what_fastmri_publishes(tmp_path: Path) -> None:
    paths = write_sample(tmp_path, slices=2, height=48, width=40, coils=3, train=1, val=1)
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "train/phantom_train_0.h5",
        "val/phantom_val_0.h5",
        "test/phantom_test_0.h5",
        "test/phantom_test_1.h5",
    ]
    with h5py.File(paths[0]) as file:
        assert set(file) == {"kspace", "ismrmrd_header", "reconstruction_rss"}
        assert {"acquisition", "patient_id", "max", "norm"} <= set(file.attrs)
        assert file.attrs["max"] == pytest.approx(file["reconstruction_rss"][()].max())
    for path, shape in zip(paths[2:], [(1, 40), (48, 40)], strict=True):
        with h5py.File(path) as file, open_volume(path) as volume:
            assert set(file) == {"kspace", "ismrmrd_header", "mask"}
            assert file["mask"].shape == ((40,) if shape[0] == 1 else shape)
            assert volume.mask is not None
            assert volume.mask.shape == shape
            assert volume.target(0) is None
            assert volume.acs_lines == file.attrs["num_low_frequency"]
            kspace = volume.kspace(1)
            assert not kspace[:, ~np.broadcast_to(volume.mask, (48, 40))].any()
            assert kspace[:, np.broadcast_to(volume.mask, (48, 40))].any()


def test_the_same_seed_writes_the_same_sample(tmp_path: Path) -> None:
    options: dict[str, Any] = {"slices": 1, "height": 32, "width": 32, "coils": 2, "train": 1, "val": 1}
    first = write_sample(tmp_path / "a", seed=3, **options)
    second = write_sample(tmp_path / "b", seed=3, **options)
    other = write_sample(tmp_path / "c", seed=4, **options)
    for a, b, c in zip(first, second, other, strict=True):
        with open_volume(a) as one, open_volume(b) as two, open_volume(c) as three:
            np.testing.assert_array_equal(one.kspace(0), two.kspace(0))
            assert not np.array_equal(one.kspace(0), three.kspace(0))


def test_single_coil_files_need_to_be_told(tmp_path: Path) -> None:
    kspace = random_kspace(3, 12, 10)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["kspace"] = kspace
        file["reconstruction_esc"] = np.ones((3, 8, 8), np.float32)
        file["reconstruction_rss"] = np.zeros((3, 8, 8), np.float32)
    with open_volume(tmp_path / "s.h5", coils=1) as volume:
        assert volume.shape == (3, 1, 12, 10)
        np.testing.assert_array_equal(volume.kspace(2)[0], kspace[2])
        target = volume.target(0)
        assert target is not None
        assert target.all()


def fastmri_header(encoded: tuple[int, int], recon: tuple[int, int], center: int, maximum: int) -> bytes:
    return write_header(
        (*encoded, 1),
        (*recon, 1),
        encoded_fov=(*map(float, encoded), 5.0),
        recon_fov=(*map(float, recon), 5.0),
        limits=(center, maximum),
        coils=2,
    ).encode()


@pytest.mark.parametrize(
    ("center", "maximum", "padding"), [(16, 31, (4, 36)), (20, 39, None), (18, 33, (2, 36)), (0, -30, None)]
)
def test_padding_of_the_header(center: int, maximum: int, padding: tuple[int, int] | None, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "p.h5", "w") as file:
        kspace = random_kspace(1, 2, 24, 40)
        left, right = padding or (0, 40)
        kspace[..., :left] = kspace[..., right:] = 0
        file["kspace"] = kspace
        file["ismrmrd_header"] = fastmri_header((24, 40), (20, 20), center, maximum)
    with open_volume(tmp_path / "p.h5") as volume:
        assert volume.padding == padding
        assert volume.recon_size == (20, 20)
        assert not volume.remarks


def test_fewer_columns_than_the_image_crop_to_a_square(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["kspace"] = random_kspace(1, 2, 64, 26)
        file["ismrmrd_header"] = fastmri_header((64, 26), (32, 32), 13, 25)
    with open_volume(tmp_path / "p.h5") as volume:
        assert volume.recon_size == (26, 26)


def test_slices_are_read_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_volume(tmp_path / "v.h5", random_kspace(4, 2, 8, 8))
    reads: list[Any] = []
    plain = h5py.Dataset.__getitem__

    def spy(dataset: Any, selection: Any) -> Any:
        reads.append((dataset.name, selection))
        return plain(dataset, selection)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    with open_volume(tmp_path / "v.h5") as volume:
        assert not [name for name, _ in reads if name == "/kspace"]
        volume.kspace(-1)
        assert [(n, s) for n, s in reads if n == "/kspace"] == [("/kspace", 3)]
        with pytest.raises(IndexError, match="slice 4 of 4"):
            volume.kspace(4)


def test_a_file_that_another_program_holds_can_be_read(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    write_volume(tmp_path / "v.h5", random_kspace(1, 2, 8, 8))
    with (tmp_path / "v.h5").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            h5py.File(tmp_path / "v.h5", "r", locking=True)
        with open_volume(tmp_path / "v.h5") as volume:
            assert volume.kspace(0).any()


# Calgary-Campinas ---------------------------------------------------------------------------------------------------


@given(slices=st.integers(1, 3), coils=st.integers(2, 4), height=st.integers(4, 12), width=st.integers(4, 24))
@settings(max_examples=20, deadline=None)
def test_calgary_campinas_round_trip(
    slices: int, coils: int, height: int, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("v") / "e1.h5"
    kspace = random_kspace(slices, coils, height, width)
    interleaved = np.stack([kspace.real, kspace.imag], -1).transpose(0, 2, 3, 1, 4).reshape(slices, height, width, -1)
    with h5py.File(path, "w") as file:
        file["kspace"] = interleaved.astype(np.float32)
    acquired = int(np.ceil(0.85 * width))
    with open_volume(path) as volume:
        assert volume.format == "Calgary-Campinas"
        assert volume.shape == kspace.shape
        assert not volume.centered
        assert volume.padding is None or acquired == width  # this file is measured throughout
        for index in range(slices):
            np.testing.assert_array_equal(volume.kspace(index), kspace[index])
    with h5py.File(path, "r+") as file:
        file["kspace"][:, :, acquired:] *= 1e-7
    with open_volume(path) as volume:
        assert volume.padding == (0, acquired)
        for index in range(slices):
            np.testing.assert_array_equal(volume.kspace(index)[..., :acquired], kspace[index][..., :acquired])
            assert not volume.kspace(index)[..., acquired:].any()


def test_the_public_calgary_campinas_files_are_measured_to_85_percent(tmp_path: Path) -> None:
    kspace = random_kspace(1, 2, 218, 170)
    with h5py.File(tmp_path / "e1.h5", "w") as file:
        parts = np.stack([kspace.real, kspace.imag], -1).transpose(0, 2, 3, 1, 4).reshape(1, 218, 170, -1)
        file["kspace"] = parts.astype(np.float32)
    with open_volume(tmp_path / "e1.h5") as volume:
        assert volume.padding == (0, 145)
        assert not volume.kspace(0)[..., 145:].any()


# ISMRMRD ------------------------------------------------------------------------------------------------------------

INDEX = [(name, "<u2") for name in ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast")]
INDEX += [(name, "<u2") for name in ("phase", "repetition", "set", "segment")]
HEAD = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("number_of_samples", "<u2"),
        ("active_channels", "<u2"),
        ("discard_pre", "<u2"),
        ("discard_post", "<u2"),
        ("center_sample", "<u2"),
        ("position", "<f4", 3),
        ("read_dir", "<f4", 3),
        ("phase_dir", "<f4", 3),
        ("slice_dir", "<f4", 3),
        ("idx", INDEX),
    ]
)


@dataclass
class Line:
    """One acquisition: samples (coil, sample), counters, flags from 1."""

    samples: np.ndarray
    step: int
    flags: tuple[int, ...] = ()
    counters: dict[str, int] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)


def write_raw(
    path: Path,
    lines: list[Line],
    matrix: tuple[int, int],
    *,
    recon: tuple[int, int] | None = None,
    center: int | None = None,
    mode: str = "",
    group: str = "dataset",
) -> Path:
    """An ISMRMRD file of these acquisitions."""
    recon = recon or matrix
    text = write_header(
        (*matrix, 1),
        (*recon, 1),
        encoded_fov=(2.0 * matrix[0], 2.0 * matrix[1], 5.0),
        recon_fov=(2.0 * recon[0], 2.0 * recon[1], 5.0),
        limits=(matrix[1] // 2 if center is None else center, matrix[1] - 1),
        coils=2,
    )
    if mode:
        imaging = f"<parallelImaging><calibrationMode>{mode}</calibrationMode></parallelImaging></encoding>"
        text = text.replace("</encoding>", imaging)
    row = np.dtype([("head", HEAD), ("traj", h5py.vlen_dtype(np.float32)), ("data", h5py.vlen_dtype(np.float32))])
    table = np.zeros(len(lines), row)
    for entry, line in zip(table, lines, strict=True):
        head = entry["head"]
        head["flags"] = sum(1 << (flag - 1) for flag in line.flags)
        head["active_channels"], head["number_of_samples"] = line.samples.shape
        head["center_sample"] = line.samples.shape[1] // 2
        for name, value in line.head.items():
            head[name] = value
        head["idx"]["kspace_encode_step_1"] = line.step
        for name, value in line.counters.items():
            head["idx"][name] = value
        entry["traj"] = np.zeros(0, np.float32)
        entry["data"] = np.ascontiguousarray(line.samples, np.complex64).view(np.float32).ravel()
    with h5py.File(path, "w") as file:
        file.create_dataset(f"{group}/data", data=table, maxshape=(None,))
        file.create_dataset(f"{group}/xml", data=np.array([text.encode()], object), dtype=h5py.string_dtype("ascii"))
    return path


def lines_of(kspace: np.ndarray, **options: Any) -> list[Line]:
    return [Line(kspace[:, :, step], step, **options) for step in range(kspace.shape[-1])]


class TestISMRMRD:
    kspace = random_kspace(2, 12, 10)

    def read(self, path: Path, index: int = 0, **options: Any) -> np.ndarray:
        with open_volume(path, **options) as volume:
            assert volume.format == "ISMRMRD"
            return volume.kspace(index)

    @pytest.mark.parametrize("group", ["dataset", "scan_7"])
    def test_lines_in_any_order(self, group: str, tmp_path: Path) -> None:
        lines = lines_of(self.kspace)
        shuffled = [lines[n] for n in np.random.default_rng(0).permutation(10)]
        path = write_raw(tmp_path / "r.h5", shuffled, (12, 10), group=group)
        np.testing.assert_array_equal(self.read(path), self.kspace)
        with open_volume(path) as volume:
            assert volume.shape == (1, 2, 12, 10)
            assert volume.mask is None
            np.testing.assert_allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), (2, 2, 5))

    @pytest.mark.parametrize("flag", [19, 23, 24])
    def test_lines_that_are_no_image_are_left_out(self, flag: int, tmp_path: Path) -> None:
        noise = [Line(np.full((2, 30), 1e3 + 0j), 0, (flag,)) for _ in range(3)]
        path = write_raw(tmp_path / "r.h5", noise + lines_of(self.kspace), (12, 10))
        np.testing.assert_array_equal(self.read(path), self.kspace)

    def test_reversed_readouts_are_flipped(self, tmp_path: Path) -> None:
        lines = lines_of(self.kspace)
        for line in lines[1::2]:
            line.samples, line.flags = line.samples[:, ::-1], (22,)
        np.testing.assert_array_equal(self.read(write_raw(tmp_path / "r.h5", lines, (12, 10))), self.kspace)

    @pytest.mark.parametrize("counter", ["average", "segment"])
    def test_repeated_lines_are_averaged(self, counter: str, tmp_path: Path) -> None:
        other = random_kspace(2, 12, 10, seed=1)
        lines = lines_of(self.kspace) + lines_of(other, counters={counter: 1})
        found = self.read(write_raw(tmp_path / "r.h5", lines, (12, 10)))
        np.testing.assert_allclose(found, (self.kspace + other) / 2, rtol=1e-6)

    def test_slices_follow_each_other(self, tmp_path: Path) -> None:
        other = random_kspace(2, 12, 10, seed=1)
        path = write_raw(tmp_path / "r.h5", lines_of(other, counters={"slice": 1}) + lines_of(self.kspace), (12, 10))
        np.testing.assert_array_equal(self.read(path, 0), self.kspace)
        np.testing.assert_array_equal(self.read(path, 1), other)

    @pytest.mark.parametrize(
        ("counter", "name"), [("contrast", "echo"), ("repetition", "repetition"), ("phase", "phase"), ("set", "set")]
    )
    def test_echoes_and_repetitions_are_volumes_of_their_own(self, counter: str, name: str, tmp_path: Path) -> None:
        other = random_kspace(2, 12, 10, seed=1)
        path = write_raw(tmp_path / "r.h5", lines_of(other, counters={counter: 3}) + lines_of(self.kspace), (12, 10))
        with open_volume(path) as volume:
            assert len(volume) == 1
            assert volume.parts == (f"{name}1", f"{name}4")
            assert volume.part == f"{name}1"
            plural = "echoes" if name == "echo" else f"{name}s"
            assert plural in volume.attributes
            assert volume.remarks == [f"holds 2 volumes ({plural}), which are kept apart: {name}1, {name}4"]
        for part, kspace in ((f"{name}1", self.kspace), (f"{name}4", other)):
            np.testing.assert_array_equal(self.read(path, part=part), kspace)
        assert [volume.part for volume in open_parts(path)] == [f"{name}1", f"{name}4"]
        with pytest.raises(ValueError, match=rf"has no part '{name}2' \(did you mean {name}"):
            open_volume(path, part=f"{name}2")

    def test_the_centre_step_lies_in_the_middle(self, tmp_path: Path) -> None:
        lines = lines_of(self.kspace)[2:]
        for line in lines:
            line.step -= 2  # the first two lines of a partial Fourier scan are not counted
        path = write_raw(tmp_path / "r.h5", lines, (12, 10), center=3)
        found = self.read(path)
        np.testing.assert_array_equal(found[..., 2:], self.kspace[..., 2:])
        assert not found[..., :2].any()
        with open_volume(path) as volume:
            assert volume.mask is None  # nothing is left out between two lines
            np.testing.assert_array_equal(volume.stored_mask, [[[False] * 2 + [True] * 8]])

    def test_a_partial_echo_lies_at_its_centre_sample(self, tmp_path: Path) -> None:
        lines = lines_of(self.kspace)
        for line in lines:
            line.samples, line.head = line.samples[:, 4:], {"center_sample": 2}
        found = self.read(write_raw(tmp_path / "r.h5", lines, (12, 10)))
        np.testing.assert_array_equal(found[:, 4:], self.kspace[:, 4:])
        assert not found[:, :4].any()

    def test_discarded_samples_are_dropped(self, tmp_path: Path) -> None:
        lines = lines_of(self.kspace)
        for line in lines:
            junk = np.full((2, 3), 99 + 0j)
            line.samples = np.concatenate([junk, line.samples, junk[:, :2]], axis=1)
            line.head = {"discard_pre": 3, "discard_post": 2, "center_sample": 9}
        np.testing.assert_array_equal(self.read(write_raw(tmp_path / "r.h5", lines, (12, 10))), self.kspace)

    def test_undersampled_lines_give_the_mask(self, tmp_path: Path) -> None:
        lines = [line for line in lines_of(self.kspace) if line.step % 2 == 0]
        with open_volume(write_raw(tmp_path / "r.h5", lines, (12, 10))) as volume:
            assert volume.mask is not None
            assert volume.mask[0].tolist() == [True, False] * 5

    @pytest.mark.parametrize("mode", ["", "embedded", "interleaved", "separate"])
    def test_calibration_lines(self, mode: str, tmp_path: Path) -> None:
        """Measured with the image they fill it up, measured apart they are kept apart."""
        lines = lines_of(self.kspace)
        for line in lines[3:7]:
            line.flags = (21,) if line.step % 2 == 0 else (20,)
        taken = [line for line in lines if line.step % 2 == 0 or line.flags]
        with open_volume(write_raw(tmp_path / "r.h5", taken, (12, 10), mode=mode)) as volume:
            assert isinstance(volume, AssembledVolume)
            assert volume.mask is not None
            apart = mode == "separate"
            assert np.flatnonzero(volume.mask[0]).tolist() == ([0, 2, 4, 6, 8] if apart else [0, 2, 3, 4, 5, 6, 8])
            found = volume.calibration(0)
            if apart:
                assert found is not None
                np.testing.assert_array_equal(found[..., [3, 5]], self.kspace[..., [3, 5]])
                assert not found[..., [0, 2, 4]].any()
            else:
                assert found is None

    def test_oversampling_stays_or_is_cut_away_in_image_space(self, tmp_path: Path) -> None:
        kspace = phantom_slice(64, 40, 2, 3, noise=0.01)[0]
        path = write_raw(tmp_path / "r.h5", lines_of(kspace), (64, 40), recon=(32, 40))
        np.testing.assert_array_equal(self.read(path), kspace)
        with open_volume(path) as volume:
            assert volume.recon_size == (32, 40)
        small = self.read(path, remove_oversampling=True)
        assert small.shape == (2, 32, 40)
        np.testing.assert_allclose(image(small) * np.sqrt(2), crop(image(kspace), (32, 40)), atol=1e-5)

    def test_orientation_and_position(self, tmp_path: Path) -> None:
        directions, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
        names = ("read_dir", "phase_dir", "slice_dir")
        head: dict[str, Any] = dict(zip(names, directions.T, strict=True))
        first, step = np.array([10.0, -5.0, 30.0]), directions[:, 2] * 6.5
        lines = []
        for index in range(3):
            place = {**head, "position": first + index * step}
            lines += lines_of(self.kspace, counters={"slice": index}, head=place)
        with open_volume(write_raw(tmp_path / "r.h5", lines, (12, 10))) as volume:
            to_ras = np.array([-1, -1, 1])
            for index in range(3):
                middle = volume.affine @ [6, 5, index, 1]
                np.testing.assert_allclose(middle[:3], (first + index * step) * to_ras, atol=1e-4)
            row = (volume.affine @ [7, 5, 0, 1] - volume.affine @ [6, 5, 0, 1])[:3]
            np.testing.assert_allclose(row, 2 * directions[:, 0] * to_ras, atol=1e-5)


def test_the_cut_is_the_same_for_odd_sizes() -> None:
    kspace = random_kspace(1, 21, 4).astype(complex)
    small = remove_oversampling(kspace, 11)
    full = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace, -2), axis=-2), -2)
    part = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(small, -2), axis=-2), -2)
    np.testing.assert_allclose(part, full[:, 5:16])


# Siemens ------------------------------------------------------------------------------------------------------------


class Block:
    """A readout as twixtools has it."""

    def __init__(self, samples: np.ndarray, line: int, *flags: str, slice_index: int = 0) -> None:
        self.data, self.cLin, self.cSlc, self.flags = samples.astype(np.complex64), line, slice_index, flags
        self.cPar = self.cEco = self.cPhs = self.cSet = self.cRep = 0
        self.mdh = SimpleNamespace(
            SamplesInScan=samples.shape[1],
            UsedChannels=samples.shape[0],
            CenterCol=samples.shape[1] // 2,
            CenterLin=5,
            CutOff=SimpleNamespace(Pre=0, Post=0),
            SliceData=SimpleNamespace(SlicePos=SimpleNamespace(Sag=0.0, Cor=0.0, Tra=5.0 * slice_index)),
        )
        self.fid = SimpleNamespace(close=lambda: None)

    def is_flag_set(self, name: str) -> bool:
        return name in self.flags

    def is_image_scan(self) -> bool:
        return not set(self.flags) & {"NOISEADJSCAN", "PHASCOR", "PATREFSCAN", "ACQEND"}


@pytest.fixture
def twix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a .dat file that a stand-in for twixtools reads as these blocks."""

    def make(blocks: list[Block], *, ended: bool = True, **protocol: Any) -> Path:
        stub = ModuleType("twixtools")
        header = {
            "MeasYaps": {"sKSpace": {"lPhaseEncodingLines": 10}, **protocol},
            "Dicom": {"flReadoutOSFactor": 2.0},
        }
        adjustment = {"mdb": [Block(np.ones((1, 4)), 0, "NOISEADJSCAN")], "hdr": {}}
        end = [Block(np.zeros((1, 0)), 0, "ACQEND")] if ended else []
        scans = [adjustment, {"mdb": blocks + end, "hdr": header}]
        monkeypatch.setattr(stub, "read_twix", lambda *_, **__: scans, raising=False)
        monkeypatch.setitem(sys.modules, "twixtools", stub)
        (tmp_path / "t.dat").write_bytes(b"\0" * 64)
        return tmp_path / "t.dat"

    return make


class TestTwix:
    kspace = random_kspace(2, 12, 10)

    def blocks(self) -> list[Block]:
        return [Block(self.kspace[:, :, line], line) for line in range(10)]

    def test_lines_of_the_last_scan(self, twix: Any) -> None:
        blocks = self.blocks()
        blocks[3] = Block(self.kspace[:, ::-1, 3], 3, "REFLECT")
        noise = [Block(np.full((2, 12), 9e9), 0, flag) for flag in ("NOISEADJSCAN", "PHASCOR")]
        with open_volume(twix(noise + blocks[::-1])) as volume:
            assert volume.format == "Siemens twix"
            assert volume.shape == (1, 2, 12, 10)
            assert volume.recon_size == (6, 10)
            np.testing.assert_array_equal(volume.kspace(0), self.kspace)
        with open_volume(twix(blocks), remove_oversampling=True) as volume:
            assert volume.shape == (1, 2, 6, 10)

    @pytest.mark.parametrize(("mode", "columns"), [(2, [0, 2, 3, 4, 5, 6, 8]), (4, [0, 2, 4, 6, 8])])
    def test_calibration_lines(self, mode: int, columns: list[int], twix: Any) -> None:
        blocks = [block for block in self.blocks() if block.cLin % 2 == 0]
        blocks += [Block(self.kspace[:, :, line], line, "PATREFSCAN") for line in (3, 5)]
        with open_volume(twix(blocks, sPat={"ucRefScanMode": mode})) as volume:
            assert volume.mask is not None
            assert np.flatnonzero(volume.mask[0]).tolist() == columns

    def test_a_scan_without_its_end_is_refused(self, twix: Any) -> None:
        path = twix(self.blocks()[:4], ended=False)
        with pytest.raises(ValueError, match=f"^{path}: is cut short; the scan has no end mark$"):
            open_volume(path)


def siemens_pairs() -> list[Path]:
    """Pairs of a scanner's own file; the project's own golden folder has none, since they rest on data of others."""
    try:
        return golden_files("mri", "siemens*")
    except ValueError:
        return []


@pytest.mark.parity
@pytest.mark.parametrize("path", siemens_pairs(), ids=lambda path: path.stem)
class TestSiemensParity:
    """A scanner's own file, and the same scan in the other formats where they lie beside it."""

    def files(self, path: Path) -> list[Path]:
        told = Path(golden(path).config["file"])
        # DIR/mri/NAME.json names its data from the folder that DIR is in
        raw = path.parent.parent.parent / told
        return [raw, *(raw.with_name(raw.stem + ending) for ending in ("_ismrmrd.h5", ".h5"))]

    def test_kspace_and_image(self, path: Path) -> None:
        pair = golden(path)
        for file in self.files(path):
            if not file.exists():
                assert file.suffix != ".dat", f"{file} is missing"
                continue
            with open_volume(file) as volume:
                kspace = volume.kspace(0)
                assert volume.recon_size is not None
                images = crop(rss(kspace), volume.recon_size)
            small = remove_oversampling(kspace.astype(complex), volume.recon_size[0])
            for name, expected in pair.outputs.items():
                first = expected.numpy()
                part = slice(None)
                if "_lines" in name:
                    start, stop = map(int, name.rpartition("_lines")[2].split("_"))
                    part = slice(start, stop)
                found = images if name == "rss" else (kspace if "_os" in name else small)[..., part]
                peak = float(np.abs(first).max())
                assert_close(
                    found,
                    expected,
                    atol=pair.tolerance.atol + 1e-6 * peak,
                    rtol=pair.tolerance.rtol,
                    name=f"{file.name} {name}",
                )


def test_masks_apply_to_a_written_volume(tmp_path: Path) -> None:
    kspace = random_kspace(1, 2, 16, 20)
    mask = Random([2], [0.2])((16, 20), seed=0)
    write_volume(tmp_path / "m.h5", kspace, mask=mask)
    with open_volume(tmp_path / "m.h5") as volume:
        assert volume.mask is not None
        np.testing.assert_array_equal(volume.mask, mask.sampling)
        np.testing.assert_array_equal(volume.kspace(0), np.where(mask.sampling, kspace[0], 0))
