"""How opened series become forecasts: through the model, back in original units, intervals from its residuals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.core import inference
from recurra.core.errors import UserError
from recurra.forecast.data.context import Context
from recurra.forecast.data.prepared import Prepared
from recurra.forecast.data.windows import origins_between, window_scaling
from recurra.forecast.intervals import Conformal, quantile_levels
from recurra.forecast.models.forecaster import Forecaster

Array = NDArray[np.float64]
_RESIDUALS = 20_000_000
"""The most residuals that a checkpoint keeps: 80 MB."""


def load_checkpoint(checkpoint: "str | Path | Forecaster") -> Forecaster:
    """The forecaster of a checkpoint folder, of a shipped checkpoint's name, or of a hub name.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or it holds something else.
    """
    import recurra.forecast.models  # noqa: F401 - so that every class is known

    return inference.load(Forecaster, checkpoint, package="recurra.forecast")  # type: ignore[type-abstract]


def model_inputs(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Past, marks and covariates of a batch, as `Forecaster.forward` takes them."""
    return batch["past"], batch.get("marks"), batch.get("covariates")


@dataclass(frozen=True)
class Forecasts:
    """Forecasts of a batch of windows, in original units.

    Attributes:
        point: (batch, step, variate).
        quantiles: (batch, step, variate, quantile) of a model that has any.
        scale: (batch, variate) that the residuals of the model are multiplied by.
    """

    point: Array
    quantiles: Array | None
    scale: Array


@torch.no_grad()
def forecast_batch(
    model: Forecaster, batch: Mapping[str, Tensor], steps: int | None = None, *, by_window: bool = False
) -> Forecasts:
    """Forecasts of a batch; steps beyond the model's horizon come from its own forecasts of those before.

    Args:
        model: in evaluation mode.
        batch: of `Windows`; its marks must reach over all steps.
        steps: of the forecasts; the model's horizon by default.
        by_window: each window is scaled by itself, also the later ones.
    """
    steps = steps or model.horizon
    device = next(iter(model.state_dict().values())).device
    center, scale = batch["center"].double()[:, None], batch["scale"].double()[:, None]
    past, found = batch["past"].double(), []
    first_scale, shift, factor = scale, torch.zeros_like(center), torch.ones_like(scale)
    for done in range(0, steps, model.horizon):
        if done and by_window:  # on the scale of the first window, which the values stay on
            shift, factor = (value[:, None] for value in window_scaling(past))
        scaled = (past - shift) / torch.where(factor > 0, factor, 1)
        span = slice(done, done + model.window + model.horizon)
        extras = [
            None if (value := batch.get(name)) is None else value[:, span].to(device)
            for name in ("marks", "covariates")
        ]
        output = model(scaled.float().to(device), *extras).double().cpu()
        output = output if model.quantiles else output[..., None]
        found.append(output * factor[..., None] + shift[..., None])
        past = torch.cat([past, found[-1][..., 0]], 1)[:, -model.window :]
    whole = torch.cat(found, 1)[:, :steps] * first_scale[..., None] + center[..., None]
    quantiles = whole[..., 1:].numpy() if model.quantiles else None
    return Forecasts(whole[..., 0].numpy(), quantiles, first_scale[:, 0].numpy())


def calibration_steps(model: Forecaster, context: Context) -> int:
    """How many steps residuals are kept for: a model of one step is rolled on, as it will be in use."""
    return model.horizon if model.horizon > 1 else max(24, context.season)


