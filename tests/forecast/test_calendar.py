"""Frequencies: names old and new, stamps that follow, what is found in stamps alone, calendar features."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.core.errors import UserError
from recurra.forecast.data.cadence import infer_one
from recurra.forecast.data.calendar import Frequency

OLD = {
    "H": "h",
    "2H": "2h",
    "T": "min",
    "15T": "15min",
    "S": "s",
    "L": "ms",
    "U": "us",
    "M": "ME",
    "Q": "QE-DEC",
    "Q-JAN": "QE-JAN",
    "A": "YE-DEC",
    "A-MAR": "YE-MAR",
    "Y": "YE-DEC",
    "BM": "BME",
    "BQ": "BQE-DEC",
    "AS": "YS-JAN",
    "SM": "SME-15",
    "d": "D",
    "w": "W-SUN",
    "b": "B",
    "h": "h",
    "t": "min",
    "60min": "h",
    "1h30min": "90min",
    "24h": "24h",
    "W-SAT": "W-SAT",
    "w-sat": "W-SAT",
    "3D": "3D",
    "MS-15": "MS-15",
    "daily": "D",
    "Monthly": "MS",
}
SOME = (
    "s",
    "15min",
    "h",
    "2h",
    "6h",
    "D",
    "3D",
    "B",
    "W-SAT",
    "2W-TUE",
    "MS",
    "ME",
    "3ME",
    "QS-OCT",
    "QE-DEC",
    "YS-JAN",
)
SOME += ("YE-MAR", "SMS-15", "SME-15", "BME", "BMS", "2MS")


@pytest.mark.parametrize(("old", "new"), OLD.items())
def test_old_names_stand_for_the_present_ones(old: str, new: str) -> None:
    assert Frequency.of(old).alias == new
    assert Frequency.of(new) == Frequency.of(old)


@pytest.mark.parametrize("number", [1, 7, "7", " 12 "])
def test_whole_numbers_are_steps(number: int | str) -> None:
    assert Frequency.of(number).alias == str(number).strip()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("hh", "freq: no frequency is called 'hh' (did you mean h?); --freq takes pandas' names"),
        ("0h", "freq: a step must be longer than nothing; got '0h'"),
        ("-1D", "freq: a step must be longer than nothing; got '-1D'"),
        ("0", "freq: no frequency is called '0' (known: "),
        ("", "freq: no frequency is called '' (known: "),
        ("m", "freq: m may be months (MS or ME) or minutes (min); give one of these"),
        ("MS-31", "freq: no frequency is called 'MS-31'"),
    ],
)
def test_what_is_no_frequency(given: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        Frequency.of(given)
    assert str(error.value).startswith(line)


@pytest.mark.parametrize("alias", SOME)
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
@settings(max_examples=15, deadline=None)
@given(start=st.datetimes(pd.Timestamp("1975-01-01").to_pydatetime(), pd.Timestamp("2037-01-01").to_pydatetime()))
def test_after_is_what_pandas_gives(alias: str, zone: str | None, start: object) -> None:
    frequency = Frequency.of(alias)
    naive = pd.date_range(pd.Timestamp(start).floor("min"), periods=30, freq=alias, unit="us")  # type: ignore[arg-type]
    if zone is None:
        full = naive
    elif frequency.nanoseconds:
        full = naive.tz_localize("UTC").tz_convert(zone)
    else:
        full = naive.tz_localize(zone, ambiguous=np.ones(30, bool), nonexistent="shift_forward")
    last = full[9]
    if zone and not frequency.nanoseconds and last.tz_localize(None) != naive[9]:
        return  # the clock skipped it: the next is counted from where the clock went on
    following = frequency.after(last, 20)
    pd.testing.assert_index_equal(following, full[10:], check_names=False, exact=False)
    assert frequency.between(full[0], full[-1]).equals(full) or zone
    assert (frequency.steps(full[9:]) == np.arange(21)).all()


@pytest.mark.parametrize("alias", SOME)
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_is_found_again_in_stamps_of_any_unit(alias: str, unit: str) -> None:
    stamps = pd.date_range("2020-02-03 00:00", periods=50, freq=alias, unit=unit)
    assert infer_one(stamps).alias == {"3ME": "QE-DEC"}.get(alias, alias) or alias in ("3ME", "2MS")
    again = infer_one(stamps)
    assert again.after(stamps[-1], 3).equals(Frequency.of(alias).after(stamps[-1], 3))


@pytest.mark.parametrize("alias", [one for one in SOME if one not in ("YS-JAN", "YE-MAR", "QS-OCT", "QE-DEC")])
def test_gaps_do_not_hide_it(alias: str) -> None:
    stamps = pd.date_range("2020-02-03", periods=80, freq=alias)
    kept = stamps.delete([3, 17, 18, 40, 41, 42, 60])
    found = infer_one(kept)
    assert found.between(stamps[0], stamps[-1]).equals(stamps)
    assert "multiples: gaps" in found.evidence


def test_months_of_one_day_keep_it() -> None:
    stamps = pd.DatetimeIndex(["2024-01-30", "2024-02-29", "2024-03-30", "2024-04-30"])
    found = infer_one(stamps)
    assert found.alias == "MS-30"
    assert list(found.after(stamps[-1], 11)[[0, 9]]) == [pd.Timestamp("2024-05-30"), pd.Timestamp("2025-02-28")]
    assert infer_one(pd.DatetimeIndex(["2024-01-15", "2024-02-15", "2024-04-15"])).alias == "MS-15"


def test_month_ends_stay_month_ends() -> None:
    following = Frequency.of("M").after(pd.Timestamp("2024-01-31"), 3)
    assert list(following.astype(str)) == ["2024-02-29", "2024-03-31", "2024-04-30"]


def test_days_over_the_end_of_february() -> None:
    """A forecast frame that lacked 1 March."""
    last = pd.Timestamp("2024-12-31")
    following = Frequency.of("D").after(last, 365)
    assert following.equals(pd.date_range("2025-01-01", periods=365, freq="D"))
    assert pd.Timestamp("2025-03-01") in following
    assert following.is_unique


def test_business_days_have_no_weekends() -> None:
    """Trading days that were read as days, with a missing value on every weekend."""
    stamps = pd.bdate_range("2024-01-01", periods=30)
    found = infer_one(stamps)
    assert found.alias == "B"
    assert "no stamp on a Saturday or Sunday in 5 weekends" in found.evidence
    assert found.after(pd.Timestamp("2024-02-09"), 1)[0] == pd.Timestamp("2024-02-12")


@pytest.mark.parametrize("values", [np.arange(5), np.arange(1700, 2000, 10), [3, 10, 17, 31]])
def test_whole_numbers_of_any_step(values: object) -> None:
    stamps = pd.Index(np.asarray(values))
    found = infer_one(stamps)
    step = stamps[1] - stamps[0]
    assert found.alias == str(step)
    assert list(found.after(stamps[-1], 2)) == [stamps[-1] + step, stamps[-1] + 2 * step]


@pytest.mark.parametrize(
    ("stamps", "line"),
    [
        (
            pd.DatetimeIndex(["2024-10-02", "2024-10-05", "2024-10-14", "2024-10-16"]),
            "the steps of time fit no frequency: from 2024-10-02 00:00:00 to 2024-10-05 00:00:00, but step 2 d in 1 "
            "of 3 "
            "steps (33.33 %); mend the rows, or name the frequency with --freq",
        ),
        (
            pd.DatetimeIndex(["2024-10-02 00:00", "2024-10-02 01:00", "2024-10-02 01:30", "2024-10-02 02:30"]),
            "the steps of time fit no frequency: from 2024-10-02 01:00:00 to 2024-10-02 01:30:00, but step 1 h in 2 "
            "of 3 "
            "steps (66.67 %); mend the rows, or name the frequency with --freq",
        ),
        (
            pd.Index([1, 2, 3, 4, 6, 11, 20, 31, 50, 80, 120]),
            "the steps of time fit no frequency: from 4 to 6, but step 1 in 3 of 10 steps (30 %); mend the rows, or "
            "name the frequency with --freq",
        ),
        (pd.Index([4]), "one row a series decides no frequency; name it with --freq"),
    ],
)
def test_stamps_that_decide_nothing(stamps: pd.Index, line: str) -> None:
    with pytest.raises(UserError) as error:
        infer_one(stamps)
    assert str(error.value) == line


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Melbourne", "America/New_York"])
def test_a_change_of_clocks_is_no_gap(zone: str) -> None:
    hours = pd.date_range("2024-01-01", periods=24 * 366, freq="h", tz=zone)
    assert infer_one(hours).alias == "h"
    days = pd.date_range("2024-01-01", periods=366, freq="D", tz=zone)
    found = infer_one(days)
    assert found.alias == "D"
    following = found.after(days[59], 300)
    assert (following.hour == 0).all()
    assert str(following.tz) == zone
    assert found.between(days[0], days[-1]).equals(days)


def test_days_of_24_hours_are_instants() -> None:
    stamps = pd.date_range("2024-01-01", periods=200, freq="24h", tz="UTC").tz_convert("Europe/Berlin")
    assert infer_one(stamps).alias == "24h"


@pytest.mark.parametrize(
    ("season", "aliases"),
    [
        (24, "h SMS"),
        (12, "2h MS ME MS-15"),
        (1, "5h YS YE-MAR 3D 1"),
        (96, "15min"),
        (1440, "min"),
        (3600, "s"),
        (7, "D 24h"),
        (52, "7D W-TUE"),
        (5, "B"),
        (26, "2W-TUE"),
        (4, "QS-OCT 3MS"),
        (2, "2QS"),
    ],
)
def test_season(season: int, aliases: str) -> None:
    for alias in aliases.split():
        assert Frequency.of(alias).season == season


@pytest.mark.parametrize(
    ("features", "aliases"),
    [(6, "s"), (5, "min 15min"), (4, "h 6h"), (3, "D B"), (2, "W-SAT"), (1, "MS QE MS-15"), (0, "YS 3")],
)
def test_marks_lie_within_a_half(features: int, aliases: str) -> None:
    for alias in aliases.split():
        frequency = Frequency.of(alias)
        first = 0 if frequency.number else pd.Timestamp("2020-01-01")
        marks = frequency.marks(frequency.after(first, 500))
        assert marks.shape == (500, features)
        assert marks.dtype == np.float32
        assert not features or np.abs(marks).max() <= 0.5


def test_marks_are_read_off_the_clock_of_the_zone() -> None:
    noon = pd.DatetimeIndex(["2024-07-01 10:00"], tz="UTC").tz_convert("Europe/Berlin")
    assert Frequency.of("h").exact_marks(noon)[0, 0] == pytest.approx(12 / 23 - 0.5, abs=1e-15)
