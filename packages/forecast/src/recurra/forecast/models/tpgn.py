"""TPGN: a series folded into rows of one period, each column read by a unit whose history is one map of all its past.

Yuxin Jia, Youfang Lin, Jing Yu, Shuo Wang, Tianhao Liu, Huaiyu Wan, "PGN: The RNN's New Successor is Effective for
Long-Range Time Series Forecasting", NeurIPS 2024 (arXiv:2409.17703). Authors' code: Water2sea/TPGN.

Weights and keys are theirs. Where we differ, nothing of theirs changes:

- A window need not be a multiple of the period: the steps too many, the oldest, are not seen.
- A horizon need not be one either: the rows are made whole, and the rest cut off.
- With `norm` theirs has no gradient to its input; ours has, the mean held constant as in theirs.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recurra.core.checks import at_least_one
from recurra.core.nn import PGN
from recurra.core.nn.pgn_rules import Rule, trained
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

    def forward(self, grid: Float[Tensor, "channel feature row batch column"]) -> Float[Tensor, "channel batch hidden"]:
        """sh of every member of the batch."""
        return _short(grid, *self.parameters())[0]


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
        unit, x = self.LNN_dim, grid.flatten(3)
        parts = [self.fc, unit.fc, *([self.s_t_p_e.fc_row, self.s_t_p_e.fc_col] if self.short else [])]
        weights = [value for part in parts for value in (part.weight, part.bias) if value is not None]
        if trained(x):
            rule: Any = _Whole.apply
            y: Tensor = rule(unit.rule(rows), grid, *unit.weights(rows), *weights)
        else:
            y = _readout(grid, unit.gated(x).flatten(1, 2), *weights)[0]
        return y.view(channels, -1, batch, columns)


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

    Raises:
        ValueError: the window has fewer than two periods, or quantiles are asked for.
    """

    layout: ClassVar[Layout] = "variates"
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
        calibration: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__(window=window, horizon=horizon, quantiles=quantiles, calibration=calibration)
        at_least_one(period=period, variates=variates, hidden=hidden)
        if quantiles:
            raise ValueError(f"quantiles: TPGN makes point forecasts; expected (), got {quantiles}")
        if features < 0:
            raise ValueError(f"features must be at least 0; got {features}")
        if window < 2 * period:
            raise ValueError(f"window must be at least two periods, {2 * period} steps; got {window}")
        # Keys are the authors'; what they do not have is stored from when it says something.
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
            mean = past.detach().mean(1, keepdim=True)
            past = past - mean
            scale = torch.sqrt(past.square().mean(1, keepdim=True) + EPSILON)
            past = past / scale
        y = self.TPGN(self._grid(past, None if marks is None else marks[:, used]))
        y = y.permute(2, 1, 3, 0).flatten(1, 2)
        if y.shape[1] > self.horizon:
            y = y[:, : self.horizon]
        return torch.addcmul(mean, y, scale) if self.norm else y

    def _grid(
        self, past: Float[Tensor, "batch time variate"], marks: Float[Tensor, "batch time mark"] | None
    ) -> Float[Tensor, "variate feature row batch column"]:
        """Values and, of every variate the same, calendar features, folded by the period."""

        def folded(x: Tensor) -> Tensor:
            return x.reshape(x.shape[0], -1, self.period, x.shape[2]).permute(3, 1, 0, 2)

        values = folded(past).unsqueeze(1)
        if marks is None:
            return values
        return torch.cat([values, folded(marks).unsqueeze(0).expand(self.variates, -1, -1, -1, -1)], 1)


# --- from h and the grid to y


def _short(grid: Tensor, row: Tensor, row_bias: Tensor, column: Tensor, column_bias: Tensor) -> tuple[Tensor, ...]:
    """sh (channel, batch, hidden); the grid, a row and member of the batch a line; what the rows became; C."""
    channels, _, rows, batch, _ = grid.shape
    lines = grid.permute(0, 3, 2, 1, 4).reshape(channels, batch * rows, -1)
    of_rows = torch.baddbmm(
        row_bias.view(channels, 1, -1), lines, row.view(channels, -1, lines.shape[2]).transpose(1, 2)
    )
    of_rows = of_rows.view(channels, batch, -1)  # (channel, batch, row and hidden)
    by_row = _by_row(column, channels)
    return torch.baddbmm(column_bias.view(channels, 1, -1), of_rows, by_row), lines, of_rows, by_row


def _by_row(column: Tensor, channels: int) -> Float[Tensor, "channel row_and_input output"]:
    """Weights of a map of all rows."""
    hidden, rows = column.shape[1:]
    return column.view(channels, hidden, hidden, rows).permute(0, 3, 2, 1).reshape(channels, -1, hidden)


