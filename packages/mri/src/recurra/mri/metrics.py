"""Image quality as three communities report it; their numbers are not comparable with one another.

| function                   | peak of SSIM and PSNR            | mean over | published by                          |
|----------------------------|----------------------------------|-----------|---------------------------------------|
| `fastmri_metrics`          | maximum of the target *volume*   | volumes   | fastMRI leader board (1811.08839)     |
| `calgary_campinas_metrics` | span of both, target maximum 1   | slices    | Calgary-Campinas MC-MRRec challenge   |
| `scale_invariant_metrics`  | 1, each image divided by its max | slices    | ATOMMIC                               |

The first two punish a wrong scale, the third does not. All take magnitudes (slice, height, width) and compute in
float64. SSIM is scikit-image's own (7x7 box, unbiased covariance), which the leader board runs too.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view

Metrics = dict[str, float]

SSIM_WINDOW = 7
VIF_SMALLEST = 41  # below it the fourth scale of the pyramid has no pixel left


def nmse(target: Float[np.ndarray, "*shape"], prediction: Float[np.ndarray, "*shape"]) -> float:
    """Squared error divided by the squared norm of the target."""
    _check(target, prediction)
    target, prediction = target.astype(np.float64), prediction.astype(np.float64)
    return float(np.sum((target - prediction) ** 2) / np.sum(target**2))


def psnr(
    target: Float[np.ndarray, "*shape"], prediction: Float[np.ndarray, "*shape"], *, maxval: float | None = None
) -> float:
    """Peak signal-to-noise ratio in dB over the whole array; `maxval` defaults to the target's maximum."""
    _check(target, prediction)
    maxval = float(target.max()) if maxval is None else maxval
    error = float(np.mean((target.astype(np.float64) - prediction.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(maxval**2 / error)


def ssim(
    target: Float[np.ndarray, "slice height width"],
    prediction: Float[np.ndarray, "slice height width"],
    *,
    maxval: float | None = None,
) -> float:
    """Mean over slices of the structural similarity; `maxval` defaults to the maximum of the target volume."""
    from skimage.metrics import structural_similarity

    _check_volume(target, prediction)
    maxval = float(target.max()) if maxval is None else maxval
    target, prediction = target.astype(np.float64), prediction.astype(np.float64)
    values = [structural_similarity(t, p, data_range=maxval) for t, p in zip(target, prediction, strict=True)]  # type: ignore[no-untyped-call]
    return float(np.mean(values))


def vif(
    target: Float[np.ndarray, "height width"], prediction: Float[np.ndarray, "height width"], *, noise: float = 2.0
) -> float:
    """Visual information fidelity in the pixel domain (Sheikh and Bovik 2006, vifp), 1 for equal images.

    Per scale, the prediction is modelled as gain times target plus noise in Gaussian windows of 17, 9, 5 and 3
    pixels; the ratio of the information that passes, with visual noise of variance `noise`, is returned.

    Raises:
        ValueError: If an image has a side of less than 41 pixels.
    """
    _check(target, prediction)
    if target.ndim != 2 or min(target.shape) < VIF_SMALLEST:
        raise ValueError(f"vif needs an image of at least {VIF_SMALLEST} x {VIF_SMALLEST} pixels; got {target.shape}")
    t, p = target.astype(np.float64), prediction.astype(np.float64)
    passed = available = 0.0
    for window in (17, 9, 5, 3):
        if window < 17:
            t, p = _blur(t, window)[::2, ::2], _blur(p, window)[::2, ::2]
        gain, residual, variance = _gain_model(t, p, window)
        passed += float(np.sum(np.log10(1 + gain**2 * variance / (residual + noise))))
        available += float(np.sum(np.log10(1 + variance / noise)))
    if available == 0:
        raise ValueError("vif is not defined for a constant target image")
    return passed / available


def fastmri_metrics(
    target: Float[np.ndarray, "slice height width"],
    prediction: Float[np.ndarray, "slice rows columns"],
    *,
    maxval: float | None = None,
) -> Metrics:
    """NMSE, PSNR and SSIM of one volume as the fastMRI leader board computes them.

    Both volumes are first centre-cropped to (W, W), W the last axis of the target (rows are left alone where the
    target has fewer than W); `maxval` defaults to the maximum of the cropped target volume.
    """
    _check_volume(target)
    _check_volume(prediction)
    width = target.shape[-1]
    rows = min(width, target.shape[-2])
    target, prediction = _center_crop(target, rows, width), _center_crop(prediction, rows, width)
    return {
        "nmse": nmse(target, prediction),
        "psnr": psnr(target, prediction, maxval=maxval),
        "ssim": ssim(target, prediction, maxval=maxval),
    }


def calgary_campinas_metrics(
    target: Float[np.ndarray, "slice height width"], prediction: Float[np.ndarray, "slice height width"]
) -> Metrics:
    """SSIM, PSNR and VIF averaged over the slices, as the Calgary-Campinas challenge computes them.

    Both images are divided by the maximum of the target slice; the data range spans both images. VIF uses a noise
    variance of 0.4 and is NaN for images of less than 41 x 41 pixels.
    """
    _check_volume(target, prediction)
    _check_slices(target)
    rows = []
    for t, p in zip(target.astype(np.float64), prediction.astype(np.float64), strict=True):
        t, p = t / t.max(), p / t.max()
        span = float(max(t.max(), p.max()) - min(t.min(), p.min()))
        fidelity = vif(t, p, noise=0.4) if min(t.shape) >= VIF_SMALLEST else math.nan
        rows.append((ssim(t[None], p[None], maxval=span), psnr(t, p, maxval=span), fidelity))
    return dict(zip(("ssim", "psnr", "vif"), np.mean(rows, axis=0).tolist(), strict=True))


def scale_invariant_metrics(
    target: Float[np.ndarray, "slice height width"],
    prediction: Float[np.ndarray, "slice height width"],
    *,
    per: Literal["slice", "volume"] = "slice",
) -> Metrics:
    """MSE, NMSE, PSNR and SSIM after dividing target and |prediction| each by its own maximum, as ATOMMIC reports.

    Args:
        target: Magnitudes.
        prediction: Magnitudes on any scale.
        per: What is normalised and scored at once; "slice" (the published tables) averages over the slices.
    """
    _check_volume(target, prediction)
    t, p = target.astype(np.float64), np.abs(prediction.astype(np.float64))
    if per == "volume":
        return _scale_invariant(t, p)
    _check_slices(target)
    rows = [list(_scale_invariant(t[i : i + 1], p[i : i + 1]).values()) for i in range(len(t))]
    return dict(zip(("mse", "nmse", "psnr", "ssim"), np.mean(rows, axis=0).tolist(), strict=True))


METRICS: dict[str, Callable[..., Metrics]] = {
    "fastmri": fastmri_metrics,
    "calgary_campinas": calgary_campinas_metrics,
    "scale_invariant": scale_invariant_metrics,
}


HIGHER_IS_BETTER = {"mse": False, "nmse": False, "psnr": True, "ssim": True, "vif": True, "kspace_nmse": False}


def _scale_invariant(target: np.ndarray, prediction: np.ndarray) -> Metrics:
    if prediction.max() == 0:
        raise ValueError("the prediction is zero everywhere; scale-invariant metrics divide by its maximum")
    t, p = target / target.max(), prediction / prediction.max()
    # The reference takes the larger span for the PSNR but 1, the maximum of both, for the SSIM.
    span = float(max(np.ptp(t), np.ptp(p)))
    return {
        "mse": float(np.mean((t - p) ** 2)),
        "nmse": nmse(t, p),
        "psnr": psnr(t, p, maxval=span),
        "ssim": ssim(t, p, maxval=1.0),
    }


def _blur(image: np.ndarray, window: int) -> np.ndarray:
    """Gaussian of standard deviation window / 5 over whole windows only: (height - window + 1, width - window + 1)."""
    half = window // 2
    kernel = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * (window / 5) ** 2))
    kernel /= kernel.sum()
    blurred: np.ndarray = sliding_window_view(image, window, axis=0) @ kernel
    return np.asarray(sliding_window_view(blurred, window, axis=1) @ kernel)


def _gain_model(target: np.ndarray, prediction: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gain, residual variance and target variance of prediction = gain * target + noise in each window."""
    epsilon = 1e-10
    mean_t, mean_p = _blur(target, window), _blur(prediction, window)
    variance_t = np.maximum(_blur(target**2, window) - mean_t**2, 0)
    variance_p = np.maximum(_blur(prediction**2, window) - mean_p**2, 0)
    covariance = _blur(target * prediction, window) - mean_t * mean_p

    gain = covariance / (variance_t + epsilon)
    residual = variance_p - gain * covariance
    flat_t, flat_p = variance_t < epsilon, variance_p < epsilon
    gain[flat_t | flat_p] = 0
    residual[flat_t] = variance_p[flat_t]
    residual[flat_p] = 0
    residual[gain < 0] = variance_p[gain < 0]
    return np.maximum(gain, 0), np.maximum(residual, epsilon), np.where(flat_t, 0, variance_t)


def _center_crop(volume: np.ndarray, rows: int, columns: int) -> np.ndarray:
    height, width = volume.shape[-2:]
    if height < rows or width < columns:
        raise ValueError(
            f"prediction has shape {volume.shape}; expected at least {rows} x {columns} pixels, as the target has"
        )
    top, left = (height - rows) // 2, (width - columns) // 2
    return volume[..., top : top + rows, left : left + columns]


def _check(target: np.ndarray, prediction: np.ndarray) -> None:
    if target.shape != prediction.shape:
        raise ValueError(f"prediction has shape {prediction.shape}; expected the target's, {target.shape}")
    for name, image in (("target", target), ("prediction", prediction)):
        if np.iscomplexobj(image):
            raise ValueError(f"{name} is complex; expected a real magnitude image. Pass its absolute value")
        if not np.isfinite(image).all():
            raise ValueError(f"{name} has values that are not finite; expected a finite magnitude image")
    if not np.any(target):
        raise ValueError("target is zero everywhere; the metrics divide by it")


def _check_volume(target: np.ndarray, prediction: np.ndarray | None = None) -> None:
    if target.ndim != 3 or min(target.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"volume has shape {target.shape}; expected (slice, height, width) of at least "
            f"{SSIM_WINDOW} x {SSIM_WINDOW} pixels"
        )
    if prediction is not None:
        _check(target, prediction)


def _check_slices(target: np.ndarray) -> None:
    empty = np.flatnonzero(~target.any(axis=(1, 2)))
    if empty.size:
        raise ValueError(f"target slice {empty[0]} is zero everywhere; per-slice metrics divide by its maximum")
