"""Files of inputs and of results: found, guarded, written aside and renamed; nothing half-written looks whole."""

import errno
import os
import platform
import re
import secrets
import shutil
import stat
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from recurra.core.errors import FileError, UserError

fcntl: Any
try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


def find_inputs(
    inputs: Sequence[str | Path] | str | Path, suffixes: Sequence[str], *, leave_out: Sequence[Path] = ()
) -> list[Path]:
    """The files of the given files and folders, each once; a folder stands for those in it and below, by name.

    Hidden files and folders are left out, and results of this software that lie in a folder beside its inputs; links
    that lead back are not followed. A link to nowhere is in the list: whoever opens it says so.

    Args:
        inputs: one path or several.
        suffixes: of the files that a folder is searched for, in lower case.
        leave_out: folders that are not searched, as that of the results.

    Raises:
        UserError: a folder holds none, or may not be read.
    """
    found: dict[str, Path] = {}
    without = {os.path.realpath(path) for path in leave_out}
    for item in map(Path, [inputs] if isinstance(inputs, str | Path) else inputs):
        below = list(_below(item, suffixes, set(without))) if item.is_dir() else []
        inside = [path for path in below if not is_result(path)] if item.is_dir() else [item]
        if not inside:
            results = f", but for {len(below)} results of earlier runs" if below else ""
            raise FileError(item, f"no {', '.join(suffixes)} file in this folder{results}")
        for path in inside:
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def is_result(path: Path) -> bool:
    """Whether a file is a result of this software, which keeps near its beginning what it was made from."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            return re.search(rb"recurra [0-9a-f]{24} [0-9a-f]{24}", stream.read(2**16)) is not None
    except OSError:  # whoever opens it says why
        return False


def _below(folder: Path, suffixes: Sequence[str], seen: set[str]) -> Iterator[Path]:
    """The files in a folder and below, by name; folders that were seen are not entered."""
    seen.add(os.path.realpath(folder))
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise FileError(folder, f"cannot be searched: {error.strerror}") from error
    for path in entries:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not path.name.endswith(".part") and os.path.realpath(path) not in seen:
                yield from _below(path, suffixes, seen)
        elif path.suffix.lower() in suffixes:
            yield path


def result_names(files: Sequence[Path]) -> dict[Path, str]:
    """A name for the result of each file, without suffix, different from all others and as short as that allows.

    It is the stem; for files beside each other that differ in their suffix alone, the whole name; and for files of one
    name in several folders, the last folders that tell them apart come before it: "monday/scan", "tuesday/scan".

    Args:
        files: all that are given together, each once.
    """
    parts = {path: Path(os.path.abspath(path)).parent.parts[1:] for path in files}
    last = {path: path.stem for path in files}
    for _ in range(2):  # a whole name may be another file's stem
        beside = Counter((parts[path], last[path].casefold()) for path in files)
        last = {path: last[path] if beside[parts[path], last[path].casefold()] == 1 else path.name for path in files}
    names, depth = dict(last), 0
    while True:
        taken = Counter(name.casefold() for name in names.values())
        twice = [path for path in files if taken[names[path].casefold()] > 1 and len(parts[path]) > depth]
        if not twice:
            return names
        depth += 1
        names |= {path: "/".join((*parts[path][-depth:], last[path])) for path in twice}


def check_file(path: Path, expected: str = "a file") -> None:
    """Refuse what is no file, before opening it: a pipe would wait for ever, a device may never end.

    Args:
        path: of an input.
        expected: what it should be.

    Raises:
        OSError: nothing is there, or it may not be looked at.
        FileError: it is a folder, pipe, socket or device.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        names = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise FileError(path, f"is {names.get(stat.S_IFMT(mode), 'a device')}; expected {expected}")


def check_folder(path: Path) -> None:
    """Refuse a file where a folder of results is to be.

    Raises:
        UserError: it is a file.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, and --out is a folder for the results; give another")


def guard_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write where an input lies, whatever may be overwritten.

    Raises:
        UserError: an output is one of the inputs, also through links, or a folder that holds one.
    """
    taken = {path.resolve() for path in inputs}
    numbers = {(at.st_dev, at.st_ino) for at in (path.stat() for path in taken if path.exists())}
    for output in outputs:
        where = output.resolve()
        same = where in taken or (output.exists() and (output.stat().st_dev, output.stat().st_ino) in numbers)
        if same or any(where in path.parents for path in taken):
            raise UserError(f"{output}: is an input, and results never go where an input lies; choose another --out")


