"""Normalisation of sequences whose padding does not count."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from recurra.core.nn.recurrent import valid_steps


class SequenceBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over all steps of all sequences (Ioffe and Szegedy 2015, arXiv:1502.03167)."""

    def forward(
        self, x: Float[Tensor, "batch time width"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch time width"]:
        """The normalised sequences; 0 in the padding, which takes no part in the statistics."""
        if lengths is None:
            return super().forward(x.flatten(0, 1)).view(x.shape) if x.shape[0] * x.shape[1] else x
        valid = valid_steps(lengths, x.shape[1])[..., None]
        if not self.training:
            return torch.where(valid, super().forward(x.flatten(0, 1)).view(x.shape), 0)
        # Statistics are summed in float32 at least, as torch's own are.
        count = lengths.sum().clamp_min(1)
        wide = x.double() if x.dtype == torch.float64 else x.float()
        mean = torch.where(valid, wide, 0).sum((0, 1)) / count
        variance = torch.where(valid, wide - mean, 0).square().sum((0, 1)) / count
        self._remember(mean.detach(), (variance * count / (count - 1).clamp_min(1)).detach())
        normalised = (wide - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return torch.where(valid, normalised, 0).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def instance_norm(
    x: Float[Tensor, "batch time width"],
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    lengths: Int[Tensor, " batch"] | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "batch time width"]:
    """Every channel of every sequence with mean 0 and biased variance 1 over time, then scaled and shifted.

    No running statistics: the same in training and evaluation. Padding does not count, and is 0 in the result.
    """
    # Sums in float32 at least, as torch's own. One step has no spread, which torch's own refuses while training.
    wide = x.double() if x.dtype == torch.float64 else x.float()
    count: Tensor | int = max(x.shape[1], 1)
    if lengths is not None:
        valid = valid_steps(lengths, x.shape[1])[..., None]
        wide, count = torch.where(valid, wide, 0), lengths.clamp_min(1)[:, None, None]
    centred = wide - wide.sum(1, keepdim=True) / count
    if lengths is not None:
        centred = torch.where(valid, centred, 0)
    spread = centred.square().sum(1, keepdim=True) / count
    y = (centred * (torch.rsqrt(spread + eps) * weight) + bias).to(x.dtype)
    return y if lengths is None else torch.where(valid, y, 0)
