"""What a case is, and the two ways to run one that several groups need."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Run = Callable[[], Any]
Variants = dict[str, Callable[[], Run]]


@dataclass(frozen=True)
class Case:
    """Variants of one computation; the first is what the others are compared with.

    Attributes:
        group: the file of docs/bench that holds its rows.
        build: (small, device) -> {variant: function that makes the callable to be measured}.
        tolerance: largest difference of a variant's tensors, each relative to its greatest value. None: the results
            are not tensors.
        repeats: interleaved measurements of each variant, of which the least counts.
        devices: where it can run.
        least: seconds that a measurement must last; shorter calls are repeated within it.
        unlike: variants that compute something else of the same size, whose results are not compared.
        own_clock: the callable returns the (processor, wall) seconds itself.
    """

    group: str
    build: Callable[[bool, str], Variants]
    tolerance: float | None = 1e-5
    repeats: int = 5
    devices: tuple[str, ...] = ("cpu",)
    least: float = 0.0
    unlike: tuple[str, ...] = ()
    own_clock: bool = False


def reference(run: Run) -> Run:
    """The layer-by-layer definition: gate arithmetic by plain torch, as without our kernels."""
    from recurra.kernels import use_backend

    def plainly() -> Any:
        with use_backend("reference"):
            return run()

    return plainly


def inference(run: Run) -> Run:
    def quietly() -> Any:
        with torch.inference_mode():
            return run()

    return quietly