def residual_rows(model: Forecaster, prepared: Prepared, most: int) -> Tensor | None:
    """Absolute residuals (row, step, channel) on the model's scale, of windows that it was not trained on.

    The windows are those of the validation rows, thinned evenly to at most so many of each series. A series has a
    channel of its own as far as that does not take too much room. None if there are none.
    """
    steps = calibration_steps(model, prepared.context)
    rows = origins_between(prepared.blocks, prepared.borders["val"], model.window, 1)
    stops = [stop for _, stop in prepared.borders["val"]]
    rows = {number: _thinned(at[at + steps <= stops[number]], most) for number, at in rows.items()}
    windows = prepared.at(rows, model, steps=-(-steps // model.horizon) * model.horizon, known=stops)
    if not len(windows):
        return None
    found = []
    for first in range(0, len(windows), 256):
        batch = windows.__getitems__(list(range(first, min(first + 256, len(windows)))))
        made = forecast_batch(model, batch, steps, by_window=prepared.context.by_window)
        scale, center = batch["scale"][:, None].numpy(), batch["center"][:, None].numpy()
        point = (made.point - center) / np.where(scale > 0, scale, 1)
        residual = np.abs(point - batch["future"][:, :steps].numpy())
        found.append(np.where(batch["observed"][:, :steps].numpy(), residual, np.inf))
    residuals = np.concatenate(found).astype(np.float32)
    if model.layout == "series":
        residuals = by_channel(residuals, windows.block, len(prepared.blocks), most)
    return torch.from_numpy(residuals)


def _thinned(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows, evenly; from the first to the last."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def by_channel(residuals: NDArray[Any], channel: NDArray[np.int64], channels: int, most: int) -> NDArray[Any]:
    """Residuals (window, step, 1) as (row, step, channel), infinite where a channel has fewer rows.

    Where that would take too much room all stay in one channel, and only the last `most` windows of all.
    """
    counts = np.bincount(channel, minlength=channels)
    if counts.max() * channels * residuals.shape[1] > _RESIDUALS:
        return residuals[_thinned(np.arange(len(residuals)), most)]
    made = np.full((counts.max(), residuals.shape[1], channels), np.inf, residuals.dtype)
    for number in range(channels):
        own = residuals[channel == number, :, 0]
        made[: len(own), :, number] = own
    return made


class Widths:
    """Half widths of intervals: of each channel's own residuals, of all together where those are too few.

    Args:
        residuals: (row, step, channel), infinite where unknown.
    """

    def __init__(self, residuals: NDArray[Any]) -> None:
        self.channels, self.own = residuals.shape[2], Conformal(residuals)
        rows = np.moveaxis(residuals, 1, 2).reshape(-1, residuals.shape[1])[..., None]
        self.all = Conformal(rows) if self.channels > 1 else self.own
        # Where a channel's own errors are too few for a level, its interval is no narrower than that of a lower one.
        self.largest = np.where(np.isfinite(residuals), residuals, 0).max(0, initial=0)  # (step, channel)

    def of(self, levels: Sequence[float], channel: NDArray[np.int64]) -> Array:
        """(batch, step, variate, level) for channels (batch, variate), -1 for a series without one."""
        pooled = np.moveaxis(self.all.half_widths(levels), 0, -1)[:, 0].astype(np.float64)  # (step, level)
        if self.channels == 1:
            return np.broadcast_to(
                pooled[None, :, None], (channel.shape[0], len(pooled), channel.shape[1], len(levels))
            )
        own = np.moveaxis(self.own.half_widths(levels), 0, -1).astype(np.float64)  # (step, channel, level)
        own = np.where(np.isfinite(own), own, np.maximum(pooled[:, None], self.largest[..., None]))
        table = np.concatenate([own, pooled[:, None]], 1)
        return np.asarray(np.moveaxis(table[:, channel], 0, 1))


def calibrate(folder: Path, prepared: Prepared, *, most: int) -> None:
    """Put residuals into the checkpoint of a run."""
    model = load_checkpoint(folder)
    context = Context.of(model)
    residuals = residual_rows(model, prepared, most) if most else None
    if residuals is None:
        return
    first, last = _calibrated_span(prepared, model.window)
    channels = f" of each of {residuals.shape[2]} series" if residuals.shape[2] > 1 else ""
    context.calibrated = f"{len(residuals)} windows{channels} of the validation rows, {first} to {last}"
    made = model.calibrated(residuals)
    context.store(made)
    made.save_pretrained(folder)


def _calibrated_span(prepared: Prepared, window: int) -> tuple[str, str]:
    """First and last stamp of what the windows forecast."""
    pairs = list(zip(prepared.blocks, prepared.borders["val"], strict=True))
    stamps = [
        (block.stamps[start + window], block.stamps[stop - 1])
        for block, (start, stop) in pairs
        if stop > start + window
    ]
    return str(min(one for one, _ in stamps)), str(max(one for _, one in stamps))


@dataclass(frozen=True)
class Intervals:
    """Where the ends of a model's intervals come from.

    Args:
        model: with residuals, or quantiles, or neither.
        levels: percent.
        steps: of the forecasts.
    """

    model: Forecaster
    levels: tuple[float, ...]
    steps: int

    @cached_property
    def _widths(self) -> Widths:
        return Widths(self.model.residuals.cpu().numpy())

    def ends(self, made: Forecasts, channel: NDArray[np.int64]) -> tuple[Array, Array]:
        """Lower and upper ends (batch, step, variate, level); infinite where too few residuals are known.

        Args:
            made: the forecasts.
            channel: (batch, variate) of the residuals; -1 for a series that has none of its own.
        """
        batch, steps, variates = made.point.shape
        half = np.full((batch, steps, variates, len(self.levels)), np.inf)
        if len(self.model.residuals) and self.levels:
            known = self._widths.of(self.levels, channel)[:, :steps]
            scale = made.scale[:, None, :, None]
            half[:, : known.shape[1]] = np.where(scale > 0, known * scale, np.where(np.isinf(known), np.inf, 0))
        lower, upper = made.point[..., None] - half, made.point[..., None] + half
        if made.quantiles is not None:
            for level, (below, above) in quantile_levels(self.model.quantiles).items():
                if level in self.levels:
                    at = self.levels.index(level)
                    lower[..., at], upper[..., at] = made.quantiles[..., below], made.quantiles[..., above]
        return lower, upper

    def reason(self) -> str:
        """Why some ends are infinite; empty if none is."""
        if not self.levels:
            return ""
        rows, steps = self.model.residuals.shape[:2]
        if not rows:
            known = quantile_levels(self.model.quantiles) if self.model.quantiles else {}
            lacking = [level for level in self.levels if level not in known]
            return "the checkpoint keeps no residuals: intervals are infinite" if lacking else ""
        reason = self._widths.all.reason(self.levels)
        if self.steps > steps:
            reason = "; ".join(
                filter(None, [reason, f"residuals are known for {steps} steps: later intervals are infinite"])
            )
        return reason


def check_steps(model: Forecaster, context: Context, steps: int) -> None:
    """Refuse a horizon that the model cannot be rolled on to."""
    if steps > model.horizon and context.encoder is not None and context.encoder.get("past"):
        raise UserError(
            f"horizon {steps}: {type(model).__name__} forecasts {model.horizon} steps, and its past covariates are not "
            f"known ahead; train it with model.horizon={steps}"
        )


def facts(model: Forecaster) -> dict[str, str]:
    """What a checkpoint knows of its data, for people."""
    try:
        context = Context.of(model)
    except UserError as error:
        return {"data": str(error)}
    kind = context.scaler["kind"]
    scaling = {
        "window": "mean and standard deviation of each window: forecasts of 100 y are 100 times those of y",
        "none": "values as they are",
    }.get(kind, f"{kind}, of the training rows of each series; new series by their own rows")
    names = ", ".join(str(one) for one in context.ids[:8]) + (", ..." if len(context.ids) > 8 else "")
    return {
        "input": f"the last {model.window} rows of each series, in their own units",
        "output": f"the next {model.horizon} steps, in the same units",
        "step": context.frequency,
        "series": f"{len(context.ids)}: {names}",
        "scaling": scaling,
        "trained until": context.trained_until,
        "intervals": context.calibrated or ("quantiles of the network" if model.quantiles else "none"),
    }
