"""The formats that the MRI domain reads, with good files of them and the damage that each can have."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from mutants import Format

from recurra.core.hdf5 import attribute, attributes, dataset, member, names, open_hdf5, read
from recurra.mri.data import open_volume
from recurra.mri.data.header import write_header
from recurra.mri.data.maps import MapsFile
from recurra.mri.data.sample import write_volume

SHAPE = (2, 3, 20, 14)
_DRAW = np.random.default_rng(0)
_KSPACE = (_DRAW.normal(size=SHAPE) + 1j * _DRAW.normal(size=SHAPE)).astype(np.complex64)


def _read(path: Path) -> None:
    """All that a verb does with a file before it computes."""
    with open_volume(path) as volume:
        for index in range(min(len(volume), 2)):
            volume.kspace(index)
            volume.target(index)
            volume.slice(index)


def _read_plainly(path: Path) -> None:
    """All datasets and attributes, by core's means alone."""
    with open_hdf5(path) as file:
        attributes(file)
        for name in ("max", "acquisition"):
            attribute(path, file, name, float if name == "max" else str)
        for name in (*names(file), "kspace"):
            member(file, name)
            read(path, dataset(path, file, name), (), name)


def _maps(path: Path) -> None:
    MapsFile(str(path), SHAPE)(1)


def _calgary(path: Path) -> None:
    parts = np.stack([_KSPACE.real, _KSPACE.imag], -1).transpose(0, 2, 3, 1, 4).reshape(2, 20, 14, 6)
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", data=parts.astype(np.float32), chunks=(1, 20, 14, 6), compression="gzip")


def _ismrmrd(path: Path) -> None:
    import ismrmrd

    path.unlink(missing_ok=True)
    fov = (400.0, 280.0, 5.0)
    header = write_header((20, 14, 1), (10, 14, 1), encoded_fov=fov, recon_fov=fov, limits=(7, 13), coils=3)
    with ismrmrd.Dataset(str(path), create_if_needed=True) as data:
        data.write_xml_header(header.encode())
        for step in range(14):
            line = ismrmrd.Acquisition.from_array(np.ascontiguousarray(_KSPACE[0, :, :, step]))
            line.idx.kspace_encode_step_1, line.center_sample = step, 10
            data.append_acquisition(line)


