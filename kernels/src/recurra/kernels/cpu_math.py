"""Transcendental functions that LLVM can vectorise, for the numba backends: pure multiply, add, divide."""

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload


def tanh(x: Any) -> Any:
    """tanh, for compiled functions: a rational function in float32 (2.6e-7 absolute), libm's in float64."""
    return math.tanh(x)


def _rational_tanh(x):  # type: ignore[no-untyped-def]
    # Own minimax fit of x P(x²)/Q(x²) on |x| <= 8, relative error 1.8e-9 before rounding; derivation in
    # conv_cell_pointwise/README.md.
    x = min(max(x, np.float32(-8)), np.float32(8))
    s = x * x
    p = np.float32(-1.1564317212164887e-13)
    p = p * s + np.float32(6.365536570074326e-11)
    p = p * s + np.float32(-2.231467099989004e-08)
    p = p * s + np.float32(1.1642445315374061e-05)
    p = p * s + np.float32(0.0031493648421019316)
    p = p * s + np.float32(0.131243497133255)
    p = p * s + np.float32(1)
    q = np.float32(0.00026129744946956635)
    q = q * s + np.float32(0.024675000458955765)
    q = q * s + np.float32(0.4645768105983734)
    q = q * s + np.float32(1)
    return x * p / q


@overload(tanh, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _tanh_of_type(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return _rational_tanh
    return lambda x: math.tanh(x)


def sigmoid(x: Any) -> Any:
    """The logistic function, for compiled functions."""
    return 0.5 + 0.5 * math.tanh(0.5 * x)


@overload(sigmoid, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _sigmoid_of_type(x):  # type: ignore[no-untyped-def]
    half = np.float32(0.5) if x == types.float32 else np.float64(0.5)
    return lambda x: half + half * tanh(half * x)
