"""Functions and products of the numba backends against float64."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from recurra.kernels.cpu_math import exp, log_sigmoid
from recurra.kernels.gated_scan.numba_product import multiply, pack, padded
from recurra.kernels.jit import jit


@jit
def _each(x, exponential, logarithm):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        exponential[i] = exp(x[i])
        logarithm[i] = log_sigmoid(x[i])


def both(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    exponential, logarithm = np.zeros_like(values), np.zeros_like(values)
    _each(values, exponential, logarithm)
    return exponential, logarithm


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-7), (np.float64, 1e-15)])
def test_relative_error_of_exponential_and_log_sigmoid(dtype, tolerance):
    x = np.linspace(-80, 80, 100001).astype(dtype)
    exponential, logarithm = both(x)
    np.testing.assert_allclose(exponential, np.exp(x.astype(np.float64)), rtol=tolerance)
    np.testing.assert_allclose(logarithm, -np.logaddexp(0, -x.astype(np.float64)), rtol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_out(dtype):
    exponential, logarithm = both(np.array([-np.inf, -1000, 0, 1000, np.inf, np.nan], dtype))
    np.testing.assert_array_equal(exponential, np.array([0, 0, 1, np.inf, np.inf, np.nan]))
    np.testing.assert_allclose(logarithm, np.array([-np.inf, -1000, -np.log(2), 0, 0, np.nan]), rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize(("depth", "columns"), [(1, 1), (5, 16), (7, 33), (64, 192), (0, 16), (3, 112)])
def test_product_with_packed_weights(dtype, rows, depth, columns):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, columns, depth, generator=generator, dtype=dtype)
    x = torch.randn(rows, depth, generator=generator, dtype=dtype)
    out = np.full((rows, padded(columns)), np.nan, x.numpy().dtype)
    multiply(x.numpy(), pack(weights)[1], out)
    expected = (x.double() @ weights[1].double().t()).numpy()
    np.testing.assert_allclose(out[:, :columns], expected, atol=1e-5 if dtype == torch.float32 else 1e-13)
    assert not out[:, columns:].any()
