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


def exp(x: Any) -> Any:
    """The exponential, for compiled functions: a polynomial in float32 (1.2e-7 relative), libm's in float64."""
    return math.exp(x)


def _polynomial_exp(x):  # type: ignore[no-untyped-def]
    # exp(x) = 2^n exp(r), |r| <= ln 2 / 2; Taylor's series of exp(r) to r^7 is 5e-9 off. Beyond float32's exponents
    # it is 0 or infinity; ln 2 in two parts keeps r exact.
    x = min(max(x, np.float32(-104)), np.float32(89))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375)
    r = r + n * np.float32(2.12194440054690583e-4)
    p = np.float32(1 / 5040)
    p = p * r + np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1)
    p = p * r + np.float32(1)
    # In two factors, since 2^n alone may leave the range where the result does not.
    half = np.int32(n) >> np.int32(1)
    first = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
    second = np.int32((np.int32(n) - half + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * first * second


@overload(exp, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _exp_of_type(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return _polynomial_exp
    return lambda x: math.exp(x)


def log_sigmoid(x: Any) -> Any:
    """Logarithm of the logistic function, for compiled functions; exact far out on both sides."""
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def _series_log_sigmoid(x):  # type: ignore[no-untyped-def]
    # log(1 + u) = 2 artanh(s), s = u / (2 + u) <= 1/3: its series to s^13 is 2e-8 off.
    u = exp(-abs(x))
    s = u / (np.float32(2) + u)
    q = s * s
    p = np.float32(1 / 13)
    p = p * q + np.float32(1 / 11)
    p = p * q + np.float32(1 / 9)
    p = p * q + np.float32(1 / 7)
    p = p * q + np.float32(1 / 5)
    p = p * q + np.float32(1 / 3)
    p = p * q + np.float32(1)
    return min(x, np.float32(0)) - np.float32(2) * s * p


@overload(log_sigmoid, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _log_sigmoid_of_type(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return _series_log_sigmoid
    return lambda x: min(x, 0.0) - math.log1p(math.exp(-abs(x)))
