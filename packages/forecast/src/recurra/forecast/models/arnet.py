"""AR-Net: an autoregression as one linear layer, trained by gradient descent.

Triebe, Laptev and Rajagopal 2019, arXiv:1911.12436. The authors' programs are https://github.com/ourownstory/AR-Net
(v0_1, the paper's, and the package arnet 1.2) and https://github.com/ourownstory/neural_prophet. Where ours differs:
every layer is registered, so that a third one is trained and saved, which those of v0_1 are not; roots in the penalty
have 1e-9 inside, so that its gradient at 0 is finite; the penalty's ramp never stays at 0, as that of 1.2 does where it
begins late.
"""

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recurra.core.checks import one_of
from recurra.forecast.models.forecaster import Forecaster
from recurra.forecast.sparsity import (
    TINY,
    lambda_v0_1,
    lambda_v1_2,
    logarithmic,
    ramp_neuralprophet,
    ramp_v0_1,
    ramp_v1_2,
    squashed,
)

Regulariser = Literal["none", "v0_1", "v1_2", "neuralprophet"]


def spread_quantiles(
    outputs: Float[Tensor, "*shape output"], below: int, *, cross: bool = False
) -> Float[Tensor, "*shape output"]:
    """The median, and then each quantile, out of the median and distances from it.

    The median is detached in the other quantiles: it is trained by its own loss alone.

    Args:
        outputs: the median, then the distances of the quantiles below it and above it, in ascending order of quantile.
        below: how many lie below it.
        cross: take distances as they are, negative ones too, as NeuralProphet does in training, where a distance that
            were cut off would have no gradient. Otherwise none is negative, and none less than one nearer the median.
    """
    median, lower, upper = torch.split(outputs, [1, below, outputs.shape[-1] - 1 - below], -1)
    if not cross:
        upper = _outward(upper)
        lower = _outward(lower.flip(-1)).flip(-1)
    return torch.cat([median, median.detach() - lower, median.detach() + upper], -1)


def _outward(distances: Tensor) -> Tensor:
    """Never negative, never less than the one before."""
    steps = [distances.clamp(min=0)[..., :1]]
    for i in range(1, distances.shape[-1]):
        steps.append(torch.maximum(steps[-1], distances[..., i : i + 1]))
    return torch.cat(steps, -1)


