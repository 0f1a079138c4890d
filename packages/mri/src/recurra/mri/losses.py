"""Training losses on magnitude images, and the sum over a recurrent model's estimates.

A model's `estimates(...)` gives (weight, estimate) pairs: every step of every cascade for the RIMs, one pair for the
others. `accumulated(loss, pairs, target)` is what training minimises,

    sum of weight * loss(|estimate|, |target|).

The weights are the model's (CIRIM: v_t w_c / (T K) with v, w = logspace(-1, 0)); the comparison is one of `LOSSES`.
Every comparison runs in float32 at least, also inside autocast regions: variances in half precision are noise.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from recurra.core.checks import one_of
from recurra.mri.operators import center_crop

Image = Float[Tensor, "batch height width"] | Complex[Tensor, "batch height width"]
Normalization = Literal["none", "max"]
DataRange = Literal["item", "batch", "span"]


class ImageLoss(nn.Module, ABC):
    """Scalar loss of a batch of images; complex images are compared by their magnitudes.

    Args:
        normalize: "max" divides the prediction and the target each by its largest magnitude in the batch, which makes
            the loss blind to scale (mridc, ATOMMIC); "none" compares as they are (direct, fastMRI).
    """

    needs_phase: bool = False
    """Whether the target must be complex."""

    def __init__(self, *, normalize: Normalization = "none") -> None:
        super().__init__()
        one_of("normalize", normalize, Normalization)
        self.normalize = normalize

    def forward(self, prediction: Image, target: Image) -> Float[Tensor, ""]:
        """Compares two batches of images of the same shape (batch, height, width)."""
        if prediction.ndim != 3 or prediction.shape != target.shape:
            raise ValueError(
                f"prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}; "
                "expected the same (batch, height, width)"
            )
        with torch.autocast(prediction.device.type, enabled=False):
            return self.compare(self._magnitude(prediction), self._magnitude(target))

    @abstractmethod
    def compare(
        self, prediction: Float[Tensor, "batch height width"], target: Float[Tensor, "batch height width"]
    ) -> Float[Tensor, ""]:
        """The loss of normalised magnitudes."""

    def _magnitude(self, image: Image) -> Float[Tensor, "batch height width"]:
        image = image.abs() if image.is_complex() else image
        if image.dtype in (torch.float16, torch.bfloat16):
            image = image.float()
        return image / image.abs().max() if self.normalize == "max" else image


class L1(ImageLoss):
    """Mean absolute error."""

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over all pixels."""
        return F.l1_loss(prediction, target)


class L2(ImageLoss):
    """Mean squared error."""

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over all pixels."""
        return F.mse_loss(prediction, target)


class NMAE(ImageLoss):
    """Sum of absolute errors over the sum of the target's magnitudes, over the whole batch (direct)."""

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Ratio of L1 norms."""
        return (prediction - target).abs().sum() / target.abs().sum()


class NMSE(ImageLoss):
    """Squared error over the squared norm of the target, over the whole batch (direct)."""

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Ratio of squared L2 norms."""
        return (prediction - target).square().sum() / target.square().sum()


class NRMSE(ImageLoss):
    """Square root of `NMSE` (direct)."""

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Ratio of L2 norms."""
        ratio: Tensor = torch.linalg.vector_norm(prediction - target) / torch.linalg.vector_norm(target)
        return ratio


class SSIM(ImageLoss):
    """1 - mean structural similarity (Wang et al. 2004) of uniform windows that lie within the image.

    With the unbiased covariance factor n / (n - 1), n = window^2 (49/48), it equals 1 - scikit-image's value.

    Args:
        window: Side of the window.
        k1: Stabiliser of the means, as a fraction of the data range.
        k2: Stabiliser of the variances.
        data_range: "item": each target's maximum (fastMRI); "batch": the maximum of the target batch (direct);
            "span": maximum over both images minus minimum over both, of the whole batch (ATOMMIC).
        normalize: As in `ImageLoss`.
    """

    def __init__(
        self,
        *,
        window: int = 7,
        k1: float = 0.01,
        k2: float = 0.03,
        data_range: DataRange = "item",
        normalize: Normalization = "none",
    ) -> None:
        super().__init__(normalize=normalize)
        one_of("data_range", data_range, DataRange)
        self.window = window
        self.k1 = k1
        self.k2 = k2
        self.data_range = data_range

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """1 - mean of the similarity map."""
        data_range = self._range(prediction, target)
        return 1 - ssim_map(prediction, target, data_range, window=self.window, k1=self.k1, k2=self.k2).mean()

    def _range(self, prediction: Tensor, target: Tensor) -> Tensor:
        if self.data_range == "item":
            return target.amax(dim=(1, 2))
        if self.data_range == "batch":
            return target.max().expand(len(target))
        # The reference takes the span as a plain number: no gradient flows through it.
        both = torch.stack([prediction, target]).detach()
        return (both.max() - both.min()).expand(len(target))


class L1SSIM(ImageLoss):
    """l1 * mean absolute error + ssim * (1 - SSIM).

    1 and 1 with data_range "batch" is direct's loss; 0.1 and 0.9 with "span" and normalize "max" is ATOMMIC's.
    """

    def __init__(
        self,
        *,
        l1: float = 1.0,
        ssim: float = 1.0,
        window: int = 7,
        data_range: DataRange = "batch",
        normalize: Normalization = "none",
    ) -> None:
        super().__init__(normalize=normalize)
        self.l1 = l1
        self.ssim = ssim
        # The images reach it normalised already.
        self.similarity = SSIM(window=window, data_range=data_range)

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Weighted sum of both."""
        return self.l1 * F.l1_loss(prediction, target) + self.ssim * self.similarity.compare(prediction, target)


