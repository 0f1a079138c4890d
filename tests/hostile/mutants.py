"""Damaged files of every format that is read, and what becomes of whoever reads them, in a process of its own."""

import os
import random
import resource
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recurra.core.errors import one_line

SECONDS, MEGABYTES = 40, 1000
_BARE = 250
"""MB of a process that has only imported what reads the files."""
OUTCOMES = ("one line", "result", "traceback", "signal", "hang", "memory")


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        name: of the format, and of a file of it.
        write: a good file to a path.
        use: all that is done with a file; returns, or raises what a user sees in a line.
        edits: damage that only this format has, by name: each changes a good file.
        words: what is put into a text; None for a format of bytes.
    """

    name: str
    write: Callable[[Path], object]
    use: Callable[[Path], object]
    edits: Mapping[str, Callable[[Path], object]] = field(default_factory=dict)
    words: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Verdict:
    """What became of a reader: one of OUTCOMES, what it said, and the most memory it had, in MB."""

    outcome: str
    said: str = ""
    memory: int = 0


def _flips(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 2, 8))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _extremes(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 4))):
        size, place = draw.choice((1, 2, 4, 8)), draw.randrange(len(data))
        value = draw.choice((0, 2 ** (8 * size) - 1, 2 ** (8 * size - 1) - 1, draw.randrange(2 ** (8 * size))))
        data[place : place + size] = value.to_bytes(size, "little")


def _blanks(data: bytearray, draw: random.Random) -> None:
    place, size = draw.randrange(len(data)), draw.choice((16, 64, 512))
    data[place : place + size] = bytes([draw.choice((0, 255))]) * len(data[place : place + size])


def _copies(data: bytearray, draw: random.Random) -> None:
    size, here, there = draw.choice((8, 32, 256)), draw.randrange(len(data)), draw.randrange(len(data))
    data[there : there + size] = data[here : here + size]


def _cuts(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def _shifts(data: bytearray, draw: random.Random) -> None:
    place, size = draw.randrange(len(data)), draw.choice((1, 4, 32))
    if draw.random() < 0.5:
        del data[place : place + size]
    else:
        data[place:place] = draw.randbytes(size)


BYTES: dict[str, Callable[[bytearray, random.Random], None]] = {
    "flips": _flips,
    "extremes": _extremes,
    "blanks": _blanks,
    "copies": _copies,
    "cuts": _cuts,
    "shifts": _shifts,
}


def kinds(form: Format) -> tuple[str, ...]:
    """What kinds of damage a format can have."""
    return (*BYTES, *(["words"] if form.words else []), *form.edits)


def damage(form: Format, good: bytes, kind: str, seed: int, path: Path) -> None:
    """Write a damaged file; the same seed makes the same damage."""
    data, draw = bytearray(good), random.Random(f"{form.name} {kind} {seed}")
    if kind in BYTES:
        BYTES[kind](data, draw)
    elif kind == "words":
        assert form.words is not None
        place = draw.randrange(len(data))
        end = place + draw.choice((0, 1, 5))
        data[place:end] = draw.choice(form.words).encode()
    path.write_bytes(data)
    if kind in form.edits:
        form.edits[kind](path)


def verdict(form: Format, path: Path) -> Verdict:
    """What becomes of a process that uses the file."""
    listen, speak = os.pipe()
    # A process begins with what its parent has, which grows with the tests before; the file is to answer for the rest.
    inherited = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    child = os.fork()
    if child == 0:
        os.close(listen)
        _report(form, path, speak)
    os.close(speak)
    begin, said = time.monotonic(), b""
    while (left := begin + SECONDS - time.monotonic()) > 0 and select.select([listen], [], [], left)[0]:
        piece = os.read(listen, 65536)
        if not piece:
            break
        said += piece
    else:
        os.kill(child, signal.SIGKILL)
    os.close(listen)
    _, status, used = os.wait4(child, 0)
    ended, memory = os.waitstatus_to_exitcode(status), max(0, (used.ru_maxrss >> 10) - inherited) + _BARE
    if left <= 0:
        return Verdict("hang", f"more than {SECONDS} s", memory)
    if ended < 0:
        return Verdict("signal", signal.Signals(-ended).name, memory)
    outcome, _, text = said.decode("utf-8", "replace").partition(":")
    return Verdict("memory" if memory > MEGABYTES else outcome, text, memory)


def _report(form: Format, path: Path, speak: int) -> None:
    """The process that uses the file: writes what came of it and ends."""
    try:
        # So that a test takes no machine down: 4 GiB beside the addresses that its parent has taken already.
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        most = taken + (4 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        form.use(path)
        said = "result:"
    except (ValueError, OSError) as error:
        # A programmer's ValueError becomes the file's in `blaming`, at the border of every verb.
        named = path.name in one_line(error) and "\n" not in one_line(error)
        said = f"{'one line' if named else 'traceback'}:{type(error).__name__} {one_line(error)}"
    except BaseException as error:
        said = f"traceback:{type(error).__name__} {one_line(error)}"
    os.write(speak, said.encode("utf-8", "replace")[:4000])
    os._exit(0)


def bad(results: Mapping[Any, Verdict]) -> list[str]:
    """Those that ended in anything but a line or a result, one a line."""
    faults = {what: one for what, one in results.items() if one.outcome not in OUTCOMES[:2]}
    return [f"{what}: {one.outcome}: {one.said[:200]} ({one.memory} MB)" for what, one in faults.items()]
