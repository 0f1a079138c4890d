"""What somebody meets who tries the forecasting domain for the first time, each on the smallest input that shows it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recurra.core.errors import UserError
from recurra.forecast import backtest, evaluate, fit, forecast, train
from recurra.forecast.evaluation import _compared

SMALL = ("model.window=12", "model.horizon=3", "data.split=fractions", "train.epochs=1")


def hourly(rows: int = 120, seed: int = 0, name: object = "a") -> pd.DataFrame:
    """A day's wave with noise, of one id."""
    noise = np.random.default_rng(seed).normal(size=rows)
    values = 10 + 3 * np.sin(2 * np.pi * np.arange(rows) / 24) + noise
    stamps = pd.date_range("2024-01-01", periods=rows, freq="h")
    return pd.DataFrame({"unique_id": [name] * rows, "ds": stamps, "y": values})


def test_a_frame_takes_the_place_of_the_recipes_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hourly(name="other").to_csv("ETTh1.csv", index=False)  # a recipe's own file lies there too
    made = fit(hourly(name="mine"), "linear", SMALL)
    data: Any = made.metadata["data"]
    assert data["ids"] == ["mine"]


def test_the_better_by_absolute_error_is_named() -> None:
    # Smaller mean absolute error, larger mean of its square.
    ours, theirs = np.tile([0.0, 0.0, 0.0, 2.8], 12), np.full(48, 1.0) + np.tile([0.01, 0.0], 24)
    assert "ours has the smaller" in _compared("ours", "theirs", ours, theirs, 1)


def test_a_frame_takes_the_place_of_an_embedded_series() -> None:
    made = fit(hourly(name="mine"), "ar-exact", ["model.window=5"])
    data: Any = made.metadata["data"]
    assert data["ids"] == ["mine"]


def test_forecasts_without_levels() -> None:
    made = fit(hourly(), "linear", SMALL).forecast(hourly(), 5)
    assert list(made.columns) == ["unique_id", "ds", "LinearMap"]
    assert len(made) == 5


SIDE_BY_SIDE = ("model.window=12", "model.horizon=3", "model.period=6", "data.split=fractions", "data.targets=null")


@pytest.mark.parametrize(
    "ids", [np.array([7, 3], np.int32), [2.5, 1.5], [True, False], list(pd.to_datetime(["2020-01-02", "2020-01-01"]))]
)
def test_ids_of_series_side_by_side_come_back(ids: Any) -> None:
    frame = pd.concat([hourly(80, 0).assign(unique_id=0), hourly(80, 1).assign(y=lambda one: one.y + 100, unique_id=1)])
    frame["unique_id"] = pd.Series(ids).take(frame["unique_id"]).to_numpy()
    model = fit(frame, "tpgn-etth1-168", [*SIDE_BY_SIDE, "train.epochs=1"])
    made = model.forecast(frame)
    assert made["unique_id"].dtype == frame["unique_id"].dtype
    assert made["unique_id"].drop_duplicates().tolist() == list(ids)
    assert (made.groupby("unique_id", sort=False)["TPGN"].mean() > 60).tolist() == [False, True]


def test_an_id_is_the_same_as_number_and_text() -> None:
    train = pd.concat([hourly(80, 0, 1), hourly(80, 1, 2).assign(y=lambda one: one.y + 100)])
    model = fit(train, "linear", [*SMALL, "model.center=false"])
    rows = train[train.unique_id == 2].tail(12)
    wanted = model.forecast(rows)["LinearMap"].to_numpy()
    for other in (float, str):
        np.testing.assert_array_equal(model.forecast(rows.astype({"unique_id": other}))["LinearMap"], wanted)