class ARNet(Forecaster):
    """Linear autoregression, or with `hidden` a network of ReLU layers in its place:

        y_{t+i} = c_i + Σ_{k=1..p} w_{i,k} y_{t+1-k} + covariates,      i = 1..h

    The horizon is one output a step. A series' variates, if there are several, all go through the same weights.

    Args:
        window: lags p.
        horizon: steps h.
        hidden: widths of the layers between; none for an autoregression.
        covariates: columns, each of which is an input at every step of the window and of the horizon.
        output_bias: whether the last layer has a constant; NeuralProphet's has none behind hidden layers.
        regulariser: of the coefficients: that of the paper's code, of arnet 1.2, of NeuralProphet, or none.
        sparsity: share of the coefficients that are expected not to be 0; what v0_1 and v1_2 get their weight from.
        strength: times the published weight; NeuralProphet's ar_reg.
        noise: of the series, for v1_2.
        epochs: of the training, for the ramp of v0_1, which goes by epochs.
        delay: epochs until the penalty of v0_1 is whole.
        parity: leave out what keeps the penalty's gradient finite at 0.
        quantiles: distances from the median are learned; the median is the point forecast.
        calibration: see `Forecaster`.
    """

    takes_covariates = True

    def __init__(
        self,
        *,
        window: int,
        horizon: int = 1,
        hidden: tuple[int, ...] = (),
        covariates: int = 0,
        output_bias: bool = True,
        regulariser: Regulariser = "none",
        sparsity: float = 1.0,
        strength: float = 1.0,
        noise: float = 1.0,
        epochs: int = 10,
        delay: float = 10.0,
        parity: bool = False,
        quantiles: tuple[float, ...] = (),
        calibration: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__(window=window, horizon=horizon, quantiles=quantiles, calibration=calibration)
        one_of("regulariser", regulariser, Regulariser)
        if not 0 < sparsity <= 1:
            raise ValueError(f"sparsity must be above 0 and at most 1; got {sparsity}")
        self.covariates, self.regulariser = covariates, regulariser
        self.sparsity, self.strength, self.noise = sparsity, strength, noise
        self.epochs, self.delay, self.tiny = epochs, delay, 0.0 if parity else TINY
        # The median of the quantiles is the point itself.
        self.outputs = 1 + sum(q != 0.5 for q in quantiles)
        widths = [window, *hidden, horizon * self.outputs]
        last = len(widths) - 2
        self.layers = nn.ModuleList(
            nn.Linear(source, target, bias=i < last or output_bias)
            for i, (source, target) in enumerate(pairwise(widths))
        )
        if covariates:
            self.covariate_layer = nn.Linear((window + horizon) * covariates, widths[1], bias=False)

    def forward(
        self,
        past: Float[Tensor, "batch window variate"],
        marks: Float[Tensor, "batch steps mark"] | None = None,
        covariates: Float[Tensor, "batch steps covariate"] | None = None,
    ) -> Float[Tensor, "batch horizon variate *quantile"]:
        """The forecast; see `Forecaster.forward`. Quantiles never cross, but for those of a model in training mode."""
        self.check(past, marks, covariates)
        found = 0 if covariates is None else covariates.shape[-1]
        if found != self.covariates:
            raise ValueError(f"covariates has {found} columns; expected {self.covariates}")
        x: Tensor = self.layers[0](past.mT)  # (batch, variate, output)
        if covariates is not None and self.covariates:
            x = x + self.covariate_layer(covariates.flatten(1))[:, None]
        for layer in list(self.layers)[1:]:
            x = layer(torch.relu(x))
        x = x.reshape(*x.shape[:2], self.horizon, self.outputs).transpose(1, 2)  # (batch, horizon, variate, output)
        return self._quantiles(x) if self.quantiles else x[..., 0]

    def _quantiles(self, outputs: Float[Tensor, "*shape output"]) -> Float[Tensor, "*shape quantile"]:
        """The point and then each quantile, the median among them too."""
        below = sum(q < 0.5 for q in self.quantiles)
        spread = spread_quantiles(outputs, below, cross=self.training)
        if 0.5 not in self.quantiles:
            return spread
        return torch.cat([spread[..., : 1 + below], spread[..., :1], spread[..., 1 + below :]], -1)

    def _first_weights(self) -> Tensor:
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        return first.weight

    def coefficients(self) -> Float[Tensor, "output window"]:
        """Weights of the lags, lag 1 first: of each step of the horizon, or of each unit of the first hidden layer."""
        weights = self._first_weights()
        if len(self.layers) == 1:
            weights = weights[:: self.outputs]
        return weights.flip(-1)

    def penalty(self, progress: float) -> Tensor | None:
        """What is added to the training loss; None if there is no regulariser.

        Args:
            progress: share of the training that is done with this step, (step + 1) / steps; in (0, 1].
        """
        weights = self._first_weights()
        if self.regulariser == "v0_1":
            scale = lambda_v0_1(self.sparsity) * ramp_v0_1(progress, self.epochs, self.delay)
            size = squashed(weights, 3.0, 3.0, tiny=self.tiny).mean()
        elif self.regulariser == "v1_2":
            scale = lambda_v1_2(self.sparsity, self.noise) * ramp_v1_2(progress)
            size = squashed(weights, 2.0, 2.0, tiny=self.tiny).mean()
        elif self.regulariser == "neuralprophet":
            scale = 1e-4 * ramp_neuralprophet(progress)
            size = logarithmic(weights).sum() / self.horizon
        else:
            return None
        # Nothing times the NaN that a gradient at 0 may be would still be one.
        return self.strength * scale * size if scale else weights.new_zeros(())
