"""Forecasting programs for numpy and onnxruntime alone: original units in and out, scaler and calendar inside.

| input                                       | what                                                                   |
|---------------------------------------------|------------------------------------------------------------------------|
| past (batch, window, variate), float32      | values, oldest first, in original units, none missing                  |
| series (batch), int64                       | place of each row's series in `ids`, where each has a scale of its own |
| stamps (batch, window + horizon, 8), int64  | `FIELDS` of each step, read off the clock of the zone that the         |
|                                             | checkpoint was trained in                                              |
| covariates (batch, window + horizon, column)| in original units, 0 or 1 for a category; NaN where not known          |

| output                                        | what                                              |
|-----------------------------------------------|---------------------------------------------------|
| forecast (batch, horizon, variate)            | in original units                                 |
| quantiles (batch, horizon, variate, quantile) | of models that have them                          |
| half_widths (batch, horizon, variate, level)  | of the intervals: forecast plus and minus of each |

Only those inputs and outputs are there that the model has. All that one must know to fill them is JSON in the program's
metadata, under "recurra".
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra.core import exporting
from recurra.core.errors import UserError
from recurra.core.exporting import Exportable, ExportReport
from recurra.core.files import guard_inputs
from recurra.core.inference import load
from recurra.forecast.data.covariates import Encoder
from recurra.forecast.intervals import Conformal, parse_levels
from recurra.forecast.models import Forecaster

Array = NDArray[np.float64]

FIELDS = ("month", "day", "weekday", "hour", "minute", "second", "dayofyear", "isoweek")
"""Whole numbers of a stamp, as Python's datetime gives them: Monday is weekday 0, the 1st of January day 1."""

_MARKS = {
    "second": ("second", 0, 59),
    "minute": ("minute", 0, 59),
    "hour": ("hour", 0, 23),
    "weekday": ("weekday", 0, 6),
    "day": ("day", 1, 30),
    "day of year": ("dayofyear", 1, 365),
    "month": ("month", 1, 11),
    "week": ("isoweek", 1, 52),
}
"""Calendar feature -> field, its least value, and how many steps it goes up from there."""

_LEVELS = (80.0, 95.0)


@dataclass(frozen=True)
class Scaling:
    """Values on the model's scale are (value - shift) / scale, for each column.

    Attributes:
        shift: (column); one for all series, or one each; of samples (sample, variable).
        scale: likewise, never 0.
    """

    shift: Array
    scale: Array


def scaling_of(model: Forecaster) -> Scaling:
    """The scaler that a checkpoint was trained with; none at all is the same as no change.

    Raises:
        UserError: what the checkpoint says is not a scaler.
    """
    saved = _data(model).get("scaler") or {}
    columns = getattr(model, {"variates": "variates", "samples": "variables"}.get(model.layout, ""), 1)
    try:
        shift, scale = (np.asarray(saved.get(key, ()), np.float64).reshape(-1) for key in ("shift", "scale"))
    except (TypeError, ValueError, AttributeError):
        shift, scale = np.zeros(1), np.zeros(1)
    if not len(shift) and not len(scale):  # none, or that of each window
        shift, scale = np.zeros(columns), np.ones(columns)
    if len(shift) != len(scale) or not len(scale) or not (np.isfinite(shift) & np.isfinite(scale) & (scale != 0)).all():
        raise UserError("the checkpoint's scaler is damaged; expected a shift and a scale for each series")
    if model.layout == "samples":
        return Scaling(*(one.reshape(-1, getattr(model, "variables", 1)) for one in (shift, scale)))
    return Scaling(shift, scale)


def marks_of(model: Forecaster) -> tuple[str, ...]:
    """Names of the calendar features that a model was trained with, in their order.

    Raises:
        UserError: one is not a feature of a calendar.
    """
    if not model.takes_marks:
        return ()
    names: Sequence[str] = _data(model).get("marks") or ()
    if not names:
        from recurra.forecast.data.calendar import Frequency

        names = getattr(Frequency.of(str(_data(model).get("frequency", "h"))), "features", ())
    unknown = [name for name in names if name not in _MARKS]
    if unknown:
        raise UserError(f"the checkpoint's calendar feature {unknown[0]!r} is unknown; expected of {', '.join(_MARKS)}")
    return tuple(names)