@pytest.mark.parametrize("recipe", ["arnet", "tpgn-etth1-168"])
def test_a_refit_forecasts_as_a_model_of_those_rows(tmp_path: Path, recipe: str) -> None:
    # The level rises after the training rows: the scale of the first training is not that of the second.
    wave = hourly(160)["y"].to_numpy() + np.where(np.arange(160) < 110, 0.0, 40.0)
    table = pd.DataFrame({"date": hourly(160)["ds"], "z": wave, "a": 5.0 - wave})
    own = ["model.window=12", "model.horizon=3", "data.targets=[z,a]", "data.split=fractions", "train.epochs=1"]
    own += ["model.period=6"] if recipe.startswith("tpgn") else []
    fit(table, recipe, own, out=tmp_path / "run")
    table.to_csv(tmp_path / "a.csv", index=False)
    backtest(tmp_path / "run", tmp_path / "a.csv", tmp_path / "out", origins=4, refit=2, baselines=(), quiet=True)
    made = pd.read_csv(tmp_path / "out" / "backtest.csv", parse_dates=["date", "cutoff"])
    cutoffs = made["cutoff"].unique()
    again = fit(table[table.date <= cutoffs[2]], recipe, [*own, "data.fractions=[0.85,0.15,0.0]"])
    wanted = again.forecast(table[table.date <= cutoffs[3]])
    name = type(again).__name__
    found = made[made["cutoff"] == cutoffs[3]].set_index(["unique_id", "date"])[name]
    np.testing.assert_allclose(found, wanted.set_index(["unique_id", "date"])[name].reindex(found.index), rtol=1e-5)


def test_cutoffs_that_are_not_scored_or_were_learnt_are_told(tmp_path: Path) -> None:
    model = fit(hourly(), "linear", SMALL)
    cutoffs = ("2024-01-01 03:00", "2024-01-02 12:00", "2024-01-05 12:00")
    hourly().to_csv(tmp_path / "a.csv", index=False)
    made = backtest(model, tmp_path / "a.csv", tmp_path / "out", cutoff=cutoffs, baselines=(), quiet=True)
    assert any("2024-01-01 03:00" in note for note in made.notes)
    assert any(note.startswith("1 windows forecast values that the model was trained") for note in made.notes)


@pytest.mark.parametrize("cutoff", ["2024-01-05T00:00+00:00", "NaT", "soon"])
def test_a_cutoff_of_another_kind_is_refused(tmp_path: Path, cutoff: str) -> None:
    hourly().to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError, match="cutoff"):
        backtest(fit(hourly(), "linear", SMALL), tmp_path / "a.csv", tmp_path / "out", cutoff=(cutoff,), quiet=True)


@pytest.mark.parametrize("unit", [1e-300, 1e-12, 1e12, 1e200])
def test_units_of_any_size_give_the_same_forecast(unit: float) -> None:
    wanted = fit(hourly(), "linear", SMALL).forecast(hourly(), levels=[80]).iloc[:, 2:]
    frame = hourly().assign(y=lambda one: one.y * unit)
    found = fit(frame, "linear", SMALL).forecast(frame, levels=[80]).iloc[:, 2:]
    np.testing.assert_allclose(found / unit, wanted, rtol=1e-5)


def test_recent_rows_need_not_show_the_step() -> None:
    table = hourly(80).assign(ds=pd.date_range("2024-01-01", periods=80, freq="B"))
    model = fit(table, "linear", ["model.window=5", "model.horizon=3", "data.split=fractions"])
    week = table.iloc[40:45]  # Monday to Friday, as of days
    assert model.forecast(week)["ds"].tolist() == table["ds"].iloc[45:48].tolist()
    with pytest.raises(UserError, match="steps of h"):
        model.forecast(hourly())


def test_nothing_is_learnt_from_constants() -> None:
    with pytest.raises(UserError, match="constant"):
        fit(hourly().assign(y=1.0), "linear", SMALL)


