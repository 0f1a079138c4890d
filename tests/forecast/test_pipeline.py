"""From a table to forecasts: the same numbers in another process, in any batch, order, unit and file format."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from recurra.core.errors import UserError
from recurra.forecast import verbs
from recurra.forecast.data.context import Context
from recurra.forecast.evaluation import Evaluation, score_table
from recurra.forecast.forecasting import Forecasting, forecast_table
from recurra.forecast.inference import load_checkpoint

Maker = Callable[..., Any]
Command = Callable[..., Any]
WITH_COVARIATES = ("arnet-covariates", "regenn")
KINDS = (
    "arnet",
    "arnet-one-step",
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


def table_of(kind: str, long_frame: Maker, rows: int = 80) -> pd.DataFrame:
    made: pd.DataFrame = long_frame(rows, covariates=kind in WITH_COVARIATES)
    return made


def ahead_of(frame: pd.DataFrame, rows: int = 12) -> pd.DataFrame | None:
    """What is known ahead of a table with covariates."""
    if "price" not in frame:
        return None
    stamps = pd.date_range(frame["ds"].max(), periods=rows + 1)[1:]
    ids = frame["unique_id"].unique()
    made = pd.DataFrame({"unique_id": np.repeat(ids, rows), "ds": np.tile(stamps.to_numpy(), len(ids))})
    return made.assign(price=np.linspace(-1, 1, len(made)))


def forecast(model: Any, frame: Any, **how: Any) -> pd.DataFrame:
    given = Forecasting(model, levels=how.pop("levels", (80.0, 95.0)), **how)
    return forecast_table(given, frame).frame


def numbers(frame: pd.DataFrame) -> np.ndarray:
    made: np.ndarray = frame.select_dtypes("number").to_numpy()
    return made


# --- saved, loaded, used again


LOADED = """
import sys
import pandas as pd
from pathlib import Path
from recurra.forecast import verbs
folder = Path(sys.argv[1])
for run in sorted(folder.glob("run-*")):
    for table in ("old", "new"):
        name = run.name[4:]
        kind = "covariates" if (run / "covariates").exists() else "plain"
        ahead = folder / f"{kind}-{table}-ahead.csv" if kind == "covariates" else None
        verbs.forecast(run, [folder / f"{kind}-{table}.csv"], folder / f"out-{name}-{table}", future_frame=ahead,
                       horizon=6 if "covariates" not in name else 4, preview=False, quiet=True, format="csv")
