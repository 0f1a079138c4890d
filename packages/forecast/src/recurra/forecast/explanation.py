"""What a forecast rests on: the weights of a linear model, else how much it changes without a part of its input."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from recurra.core.screen import print_table

if TYPE_CHECKING:
    from recurra.forecast.models.forecaster import Forecaster

Array = NDArray[Any]


@dataclass(frozen=True)
class Coefficients:
    """Weights of a linear forecast.

    Attributes:
        weights: of each input by name, (lag, horizon), lag 1, the latest, first.
        errors: standard errors, likewise, of those that have them.
        intercept: (horizon).
    """

    weights: Mapping[str, Array]
    errors: Mapping[str, Array] = field(default_factory=dict)
    intercept: Array | None = None


@runtime_checkable
class Linear(Protocol):
    """A model that has weights to show."""

    def lag_weights(self) -> Coefficients:
        """The weights of its first step, or of all."""


@dataclass
class Explanation:
    """What a forecast rests on.

    Attributes:
        title: what was explained, and how.
        columns: names of the columns.
        rows: one a part of the input, in the order of the input.
        picture: draws it as a PNG.
        outputs: files written.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    picture: Callable[[Path], Path]
    outputs: list[Path] = field(default_factory=list)

    def show(self) -> None:
        """Print the table and the paths."""
        print_table(self.columns, self.rows, title=self.title)
        for path in self.outputs:
            print(path)


def explain_weights(found: Coefficients, *, name: str, step: int = 1) -> Explanation:
    """The weight of each lag of each input, with its standard error where there is one.

    Args:
        found: of a linear model.
        name: of the model.
        step: of the horizon.

    Raises:
        ValueError: the horizon has no such step.
    """
    from recurra.forecast.figures import weights_png

    horizon = next(iter(found.weights.values())).shape[1]
    if not 1 <= step <= horizon:
        raise ValueError(f"step must be between 1 and {horizon}; got {step}")
    weights = {key: value[:, step - 1] for key, value in found.weights.items()}
    errors = {key: value[:, step - 1] for key, value in found.errors.items()}
    rows: list[tuple[object, ...]] = []
    for key, values in weights.items():
        rows += [
            (key, lag, float(value), float(errors[key][lag - 1]) if key in errors else "")
            for lag, value in enumerate(values, start=1)
        ]
    if found.intercept is not None:
        rows.append(("intercept", "", float(found.intercept[step - 1]), ""))
    title = f"{name}: weights of the forecast of step {step}"
    columns = ("input", "lag", "weight", "standard error")
    return Explanation(title, columns, rows, lambda path: weights_png(path, weights, errors, title=title))


@dataclass(frozen=True)
class Windows:
    """Windows that a model is asked about, on its own scale.

    Attributes:
        past: (batch, window, variate).
        marks: calendar features (batch, window + horizon, mark), if it takes them.
        covariates: (batch, window + horizon, covariate), if it takes them.
        scale: what a change on the model's scale is multiplied by for original units: (batch or 1, variate), or one
            number.
    """

    past: Array
    marks: Array | None = None
    covariates: Array | None = None
    scale: Array | float = 1.0


