"""Offsets past 2^31 elements, in memory that is reserved and hardly touched."""

import gc
import mmap
import re
from pathlib import Path

import pytest
import torch
from law_cases import CASES, TOLERANCE, assert_near, missing, pairs, run, weights_of
from torch import Tensor

import recurra.kernels

BATCH, STEPS, WIDTH = 3, 4, 3
# Fits 32 bits, as the number of sequences and of steps does; their product with it does not.
STRIDE = 2**30


def far(t: Tensor, axis: int) -> Tensor:
    """The values where an index of this axis is 2^30 elements from the next; pages between stay untouched."""
    strides = list(torch.empty(t.shape, device="meta").stride())
    strides[axis] = STRIDE
    for other in range(axis):
        # Between two steps that far apart there is room for all sequences.
        strides[other] = STRIDE // 2 ** (other + 3)
    reach = 1 + sum(stride * (size - 1) for stride, size in zip(strides, t.shape, strict=True))
    # Python names Linux's MAP_NORESERVE from 3.13 on.
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    try:
        memory = mmap.mmap(-1, reach * t.element_size(), flags=kind)
    except OSError as error:
        pytest.skip(f"no room for {reach * t.element_size() >> 30} GiB of addresses: {error}")
    spread = torch.frombuffer(memory, dtype=t.dtype, count=reach).as_strided(t.shape, strides)
    assert (spread.shape[axis] - 1) * STRIDE >= 2**31
    return spread.copy_(t)


def resident() -> int:
    """Megabytes in memory at the most so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


@pairs()
@pytest.mark.parametrize("axis", [0, 1], ids=["sequences", "steps"])
def test_sequences_and_steps_far_apart(case, backend, axis):
    if case.complex:
        pytest.skip("frombuffer has no complex numbers; reals go the same way")
    tensors = case.tensors(BATCH, STEPS, WIDTH, torch.float32)
    weights = weights_of(case.call(tensors, backend=backend))
    want, before = run(case, tensors, backend, weights), resident()
    moved = {name: far(t, axis) if name in case.sequences else t for name, t in tensors.items()}
    got = run(case, moved, backend, [far(weights[0], axis), *weights[1:]])
    assert_near(got, want, TOLERANCE[torch.float32])
    assert resident() - before < 1000


@pytest.mark.skipif(missing("numba") is not None, reason="numba is not installed")
def test_numba_kernels_count_in_64_bits():
    from numba.core.registry import CPUDispatcher

    for case in CASES:
        run(case, case.tensors(2, 3, 4, torch.float32), "numba", **case.known(lengths=torch.tensor([3, 1])))
    names = {case.function.__name__ for case in CASES}
    kernels = [k for k in gc.get_objects() if issubclass(type(k), CPUDispatcher)]
    kernels = [k for k in kernels if set(k.py_func.__module__.split(".")) & names and k.signatures]
    assert {name for k in kernels for name in k.py_func.__module__.split(".")} >= names
    for kernel in kernels:
        for compiled in kernel.overloads.values():
            # The types of all variables, as numba inferred them.
            narrow = re.search(r":: u?int(16|32)\b", str(compiled.type_annotation))
            assert narrow is None, kernel.py_func.__name__


def test_triton_kernels_count_in_64_bits():
    folder = Path(next(iter(recurra.kernels.__path__)))
    used = 0
    for path in sorted(folder.glob("**/*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            for match in re.finditer(r"tl\.program_id\(\d\)", line):
                used += 1
                rest = line[match.end() :]
                wide = line[: match.start()].endswith("tl.cast(") or rest.startswith(".to(tl.int64)")
                assert wide or SMALL.search(line), f"{path.name}: {line.strip()}"
    assert used


# Indices of programs that are no offsets: they number tiles of a width, or are widened once they are taken apart.
SMALL = re.compile(r"n = tl\.program_id|member, k = |part, block, blocks = ")
