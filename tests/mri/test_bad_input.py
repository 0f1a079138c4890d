"""Files that cannot be read are refused in one line that names the file and what to do."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from recurra.mri.data import open_volume
from recurra.mri.data.fastmri import FastMRIVolume
from recurra.mri.data.sample import write_volume

KSPACE = np.ones((2, 3, 16, 12), np.complex64)


def write(path: Path, **datasets: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


def refuse(path: Path, line: str, **options: Any) -> None:
    """Opening the file, or reading its slices, fails with this line after the file's name."""

    def read() -> None:
        with open_volume(path, **options) as volume:
            for index in range(len(volume)):
                volume.kspace(index)
                volume.target(index)

    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {line}')}$") as caught:
        read()
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.h5"):
        open_volume(tmp_path / "no.h5")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.h5").touch()
    refuse(tmp_path / "a.h5", "is empty (0 bytes); expected an HDF5 file")


def test_a_file_that_is_no_hdf5(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"not k-space at all " * 100)
    refuse(tmp_path / "a.h5", "is not an HDF5 file, or its beginning is damaged")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_cut_short(share: float, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_volume(path, np.ones((4, 3, 32, 32), np.complex64))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refuse(path, "is cut short; the HDF5 file has less data than its header says")


def test_a_damaged_slice(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("kspace", data=KSPACE, chunks=(1, 3, 16, 12), compression="gzip")
        start = data.id.get_chunk_info(1).byte_offset
    with path.open("r+b") as stream:
        stream.seek(start)
        stream.write(b"\xff" * 16)
    with open_volume(path) as volume:
        assert volume.kspace(0).all()
    refuse(path, "slice 1 of 'kspace' cannot be read; the file is cut short or damaged")


@pytest.mark.parametrize(
    ("datasets", "line"),
    [
        ({}, "no dataset 'kspace'; the file has nothing"),
        ({"image": np.zeros(3), "mask": np.ones(3)}, "no dataset 'kspace'; the file has image, mask"),
        ({"kspace/a": np.zeros(3)}, "'kspace' is a group; expected a dataset"),
        (
            {"kspace": KSPACE[:, 0]},
            "dataset 'kspace' has shape (2, 16, 12); expected (slice, coil, height, width). "
            "For single-coil files pass --coils 1; for another order name the axes, such as --axes coil,height,width",
        ),
        ({"kspace": KSPACE[0, 0]}, "dataset 'kspace' has shape (16, 12); expected (slice, coil, height, width)"),
        (
            {"kspace": KSPACE[None]},
            "dataset 'kspace' has shape (1, 2, 3, 16, 12); expected (slice, coil, height, width); for another order "
            "name the axes, such as --axes coil,height,width",
        ),
        ({"kspace": np.ones((2, 16, 12), np.int16)}, "dataset 'kspace' has type int16; expected complex numbers"),
        ({"kspace": np.ones((2, 3, 16, 5))}, "dataset 'kspace' has type float64; expected complex numbers"),
        ({"kspace": [b"text"]}, "dataset 'kspace' has type text; expected complex numbers"),
        (
            {"kspace": KSPACE[:0]},
            "holds no k-space, its shape is (0, 3, 16, 12); expected (slice, coil, height, width)",
        ),
        (
            {"kspace": KSPACE, "mask": np.ones(13)},
            "dataset 'mask' has shape (13,); k-space of 16 x 12 needs (12,) or (16, 12)",
        ),
        (
            {"kspace": KSPACE, "mask": np.ones((12, 16))},
            "dataset 'mask' has shape (12, 16); k-space of 16 x 12 needs (12,) or (16, 12)",
        ),
        (
            {"kspace": KSPACE, "mask": np.zeros(12, bool)},
            "dataset 'mask' keeps no sample; expected at least one that is not zero",
        ),
        (
            {"kspace": KSPACE, "mask": np.full(12, np.nan)},
            "dataset 'mask' has NaN or infinite values; expected 0 and 1",
        ),
        (
            {"kspace": KSPACE, "mask": np.ones(12, complex)},
            "dataset 'mask' has type complex128; expected booleans or numbers",
        ),
        (
            {"kspace": KSPACE, "ismrmrd_header": b"<no xml"},
            "the ISMRMRD header is not well-formed XML: unclosed token: line 1, column 0",
        ),
        (
            {"kspace": KSPACE, "ismrmrd_header": b"<ismrmrdHeader/>"},
            "the ISMRMRD header has no encoding; expected encodedSpace and reconSpace",
        ),
        (
            {"kspace": KSPACE, "reconstruction_rss": np.zeros((5, 8, 8))},
            "dataset 'reconstruction_rss' has shape (5, 8, 8); expected (2, rows, columns)",
        ),
    ],
)
def test_what_a_fastmri_file_may_lack(datasets: dict[str, Any], line: str, tmp_path: Path) -> None:
    refuse(write(tmp_path / "knee.h5", **datasets), line)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1j * np.inf])
def test_samples_that_are_no_numbers_are_named_by_slice(value: complex, tmp_path: Path) -> None:
    kspace = KSPACE.copy()
    kspace[1, 2, 3, 4:6] = value
    path = write(tmp_path / "a.h5", kspace=kspace)
    with open_volume(path) as volume:
        assert volume.kspace(0).all()
    refuse(path, "slice 1 has 2 samples that are NaN or infinite; expected numbers")


