"""HDF5 files of other people: never locked, never left, nothing missing read as zeros; every failure is one line.

A domain that uses it depends on h5py.

    with open_hdf5(path) as file:
        kspace = dataset(path, file, "kspace", kinds="c")
        mask = dataset(path, file, "mask", kinds="biuf") if "mask" in names(file) else None
        lines = attribute(path, file, "num_low_frequency", int)
        first = read(path, kspace, 0, "slice 0 of 'kspace'")
"""

import io
import math
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from recurra.core.errors import FileError, nearest, one_line
from recurra.core.files import check_file, writing
from recurra.core.hdf5_damage import check_chunks, check_lengths, try_out

_HOPS = 16
"""Links and virtual datasets that lead from one to the next before a name is said to lead nowhere."""

_SWOLLEN, _SMALL = 200, 2**26
"""Data above this many bytes do not compress by more than this factor unless nothing is in them."""

_COMPRESSIONS = {32000: "LZF", 32001: "Blosc", 32004: "LZ4", 32008: "bitshuffle", 32015: "Zstandard", 32026: "Blosc2"}

_KINDS = {"b": "booleans", "i": "integers", "u": "unsigned integers", "f": "real numbers", "c": "complex numbers"}
_KINDS |= {"S": "text", "V": "records"}

_Value = TypeVar("_Value", int, float, str)


def open_hdf5(path: Path) -> h5py.File:
    """The file, for reading. It is not locked, so that other programs may hold it and read-only disks do.

    Raises:
        OSError: it is missing or may not be read.
        ValueError: it is a folder, pipe or device, no HDF5 file, empty or cut short.
    """
    check_file(path, "an HDF5 file")
    with path.open("rb") as stream:
        if not stream.read(1):
            raise FileError(path, "is empty (0 bytes); expected an HDF5 file")
    try_out(path)
    try:
        return h5py.File(path, "r", locking=False)
    except Exception as error:  # of any type, in a damaged file
        if "locking flag" in str(error):  # this program itself has it open, with locks
            return h5py.File(path, "r")
        if "truncated" in str(error):
            raise FileError(path, "is cut short; the HDF5 file has less data than its header says") from None
        raise FileError(path, "is not an HDF5 file, or its beginning is damaged") from None


def names(where: h5py.Group | h5py.AttributeManager) -> list[str]:
    """Names of what a file or group has, wherever they lead, or of its attributes; of a damaged list, those before."""
    found: list[str] = []
    try:
        found += where
    except Exception:  # of any type, in a damaged file
        return found
    return found