class ComplexL1SSIM(L1SSIM):
    """l1 * mean magnitude of the complex difference + ssim * (1 - SSIM of the magnitudes).

    It teaches the phase too, which magnitudes leave free and data consistency needs: fewer steps to the same image. The
    target is the reference combined with the network's own coil maps, as only that has a phase to compare with.
    """

    needs_phase = True

    def forward(self, prediction: Image, target: Image) -> Float[Tensor, ""]:
        """Compares two batches of complex images of the same shape (batch, height, width)."""
        if not (prediction.is_complex() and target.is_complex()):
            raise ValueError(
                f"ComplexL1SSIM compares complex images; got {prediction.dtype} and {target.dtype}. "
                "For models that give magnitudes use L1SSIM"
            )
        with torch.autocast(prediction.device.type, enabled=False):
            difference: Tensor = (prediction - target).abs().mean()
            similarity: Tensor = self.similarity(prediction, target)
            return self.l1 * difference + self.ssim * similarity


class Wasserstein(ImageLoss):
    """Entropy-regularised optimal transport between the rows of both images (Cuturi 2013), by Sinkhorn iterations.

    Each image is a cloud of `height` points, its rows, of equal mass; moving a row costs the squared distance between
    rows. The loss is the transport cost of the regularised plan, mean over the batch. The entropy keeps it above zero
    for equal images. ATOMMIC trained its Stanford knee models with a loss of this name and kind; no numbers of its
    code were at hand to compare with.

    Args:
        regularization: Weight of the entropy, in units of the cost.
        iterations: Sinkhorn iterations at most.
        tolerance: They stop when the potentials move less than this, summed over rows.
        normalize: As in `ImageLoss`.
    """

    def __init__(
        self,
        *,
        regularization: float = 0.1,
        iterations: int = 100,
        tolerance: float = 0.1,
        normalize: Normalization = "none",
    ) -> None:
        super().__init__(normalize=normalize)
        self.regularization = regularization
        self.iterations = iterations
        self.tolerance = tolerance

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Transport cost in log space: the plan is exp((u + v - cost) / regularization)."""
        # Multiplied out, for the differences of all pairs of rows fill gigabytes.
        norms = prediction.square().sum(-1)[:, :, None] + target.square().sum(-1)[:, None, :]
        cost = (norms - 2 * prediction @ target.mT).clamp(min=0)  # (batch, height, height)
        log_mass = -torch.log(cost.new_tensor(float(cost.shape[1])))
        u = v = cost.new_zeros(cost.shape[:2])
        for _ in range(self.iterations):
            before = u
            u = self.regularization * (log_mass - torch.logsumexp(self._log_plan(cost, 0 * u, v), dim=2))
            v = self.regularization * (log_mass - torch.logsumexp(self._log_plan(cost, u, 0 * v), dim=1))
            if (u - before).detach().abs().sum(-1).mean() < self.tolerance:
                break
        return (self._log_plan(cost, u, v).exp() * cost).sum(dim=(1, 2)).mean()

    def _log_plan(self, cost: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (u[:, :, None] + v[:, None, :] - cost) / self.regularization


class PSNR(ImageLoss):
    """Mean over the batch of the peak signal-to-noise ratio in dB, peak = the prediction's maximum (direct).

    Higher is better: a figure to watch, not one of `LOSSES`.
    """

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean of the items' ratios."""
        error = (prediction - target).square().mean(dim=(1, 2))
        return (20 * prediction.amax(dim=(1, 2)).log10() - 10 * error.log10()).mean()


LOSSES: dict[str, type[ImageLoss]] = {
    "L1": L1,
    "L2": L2,
    "NMAE": NMAE,
    "NMSE": NMSE,
    "NRMSE": NRMSE,
    "SSIM": SSIM,
    "L1SSIM": L1SSIM,
    "ComplexL1SSIM": ComplexL1SSIM,
    "Wasserstein": Wasserstein,
}


def accumulated(loss: ImageLoss, estimates: Sequence[tuple[float, Tensor]], target: Image) -> Float[Tensor, ""]:
    """Sum of weight * loss over the (weight, estimate) pairs of `Reconstructor.estimates`.

    Estimates larger than the target are centre-cropped to it: targets may be cut to the scanner's recon size.

    Raises:
        ValueError: If there is no estimate, or one is smaller than the target.
    """
    if not estimates:
        raise ValueError("estimates is empty; expected at least one (weight, estimate) pair")
    size = (target.shape[-2], target.shape[-1])
    terms = [weight * loss(center_crop(estimate, size), target) for weight, estimate in estimates]
    return torch.stack(terms).sum()


def ssim_map(
    prediction: Float[Tensor, "batch height width"],
    target: Float[Tensor, "batch height width"],
    data_range: Float[Tensor, " batch"],
    *,
    window: int = 7,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Float[Tensor, "batch rows columns"]:
    """Structural similarity of every window that fits, (height - window + 1, width - window + 1) of them."""
    if min(target.shape[-2:]) < window:
        raise ValueError(f"SSIM needs images of at least {window} x {window} pixels; got {tuple(target.shape)}")
    box = prediction.new_full((1, 1, window, window), 1 / window**2)
    moments = torch.cat([prediction, target, prediction**2, target**2, prediction * target])
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = F.conv2d(moments[:, None], box)[:, 0].chunk(5)
    unbiased = window**2 / (window**2 - 1)
    variance_x = unbiased * (mean_xx - mean_x * mean_x)
    variance_y = unbiased * (mean_yy - mean_y * mean_y)
    covariance = unbiased * (mean_xy - mean_x * mean_y)
    # A target that is empty, as outer slices are, has no range; without a least one 0/0 would end the training.
    data_range = data_range.clamp_min(1e-6)[:, None, None]
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    similar: Tensor = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    possible: Tensor = (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return similar / possible
