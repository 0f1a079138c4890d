"""Prints the CPU rows of costs.json, measured here: python -m recurra.kernels.gated_layer.measure (minutes).

One thread, process time. Every entry is a fit, with no negative term, to the relative errors of the sizes below.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.kernels.gated_layer import OP, TERMS, _prepare, native, terms
from recurra.kernels.gated_scan import FORMS

# Batch, time, width of the input and of the state.
SIZES = [
    (1, 20, 32), (1, 300, 32), (1, 300, 128), (1, 60, 512), (1, 200, 512), (1, 30, 1024), (2, 40, 512), (4, 200, 64),
    (8, 100, 256), (16, 100, 32), (16, 100, 128), (16, 50, 256), (16, 20, 512), (64, 50, 32), (64, 50, 128),
    (64, 30, 256), (64, 10, 512),
]  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    """The best of some calls."""
    work()
    best, start = np.inf, time.process_time()
    while time.process_time() - start < 0.1:
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
    return best


def arguments(cell: str, batch: int, steps: int, width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A layer's tensors."""
    form = FORMS[cell]

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape).div(shape[-1] ** 0.5).to(dtype)

    weights = {name: draw(form.gates, 1, width, width) for name in ("weight", "r")}
    return {"x": draw(batch, steps, width), **weights, "bias": draw(form.biases, 1, width)}


def entry(backend: str, cell: str, dtype: torch.dtype, training: bool) -> dict[str, float]:
    """The terms of one row of the table."""
    rows, times = [], []
    for batch, steps, width in SIZES:
        tensors = {k: t.requires_grad_(training) for k, t in arguments(cell, batch, steps, width, dtype).items()}
        scan = "reference" if backend == "scan without numba" else None
        options, inputs = _prepare(cell, **tensors, scan=scan)  # type: ignore[arg-type]
        chosen = OP.backends["torch" if backend == "torch" else "scan"]

        def work(chosen: Any = chosen, options: Any = options, inputs: Any = inputs) -> None:
            y, _ = chosen(options, inputs)
            if training:
                y.backward(torch.ones_like(y))

        rows.append(terms(batch, steps, FORMS[cell].gates * width, width, width))
        times.append(1e6 * seconds(work))
    fitted = fit(np.array(rows), np.array(times))
    return {term: float(f"{value:.3g}") for term, value in zip(TERMS, fitted, strict=True)}


def fit(rows: NDArray[Any], times: NDArray[Any]) -> NDArray[Any]:
    """Least squares of relative errors with no negative term, by coordinate descent."""
    scaled = rows / times[:, None]
    found = np.zeros(rows.shape[1])
    for _ in range(20000):
        for k in range(len(found)):
            rest = 1 - scaled @ found + scaled[:, k] * found[k]
            found[k] = max(0.0, scaled[:, k] @ rest / (scaled[:, k] @ scaled[:, k]))
    return found


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    table: dict[str, Any] = {}
    for backend in ("scan", "torch", "scan without numba"):
        cells = table.setdefault(backend, {})
        for cell in native.KINDS:
            for kind, dtype in (("32 bit", torch.float32), ("16 bit", torch.bfloat16)):
                modes = {"inference": False, "training": True}
                cells.setdefault(cell, {})[kind] = {m: entry(backend, cell, dtype, t) for m, t in modes.items()}
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