def _twix(path: Path) -> None:
    import twixtools
    from twixtools.mdb import Mdb_local

    protocol = {"sKSpace.ucDimension": 2, "sKSpace.lPhaseEncodingLines": 14, "sKSpace.lBaseResolution": 10}
    protocol["sSliceArray.lSize"] = 1
    first = "sSliceArray.asSlice[0]"
    protocol |= {f"{first}.dReadoutFOV": 200, f"{first}.dPhaseFOV": 280, f"{first}.dThickness": 5}
    protocol |= {f"{first}.sNormal.dTra": 1}
    lines = "".join(f"{name} = {value}\n" for name, value in protocol.items())
    texts = {
        "MeasYaps": f"### ASCCONV BEGIN ###\n{lines} \n ### ASCCONV END ###",
        "Config": '<ParamString."chronSliceIndices">  { "0 - -"  }\n',
        "Meas": '<ParamString."tPatientPosition">  { "HFS"  }\n',
        "Dicom": '<ParamDouble."flReadoutOSFactor">  { 2.0  }\n',
    }
    named = b"".join(f"{name}\0".encode() + struct.pack("<I", len(t)) + t.encode() for name, t in texts.items())
    size = -(-(8 + len(named)) // 32) * 32
    header = np.frombuffer((struct.pack("<II", size, len(texts)) + named).ljust(size, b"\0"), np.uint8)
    readouts = []
    for step in range(14):
        line = Mdb_local(np.ascontiguousarray(_KSPACE[0, :, :, step]))
        line.mdh.Counter.Lin, line.mdh.CenterCol, line.mdh.CenterLin = step, 10, 7
        line.mdh.SliceData.Quaternion[0] = 1.0
        readouts.append(line)
    end = Mdb_local()
    end.add_flag("ACQEND")
    path.unlink(missing_ok=True)
    twixtools.write_twix([{"hdr_str": header, "mdb": [*readouts, end]}], str(path))


def _write_maps(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["maps"] = _KSPACE


def _edit(change: Callable[[h5py.File], object]) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return edit


def _put(name: str, value: Any) -> Callable[[Path], object]:
    """An edit that puts something in the place of a dataset."""

    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = value

    return _edit(change)


def _made(name: str, make: Callable[[h5py.File], object]) -> Callable[[Path], object]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        make(file)

    return _edit(change)


def _virtual(name: str, shape: tuple[int, ...], source: str, dataset: str) -> Callable[[h5py.File], object]:
    def make(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(shape, "c8")
        layout[...] = h5py.VirtualSource(source, dataset, shape)
        file.create_virtual_dataset(name, layout)

    return make


def _swollen(file: h5py.File, name: str) -> None:
    """A gigabyte of zeros in a megabyte."""
    made = file.create_dataset(name, (2**27,), "c8", chunks=(2**24,), compression="gzip", compression_opts=1)
    block = zlib.compress(bytes(2**27), 1)
    for start in range(0, 2**27, 2**24):
        made.id.write_direct_chunk((start,), block)


def _of_dataset(name: str, shape: tuple[int, ...] = SHAPE) -> dict[str, Callable[[Path], object]]:
    """What may stand where a dataset of numbers should."""
    never: dict[str, Any] = {"chunks": tuple(min(n, 4) for n in shape)}
    return {
        f"{name}: missing": _made(name, lambda file: None),
        f"{name}: a group": _made(name, lambda file: file.create_group(name)),
        f"{name}: null": _put(name, h5py.Empty("c8")),
        f"{name}: text": _put(name, "words"),
        f"{name}: texts": _put(name, ["a", "b"]),
        f"{name}: one number": _put(name, 3.5),
        f"{name}: no number": _put(name, np.zeros((0, *shape[1:]), np.complex64)),
        f"{name}: NaN": _put(name, np.full(shape, np.nan, np.complex64)),
        f"{name}: references": _made(name, lambda file: file.create_dataset(name, shape, h5py.ref_dtype)),
        f"{name}: a type": _put(name, np.dtype("f4")),
        f"{name}: a link to nowhere": _put(name, h5py.SoftLink("/lost")),
        f"{name}: a link to itself": _put(name, h5py.SoftLink(f"/{name}")),
        f"{name}: a link out": _put(name, h5py.ExternalLink("/etc/hostname", "x")),
        f"{name}: stored elsewhere": _made(
            name, lambda file: file.create_dataset(name, shape, "c8", external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)])
        ),
        f"{name}: virtual, lost": _made(name, _virtual(name, shape, "lost.h5", "x")),
        f"{name}: virtual, itself": _made(name, _virtual(name, shape, ".", name)),
        f"{name}: never written": _made(name, lambda file: file.create_dataset(name, shape, "c8", **never)),
        f"{name}: of petabytes": _made(
            name,
            lambda file: file.create_dataset(
                name, (*shape[:-2], 2**24, 2**24), "c8", chunks=(*[1] * (len(shape) - 2), 64, 64)
            ),
        ),
        f"{name}: swollen": _made(name, lambda file: _swollen(file, name)),
    }


def _attribute(name: str, value: Any) -> Callable[[Path], object]:
    return _edit(lambda file: file.attrs.__setitem__(name, value))


def _header(old: bytes, new: bytes) -> Callable[[Path], object]:
    def change(file: h5py.File) -> None:
        name = "ismrmrd_header" if "ismrmrd_header" in file else "dataset/xml"
        text = np.ravel(file[name][()])[0]
        assert old in text
        del file[name]
        file[name] = text.replace(old, new)

    return _edit(change)


_HEADERS = {
    "header: no matrix": _header(b"<x>20</x>", b"<x>0</x>"),
    "header: huge matrix": _header(b"<x>20</x>", b"<x>99999999999</x>"),
    "header: negative matrix": _header(b"<y>14</y>", b"<y>-14</y>"),
    "header: NaN": _header(b"<fieldOfView_mm><x>", b"<fieldOfView_mm><x>nan"),
    "header: limits": _header(b"<center>", b"<center>99999"),
    "header: encoding": _header(b"utf-8", b"elvish"),
    "header: nested": _header(b"<encoding>", b"<encoding>" + b"<a>" * 100_000),
    "header: entities": _header(b"?>", b'?><!DOCTYPE a [<!ENTITY b "c">]>'),
}

MRI = (
    Format("plain.h5", lambda path: write_volume(path, _KSPACE), _read_plainly, _of_dataset("kspace")),
    Format(
        "fastmri.h5",
        lambda path: write_volume(path, _KSPACE),
        _read,
        _of_dataset("kspace")
        | _of_dataset("reconstruction_rss", (2, 14, 14))
        | {f"mask: {name.partition(': ')[2]}": edit for name, edit in _of_dataset("mask", (14,)).items()}
        | {f"header: {name.partition(': ')[2]}": edit for name, edit in _of_dataset("ismrmrd_header", (1,)).items()}
        | _HEADERS
        | {
            "a link to nowhere beside it": _put("aaa", h5py.SoftLink("/lost")),
            "lines: a list": _attribute("num_low_frequency", [3, 4]),
            "lines: infinite": _attribute("num_low_frequency", np.inf),
            "lines: text": _attribute("num_low_frequency", "many"),
            "lines: null": _attribute("num_low_frequency", h5py.Empty("i8")),
        },
    ),
    Format("calgary.h5", _calgary, _read, _of_dataset("kspace", (2, 20, 14, 6))),
    Format(
        "ismrmrd.h5",
        _ismrmrd,
        _read,
        _of_dataset("dataset/data", (14,)) | _of_dataset("dataset/xml", (1,)) | _HEADERS,
    ),
    Format("twix.dat", _twix, _read),
    Format("maps.h5", _write_maps, _maps, _of_dataset("maps")),
)