def test_another_number_of_coils(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", kspace=KSPACE)
    refuse(path, "dataset 'kspace' has 3 coils; expected 1 as given by --coils", coils=1)
    path = write(tmp_path / "b.h5", kspace=np.ones((2, 16, 12, 6), np.float32))
    refuse(path, "dataset 'kspace' has 3 coils; expected 4 as given by --coils", coils=4)


def test_a_file_is_given_back_when_it_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", image=np.zeros(3))
    refuse(path, "no dataset 'kspace'; the file has image")
    with h5py.File(path, "r+"):
        pass


def test_an_entity_bomb_in_the_header_is_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)
    )
    path = write(tmp_path / "a.h5", kspace=KSPACE, ismrmrd_header=f"{bomb}]><x>&j;</x>".encode())
    with pytest.raises(ValueError, match="the ISMRMRD header"):
        open_volume(path)


class TestISMRMRD:
    def table(self, path: Path, change: Callable[[Any], None]) -> Path:
        """A raw file of ten lines with its acquisition headers changed."""
        formats = _formats()
        kspace = np.ones((2, 12, 10), np.complex64)
        path = formats.write_raw(path, formats.lines_of(kspace), (12, 10))
        with h5py.File(path, "r+") as file:
            rows = file["dataset/data"][()]
            change(rows["head"])
            file["dataset/data"][()] = rows
        return path

    def refuse(self, tmp_path: Path, change: Callable[[Any], None], line: str, **options: Any) -> None:
        refuse(self.table(tmp_path / "r.h5", change), line, **options)

    def test_no_image_lines(self, tmp_path: Path) -> None:
        def noise(head: Any) -> None:
            head["flags"] = 1 << 18

        self.refuse(tmp_path, noise, "has no image lines; expected Cartesian readouts")

    def test_three_dimensions(self, tmp_path: Path) -> None:
        def partitions(head: Any) -> None:
            head["idx"]["kspace_encode_step_2"] = np.arange(10) % 4

        self.refuse(tmp_path, partitions, "is a 3-D scan of 4 partitions; only 2-D slices can be read")

    def test_a_step_outside_of_the_matrix(self, tmp_path: Path) -> None:
        def outside(head: Any) -> None:
            head["idx"]["kspace_encode_step_1"] = np.arange(10) + 3

        self.refuse(tmp_path, outside, "phase encoding steps 3 to 12 do not fit a matrix of 10 columns with centre 5")

    def test_slices_that_are_sampled_differently(self, tmp_path: Path) -> None:
        def second(head: Any) -> None:
            head["idx"]["slice"] = np.arange(10) > 6

        with open_volume(self.table(tmp_path / "r.h5", second)) as volume:
            lines = [volume.kspace(index).any((0, 1)).sum() for index in range(2)]
        assert lines == [7, 3]

    def test_coils(self, tmp_path: Path) -> None:
        self.refuse(tmp_path, lambda _: None, "has 2 coils; expected 8 as given by --coils", coils=8)

    def test_samples_that_do_not_fill_the_coils(self, tmp_path: Path) -> None:
        def odd(head: Any) -> None:
            head["active_channels"] = 5

        self.refuse(tmp_path, odd, "an acquisition has 24 samples for 5 coils; the file is damaged")

    def test_a_trajectory_that_is_not_cartesian(self, tmp_path: Path) -> None:
        path = self.table(tmp_path / "r.h5", lambda _: None)
        with h5py.File(path, "r+") as file:
            text = file["dataset/xml"][0].replace(b">cartesian<", b">spiral<")
            file["dataset/xml"][0] = text
        refuse(path, "has a spiral trajectory; expected cartesian")

    def test_a_table_of_something_else(self, tmp_path: Path) -> None:
        path = write(
            tmp_path / "r.h5",
            **{"dataset/data": np.zeros(3), "dataset/xml": [_formats().fastmri_header((12, 10), (12, 10), 5, 9)]},
        )
        refuse(path, "dataset 'data' is not a table of acquisitions (head, traj, data)")


class TestTwix:
    def test_a_missing_package_is_one_sentence(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a.dat").write_bytes(b"\0" * 100)
        monkeypatch.setitem(sys.modules, "twixtools", None)
        line = "Siemens raw data needs the package twixtools; install it with: pip install 'recurra-mri[raw]'"
        refuse(tmp_path / "a.dat", line)

    @pytest.mark.parametrize("content", [b"x" * 5000, b"\0" * 300])
    def test_something_else(self, content: bytes, tmp_path: Path) -> None:
        pytest.importorskip("twixtools")
        (tmp_path / "a.dat").write_bytes(content)
        refuse(tmp_path / "a.dat", "is not Siemens raw data, or is cut short or damaged")

    def test_an_empty_file(self, tmp_path: Path) -> None:
        pytest.importorskip("twixtools")
        (tmp_path / "a.dat").touch()
        refuse(tmp_path / "a.dat", "is empty (0 bytes); expected Siemens raw data")


def test_hdf5_under_another_name_is_read_all_the_same(tmp_path: Path) -> None:
    with open_volume(write(tmp_path / "a.dat", kspace=KSPACE)) as volume:
        assert isinstance(volume, FastMRIVolume)


def _formats() -> Any:
    """The neighbouring test file, whose writer of raw files serves here too."""
    import importlib.util

    name = "recurra_test_formats"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("test_formats.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