def occlusion(
    model: "Forecaster",
    windows: Iterable[Windows],
    *,
    blocks: int | None = None,
    variates: Sequence[str] = (),
    covariates: Sequence[str] = (),
    unit: str = "",
    name: str | None = None,
) -> Explanation:
    """How much the forecast changes when a part of the input is replaced by its mean over the window.

    The parts are blocks of lags (of all variates), then each variate where there are several, then each covariate, then
    the calendar. The table has the mean absolute change over windows, steps and variates in original units, its
    standard deviation over the windows, and the share of the largest.

    Args:
        model: any forecaster; without gradients, in evaluation mode.
        windows: batches; gone through once, one at a time.
        blocks: lags in a block; by default a twelfth of the window, rounded up.
        variates: names of the variates, if each is to be explained.
        covariates: names of the covariates.
        unit: of the forecasts.
        name: of the model.

    Raises:
        ValueError: there is no window, or names do not fit.
    """
    size = blocks or -(-model.window // 12)
    changes: dict[str, list[Array]] = {}
    count = 0
    for batch in windows:
        _check_names(batch, variates, covariates)
        plain = _forecast(model, batch)
        count += len(plain)
        scale = np.atleast_2d(np.asarray(batch.scale, np.float64))[:, None]
        for label, other in _parts(batch, model.window, size, variates, covariates):
            change = np.abs(_forecast(model, other) - plain) * scale
            changes.setdefault(label, []).append(change.mean((1, 2)))
    if not count:
        raise ValueError("no window to explain; expected at least one")
    return _explained({label: np.concatenate(values) for label, values in changes.items()}, model, name, unit, count)


def _explained(
    changes: Mapping[str, Array], model: "Forecaster", name: str | None, unit: str, count: int
) -> Explanation:
    from recurra.forecast.figures import importance_png

    means = np.array([float(values.mean()) for values in changes.values()])
    spread = np.array([float(values.std()) for values in changes.values()])
    largest = float(means.max()) or 1.0
    rows: list[tuple[object, ...]] = [
        (label, float(mean), float(wide), float(mean / largest))
        for label, mean, wide in zip(changes, means, spread, strict=True)
    ]
    called = name or type(model).__name__
    title = f"{called}: change of the forecast without a part of its input, {count} windows"
    columns = ("without", f"mean absolute change{f', {unit}' if unit else ''}", "spread over windows", "of the largest")
    labels = list(changes)
    return Explanation(
        title, columns, rows, lambda path: importance_png(path, labels, means, spread, unit=unit, title=title)
    )


def _check_names(batch: Windows, variates: Sequence[str], covariates: Sequence[str]) -> None:
    if variates and len(variates) != batch.past.shape[2]:
        raise ValueError(f"{len(variates)} names of variates; the windows have {batch.past.shape[2]}")
    found = 0 if batch.covariates is None else batch.covariates.shape[2]
    if covariates and len(covariates) != found:
        raise ValueError(f"{len(covariates)} names of covariates; the windows have {found}")


def _parts(
    batch: Windows, window: int, size: int, variates: Sequence[str], covariates: Sequence[str]
) -> Iterable[tuple[str, Windows]]:
    """Each part's name, and the windows without it."""
    mean = batch.past.mean(1, keepdims=True)
    for first in range(1, window + 1, size):
        last = min(first + size - 1, window)
        past = batch.past.copy()
        past[:, window - last : window - first + 1] = mean
        yield (f"lags {first}-{last}" if last > first else f"lag {first}"), replace(batch, past=past)
    for index, variate in enumerate(variates if batch.past.shape[2] > 1 else ()):
        past = batch.past.copy()
        past[:, :, index] = mean[:, :, index]
        yield variate, replace(batch, past=past)
    if batch.covariates is not None:
        names = covariates or [f"covariate {index + 1}" for index in range(batch.covariates.shape[2])]
        for index, covariate in enumerate(names):
            values = batch.covariates.copy()
            values[:, :, index] = values[:, :window, index].mean(1, keepdims=True)
            yield covariate, replace(batch, covariates=values)
    if batch.marks is not None:
        marks = np.broadcast_to(batch.marks.mean(1, keepdims=True), batch.marks.shape).copy()
        yield "calendar", replace(batch, marks=marks)


def _forecast(model: "Forecaster", batch: Windows) -> Float[np.ndarray, "batch horizon variate"]:
    """The point forecasts, float64, on the model's scale."""
    import torch

    device = model.residuals.device

    def tensor(values: Array | None) -> Any:
        return None if values is None else torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(device)

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found = model(tensor(batch.past), tensor(batch.marks), tensor(batch.covariates))
    finally:
        model.train(training)
    points = found[..., 0] if model.quantiles else found
    return np.asarray(points.double().cpu().numpy())
