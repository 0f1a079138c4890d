"""The exact autoregression: what AR-Net learns, found by least squares in one pass over the data.

    y_t = c + d t + Σ_{k=1..p} w_k y_{t-k} + ε_t,      ε ~ N(0, σ²)

The sums over all rows come from a correlation and a recursion (`recurra.forecast.window_sums`), so that no matrix of
lags is ever made; a Cholesky factor of them gives the parameters and their standard errors. Sparse: lags whose
coefficient lies within `prune` standard errors of 0 are left out and the others are fitted again.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from recurra.core.checks import one_of
from recurra.forecast.least_squares import Solution, from_rows, from_sums
from recurra.forecast.models.forecaster import Forecaster
from recurra.forecast.models.linear import too_short
from recurra.forecast.window_sums import WindowSums, columns, mean_of, stretches

Array = NDArray[np.float64]
Trend = Literal["n", "c", "ct"]
_Self = TypeVar("_Self", bound="AutoRegression")


class AutoRegression(Forecaster):
    """Autoregression with exact coefficients; forecasts any number of steps, each from those before.

    Args:
        window: lags p.
        horizon: steps that it forecasts.
        trend: "n" nothing, "c" a constant, "ct" a constant and a line in time.
        prune: lags within so many standard errors of 0 are left out; None keeps all.
        quantiles: of the forecasts, out of normal errors with the variance of the residuals.
        calibration: see `Forecaster`.

    Attributes:
        coefficients: (p,) in float64, lag 1 first; 0 where pruned.
        errors: (p,) their standard errors; 0 where pruned.
        terms: (2,) c and d.
        term_errors: (2,) their standard errors.
        variance: of the residuals, their mean square.
        statistics: (5,) rows, log-likelihood, AIC, BIC and the time of the last row (a series begins at time 1).
    """

    coefficients: Tensor
    errors: Tensor
    terms: Tensor
    term_errors: Tensor
    variance: Tensor
    statistics: Tensor

    def __init__(
        self,
        *,
        window: int,
        horizon: int = 1,
        trend: Trend = "c",
        prune: float | None = None,
        quantiles: tuple[float, ...] = (),
        calibration: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__(window=window, horizon=horizon, quantiles=quantiles, calibration=calibration)
        one_of("trend", trend, Trend)
        if prune is not None and not prune > 0:
            raise ValueError(f"prune must be positive; got {prune}")
        self.trend, self.prune = trend, prune
        sizes = {"coefficients": (window,), "errors": (window,), "terms": (2,), "term_errors": (2,)}
        for name, size in {**sizes, "variance": (), "statistics": (5,)}.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))

    def forward(
        self,
        past: Float[Tensor, "batch window variate"],
        marks: Float[Tensor, "batch steps mark"] | None = None,
        covariates: Float[Tensor, "batch steps covariate"] | None = None,
    ) -> Float[Tensor, "batch horizon variate *quantile"]:
        """The forecast; see `Forecaster.forward`. A line in time goes on where the fitted series ended."""
        self.check(past, marks, covariates)
        point = self.extend(past, self.horizon)
        if not self.quantiles:
            return point
        spread = self.standard_deviations(self.horizon).to(point)[:, None]
        return torch.stack([point, *(point + NormalDist().inv_cdf(q) * spread for q in self.quantiles)], -1)

    def extend(
        self, past: Float[Tensor, "batch window variate"], horizon: int, *, start: float | None = None
    ) -> Float[Tensor, "batch horizon variate"]:
        """The forecast of any number of steps, in the precision of `past` and computed in float64.

        With ψ the response to an impulse, all steps at once are y = Ψ (H x + c + d t): H applies the coefficients to
        what is known of the lags, and Ψ, lower triangular and Toeplitz, carries every step on to the later ones.

        Args:
            past: the last values, oldest first.
            horizon: steps.
            start: time of the first of them, for a line in time; by default after the fitted series.
        """
        lags, steps = self.window, torch.arange(horizon, device=past.device)
        first = self.statistics[4] + 1 if start is None else start
        known = torch.nn.functional.pad(self.coefficients.flip(0), (horizon - 1, 0)).unfold(0, lags, 1)
        shift = (horizon - 1 - steps).clamp(min=0)
        added = self.terms[0] + self.terms[1] * (first + steps.double())
        level = past.double().mT @ known[shift].mT + added  # (batch, variate, horizon)
        return (level @ _toeplitz(self.impulse(horizon)).mT).mT.to(past.dtype)

    def impulse(self, horizon: int) -> Float[Tensor, "horizon"]:
        """ψ: what an error of 1 adds to the steps from its own on."""
        lags, newest_last = self.window, self.coefficients.flip(0)
        response = self.coefficients.new_zeros(lags + horizon)
        response[lags] = 1
        for step in range(1, horizon):
            response[lags + step] = newest_last @ response[step : step + lags]
        return response[lags:]

    def standard_deviations(self, horizon: int) -> Float[Tensor, "horizon"]:
        """Of the forecast's error at every step, for errors that are independent: σ √(ψ_0² + ... + ψ_{h-1}²)."""
        return (self.variance * self.impulse(horizon).square().cumsum(0)).sqrt()

    @property
    def params(self) -> Array:
        """Constant and line, as far as there are any, and then lags 1 to p."""
        count = _terms(self.trend)
        return np.concatenate([self.terms.numpy(force=True)[:count], self.coefficients.numpy(force=True)])

    @property
    def param_errors(self) -> Array:
        """Standard errors of `params`."""
        count = _terms(self.trend)
        return np.concatenate([self.term_errors.numpy(force=True)[:count], self.errors.numpy(force=True)])

    def fit(self: _Self, values: Sequence[Array]) -> _Self:
        """The same model with the coefficients of least squares over all rows of these series.

        Args:
            values: series (time,), or (time, variate) with every column a series; NaN where a value is missing: rows
                whose target or lags hold one are left out.

        Raises:
            UserError: no series has p + 1 values in a row.
        """
        series = columns(values)
        sums = self.sums(0.0 if self.trend == "n" else mean_of(series)).add(series)
        if not sums.count:
            raise too_short(series, self.window, 1)
        self.solve(sums, series)
        self.statistics[4] = max(map(len, series))
        return self

    def sums(self, shift: float = 0.0) -> WindowSums:
        """Empty sums to gather series or pieces of them in, and then `solve`; the shift is best near the mean.

        Raises:
            ValueError: a model without a constant takes no shift.
        """
        if shift and self.trend == "n":
            raise ValueError(f"a model without a constant takes values as they are; got shift {shift}")
        return WindowSums(self.window + 1, shift=shift)

    def solve(self: _Self, sums: WindowSums, values: Sequence[Array] = ()) -> _Self:
        """The same model with the coefficients of least squares over what was summed up.

        Args:
            sums: of at least one window.
            values: the series behind the sums, for where those alone no longer tell the coefficients.
        """
        kept = np.arange(self.window)
        while True:
            solution = self._solution(sums, kept, values)
            errors = math.sqrt(solution.residual / sums.count) * solution.spread()
            if self.prune is None:
                break
            strong = (np.abs(solution.params) > self.prune * errors)[_terms(self.trend) :]
            if strong.all():
                break
            kept = kept[strong]
        self._store(sums, kept, solution, errors)
        return self

    def _solution(self, sums: WindowSums, kept: NDArray[np.intp], values: Sequence[Array]) -> Solution:
        """The regression on the terms and on these lags, counted from 0."""
        count = _terms(self.trend)
        size = count + len(kept)
        # Read backwards the window begins with the target, and its lower triangle is the upper one.
        upper, first, timed = sums.lower[::-1, ::-1], sums.first[::-1], sums.timed[::-1]
        system, right = np.zeros((size, size)), np.zeros(size)
        every = len(kept) == self.window
        system[count:, count:] = upper[1:, 1:] if every else upper[np.ix_(kept + 1, kept + 1)]
        right[count:] = upper[0, 1:][kept]
        moments = np.array([[sums.count, sums.time[0]], sums.time.tolist()])
        for row, of_values in enumerate((first, timed)[:count]):
            system[row, row:count] = moments[row, row:count]
            system[row, count:], right[row] = of_values[1:][kept], of_values[0]
        solution = from_sums(system, right, float(upper[0, 0])) if size else Solution(right, system, float(upper[0, 0]))
        return solution or from_rows(*self._rows(sums, kept, values))

    def _rows(self, sums: WindowSums, kept: NDArray[np.intp], values: Sequence[Array]) -> tuple[Array, Array]:
        """Regressors (row, parameter) and targets of all rows; of the sums, rows that have the same sums."""
        if not values:
            return self._equivalent_rows(sums, kept)
        pieces, targets = [], []
        for series in values:
            for start, stop in stretches(series):
                if stop - start > self.window:
                    windows = sliding_window_view(series[start:stop] - sums.shift, self.window + 1)[:, ::-1]
                    time = np.arange(start + self.window, stop)[:, None] + 1.0
                    terms = np.concatenate([np.ones_like(time), time], 1)[:, : _terms(self.trend)]
                    pieces.append(np.concatenate([terms, windows[:, 1:][:, kept]], 1))
                    targets.append(windows[:, 0])
        return np.concatenate(pieces), np.concatenate(targets)

    def _equivalent_rows(self, sums: WindowSums, kept: NDArray[np.intp]) -> tuple[Array, Array]:
        """As few rows as there are columns, with the same sums of products."""
        gram, width = sums.gram()[::-1, ::-1], self.window + 1
        moments = np.zeros((width + 2, width + 2))
        moments[:2, :2] = np.array([[sums.count, sums.time[0]], sums.time.tolist()])
        moments[0, 2:], moments[1, 2:], moments[2:, 2:] = sums.first[::-1], sums.timed[::-1], gram
        moments[2:, :2] = moments[:2, 2:].T
        values, vectors = np.linalg.eigh(moments)
        # What lies below their rounding error is no information.
        noise = width * np.finfo(np.float64).eps * values[-1]
        rows = np.sqrt(np.where(values > noise, values, 0.0))[:, None] * vectors.T
        return rows[:, [*range(_terms(self.trend)), *(kept + 3)]], rows[:, 2]

    def _store(self, sums: WindowSums, kept: NDArray[np.intp], solution: Solution, errors: Array) -> None:
        """Keep what was found, for values that are not shifted."""
        count, rows = _terms(self.trend), sums.count
        params, variance = solution.params, solution.residual / sums.count
        for buffer in (self.coefficients, self.errors, self.terms, self.term_errors):
            buffer.zero_()
        lags = torch.from_numpy(kept)
        self.coefficients[lags] = torch.from_numpy(params[count:])
        self.errors[lags] = torch.from_numpy(errors[count:])
        self.terms[:count] = torch.from_numpy(params[:count])
        self.term_errors[:count] = torch.from_numpy(errors[:count])
        if count:
            direction = np.concatenate([[1.0], np.zeros(count - 1), np.full(len(kept), -sums.shift)])
            self.terms[0] += sums.shift * (1 - params[count:].sum())
            self.term_errors[0] = math.sqrt(variance) * float(solution.spread(direction))
        likelihood = -rows / 2 * (math.log(2 * math.pi * max(variance, np.finfo(np.float64).tiny)) + 1)
        free = len(params) + 1
        self.variance.fill_(variance)
        self.statistics[:4] = torch.tensor(
            [rows, likelihood, 2 * free - 2 * likelihood, math.log(rows) * free - 2 * likelihood], dtype=torch.float64
        )


def _terms(trend: Trend) -> int:
    """How many terms there are besides the lags."""
    return {"n": 0, "c": 1, "ct": 2}[trend]


def _toeplitz(column: Float[Tensor, "size"]) -> Float[Tensor, "size size"]:
    """Lower triangular, with this first column."""
    steps = torch.arange(len(column), device=column.device)
    distance = steps[:, None] - steps
    return torch.where(distance >= 0, column[distance.clamp(min=0)], 0.0)
