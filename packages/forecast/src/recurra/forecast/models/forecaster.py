"""The call signature that every forecasting model has."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from recurra.core.checkpoint import Pretrained
from recurra.core.checks import at_least_one

Layout = Literal["series", "variates", "samples"]
_Self = TypeVar("_Self", bound="Forecaster")


class Forecaster(Pretrained, ABC):
    """The last `window` values of series -> the next `horizon`, both on the scale that the checkpoint's scaler makes.

    Args:
        window: steps that it sees.
        horizon: steps that it forecasts.
        quantiles: of the forecasts beside the point, ascending, between 0 and 1; none by default.
        calibration: rows, steps and channels of the residuals that intervals are made of; no rows for none.

    Attributes:
        layout: what the variates of a batch are. "series": one, any series, all with the same weights. "variates": all
            series of a table side by side, in an order that the weights know. "samples": the variables of one sample;
            the samples of a batch are all those of one time.
        takes_marks: forward needs the calendar features.
        takes_covariates: forward takes covariates.
        unexportable: why no program can be made of it by tracing, or None.
    """

    layout: ClassVar[Layout] = "series"
    takes_marks: ClassVar[bool] = False
    takes_covariates: ClassVar[bool] = False
    unexportable: ClassVar[str | None] = None

    def __init__(
        self,
        *,
        window: int,
        horizon: int,
        quantiles: tuple[float, ...] = (),
        calibration: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__()
        at_least_one(window=window, horizon=horizon)
        if sorted(set(quantiles)) != list(quantiles) or not all(0 < q < 1 for q in quantiles):
            raise ValueError(f"quantiles must ascend between 0 and 1; got {quantiles}")
        self.window, self.horizon, self.quantiles = window, horizon, quantiles
        # Absolute residuals on the model's scale, of windows that it was not trained on: infinite where one is unknown.
        empty = torch.full(calibration, torch.inf)
        self.register_buffer("residuals", empty, persistent=bool(empty.numel()))

    residuals: Tensor

    @abstractmethod
    def forward(
        self,
        past: Float[Tensor, "batch window variate"],
        marks: Float[Tensor, "batch steps mark"] | None = None,
        covariates: Float[Tensor, "batch steps covariate"] | None = None,
    ) -> Float[Tensor, "batch horizon variate *quantile"]:
        """The forecast; with `quantiles`, a last axis of the point forecast and then each quantile, never crossing.

        Args:
            past: values, oldest first, none missing.
            marks: calendar features of the window's steps and then the horizon's, each between -0.5 and 0.5.
            covariates: of the window's steps and then the horizon's; 0 where one is not known ahead.

        Raises:
            ValueError: a shape does not fit.
        """

    def forecast(
        self, data: Any, horizon: int | None = None, *, levels: Sequence[float | int | str] = (), **options: Any
    ) -> Any:
        """A data frame of the forecasts after the last row of each series, in original units.

        Args:
            data: a data frame as the model was trained on, or the path of a table: at least `window` rows a series.
            horizon: steps; the model's by default, and beyond it from its own forecasts.
            levels: of intervals, percent.
            options: of `recurra.forecast.forecasting.Forecasting`, such as `minimum=0`.

        Returns:
            Columns for id and time as in the data, the model's name, and NAME-lo-LEVEL and NAME-hi-LEVEL of each level.

        Raises:
            UserError: the data are not of the kind that the model knows, or too short.
        """
        # By name: what forecasts tables knows the models, and these know nothing of it.
        tables = import_module("recurra.forecast.forecasting")
        return tables.forecast_table(tables.Forecasting(self, horizon, tuple(levels), **options), data).frame

    def penalty(self, progress: float) -> Tensor | None:
        """What is added to the training loss, when this share of the training is done; nothing by default."""
        return None

    def calibrated(self: _Self, residuals: Float[Tensor, "row step channel"]) -> _Self:
        """The same model with these absolute residuals, on its own scale; one channel serves all variates."""
        model = type(self)(**{**self.config, "calibration": tuple(residuals.shape)})
        model.load_state_dict({**self.state_dict(), "residuals": residuals})
        model.metadata = dict(self.metadata)
        return model.train(self.training)

    def check(self, past: Tensor, marks: Tensor | None = None, covariates: Tensor | None = None) -> None:
        """Raise a ValueError that says what is wrong with the arguments of `forward`, if anything is."""
        if past.ndim != 3 or past.shape[1] != self.window:
            raise ValueError(f"past has shape {tuple(past.shape)}; expected (batch, {self.window}, variate)")
        steps = self.window + self.horizon
        for name, value, taken in (
            ("marks", marks, self.takes_marks),
            ("covariates", covariates, self.takes_covariates),
        ):
            if value is not None and not taken:
                raise ValueError(f"{type(self).__name__} takes no {name}")
            if value is not None and (value.ndim != 3 or value.shape[:2] != (past.shape[0], steps)):
                raise ValueError(f"{name} has shape {tuple(value.shape)}; expected ({past.shape[0]}, {steps}, feature)")
