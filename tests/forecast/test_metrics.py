"""Scores: sums that do not depend on the batches, metrics against their definitions and other people's libraries."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scoringrules
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from recurra.forecast.m4 import naive2, owa
from recurra.forecast.metrics import Scorer, ratios, seasonal_scale
from recurra.forecast.significance import coverage_band, wilson

LEVELS, QUANTILES = (50.0, 90.0), (0.1, 0.5, 0.9)


def windows(count: int = 37, horizon: int = 5, variates: int = 3, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    draw = np.random.default_rng(seed)
    target = draw.normal(2.0, 1.0, (count, horizon, variates))
    prediction = target + draw.normal(0.0, 0.5, target.shape)
    half = np.array([0.3, 0.8])
    return {
        "prediction": prediction,
        "target": target,
        "last": draw.normal(2.0, 1.0, (count, variates)),
        "quantiles": prediction[..., None] + np.array([-0.6, 0.0, 0.6]),
        "lower": prediction[..., None] - half,
        "upper": prediction[..., None] + half,
    }


def scorer(**options: Any) -> Scorer:
    scale = (np.array([0.5, 1.0, 2.0]), np.array([0.3, 1.1, 4.5]))
    return Scorer(**{"horizon": 5, "ids": 3, "scale": scale, "quantiles": QUANTILES, "levels": LEVELS, **options})


@pytest.mark.parametrize("count", [37, 5000])
def test_against_the_definitions(count: int) -> None:
    given = windows(count)
    one = scorer()
    one.add(**given)
    y, f = given["target"], given["prediction"]
    e = f - y
    scale = np.array([0.5, 1.0, 2.0])
    scores = one.scores()
    assert scores["mse"] == pytest.approx(np.mean(e**2), rel=1e-13)
    assert scores["rmse"] == pytest.approx(np.sqrt(np.mean(e**2)), rel=1e-13)
    assert scores["mae"] == pytest.approx(np.mean(np.abs(e)), rel=1e-13)
    assert scores["smape"] == pytest.approx(np.mean(200 * np.abs(e) / (np.abs(y) + np.abs(f))), rel=1e-13)
    assert scores["mase"] == pytest.approx(np.mean(np.abs(e) / scale), rel=1e-13)
    assert scores["rmsse"] == pytest.approx(np.sqrt(np.mean(e**2 / [0.3, 1.1, 4.5])), rel=1e-13)
    assert scores["directional_accuracy"] == np.mean((f > given["last"][:, None]) == (y > given["last"][:, None]))
    pearson = [np.corrcoef(f[:, h, v], y[:, h, v])[0, 1] for h in range(5) for v in range(3)]
    assert scores["pearson"] == pytest.approx(np.mean(pearson), rel=1e-12)
    assert scores["coverage_90"] == np.mean(np.abs(e) <= 0.8)
    assert scores["width_50"] == pytest.approx(0.6)
    assert one.by_step()["mae"] == pytest.approx(np.abs(e).mean((0, 2)), rel=1e-13)
    assert one.by_step()["pearson"][2] == pytest.approx(np.mean(pearson[6:9]), rel=1e-12)
    assert one.by_id()["mase"] == pytest.approx(np.abs(e).mean((0, 1)) / scale, rel=1e-13)
    assert (one.count, one.windows, one.unscored()) == (count * 15, count, {})


def test_crps_and_pinball_are_those_of_scoringrules() -> None:
    given = windows()
    one = scorer()
    one.add(**given)
    expected = scoringrules.crps_quantile(given["target"], given["quantiles"], np.array(QUANTILES)).mean()
    assert one.scores()["crps"] == pytest.approx(expected, rel=1e-12)
    assert one.scores()["pinball"] == pytest.approx(expected / 2, rel=1e-12)
    assert one.scores()["wql"] == pytest.approx(expected / np.abs(given["target"]).mean(), rel=1e-12)


@given(cuts=st.lists(st.integers(0, 37), max_size=6), shift=st.sampled_from([0.0, 1e3, -1e6]))
def test_the_same_however_windows_are_cut_into_batches(cuts: list[int], shift: float) -> None:
    given = {name: values + shift for name, values in windows().items()}
    whole, parts, joined = scorer(), scorer(), scorer()
    whole.add(**given)
    edges = [0, *sorted(cuts), 37]
    for start, stop in pairwise(edges):
        batch = {name: values[start:stop] for name, values in given.items()}
        parts.add(**batch)
        other = scorer()
        other.add(**batch)
        joined.merge(other)
    # A mean of 1e6 has 1e-10 of its own rounding, against values that differ by 1.
    limit = 1e-12 if shift == 0 else 1e-8
    for one in (parts, joined):
        assert one.scores() == pytest.approx(whole.scores(), rel=limit)
        for mine, expected in ((one.by_step(), whole.by_step()), (one.by_id(), whole.by_id())):
            assert mine.keys() == expected.keys()
            assert all(mine[name] == pytest.approx(expected[name], rel=limit) for name in mine)


def test_windows_of_many_series_are_counted_for_their_id_in_any_order() -> None:
    given = windows()
    expected = scorer()
    expected.add(**given)
    order = np.random.default_rng(1).permutation(37 * 3)

    def one_each(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if name == "last":
            return values.reshape(-1, 1)
        return np.expand_dims(np.moveaxis(values, 2, 1).reshape(37 * 3, 5, *values.shape[3:]), 2)

    rows = {name: one_each(name, values) for name, values in given.items()}
    ids = np.tile(np.arange(3), 37)[:, None]
    one = scorer()
    for part in np.array_split(order, 7):
        one.add(**{name: values[part] for name, values in rows.items()}, ids=ids[part])
    assert one.scores() == pytest.approx(expected.scores(), rel=1e-12)
    assert one.by_id()["rmsse"] == pytest.approx(expected.by_id()["rmsse"], rel=1e-12)


def test_what_was_not_observed_counts_nowhere() -> None:
    given = windows()
    mask = np.random.default_rng(2).random(given["target"].shape) < 0.6
    holes = {**given, "target": np.where(mask, given["target"], np.nan)}
    one, two = scorer(), scorer()
    one.add(**holes)
    two.add(**given, observed=mask)
    e = (given["prediction"] - given["target"])[mask]
    assert one.scores() == pytest.approx(two.scores(), rel=1e-14)
    assert one.scores()["mse"] == pytest.approx(np.mean(e**2), rel=1e-13)
    assert one.count == mask.sum()
    # What the forecasts are there is nobody's business.
    wild = np.where(mask, given["prediction"], np.nan)
    three = scorer()
    three.add(**{**holes, "prediction": wild})
    assert three.scores() == one.scores()


def test_ids_that_cannot_be_scored_are_left_out_and_counted() -> None:
    train = np.stack([np.arange(20.0) % 4, np.full(20, 0.1), np.full(20, np.nan)], 1)
    scale = seasonal_scale(train, 3)
    assert scale[0][1:].tolist() == [0, 0]
    given = windows()
    one = scorer(scale=scale)
    one.add(given["prediction"], given["target"])
    assert one.unscored() == {"mase": 2, "rmsse": 2}
    error = np.abs(given["prediction"] - given["target"])[..., 0]
    assert one.scores()["mase"] == pytest.approx(error.mean() / scale[0][0])
    assert np.isnan(one.by_id()["mase"]).tolist() == [False, True, True]


def test_nothing_at_all_gives_no_scores_and_no_nan() -> None:
    one = scorer()
    assert one.scores() == {}
    given = windows()
    given["target"] = np.full_like(given["target"], np.nan)
    one.add(**given)
    assert one.scores() == {}
    assert one.unscored()["mse"] == 3


def test_constant_and_zero_values() -> None:
    zero = np.zeros((4, 5, 3))
    one = scorer(scale=seasonal_scale(np.full((9, 3), 0.1), 1), quantiles=(), levels=())
    one.add(zero, zero, last=zero[:, 0])
    assert one.scores() == {"mse": 0, "rmse": 0, "mae": 0, "smape": 0, "directional_accuracy": 1}
    other = scorer()
    other.add(np.full((7, 5, 3), 0.1) + windows(7)["target"], np.full((7, 5, 3), 0.1))
    assert not {"pearson", "corr_legacy", "rse"} & set(other.scores())


def test_perfect_forecasts_leave_no_rounding() -> None:
    given = windows()["target"] + 1e8
    one = scorer()
    one.add(given, given)
    assert one.scores()["rse"] == one.scores()["mse"] == 0
    assert one.scores()["pearson"] == pytest.approx(1, abs=1e-12)


def test_a_forecast_that_is_no_number_is_not_scored_away() -> None:
    given = windows(5000)
    given["prediction"][4003, 2, 1] = np.nan
    with pytest.raises(ValueError, match=r"^prediction is not finite at window 4003, step 3, variate 1$"):
        scorer().add(**given)
    given = windows()
    given["quantiles"][5, 0, 2, 1] = np.inf
    with pytest.raises(ValueError, match=r"^forecast of quantile 0.5 is not finite at window 5, step 1, variate 2$"):
        scorer().add(**given)
    given = windows()
    given["upper"] = given["lower"] - 1
    with pytest.raises(ValueError, match="level 50 is not a number somewhere, or its ends are crossed"):
        scorer().add(**given)


def test_intervals_without_bounds_cover_everything_and_have_no_width() -> None:
    given = windows()
    one = scorer()
    infinite = np.full_like(given["lower"], np.inf)
    one.add(given["prediction"], given["target"], lower=-infinite, upper=infinite)
    assert one.scores()["coverage_90"] == 1
    assert "width_90" not in one.scores()


def test_shapes_that_do_not_fit() -> None:
    given = windows()
    with pytest.raises(ValueError, match=r"expected twice \(batch, 4, variate\)"):
        scorer(horizon=4).add(given["prediction"], given["target"])
    with pytest.raises(ValueError, match="3 variates of 5 ids; pass the ids of each window"):
        scorer(ids=5, scale=None).add(given["prediction"], given["target"])
    with pytest.raises(ValueError, match="expected one for each of 4 ids"):
        scorer(ids=4)
    with pytest.raises(ValueError, match="other ids"):
        scorer().merge(scorer(ids=["a", "b", "c"]))


def test_seasonal_scale_skips_what_is_missing() -> None:
    train = np.array([[1.0], [2.0], [np.nan], [5.0], [6.0]])
    absolute, square = seasonal_scale(train, 1)
    assert (absolute[0], square[0]) == (1.0, 1.0)
    assert seasonal_scale(train, 3)[0][0] == pytest.approx(4.0)
    assert seasonal_scale(train, 7)[0][0] == 0
    with pytest.raises(ValueError, match="season must be at least 1"):
        seasonal_scale(train, 0)


def test_ratios_are_of_means_over_the_same_windows() -> None:
    assert ratios({"mase": 0.8, "crps": 2.0}, {"mase": 1.6, "crps": 0.0}) == {"mase_ratio": 0.5}


def test_memory_does_not_grow_with_the_windows() -> None:
    one = Scorer(horizon=5, ids=3)
    one.add(**{name: values for name, values in windows().items() if name in ("prediction", "target")})
    sizes = {name: value.shape for name, value in one._by_id.items()}
    for seed in range(5):
        given = windows(seed=seed)
        one.add(given["prediction"], given["target"])
    assert {name: value.shape for name, value in one._by_id.items()} == sizes


# --- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (3, 10), (10, 10), (502, 1000)])
def test_wilson_is_that_of_statsmodels(hits: int, trials: int) -> None:
    from statsmodels.stats.proportion import proportion_confint

    expected = proportion_confint(hits, trials, 0.05, method="wilson")
    assert wilson(float(hits), float(trials)) == pytest.approx(expected, abs=1e-12)
    assert wilson(0.0, 0.0) == (0.0, 1.0)


def test_direction_interval_counts_a_window_once() -> None:
    given = windows()
    one = scorer(ids=3)
    assert one.direction_interval() is None
    one.add(**given)
    share = one.scores()["directional_accuracy"]
    assert one.direction_interval() == pytest.approx(wilson(share * 37 * 3, 37.0 * 3))


def test_coverage_band_holds_the_coverage_of_a_right_interval() -> None:
    low, high = coverage_band(90.0, 2000)
    assert 0.88 < low < 0.9 < high < 0.92
    inside = stats.binom.cdf(high * 2000, 2000, 0.9) - stats.binom.cdf(low * 2000 - 1, 2000, 0.9)
    assert 0.99 <= inside < 0.993
    assert coverage_band(90.0, 0) == (0.0, 1.0)


# --- M4 --------------------------------------------------------------------------------------------------------------


def test_naive2_of_a_seasonal_series_goes_on_with_the_season() -> None:
    pattern = np.array([0.5, 1.0, 1.5, 1.0])
    found = naive2(np.tile(pattern, 8) * 10, 6, 4)
    assert found == pytest.approx(10 * np.resize(pattern, 6), rel=1e-12)


def test_naive2_without_a_season_is_the_last_value() -> None:
    noise = np.random.default_rng(0).normal(10, 1, 60)
    assert naive2(noise, 3, 12).tolist() == [noise[-1]] * 3
    assert naive2(noise[:5], 2, 4).tolist() == [noise[4]] * 2
    assert naive2(np.full(60, 3.0), 2, 12).tolist() == [3.0, 3.0]
    assert naive2(np.tile([-1.0, 2.0], 30), 2, 2).tolist() == [2.0, 2.0]


def test_owa() -> None:
    assert owa({"smape": 10.0, "mase": 2.0}, {"smape": 20.0, "mase": 1.0}) == 1.25
    assert owa({"smape": 10.0}, {"smape": 20.0, "mase": 1.0}) is None
