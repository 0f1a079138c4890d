"""Transcendental functions of the Triton kernels."""

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]


@triton.jit
def sigmoid(x):  # type: ignore[no-untyped-def]
    """The logistic function."""
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    """tanh, without overflow or cancellation."""
    # exp of a negative number alone: no overflow; the odd series takes over where the quotient would cancel.
    a = tl.abs(x)
    e = tl.exp(-2 * a)
    s = x * x
    far = (1 - e) / (1 + e)
    whole = tl.where(x < 0, -far, far)
    near = x * (1 - s * (1 / 3 - s * (2 / 15 - s * (17 / 315))))
    return tl.where(a < 0.02, near, whole)
