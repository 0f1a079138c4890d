"""What of a damaged HDF5 file would crash, hang or fill the memory of whoever reads it: found out before it is read.

The HDF5 library believes what a file says of itself. Of some thousand files with a few bytes changed, one in five
hundred ended the process that read it, by a signal, an endless loop, or a length of gigabytes. So a child process opens
each file first and reads what is small, and the places of what is large are looked at here.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from recurra.core.errors import FileError
from recurra.core.rehearsal import rehearse

_SECONDS, _MEMORY = 5, 400 * 2**20
"""What a child may use: of the processor, and beyond what it has from its parent."""

_OBJECTS, _SMALL = 2000, 2**20
"""How many things a child looks at, and how large those are that it reads."""


def try_out(path: Path) -> None:
    """Have a child process open the file and read what is small, once for every state of the file.

    Raises:
        FileError: the child did not survive, or an attribute or a small dataset cannot be read.
    """
    at = path.stat()
    if complaint := _tried(path, at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns):
        raise FileError(path, complaint)


@lru_cache(2**14)
def _tried(path: Path, *_: int) -> str:
    """What is wrong with the file in this state, or nothing."""
    return rehearse(lambda: _look_around(path), seconds=_SECONDS, memory=_MEMORY)


def _look_around(path: Path) -> None:
    """Refuse a file in which something small cannot be read; what cannot be opened at all is for others to name."""
    try:
        file = h5py.File(path, "r", locking=False)
    except Exception:  # of any type, in a damaged file
        return
    left: list[tuple[Any, Any]] = [(file, "/")]
    seen: set[Any] = set()
    while left and len(seen) < _OBJECTS:
        group, name = left.pop()
        try:
            if name != "/" and not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue  # what it leads to is met on its own way, or lies outside
            thing = group[name]
            if (address := h5py.h5o.get_info(thing.id).addr) in seen:
                continue
            seen.add(address)
            if wrong := _read_small(thing):
                raise FileError(path, f"{wrong} of {thing.name} cannot be read; the HDF5 file is damaged")
            if isinstance(thing, h5py.Group):
                for one in thing:
                    left.append((thing, one))  # those before the damage, if the list is damaged
        except FileError:
            raise
        except Exception:  # of any type, in a damaged file; what is opened later says what
            continue


def _read_small(thing: Any) -> str:
    """What of an object cannot be read of that whose length only the reading shows: texts and lists."""
    for name in thing.attrs:
        try:
            thing.attrs[name]
        except (OSError, MemoryError, RuntimeError):
            return f"attribute {name!r}"
    if not isinstance(thing, h5py.Dataset) or thing.shape is None or thing.external or thing.is_virtual:
        return ""
    layout = thing.id.get_create_plist()
    known = all(h5py.h5z.filter_avail(layout.get_filter(index)[0]) for index in range(layout.get_nfilters()))
    if known and thing.size * thing.dtype.itemsize <= _SMALL:
        try:
            thing[()]
        except (OSError, MemoryError, RuntimeError):
            return "the text" if thing.dtype.hasobject else ""
    return ""


def check_chunks(path: Path, found: h5py.Dataset) -> tuple[int, int]:
    """How many chunks a dataset has, and how many of them are there.

    Raises:
        ValueError: one lies outside of the file, or is of another size than it must be.
    """
    counts = [-(-n // chunk) for n, chunk in zip(found.shape, found.chunks, strict=True)]
    packed = found.id.get_create_plist().get_nfilters() > 0
    size, end = math.prod(found.chunks) * found.id.get_type().get_size(), path.stat().st_size
    there: set[tuple[int, ...]] = set()

    def look(chunk: Any) -> None:
        if not chunk.size or chunk.byte_offset + chunk.size > end or not (packed or chunk.size == size):
            raise ValueError(f"{chunk.size} bytes at {chunk.byte_offset} are no chunk")
        there.add(chunk.chunk_offset)

    found.id.chunk_iter(look)
    inside = sum(all(at < n for at, n in zip(offset, found.shape, strict=True)) for offset in there)
    return math.prod(counts), inside


def check_lengths(path: Path, found: h5py.Dataset) -> None:
    """Refuse values of varying length that claim more than the file holds: HDF5 sets the memory aside unseen.

    Raises:
        ValueError: they do, or are packed so that nobody can tell.
    """
    kind = found.id.get_type()
    places = list(_lengths_in(kind))
    if not places:
        return
    if found.chunks and not found.id.get_create_plist().get_nfilters():
        starts: list[int] = []
        found.id.chunk_iter(lambda chunk: starts.append(chunk.byte_offset))
        records = math.prod(found.chunks)
    elif not found.chunks and found.id.get_offset() is not None:
        starts, records = [found.id.get_offset()], found.size
    elif found.size * kind.get_size() <= _SMALL:
        return  # a child has read it
    else:
        raise ValueError("texts or lists are packed; unpack them with h5repack -f NONE")
    size, content = kind.get_size(), np.memmap(path, np.uint8, "r")
    at = (np.array(starts)[:, None] + np.arange(records) * size).ravel()
    total = 0
    for offset, width in places:
        lengths = content[(at + offset)[:, None] + np.arange(4)].view("<u4")
        total += int(lengths.sum(dtype=np.int64)) * width
    if total > len(content):
        raise ValueError(f"texts or lists claim {total:,} bytes in a file of {len(content):,}")


def _lengths_in(kind: Any, offset: int = 0) -> Iterator[tuple[int, int]]:
    """Where in a record the lengths of texts and lists stand, and how large their items are."""
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        for number in range(kind.get_nmembers()):
            yield from _lengths_in(kind.get_member_type(number), offset + kind.get_member_offset(number))
    elif isinstance(kind, h5py.h5t.TypeVlenID):
        yield offset, kind.get_super().get_size()
    elif isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():
        yield offset, 1