def _readout(
    grid: Tensor, h: Tensor, head: Tensor, bias: Tensor, collapse: Tensor, shift: Tensor, *short: Tensor
) -> tuple[Tensor, ...]:
    """y (channel, row ahead, batch and column), and what its gradients need."""
    channels, _, _, batch, columns = grid.shape
    heads, long = head.view(channels, -1, head.shape[1]), collapse.view(channels, collapse.shape[1], -1)
    bias, shift = bias.view(channels, -1, 1), shift.view(channels, -1, 1)
    kept: tuple[Tensor, ...] = ()
    if short:
        kept = sh, *_ = _short(grid, *short)
        bias = torch.baddbmm(bias, heads[..., : sh.shape[2]], sh.transpose(1, 2))
    heads = heads[..., -long.shape[1] :]
    if heads.shape[1] < heads.shape[2]:  # O F is the smaller map
        inner = heads @ long
        y, bias = torch.bmm(inner, h), bias + heads @ shift
    else:
        inner = torch.baddbmm(shift, long, h)
        y = torch.bmm(heads, inner)
    return (y.view(channels, -1, batch, columns) + bias.unsqueeze(-1)).flatten(2), inner, *kept


class _Whole(torch.autograd.Function):
    """The unit and the readout, with gradients of the weights: what is many small steps to autograd are few here."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, grid: Tensor, *weights: Tensor) -> Tensor:
        h, *of_unit = rule.values(grid.flatten(3), *weights[:4])
        h = h.view(h.shape[0], -1, grid.shape[3] * grid.shape[4])
        y, *kept = _readout(grid, h, *weights[4:])
        ctx.save_for_backward(*weights, *of_unit, h, *kept)
        ctx.rule, ctx.weights, ctx.of_unit, ctx.batch = rule, len(weights), len(of_unit), grid.shape[3]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, middle = ctx.saved_tensors, ctx.weights + ctx.of_unit
        of_h, *of_readout = _of_readout(grad, ctx.batch, saved[4 : ctx.weights], saved[middle:])
        of_h = of_h.view(of_h.shape[0], saved[1].shape[0] // of_h.shape[0], -1)
        return None, None, *ctx.rule.gradients(of_h, saved[:4], saved[ctx.weights : middle]), *of_readout


def _of_readout(grad: Tensor, batch: int, weights: Sequence[Tensor], kept: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of h and of the weights of `_readout`."""
    (head, _, collapse, shift, *short), (h, inner, *of_short) = weights, kept
    channels = grad.shape[0]
    heads, long = head.view(channels, -1, head.shape[1]), collapse.view(channels, collapse.shape[1], -1)
    heads = heads[..., -long.shape[1] :]
    of_bias = grad.view(*grad.shape[:2], batch, -1).sum(3)  # (channel, row ahead, batch)
    total = of_bias.sum(2, keepdim=True)
    if heads.shape[1] < heads.shape[2]:
        of_inner = torch.bmm(grad, h.transpose(1, 2))
        of_h = torch.bmm(inner.transpose(1, 2), grad)
        of_head = torch.bmm(of_inner, long.transpose(1, 2)).baddbmm_(total, shift.view(channels, 1, -1))
        of_long = torch.bmm(heads.transpose(1, 2), of_inner)
        of_shift = torch.bmm(heads.transpose(1, 2), total)
    else:
        of_inner = torch.bmm(heads.transpose(1, 2), grad)
        of_h = torch.bmm(long.transpose(1, 2), of_inner)
        of_head = torch.bmm(grad, inner.transpose(1, 2))
        of_long, of_shift = torch.bmm(of_inner, h.transpose(1, 2)), of_inner.sum(2)
    gradients: tuple[Tensor, ...] = ()
    if short:
        sh, *of_grid = of_short
        of_head = torch.cat([torch.bmm(of_bias, sh), of_head], 2)
        of_sh = torch.bmm(of_bias.transpose(1, 2), head.view(channels, -1, head.shape[1])[..., : sh.shape[2]])
        gradients = _of_short(of_sh, short, *of_grid)
    of_readout = of_head.view(head.shape), total.flatten(), of_long.view(collapse.shape), of_shift.flatten()
    return of_h, *of_readout, *gradients


def _of_short(
    grad: Tensor, weights: Sequence[Tensor], lines: Tensor, of_rows: Tensor, by_row: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of the weights of `_short`."""
    row, _, column, _ = weights
    channels, _, hidden = grad.shape
    of_column = torch.bmm(of_rows.transpose(1, 2), grad).view(channels, -1, hidden, hidden).permute(0, 3, 2, 1)
    of_lines = torch.bmm(grad, by_row.transpose(1, 2)).view(channels, -1, hidden)
    of_row = torch.bmm(of_lines.transpose(1, 2), lines)
    return (
        *(of_row.view(row.shape), of_lines.sum(1).flatten()),
        *(of_column.reshape(column.shape), grad.sum(1).flatten()),
    )
