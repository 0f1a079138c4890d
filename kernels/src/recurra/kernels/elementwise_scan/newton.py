"""Newton's method over time with a certificate, as a function that reports its iterations."""

import torch
from torch import Tensor

from recurra.kernels.elementwise_scan import OP, Cell
from recurra.kernels.elementwise_scan.parallel import ITERATIONS, Newton


def newton_scan(
    cell: Cell,
    wx: Tensor,
    params: Tensor,
    state: tuple[Tensor, ...] | None = None,
    *,
    tolerance: float | None = None,
    max_iterations: int = ITERATIONS,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """What `elementwise_scan` returns, all steps solved at once, and the iterations that took (README.md, Newton).

    The result is certified: in each sequence max|h_t - f(h_(t-1), x_t)| < tolerance (1 + max|h|), and the same of c;
    a sequence that does not get there is computed step by step instead. Its gradient is exact for the states returned.
    Tolerance and number of iterations change the cost and never by more than the tolerance what a step leaves.

    Args:
        cell: as for `elementwise_scan`; indrnn_relu and indrnn_linear need no iteration.
        wx: as for `elementwise_scan`.
        params: as for `elementwise_scan`.
        state: as for `elementwise_scan`.
        tolerance: of the residual; 8 times the carried dtype's epsilon if absent: 9.5e-7 (float32), 1.8e-15 (float64).
        max_iterations: after which a sequence is computed step by step.
        lengths: as for `elementwise_scan`.
        reset: as for `elementwise_scan`.
        reverse: as for `elementwise_scan`.

    Returns:
        y, the last state, and (batch,) int64: iterations of each sequence, -1 where it was computed step by step.

    Raises:
        ValueError: shapes, dtypes, tolerance or max_iterations do not fit; or a compiler traces the call, which
            `elementwise_scan(..., backend="parallel")` allows.
    """
    if torch.compiler.is_compiling():
        raise ValueError("newton_scan cannot be traced; use elementwise_scan(..., backend='parallel') in compiled code")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; expected a positive number, or None for that of the dtype")
    if max_iterations < 0:
        raise ValueError(f"max_iterations is {max_iterations}; expected 0 or more")
    prepared = OP.definition.prepare(cell, wx, params, state, lengths=lengths, reset=reset, reverse=reverse)
    solver = Newton(tolerance, max_iterations)
    y, *last = OP.by(solver, *prepared)
    return y, tuple(last), solver.iterations
