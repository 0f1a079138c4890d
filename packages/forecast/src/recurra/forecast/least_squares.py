"""Linear regression out of sums of products, with standard errors; and, where those lose too much, out of its rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack, svd

Array = NDArray[np.float64]

WORST = 1e12
"""Condition number of the sums of products from which on they no longer tell the parameters."""


@dataclass(frozen=True)
class Solution:
    """What a regression found.

    Attributes:
        params: (parameter,).
        root: (parameter, parameter), lower triangular or (rank, parameter); the covariance is its transpose times it,
            times the residual variance.
        residual: sum of the squared residuals.
    """

    params: Array
    root: Array
    residual: float

    def spread(self, direction: Array | None = None) -> Array:
        """Root of the diagonal of the unscaled covariance, or of its quadratic form in one direction."""
        if direction is None:
            return np.asarray(np.sqrt(np.einsum("ij,ij->j", self.root, self.root)))
        return np.asarray(np.linalg.norm(self.root @ direction))


def from_sums(upper: Array, right: Array, total: float) -> Solution | None:
    """The parameters out of sums over rows; None if their condition number is too great.

    Args:
        upper: (parameter, parameter) sums of products of the regressors; the lower triangle is 0. It is overwritten.
        right: (parameter,) sums of products with the target.
        total: sum of the squared targets.
    """
    scale = np.sqrt(np.diagonal(upper))
    if not (scale > 0).all():
        return None
    inverse = 1 / scale
    upper *= inverse[:, None]
    upper *= inverse
    flat = upper.ravel()
    norm = float(np.sqrt(2 * (flat @ flat) - len(scale)))  # of both triangles; the diagonal is 1
    # Transposed it is what LAPACK calls lower, and in its order: nothing is copied.
    factor, failed = lapack.dpotrf(upper.T, lower=1, overwrite_a=1, clean=1)
    if failed:
        return None
    reciprocal, _ = lapack.dpocon(factor, norm, uplo="L")
    if reciprocal * WORST < 1:
        return None
    params, _ = lapack.dpotrs(factor, right * inverse, lower=1)
    residual = total - float(params @ (right * inverse))
    root, _ = lapack.dtrtri(factor, lower=1, overwrite_c=1)
    root *= inverse
    return Solution(params * inverse, root, max(residual, 0.0))


def from_rows(design: Array, target: Array) -> Solution:
    """The shortest parameters of least squares out of the rows themselves (row, parameter) and (row,)."""
    scale = np.linalg.norm(design, axis=0)
    scale[scale == 0] = 1.0
    left, values, right = svd(design / scale, full_matrices=False)
    kept = values > values.max(initial=0.0) * max(design.shape) * np.finfo(np.float64).eps
    root = right[kept] / values[kept, None] / scale
    params = root.T @ (left[:, kept].T @ target)
    residual = target - design @ params
    return Solution(params, root, float(residual @ residual))
