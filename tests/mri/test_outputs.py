"""Results on disk: every format read back by its own library, and nothing half written."""

import errno
import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.mri.data.header import affine, cropped_affine
from recurra.mri.outputs import volume_writer


def images(slices: int = 3, rows: int = 8, columns: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.gamma(2.0, 1e-5, (slices, rows, columns)).astype(np.float32)


def placed(rows: int = 8, columns: int = 6) -> np.ndarray:
    """An oblique slice."""
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    return affine((rows, columns), (1.25, 0.75, 4.0), directions=turn, center=np.array([3.0, -20.0, 11.0]))


def write_all(path: Path, written: np.ndarray, place: np.ndarray | None = None, **options: Any) -> None:
    with volume_writer(path, written.shape, affine=place, **options) as writer:
        for image in written:
            writer.write(image)


write_fastmri = write_all
write_nifti = partial(write_all, format="nifti")
write_dicom = partial(write_all, format="dicom")


@given(slices=st.integers(1, 3), rows=st.integers(1, 9), columns=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_fastmri_round_trip(slices: int, rows: int, columns: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("out") / "file1.h5"
    written = images(slices, rows, columns)
    write_fastmri(path, written)
    with h5py.File(path) as file:
        assert list(file) == ["reconstruction"]
        assert file["reconstruction"].dtype == np.float32
        np.testing.assert_array_equal(file["reconstruction"], written)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_round_trip(name: str, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    write_nifti(tmp_path / name, images(), placed())
    found = nibabel.load(tmp_path / name)
    np.testing.assert_array_equal(found.get_fdata().transpose(2, 0, 1), images())
    np.testing.assert_allclose(found.affine, placed(), atol=1e-4)
    np.testing.assert_allclose(found.header.get_zooms(), (1.25, 0.75, 4.0), rtol=1e-5)
    assert found.get_data_dtype() == np.float32
    np.testing.assert_allclose(found.get_qform(), placed(), atol=1e-3)


def test_the_phase_is_written_on_request(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    angle = np.linspace(-3, 3, 3 * 8 * 6).reshape(3, 8, 6)
    write_nifti(tmp_path / "a.nii", (images() * np.exp(1j * angle)).astype(np.complex64), placed(), part="phase")
    np.testing.assert_allclose(nibabel.load(tmp_path / "a.nii").get_fdata().transpose(2, 0, 1), angle, atol=1e-5)


def test_dicom_round_trip(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    write_dicom(tmp_path / "series", images(), placed())
    files = sorted((tmp_path / "series").iterdir())
    assert [path.name for path in files] == ["slice_0001.dcm", "slice_0002.dcm", "slice_0003.dcm"]
    found = [pydicom.dcmread(path) for path in files]
    for number, (data, image) in enumerate(zip(found, images(), strict=True)):
        slope = float(data.RescaleSlope)
        np.testing.assert_allclose(data.pixel_array * slope, image, atol=slope * 0.51)
        # the first pixel's place, from left-posterior-superior to the affine's frame
        corner = np.array(data.ImagePositionPatient, float) * [-1, -1, 1]
        np.testing.assert_allclose(corner, (placed() @ [0, 0, number, 1])[:3], atol=1e-4)
        along_columns = np.array(data.ImageOrientationPatient[:3], float) * [-1, -1, 1] * float(data.PixelSpacing[1])
        np.testing.assert_allclose(along_columns, placed()[:3, 1], atol=1e-4)
        assert str(data.PatientName) == ""
    assert len({data.SeriesInstanceUID for data in found}) == 1
    assert len({data.SOPInstanceUID for data in found}) == 3


def test_a_crop_stays_where_it_was() -> None:
    full = placed(20, 15)
    crop = cropped_affine(full, (20, 15), (8, 6))
    np.testing.assert_allclose(crop @ [0, 0, 2, 1], full @ [6, 4, 2, 1])


@pytest.mark.parametrize("format", ["fastmri", "nifti", "dicom"])
@pytest.mark.parametrize(
    ("second", "line"),
    [
        (np.zeros((8, 7)), r"slice 1 has shape \(8, 7\); expected \(8, 6\)$"),
        (np.full((8, 6), np.nan), "slice 1 of the reconstruction has NaN or infinite values$"),
        (None, "1 of 3 slices were written$"),
    ],
)
def test_a_failure_leaves_nothing_behind(format: Any, second: Any, line: str, tmp_path: Path) -> None:
    def write() -> None:
        with volume_writer(tmp_path / "out.h5", (3, 8, 6), format=format) as writer:
            writer.write(images()[0])
            if second is not None:
                writer.write(second)

    with pytest.raises(ValueError, match=line):
        write()
    assert not list(tmp_path.iterdir())


def test_what_was_there_before_survives_a_failure(tmp_path: Path) -> None:
    write_fastmri(tmp_path / "out.h5", images())

    def write() -> None:
        with volume_writer(tmp_path / "out.h5", (3, 8, 6)) as writer:
            writer.write(images()[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["reconstruction"], images())
    assert len(list(tmp_path.iterdir())) == 1


class TestFullDisk:
    @pytest.fixture
    def small(self, tmp_path: Path) -> Any:
        """A disk of 1 MiB, where one may be mounted."""
        place = tmp_path / "small"
        place.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("no file system can be mounted here")
        yield place
        subprocess.run(["umount", str(place)], check=True)

    @pytest.mark.parametrize("filled", [0, 2**20 - 4096, 2**20])
    @pytest.mark.parametrize("format", ["fastmri", "nifti", "dicom"])
    def test_it_is_named_and_nothing_is_left(self, filled: int, format: Any, small: Path) -> None:
        (small / "other").write_bytes(bytes(filled))

        def write() -> None:
            with volume_writer(small / "out", (8, 256, 256), format=format) as writer:
                for image in images(8, 256, 256):
                    writer.write(image)

        with pytest.raises(OSError, match="no space left on disk") as caught:
            write()
        assert caught.value.errno == errno.ENOSPC
        assert [path.name for path in small.iterdir()] == ["other"]

    def test_without_a_small_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("recurra.mri.outputs.FastMRIWriter._write", full)
        with pytest.raises(OSError, match="no space left on disk"):
            write_fastmri(tmp_path / "out.h5", images())
        assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    line = "writing NIfTI needs the package nibabel; install it with: pip install 'recurra-mri[nifti]'"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        write_nifti(tmp_path / "a.nii", images(), placed())
    assert not list(tmp_path.iterdir())
