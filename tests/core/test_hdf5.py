"""HDF5 files of other people: nothing outside of the file, nothing that was never written, every failure one line."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from recurra.core.errors import FileError
from recurra.core.hdf5 import attribute, attributes, dataset, member, names, open_hdf5, read


def _virtual(file: h5py.File, name: str, source: h5py.VirtualSource, rows: int = 3) -> None:
    layout = h5py.VirtualLayout((rows, 2), "f4")
    layout[:3] = source
    file.create_virtual_dataset(name, layout)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with everything that can be wrong with a dataset, beside one that is right."""
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["values"] = np.ones((3, 2), np.float32)
    (tmp_path / "values.raw").write_bytes(bytes(24))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["values"] = np.arange(6, dtype=np.float32).reshape(3, 2)
        file["inner/values"] = np.ones(3)
        file["link"] = h5py.SoftLink("/inner/values")
        file["nowhere"] = h5py.SoftLink("/lost/values")
        file["round"], file["about"] = h5py.SoftLink("/about"), h5py.SoftLink("/round")
        file["away"] = h5py.ExternalLink("other.h5", "values")
        file["far"] = h5py.ExternalLink("gone.h5", "values")
        file["null"] = h5py.Empty("f4")
        file["type"] = np.dtype("f4")
        file["text"] = "words"
        file.create_dataset("unwritten", (5, 2), "f4")
        file.create_dataset("claims", (2**20, 2**20), "f8", chunks=(64, 64))
        file.create_dataset("partly", (4, 2), "f4", chunks=(1, 2))[2] = 1
        file.create_dataset("swollen", (2**25,), "f4", chunks=(2**20,), compression="gzip")[:] = 0
        file.create_dataset("outside", (3, 2), "f4", external=[("values.raw", 0, 24)])
        _virtual(file, "virtual", h5py.VirtualSource(file["values"]))
        _virtual(file, "short", h5py.VirtualSource(file["values"]), rows=4)
        _virtual(file, "itself", h5py.VirtualSource(".", "itself", (3, 2)))
        _virtual(file, "elsewhere", h5py.VirtualSource("other.h5", "values", (3, 2)))
        _virtual(file, "lost", h5py.VirtualSource("gone.h5", "values", (3, 2)))
    return tmp_path / "a.h5"


def _complaint(path: Path, name: str, **options: object) -> str:
    with open_hdf5(path) as file, pytest.raises(FileError) as caught:
        dataset(path, file, name, **options)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_datasets_that_are_whole_are_given(path: Path) -> None:
    with open_hdf5(path) as file:
        for name in ("values", "virtual"):
            found = dataset(path, file, name, kinds="f")
            np.testing.assert_array_equal(read(path, found, (), name), np.arange(6).reshape(3, 2))
        for name in ("link", "inner/values", "/inner/values"):
            assert dataset(path, file, name).shape == (3,)
        assert dataset(path, file["inner"], "values").shape == (3,)
        assert dataset(path, file, "text", kinds="S")[()] == b"words"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("inner", "'inner' is a group; expected a dataset"),
        ("type", "'type' is a named type; expected a dataset"),
        ("nowhere", "'nowhere' is a link to '/lost/values', where nothing is"),
        ("round", "'round' leads in a circle of links; expected a dataset"),
        ("itself", "'itself' leads in a circle of links; expected a dataset"),
        ("null", "dataset 'null' is empty (a null dataspace); expected values"),
        ("inner/value", "no dataset 'inner/value'; 'inner' has values (did you mean values?)"),
        ("values/x", "no dataset 'values/x'; 'values' is no group"),
        ("partly", "dataset 'partly' was written in part: 1 of 4 chunks are there"),
        ("short", "dataset 'short' is put together from parts that give 6 of 8 values"),
        ("unwritten", "dataset 'unwritten' was never written: 40 bytes by its shape (5, 2), none stored"),
        ("claims", "dataset 'claims' was never written: 8,796,093,022,208 bytes"),
        ("swollen", "dataset 'swollen' claims 134,217,728 bytes"),
        ("away", "'away' is a link to another file (other.h5); nothing outside of the file is read"),
        ("outside", "dataset 'outside' has its values in another file (values.raw); nothing outside"),
        ("elsewhere", "dataset 'elsewhere' has its values in another file (other.h5); nothing outside"),
    ],
)
def test_what_cannot_serve_is_named(path: Path, name: str, said: str) -> None:
    assert _complaint(path, name).startswith(said)