"""


def test_another_process_gives_the_same_forecasts_of_old_and_new_rows(
    long_frame: Maker, learned: Maker, tmp_path: Path
) -> None:
    tables = {}
    for name in ("plain", "covariates"):
        whole = long_frame(92, covariates=name == "covariates")
        place = whole.groupby("unique_id").cumcount()
        for age, part in (("old", whole[place < 80]), ("new", whole)):
            tables[name, age] = part
            part.to_csv(tmp_path / f"{name}-{age}.csv", index=False)
            if (ahead := ahead_of(part)) is not None:
                ahead.to_csv(tmp_path / f"{name}-{age}-ahead.csv", index=False)
    live = {}
    for kind in KINDS:
        name = "covariates" if kind in WITH_COVARIATES else "plain"
        live[kind] = learned(tables[name, "old"], kind)
        folder = tmp_path / f"run-{kind}"
        live[kind].save_pretrained(folder)
        if name == "covariates":
            (folder / "covariates").touch()
    subprocess.run([sys.executable, "-c", LOADED, tmp_path], check=True, timeout=600)
    for kind, model in live.items():
        name = "covariates" if kind in WITH_COVARIATES else "plain"
        horizon = 4 if kind == "arnet-covariates" else 6
        for age in ("old", "new"):
            own = tables[name, age]
            made = [forecast(model, own, horizon=horizon, future_frame=ahead_of(own)) for _ in range(2)]
            pd.testing.assert_frame_equal(*made)  # saving and forecasting leave the live model as it was
            theirs = pd.read_csv(tmp_path / f"out-{kind}-{age}" / f"{name}-{age}.csv", parse_dates=["ds"])
            pd.testing.assert_frame_equal(
                made[0], theirs, check_exact=True, check_dtype=False, check_column_type=False, obj=f"{kind} {age}"
            )
        old, new = (
            numbers(forecast(model, tables[name, age], future_frame=ahead_of(tables[name, age])))
            for age in ("old", "new")
        )
        assert not np.array_equal(old, new)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_as_one_window_after_the_other(kind: str, long_frame: Maker, learned: Maker) -> None:
    frame = table_of(kind, long_frame)
    model, ahead = learned(frame, kind), ahead_of(frame)
    whole, single = (numbers(forecast(model, frame, future_frame=ahead, batch_size=size)) for size in (256, 1))
    np.testing.assert_allclose(whole, single, rtol=1e-6, atol=1e-6)
    if model.layout == "series":
        alone = [
            numbers(forecast(model, frame[frame["unique_id"] == one], future_frame=ahead))
            for one in frame["unique_id"].unique()
        ]
        np.testing.assert_allclose(whole, np.concatenate(alone), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["arnet", "chimera", "regenn"])
def test_scores_do_not_depend_on_the_batch_size(kind: str, long_frame: Maker, learned: Maker) -> None:
    frame = table_of(kind, long_frame, 120)
    model = learned(frame, kind)
    found = []
    for size in (1, 7, 256):
        how = Evaluation(model, baselines=("last_value", "ridge"), batch_size=size, quiet=True)
        found.append(score_table(how, {"model": model}, frame).metrics)
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for method, row in other.items():
            assert row == pytest.approx(found[0][method], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_rows_and_ids_changes_nothing(kind: str, long_frame: Maker, learned: Maker) -> None:
    frame = table_of(kind, long_frame)
    ahead = ahead_of(frame)
    shuffled = frame.sample(frac=1, random_state=1)[list(frame.columns[::-1])]
    model, other = learned(frame, kind), learned(shuffled, kind)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert Context.of(model).scaler == Context.of(other).scaler
    plain, mixed = forecast(model, frame, future_frame=ahead), forecast(other, shuffled, future_frame=ahead)
    # Ids come in the order in which the caller's table has them.
    assert list(mixed["unique_id"].unique()) == list(shuffled["unique_id"].unique())
    keys = ["unique_id", *(["variable"] if "variable" in plain else []), "ds"]
    sort = [one.sort_values(keys, ignore_index=True) for one in (plain, mixed)]
    pd.testing.assert_frame_equal(*sort, check_exact=True)


IDS = {
    "int64": pd.Series([7, 3, 1]),
    "int8": pd.Series([7, 3, 1], dtype="int8"),
    "Int64": pd.Series([7, 3, 1], dtype="Int64"),
    "string": pd.Series(["b", "a", "Ö x"], dtype="string"),
    "object": pd.Series(["007", "7", "07"], dtype=object),
    "category": pd.Series(["b", "a", "c"], dtype="category"),
}


@pytest.mark.parametrize("dtype", IDS)
def test_ids_come_back_with_their_type(dtype: str, long_frame: Maker, learned: Maker, tmp_path: Path) -> None:
    frame = long_frame(60)
    place = frame["unique_id"].map({"a": 0, "b": 1, "c": 2}).to_numpy()
    frame["unique_id"] = IDS[dtype].take(place).reset_index(drop=True)
    made = forecast(learned(frame), frame)
    expected = IDS[dtype].take(np.repeat([0, 1, 2], 4)).reset_index(drop=True)
    pd.testing.assert_series_equal(made["unique_id"], expected, check_names=False)
    # A file of ids that a checkpoint knows as numbers or as text finds its scale again.
    model = learned(frame)
    model.save_pretrained(tmp_path / "run")
    found = forecast_table(Forecasting(tmp_path / "run"), frame)
    assert not [note for note in found.notes if "not in the training data" in note]


# --- scale, constants, gaps


@pytest.mark.parametrize("factor", [100.0, 1e-6])
@pytest.mark.parametrize("kind", ["arnet-by-window", "tpgn", "chimera"])
def test_a_hundred_times_the_values_is_a_hundred_times_the_forecast(
    kind: str, factor: float, long_frame: Maker, learned: Maker
) -> None:
    frame = long_frame(80)
    model = learned(frame, kind, data={"scaler": "window"})
    plain, scaled = (numbers(forecast(model, one)) for one in (frame, frame.assign(y=frame["y"] * factor)))
    np.testing.assert_allclose(scaled, plain * factor, rtol=1e-5)


@pytest.mark.parametrize("kind", ["arnet", "arnet-by-window", "linear", "autoregression"])
def test_a_constant_and_a_new_series_leave_the_others_as_they_are(kind: str, long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(80)
    model = learned(frame, kind)
    constant = frame[frame["unique_id"] == "a"].assign(unique_id="z", y=5.0)
    short = frame[frame["unique_id"] == "a"].tail(3).assign(unique_id="s")
    alone = forecast(model, frame)
    made = forecast_table(Forecasting(model, levels=(80.0, 95.0), skip_short=True), pd.concat([frame, constant, short]))
    assert any("'s' (3)" in note for note in made.notes)
    assert list(made.frame["unique_id"].unique()) == ["a", "b", "c", "z"]
    others = made.frame[made.frame["unique_id"] != "z"].reset_index(drop=True)
    np.testing.assert_allclose(numbers(others), numbers(alone), rtol=1e-6, atol=1e-6)
    own = made.frame[made.frame["unique_id"] == "z"]
    assert np.isfinite(numbers(own)).all()
    if kind == "arnet-by-window":
        np.testing.assert_array_equal(numbers(own), 5.0)


@pytest.mark.parametrize("kind", ["arnet", "arnet-by-window", "linear", "chimera"])
def test_training_with_a_constant_series_is_finite_and_its_intervals_serve_the_others(
    kind: str, long_frame: Maker, learned: Maker
) -> None:
    frame = long_frame(100)
    frame.loc[frame["unique_id"] == "b", "y"] = 3.0
    made = forecast(learned(frame, kind), frame)
    assert np.isfinite(numbers(made)).all()


@pytest.mark.parametrize("kind", ["arnet", "linear", "chimera"])
def test_a_table_of_constants_has_finite_forecasts(kind: str, long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(80)
    made = forecast(learned(frame, kind), frame.assign(y=4.0))
    assert np.isfinite(numbers(made)).all()


def test_one_missing_value_of_five_hundred_trains_to_finite_weights(
    long_frame: Maker, recipe: Maker, tmp_path: Path
) -> None:
    frame = long_frame(500, ("a",))
    frame.loc[200, "y"] = np.nan
    model = verbs.fit(frame, recipe("arnet"))
    assert all(torch.isfinite(value).all() for name, value in model.state_dict().items() if name != "residuals")
    made = forecast(model, frame)
    assert np.isfinite(numbers(made)).all()
    gapless, gappy = (verbs.fit(one, recipe("linear", "exact")) for one in (frame.ffill(), frame))
    assert torch.allclose(gapless.map.weight, gappy.map.weight, atol=0.1)


def test_several_variables_come_back_in_their_own_units(long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(100, covariates=True).drop(columns="kind")
    frame["price"] = 1e6 + 1e3 * frame["price"]
    frame["rain"] = 1e-3 * frame["rain"]
    for kind, scaler in (("linear", "standard"), ("chimera", "standard"), ("arnet-by-window", "window")):
        model = learned(frame, kind, data={"targets": ["y", "rain", "price"], "scaler": scaler})
        made = forecast(model, frame, levels=(80.0,))
        name = type(model).__name__
        assert list(made.columns) == ["unique_id", "ds", "variable", name, f"{name}-lo-80", f"{name}-hi-80"] or list(
            made.columns
        ) == ["unique_id", "variable", "ds", name, f"{name}-lo-80", f"{name}-hi-80"]
        assert len(made) == 3 * 3 * 4
        for variable, column in (("price", "price"), ("rain", "rain"), ("y", "y")):
            own, past = made[made["variable"] == variable], frame[column]
            assert (own[name] > past.min() - 5 * past.std()).all()
            assert (own[name] < past.max() + 5 * past.std()).all()
            width = (own[f"{name}-hi-80"] - own[f"{name}-lo-80"]) / past.std()
            assert ((width > 0) & (width < 20)).all()


def test_one_variable_of_a_wide_table_and_many(long_frame: Maker, learned: Maker) -> None:
    long = long_frame(100)
    wide = long.pivot(index="ds", columns="unique_id", values="y").reset_index().rename_axis(columns=None)
    ours, theirs = (forecast(learned(one, "linear"), one) for one in (long, wide))
    assert list(theirs["unique_id"].unique()) == ["a", "b", "c"]
    np.testing.assert_allclose(numbers(ours), numbers(theirs), rtol=1e-6)
    single = forecast(learned(wide, "linear", data={"targets": ["c"]}), wide)
    assert list(single["unique_id"].unique()) == ["c"]
    assert single["LinearMap"].between(20, 40).all()


# --- beyond the model's horizon


@pytest.mark.parametrize(
    "kind", ["arnet", "arnet-one-step", "arnet-by-window", "autoregression", "linear", "tpgn", "chimera"]
)
def test_a_longer_horizon_goes_on_from_its_own_forecasts(kind: str, long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(80)
    model = learned(frame, kind)
    name, steps = type(model).__name__, model.horizon
    long = forecast(model, frame, horizon=2 * steps + 1, levels=())
    fed = frame.copy()
    parts = []
    for _ in range(3):
        made = forecast(model, fed, levels=())
        parts.append(made)
        fed = pd.concat([fed, made.rename(columns={name: "y"})], ignore_index=True)
    by_hand = pd.concat(parts).sort_values(["unique_id", "ds"], ignore_index=True)
    by_hand = by_hand[by_hand.groupby("unique_id").cumcount() < 2 * steps + 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(long, by_hand, rtol=1e-5)


def test_marks_and_covariates_move_on_with_the_horizon(long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(80, covariates=True)
    data = {"past": [], "future": ["price"], "static": ["kind"]}
    model = learned(frame, "arnet-covariates", data=data)
    ahead = ahead_of(frame, 12)
    assert ahead is not None
    long = forecast(model, frame, horizon=12, future_frame=ahead, levels=())
    fed, parts = frame.copy(), []
    kinds = frame.drop_duplicates("unique_id")[["unique_id", "kind"]]
    for _ in range(3):
        made = forecast(model, fed, future_frame=ahead, levels=())
        parts.append(made)
        more = made.rename(columns={"ARNet": "y"}).merge(ahead, on=["unique_id", "ds"]).merge(kinds, on="unique_id")
        fed = pd.concat([fed, more], ignore_index=True)
    by_hand = pd.concat(parts).sort_values(["unique_id", "ds"], ignore_index=True)
    pd.testing.assert_frame_equal(long, by_hand, rtol=1e-5)
    other = ahead.assign(price=ahead["price"].where(ahead["ds"] < ahead["ds"].iloc[6], 9.0))
    changed = forecast(model, frame, horizon=12, future_frame=other, levels=())
    same = np.isclose(changed["ARNet"], long["ARNet"], rtol=1e-9).reshape(3, 12)
    assert same[:, :4].all()
    assert not same[:, 8:].any()
    with pytest.raises(UserError, match="first id 'a', ds 2024-03-25"):
        forecast(model, frame, horizon=12, future_frame=ahead[ahead["ds"] < "2024-03-25"])


def test_past_covariates_are_not_rolled_on(long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(80, covariates=True)
    with pytest.raises(UserError, match=r"horizon 5: ARNet forecasts 4 steps, and its past covariates are not known"):
        forecast(learned(frame, "arnet-covariates"), frame, horizon=5, future_frame=ahead_of(frame))


# --- bounds


def test_counts_have_bounds_and_are_whole(long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(100)
    frame["y"] = (frame["y"] - 10 * (1 + frame["unique_id"].map({"a": 0, "b": 1, "c": 2}))).round().clip(lower=0)
    model = learned(frame)
    plain = forecast(model, frame)
    assert (numbers(plain) < 0).any()
    bounded = numbers(forecast(model, frame, minimum=0.0, maximum=1.5))
    np.testing.assert_array_equal(bounded, np.clip(numbers(plain), 0, 1.5))
    whole = numbers(forecast(model, frame, minimum=0.0, integer=True))
    np.testing.assert_array_equal(whole, np.clip(np.rint(numbers(plain)), 0, None))


# --- time


@pytest.mark.parametrize("zone", ["Europe/Madrid", "Asia/Kolkata", "UTC"])
def test_stamps_keep_their_zone_over_a_change_of_clocks(zone: str, long_frame: Maker, learned: Maker) -> None:
    stamps = pd.date_range("2025-03-25", periods=115, freq="h", tz="UTC").tz_convert(zone)  # ends on 29 March, 18 UTC
    frame = pd.concat([piece.assign(ds=stamps) for _, piece in long_frame(115).groupby("unique_id")])
    made = forecast(learned(frame, "tpgn"), frame, horizon=24)
    expected = pd.date_range(stamps[-1], periods=25, freq="h")[1:]
    own = made[made["unique_id"] == "a"]["ds"]
    assert str(own.dt.tz) == zone
    assert list(own) == list(expected)
    plain = frame.assign(ds=frame["ds"].dt.tz_convert("UTC"))
    in_utc = forecast(learned(plain, "arnet"), plain, horizon=24)
    np.testing.assert_allclose(
        numbers(forecast(learned(frame, "arnet"), frame, horizon=24)), numbers(in_utc), rtol=1e-9
    )


@pytest.mark.parametrize(("freq", "last"), [("ME", "2033-01-31"), ("QE", "2033-12-31"), ("MS", "2033-01-01")])
def test_month_ends_stay_month_ends(freq: str, last: str, long_frame: Maker, learned: Maker, tmp_path: Path) -> None:
    frame = long_frame(80, freq=freq)
    made = forecast(learned(frame), frame, horizon=9)
    own = made[made["unique_id"] == "a"]["ds"]
    expected = pd.date_range(frame["ds"].max(), periods=10, freq=freq)[1:]
    assert list(own) == list(expected)
    assert own.is_unique


def test_whole_numbers_count_on(long_frame: Maker, learned: Maker, tmp_path: Path) -> None:
    frame = long_frame(80)
    frame["ds"] = frame.groupby("unique_id").cumcount() + 100
    made = forecast(learned(frame), frame)
    assert list(made["ds"])[:4] == [180, 181, 182, 183]
    assert made["ds"].dtype.kind == "i"


def test_a_horizon_over_the_end_of_february_has_every_day(long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(400, ("a",))
    frame["ds"] = pd.date_range("2024-01-20", periods=400)  # ends on 22 February 2025
    made = forecast(learned(frame), frame, horizon=365, levels=())
    assert list(made["ds"]) == list(pd.date_range("2025-02-23", periods=365))
    assert np.isfinite(made["ARNet"]).all()


# --- training


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json")}


def test_training_that_was_stopped_goes_on_as_if_it_was_not(long_frame: Maker, recipe: Maker, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    long_frame(80).to_csv(table, index=False)
    options = {"data": {"csv": str(table)}, "train": {"epochs": 4}}
    path = recipe("arnet-quantiles", **options)
    verbs.train(path, out=tmp_path / "whole", quiet=True)
    verbs.train(path, ["train.epochs=2"], out=tmp_path / "parts", quiet=True)
    verbs.train(path, out=tmp_path / "parts", resume=True, quiet=True)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "parts")
    verbs.train(path, ["train.seed=1"], out=tmp_path / "other", quiet=True)
    assert files_of(tmp_path / "whole")["model.safetensors"] != files_of(tmp_path / "other")["model.safetensors"]


def test_seeds_are_trained_side_by_side_and_scored_together(
    long_frame: Maker, recipe: Maker, command: Command, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    long_frame(100).to_csv(table, index=False)
    path = recipe("arnet", data={"csv": str(table)})
    assert command("train", path, "--seeds", 3, "-o", tmp_path / "runs", "-q").exit_code == 0
    assert sorted(one.name for one in (tmp_path / "runs").iterdir()) == ["seed-0", "seed-1", "seed-2"]
    verbs.train(path, ["train.seed=2"], out=tmp_path / "alone", quiet=True)
    alone, third = (load_checkpoint(folder) for folder in (tmp_path / "alone", tmp_path / "runs" / "seed-2"))
    for name, value in alone.state_dict().items():
        assert torch.equal(value, third.state_dict()[name]), name
    result = command("evaluate", tmp_path / "runs", table, "-o", tmp_path / "scores", "-q")
    assert result.exit_code == 0
    mean = json.loads((tmp_path / "scores" / "metrics.json").read_text())["mean"]
    each = [mean[f"ARNet seed-{seed}"]["mse"] for seed in range(3)]
    assert len(set(each)) == 3
    assert mean["ARNet mean of 3"]["mse"] == pytest.approx(np.mean(each))
    assert f"{np.std(each, ddof=1):.2g}" in result.stdout
    assert command("backtest", tmp_path / "runs", table, "-o", tmp_path / "back", "-q").exit_code == 0
    assert "ARNet seed-1" in (tmp_path / "back" / "metrics.csv").read_text()


def test_a_frame_is_trained_on_and_not_the_table_that_the_recipe_names(
    long_frame: Maker, recipe: Maker, tmp_path: Path
) -> None:
    named, given = long_frame(80), long_frame(80, seed=7)
    named.to_csv(tmp_path / "named.csv", index=False)
    path = recipe("linear", data={"csv": str(tmp_path / "named.csv")})
    ours, theirs = verbs.fit(given, path), verbs.fit(given, recipe("linear", "other"))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    assert Context.of(ours).source == "data frame"
    sample = recipe("linear", "sample", data={"name": "Sample", "series": "autoregression", "csv": None})
    text = sample.read_text().replace("  csv: null\n", "")
    sample.write_text(text)
    assert Context.of(verbs.fit(given, sample)).ids == ["a", "b", "c"]


# --- files


@pytest.fixture
def run(long_frame: Maker, learned: Maker, tmp_path: Path) -> Path:
    """A checkpoint, and beside it the tables north.csv and south.csv."""
    for seed, name in enumerate(("north", "south")):
        long_frame(60, seed=seed).to_csv(tmp_path / f"{name}.csv", index=False)
    learned(long_frame(60)).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_csv_and_parquet_hold_the_same(run: Path, command: Command, tmp_path: Path, long_frame: Maker) -> None:
    pytest.importorskip("pyarrow")
    frame = long_frame(60)
    frame.to_parquet(tmp_path / "north.parquet")
    for suffix in ("csv", "parquet"):
        result = command(
            "forecast", run, tmp_path / f"north.{suffix}", "-o", tmp_path / suffix, "--format", suffix, "-q"
        )
        assert result.exit_code == 0, result.stderr
    text = pd.read_csv(tmp_path / "csv" / "north.csv", parse_dates=["ds"])
    packed = pd.read_parquet(tmp_path / "parquet" / "north.parquet")
    pd.testing.assert_frame_equal(text, packed, check_dtype=False, check_column_type=False)
    pd.testing.assert_frame_equal(packed, forecast(run, frame), check_exact=True)


def test_results_that_are_there_are_kept_refused_or_replaced(run: Path, command: Command, tmp_path: Path) -> None:
    inputs, out = [tmp_path / "north.csv", tmp_path / "south.csv"], tmp_path / "out"
    assert command("forecast", run, *inputs, "-o", out, "-q").exit_code == 0
    names = {"north.csv", "north.json", "north.png", "south.csv", "south.json", "south.png"}
    assert {one.name for one in out.iterdir()} == names
    before = {one.name: one.read_bytes() for one in out.iterdir()}
    again = command("forecast", run, *inputs, "-o", out, "-q")
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    assert len(again.stderr.splitlines()) == 1
    assert {one.name: one.read_bytes() for one in out.iterdir()} == before
    stamps = {one.name: one.stat().st_mtime_ns for one in out.iterdir()}
    (out / "south.json").unlink()  # as a killed run leaves it
    assert command("forecast", run, *inputs, "-o", out, "--resume", "-q").exit_code == 0
    assert {one.name: one.read_bytes() for one in out.iterdir() if one.suffix != ".png"} == {
        name: content for name, content in before.items() if not name.endswith(".png")
    }
    assert (out / "north.csv").stat().st_mtime_ns == stamps["north.csv"]
    assert (out / "south.csv").stat().st_mtime_ns > stamps["south.csv"]
    other = command("forecast", run, *inputs, "-o", out, "--resume", "--horizon", 2, "-q")
    assert (other.exit_code, len(other.stderr.splitlines())) == (1, 1)
    assert command("forecast", run, *inputs, "-o", out, "--overwrite", "--horizon", 2, "-q").exit_code == 0
    assert len(pd.read_csv(out / "north.csv")) == 6


def test_shards_and_workers_share_the_tables(run: Path, command: Command, tmp_path: Path) -> None:
    inputs = [tmp_path / "north.csv", tmp_path / "south.csv"]
    assert command("forecast", run, *inputs, "-o", tmp_path / "one", "-q", "--no-preview").exit_code == 0
    for shard in ("1/2", "2/2"):
        result = command("forecast", run, *inputs, "-o", tmp_path / "two", "--shard", shard, "-q", "--no-preview")
        assert result.exit_code == 0, result.stderr
    workers = command("forecast", run, *inputs, "-o", tmp_path / "three", "--workers", 2, "-q", "--no-preview")
    assert workers.exit_code == 0, workers.stderr
    found = [{one.name: one.read_bytes() for one in (tmp_path / name).iterdir()} for name in ("one", "two", "three")]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 4


def test_forecasts_of_earlier_runs_are_no_tables(run: Path, command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("north", "south"):
        (tmp_path / f"{name}.csv").rename(folder / f"{name}.csv")
    assert command("forecast", run, folder / "north.csv", "-o", folder / "ahead", "-q").exit_code == 0
    result = command("forecast", run, folder, "-o", tmp_path / "out", "-q", "--no-preview")
    assert result.exit_code == 0, result.stderr
    assert {one.name for one in (tmp_path / "out").rglob("*.csv")} == {"north.csv", "south.csv"}
    # A folder that is asked for twice does not forecast its forecasts either.
    assert command("forecast", run, folder, "-o", folder, "--overwrite", "-q").exit_code == 1


def test_a_bad_table_does_not_stop_the_others(run: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("unique_id,ds,y\na,2024-01-01,oops\n")
    inputs = [tmp_path / "bad.csv", tmp_path / "north.csv"]
    result = command("forecast", run, *inputs, "-o", tmp_path / "out", "-q", "--no-preview")
    assert result.exit_code == 1
    assert "bad.csv" in result.stderr
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"north.csv", "north.json"}
