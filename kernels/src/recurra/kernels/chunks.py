"""Time loops of a fixed number of steps through torch.compile, for CPUs without numba."""

import functools
import os
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

# Steps that are unrolled and fused into one pass with the state in registers; more compile longer and gain nothing.
CHUNK = 50


def compiled(function: Callable[..., Any], name: str, **names: Any) -> Callable[..., Any]:
    """The function through torch.compile, its global names replaced by those given.

    Batch and width are symbolic: it is compiled once for all above 1, again where one of them is 1 and where they are
    equal. A code object of its own keeps the compiler's limit of recompilations apart from that of its siblings.
    """
    code = function.__code__.replace(co_name=name)
    copy = FunctionType(code, {**function.__globals__, **names}, name)
    whole: Callable[..., Any] = torch.compile(copy, fullgraph=True, dynamic=True)
    return whole


def compiler_reason(lead: Tensor) -> str | None:
    """Why torch.compile cannot serve a tensor like this; None if it can."""
    if lead.device.type != "cpu":
        return f"compiled serves CPU tensors; these are on {lead.device}"
    return _toolchain_reason(os.environ.get("CXX", "g++"))


@functools.cache
def _toolchain_reason(compiler: str) -> str | None:
    if shutil.which(compiler) is None:
        return f"no C++ compiler found ({compiler}); install one or name it in the environment variable CXX"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python.h is missing, which torch.compile needs; install Python's development headers"
    return None


def in_chunks(
    run: Callable[..., tuple[Sequence[Tensor], Any]], state: Any, xs: Sequence[Tensor], *, backwards: bool = False
) -> tuple[list[Tensor], Any]:
    """Outputs for all steps, and the last state, of run(state, *xs of CHUNK steps) -> (outputs, state).

    Args:
        run: each output (batch, CHUNK, ...), and the state after (backwards: before) the chunk.
        state: before the first chunk taken.
        xs: each (batch, time, ...), time above 0; zeros fill up the last chunk.
        backwards: from the last chunk to the first.
    """
    steps = xs[0].shape[1]
    chunks = list(zip(*map(_pieces, xs), strict=True))
    results = []
    for pieces in reversed(chunks) if backwards else chunks:
        outputs, state = run(state, *pieces)
        results.append(outputs)
    parts = zip(*(results[::-1] if backwards else results), strict=True)
    return [torch.cat(part, 1)[:, :steps] for part in parts], state


def _pieces(x: Tensor) -> list[Tensor]:
    # Copies, all laid out alike, with the number of steps marked as fixed: for another layout, or where the width
    # happens to be CHUNK, the compiler would make a program of its own.
    steps, pieces = x.shape[1], []
    for first in range(0, steps, CHUNK):
        piece = x.new_zeros((x.shape[0], CHUNK, *x.shape[2:]))
        part = x.detach()[:, first : first + CHUNK]
        piece[:, : part.shape[1]] = part
        torch._dynamo.mark_static(piece, 1)
        pieces.append(piece)
    return pieces