def covariates_of(model: Forecaster) -> tuple[tuple[str, ...], Scaling]:
    """Names of the covariates' columns, and the scale that the model sees them on.

    Raises:
        UserError: the model takes covariates, and the checkpoint does not say on which scale.
    """
    count = getattr(model, "covariates", 0) if model.takes_covariates else 0
    if not count:
        return (), Scaling(np.zeros(0), np.ones(0))
    saved = _data(model).get("encoder")
    encoder = Encoder.from_json(saved) if isinstance(saved, dict) else Encoder()
    names = encoder.columns
    pairs = np.array([encoder.numbers.get(name, (0.0, 1.0)) for name in names], np.float64).reshape(-1, 2)
    scaling = Scaling(pairs[:, 0], pairs[:, 1])
    if not len(names) == len(scaling.shift) == len(scaling.scale) == count:
        raise UserError(f"{type(model).__name__} takes {count} covariates, whose scales are not in the checkpoint")
    return names, scaling


def _data(model: Forecaster) -> Mapping[str, Any]:
    """What the checkpoint says of the data it was trained on."""
    found = model.metadata.get("data")
    return found if isinstance(found, dict) else {}


class OriginalUnits(nn.Module):
    """A forecaster with original units at its border, as the table above has them.

    Args:
        model: in evaluation mode.
        levels: of the intervals, percent; all finite.
    """

    def __init__(self, model: Forecaster, levels: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.model, self.levels = model, levels
        scaling, self.marks = scaling_of(model), marks_of(model)
        self.columns, covariates = covariates_of(model)
        self.each = model.layout != "variates" and len(scaling.shift) > 1
        self.variates = {"series": 1, "samples": scaling.shift.shape[-1]}.get(model.layout, len(scaling.shift))
        places = [FIELDS.index(_MARKS[name][0]) for name in self.marks]
        least, span = ([float(_MARKS[name][at]) for name in self.marks] for at in (1, 2))
        self.by_window = (_data(model).get("scaler") or {}).get("kind") == "window"
        half = np.moveaxis(Conformal(model.residuals.double().numpy(force=True)).half_widths(levels), 0, -1)
        half = half[: model.horizon]  # a model of one step keeps those of the steps that it is rolled on to
        self.each = self.each or (model.layout == "series" and half.shape[1] > 1)
        if self.each and len(scaling.shift) == 1:
            scaling = Scaling(*(np.repeat(one, half.shape[1]) for one in (scaling.shift, scaling.scale)))
        for name, values in {
            "shift": scaling.shift,
            "scale": scaling.scale,
            "covariate_shift": covariates.shift,
            "covariate_scale": covariates.scale,
            "places": np.asarray(places, np.int64),
            "least": np.asarray(least, np.float64),
            "span": np.asarray(span, np.float64),
            "widths": half,
        }.items():
            self.register_buffer(name, torch.tensor(values))  # a copy: pt2 cannot hold an empty array of numpy's

    shift: Tensor
    scale: Tensor
    covariate_shift: Tensor
    covariate_scale: Tensor
    places: Tensor
    least: Tensor
    span: Tensor
    widths: Tensor

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what forward takes, in their order."""
        wanted = {"past": True, "series": self.each, "stamps": bool(self.marks), "covariates": bool(self.columns)}
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what forward returns, in their order."""
        wanted = {"forecast": True, "quantiles": bool(self.model.quantiles), "half_widths": bool(self.levels)}
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs for the inputs, both by the names above; what is scaled is so in double precision."""
        given = dict(zip(self.inputs, inputs, strict=True))
        shift, scale = self.shift, self.scale
        if self.each:
            rows = given["series"]
            shift, scale = (one[rows].reshape(len(rows), 1, -1) for one in (shift, scale))
        values = given["past"].double()
        divisor = scale
        if self.by_window:
            shift, scale = values.mean(1, keepdim=True), values.std(1, correction=0, keepdim=True)
            scale = torch.where(scale > 1e-9 * shift.abs(), scale, torch.zeros_like(scale))  # of a constant window 0
            divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
        past = ((values - shift) / divisor).float()
        marks = covariates = None
        if self.marks:
            fields = given["stamps"].index_select(-1, self.places).double()
            marks = ((fields - self.least) / self.span - 0.5).float()
        if self.columns:
            seen = (given["covariates"].double() - self.covariate_shift) / self.covariate_scale
            covariates = torch.where(torch.isnan(seen), torch.zeros_like(seen), seen).float()
        y = self.model(past, marks, covariates).double()
        points = y[..., 0] if self.model.quantiles else y
        results = [points * scale + shift]
        if self.model.quantiles:
            results.append(y[..., 1:] * scale[..., None] + shift[..., None])
        if self.levels:
            widths = self.widths
            if (
                self.each and self.variates == 1 and widths.shape[1] > 1
            ):  # those of each row's series: (batch, horizon, 1, level)
                widths = widths[:, given["series"]].transpose(0, 1)[:, :, None]
            results.append((widths * scale[..., None]).expand(*points.shape, len(self.levels)))
        return tuple(one.float() for one in results)

    def example(self, batch: int) -> dict[str, Tensor]:
        """Inputs of the right sizes: a walk on the scale of the training rows, hours from a New Year on."""
        random = torch.Generator().manual_seed(0)
        steps = self.model.window + self.model.horizon
        walk = torch.randn(batch, self.model.window, self.variates, generator=random).double()
        series = torch.arange(batch) % len(self.shift)
        shift, scale = (one[series].reshape(batch, 1, -1) if self.each else one for one in (self.shift, self.scale))
        hours = torch.arange(steps)
        days = hours // 24
        fields = {"month": 1 + days // 28 % 12, "day": 1 + days % 28, "weekday": days % 7, "hour": hours % 24}
        fields |= {
            "minute": hours % 60,
            "second": hours % 60,
            "dayofyear": 1 + days % 365,
            "isoweek": 1 + days // 7 % 52,
        }
        made = {
            "past": (walk * scale + shift).float(),
            "series": series,
            "stamps": torch.stack([fields[name] for name in FIELDS], 1).expand(batch, -1, -1).contiguous(),
            "covariates": torch.randn(batch, steps, len(self.columns), generator=random),
        }
        return {name: made[name] for name in self.inputs}

    def metadata(self) -> str:
        """What one must know to use the program, as JSON."""
        data = _data(self.model)
        known = {name: data[name] for name in ("ids", "frequency", "zone", "names", "variables") if name in data}
        return json.dumps(
            {
                "architecture": type(self.model).__name__,
                "window": self.model.window,
                "horizon": self.model.horizon,
                "layout": self.model.layout,
                **known,
                "fields": list(FIELDS) if self.marks else [],
                "covariates": list(self.columns),
                "quantiles": list(self.model.quantiles),
                "levels": list(self.levels),
            }
        )


def export(
    checkpoint: str | Path | Forecaster,
    out: str | Path,
    *,
    format: str = "onnx",
    batch: int = 1,
    levels: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """As the verb: writes `checkpoint` as a program of raw values, with scaler, calendar and intervals inside.

    Args:
        checkpoint: folder, name, or model.
        out: the file to write.
        format: "onnx" or "pt2".
        batch: windows that one run of the program takes.
        levels: of the intervals, such as 80,95; by default those two, as far as the checkpoint's residuals suffice.
        overwrite: an existing file may be replaced.

    Raises:
        UserError: as `recurra.core.exporting.export`; the model cannot be exported; an interval would be infinite.
    """
    given = isinstance(checkpoint, Forecaster)
    exporting.check_export(out, format, package="recurra.forecast", overwrite=overwrite)
    if batch < 1:
        raise UserError(f"batch must be at least 1; got {batch}")
    wanted = None if levels is None else parse_levels(levels)
    if not given and Path(str(checkpoint)).is_dir():
        guard_inputs([Path(out)], Path(str(checkpoint)).iterdir())
    kind: type[Any] = Forecaster
    model: Forecaster = load(kind, checkpoint, package="recurra.forecast").eval()
    name = type(model).__name__
    if model.unexportable:
        raise UserError(f"{'' if given else f'{checkpoint}: '}{name} cannot be exported: {model.unexportable}")
    made = OriginalUnits(model, _finite_levels(model, wanted)).eval()
    described = {"recurra": made.metadata()}
    program = Exportable(made, made.example(batch), made.outputs, name, described)
    return exporting.export(program, out, format, package="recurra.forecast", overwrite=overwrite)


def _finite_levels(model: Forecaster, wanted: tuple[float, ...] | None) -> tuple[float, ...]:
    """The levels whose intervals are finite everywhere; those that were asked for must be."""
    if not len(model.residuals):
        if wanted:
            raise UserError("the checkpoint keeps no residuals to make intervals of; leave --levels out")
        return ()
    conformal = Conformal(model.residuals.double().numpy(force=True))
    if wanted is not None and (reason := conformal.reason(wanted)):
        raise UserError(f"{reason}; leave --levels out for those that there can be")
    return tuple(level for level in (_LEVELS if wanted is None else wanted) if not conformal.reason((level,)))
