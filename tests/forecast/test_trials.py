"""What people met in the tools that they use now, from their tables to their forecasts: each on a small input."""

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
from recurra.forecast.backtesting import Backtesting, run_backtest
from recurra.forecast.data.context import Context
from recurra.forecast.evaluation import Evaluation, score_table
from recurra.forecast.forecasting import Forecasting, forecast_table
from recurra.forecast.inference import facts, load_checkpoint

Maker = Callable[..., Any]
Command = Callable[..., Any]


def forecast(model: Any, frame: Any, **how: Any) -> pd.DataFrame:
    return forecast_table(Forecasting(model, **how), frame).frame


# --- the time axis


def test_hours_at_half_past_in_india_are_forecast_as_in_utc(long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(80, freq="h")
    indian = frame.assign(ds=frame["ds"].dt.tz_localize("UTC").dt.tz_convert("Asia/Kolkata"))
    utc = frame.assign(ds=frame["ds"].dt.tz_localize("UTC"))
    fixed = frame.assign(ds=[f"{stamp:%Y-%m-%d %H:%M:%S}+05:30" for stamp in indian["ds"].dt.tz_localize(None)])
    made = [forecast(learned(one, "linear"), one, horizon=30) for one in (utc, indian, fixed)]
    for one in made[1:]:
        np.testing.assert_array_equal(one["LinearMap"], made[0]["LinearMap"])
        assert (pd.to_datetime(one["ds"], utc=True) == made[0]["ds"]).all()
    assert str(made[1]["ds"].dt.tz) == "Asia/Kolkata"
    assert made[2]["ds"].iloc[0].utcoffset() == pd.Timedelta(hours=5.5)


@pytest.mark.parametrize("last", ["2024-02-20", "2025-02-20", "2023-12-31"])
def test_a_year_ahead_lacks_no_day(last: str, long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(80, ("a",)).assign(ds=pd.date_range(end=last, periods=80))
    made = forecast(learned(frame, "arnet"), frame, horizon=365)
    assert list(made["ds"]) == list(pd.date_range(pd.Timestamp(last) + pd.Timedelta(days=1), periods=365))


def test_trading_days_have_no_weekends_before_or_ahead(long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(30, ("a",)).assign(ds=pd.bdate_range("2024-01-01", periods=30))
    model = learned(frame, "linear", model={"window": 3, "horizon": 2})
    assert Context.of(model).frequency == "B"
    made = forecast(model, frame, horizon=6)
    assert list(made["ds"]) == list(pd.bdate_range("2024-02-12", periods=6))
    holiday = frame.drop(index=20)
    try:
        found = forecast(learned(holiday, "linear", model={"window": 3, "horizon": 2}), holiday)
        assert found["LinearMap"].notna().all()
    except UserError as error:
        assert "2024-01-29" in str(error)  # noqa: PT017 - either is right, silence is not


def test_descending_and_text_sorted_hours_are_forecast_like_sorted_ones(long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(96, ("b", "a"), freq="h")
    text = frame.assign(ds=frame["ds"].dt.strftime("%-m/%-d/%y %-H:%M"))
    by_text = text.sort_values(["unique_id", "ds"], ascending=[False, True])
    descending = frame.iloc[::-1]
    expected = forecast(learned(frame, "linear"), frame)
    assert list(expected["unique_id"].unique()) == ["b", "a"]
    for other, order in ((by_text, ["b", "a"]), (descending, ["a", "b"])):
        model = learned(other, "linear", data={"date_format": "%m/%d/%y %H:%M"} if other is by_text else {})
        made = forecast(model, other)
        assert list(made["unique_id"].unique()) == order
        joined = expected.merge(made, on=["unique_id", "ds"])
        assert len(joined) == 8
        np.testing.assert_array_equal(joined["LinearMap_x"], joined["LinearMap_y"])


def test_irregular_days_are_refused_by_name_and_counts_are_taken(long_frame: Maker, learned: Maker) -> None:
    days = pd.DatetimeIndex(
        ["2024-10-02", "2024-10-05", "2024-10-14", "2024-10-16"] + [f"2024-11-{d:02}" for d in (3, 9, 22)]
    )
    frame = pd.DataFrame({"unique_id": "a", "ds": days, "y": np.arange(7.0)})
    with pytest.raises(UserError, match="freq"):
        learned(frame, "linear", model={"window": 2, "horizon": 1})
    counted = long_frame(60).assign(ds=lambda one: one.groupby("unique_id").cumcount())
    made = forecast(learned(counted, "linear"), counted)
    assert list(made["ds"].iloc[:4]) == [60, 61, 62, 63]


def test_two_values_for_one_stamp_are_shown(long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(60)
    model = learned(frame)
    twice = pd.concat([frame, frame.iloc[[5]].assign(y=-99.0)])
    with pytest.raises(UserError, match=r"'a'.*2024-01-06.*-99") as error:
        forecast(model, twice)
    assert f"{frame['y'][5]:.3f}"[:5] in str(error.value)


# --- identity and types


def test_columns_in_any_order_under_their_names(long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(60)
    model = learned(frame)
    expected = forecast(model, frame)
    for columns in (["unique_id", "y", "ds"], ["y", "ds", "unique_id"]):
        pd.testing.assert_frame_equal(forecast(model, frame[columns]), expected)
        pd.testing.assert_frame_equal(forecast(learned(frame[columns]), frame[columns]), expected)


@pytest.mark.parametrize("dtype", ["float32", "int64", "Int64", "Float64", "object", "decimal", "bool", "string"])
def test_values_of_any_type(dtype: str, long_frame: Maker, learned: Maker) -> None:
    from decimal import Decimal

    frame = long_frame(60).assign(y=lambda one: (one["y"] * 4).round() / 4)
    if dtype in ("int64", "Int64"):
        frame["y"] = frame["y"].round()
    if dtype == "bool":
        frame["y"] = (frame["y"] > frame["y"].median()).astype(float)
    given = frame.assign(
        y=[Decimal(str(one)) for one in frame["y"]] if dtype == "decimal" else frame["y"].astype(dtype)
    )
    try:
        made = forecast(learned(given), given)
    except UserError as error:
        # One line that names the column serves too.
        refusal = str(error)
        assert "\n" not in refusal
        assert "y" in refusal
        return
    np.testing.assert_array_equal(made["ARNet"], forecast(learned(frame), frame)["ARNet"])


def test_a_missing_integer_is_named_or_filled(long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(60).assign(y=lambda one: one["y"].round().astype("Int64"))
    frame.loc[57, "y"] = pd.NA
    model = learned(frame)
    with pytest.raises(UserError, match=r"series 'a' has no value at 2024-02-27"):
        forecast(model, frame)
    assert forecast(model, frame, table={"fill": "linear"})["ARNet"].notna().all()


def test_which_scale_a_frame_times_a_hundred_gets_is_said(long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(60)
    hundred = frame.assign(y=frame["y"] * 100)
    by_window, by_series = learned(frame, "arnet-by-window"), learned(frame, "arnet")
    assert "100 times" in facts(by_window)["scaling"]
    assert "training rows of each series" in facts(by_series)["scaling"]
    for kind in ("tpgn", "arnet-by-window"):
        model = learned(frame, kind, data={"scaler": "window"})
        name = type(model).__name__
        np.testing.assert_allclose(forecast(model, hundred)[name], 100 * forecast(model, frame)[name], rtol=1e-5)


# --- missing, short, constant


@pytest.mark.parametrize("kind", ["arnet", "arnet-quantiles", "tpgn", "linear"])
def test_one_missing_target_does_not_train_to_nothing(
    kind: str, long_frame: Maker, recipe: Maker, tmp_path: Path
) -> None:
    frame = long_frame(500, ("a",))
    frame.loc[250, "y"] = np.nan
    model = verbs.fit(frame, recipe(kind, train={"epochs": 1}))
    assert all(torch.isfinite(one).all() for name, one in model.named_parameters())
    assert np.isfinite(forecast(model, frame)[type(model).__name__]).all()


@pytest.mark.parametrize("kind", ["linear", "autoregression", "arnet"])
def test_one_constant_series_does_not_stop_the_fit_of_five(kind: str, long_frame: Maker, recipe: Maker) -> None:
    frame = long_frame(100, tuple("abcde"))
    frame.loc[frame["unique_id"] == "c", "y"] = 7.0
    model = verbs.fit(frame, recipe(kind, train={"epochs": 1}))
    found = forecast_table(Forecasting(model, levels=(80.0,)), frame)
    assert np.isfinite(found.frame.select_dtypes("number").to_numpy()).all()
    own = found.frame[found.frame["unique_id"] == "c"][type(model).__name__]
    assert ((own - 7).abs() < 3).all()
    how = Evaluation(model, baselines=("last_value", "seasonal_naive"), quiet=True)
    scores = score_table(how, {"model": model}, frame)
    assert all(np.isfinite(value) for row in scores.metrics.values() for value in row.values())


def test_the_one_series_that_is_too_short_is_named_with_its_length(
    long_frame: Maker, recipe: Maker, tmp_path: Path, command: Command
) -> None:
    frame = long_frame(60, tuple("abcdefghij"))
    frame = frame[(frame["unique_id"] != "f") | (frame.groupby("unique_id").cumcount() < 5)]
    frame.to_csv(tmp_path / "sales.csv", index=False)
    path = recipe("arnet", data={"csv": str(tmp_path / "sales.csv")})
    result = command("train", path, "-o", tmp_path / "run", "-q")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "series 'f' has 5 rows; needed are 12 (window 8 + horizon 4)" in result.stderr
    assert not (tmp_path / "run").exists()
    assert command("train", path, "data.skip_short=true", "-o", tmp_path / "run", "-q").exit_code == 0
    assert Context.of(load_checkpoint(tmp_path / "run")).ids == list("abcdeghij")


def test_the_first_pair_that_a_future_frame_lacks_is_named(long_frame: Maker, learned: Maker) -> None:
    ids = tuple(f"shop{at:03}" for at in range(100))
    frame = long_frame(30, ids, covariates=True)
    data = {"past": [], "static": [], "categorical": []}
    model = learned(frame, "arnet-covariates", model={"window": 4}, data=data)
    stamps = pd.date_range("2024-01-31", periods=4)
    ahead = pd.DataFrame({"unique_id": np.repeat(ids, 4), "ds": np.tile(stamps.to_numpy(), 100), "price": 0.5})
    message = r"missing for 1 of 400 rows of the horizon, first id 'shop061', ds 2024-02-02"
    with pytest.raises(UserError, match=message):
        forecast(model, frame, future_frame=ahead.drop(index=61 * 4 + 2))
    assert len(forecast(model, frame, future_frame=ahead)) == 400


# --- scores and backtests


def test_calibration_and_scored_rows_have_no_row_in_common(long_frame: Maker, recipe: Maker, tmp_path: Path) -> None:
    frame = long_frame(120)
    model = verbs.fit(frame, recipe("arnet", train={"epochs": 1}))
    said = Context.of(model).calibrated
    first, last = pd.Timestamp(said.split(", ")[-1].split(" to ")[0]), pd.Timestamp(said.split(" to ")[-1])
    assert first > pd.Timestamp(Context.of(model).trained_until)
    how = Backtesting(model, baselines=(), quiet=True)
    run_backtest(how, frame, tmp_path / "out", overwrite=False)
    rows = pd.read_csv(tmp_path / "out" / "backtest.csv", parse_dates=["ds"])
    assert rows["ds"].min() > last


@pytest.mark.parametrize("size", [7, 32, 1000])
def test_no_window_of_the_last_batch_is_dropped(size: int, long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(120)
    model = learned(frame)
    scores = score_table(Evaluation(model, baselines=(), batch_size=size, quiet=True), {"model": model}, frame)
    assert "63 of 63 windows scored" in scores.notes


def test_a_spike_after_the_origin_moves_no_scale(long_frame: Maker, recipe: Maker) -> None:
    frame = long_frame(120)
    spiked = frame.copy()
    spiked.loc[spiked.groupby("unique_id").cumcount() >= 96, "y"] = 1e9
    path = recipe("arnet", train={"epochs": 1})
    plain, other = (verbs.fit(one, path) for one in (frame, spiked))
    assert Context.of(plain).scaler == Context.of(other).scaler
    for name, value in plain.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_what_chooses_the_epoch_is_on_one_scale(long_frame: Maker, recipe: Maker, tmp_path: Path) -> None:
    """A series in millions does not drown one in thousandths."""
    frame = long_frame(100, ("big", "small"))
    frame.loc[frame["unique_id"] == "big", "y"] *= 1e6
    frame.loc[frame["unique_id"] == "small", "y"] *= 1e-3
    frame.to_csv(tmp_path / "table.csv", index=False)
    path = recipe("arnet", data={"csv": str(tmp_path / "table.csv")}, train={"epochs": 1})
    verbs.train(path, out=tmp_path / "run", quiet=True)
    row = pd.read_csv(tmp_path / "run" / "metrics.csv").iloc[-1]
    assert 0.1 < row["mse"] < 20  # of standardised values


# --- saving, loading, memory


def test_loading_finds_the_scale_without_the_training_table(
    long_frame: Maker, recipe: Maker, tmp_path: Path, command: Command
) -> None:
    table = tmp_path / "table.csv"
    long_frame(80).to_csv(table, index=False)
    path = recipe("arnet", data={"csv": str(table)}, train={"epochs": 1})
    assert command("train", path, "-o", tmp_path / "run", "-q").exit_code == 0
    recent = tmp_path / "recent.csv"
    long_frame(92).groupby("unique_id").tail(9).to_csv(recent, index=False)
    path.unlink()
    table.unlink()
    (tmp_path / "run" / "recipe.yaml").unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    code = (
        "import sys; from recurra.forecast.verbs import forecast; "
        "forecast(sys.argv[1], [sys.argv[2]], sys.argv[3], quiet=True)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "moved", recent, tmp_path / "out"], check=True, timeout=300)
    made = pd.read_csv(tmp_path / "out" / "recent.csv")
    level = made.groupby("unique_id")["ARNet"].mean()
    assert (level - [10, 20, 30]).abs().max() < 5
    assert list(made["ds"].iloc[:2]) == ["2024-04-02", "2024-04-03"]


def test_new_rows_give_a_new_forecast_and_the_model_stays_as_it_was(
    long_frame: Maker, learned: Maker, tmp_path: Path
) -> None:
    old, new = long_frame(80), long_frame(81)
    model = learned(old)
    first = forecast(model, old)
    model.save_pretrained(tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert not np.isclose(forecast(loaded, new)["ARNet"], first["ARNet"]).any()
    for again in (model, loaded):
        pd.testing.assert_frame_equal(forecast(again, old), first, check_exact=True)


def test_sales_are_never_forecast_below_nothing(
    long_frame: Maker, recipe: Maker, tmp_path: Path, command: Command
) -> None:
    frame = long_frame(80)
    frame["y"] = np.random.default_rng(0).poisson(0.3, len(frame))
    table = tmp_path / "sales.csv"
    frame.to_csv(table, index=False)
    path = recipe("arnet", data={"csv": str(table)}, train={"epochs": 1})
    assert command("train", path, "-o", tmp_path / "run", "-q").exit_code == 0
    options = ["--minimum", 0, "--integer", "--levels", "80", "-q"]
    assert command("forecast", tmp_path / "run", table, "-o", tmp_path / "out", *options).exit_code == 0
    made = pd.read_csv(tmp_path / "out" / "sales.csv")
    values = made[["ARNet", "ARNet-lo-80", "ARNet-hi-80"]].to_numpy()
    assert (values >= 0).all()
    assert (values == np.rint(values)).all()
    assert (values[:, 1] <= values[:, 0]).all()


def test_a_category_that_nobody_saw_is_forecast(long_frame: Maker, learned: Maker) -> None:
    frame = long_frame(80, covariates=True)
    data = {"past": [], "future": ["price"], "static": ["kind"], "categorical": ["kind", "price"]}
    frame["price"] = np.where(frame["price"] > 0, "high", "low")
    model = learned(frame, "arnet-covariates", data=data)
    ahead = pd.DataFrame(
        {
            "unique_id": np.repeat(["a", "b", "c"], 4),
            "ds": np.tile(pd.date_range("2024-03-21", periods=4).to_numpy(), 3),
            "price": ["low", "high", "free of charge", "low"] * 3,
        }
    )
    new = frame.assign(kind=frame["kind"].replace("big", "enormous"))
    assert np.isfinite(forecast(model, new, future_frame=ahead)["ARNet"]).all()
