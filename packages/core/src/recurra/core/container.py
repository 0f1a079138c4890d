"""Containers of other people's checkpoints: a tar of a configuration and of weights; nothing climbs out of it."""

import bz2
import gzip
import io
import lzma
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from recurra.core.errors import FileError, UserError, one_line
from recurra.core.files import disk_is_full, full_disk
from recurra.core.foreign import read_foreign
from recurra.core.recipe import read_yaml

# What the two members of a container that matter are known by.
_CONFIG, _WEIGHTS = (".yaml", ".yml"), (".ckpt", ".pt", ".pth")

_NAME, _MEMBERS, _CONFIG_BYTES = 2**20, 10_000, 2**20
"""The most bytes of a name or comment, members, and bytes of a configuration that a container may have."""


def read_container(path: str | Path, *, limit: int = 8 << 30) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and state dict of a tar container, gzipped or not, that holds one YAML file and one torch checkpoint.

    Args:
        path: the container.
        limit: largest sum of the members' sizes in bytes that is unpacked.

    Raises:
        ValueError: there is no such file, it is damaged, one of the two is missing or has a second beside it, or a
            member is absolute, has a "..", is a link or a device, too large, or there twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(path, "no such file")
    with tempfile.TemporaryDirectory(prefix="recurra-") as folder:
        try:
            with _opened(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
                inside = _unpack(archive, path, Path(folder), limit)
        except UserError:
            raise
        except OSError as error:
            if disk_is_full(error):
                raise full_disk(Path(folder)) from error
            raise FileError(path, f"damaged, or no tar container: {one_line(error)}") from error
        except Exception as error:  # of any type, in a damaged file
            raise FileError(path, f"damaged, or no tar container: {one_line(error)}") from error
        for suffixes in (_CONFIG, _WEIGHTS):
            if suffixes not in inside:
                raise FileError(path, f"no {' or '.join(suffixes)} file inside")
        try:
            config = read_yaml(Path(folder, inside[_CONFIG]))
            weights = read_foreign(Path(folder, inside[_WEIGHTS]))
        except ValueError as error:
            raise FileError(path, str(error).replace(f"{folder}/", "")) from error
    if not isinstance(config, dict):
        raise FileError(path, f"{inside[_CONFIG]}: expected a mapping, got {type(config).__name__}")
    state = weights.get("state_dict", weights)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise FileError(path, f"{inside[_WEIGHTS]}: expected a dict of tensors")
    return config, state


class _Stream(io.RawIOBase):
    """The bytes of a container, unpacked; a name is read as whole as it claims to be, so no reading may be large.

    Args:
        source: of the bytes.
    """

    def __init__(self, source: io.BufferedIOBase) -> None:
        self._source = source

    def read(self, size: int = -1) -> bytes:
        """The next bytes, refused if they are more than anything but a file's contents ever is."""
        if not 0 <= size <= _NAME:
            raise ValueError(f"a name or a comment claims {size:,} bytes; expected at most {_NAME:,}")
        return self._source.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go there."""
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        """Where it is."""
        return self._source.tell()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The bytes of a container, whatever it is packed with."""
    with path.open("rb") as start:
        magic = start.read(6)
    packers = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))
    unpack: Any = next((packer for begin, packer in packers if magic.startswith(begin)), open)
    with unpack(path, "rb") as source:
        yield _Stream(source)


def _unpack(archive: tarfile.TarFile, path: Path, folder: Path, limit: int) -> dict[tuple[str, ...], str]:
    """Names by suffixes of the two members that matter, unpacked; every member has been looked at."""
    seen: set[str] = set()
    inside: dict[tuple[str, ...], str] = {}
    total = 0
    for member in archive:
        name = member.name.removeprefix("./")
        total += member.size
        if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
            raise FileError(path, f"member {member.name!r} lies outside the container; refused")
        if not (member.isreg() or member.isdir()) or member.issparse():
            raise FileError(path, f"member {member.name!r} is a link or a device, or has holes; refused")
        if total > limit:
            raise FileError(path, f"member {member.name!r} brings the contents over {limit} bytes; refused")
        if name in seen:
            raise FileError(path, f"member {member.name!r} occurs twice; refused")
        seen.add(name)
        if len(seen) > _MEMBERS:
            raise FileError(path, f"has more than {_MEMBERS:,} members; refused")
        if name.endswith(_CONFIG) and member.size > _CONFIG_BYTES:
            raise FileError(path, f"{name} has {member.size:,} bytes; expected at most {_CONFIG_BYTES:,}; refused")
        for suffixes in (_CONFIG, _WEIGHTS):
            # Hidden files are the companions that macOS packs along.
            if member.isreg() and name.endswith(suffixes) and not Path(name).name.startswith("."):
                if suffixes in inside:
                    raise FileError(path, f"holds {inside[suffixes]!r} and {name!r}; expected one of them; refused")
                inside[suffixes] = name
                archive.extract(member, folder, filter="data")
    return inside
