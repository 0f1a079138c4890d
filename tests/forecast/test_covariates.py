"""Covariates: laid on the grid of the values, known ahead or not, encoded as the training rows say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recurra.core.errors import UserError
from recurra.forecast.data.covariates import Encoder, category
from recurra.forecast.data.panel import Panel
from recurra.forecast.data.sample import SAMPLES, autoregression, sample_panel, shops, write_samples
from recurra.forecast.data.sources import Sample
from recurra.forecast.data.tables import open_panel

OPTIONS: dict[str, Any] = {"past": ["visitors"], "future": ["price", "offer"], "static": ["region"]}


def opened(**changes: Any) -> Panel:
    known, later = shops(60, ahead=7, series=3)
    return open_panel(known, **{**OPTIONS, "future_frame": later, **changes})


def refused(line: str, source: Any, **options: Any) -> None:
    with pytest.raises(UserError) as error:
        open_panel(source, **options)
    assert str(error.value) == line


def test_covariates_lie_beside_the_values() -> None:
    known, later = shops(60, ahead=7, series=3)
    panel = opened()
    assert panel.variables == ("y",)
    assert panel.categorical == ("offer", "region")
    for one in panel.series:
        own = known[known["unique_id"] == one.id]
        ahead = later[later["unique_id"] == one.id]
        assert one.covariates is not None
        assert len(one.covariates) == 67
        assert list(one.covariates.columns) == ["visitors", "price", "offer"]
        assert one.covariates.index[:60].equals(one.stamps)
        np.testing.assert_array_equal(one.covariates["price"], [*own["price"], *ahead["price"]])
        assert one.covariates["offer"].tolist() == [*own["offer"], *ahead["offer"]]
        assert one.covariates["visitors"].iloc[60:].isna().all()
        assert one.static == {"region": own["region"].iloc[0]}
    panel.check_future(7)


def test_the_order_of_rows_changes_nothing() -> None:
    known, later = shops(60, ahead=7, series=3)
    mixed = open_panel(
        known.sample(frac=1, random_state=0), **OPTIONS, future_frame=later.sample(frac=1, random_state=1)
    )
    for one, other in zip(opened().series, mixed.series, strict=True):
        assert one.covariates is not None
        pd.testing.assert_frame_equal(one.covariates, other.covariates)


def test_from_files(tmp_path: Path) -> None:
    write_samples(tmp_path)
    panel = open_panel(tmp_path / "shops.csv", **OPTIONS, future_frame=tmp_path / "shops_future.csv")
    panel.check_future(28)
    for one, other in zip(panel.series, sample_panel("shops", **OPTIONS).series, strict=True):
        assert one.covariates is not None
        assert other.covariates is not None
        assert one.covariates["offer"].tolist()[:730] == other.covariates["offer"].tolist()
        np.testing.assert_array_equal(one.values, other.values)


def test_gaps_lie_in_covariates_too() -> None:
    known, _ = shops(30, ahead=0, series=2)
    panel = open_panel(known.drop(index=[4, 5]), **OPTIONS, fill="price=linear")
    frame = panel.series[0].covariates
    assert frame is not None
    assert frame["offer"].isna().sum() == 2
    assert frame["visitors"].isna().sum() == 2
    assert not frame["price"].isna().any()


def test_one_missing_row_of_the_future_is_named() -> None:
    """One pair in thousands was missing, and the message named nothing."""
    known, later = shops(60, ahead=7, series=3)
    panel = open_panel(known, **OPTIONS, future_frame=later.drop(index=[9]))
    panel.check_future(2)
    with pytest.raises(UserError) as error:
        panel.check_future(7)
    assert str(error.value) == (
        "data frame: future covariates (price, offer) are missing for 1 of 21 rows of the horizon, first id 'shop1', "
        "ds "
        "2022-03-04 00:00:00; give them with --future-frame"
    )
    with pytest.raises(
        UserError, match="are missing for 24 of 24 rows of the horizon, first id 'shop0', ds 2022-03-02"
    ):
        open_panel(known, **OPTIONS).check_future(8)


def test_a_missing_value_of_the_future_is_missing() -> None:
    known, later = shops(60, ahead=7, series=3)
    panel = open_panel(known, **OPTIONS, future_frame=later.assign(price=later["price"].where(later.index != 15)))
    with pytest.raises(UserError, match="are missing for 1 of 21 rows of the horizon, first id 'shop2', ds 2022-03-03"):
        panel.check_future(7)


def test_rows_of_the_future_that_do_not_serve() -> None:
    known, later = shops(60, ahead=7, series=3)
    off = later.assign(ds=later["ds"] + pd.Timedelta(hours=1))
    refused(
        "data frame: row 0: 2022-03-02 01:00:00 lies on no step of D after 2022-03-01 00:00:00",
        known,
        **OPTIONS,
        future_frame=off,
    )
    twice = pd.concat([later, later.iloc[[3]]], ignore_index=True)
    refused(
        "data frame: row 21: id 'shop0', 2022-03-05 00:00:00 occurs twice; keep one row",
        known,
        **OPTIONS,
        future_frame=twice,
    )
    refused(
        "data frame: no column 'offer', which --future names",
        known,
        **OPTIONS,
        future_frame=later.drop(columns="offer"),
    )
    aware = later.assign(ds=later["ds"].dt.tz_localize("UTC"))
    refused(
        "data frame: column 'ds': the stamps are of another kind than those of data frame; give the same",
        known,
        **OPTIONS,
        future_frame=aware,
    )
    panel = open_panel(known, **OPTIONS, future_frame=pd.concat([known, later]))
    assert panel.facts[-1].evidence == "180 rows are not after the last of the values and not used"


def test_a_static_covariate_with_two_values() -> None:
    known, _ = shops(30, ahead=0, series=2)
    known.loc[40, "region"] = "east"
    refused(
        "data frame: id 'shop1', static covariate 'region' is 'south' and then 'east'; a static one has one value a "
        "series",
        known,
        **OPTIONS,
    )


def test_static_covariates_of_a_table_of_their_own(tmp_path: Path) -> None:
    known, _ = shops(30, ahead=0, series=2)
    known = known.drop(columns="region").replace({"unique_id": {"shop0": 1, "shop1": 2}})
    known["unique_id"] = known["unique_id"].astype(int)
    table = tmp_path / "static.csv"
    table.write_text("unique_id,region,size\n2,b,20\n1,a,10\n")
    options = {"static": ["region", "size"], "static_frame": table}
    panel = open_panel(known, **options)
    assert [one.static for one in panel.series] == [{"region": "a", "size": 10.0}, {"region": "b", "size": 20.0}]
    assert panel.categorical == ("region",)
    table.write_text("unique_id,region,size\n2,b,20\n")
    refused(f"{table}: id 1 has no row among the static covariates (column unique_id); expected one", known, **options)


def test_a_covariate_is_of_one_kind() -> None:
    known, _ = shops(30, ahead=0, series=2)
    refused(
        "data frame: covariate 'price' cannot be two of past, future and static; name it once",
        known,
        past=["price"],
        future=["price"],
    )


def test_covariates_of_a_wide_table() -> None:
    stamps = pd.date_range("2024", periods=20)
    frame = pd.DataFrame({"date": stamps, "a": np.arange(20.0), "b": 1.0, "warm": stamps.day_of_week, "open": "yes"})
    later = frame.assign(date=stamps + pd.Timedelta(days=20)).drop(columns=["a", "b", "warm"])
    panel = open_panel(frame, past=["warm"], future=["open"], future_frame=later)
    assert [one.id for one in panel.series] == ["a", "b"]
    panel.check_future(20)
    encoder = Encoder.fit(panel, [10, 10])
    assert encoder.columns == ("warm", "open=yes", "open=?")
    np.testing.assert_array_equal(encoder.encode(panel.series[1], 15, 40)[:, 1], np.ones(25))


# --- the encoder -----------------------------------------------------------------------------------------------------


def test_encoder_is_fitted_on_training_rows_alone() -> None:
    panel, other = opened(), opened()
    for one in other.series:
        assert one.covariates is not None
        one.covariates.iloc[40:, 0] += 1e6
        one.covariates.iloc[41, 2] = "new"
    stops = [40, 40, 40]
    encoder = Encoder.fit(panel, stops)
    assert encoder == Encoder.fit(other, stops)
    assert "new" not in encoder.categories["offer"]
    made = encoder.encode(other.series[0], 39, 43)
    assert made.shape == (4, len(encoder.columns))
    assert made.dtype == np.float32
    at = encoder.columns.index("offer=?")
    assert made[:, at].tolist() == [0, 0, 1, 0]


def test_columns_and_numbers() -> None:
    frame = pd.DataFrame(
        {
            "ds": pd.date_range("2024", periods=4),
            "y": 1.0,
            "p": [1.0, 3.0, np.nan, 9.0],
            "k": ["b", "a", None, "c"],
            "flat": 2.0,
        }
    )
    panel = open_panel(frame, targets=["y"], past=["p", "k"], future=["flat"])
    encoder = Encoder.fit(panel, [3])
    assert encoder.columns == ("p", "k=a", "k=b", "k=?", "flat")
    np.testing.assert_allclose(
        encoder.encode(panel.series[0], 0, 4),
        [[-1, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 1, 0], [7, 0, 0, 1, 0]],
    )


def test_nothing_of_the_past_kind_is_told_after_the_origin() -> None:
    panel = opened()
    encoder = Encoder.fit(panel, [40] * 3)
    one = panel.series[1]
    made = encoder.encode(one, 30, 67, 50)
    at = encoder.columns.index("visitors")
    assert (made[20:, at] == 0).all()
    assert (made[:20, at] != 0).all()
    assert one.covariates is not None
    before = made.copy()
    one.covariates.iloc[50:, 0] = 1e9
    np.testing.assert_array_equal(encoder.encode(one, 30, 67, 50), before)
    future = encoder.columns.index("price")
    assert (made[20:, future] != 0).any()


def test_a_horizon_without_its_covariates_is_refused() -> None:
    panel = opened()
    encoder = Encoder.fit(panel, [40] * 3)
    with pytest.raises(UserError) as error:
        encoder.encode(panel.series[0], 60, 70, 60)
    assert str(error.value) == (
        "id 'shop0': covariate 'price' ends at 2022-03-08 00:00:00, 3 rows before the horizon does; give it with "
        "--future-frame"
    )


def test_encoder_comes_back_from_json() -> None:
    panel = opened()
    encoder = Encoder.fit(panel, [40] * 3)
    again = Encoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert again == encoder
    np.testing.assert_array_equal(again.encode(panel.series[2], 0, 67), encoder.encode(panel.series[2], 0, 67))


@pytest.mark.parametrize(
    ("values", "text"),
    [((1, 1.0, "1", np.int8(1), np.float32(1)), "1"), ((True, np.True_), "true"), ((None, pd.NA, np.nan, " "), None)],
)
def test_categories_are_the_same_of_any_type(values: tuple[Any, ...], text: str | None) -> None:
    assert {category(one) for one in values} == {text}


def test_a_covariate_without_a_value() -> None:
    frame = pd.DataFrame({"ds": pd.date_range("2024", periods=4), "y": 1.0, "p": [np.nan, np.nan, 1, 2]})
    panel = open_panel(frame, past=["p"])
    with pytest.raises(UserError, match="covariate 'p' has no value in the training rows; leave it out"):
        Encoder.fit(panel, [2])


# --- embedded data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_samples(name: str) -> None:
    targets = {"shops": ["y"], "outbreaks": ["confirmed", "deaths", "recovered"]}
    panel = sample_panel(name, targets=targets.get(name))
    alias = {"sunspots": "1", "co2": "W-SAT", "elnino": "MS", "climate": "MS", "autoregression": "h", "shops": "D"}
    alias |= {"outbreaks": "D", "prices": "B"}
    assert panel.frequency.alias == alias[name]
    assert panel.source == f"sample {name}"
    pd.testing.assert_frame_equal(SAMPLES[name](), SAMPLES[name]())


def test_an_autoregression_has_its_coefficients() -> None:
    values = autoregression((0.5, -0.3), 50_000, seed=3)["y"].to_numpy()
    lags = np.stack([values[1:-1], values[:-2]], 1)
    np.testing.assert_allclose(np.linalg.lstsq(lags, values[2:], rcond=None)[0], [0.5, -0.3], atol=0.015)


def test_unknown_sample() -> None:
    with pytest.raises(UserError, match=r"no sample is called 'sunspot' \(did you mean sunspots\?\)"):
        sample_panel("sunspot")


def test_options_count_for_the_generated_series_too() -> None:
    assert Sample(series="autoregression", length=50, targets=("y",)).open().variables == ("y",)
    with pytest.raises(UserError, match="z"):
        Sample(series="autoregression", length=50, targets=("z",)).open()
