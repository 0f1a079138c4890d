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
from recurra.mri.outputs import origin_of, volume_writer


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


def complex_images() -> np.ndarray:
    angle = np.linspace(-3, 3, 3 * 8 * 6).reshape(3, 8, 6)
    return (images() * np.exp(1j * angle)).astype(np.complex64)


def read_fastmri(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["reconstruction"][()]


def read_nifti(path: Path) -> np.ndarray:
    nibabel = pytest.importorskip("nibabel")
    return np.asarray(nibabel.load(path).dataobj).transpose(2, 0, 1)


@pytest.mark.parametrize(("format", "name"), [("fastmri", "a.h5"), ("nifti", "a.nii"), ("nifti", "a.nii.gz")])
@pytest.mark.parametrize(
    ("part", "dtype", "of"), [("magnitude", "<f4", np.abs), ("phase", "<f4", np.angle), ("complex", "<c8", np.asarray)]
)
def test_the_part_that_is_asked_for(format: Any, name: str, part: Any, dtype: str, of: Any, tmp_path: Path) -> None:
    write_all(tmp_path / name, complex_images(), placed(), format=format, part=part)
    found = (read_fastmri if format == "fastmri" else read_nifti)(tmp_path / name)
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, of(complex_images()))
    if format == "fastmri":
        with h5py.File(tmp_path / name) as file:
            assert file.attrs["part"] == part
    if name == "a.nii":
        assert (tmp_path / name).stat().st_size == 352 + found.nbytes
        assert int.from_bytes((tmp_path / name).read_bytes()[70:72], "little") == (32 if part == "complex" else 16)


@pytest.mark.parametrize(("format", "name"), [("fastmri", "a.h5"), ("nifti", "a.nii")])
def test_a_complex_result_knows_what_it_was_made_from(format: Any, name: str, tmp_path: Path) -> None:
    origin = f"recurra {'a' * 24} {'b' * 24}"
    write_all(tmp_path / name, complex_images(), placed(), format=format, part="complex", origin=origin)
    assert origin_of(tmp_path / name) == (origin, 3)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    assert origin_of(tmp_path / name)[0] is None


def test_complex_hdf5_is_what_h5py_writes(tmp_path: Path) -> None:
    write_fastmri(tmp_path / "a.h5", complex_images(), part="complex")
    write_fastmri(tmp_path / "b.h5", complex_images(), part="complex")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    with h5py.File(tmp_path / "c.h5", "w") as file, h5py.File(tmp_path / "a.h5") as ours:
        file["reconstruction"] = complex_images()
        assert ours["reconstruction"].id.get_type() == file["reconstruction"].id.get_type()


@pytest.mark.parametrize("part", ["complex", "phase"])
@pytest.mark.parametrize("format", ["fastmri", "nifti", "dicom"])
def test_a_magnitude_has_no_phase(part: Any, format: Any, tmp_path: Path) -> None:
    line = "slice 0 is a magnitude; its phase needs complex images$"
    if part == "complex":
        line = "holds no complex images" if format == "dicom" else line.replace("its phase", "its complex")
    with pytest.raises(ValueError, match=line):
        write_all(tmp_path / "a", images(), placed(), format=format, part=part)
    assert not list(tmp_path.iterdir())


def test_complex_dicom_is_refused_with_the_remedy(tmp_path: Path) -> None:
    line = "DICOM holds no complex images; write their magnitude and their phase, one after the other"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        write_dicom(tmp_path / "a", complex_images(), placed(), part="complex")


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


def read_dicom(folder: Path) -> list[Any]:
    pydicom = pytest.importorskip("pydicom")
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def shown(data: Any) -> np.ndarray:
    """What a viewer makes of a slice, from 0 to 1."""
    from pydicom.pixels import apply_rescale, apply_voi_lut

    assert data.VOILUTFunction == "LINEAR_EXACT"
    # pydicom spreads the window over all values that the pixels can have.
    return np.asarray(apply_voi_lut(apply_rescale(data.pixel_array, data), data)) / (65535 * float(data.RescaleSlope))


@pytest.mark.parametrize("scale", [1e-12, 1e-5, 1.0, 1e6])
def test_dicom_slices_share_slope_and_window(scale: float, tmp_path: Path) -> None:
    written = images(4, 60, 50) * np.float32(scale / 1e-5)
    written *= np.array([1, 0.01, 3, 0.5], np.float32)[:, None, None]
    written[2, 0, 0] = 40 * scale  # a hot pixel, which would darken all others
    write_dicom(tmp_path / "a", written, placed(60, 50))
    found = read_dicom(tmp_path / "a")
    for name in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"):
        assert len({str(data[name].value) for data in found}) == 1
    # brightness can be compared, also by a viewer that knows nothing of the slope
    stored = np.stack([data.pixel_array for data in found]).astype(float)
    np.testing.assert_allclose(stored / stored.max(), written / written.max(), atol=0.51 / 65535)
    np.testing.assert_allclose(stored * float(found[0].RescaleSlope), written, atol=0.51 / 65535 * written.max())
    center, width = float(found[0].WindowCenter), float(found[0].WindowWidth)
    step = float(written.max()) / 65535
    np.testing.assert_allclose(center - width / 2, np.percentile(written, 0.5), atol=2 * step)
    np.testing.assert_allclose(center + width / 2, np.percentile(written, 99.5), atol=2 * step, rtol=0.01)
    for data, image in zip(found, written, strict=True):
        assert (data.SmallestImagePixelValue, data.LargestImagePixelValue) == (
            data.pixel_array.min(),
            data.pixel_array.max(),
        )
        np.testing.assert_allclose(shown(data), np.clip((image - center) / width + 0.5, 0, 1), atol=1e-3)


