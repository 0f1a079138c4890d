"""Intervals: coverage, order, what is known when, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recurra.core.errors import UserError
from recurra.forecast.intervals import (
    Conformal,
    RollingConformal,
    bounded,
    check_disjoint,
    columns_of_intervals,
    conformal_quantile,
    conformalized_quantiles,
    fewest,
    interval_columns,
    parse_levels,
    quantile_levels,
    quantiles_of,
    rank,
    widen,
)
from recurra.forecast.significance import coverage_band

DRAW = np.random.default_rng
LEVELS = (50.0, 80.0, 90.0, 95.0, 99.0)


# --- coverage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", ["normal", "heavy", "skewed"])
def test_coverage_lies_in_the_binomial_band(kind: str, signed: bool) -> None:
    draw = DRAW(3)
    noise = {
        "normal": draw.standard_normal,
        "heavy": lambda size: draw.standard_t(1.5, size),
        "skewed": lambda size: draw.exponential(1.0, size) - 1,
    }[kind]
    interval = Conformal(noise((2000, 1, 1)), signed=signed)
    lower, upper = interval.ends(LEVELS)
    fresh = noise(200_000)
    for index, level in enumerate(LEVELS):
        covered = float(np.mean((lower[index, 0, 0] <= fresh) & (fresh <= upper[index, 0, 0])))
        # The coverage of such an interval is itself random, as the share of 2000 draws is.
        low, high = coverage_band(level, 2000)
        assert low <= covered <= high, (level, covered)


def test_half_width_of_a_normal_level_is_its_quantile() -> None:
    width = float(conformal_quantile(DRAW(0).standard_normal(200_000), 90.0))
    assert width == pytest.approx(1.6449, abs=0.01)  # the quantiles .05 and .95, not .1 and .9


def test_coverage_is_exact_on_average_for_few_residuals() -> None:
    draw, inside, count = DRAW(1), 0, 20_000
    for residuals, value in zip(draw.standard_normal((count, 19)), draw.standard_normal(count), strict=True):
        inside += abs(value) <= conformal_quantile(residuals, 95.0)  # rank 19 of 19: exactly 95 %
    low, high = coverage_band(95.0, count)
    assert low <= inside / count <= high


def test_coverage_of_autocorrelated_errors() -> None:
    draw = DRAW(4)
    noise = draw.standard_normal(60_000)
    errors = np.zeros(60_000)
    for t in range(1, 60_000):
        errors[t] = 0.7 * errors[t - 1] + noise[t]
    width = float(conformal_quantile(errors[:10_000], 90.0))
    # As many independent values as an autoregression with .7 has: (1 - .7) / (1 + .7) of them.
    low, high = coverage_band(90.0, int(10_000 * 0.3 / 1.7))
    assert low <= np.mean(np.abs(errors[10_000:]) <= width) <= high


def test_rolling_follows_errors_that_grow() -> None:
    draw = DRAW(5)
    rolling = RollingConformal(draw.standard_normal((300, 1, 1)).astype(np.float32), capacity=300)
    inside = []
    for origin in range(1500):
        error = draw.normal(0.0, 3.0, (1, 1)).astype(np.float32)
        inside.append(abs(float(error[0, 0])) <= float(rolling.at(origin).half_widths((90.0,))[0, 0, 0]))
        rolling.add(origin, error)
    assert np.mean(inside[:50]) < 0.6
    low, high = coverage_band(90.0, 300)
    assert low <= np.mean(inside[400:]) <= high


# --- ranks and order -------------------------------------------------------------------------------------------------


def test_rank_is_that_of_the_finite_sample() -> None:
    assert [rank(n, 90.0) for n in (8, 9, 19, 99)] == [9, 9, 18, 90]
    assert rank(39, 97.5) == 39
    assert [fewest(level) for level in (50.0, 80.0, 90.0, 95.0, 97.5, 99.0, 99.9)] == [1, 4, 9, 19, 39, 99, 999]
    residuals = np.arange(1.0, 20.0) * DRAW(0).choice([-1, 1], 19)
    assert float(conformal_quantile(residuals, 90.0)) == 18


@given(arrays(np.float32, (7, 2, 2), elements=st.floats(-10, 10, width=32) | st.just(np.nan)), st.booleans())
def test_monotone_in_level_and_never_crossing(residuals: np.ndarray, signed: bool) -> None:
    levels = (10.0, 40.0, 60.0, 75.0, 87.5, 99.0)
    lower, upper = Conformal(residuals, signed=signed).ends(levels)
    assert lower.dtype == upper.dtype == np.float32
    assert not np.isnan(lower).any()
    assert not np.isnan(upper).any()
    assert (lower[1:] <= lower[:-1]).all()
    assert (upper[1:] >= upper[:-1]).all()
    assert (lower <= upper).all()


def test_each_step_and_channel_has_its_own() -> None:
    scale = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    widths = Conformal(DRAW(0).standard_normal((4000, 3, 2)) * scale).half_widths((80.0, 90.0))
    assert widths.shape == (2, 3, 2)
    assert widths[1] / scale == pytest.approx(np.full((3, 2), 1.645), rel=0.06)


def test_intervals_lie_around_the_forecast() -> None:
    interval = Conformal(np.abs(DRAW(0).standard_normal((50, 3, 1))))
    forecast = DRAW(1).standard_normal((4, 3, 5))
    lower, upper = interval.intervals(forecast, (80.0, 90.0))
    assert lower.shape == upper.shape == (4, 3, 5, 2)
    assert (lower + upper) / 2 == pytest.approx(np.repeat(forecast[..., None], 2, -1))
    assert (upper - lower)[1, :, 3, 1] == pytest.approx(2 * interval.half_widths((90.0,))[0, :, 0])


def test_too_few_residuals_give_infinity_and_a_reason() -> None:
    interval = Conformal(np.ones((9, 2, 1)))
    assert np.isfinite(interval.half_widths((80.0, 90.0))).all()
    assert interval.reason((80.0, 90.0)) == ""
    assert np.isinf(interval.half_widths((95.0,))).all()
    assert interval.reason((80.0, 95.0)) == (
        "9 residuals are too few for level 95, which is infinite then; expected at least 19"
    )
    assert Conformal(np.ones((20, 1, 1)), signed=True).reason((90.0,)) == ""
    assert Conformal(np.ones((18, 1, 1)), signed=True).reason((90.0,)).endswith("expected at least 19")
    none = Conformal(np.zeros((0, 3, 1), np.float32))
    assert np.isinf(none.half_widths((50.0,))).all()
    assert none.reason((50.0,)).startswith("0 residuals are too few")
    assert none.half_widths(()).shape == (0, 3, 1)


def test_unknown_residuals_do_not_count() -> None:
    residuals = np.r_[np.arange(1.0, 10.0), np.inf, np.nan, np.inf][:, None, None]
    assert Conformal(residuals).half_widths((90.0,))[0, 0, 0] == 9
    assert np.isinf(Conformal(residuals).half_widths((91.0,))[0, 0, 0])


def test_signed_ends_follow_a_bias() -> None:
    residuals = DRAW(0).normal(5.0, 1.0, (5000, 1, 1))
    lower, upper = Conformal(residuals, signed=True).ends((90.0,))
    assert (lower[0, 0, 0], upper[0, 0, 0]) == pytest.approx((5 - 1.645, 5 + 1.645), abs=0.1)
    with pytest.raises(ValueError, match="ask for ends"):
        Conformal(residuals, signed=True).half_widths((90.0,))


# --- what is known when ----------------------------------------------------------------------------------------------


def test_rolling_uses_an_error_only_when_its_value_is_known() -> None:
    start = np.full((40, 3, 1), 1.0, np.float32)
    calm, wild = RollingConformal(start, capacity=20), RollingConformal(start, capacity=20)
    for origin in range(12):
        error = np.full((3, 1), 2.0, np.float32)
        calm.add(origin, error)
        wild.add(origin, np.full((3, 1), 1e6, np.float32) if origin == 7 else error)
    for step in range(1, 4):
        before, since = 7 + step - 1, 7 + step
        same = calm.at(before).half_widths((50.0, 95.0))[:, step - 1]
        assert (wild.at(before).half_widths((50.0, 95.0))[:, step - 1] == same).all()
        assert wild.at(since).half_widths((95.0,))[0, step - 1, 0] == 1e6
        assert calm.at(since).half_widths((95.0,))[0, step - 1, 0] == 2


def test_rolling_begins_as_split_conformal_and_forgets_the_oldest() -> None:
    start = DRAW(0).standard_normal((30, 2, 2)).astype(np.float32)
    rolling = RollingConformal(start, capacity=30)
    assert (rolling.at(-5).half_widths(LEVELS[:3]) == Conformal(start).half_widths(LEVELS[:3])).all()
    errors = DRAW(1).standard_normal((45, 2, 2)).astype(np.float32)
    for origin, error in enumerate(errors):
        rolling.add(10 * origin, error)
    expected = Conformal(errors[-30:]).half_widths(LEVELS[:3])
    assert (rolling.at(10_000).half_widths(LEVELS[:3]) == expected).all()
    with pytest.raises(ValueError, match="expected origins in their order in time"):
        rolling.add(3, errors[0])


def test_rolling_keeps_as_many_of_each_step() -> None:
    rolling = RollingConformal(np.zeros((0, 4, 1), np.float32), capacity=10)
    for origin in range(40):
        rolling.add(origin, np.full((4, 1), float(origin), np.float32))
    assert rolling.at(40).count[:, 0].tolist() == [10, 10, 10, 10]
    # Step 4 of origin 37 ends at 41, which is not known yet.
    assert rolling.at(40)._above[:, 0, 9].tolist() == [39, 38, 37, 36]


# --- quantile heads --------------------------------------------------------------------------------------------------


def test_conformalized_quantiles_cover_what_bad_quantiles_do_not() -> None:
    draw = DRAW(0)
    scale = draw.uniform(0.5, 2.0, (4000, 1, 1))
    target = scale * draw.standard_normal((4000, 1, 1))
    lower, upper = -scale * 0.5, scale * 0.5  # far too narrow, but in proportion
    by = conformalized_quantiles(lower[:2000], upper[:2000], target[:2000], 90.0)
    low, high = widen(lower[2000:], upper[2000:], by)
    covered = float(np.mean((low <= target[2000:]) & (target[2000:] <= high)))
    least, most = coverage_band(90.0, 1000)
    assert least <= covered <= most
    wide = conformalized_quantiles(-9 * scale, 9 * scale, target, 90.0)
    assert float(wide[0, 0]) < 0
    assert np.isinf(conformalized_quantiles(lower[:8], upper[:8], target[:8], 90.0)).all()


def test_widening_by_less_than_nothing_never_crosses() -> None:
    low, high = widen(np.array([0.0, 0.0]), np.array([1.0, 8.0]), -2.0)
    assert low.tolist() == [0.5, 2.0]
    assert high.tolist() == [0.5, 6.0]


def test_levels_and_quantiles() -> None:
    assert quantiles_of((90.0,)) == (0.05, 0.5, 0.95)
    assert quantiles_of((80.0, 97.5)) == (0.0125, 0.1, 0.5, 0.9, 0.9875)
    assert quantile_levels((0.05, 0.1, 0.5, 0.95)) == {90.0: (0, 3)}
    assert quantile_levels(quantiles_of((80.0, 97.5))) == {80.0: (1, 3), 97.5: (0, 4)}


# --- levels and columns ----------------------------------------------------------------------------------------------


def test_parse_levels() -> None:
    assert parse_levels("95, 80,97.5") == (80.0, 95.0, 97.5)
    assert parse_levels([80, 95.0, "80"]) == (80.0, 95.0)
    assert parse_levels("") == parse_levels([]) == ()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("0.95", "levels are percentages; got 0.95, did you mean 95?"),
        ([80, 0.9], "levels are percentages; got 0.9, did you mean 90?"),
        ("100", "levels must be percentages between 0 and 100, such as 80,95; got '100'"),
        ([0], "levels must be percentages between 0 and 100, such as 80,95; got 0"),
        ("eighty", "levels must be percentages between 0 and 100, such as 80,95; got 'eighty'"),
        ([-80.0], "levels must be percentages between 0 and 100, such as 80,95; got -80.0"),
        ("nan", "levels must be percentages between 0 and 100, such as 80,95; got 'nan'"),
        ([True], "levels must be percentages between 0 and 100, such as 80,95; got True"),
    ],
)
def test_levels_that_are_none(given: list[float | int | str] | str, line: str) -> None:
    with pytest.raises(UserError) as error:
        parse_levels(given)
    assert str(error.value) == line


def test_columns_are_those_of_the_ecosystem() -> None:
    columns = interval_columns("TPGN", (80.0, 97.5))
    assert columns == {80.0: ("TPGN-lo-80", "TPGN-hi-80"), 97.5: ("TPGN-lo-97.5", "TPGN-hi-97.5")}
    table = ["unique_id", "ds", "TPGN", "TPGN-lo-80", "TPGN-hi-97.5", "TPGN-hi-80", "TPGN-lo-97.5", "a-lo-b-lo-9"]
    assert columns_of_intervals(table) == {"TPGN": columns}


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_bounds_hold_and_keep_the_order() -> None:
    lower, point, upper = np.array([-3.0, -np.inf, 0.4]), np.array([-1.0, 2.5, 0.6]), np.array([7.0, np.inf, 11.2])
    ends = [bounded(one, minimum=0.0, maximum=10.0) for one in (lower, point, upper)]
    assert [one.tolist() for one in ends] == [[0, 0, 0.4], [0, 2.5, 0.6], [7, 10, 10]]
    whole = [bounded(one, minimum=-0.5, integer=True) for one in (lower, point, upper)]
    assert [one.tolist() for one in whole] == [[0, 0, 0], [0, 2, 1], [7, np.inf, 11]]
    assert not np.signbit(np.concatenate(whole)).any()
    assert bounded(lower.astype(np.float32), minimum=0.0).dtype == np.float32
    assert bounded(lower).tolist() == lower.tolist()


def test_whole_numbers_inside_an_interval_stay_inside_it() -> None:
    draw = DRAW(0)
    low = draw.normal(0.0, 5.0, 2000)
    high = low + draw.exponential(3.0, 2000)
    counts = np.arange(-20, 25)[:, None]
    inside = (low <= counts) & (counts <= high)
    still = (bounded(low, integer=True) <= counts) & (counts <= bounded(high, integer=True))
    assert (still | ~inside).all()


def test_bounds_that_leave_nothing() -> None:
    with pytest.raises(UserError, match=r"^no value lies between minimum 3.0 and maximum 2.0; give a wider range$"):
        bounded(np.zeros(3), minimum=3.0, maximum=2.0)
    with pytest.raises(UserError, match=r"^no whole value lies between minimum 0.2 and maximum 0.8"):
        bounded(np.zeros(3), minimum=0.2, maximum=0.8, integer=True)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_calibration_and_scored_rows_are_disjoint() -> None:
    check_disjoint([("a", 0, 50), ("b", 0, 90)], [("a", 50, 90), ("c", 0, 90)])
    with pytest.raises(UserError) as error:
        check_disjoint([("a", 0, 50), ("b", 0, 60)], [("a", 50, 90), ("b", 55, 90)])
    assert str(error.value) == (
        "intervals are calibrated on rows that are scored: 'b', rows 55 to 59; "
        "calibrate on rows before those, or score others"
    )