def test_other_files_are_read_when_asked_for(path: Path) -> None:
    with open_hdf5(path) as file:
        for name in ("away", "outside", "elsewhere"):
            assert dataset(path, file, name, outside=True).shape == (3, 2)
    assert _complaint(path, "far", outside=True) == "'far' is a link to gone.h5, which is not there"
    assert _complaint(path, "lost", outside=True) == "dataset 'lost' has values in gone.h5, which is not there"
    (path.parent / "values.raw").unlink()
    assert _complaint(path, "outside", outside=True) == "dataset 'outside' has values in values.raw, which is not there"


def test_numbers_of_another_type_are_named(path: Path) -> None:
    said = "dataset 'values' has type float32; expected"
    assert _complaint(path, "values", kinds="c") == f"{said} complex numbers"
    assert _complaint(path, "values", kinds="SV") == f"{said} text or records"
    assert _complaint(path, "text", kinds="biuf") == "dataset 'text' has type text; expected booleans or numbers"


def test_looking_around_raises_nothing(path: Path) -> None:
    with open_hdf5(path) as file:
        found = {name: member(file, name) for name in names(file)}
    assert {"nowhere", "round", "away", "far"} <= {name for name, thing in found.items() if thing is None}
    assert found["link"] is not None


def test_an_unknown_packing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_chunk((2,))
        layout.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
        made = h5py.h5d.create(file.id, b"packed", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((2,)), layout)
        made.write_direct_chunk((0,), bytes(8))
    assert _complaint(path, "packed").startswith("dataset 'packed' is packed by filter 32001 (Blosc), which this HDF5")


def test_attributes_are_one_value_or_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    given = {"n": 3, "listed": [3.0], "half": 0.5, "two": [1, 2], "inf": np.inf, "word": "a", "none": h5py.Empty("f4")}
    with h5py.File(path, "w") as file:
        file.attrs.update(given)
    with open_hdf5(path) as file:
        assert attribute(path, file, "n", int) == attribute(path, file, "listed", int) == 3
        assert attribute(path, file, "half", float) == 0.5
        assert attribute(path, file, "word", str) == "a"
        assert attribute(path, file, "missing", int) is None
        for name, kind in (("half", int), ("two", int), ("inf", float), ("word", int), ("n", str), ("none", str)):
            with pytest.raises(FileError, match=rf"a\.h5: attribute '{name}' is .*; expected"):
                attribute(path, file, name, kind)
        assert attributes(file).keys() == given.keys()


def test_no_pipe_or_folder_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    for name, said in (("", "a folder"), ("pipe.h5", "a named pipe"), ("/dev/zero", "a device")):
        with pytest.raises(FileError, match=f"is {said}; expected an HDF5 file"):
            open_hdf5(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_hdf5(tmp_path / "missing.h5")


def test_a_reading_that_fails_is_one_line(path: Path) -> None:
    class Broken:
        def __getitem__(self, _: object) -> None:
            raise MemoryError

    with pytest.raises(FileError, match=r"a\.h5: the table does not fit the memory"):
        read(path, Broken(), (), "the table")
    with open_hdf5(path) as file, pytest.raises(FileError, match=r"a\.h5: a value cannot be read"):
        read(path, file["values"], 7, "a value")


def test_lengths_that_the_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    rows = np.zeros(80_000, np.dtype([("number", "<i4"), ("values", h5py.vlen_dtype(np.float32))]))
    for row in rows[:9]:
        row["values"] = np.arange(50, dtype=np.float32)
    for row in rows[9:]:
        row["values"] = np.zeros(0, np.float32)
    with h5py.File(path, "w") as file:
        made = file.create_dataset("rows", data=rows, chunks=(80_000,))
        _, place = made.id.read_direct_chunk((0,))
        start = made.id.get_chunk_info(0).byte_offset
    with open_hdf5(path) as file:
        assert len(read(path, dataset(path, file, "rows").fields("values"), 3, "a row")) == 50
    data = bytearray(path.read_bytes())
    assert place[4:8] == (50).to_bytes(4, "little"), "the length of the first row"
    data[start + 4 : start + 8] = (2**30).to_bytes(4, "little")
    path.write_bytes(data)
    assert "texts or lists claim 4,294," in _complaint(path, "rows")


def test_chunks_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        made = file.create_dataset("values", data=np.ones((4, 8), np.float32), chunks=(1, 8))
        place = made.id.get_chunk_info(2).byte_offset.to_bytes(8, "little")
    data = path.read_bytes()
    assert data.count(place) == 1
    path.write_bytes(data.replace(place, (2**40).to_bytes(8, "little")))
    assert "32 bytes at 1099511627776 are no chunk" in _complaint(path, "values")