def member(where: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """The group or dataset of a name; None if there is none that can be opened within the file. Nothing is raised.

    For looking around, e.g. which format a file has; `dataset` says why one cannot be used.
    """
    try:
        found = _follow(Path(), where, name, outside=False, hops=0)
    except Exception:  # of any type, in a damaged file
        return None
    return found if isinstance(found, h5py.Group | h5py.Dataset) else None


def dataset(
    path: Path, where: h5py.Group, name: str, *, kinds: str = "", outside: bool = False, hops: int = 0
) -> h5py.Dataset:
    """A dataset whose values are all there, and in this file.

    Args:
        path: the file.
        where: the file, opened, or a group of it.
        name: of the dataset, perhaps with groups: "dataset/xml".
        kinds: letters of the number types that serve: b, i, u, f, c as of numpy; S text of any form, V records.
        outside: whether links, external storage and virtual datasets may lead to other files.
        hops: links that led here.

    Raises:
        FileError: it is missing, a group, a link to nowhere or in a circle or out of the file; it has no values, some
            were never written or their file is missing; it is of another type, or packed in an unknown way.
    """
    title = _title(where, name)
    try:
        found = _follow(path, where, name, outside, hops)
        if not isinstance(found, h5py.Dataset):
            kind = "a group" if isinstance(found, h5py.Group) else "a named type"
            raise FileError(path, f"{title} is {kind}; expected a dataset")
        if found.shape is None:
            raise FileError(path, f"dataset {title} is empty (a null dataspace); expected values")
        _check_kind(path, title, found, kinds)
        if found.size:
            _check_filters(path, title, found)
            if found.is_virtual:
                _check_sources(path, title, found, outside, hops)
            else:
                _check_written(path, title, found, outside)
    except FileError:
        raise
    except Exception as error:  # of any type, in a damaged file
        raise FileError(path, f"dataset {title} cannot be opened; the file is damaged ({one_line(error)})") from None
    return found


def read(path: Path, dataset: Any, selection: Any, what: str) -> NDArray[Any]:
    """A part of a dataset, or of some fields of one.

    Raises:
        FileError: the data cannot be read, or do not fit the memory.
    """
    try:
        return np.asarray(dataset[selection])
    except MemoryError:
        raise FileError(path, f"{what} does not fit the memory of this machine; the file claims too much") from None
    except Exception:  # of any type, in a damaged file
        raise FileError(path, f"{what} cannot be read; the file is cut short or damaged") from None


def attributes(where: h5py.HLObject) -> dict[str, Any]:
    """The attributes that can be read, as numbers, text and lists."""
    found: dict[str, Any] = {}
    for name in _attribute_names(where):
        try:
            found[name] = _plain(where.attrs[name])
        except Exception:  # of any type, in a damaged file; the others are read
            continue
    return found


def _attribute_names(where: h5py.HLObject) -> list[str]:
    try:
        return names(where.attrs)
    except Exception:  # of any type, in a damaged file
        return []


def attribute(path: Path, where: h5py.HLObject, name: str, kind: type[_Value]) -> _Value | None:
    """An attribute that is one value; None if there is none of this name.

    Args:
        path: the file.
        where: the file, opened, or what of it has the attribute.
        name: of the attribute.
        kind: int, float or str; a whole number that is stored as a real one is an int, too.

    Raises:
        FileError: it is a list, NaN or infinite, of another type or cannot be read.
    """
    if name not in _attribute_names(where):
        return None
    expected = {int: "a whole number", float: "a finite number", str: "text"}[kind]
    try:
        value = _plain(where.attrs[name])
    except Exception:  # of any type, in a damaged file
        raise FileError(path, f"attribute {name!r} cannot be read; expected {expected}") from None
    if isinstance(value, list) and len(value) == 1:  # as MATLAB writes a number
        value = value[0]
    number = kind is not str and isinstance(value, (int, float)) and math.isfinite(value)
    if (number and (kind is float or value == int(value))) or (kind is str and isinstance(value, str)):
        return kind(value)
    raise FileError(path, f"attribute {name!r} is {'empty' if value is None else str(value)[:60]}; expected {expected}")


def _plain(value: Any) -> Any:
    """A value of an attribute as a python object."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, h5py.Empty):
        return None
    return _plain(value.tolist()) if isinstance(value, np.ndarray | np.generic) else value


def _title(where: h5py.HLObject, name: str) -> str:
    """How errors call something in a file; h5py has bytes for a name that is no text."""
    try:
        return repr(posixpath.join(where.name or "", name).strip("/"))
    except Exception:  # of any type, in a damaged file
        return repr(name)


def _follow(path: Path, where: h5py.Group, name: str, outside: bool, hops: int) -> Any:
    """What a name leads to, one link after the other: a group, a dataset or a named type."""
    title = _title(where, name)
    if hops > _HOPS:
        raise FileError(path, f"{title} leads in a circle of links; expected a dataset")
    place: Any = where.file if name.startswith("/") else where
    for part in filter(lambda part: part not in ("", "."), name.split("/")):
        if not isinstance(place, h5py.Group) or part not in names(place):
            raise FileError(path, f"no dataset {title}; {_inventory(place, part)}")
        link = place.get(part, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            if not outside:
                raise FileError(path, f"{title} is a link to another file ({link.filename}); {_COPY}")
            if not (path.parent / link.filename).is_file():
                raise FileError(path, f"{title} is a link to {link.filename}, which is not there")
        if isinstance(link, h5py.SoftLink):
            try:
                place = _follow(path, place, link.path, outside, hops + 1)
            except FileError as error:
                if "circle" in error.reason:
                    raise FileError(path, f"{title} leads in a circle of links; expected a dataset") from None
                if error.reason.startswith("no dataset"):
                    raise FileError(path, f"{title} is a link to {link.path!r}, where nothing is") from None
                raise
        else:
            try:
                place = place[part]
            except (KeyError, OSError):
                if not isinstance(link, h5py.ExternalLink):
                    raise
                raise FileError(path, f"{title} is a link to {link.filename}, which lacks {link.path!r}") from None
    return place


_COPY = "nothing outside of the file is read; copy the data into it, e.g. with h5repack"


def _inventory(where: Any, name: str) -> str:
    """What there is in the place of something that is missing."""
    if not isinstance(where, h5py.Group):
        return f"{_title(where, '')} is no group"
    found = names(where)
    holder = "the file" if where.name == "/" else _title(where, "")
    text = ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "")
    close = nearest(name, found) if found else ""
    return f"{holder} has {text or 'nothing'}{close if 'did you mean' in close else ''}"


def _check_kind(path: Path, title: str, found: h5py.Dataset, kinds: str) -> None:
    """Refuse numbers of a type that does not serve."""
    try:
        kind = "S" if h5py.check_string_dtype(found.dtype) else found.dtype.kind
        shown = "text" if kind == "S" else str(found.dtype)
    except (TypeError, ValueError):
        kind, shown = "?", "that has no equivalent here"
    if kind == "?" or (kinds and kind not in kinds):
        numbers = "booleans or numbers" if set("biuf") <= set(kinds) else ""
        expected = numbers or " or ".join(_KINDS[one] for one in kinds) or "numbers"
        raise FileError(path, f"dataset {title} has type {shown}; expected {expected}")


def _check_filters(path: Path, title: str, found: h5py.Dataset) -> None:
    """Refuse what is packed in a way that this installation cannot unpack."""
    layout = found.id.get_create_plist()
    for index in range(layout.get_nfilters()):
        code, _, _, text = layout.get_filter(index)
        if not h5py.h5z.filter_avail(code):
            name = _COMPRESSIONS.get(code) or text.decode("ascii", "replace") or "of unknown name"
            raise FileError(
                path,
                f"dataset {title} is packed by filter {code} ({name}), which this HDF5 library lacks; "
                "unpack it with h5repack -f NONE, or install the package hdf5plugin and set HDF5_PLUGIN_PATH",
            )


def _check_written(path: Path, title: str, found: h5py.Dataset, outside: bool) -> None:
    """Refuse values that nobody wrote, which HDF5 would read as zeros, and those in other files."""
    for name, _, _ in found.external or ():
        if not outside:
            raise FileError(path, f"dataset {title} has its values in another file ({name}); {_COPY}")
        if not (path.parent / name).is_file():
            raise FileError(path, f"dataset {title} has values in {name}, which is not there")
    size, stored = found.size * found.dtype.itemsize, found.id.get_storage_size()
    amounts = f"{size:,} bytes by its shape {found.shape}"
    if not stored:
        raise FileError(path, f"dataset {title} was never written: {amounts}, none stored; write the file again")
    if found.chunks:
        chunks, written = check_chunks(path, found)
        if written < chunks:
            raise FileError(
                path,
                f"dataset {title} was written in part: {written} of {chunks} chunks are there, and the rest would be "
                "read as zeros; write the file again",
            )
    if (size > stored and not found.chunks) or (size > _SMALL and size > _SWOLLEN * stored):
        raise FileError(path, f"dataset {title} claims {amounts}, but {stored:,} are stored; the file is damaged")
    check_lengths(path, found)


def _check_sources(path: Path, title: str, found: h5py.Dataset, outside: bool, hops: int) -> None:
    """Refuse a virtual dataset with sources that are missing or not allowed, or do not make up the whole."""
    covered = 0
    for source in found.virtual_sources():
        covered += source.vspace.get_select_npoints()
        place = path if source.file_name == "." else path.parent / source.file_name
        if place.resolve() == path.resolve():
            dataset(path, found.file, source.dset_name, outside=outside, hops=hops + 1)
        elif not outside:
            raise FileError(path, f"dataset {title} has its values in another file ({source.file_name}); {_COPY}")
        elif not place.is_file():
            raise FileError(path, f"dataset {title} has values in {source.file_name}, which is not there")
        else:
            with open_hdf5(place) as other:
                dataset(place, other, source.dset_name, outside=True, hops=hops + 1)
    if covered < found.size:
        raise FileError(path, f"dataset {title} is put together from parts that give {covered} of {found.size} values")


@contextmanager
def created(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file, made in memory; on the disk once the block ends without an error, and not before.

    When a disk fills up, HDF5 cannot close its file any more and takes the process down with it.

    Raises:
        OSError: it cannot be written; a full disk is named.
    """
    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        yield file
    with writing(path) as part:
        part.write_bytes(made.getbuffer())


def contiguous(
    path: Path, name: str, shape: tuple[int, ...], attributes: Mapping[str, str], dtype: str = "<f4"
) -> BinaryIO:
    """The file, laid out for one dataset and open where its values go, to be written by plain means.

    When a disk fills up, HDF5 cannot close its file any more and takes the process down with it; a plain file just
    reports the error. The same values make the same bytes.

    Args:
        path: of the new file.
        name: of the dataset.
        shape: of the dataset; its values follow in C order.
        attributes: of the file.
        dtype: of the values, as numpy writes it; complex numbers become h5py's compound of `r` and `i`.
    """
    with path.open("wb") as probe:  # whether there is room for what HDF5 writes itself
        probe.write(bytes(2**16))
    with h5py.File(path, "w", locking=False) as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.CONTIGUOUS)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        layout.set_obj_track_times(False)
        file.attrs.update(attributes)
        space = h5py.h5s.create_simple(shape)
        kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
        start = h5py.h5d.create(file.id, name.encode(), kind, space, layout).get_offset()
    stream = path.open("r+b")
    stream.seek(start)
    return stream
