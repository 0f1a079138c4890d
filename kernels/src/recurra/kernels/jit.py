"""Numba compilation and the splitting of rows over threads, shared by the numba backends."""

import functools
import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType
from typing import Any

import numba
import numpy as np
import torch
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from torch import Tensor

# Contraction alone: NaN, infinity and signed zero keep their meaning.
_FAST = frozenset({"contract"})
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def jit(function: Callable[..., Any], *, fast: frozenset[str] = _FAST, **more: Any) -> Callable[..., Any]:
    """The compiled function: lazily, cached on disk where a place for the cache can be written."""
    # Numba compiles plain functions, not the shape checks that tests put around them.
    function = inspect.unwrap(function)
    options: dict[str, Any] = {"nogil": True, "fastmath": set(fast), "error_model": "numpy", **more}
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, **options)(function)
        # Numba looks at the function's own file alone, and would keep code of changed ones that it calls.
        compiled._cache._cache_file._source_stamp = _sources(os.path.dirname(function.__code__.co_filename))  # type: ignore[attr-defined]
    except RuntimeError:  # no writable place for the cache: compile once in every process
        compiled = numba.njit(**options)(function)
    return compiled


@functools.cache
def _sources(folder: str) -> tuple[tuple[str, int, int], ...]:
    # Every file a compiled function of this folder may call into, with its time of change and size.
    folders = dict.fromkeys((folder, os.path.dirname(__file__)))
    files = [entry for f in folders for entry in os.scandir(f) if entry.name.endswith(".py")]
    return tuple(sorted((e.path, e.stat().st_mtime_ns, e.stat().st_size) for e in files))


def jit_sum(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function whose sums may be taken in several parts, in an order that is the same in every run."""
    return jit(function, fast=_FAST | {"reassoc"})


class Distinct(CompilerBase):
    """Numba's pipeline with the promise that no two array arguments overlap."""

    def define_pipelines(self) -> list[Any]:
        """The default pipeline; the flag reaches LLVM as `noalias`."""
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]  # type: ignore[no-untyped-call]


def jit_distinct(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled inner loop none of whose written arrays overlaps another argument.

    LLVM then vectorises loops over many arrays, for which it would give up comparing addresses.
    """
    return jit(function, pipeline_class=Distinct)


def instance(function: Callable[..., Any], name: str, **names: Any) -> Callable[..., Any]:
    """A copy of a function, to be compiled, in which these global names mean something else.

    The compiled copy is found again on disk under its own name; a closure would be compiled anew in every process.
    """
    copy = FunctionType(function.__code__, {**function.__globals__, **names}, name)
    copy.__qualname__, copy.__module__ = name, function.__module__
    return copy


def over_ranges(work: Callable[[int, int], None], total: int, grain: int) -> None:
    """Calls work(start, stop) over 0..total, split over torch's number of threads if a part has at least `grain`.

    Own threads instead of numba's: its thread layers abort on concurrent callers or on a fork.
    """
    parts = max(1, min(torch.get_num_threads(), total // max(grain, 1)))
    if parts == 1:
        work(0, total)
        return
    edges = [total * part // parts for part in range(parts + 1)]
    pool = _pool(parts)
    futures = [pool.submit(work, edges[part], edges[part + 1]) for part in range(1, parts)]
    work(edges[0], edges[1])
    for future in futures:
        future.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    # Threads do not survive a fork, so a forked process makes its own.
    key = (os.getpid(), threads)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads - 1, thread_name_prefix="recurra")
    return _pools[key]


def over_grid(work: Callable[[int, int, int], None], rows: int, width: int, grain: int) -> None:
    """Calls work(row, start, stop) for all rows; rows are split over torch's threads, one row's width where too few."""
    if rows >= torch.get_num_threads():

        def block(first: int, last: int) -> None:
            for row in range(first, last):
                work(row, 0, width)

        over_ranges(block, rows, max(grain // max(width, 1), 1))
    else:
        for row in range(rows):
            over_ranges(functools.partial(work, row), width, max(grain, 16))


def over_blocks(work: Callable[[int, int, int, int], Any], rows: int, width: int, grain: int) -> None:
    """Calls work(first row, last row, start, stop) over rows and width, split over torch's threads.

    Rows are split, or the width where there are fewer rows than threads, if a part has at least `grain` values.
    """
    if rows >= torch.get_num_threads():
        over_ranges(lambda first, last: work(first, last, 0, width), rows, max(grain // max(width, 1), 1))
    else:
        over_ranges(lambda start, stop: work(0, rows, start, stop), width, max(grain // max(rows, 1), 16))


def array(value: Tensor, dtype: torch.dtype) -> Any:
    """The tensor as a contiguous array of this dtype."""
    value = value.detach()
    if value.dtype != dtype or value.is_conj() or not value.is_contiguous():
        value = value.to(dtype).resolve_conj().contiguous()
    return value.numpy()


def lengths_array(lengths: Tensor | None, batch: int, steps: int) -> Any:
    """Steps of each sequence, all where none are given."""
    return np.full(batch, steps, np.int64) if lengths is None else lengths.contiguous().numpy()


def flags_array(reset: Tensor | None) -> Any:
    """Episode borders (batch, time); of no size where none are given."""
    return np.empty((0, 0), np.bool_) if reset is None else reset.contiguous().numpy()
