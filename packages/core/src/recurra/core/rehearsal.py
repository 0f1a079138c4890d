"""Work on a file that could be fatal, done by a child process first: what the work dies of, only the child dies of."""

import faulthandler
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from recurra.core.errors import one_line

_PATIENCE = 60
"""Seconds that a child may take beside those it works."""


def rehearse(work: Callable[[], object], *, seconds: int, memory: int) -> str:
    """What ends the work, in a line; "" if it comes through, or where no child can be had or none comes to an end.

    It takes 11 ms in a process with torch, 1 ms in one without, and what the work takes.

    Args:
        work: must leave nothing behind, and use no GPU and no threads.
        seconds: of the processor that the work may use.
        memory: bytes that it may use beyond what this process has.
    """
    if not sys.platform.startswith("linux"):  # elsewhere a process with threads cannot be forked
        return ""
    listen, speak = os.pipe()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads, whose locks the work does not take
            child = os.fork()
    except OSError:  # no process to be had: the work itself will say more
        os.close(listen)
        os.close(speak)
        return ""
    if child == 0:
        _report(work, speak, seconds, memory)
    os.close(speak)
    # A child that waits without working, for a lock that a thread held when it came into being, says nothing about the
    # file; nor does a slow disk.
    ended = select.select([listen], [], [], _PATIENCE + seconds)[0]
    if not ended:
        os.kill(child, signal.SIGKILL)
    with open(listen, "rb") as stream:
        said = stream.read().decode("utf-8", "replace")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not ended:
        return ""
    if status == -signal.SIGXCPU:
        return f"reading it does not end within {seconds} s; it is damaged"
    return said if status == 0 else "reading it ends the process by a signal; it is damaged"


def _report(work: Callable[[], object], speak: int, seconds: int, memory: int) -> NoReturn:
    """The child: does the work, writes what ended it, and ends."""
    import resource  # not there on every system

    said = ""
    try:
        faulthandler.disable()  # a death here is no news
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a C library's last words
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = {resource.RLIMIT_AS: mapped + memory, resource.RLIMIT_CPU: seconds, resource.RLIMIT_CORE: 0}
        for kind, most in limits.items():
            resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))
        work()
    except MemoryError:
        said = f"reading it takes more than {memory >> 20:,} MB; it is damaged, or claims too much"
    except RecursionError:
        said = "it is nested too deeply"
    except BaseException as error:
        said = one_line(error)
    finally:
        os.write(speak, said.encode("utf-8", "replace")[:4096])
        os._exit(0)