def test_a_covariate_filled_from_later_rows_is_not_foreseen(tmp_path: Path) -> None:
    frame = hourly(160).assign(x=np.random.default_rng(1).normal(size=160))
    frame.loc[120:129, "x"] = np.nan
    own = ["model.window=6", "model.horizon=3", "data.past=[x]", "data.fill=linear", "train.epochs=1"]
    model = fit(frame, "arnet", own)
    origins = []
    for later in (0.0, 99.0):
        frame.loc[130, "x"] = later
        frame.to_csv(tmp_path / "a.csv", index=False)
        cutoffs = (str(frame.ds[124]), str(frame.ds[140]))
        backtest(model, tmp_path / "a.csv", tmp_path / "o", cutoff=cutoffs, baselines=(), quiet=True, overwrite=True)
        origins.append(pd.read_csv(tmp_path / "o" / "backtest.csv").set_index("cutoff")["ARNet"])
    pd.testing.assert_series_equal(*origins)


def test_scores_of_rows_that_were_learnt_are_told(tmp_path: Path) -> None:
    hourly().to_csv(tmp_path / "a.csv", index=False)
    model = fit(hourly(), "linear", [*SMALL, "data.fractions=[0.9,0.05,0.05]"])
    told = evaluate(model, [tmp_path / "a.csv"], protocol="tslib", levels=(), quiet=True).notes
    assert any("where the training rows of these series end" in note for note in told)
    told = evaluate(fit(hourly(), "linear", SMALL), [tmp_path / "a.csv"], levels=[80], quiet=True).notes
    assert not any("training rows" in note for note in told)


def test_forecasts_alone_are_nothing_to_score(tmp_path: Path) -> None:
    hourly().to_csv(tmp_path / "a.csv", index=False)
    model = fit(hourly(), "linear", SMALL)
    forecast(model, [tmp_path / "a.csv"], tmp_path / "out", preview=False, quiet=True)
    with pytest.raises(UserError, match="nothing to score"):
        evaluate(model, [tmp_path / "out" / "a.csv"], quiet=True)


def test_the_first_steps_do_not_hang_on_how_many_are_asked_for() -> None:
    price = np.random.default_rng(1).normal(size=140)
    frame = hourly(120).assign(price=price[:120])
    ahead = pd.DataFrame({"unique_id": "a", "ds": pd.date_range(frame.ds[119], periods=21, freq="h")[1:]})
    ahead["price"] = price[120:]
    model = fit(frame, "arnet", ["model.window=6", "model.horizon=4", "data.future=[price]", "train.epochs=1"])
    few, more = (model.forecast(frame, steps, future_frame=ahead)["ARNet"].to_numpy() for steps in (5, 8))
    np.testing.assert_allclose(few, more[:5], rtol=1e-6)


def test_a_forecast_of_another_future_is_not_kept(tmp_path: Path) -> None:
    stamps = pd.date_range("2024-01-01", periods=64, freq="D")
    frame = pd.DataFrame({"unique_id": "a", "ds": stamps[:60], "y": np.sin(np.arange(60.0)), "price": np.arange(60.0)})
    frame.to_csv(tmp_path / "sales.csv", index=False)
    own = {"data.future": "[price]", "data.targets": "[y]", "model.window": 6, "model.horizon": 4, "train.epochs": 1}
    changes = [f"data.csv={tmp_path / 'sales.csv'}", *(f"{name}={value}" for name, value in own.items())]
    train("arnet", changes, out=tmp_path / "run", quiet=True)
    ahead = pd.DataFrame({"unique_id": "a", "ds": stamps[60:], "price": 1.0})

    def made(resume: bool) -> pd.DataFrame:
        given = {"future_frame": tmp_path / "ahead.csv", "resume": resume, "preview": False, "quiet": True}
        forecast(tmp_path / "run", tmp_path / "sales.csv", tmp_path / "out", **given)
        return pd.read_csv(tmp_path / "out" / "sales.csv")

    ahead.to_csv(tmp_path / "ahead.csv", index=False)
    first = made(resume=False)
    pd.testing.assert_frame_equal(made(resume=True), first)
    ahead.assign(price=500.0).to_csv(tmp_path / "ahead.csv", index=False)
    with pytest.raises(UserError, match="made by another checkpoint or with other options"):
        made(resume=True)
