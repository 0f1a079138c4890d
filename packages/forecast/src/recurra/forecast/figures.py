"""Pictures of forecasts as PNG files: fans, backtests, weights, graphs, states, and what a forecast rests on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from recurra.core.figures import INK, save
from recurra.forecast.panels import calendar, edges, legend, named, page, plain, scale_bar, shade, time_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]

PANELS = 6
"""Series that one picture shows at most."""

ORIGINS = 40
"""Forecasts that one strip shows at most."""

PAST, AHEAD, CAME = "#b9b4aa", "#ffb454", "#5ec8e5"
"""Ink of what was known, of the forecast, and of what came."""

METHODS = ("#ffb454", "#5ec8e5", "#9fdc7c", "#e78ac3", "#b9b4aa", "#fff07c", "#b59cff", "#ff8f7a")
STYLES: tuple[Any, ...] = (
    "-",
    (0, (4, 1.5)),
    (0, (1, 1)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (8, 3)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (2, 2)),
    (0, (10, 2, 2, 2)),
)
"""Of the methods in their order; told apart by their dashes too, where a printer has one ink."""


@dataclass(frozen=True)
class Fan:
    """One series and its forecast.

    Attributes:
        name: of the series.
        stamps: of the known values.
        known: (time); NaN where missing.
        ahead: stamps of the forecast.
        forecast: (horizon).
        intervals: of each level, percent, the lower and the upper end, (horizon) each.
        came: what was observed since; NaN where nothing was.
        others: other methods' forecasts by name.
    """

    name: str
    stamps: Any
    known: Array
    ahead: Any
    forecast: Array
    intervals: Mapping[float, tuple[Array, Array]] = field(default_factory=dict)
    came: Array | None = None
    others: Mapping[str, Array] = field(default_factory=dict)


def forecast_png(
    path: Path, fans: Sequence[Fan], *, method: str = "forecast", unit: str = "", title: str | None = None
) -> Path:
    """Writes the end of each series, its forecast, the intervals and what came; returns `path`.

    Args:
        path: the PNG file.
        fans: the series; the first six are drawn.
        method: what made the forecasts.
        unit: of the values.
        title: written above everything.

    Raises:
        ValueError: there is no series.
    """
    if not fans:
        raise ValueError("fans is empty; expected at least one series to draw")
    shown = fans[:PANELS]
    columns = 1 if len(shown) < 3 else 2
    rows = -(-len(shown) // columns)
    figure, places = page(rows, columns, (8.6 if columns == 1 else 5.6, 3.4 if columns == 1 else 2.7), title)
    for place, fan in zip(places, shown, strict=False):
        axes = plain(figure.add_subplot(place))
        _draw_fan(axes, fan, method)
        axes.set_title(fan.name, color=INK, fontsize=9, loc="left")
        axes.set_ylabel(unit, color=INK, fontsize=8)
    levels = sorted({level for fan in shown for level in fan.intervals})
    if len(fans) > PANELS:
        figure.text(0.995, 0.01, f"{PANELS} of {len(fans)} series", ha="right", color=INK, fontsize=7, alpha=0.8)
    legend(figure, ["known", "what came", method, *(f"{level:g} %" for level in levels)])
    return save(figure, path)


def _draw_fan(axes: "Axes", fan: Fan, method: str) -> None:
    tail = max(2 * len(fan.forecast), 40)
    x, zone = time_axis(fan.stamps[-tail:])
    ahead, _ = time_axis(fan.ahead)
    axes.plot(x, np.asarray(fan.known, np.float64)[-tail:], color=PAST, lw=1.1, label="known")
    finite = {level: ends for level, ends in fan.intervals.items() if np.isfinite(np.stack(ends)).any()}
    for order, level in enumerate(sorted(finite, reverse=True)):
        low, high = (np.where(np.isfinite(end), end, np.nan) for end in finite[level])
        color = shade(AHEAD, 0.63 - 0.45 * (len(finite) - order) / (len(finite) + 1))
        style: dict[str, Any] = {"color": color, "zorder": 1.5 + 0.1 * order, "label": f"{level:g} %"}
        if len(ahead) > 1:
            axes.fill_between(ahead, low, high, lw=0, **style)
        else:  # one step has no area
            axes.vlines(ahead, low, high, lw=9, **style)
    notes = [f"{level:g} % has no bounds: too few residuals" for level in fan.intervals if level not in finite]
    for index, (name, values) in enumerate(fan.others.items(), start=2):
        axes.plot(
            ahead, values, color=METHODS[index % len(METHODS)], ls=STYLES[index % len(STYLES)], lw=1.0, label=name
        )
    if fan.came is not None:
        axes.plot(ahead, fan.came, color=CAME, lw=1.2, ls=STYLES[1], zorder=3, label="what came")
    axes.plot(
        ahead, fan.forecast, color=AHEAD, lw=1.6, marker="o" if len(ahead) < 3 else "", ms=4, zorder=3, label=method
    )
    axes.axvline(x[-1], color=INK, lw=0.6, alpha=0.5, ls=":")
    axes.margins(x=0.01)
    calendar(axes, x, zone)
    if notes:
        axes.text(0.01, 0.97, "\n".join(notes), transform=axes.transAxes, va="top", color=INK, fontsize=7)


def backtest_png(
    path: Path,
    stamps: Any,
    actual: Float[np.ndarray, " time"],
    forecasts: Sequence[tuple[Any, Array]],
    scores: Mapping[str, Array],
    origins: Any,
    *,
    metric: str = "MAE",
    unit: str = "",
    name: str = "",
    title: str | None = None,
) -> Path:
    """Writes the forecasts from many origins over the series, and below each method's score by origin; returns `path`.

    Args:
        path: the PNG file.
        stamps: of the actual values.
        actual: the series.
        forecasts: stamps and values of each forecast, of the model alone; at most forty are drawn, evenly.
        scores: of each method, one for each origin; the first is the model.
        origins: stamps of the origins.
        metric: what the scores are.
        unit: of the values.
        name: of the series.
        title: written above everything.
    """
    figure, places = page(2, 1, (9.4, 2.5), title, gaps=(0.75, 0.25))
    axes = plain(figure.add_subplot(places[0]))
    x, zone = time_axis(stamps)
    axes.plot(x, actual, color=PAST, lw=1.0, label="what came")
    every = max(1, -(-len(forecasts) // ORIGINS))
    for index, (ahead, values) in enumerate(forecasts[::every]):
        when, _ = time_axis(ahead)
        label = "forecasts" if index == 0 else None
        axes.plot(when, values, color=AHEAD, lw=1.1, alpha=0.85, label=label)
        axes.plot(when[:1], values[:1], color=AHEAD, marker="o", ms=2.2, lw=0)
    axes.set_ylabel(unit, color=INK, fontsize=8)
    axes.set_title(name, color=INK, fontsize=9, loc="left")
    if every > 1:
        axes.set_title(f"one forecast of {every} is drawn", color=INK, fontsize=8, loc="right")
    calendar(axes, x, "")
    below = plain(figure.add_subplot(places[1], sharex=axes))
    when, _ = time_axis(origins)
    for index, (method, values) in enumerate(scores.items()):
        mean = float(np.nanmean(values)) if np.isfinite(values).any() else np.nan
        color, style = METHODS[index % len(METHODS)], STYLES[index % len(STYLES)]
        below.plot(when, values, color=color, ls=style, lw=1.1, label=f"{metric} of {method}: mean {mean:.4g}")
    below.set_ylabel(f"{metric} by origin", color=INK, fontsize=8)
    below.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.tick_params(labelbottom=False)
    axes.xaxis.get_offset_text().set_visible(False)
    calendar(below, x, zone)
    legend(figure)
    return save(figure, path)


def weights_png(
    path: Path,
    weights: Mapping[str, Array],
    errors: Mapping[str, Array] | None = None,
    *,
    truth: Float[np.ndarray, " order"] | None = None,
    title: str | None = None,
) -> Path:
    """Writes the weight of each lag as a bar with two standard errors on both sides; returns `path`.

    Args:
        path: the PNG file.
        weights: of each input (lag), lag 1 first; one panel each.
        errors: standard errors of those that have them.
        truth: the weights that made the series of the first input, where they are known.
        title: written above everything.
    """
    from matplotlib.ticker import MaxNLocator

    shown = dict(list(weights.items())[:PANELS])
    figure, places = page(len(shown), 1, (8.6, 2.4), title)
    for place, (name, values) in zip(places, shown.items(), strict=True):
        axes = plain(figure.add_subplot(place))
        lags = np.arange(1, len(values) + 1)
        axes.bar(lags, values, width=0.72, color=AHEAD, label="weight")
        error = (errors or {}).get(name)
        if error is not None:
            width = max(0.4, min(1.2, 60 / len(lags)))
            axes.errorbar(
                lags,
                values,
                2 * error,
                fmt="none",
                ecolor=INK,
                elinewidth=width,
                capsize=2 if len(lags) <= 60 else 0,
                label="two standard errors",
            )
        if truth is not None and name == next(iter(shown)):
            true = np.pad(truth, (0, max(0, len(lags) - len(truth))))[: len(lags)]
            axes.plot(lags, true, color=CAME, marker="D", ms=4, lw=0, label="true weight")
        axes.axhline(0, color=INK, lw=0.6, alpha=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("lag, steps", color=INK, fontsize=8)
        axes.set_ylabel("weight", color=INK, fontsize=8)
        axes.set_title(name, color=INK, fontsize=9, loc="left")
        axes.margins(x=0.01)
    legend(figure)
    return save(figure, path)


def evolution_png(
    path: Path,
    matrices: Mapping[str, Float[np.ndarray, "row column"]],
    names: Sequence[str],
    *,
    title: str | None = None,
) -> Path:
    """Writes graphs of variates as heat maps, each on its own scale, 0 in the middle where there are negatives.

    Args:
        path: the PNG file.
        matrices: square, by name, in their order; the first six are drawn.
        names: of the variates.
        title: written above everything.

    Returns:
        `path`.
    """
    shown = dict(list(matrices.items())[:PANELS])
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    margins: dict[str, Any] = {"left": 0.95, "gaps": (0.3, 0.45), "foot": 0.95, "right": 0.45}
    figure, places = page(rows, columns, (3.1, 2.7), title, legend=False, **margins)
    for number, (place, (name, matrix)) in enumerate(zip(places, shown.items(), strict=False)):
        axes = plain(figure.add_subplot(place), grid=False)
        largest = float(np.abs(matrix).max()) or 1.0
        low = -largest if matrix.min() < 0 else 0.0
        colors = "PuOr" if low < 0 else "inferno"
        drawn = axes.imshow(matrix, cmap=colors, vmin=low, vmax=largest, interpolation="nearest")
        scale_bar(figure, axes, drawn)
        axes.set_title(name, color=INK, fontsize=9, loc="left")
        named(axes, names, rows=number % columns == 0, columns=True)
        if number + columns < len(shown):
            axes.tick_params(labelbottom=False)
    return save(figure, path)


def energies_png(
    path: Path,
    along_time: Float[np.ndarray, "variate time"],
    along_variates: Float[np.ndarray, "variate time"],
    names: Sequence[str],
    *,
    stamps: Any = None,
    title: str | None = None,
) -> Path:
    """Writes the energies of a two-dimensional state over time and variates on one logarithmic scale; returns `path`.

    Args:
        path: the PNG file.
        along_time: mean square of the state that runs along time.
        along_variates: of the one that runs along the variates.
        names: of the variates.
        stamps: of the steps; numbers from 1 without them.
        title: written above everything.
    """
    from matplotlib.colors import LogNorm

    tall = max(1.4, min(4.0, 0.28 * len(names)))
    figure, places = page(2, 1, (8.6, tall), title, legend=False, left=0.95)
    largest = float(max(along_time.max(), along_variates.max())) or 1.0
    scale = LogNorm(1e-4 * largest, largest)
    steps = np.arange(1, along_time.shape[1] + 1) if stamps is None else stamps
    x, zone = time_axis(steps)
    for place, (name, energy) in zip(
        places, (("along time", along_time), ("along variates", along_variates)), strict=True
    ):
        axes = plain(figure.add_subplot(place), grid=False)
        sides, rows = edges(x), np.arange(len(names) + 1) - 0.5
        drawn = axes.pcolormesh(sides, rows, np.maximum(energy, 1e-4 * largest), cmap="inferno", norm=scale)
        axes.invert_yaxis()
        scale_bar(figure, axes, drawn, "mean square of the state")
        axes.set_title(f"state {name}", color=INK, fontsize=9, loc="left")
        named(axes, names)
        calendar(axes, x, zone if name == "along variates" else "")
        axes.xaxis.get_offset_text().set_visible(name == "along variates")
    return save(figure, path)


def importance_png(
    path: Path,
    labels: Sequence[str],
    changes: Float[np.ndarray, " what"],
    spread: Float[np.ndarray, " what"] | None = None,
    *,
    unit: str = "",
    title: str | None = None,
) -> Path:
    """Writes how much the forecast changes without each part of its input, as bars from the first down; returns `path`.

    Args:
        path: the PNG file.
        labels: what is taken away.
        changes: mean absolute change.
        spread: standard deviation of the change over the windows.
        unit: of the forecasts.
        title: written above everything.
    """
    tall = 0.7 + 0.24 * len(labels)
    figure, (place,) = page(1, 1, (8.6, tall), title, legend=spread is not None, left=1.9)
    axes = plain(figure.add_subplot(place))
    places = np.arange(len(labels))
    axes.barh(places, changes, height=0.68, color=AHEAD)
    if spread is not None:
        ends = np.stack([np.minimum(spread, changes), spread])
        axes.errorbar(
            changes, places, xerr=ends, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2, label="spread over windows"
        )
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(left=0)
    unit_text = f", {unit}" if unit else ""
    axes.set_xlabel(f"mean absolute change of the forecast{unit_text}", color=INK, fontsize=8)
    legend(figure)
    return save(figure, path)
