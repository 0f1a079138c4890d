"""ResNLS, a residual network before one step of an LSTM (Jia, Anaissi and Suleiman 2023, arXiv:2312.01020).

The window of a few days is one step of the LSTM with a feature a day; a small convolutional network corrects it first.
The authors' repository is Yuanzhe-Jia/ResNLS. Its code computes the correction and then feeds the LSTM with the window
alone: `variant="published"`. The paper's figure feeds the sum: `variant="paper"`, the default.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recurra.core.checks import at_least_one, one_of
from recurra.forecast.models.forecaster import Forecaster, Layout

Variant = Literal["paper", "published"]


class ResNLS(Forecaster):
    """r = x + w cnn(x),  h = LSTM(r) in one step from zero,  y = W h + b.

    Since the LSTM has one step, its recurrent weights get no gradient. The scalar w begins at 0, where the network
    before it gets none either.

    Args:
        window: steps that it sees, the features of the LSTM.
        horizon: steps that it forecasts; every one after the first from its own forecasts before.
        hidden: channels of the convolutions and width of the LSTM.
        variant: what feeds the LSTM: the sum of "paper", or as "published" the window alone.
        dropout: within the convolutional network.
        calibration: see `Forecaster`.
    """

    layout: ClassVar[Layout] = "series"

    def __init__(
        self,
        *,
        window: int = 5,
        horizon: int = 1,
        hidden: int = 64,
        variant: Variant = "paper",
        dropout: float = 0.1,
        calibration: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__(window=window, horizon=horizon, calibration=calibration)
        at_least_one(hidden=hidden)
        one_of("variant", variant, Variant)
        self.variant = variant
        self.weight = nn.Parameter(torch.zeros(1))
        self.cnn = nn.Sequential(
            nn.Conv1d(1, hidden, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm1d(hidden),
            nn.Dropout(dropout),
            nn.Conv1d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm1d(hidden),
            nn.Flatten(),
            nn.Linear(hidden * window, window),
        )
        self.lstm = nn.LSTM(window, hidden, batch_first=True)
        self.linear = nn.Linear(hidden, 1)
        if variant == "published":  # nothing that they change reaches the forecast
            for parameter in (self.weight, *self.cnn.parameters()):
                parameter.requires_grad_(False)

    def forward(
        self,
        past: Float[Tensor, "batch window variate"],
        marks: Float[Tensor, "batch steps mark"] | None = None,
        covariates: Float[Tensor, "batch steps covariate"] | None = None,
    ) -> Float[Tensor, "batch horizon variate"]:
        """The forecast of a batch of series with one variate; see `Forecaster.forward`."""
        self.check(past, marks, covariates)
        if past.shape[2] != 1:
            raise ValueError(f"past has {past.shape[2]} variates; expected 1, a series a row")
        x, steps = past.transpose(1, 2), []  # (batch, 1, window)
        for _ in range(self.horizon):
            steps.append(self.step(x))
            x = torch.cat([x[..., 1:], steps[-1]], dim=-1)
        return torch.cat(steps, dim=1)

    def step(self, x: Float[Tensor, "batch 1 window"]) -> Float[Tensor, "batch 1 1"]:
        """The next value after a window."""
        if self.variant == "paper":
            x = x + self.weight * self.correction(x)
        elif self.training:
            self.correction(x)  # moves the running statistics, as it does in the authors' code
        return self.linear(self.lstm(x)[0])  # type: ignore[no-any-return]

    def correction(self, x: Float[Tensor, "batch 1 window"]) -> Float[Tensor, "batch 1 window"]:
        """What the convolutional network makes of a window."""
        return self.cnn(x)[:, None]  # type: ignore[no-any-return]
