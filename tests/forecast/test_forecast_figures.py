"""Pictures: what is drawn where, on axes of wall-clock time, and that nothing covers the data."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from recurra.core.figures import save
from recurra.forecast import figures
from recurra.forecast.figures import (
    Fan,
    backtest_png,
    energies_png,
    evolution_png,
    forecast_png,
    importance_png,
    weights_png,
)

DRAW = np.random.default_rng


def drawn(make: Any, *arguments: Any, **options: Any) -> Any:
    """The figure that was saved, its texts and axes."""
    kept = []

    def keep(figure: Any, path: Path) -> Path:
        kept.append(figure)
        return save(figure, path)

    with mock.patch.object(figures, "save", keep):
        path = make(*arguments, **options)
    assert path.is_file()
    return kept[0]


def texts(figure: Any) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def fan(name: str = "a", horizon: int = 24, *, tz: str | None = None, freq: str = "h", **options: Any) -> Fan:
    stamps = pd.date_range("2024-03-25", periods=120 + horizon, freq=freq, tz=tz)
    values = np.sin(np.arange(120 + horizon) / 4)
    forecast = values[120:] + 0.1
    half = 0.3 * np.ones(horizon)
    intervals = {80.0: (forecast - half, forecast + half), 95.0: (forecast - 2 * half, forecast + 2 * half)}
    given = {"intervals": intervals, "came": values[120:], **options}
    return Fan(name, stamps[:120], values[:120], stamps[120:], forecast, **given)


def test_a_fan_has_its_lines_bands_units_and_zone(tmp_path: Path) -> None:
    one = fan(tz="Europe/Berlin", others={"naive": np.zeros(24)})
    figure = drawn(forecast_png, tmp_path / "a.png", [one], method="TPGN", unit="MW", title="title")
    shown = texts(figure)
    assert {"TPGN", "known", "what came", "80 %", "95 %", "naive", "MW", "title", "a"} <= set(shown)
    assert "local time, Europe/Berlin" in shown
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert np.asarray(lines["TPGN"].get_ydata()) == pytest.approx(one.forecast)
    # The zone's own clock, not UTC: 120 hours after midnight in Berlin, a change of clocks between.
    assert pd.Timestamp(lines["TPGN"].get_xdata()[0]) == pd.Timestamp("2024-03-30")


def test_the_legend_covers_no_panel(tmp_path: Path) -> None:
    figure = drawn(forecast_png, tmp_path / "a.png", [fan(f"s{i}") for i in range(4)], title="t")
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert all(not box.overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_many_series_are_a_grid_of_six(tmp_path: Path) -> None:
    figure = drawn(forecast_png, tmp_path / "a.png", [fan(f"s{i}") for i in range(9)])
    assert len(figure.axes) == 6
    assert "6 of 9 series" in texts(figure)
    with pytest.raises(ValueError, match="fans is empty"):
        forecast_png(tmp_path / "b.png", [])


def test_an_interval_without_bounds_is_said_and_not_drawn(tmp_path: Path) -> None:
    infinite = np.full(24, np.inf)
    figure = drawn(forecast_png, tmp_path / "a.png", [fan(intervals={99.0: (-infinite, infinite)})])
    assert "99 % has no bounds: too few residuals" in texts(figure)
    low, high = figure.axes[0].get_ylim()
    assert high - low < 4


@pytest.mark.parametrize("horizon", [1, 2])
def test_short_horizons_can_be_seen(tmp_path: Path, horizon: int) -> None:
    figure = drawn(forecast_png, tmp_path / "a.png", [fan(horizon=horizon, came=None)], method="m")
    line = next(line for line in figure.axes[0].get_lines() if line.get_label() == "m")
    assert line.get_marker() == "o"
    assert len(figure.axes[0].collections) == 2


def test_stamps_of_every_kind(tmp_path: Path) -> None:
    whole = Fan("w", np.arange(5, 45), np.ones(40), np.arange(45, 48), np.ones(3))
    assert "step" in texts(drawn(forecast_png, tmp_path / "a.png", [whole]))
    months = pd.period_range("2020-01", periods=43, freq="M")
    drawn(forecast_png, tmp_path / "b.png", [Fan("m", months[:40], np.full(40, np.nan), months[40:], np.ones(3))])


def test_backtest_shows_forecasts_and_scores_by_origin(tmp_path: Path) -> None:
    stamps = pd.date_range("2024-01-01", periods=400, freq="h")
    origins = np.arange(100, 300, 2)
    forecasts = [(stamps[o + 1 : o + 25], np.ones(24)) for o in origins]
    scores = {"TPGN": np.full(100, 0.25), "naive": np.r_[np.nan, np.full(99, 0.5)]}
    figure = drawn(
        backtest_png, tmp_path / "a.png", stamps, np.zeros(400), forecasts, scores, stamps[origins], unit="m"
    )
    shown = texts(figure)
    assert {"MAE of TPGN: mean 0.25", "MAE of naive: mean 0.5", "forecasts", "m", "one forecast of 3 is drawn"} <= set(
        shown
    )
    above, below = figure.axes
    assert above.get_xlim() == below.get_xlim()
    assert below.get_ylim()[0] == 0
    assert sum(len(line.get_xdata()) == 24 for line in above.get_lines()) == 34


def test_weights_have_their_errors(tmp_path: Path) -> None:
    weights = {"y": np.array([0.5, -0.2, 0.0]), "t": np.array([0.1])}
    errors = {"y": np.full(3, 0.05)}
    figure = drawn(weights_png, tmp_path / "a.png", weights, errors, truth=np.array([0.4]))
    assert {"y", "t", "weight", "two standard errors", "true weight", "lag, steps"} <= set(texts(figure))
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [0.5, -0.2, 0.0]
    (segments,) = [one.get_segments() for one in figure.axes[0].collections]
    assert segments[0][:, 1] == pytest.approx([0.4, 0.6])


def test_graphs_are_side_by_side_with_names(tmp_path: Path) -> None:
    matrices = {f"graph {i}": DRAW(i).normal(size=(3, 3)) * 10**i - (i > 3) for i in range(7)}
    figure = drawn(evolution_png, tmp_path / "a.png", matrices, ["confirmed", "deaths", "recovered persons"])
    shown = texts(figure)
    assert "graph 5" in shown
    assert "graph 6" not in shown
    assert "recovered p…" in shown
    image = figure.axes[0].images[0]
    assert image.get_clim()[0] == -image.get_clim()[1]
    drawn(evolution_png, tmp_path / "b.png", {"zero": np.zeros((40, 40))}, [str(i) for i in range(40)])


def test_energies_share_a_scale(tmp_path: Path) -> None:
    energy = DRAW(0).random((7, 30)) + 0.01
    stamps = pd.date_range("2024-01-01", periods=30, freq="D")
    names = [f"v{i}" for i in range(7)]
    figure = drawn(energies_png, tmp_path / "a.png", energy, energy / 10, names, stamps=stamps)
    maps = [axes.collections[0] for axes in figure.axes[::2]]
    assert maps[0].get_clim() == maps[1].get_clim() == pytest.approx((energy.max() * 1e-4, energy.max()))
    assert {"state along time", "state along variates", "v6"} <= set(texts(figure))
    drawn(energies_png, tmp_path / "b.png", np.zeros((1, 1)), np.zeros((1, 1)), ["only"])


def test_importance_is_read_from_the_top(tmp_path: Path) -> None:
    changes = np.array([2.0, 0.5])
    figure = drawn(importance_png, tmp_path / "a.png", ["lags 1-24", "t"], changes, np.array([3.0, 0.1]), unit="MW")
    (axes,) = figure.axes
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert axes.get_xlim()[0] == 0
    assert "mean absolute change of the forecast, MW" in texts(figure)


def test_import_needs_no_matplotlib_and_drawing_no_pyplot(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from recurra.forecast.figures import importance_png; "
        "assert 'matplotlib' not in sys.modules; importance_png(Path(sys.argv[1]), ['a'], np.ones(1)); "
        "print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=True)
    assert ran.stdout == "False False\n"