@pytest.mark.parametrize("written", [np.zeros((2, 8, 6)), np.full((2, 8, 6), 3e-6), np.eye(8)[None, :, :6]])
def test_a_window_of_few_values_is_wide_enough(written: np.ndarray, tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", written.astype(np.float32), placed())
    for data, image in zip(read_dicom(tmp_path / "a"), written, strict=True):
        assert float(data.WindowWidth) > 0
        assert np.isfinite(shown(data)).all()
        np.testing.assert_allclose(data.pixel_array * float(data.RescaleSlope), image, atol=1e-5 * written.max())


def test_dicom_phase_in_radians(tmp_path: Path) -> None:
    angle = np.array([-np.pi, -np.pi / 2, 0, 1e-3, np.pi / 2, np.pi])
    written = 1e-6 * np.exp(1j * np.tile(angle, (2, 8, 1))).astype(np.complex64)
    write_dicom(tmp_path / "a", written, placed(), part="phase")
    for data in read_dicom(tmp_path / "a"):
        assert list(data.ImageType) == ["DERIVED", "PRIMARY", "P"]
        assert (data.ComplexImageComponent, data.RescaleType) == ("PHASE", "rad")
        found = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
        # all around the circle, where π and -π are neighbours
        turn = np.abs(np.angle(np.exp(1j * (found - angle))))
        assert turn.max() < np.pi / 65536 + 1e-6
        assert abs(found[0, 2]) < 1e-9
        assert found.min() >= -np.pi - 1e-9
        assert (float(data.WindowCenter), float(data.WindowWidth)) == pytest.approx((0, 2 * np.pi))


@pytest.mark.parametrize("part", ["magnitude", "phase"])
def test_slices_that_are_left_out_have_no_file_and_no_weight(part: Any, tmp_path: Path) -> None:
    with volume_writer(tmp_path / "a", (3, 8, 6), format="dicom", part=part) as writer:
        writer.write(complex_images()[0])
        writer.skip()
        writer.write(complex_images()[2])
    write_dicom(tmp_path / "b", complex_images()[::2], part=part)
    found, whole = read_dicom(tmp_path / "a"), read_dicom(tmp_path / "b")
    assert [data.InstanceNumber for data in found] == [1, 3]
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one.pixel_array, other.pixel_array)
        assert (one.RescaleSlope, one.WindowWidth) == (other.RescaleSlope, other.WindowWidth)
    assert origin_of(tmp_path / "a")[1] == 2
    with volume_writer(tmp_path / "none", (1, 8, 6), format="dicom", part=part) as writer:
        writer.skip()
    assert not list((tmp_path / "none").iterdir())


@pytest.mark.parametrize(("format", "name"), [("fastmri", "a.h5"), ("nifti", "a.nii")])
def test_complex_slices_that_are_left_out_are_nan(format: Any, name: str, tmp_path: Path) -> None:
    origin = f"recurra {'a' * 24} {'b' * 24}"
    with volume_writer(tmp_path / name, (3, 8, 6), format=format, part="complex", origin=origin) as writer:
        writer.write(complex_images()[0])
        writer.skip()
        writer.write(complex_images()[2])
    found = (read_fastmri if format == "fastmri" else read_nifti)(tmp_path / name)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[::2], complex_images()[::2])
    assert origin_of(tmp_path / name)[0] is None  # it is made again by --resume


def test_what_is_known_of_the_scan_is_in_the_dicom_files(tmp_path: Path) -> None:
    facts = {"EchoTime": 4.92, "RepetitionTime": 2000, "FlipAngle": np.float32(15), "MagneticFieldStrength": 2.89362}
    more = {"EchoNumbers": 2, "SeriesNumber": 7, "SeriesDescription": "höhere\\Echos\n", "InversionTime": None}
    write_dicom(tmp_path / "a", images(), placed(), facts=facts | more)
    for data in read_dicom(tmp_path / "a"):
        assert {name: float(data[name].value) for name in facts} == pytest.approx(facts)
        assert (data.EchoNumbers, data.SeriesNumber, data.SeriesDescription) == (2, 7, "höhere_Echos_")
        assert "InversionTime" not in data


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"EchoTimes": 3}, r"no fact of a DICOM image is called 'EchoTimes' \(did you mean EchoTime\?\)"),
        ({"PatientName": "A"}, "no fact of a DICOM image is called 'PatientName'"),
        ({"EchoTime": float("nan")}, "EchoTime must be a number from 0 on; got nan"),
        ({"SeriesNumber": 1.5}, "SeriesNumber must be a whole number from 0 on; got 1.5"),
    ],
)
def test_facts_that_are_none(facts: Any, line: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{line}"):
        write_dicom(tmp_path / "a", images(), placed(), facts=facts)
    assert not list(tmp_path.iterdir())


def test_dicom_identifiers_follow_from_what_was_made(tmp_path: Path) -> None:
    def make(name: str, options: str = "b", scale: int = 1, **about: Any) -> Any:
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / name
        write_dicom(folder, scale * complex_images(), placed(), origin=f"recurra a {options}", **about)
        return read_dicom(folder)[0]

    first, again = make("scan_dicom"), make("scan_dicom")
    assert first == again
    others = [
        make("scan_dicom", part="phase"),
        make("scan_echo2_dicom"),
        make("scan_dicom", facts={"EchoTime": 3}),
        make("scan_dicom", options="c"),
        make("scan_dicom", scale=2),
    ]
    for other in others:  # of the same raw file: one study in one space, but other images
        assert other.StudyInstanceUID == first.StudyInstanceUID
        assert other.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert len({one.SeriesInstanceUID for one in (first, *others)}) == 6
    assert len({one.SOPInstanceUID for one in (first, *others)}) == 6


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
