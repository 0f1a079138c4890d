"""Transcendental functions of the Triton kernels, in few instructions: they are most of what a recurrent step costs.

Float32 takes the device's own approximations, 2 units in the last place of 2^x and 1 of 1/x, without the cases that
full division and exponentials treat apart; float64, and Triton's interpreter, the general functions.
"""

import os

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def sigmoid(x):  # type: ignore[no-untyped-def]
    """The logistic function."""
    return inverse(1 + exp(-x))


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    """tanh, without overflow; its relative error in float32 stays below 2e-6 however small x is."""
    s = x * x
    # The exponential may be infinite: 1 - 0. The odd series takes over where the difference would cancel.
    far = 1 - 2 * inverse(1 + exp(2 * x))
    near = x * (1 - s * (1 / 3 - s * (2 / 15 - s * (17 / 315))))
    # Float64 needs the series to be exact for longer.
    small: tl.constexpr = 4e-4 if x.dtype == tl.float64 else 1e-2
    return tl.where(s < small, near, far)


@triton.jit
def exp(x):  # type: ignore[no-untyped-def]
    """The exponential; what would be denormal is 0."""
    if INTERPRETED or x.dtype == tl.float64:
        return tl.exp(x)
    else:
        y = x * 1.4426950408889634
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [y], tl.float32, True, 1)


@triton.jit
def inverse(x):  # type: ignore[no-untyped-def]
    """1 / x."""
    if INTERPRETED or x.dtype == tl.float64:
        return 1 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
