"""Work on many files, in this process or in several: what becomes of each, in their order."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from recurra.core.errors import FileError, UserError, one_line
from recurra.core.screen import progress

_Value = TypeVar("_Value")
Work = Callable[[Path], _Value]


@dataclass
class Outcome(Generic[_Value]):
    """What became of a file: a value, or the error that a file can cause."""

    file: Path
    value: _Value | None
    error: FileError | None
    seconds: float


def outcomes(
    files: Sequence[Path], prepare: Callable[[], Work[_Value]], *, workers: int = 1, quiet: bool = False
) -> Iterator[Outcome[_Value]]:
    """What becomes of each file, in their order.

    A `UserError` or an `OSError` is the file's; anything else is a programmer's and ends the loop.
    """
    if workers < 1:
        raise UserError(f"workers must be at least 1; got {workers}")
    if workers == 1 or len(files) < 2:
        work = prepare()
        for path in files:
            yield _outcome(work, path)
        return
    yield from _shared(files, prepare, min(workers, len(files)), quiet)


def _outcome(work: Work[_Value], path: Path) -> Outcome[_Value]:
    started = time.perf_counter()
    value, problem = None, None
    try:
        value = work(path)
    except (UserError, OSError) as error:
        problem = FileError(path, one_line(error))
        problem.__cause__ = error
    except ValueError as error:  # no user's: it must not look like one
        raise RuntimeError(f"{path}: {one_line(error)}") from error
    return Outcome(path, value, problem, time.perf_counter() - started)


# --- several processes

_prepare: Callable[[], Work[Any]] | None = None
_work: Work[Any] | None = None
_busy = False
_stopping = False


def _shared(
    files: Sequence[Path], prepare: Callable[[], Work[_Value]], workers: int, quiet: bool
) -> Iterator[Outcome[_Value]]:
    import torch

    # As many threads in each as there are here: with fewer, sums may be taken in another order.
    threads = torch.get_num_threads()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (prepare, threads)) as pool:
        futures: list[Future[Outcome[_Value]]] = [pool.submit(_do, path) for path in files]
        try:
            with progress(len(files), f"{workers} processes", unit="files", quiet=quiet) as advance:
                for future in futures:
                    yield future.result()
                    advance()
        except BrokenProcessPool as error:
            if not any(future.done() and not _died(future) for future in futures):
                raise UserError(
                    "processes could not start; a script that asks for workers must do so under "
                    "if __name__ == '__main__':, and needs memory for each"
                ) from error
            doing = next(path for path, future in zip(files, futures, strict=True) if _died(future))
            raise UserError(
                f"a process died while {doing} and others were worked on, perhaps for want of memory; "
                "what is done is kept, go on with --resume and fewer --workers"
            ) from error
        finally:
            _stop(pool, futures)


def _died(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and isinstance(future.exception(), BrokenProcessPool)


def _stop(pool: ProcessPoolExecutor, futures: Sequence[Future[Any]]) -> None:
    """Ask processes that still work to put things in order and leave."""
    if all(future.done() for future in futures):
        return
    processes = list(pool._processes.values())  # forgotten by what comes next
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


def _start(prepare: Callable[[], Work[Any]], threads: int) -> None:
    """What every process does first."""
    import torch

    global _prepare
    _prepare = prepare
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; who started them decides
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: Any) -> None:
    global _stopping
    _stopping = True
    if not _busy:
        os._exit(0)
    raise KeyboardInterrupt  # whoever writes a file removes it


def _do(path: Path) -> Outcome[Any]:
    global _busy, _work
    if _stopping:
        raise KeyboardInterrupt
    _busy = True
    try:
        if _work is None:
            assert _prepare is not None
            _work = _prepare()
        outcome = _outcome(_work, path)
    finally:
        _busy = False
    if outcome.error is not None:
        outcome.error.__cause__ = None  # not every exception can travel; the line can
    return outcome
