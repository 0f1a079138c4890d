"""Training losses: means over the observed elements of a batch, in float32 at least.

A target that was not observed may hold anything, NaN too: it is taken out before the arithmetic, so that the loss and
its gradient stay finite. Without an observed element the loss is 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

Prediction = Float[Tensor, "batch horizon variate *quantile"]
Target = Float[Tensor, "batch horizon variate"]
Observed = Bool[Tensor, "batch horizon variate"]


def masked_mean(values: Tensor, observed: Tensor | None) -> Float[Tensor, ""]:
    """Mean of the observed values; 0 if there is none."""
    if observed is None:
        return values.mean()
    return torch.where(observed, values, 0).sum() / observed.sum().clamp_min(1)


class Loss(nn.Module, ABC):
    """Scalar loss of a batch of forecasts."""

    def forward(self, prediction: Prediction, target: Target, observed: Observed | None = None) -> Float[Tensor, ""]:
        """Compares forecasts with what came.

        Args:
            prediction: point forecasts, or with a last axis the point forecast and then each quantile.
            target: what came.
            observed: False where the target counts for nothing; all of it counts by default.
        """
        if prediction.shape[:3] != target.shape or (observed is not None and observed.shape != target.shape):
            shapes = ", ".join(str(tuple(x.shape)) for x in (prediction, target, observed) if x is not None)
            raise ValueError(
                f"prediction, target and observed have shapes {shapes}; expected (batch, horizon, variate)"
            )
        with torch.autocast(prediction.device.type, enabled=False):
            if prediction.dtype in (torch.float16, torch.bfloat16):
                prediction = prediction.float()
            target = target.to(prediction.dtype)
            if observed is not None:
                target = torch.where(observed, target, 0)
                mask = observed if prediction.ndim == 3 else observed[..., None]
                prediction = torch.where(mask, prediction, 0)
            return self.compare(prediction, target, observed)

    def compare(self, prediction: Tensor, target: Tensor, observed: Tensor | None) -> Float[Tensor, ""]:
        """The loss of targets that are all numbers; by default the mean of the point forecasts' errors."""
        point = prediction if prediction.ndim == 3 else prediction[..., 0]
        return masked_mean(self.error(point, target), observed)

    @abstractmethod
    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error of each element."""


class MAE(Loss):
    """Mean absolute error."""

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """|ŷ - y|."""
        return (prediction - target).abs()


class MSE(Loss):
    """Mean squared error."""

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(ŷ - y)²."""
        return (prediction - target).square()


class MALE(Loss):
    """Mean absolute error of log(1 + y); NaN below -1."""

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """|log(1 + ŷ) - log(1 + y)|."""
        return (prediction.log1p() - target.log1p()).abs()


class MSLE(Loss):
    """Mean squared error of log(1 + y); NaN below -1."""

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(log(1 + ŷ) - log(1 + y))²."""
        return (prediction.log1p() - target.log1p()).square()


class RMSE(MSE):
    """Root of the mean squared error."""

    def compare(self, prediction: Tensor, target: Tensor, observed: Tensor | None) -> Float[Tensor, ""]:
        """The root; its gradient at 0 is 0."""
        return _root(super().compare(prediction, target, observed))


class RMSLE(MSLE):
    """Root of the mean squared error of log(1 + y); NaN below -1."""

    def compare(self, prediction: Tensor, target: Tensor, observed: Tensor | None) -> Float[Tensor, ""]:
        """The root; its gradient at 0 is 0."""
        return _root(super().compare(prediction, target, observed))


class Huber(Loss):
    """Half the squared error up to `delta`, from there on linear (Huber 1964).

    Args:
        delta: where the line begins.
    """

    def __init__(self, *, delta: float = 1.0) -> None:
        super().__init__()
        if not delta > 0:
            raise ValueError(f"delta must be positive; got {delta}")
        self.delta = delta

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Huber's function of ŷ - y."""
        return F.huber_loss(prediction, target, reduction="none", delta=self.delta)


class Pinball(Loss):
    """Mean pinball loss of the point forecast, as the median, and of each quantile (Koenker and Bassett 1978).

    Args:
        quantiles: of the prediction's last axis after the point forecast.
    """

    def __init__(self, *, quantiles: tuple[float, ...] = ()) -> None:
        super().__init__()
        if not all(0 < q < 1 for q in quantiles):
            raise ValueError(f"quantiles must be between 0 and 1; got {quantiles}")
        self.quantiles = quantiles

    def compare(self, prediction: Tensor, target: Tensor, observed: Tensor | None) -> Float[Tensor, ""]:
        """Mean over the quantiles too."""
        heads = prediction if prediction.ndim == 4 else prediction[..., None]
        levels = (0.5, *self.quantiles)
        if heads.shape[-1] != len(levels):
            raise ValueError(
                f"prediction has {heads.shape[-1]} heads; expected the point and {len(levels) - 1} quantiles"
            )
        error = target[..., None] - heads
        level = error.new_tensor(levels)
        return masked_mean(torch.maximum(level * error, (level - 1) * error).mean(-1), observed)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Of the median."""
        return 0.5 * (prediction - target).abs()


class PairwiseMSE(MSE):
    """Mean squared error between every forecast of a batch and every target of it: ResNLS's published loss.

    There a (batch, 1) prediction meets a (batch) target, and broadcasting compares all with all: the forecasts are
    drawn to the mean of the batch. For parity only.
    """

    def compare(self, prediction: Tensor, target: Tensor, observed: Tensor | None) -> Float[Tensor, ""]:
        """Mean over all pairs of a step and variate."""
        point = prediction if prediction.ndim == 3 else prediction[..., 0]
        pairs = self.error(point[:, None], target[None])
        if observed is None:
            return pairs.mean()
        return masked_mean(pairs, observed[:, None] & observed[None])


class R2Loss(Loss):
    """1 - R², where R² is that of ReGENN's authors: sums over time, but the mean of the targets over samples.

    In float64, for each sample and variable, with 1e-8 added to numerator and denominator, then their mean.
    """

    def compare(self, prediction: Tensor, target: Tensor, observed: Tensor | None) -> Float[Tensor, ""]:
        """One minus the score."""
        return 1 - r2_score(prediction if prediction.ndim == 3 else prediction[..., 0], target, observed)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Squares, whose sums the score is made of."""
        return (prediction - target).square()


def r2_score(prediction: Target, target: Target, observed: Observed | None = None) -> Float[Tensor, ""]:
    """The score behind `R2Loss`, 1 at best."""
    p, t = prediction.double(), target.double()
    mask = torch.ones_like(t, dtype=torch.bool) if observed is None else observed
    p, t = torch.where(mask, p, 0), torch.where(mask, t, 0)
    mean = t.sum(0) / mask.sum(0).clamp_min(1)
    unexplained = torch.where(mask, (t - p).square(), 0).sum(-2) + 1e-8
    total = torch.where(mask, (t - mean).square(), 0).sum(-2) + 1e-8
    return 1 - masked_mean(unexplained / total, mask.any(-2))


def _root(mean: Tensor) -> Tensor:
    """Square root with a gradient of 0 at 0, where the derivative is infinite."""
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).sqrt()


LOSSES: dict[str, Callable[..., Loss]] = {
    kind.__name__: kind for kind in (MAE, MALE, MSE, MSLE, RMSE, RMSLE, R2Loss, Huber, Pinball, PairwiseMSE)
}
