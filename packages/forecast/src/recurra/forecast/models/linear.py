"""One linear map from the window to the horizon, shared by all series and fitted in closed form.

The floor that every trained forecast has to be read against (Toner and Darlow 2024, arXiv:2403.14587, show that the
linear models of the field are all this one). The fit needs the second moments of the windows alone, which
`recurra.forecast.window_sums` gathers without a matrix of windows.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor, nn

from recurra.core.errors import UserError
from recurra.forecast.models.forecaster import Forecaster
from recurra.forecast.window_sums import WindowSums, columns, mean_of, stretches

Array = NDArray[np.float64]
_Self = TypeVar("_Self", bound="LinearMap")


class LinearMap(Forecaster):
    """Window -> horizon by one matrix:

        y = W (x - m) + b + m,      m the mean of the window, or 0

    Args:
        window: steps that it sees.
        horizon: steps that it forecasts.
        center: take the window's mean away and give it back.
        constant: whether there is a b.
        ridge: penalty on the squares of W and b beside the mean squared error of a sample.
        quantiles: none; intervals come from residuals.
        calibration: see `Forecaster`.
    """

    def __init__(
        self,
        *,
        window: int,
        horizon: int,
        center: bool = True,
        constant: bool = False,
        ridge: float = 0.01,
        quantiles: tuple[float, ...] = (),
        calibration: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__(window=window, horizon=horizon, quantiles=quantiles, calibration=calibration)
        if quantiles:
            raise ValueError("LinearMap has no quantiles; its intervals come from residuals")
        if ridge < 0:
            raise ValueError(f"ridge must be at least 0; got {ridge}")
        self.center, self.ridge = center, ridge
        self.map = nn.Linear(window, horizon, bias=constant)

    def forward(
        self,
        past: Float[Tensor, "batch window variate"],
        marks: Float[Tensor, "batch steps mark"] | None = None,
        covariates: Float[Tensor, "batch steps covariate"] | None = None,
    ) -> Float[Tensor, "batch horizon variate"]:
        """The forecast (batch, horizon, variate); see `Forecaster.forward`."""
        self.check(past, marks, covariates)
        mean = past.mean(1, keepdim=True) if self.center else past.new_zeros(())
        forecast: Tensor = self.map((past - mean).mT).mT + mean
        return forecast

    @torch.no_grad()
    def fit(self: _Self, values: Sequence[Array]) -> _Self:
        """The same model with the weights of least error over every window of these series.

        Args:
            values: series (time,), or (time, variate) with every column a series; NaN where a value is missing: windows
                that hold one are left out.

        Raises:
            UserError: no series has a window and a horizon without a gap.
        """
        series = columns(values)
        sums = WindowSums(self.window + self.horizon, shift=mean_of(series)).add(series)
        if not sums.count:
            raise too_short(series, self.window, self.horizon)
        return self.solve(sums)

    @torch.no_grad()
    def solve(self: _Self, sums: WindowSums) -> _Self:
        """The same model with the weights of least error over the windows that were summed up.

        Args:
            sums: of windows of `window + horizon` values.
        """
        gram, mean = self._moments(sums)
        window = self.window
        system, right = gram[:window, :window] + self.ridge * np.eye(window), gram[:window, window:]
        if self.center:
            # Nothing is left along the constant direction; what is added there keeps the solution free of it.
            system += np.trace(system) / window**2
        if self.map.bias is not None:  # one more input, which is always 1
            system = np.block([[system, mean[:window, None]], [mean[:window], np.full(1, 1 + self.ridge)]])
            right = np.concatenate([right, mean[None, window:]])
        solution = symmetric_solve(system, right)
        self.map.weight.copy_(torch.from_numpy(solution[:window].T))
        if self.map.bias is not None:
            self.map.bias.copy_(torch.from_numpy(solution[window]))
        return self

    def _moments(self, sums: WindowSums) -> tuple[Array, Array]:
        """Mean products and means of the values of a window and its horizon, without the window's mean if so asked."""
        gram, mean, window = sums.gram() / sums.count, sums.first / sums.count, self.window
        if not self.center:
            return gram + sums.shift * (mean[:, None] + mean) + sums.shift**2, mean + sums.shift
        with_mean = gram[:, :window].mean(1)
        return gram - with_mean[:, None] - with_mean + with_mean[:window].mean(), mean - mean[:window].mean()


def symmetric_solve(system: Array, right: Array) -> Array:
    """Solution of a system that has no negative eigenvalue; the shortest one where it is singular."""
    try:
        factor, lower = linalg.cho_factor(system, lower=True)
        pivots = np.diagonal(factor)
        if pivots.min() > 1e-7 * pivots.max():
            return np.asarray(linalg.cho_solve((factor, lower), right))
    except linalg.LinAlgError:
        pass
    values, vectors = linalg.eigh(system)
    kept = values > 1e-12 * max(values[-1], np.finfo(np.float64).tiny)
    vectors = vectors[:, kept]
    return np.asarray(vectors @ ((vectors.T @ right).T / values[kept]).T)


def too_short(series: Sequence[Array], window: int, horizon: int) -> UserError:
    """What to say where nothing can be fitted."""
    longest = max((stop - start for one in series for start, stop in stretches(one)), default=0)
    return UserError(
        f"no series has {window + horizon} values in a row (window {window} and horizon {horizon}); the longest "
        f"stretch without a gap has {longest}. Shorten the window, or fill gaps with --fill"
    )
