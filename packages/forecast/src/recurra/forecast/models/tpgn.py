"""TPGN: a series folded into rows of one period, each column read by a unit whose history is one map of all its past.

Yuxin Jia, Youfang Lin, Jing Yu, Shuo Wang, Tianhao Liu, Huaiyu Wan, "PGN: The RNN's New Successor is Effective for
Long-Range Time Series Forecasting", NeurIPS 2024 (arXiv:2409.17703). Authors' code: Water2sea/TPGN.

Weights and keys are theirs. Where we differ, nothing of theirs changes:

- A window need not be a multiple of the period: the steps too many, the oldest, are not seen.
- A horizon need not be one either: the rows are made whole, and the rest cut off.
- With `norm` theirs has no gradient to its input; ours has, the mean held constant as in theirs.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recurra.core.checks import at_least_one
from recurra.core.nn import PGN
from recurra.forecast.models.forecaster import Forecaster, Layout

EPSILON = 1e-5  # added to the variance


class ShortTerm(nn.Module):
    """One vector of the whole grid z (rows r, columns p): sh = Σ_r C_r (Σ_p W_p z_rp + b) + c; no activation anywhere.

    Keys: `fc_row` W, b; `fc_col` C, c: grouped convolutions, a channel a group.

    Args:
        input: features of a channel.
        hidden: width of sh.
        rows: of the grid.
        period: columns of the grid.
        channels: channels, each with weights of its own.
    """

    def __init__(self, input: int, hidden: int, *, rows: int, period: int, channels: int = 1) -> None:
        super().__init__()
        self.hidden, self.channels = hidden, channels
        self.fc_row = nn.Conv1d(channels * input, channels * hidden, period, groups=channels)
        self.fc_col = nn.Conv1d(channels * hidden, channels * hidden, rows, groups=channels)

    def forward(
        self, grid: Float[Tensor, "channel feature row batch column"]
    ) -> Float[Tensor, "channel batch hidden"]:
        """sh of every member of the batch."""
        channels, _, rows, batch, _ = grid.shape
        row = self.fc_row.weight.view(channels, self.hidden, -1)  # (channel, hidden, feature and column)
        column = self.fc_col.weight.view(channels, self.hidden, self.hidden, rows).transpose(2, 3).flatten(2)
        of_rows = torch.bmm(grid.permute(0, 3, 2, 1, 4).reshape(channels, batch * rows, -1), row.transpose(1, 2))
        of_rows = of_rows + self.fc_row.bias.view(channels, 1, -1)
        return torch.bmm(of_rows.view(channels, batch, -1), column.transpose(1, 2)) + self.fc_col.bias.view(
            channels, 1, -1
        )


class TemporalPGN(nn.Module):
    """The grid z -> rows of the horizon:

        lo_p = Σ_r F_r PGN(z)_rp + f             a column, along the rows
        sh   = ShortTerm(z)                      the whole grid
        y_qp = O_q [sh, lo_p] + o_q

    Args:
        input: features of a channel: its value and the calendar's.
        hidden: width of sh and lo.
        rows: of the grid.
        period: columns of the grid.
        rows_ahead: of the horizon.
        channels: channels, each with weights of its own.
        short: with sh.
    """

    def __init__(
        self, input: int, hidden: int, *, rows: int, period: int, rows_ahead: int, channels: int = 1, short: bool = True
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.LNN_dim = PGN(input, hidden, rows=rows, window=rows - 1, channels=channels)
        if short:
            self.s_t_p_e = ShortTerm(input, hidden, rows=rows, period=period, channels=channels)
        width = (1 + short) * hidden
        self.fc = nn.Conv1d(channels * width, channels * rows_ahead, 1, groups=channels)
        self.short = short

    def forward(
        self, grid: Float[Tensor, "channel feature row batch column"]
    ) -> Float[Tensor, "channel row_ahead batch column"]:
        """y."""
        channels, _, rows, batch, columns = grid.shape
        head = self.fc.weight.view(channels, -1, (1 + self.short) * self.hidden)
        bias = self.fc.bias.view(channels, -1, 1)
        if self.short:
            of_short, head = head.split(self.hidden, 2)
            bias = torch.baddbmm(bias, of_short, self.s_t_p_e(grid).transpose(1, 2))
        h = self.LNN_dim.gated(grid.flatten(3)).flatten(1, 2)
        collapse = self.LNN_dim.fc
        weight, shift = collapse.weight.view(channels, self.hidden, -1), collapse.bias.view(channels, -1, 1)
        if head.shape[1] < self.hidden:
            # O F is the smaller map.
            y = torch.bmm(head @ weight, h)
            bias = bias + head @ shift
        else:
            y = torch.bmm(head, torch.bmm(weight, h) + shift)
        return y.view(channels, -1, batch, columns) + bias.unsqueeze(-1)


class TPGN(Forecaster):
    """Temporal parallel gated network (module docstring: paper, what differs).

    Args:
        window: steps that it sees; the last whole periods of them, two at least.
        horizon: steps that it forecasts.
        period: steps of a row: a day of hours, a week of days.
        variates: series, each with weights of its own.
        features: of the calendar.
        hidden: width d.
        norm: each window is brought to mean 0 and variance 1, and the forecast back.
        short: with the short-term branch, as published.
        quantiles: none; it makes point forecasts.
        calibration: see `Forecaster`.
        channels: see `Forecaster`.

    Raises:
        ValueError: the window has fewer than two periods, or quantiles are asked for.
    """

    layout: Layout = "variates"
    takes_marks = True

    def __init__(
        self,
        *,
        window: int,
        horizon: int,
        period: int = 24,
        variates: int = 1,
        features: int = 4,
        hidden: int,
        norm: bool,
        short: bool = True,
        quantiles: tuple[float, ...] = (),
        calibration: int = 0,
        channels: int = 1,
    ) -> None:
        super().__init__(
            window=window, horizon=horizon, quantiles=quantiles, calibration=calibration, channels=channels
        )
        at_least_one(period=period, variates=variates, hidden=hidden)
        if quantiles:
            raise ValueError(f"quantiles: TPGN makes point forecasts; expected (), got {quantiles}")
        if features < 0:
            raise ValueError(f"features must be at least 0; got {features}")
        if window < 2 * period:
            raise ValueError(f"window must be at least two periods, {2 * period} steps; got {window}")
        # Keys are the authors'; what they do not have is stored from when it says something.
        self.register_buffer("residuals", self.residuals, persistent=calibration > 0)
        self.period, self.variates, self.features, self.norm = period, variates, features, norm
        self.TPGN = TemporalPGN(
            1 + features,
            hidden,
            rows=window // period,
            period=period,
            rows_ahead=-(-horizon // period),
            channels=variates,
            short=short,
        )

    def forward(
        self,
        past: Float[Tensor, "batch window variate"],
        marks: Float[Tensor, "batch steps mark"] | None = None,
        covariates: Float[Tensor, "batch steps covariate"] | None = None,
    ) -> Float[Tensor, "batch horizon variate"]:
        """The forecast.

        Args:
            past: values, oldest first, none missing.
            marks: calendar features of the window's steps and then the horizon's, of which the window's are used.
            covariates: none.

        Raises:
            ValueError: a shape does not fit.
        """
        self.check(past, marks, covariates)
        if past.shape[2] != self.variates:
            raise ValueError(f"past has {past.shape[2]} variates; expected {self.variates}, those it has weights for")
        width = 0 if marks is None else marks.shape[2]
        if width != self.features:
            raise ValueError(f"marks has {width} features; expected {self.features}")
        rows = self.window // self.period
        used = slice(self.window - rows * self.period, self.window)
        past = past[:, used]
        if self.norm:
            variance, mean = torch.var_mean(past, 1, correction=0, keepdim=True)
            mean, scale = mean.detach(), torch.sqrt(variance + EPSILON)
            past = (past - mean) / scale
        y = self.TPGN(self._grid(past, None if marks is None else marks[:, used]))
        y = y.permute(2, 1, 3, 0).flatten(1, 2)[:, : self.horizon]
        return torch.addcmul(mean, y, scale) if self.norm else y

    def _grid(
        self, past: Float[Tensor, "batch time variate"], marks: Float[Tensor, "batch time mark"] | None
    ) -> Float[Tensor, "variate feature row batch column"]:
        """Values and, of every variate the same, calendar features, folded by the period."""
        folded = [part.unflatten(1, (-1, self.period)).permute(3, 1, 0, 2) for part in (past, marks) if part is not None]
        parts = [folded[0].unsqueeze(1)]
        if marks is not None:
            parts.append(folded[1].unsqueeze(0).expand(self.variates, -1, -1, -1, -1))
        return torch.cat(parts, 1)
