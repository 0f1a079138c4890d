"""What comes after a forecast's origin changes nothing that was known at it: every model, every path, bit for bit."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from recurra.forecast import verbs
from recurra.forecast.backtesting import Backtesting, run_backtest
from recurra.forecast.data.context import Context
from recurra.forecast.evaluation import Evaluation, score_table
from recurra.forecast.forecasting import Forecasting, forecast_table
from recurra.forecast.methods import Method

KINDS = (
    "arnet",
    "arnet-one-step",
    "arnet-hidden",
    "arnet-by-window",
    "arnet-covariates",
    "arnet-quantiles",
    "autoregression",
    "linear",
    "tpgn",
    "chimera",
    "regenn",
    "resnls",
)
WITH_COVARIATES = ("arnet-covariates", "regenn")
ROWS, TRAIN, VAL = 120, 72, 96
ORIGIN = 105
"""Row at which the perturbed forecasts begin; the test rows are 96 to 119."""
# ReGENN's samples are windows of all series: a gap less in one is a larger batch, whose products round otherwise.

Maker = Callable[..., Any]


@pytest.fixture
def frame(request: pytest.FixtureRequest, long_frame: Maker) -> pd.DataFrame:
    """The table of a kind, with two values missing."""
    made: pd.DataFrame = long_frame(ROWS, covariates=request.node.callspec.params["kind"] in WITH_COVARIATES)
    made.loc[[30, ROWS + 115], "y"] = np.nan
    return made


def perturbed(frame: pd.DataFrame, row: int, *, ahead: bool = False, gaps: bool = True) -> pd.DataFrame:
    """The table with every value from a row of each series on another: a thousand times it, and numbers for gaps.

    `ahead` leaves alone what is known ahead; without `gaps` they stay gaps.
    """
    made = frame.copy()
    place = made.groupby("unique_id").cumcount().to_numpy()
    late = place >= row
    for name in ("y", "rain", *(() if ahead else ("price",))):
        if name in made:
            values = made.loc[late, name]
            made.loc[late, name] = (values.fillna(7.0) if gaps else values) * 1000 + 3
    return made


def state(model: Any, *, residuals: bool = True) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items() if residuals or name != "residuals"}


def same(left: dict[Any, np.ndarray], right: dict[Any, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=str(name))


# --- learning


@pytest.mark.parametrize("kind", KINDS)
def test_test_rows_reach_no_weight_scale_or_interval(kind: str, frame: pd.DataFrame, learned: Maker) -> None:
    model, other = learned(frame, kind), learned(perturbed(frame, VAL), kind)
    assert torch.isfinite(model.residuals).any()
    same(state(model), state(other))
    assert model.metadata == other.metadata


@pytest.mark.parametrize("kind", KINDS)
def test_validation_rows_reach_no_training_batch_and_no_scale(kind: str, frame: pd.DataFrame, begun: Maker) -> None:
    task, other = begun(frame, kind), begun(perturbed(frame, TRAIN), kind)
    assert task.model.metadata == other.model.metadata
    same(state(task.model), state(other.model))
    found = []
    for one in (task, other):
        windows = one.prepared.windows("train", one.model)
        batch = windows.__getitems__(list(range(len(windows))))
        found.append({name: value.numpy() for name, value in batch.items()})
    assert len(found[0]["origin"]) > 30
    same(*found)


@pytest.mark.parametrize("fill", ["linear", "previous", "calendar", "zero"])
@pytest.mark.parametrize("kind", ["arnet", "linear", "autoregression", "arnet-covariates", "tpgn"])
def test_gap_over_a_border_is_not_filled_from_the_other_side(
    kind: str, fill: str, frame: pd.DataFrame, begun: Maker, learned: Maker
) -> None:
    names = [name for name in ("y", "rain", "price") if name in frame]
    for border in (TRAIN, VAL):
        frame.loc[border - 2 : border + 1, names] = np.nan
    task, other = (begun(one, kind, data={"fill": fill}) for one in (frame, perturbed(frame, TRAIN + 2, ahead=True)))
    assert task.model.metadata == other.model.metadata
    same(state(task.model), state(other.model))
    found = []
    for one in (task, other):
        windows = one.prepared.windows("train", one.model)
        batch = windows.__getitems__(list(range(len(windows))))
        found.append({name: value.numpy() for name, value in batch.items()})
    same(*found)
    model, other = (learned(one, kind, data={"fill": fill}) for one in (frame, perturbed(frame, VAL + 2, ahead=True)))
    same(state(model), state(other))


# --- forecasts


def forecasts_of_evaluate(
    model: Any, frame: pd.DataFrame, until: int, monkeypatch: pytest.MonkeyPatch, **how: Any
) -> dict[tuple[str, int, int, int], np.ndarray]:
    """Point and ends from origins up to a row, by method, first id, origin and number of levels."""
    found: dict[tuple[str, int, int, int], np.ndarray] = {}
    ends = Method.ends

    def spy(self: Method, batch: Any, point: Any, levels: Any, **named: Any) -> Any:
        lower, upper = ends(self, batch, point, levels, **named)
        for row in range(len(point)):
            if batch.origin[row] <= until:
                whole = np.concatenate([point[row, ..., None], lower[row], upper[row]], -1)
                found[self.name, int(batch.ids[row, 0]), int(batch.origin[row]), len(levels)] = whole
        return lower, upper

    with monkeypatch.context() as patch:
        patch.setattr(Method, "ends", spy)
        made = Evaluation(model, baselines=("last_value", "drift", "seasonal_naive", "ridge"), quiet=True, **how)
        score_table(made, {type(model).__name__: model}, frame)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_sees_nothing_after_an_origin(
    kind: str, frame: pd.DataFrame, learned: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = learned(frame, kind)
    found = [
        forecasts_of_evaluate(model, one, ORIGIN, monkeypatch)
        for one in (frame, perturbed(frame, ORIGIN, ahead=True, gaps=kind != "regenn"))
    ]
    assert {name for name, *_ in found[0]} == {"last_value", "drift", "seasonal_naive", "ridge", type(model).__name__}
    assert len({origin for _, _, origin, _ in found[0]}) > 5
    if kind == "arnet-hidden":  # a matrix product may round otherwise where its memory lies otherwise
        assert found[0].keys() == found[1].keys()
        assert all(np.allclose(value, found[1][key], rtol=1e-8, atol=0) for key, value in found[0].items())
    else:
        same(*found)


def backtested(model: Any, frame: pd.DataFrame, out: Path, **how: Any) -> pd.DataFrame:
    """The rows of a backtest but the values that came."""
    made = Backtesting(model, baselines=("drift", "ridge"), quiet=True, **how)
    run_backtest(made, frame, out, overwrite=False)
    return pd.read_csv(out / "backtest.csv", dtype=str)


def known(rows: pd.DataFrame, row: int = ORIGIN) -> pd.DataFrame:
    """The rows whose cutoff lies before a row of the table, without what came."""
    first = pd.Timestamp("2024-01-01") + pd.Timedelta(days=row)
    return rows[pd.to_datetime(rows["cutoff"]) < first].drop(columns="y")


@pytest.mark.parametrize("rolling", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_backtest_sees_nothing_after_an_origin(
    kind: str, rolling: bool, frame: pd.DataFrame, learned: Maker, tmp_path: Path
) -> None:
    model = learned(frame, kind)
    found = [
        known(backtested(model, one, tmp_path / name, rolling=rolling))
        for name, one in (("a", frame), ("b", perturbed(frame, ORIGIN, ahead=True, gaps=kind != "regenn")))
    ]
    assert found[0]["cutoff"].nunique() >= 9
    pd.testing.assert_frame_equal(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_forecast_of_the_rows_up_to_an_origin_is_that_of_the_backtest(
    kind: str, frame: pd.DataFrame, learned: Maker, tmp_path: Path
) -> None:
    model = learned(frame, kind)
    rows = backtested(model, frame, tmp_path, rolling=False, levels=())
    place = frame.groupby("unique_id").cumcount()
    before, after = frame[place < ORIGIN], frame[place >= ORIGIN]
    made = forecast_table(Forecasting(model, future_frame=after), before).frame
    cutoff = pd.Timestamp("2024-01-01") + pd.Timedelta(days=ORIGIN - 1)
    own = rows[pd.to_datetime(rows["cutoff"]) == cutoff]
    assert (pd.to_datetime(own["ds"]) > cutoff).all()
    keys = ["unique_id", *(["variable"] if "variable" in own else []), "ds"]
    joined = made.merge(own.assign(ds=pd.to_datetime(own["ds"])), on=keys, suffixes=("", " backtest"))
    assert len(joined) == len(own) == len(made)
    name = type(model).__name__
    # Another batch size may round the last bits of float32 otherwise.
    ours, theirs = joined[name].to_numpy(float), joined[f"{name} backtest"].to_numpy(float)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_cutoff_is_the_last_row_that_is_seen(long_frame: Maker, learned: Maker, tmp_path: Path) -> None:
    frame = long_frame(ROWS)
    model = learned(frame)
    cutoff = "2024-04-20"  # row 110
    spiked = frame.copy()
    spiked.loc[spiked["ds"] == cutoff, "y"] += 50.0
    later = frame.copy()
    later.loc[later["ds"] > cutoff, "y"] += 50.0
    rows = [
        backtested(model, one, tmp_path / name, cutoffs=(cutoff,), levels=())
        for name, one in (("plain", frame), ("on", spiked), ("after", later))
    ]
    plain, on, after = (one["ARNet"].astype(float).to_numpy() for one in rows)
    assert (pd.to_datetime(rows[0]["ds"]) > cutoff).all()
    assert (rows[0]["cutoff"].str[:10] == cutoff).all()
    assert (plain != on).all()
    np.testing.assert_array_equal(plain, after)


@pytest.mark.parametrize("fill", ["linear", "previous"])
@pytest.mark.parametrize("kind", ["arnet", "linear", "arnet-covariates", "tpgn"])
def test_values_filled_from_later_rows_are_in_no_forecast(
    kind: str, fill: str, frame: pd.DataFrame, learned: Maker, tmp_path: Path
) -> None:
    names = [name for name in ("y", "rain") if name in frame]
    frame.loc[ORIGIN - 3 : ORIGIN + 1, names] = np.nan  # of the first series
    frame.loc[ROWS + 40 : ROWS + 43, names] = np.nan
    model = learned(frame, kind, data={"fill": fill})
    changed = perturbed(frame, ORIGIN + 2, ahead=True)
    found = [known(backtested(model, one, tmp_path / name), ORIGIN + 2) for name, one in (("a", frame), ("b", changed))]
    pd.testing.assert_frame_equal(*found)


# --- trained again


@pytest.mark.parametrize("kind", ["linear", "arnet"])
def test_refits_see_nothing_after_their_origins(kind: str, frame: pd.DataFrame, recipe: Maker, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False)
    run = tmp_path / "run"
    verbs.train(recipe(kind, data={"csv": str(path)}), out=run, quiet=True)
    found = []
    for name, one in (("a", frame), ("b", perturbed(frame, ORIGIN, ahead=True))):
        table = tmp_path / f"{name}.csv"
        one.to_csv(table, index=False)
        # The table that the recipe names is not the one that is tested.
        table.rename(path)
        verbs.backtest(run, path, tmp_path / name, refit=4, stride=2, baselines=(), quiet=True)
        with (tmp_path / name / "backtest.csv").open() as stream:
            found.append(known(pd.DataFrame(list(csv.DictReader(stream)))))
    pd.testing.assert_frame_equal(*found)
    verbs.backtest(run, path, tmp_path / "never", stride=2, baselines=(), quiet=True)
    never = known(pd.read_csv(tmp_path / "never" / "backtest.csv", dtype=str))
    model = found[0].columns[3]
    assert (never[model] == found[1][model]).sum() < len(never)  # trained again, it forecasts otherwise


def test_the_scaler_knows_the_training_rows_alone(frame_of_levels: pd.DataFrame, learned: Maker) -> None:
    context = Context.of(learned(frame_of_levels))
    for at, (_, rows) in enumerate(frame_of_levels.groupby("unique_id")):
        train = rows["y"].to_numpy()[:TRAIN]
        np.testing.assert_allclose(context.scaler["shift"][at], train.mean(), rtol=1e-12)
        np.testing.assert_allclose(context.scaler["scale"][at], train.std(), rtol=1e-12)
    assert context.trained_until.startswith("2024-03-12")


@pytest.fixture
def frame_of_levels(long_frame: Maker) -> pd.DataFrame:
    """A table whose levels jump after the training rows."""
    frame: pd.DataFrame = long_frame(ROWS)
    late = frame.groupby("unique_id").cumcount() >= TRAIN
    frame.loc[late, "y"] += 1e6
    return frame