def extra(module: str, what: str, install: str) -> Any:
    """A module that an extra brings.

    Args:
        module: its name.
        what: what needs it, e.g. "writing NIfTI".
        install: what pip is to install, e.g. "recurra-mri[nifti]".

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise UserError(f"{what} needs the package {module}; install it with: pip install '{install}'") from None


_Piece = TypeVar("_Piece")


class Writer(ABC, Generic[_Piece]):
    """Takes the pieces of a result in order; use it through `finished`.

    Args:
        path: where they are written for now.
        pieces: how many there will be; None if nobody knows.
        what: what a piece is called in errors.
    """

    def __init__(self, path: Path, pieces: int | None, *, what: str = "pieces") -> None:
        self.path, self.pieces, self.what = path, pieces, what
        self.written = 0

    def write(self, piece: _Piece) -> None:
        """Adds a piece.

        Raises:
            ValueError: it does not fit, or is one too many.
        """
        self.check(piece)
        if self.written == self.pieces:
            raise ValueError(f"{self.path}: more than {self.pieces} {self.what}")
        self._write(piece)
        self.written += 1

    def check(self, piece: _Piece) -> None:
        """Refuses a piece that does not fit."""

    def finish(self) -> None:
        """Checks that everything is there and brings it to the disk.

        Raises:
            ValueError: pieces are missing.
        """
        if self.pieces is not None and self.written != self.pieces:
            raise ValueError(f"{self.path}: {self.written} of {self.pieces} {self.what} were written")

    def close(self) -> None:
        """Gives the file back, whatever happened."""

    @abstractmethod
    def _write(self, piece: _Piece) -> None:
        """Adds a piece that fits."""


_Writer = TypeVar("_Writer", bound=Writer[Any])


@contextmanager
def finished(path: Path, make: Callable[[Path], _Writer]) -> Iterator[_Writer]:
    """A writer whose file is there once the block ends without an error, and not before.

    Args:
        path: the file, or the folder.
        make: the writer to a path beside it.

    Raises:
        OSError: the disk is full, or the place may not be written to.
    """
    with writing(Path(path)) as part:
        writer = make(part)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


def open_output(path: Path, overwrite: bool = False, *, instead: str = "choose another --out") -> Path:
    """The path, if results may go there: it does not exist, is an empty folder, or may be overwritten.

    Args:
        path: a file or a folder.
        overwrite: what is there may be replaced.
        instead: what else the user can do.

    Raises:
        UserError: something is there.
    """
    path = Path(path)
    taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if taken and not overwrite:
        state = "exists already and is not empty" if path.is_dir() else "exists already"
        raise UserError(f"{path}: {state}; pass --overwrite to replace it, or {instead}")
    return path


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path to write to, a file or a folder, of this process alone; renamed to `path` on success, removed on failure.

    Two processes with one output each write their own, and what stands there is the whole of the last one.

    Raises:
        OSError: it cannot be written; a full disk is named.
        FileError: it is a file, and a folder is in its place.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = aside(path)
    try:
        yield part
        _put(part, path)
    except BaseException as error:
        _remove(part)
        if isinstance(error, Exception) and disk_is_full(error):
            raise full_disk(path) from error
        raise


def aside(path: Path) -> Path:
    """A path beside this one, `NAME.MACHINE-PROCESS-RANDOM.part`; those that ended processes left are removed."""
    machine = f"{zlib.crc32(platform.node().encode()):08x}"  # other machines' processes may share the disk
    # As long as names may be, but for what comes after them.
    name = path.name.encode()[:200].decode(errors="ignore")
    pattern = re.compile(rf"{re.escape(name)}\.{machine}-(\d+)-[0-9a-f]{{6}}\.part")
    for entry in os.scandir(path.parent):
        found = pattern.fullmatch(entry.name)
        if found and not _runs(int(found[1])):
            _remove(Path(entry.path))
    return path.with_name(f"{name}.{machine}-{os.getpid()}-{secrets.token_hex(3)}.part")


def _runs(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _put(part: Path, path: Path) -> None:
    """Rename to the final name; a folder in its place goes when the new one is there."""
    if not path.is_dir() or path.is_symlink():
        os.replace(part, path)
        return
    if not part.is_dir():
        raise FileError(path, "is a folder; expected the name of a file to write")
    before = aside(path)
    os.replace(path, before)
    try:
        os.replace(part, path)
    except BaseException:
        os.replace(before, path)
        raise
    _remove(before)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def only_one(folder: Path, *, wait: bool) -> Iterator[None]:
    """While inside, no other process is inside with the same folder, on systems and disks that can see to it.

    Args:
        folder: is there.
        wait: for the other process to be done.

    Raises:
        UserError: another process is inside, and is not waited for.
    """
    handle = os.open(folder, os.O_RDONLY) if fcntl else -1
    try:
        if fcntl:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise UserError(f"{folder}: another process writes into it; choose another --out") from None
            except OSError:  # this disk has no locks
                pass
        yield
    finally:
        if fcntl:
            os.close(handle)


def disk_is_full(error: Exception) -> bool:
    """Whether a write failed for want of space, whichever library reports it."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def full_disk(path: Path) -> OSError:
    """The error of a disk that is full: names the file, the mount point and what is free there."""
    place = path.absolute().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**20
    while not place.is_mount():
        place = place.parent
    return OSError(errno.ENOSPC, f"no space left on disk {place} ({free:.1f} MiB free)", str(path))
