"""Stamps of any spelling, type, unit and zone are the same instants, or are refused in one line."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_checks import fact, long, refused, same

from recurra.core.errors import UserError
from recurra.forecast.data.tables import open_panel


@pytest.mark.parametrize("zone", ["+05:30", "Asia/Kolkata", "Europe/Berlin", "UTC"])
def test_numbers_are_the_same_in_every_zone(zone: str) -> None:
    """A column at +05:30 was refused, or read at half hours."""
    utc = long()
    utc["ds"] = utc["ds"].dt.tz_localize("UTC")
    other = utc.assign(ds=utc["ds"].dt.tz_convert(zone))
    one, two = open_panel(utc), open_panel(other)
    assert two.frequency.alias == "h"
    assert str(two.series[0].stamps.tz) == str(other["ds"].dt.tz)
    for a, b in zip(one.series, two.series, strict=True):
        assert (a.stamps == b.stamps).all()
        np.testing.assert_array_equal(a.values, b.values)
    after = two.frequency.after(two.series[0].stamps[-1], 2)
    assert str(after.tz) == str(other["ds"].dt.tz)
    assert (after == one.frequency.after(one.series[0].stamps[-1], 2)).all()


def test_offsets_in_text(csv: Any) -> None:
    rows = "\n".join(f"2024-01-01T{hour:02d}:00:00+05:30,{hour}" for hour in range(6))
    panel = open_panel(csv(f"date,y\n{rows}\n"))
    assert str(panel.series[0].stamps.tz) == "UTC+05:30"
    assert panel.series[0].stamps[3].hour == 3
    rows = "\n".join(f"2014-12-31T{hour:02d}:00:00Z,{hour}" for hour in range(18, 24))
    assert str(open_panel(csv(f"date,y\n{rows}\n")).series[0].stamps.tz) == "UTC"


@pytest.mark.parametrize("space", ["", " "])
def test_shifting_offsets_become_utc_with_a_note(csv: Any, space: str) -> None:
    stamps = pd.date_range("2024-03-30", periods=72, freq="h", tz="Europe/Berlin")
    text = [f"{one:%Y-%m-%d %H:%M:%S}{space}{one:%z}"[:-2] + ":" + f"{one:%z}"[3:] for one in stamps]
    path = csv("date,y\n" + "\n".join(f"{one},{at}" for at, one in enumerate(text)) + "\n")
    panel = open_panel(path)
    assert panel.frequency.alias == "h"
    assert str(panel.series[0].stamps.tz) == "UTC"
    assert (panel.series[0].stamps == stamps).all()
    assert "the stamps have 2 offsets" in next(one.evidence for one in panel.facts if one.what == "zone")
    kept = open_panel(path, zone="Europe/Berlin")
    assert kept.series[0].stamps.equals(stamps.as_unit("us"))


def test_a_day_of_shifting_offsets_is_a_day_with_its_zone(csv: Any) -> None:
    stamps = pd.date_range("2024-03-20", periods=30, freq="D", tz="Europe/Berlin")
    path = csv("date,y\n" + "\n".join(f"{one.isoformat()},{at}" for at, one in enumerate(stamps)) + "\n")
    assert open_panel(path, zone="Europe/Berlin").frequency.alias == "D"
    refused(
        path,
        f"{path}: the steps of time fit no frequency: from 2024-03-30 23:00:00+00:00 to 2024-03-31 22:00:00+00:00, "
        "but step "
        "1 d in 28 of 29 steps (96.55 %); mend the rows, or name the frequency with --freq",
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_clocks_without_a_zone_over_a_change(reverse: bool) -> None:
    """Hourly counts of Melbourne, without offsets."""
    stamps = pd.date_range("2024-04-06", periods=48, freq="h", tz="Australia/Melbourne")
    frame = pd.DataFrame({"ds": stamps.tz_localize(None), "y": np.arange(48.0)})
    frame = frame.iloc[::-1] if reverse else frame
    first, second = ((26, 27) if not reverse else (21, 20))[::1]
    rows = sorted([first, second]) if not reverse else [20, 21]
    values = [frame["y"].iloc[row] for row in rows]
    refused(
        frame,
        f"data frame: ds 2024-04-07 02:00:00 occurs twice: row {rows[0]} (y {values[0]}) and row {rows[1]} (y "
        f"{values[1]}); "
        "keep one; if the change of clocks repeats it, name the zone with --zone",
    )
    panel = open_panel(frame, zone="Australia/Melbourne")
    assert panel.series[0].stamps.equals(stamps.as_unit("us"))
    np.testing.assert_array_equal(panel.series[0].values[:, 0], np.arange(48.0))


def test_an_hour_shown_twice_needs_the_order_of_rows() -> None:
    stamps = pd.date_range("2024-04-06", periods=48, freq="h", tz="Australia/Melbourne")
    frame = pd.DataFrame({"ds": stamps.tz_localize(None), "y": np.arange(48.0)}).sample(frac=1, random_state=1)
    with pytest.raises(UserError, match=r"the rows are not in the order of time.*give stamps with their offset"):
        open_panel(frame, zone="Australia/Melbourne")
    once = pd.DataFrame({"ds": stamps.tz_localize(None), "y": np.arange(48.0)}).drop(index=26)
    with pytest.raises(UserError, match="2024-04-07 02:00:00 was twice in Australia/Melbourne, and one row has it"):
        open_panel(once, zone="Australia/Melbourne")


def test_an_hour_that_never_was() -> None:
    frame = pd.DataFrame({"ds": pd.date_range("2024-03-30 12:00", periods=24, freq="h"), "y": 1.0})
    refused(
        frame,
        "data frame: row 14: ds 2024-03-31 02:00:00 never was in Europe/Berlin: the clocks skip it; is it another "
        "zone?",
        zone="Europe/Berlin",
    )


def test_a_skipped_hour_of_clocks_without_a_zone_is_named() -> None:
    stamps = pd.date_range("2024-03-30", periods=48, freq="h", tz="Europe/Berlin")
    panel = open_panel(pd.DataFrame({"ds": stamps.tz_localize(None), "y": np.arange(48.0)}))
    assert len(panel.series[0]) == 49
    assert np.isnan(panel.series[0].values).sum() == 1
    assert "1 after 2024-03-31 01:00:00 (the change of clocks? --zone)" in fact(panel, "gaps").evidence


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "x"])
def test_unknown_zone(zone: str) -> None:
    refused(
        long(),
        f"data frame: --zone: no zone is called {zone!r}; expected a name such as Europe/Madrid or UTC",
        zone=zone,
    )


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Asia/Kolkata"])
def test_units_of_stamps_are_alike(unit: str, zone: str | None) -> None:
    frame = long()
    frame["ds"] = frame["ds"].dt.tz_localize(zone)
    same(open_panel(frame), open_panel(frame.assign(ds=frame["ds"].dt.as_unit(unit))))


def test_nanoseconds_are_kept() -> None:
    stamps = pd.date_range("2024-01-01", periods=5, freq="100ns", unit="ns")
    panel = open_panel(pd.DataFrame({"ds": stamps, "y": np.arange(5.0)}))
    assert panel.frequency.alias == "100ns"
    assert panel.series[0].stamps.equals(stamps)
    text = pd.DataFrame({"ds": stamps.astype(str), "y": np.arange(5.0)})
    same(open_panel(text), panel)


@pytest.mark.parametrize(
    "spell",
    [
        lambda stamp: f"{stamp.year}/{stamp.month}/{stamp.day} {stamp.hour}:{stamp.minute:02d}",
        lambda stamp: f"{stamp:%b} {stamp.day} {stamp.year} {stamp:%H:%M}",
        lambda stamp: f"{stamp.day} {stamp:%B} {stamp.year}, {stamp:%H:%M}",
        lambda stamp: f"{stamp.month}/{stamp.day}/{stamp:%y} {stamp.hour}:{stamp.minute:02d}",
        lambda stamp: f"{stamp:%d.%m.%Y %H:%M:%S}",
        lambda stamp: f"{stamp:%m/%d/%Y %I:%M %p}",
        lambda stamp: f"{stamp:%Y-%m-%dT%H:%M:%S}.000",
        lambda stamp: f"{stamp:%d-%b-%y %H:%M}",
        lambda stamp: f"{stamp:%Y.%m.%d %H:%M}",
        str,
    ],
)
def test_spellings(csv: Any, spell: Any) -> None:
    stamps = pd.date_range("2015-01-28 20:00", periods=60, freq="h")
    path = csv("date;y\n" + "\n".join(f"{spell(one)};{at}" for at, one in enumerate(stamps)) + "\n")
    panel = open_panel(path)
    assert panel.series[0].stamps.equals(stamps.as_unit("us"))


@pytest.mark.parametrize(
    ("cells", "alias", "first"),
    [
        (["Jan 1 2000", "Feb 1 2000", "Mar 1 2000"], "MS", "2000-01-01"),
        (["2000-01", "2000-02", "2000-03"], "MS", "2000-01-01"),
        (["01/2000", "02/2000", "03/2000"], "MS", "2000-01-01"),
        (["2000Q1", "2000Q2", "2000Q3"], "QS-OCT", "2000-01-01"),
        (["Q1 2000", "Q2 2000", "Q3 2000"], "QS-OCT", "2000-01-01"),
        (["2020-W05", "2020-W06", "2020-W07"], "W-MON", "2020-01-27"),
        (["20200130", "20200131", "20200201"], "D", "2020-01-30"),
        (["202011", "202012", "202101"], "MS", "2020-11-01"),
        (["1949", "1950", "1951"], "1", 1949),
        (["1700.0", "1701.0", "1702.0"], "1", 1700),
        (["0", "1", "2"], "1", 0),
        (["-5", "0", "5"], "5", -5),
    ],
)
def test_spellings_of_dates(csv: Any, cells: list[str], alias: str | None, first: Any) -> None:
    path = csv("date,y\n" + "".join(f"{one},{at}\n" for at, one in enumerate(cells)))
    panel = open_panel(path)
    assert panel.frequency.alias == alias
    assert panel.series[0].stamps[0] == (first if isinstance(first, int) else pd.Timestamp(first))


def test_two_spellings_in_one_column(csv: Any) -> None:
    path = csv("date,y\n2010/01/01 00:00,1\n2010/01/01 01:00,2\n2010-01-01 02:00:00,3\n2010-01-01 03:00:00,4\n")
    panel = open_panel(path)
    assert panel.frequency.alias == "h"
    assert len(panel.series[0]) == 4
    assert fact(panel, "dates").value == "%Y/%m/%d %H:%M (2 rows), %Y-%m-%d %H:%M:%S (2 rows)"


def test_dates_with_two_readings_are_refused(csv: Any) -> None:
    path = csv("date,y\n01/01/2003,1\n01/02/2003,1\n01/03/2003,2\n01/04/2003,3\n")
    refused(
        path,
        f"{path}: line 3: column 'date': '01/02/2003' may be %m/%d/%Y or %d/%m/%Y, and no row decides; "
        "pass --date-format '%m/%d/%Y' or --date-format '%d/%m/%Y'",
    )
    assert open_panel(path, date_format="%m/%d/%Y").frequency.alias == "D"
    assert open_panel(path, date_format="%d/%m/%Y").frequency.alias == "MS"


@pytest.mark.parametrize(("last", "alias"), [("01/13/2003", "%m/%d/%Y"), ("13/01/2003", "%d/%m/%Y")])
def test_one_row_decides_the_order_of_day_and_month(csv: Any, last: str, alias: str) -> None:
    path = csv(f"date,y\n01/01/2003,1\n01/01/2004,1\n{last},2\n")
    with pytest.raises(UserError, match="fit no frequency"):
        open_panel(path)
    days = "".join(
        f"{day:02d}/01/2003,{day}\n" if alias[1] == "d" else f"01/{day:02d}/2003,{day}\n" for day in range(1, 14)
    )
    panel = open_panel(csv(f"date,y\n{days}"))
    assert panel.frequency.alias == "D"
    order = fact(panel, "order of day and month")
    assert order.value == alias
    assert order.evidence.startswith(f"line 14: '{last}' is no ")


def test_mixed_orders_are_refused(csv: Any) -> None:
    path = csv("date,y\n13/01/2003,1\n01/14/2003,1\n")
    refused(
        path,
        f"{path}: column 'date' mixes orders of day and month: line 3: '01/14/2003' is %m/%d/%Y, line 2: '13/01/2003' "
        "is "
        "%d/%m/%Y; mend the rows",
    )


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        ("", "line 3: column 'date' has no stamp; every row needs one"),
        (
            "soon",
            "line 3: column 'date' holds 'soon', which is no date that is known here; expected a date, or "
            "--date-format",
        ),
        (
            "2024-02-30",
            "line 3: column 'date' holds '2024-02-30', which is no date that is known here; expected a date, or "
            "--date-format",
        ),
        (
            "2024-01-02 24:00",
            "line 3: column 'date' holds '2024-01-02 24:00', which is no date that is known here; expected a date, or "
            "--date-format",
        ),
        (
            "2024-01-02T00:00Z",
            "line 2: column 'date' has a stamp without an offset, and line 3 one with; give all or none",
        ),
    ],
)
def test_cells_that_are_no_stamps(csv: Any, cell: str, line: str) -> None:
    path = csv(f"date,y\n2024-01-01,1\n{cell},2\n2024-01-03,3\n")
    refused(path, f"{path}: {line}")


def test_a_cell_among_whole_numbers(csv: Any) -> None:
    path = csv("time,y\n1,1\n2,1\nthree,2\n")
    refused(path, f"{path}: line 4: column 'time' holds 'three' among whole numbers, which is none")


def test_date_format_that_does_not_fit(csv: Any) -> None:
    path = csv("date,y\n2024-01-01,1\n01/02/2024,2\n")
    refused(
        path,
        f"{path}: line 3: column 'date' holds '01/02/2024', which has not the form %Y-%m-%d of --date-format; "
        "expected a "
        "date, or --date-format",
        date_format="%Y-%m-%d",
    )


@pytest.mark.parametrize(
    "convert",
    [
        lambda stamps: stamps.dt.date,
        lambda stamps: stamps.dt.to_period("D"),
        lambda stamps: stamps.astype(str),
        lambda stamps: stamps.astype(object),
        lambda stamps: stamps.astype(str).astype("category"),
        lambda stamps: pd.Series([one.to_pydatetime() for one in stamps], dtype=object),
        lambda stamps: pd.Series([np.datetime64(one, "D") for one in stamps]),
        lambda stamps: stamps.dt.strftime("%Y%m%d").astype(int),
        lambda stamps: pd.Series([one.encode() for one in stamps.astype(str)], dtype=object),
        lambda stamps: stamps.astype("timestamp[s][pyarrow]"),
    ],
)
def test_types_of_stamps_are_alike(convert: Any) -> None:
    pytest.importorskip("pyarrow")
    frame = long(freq="D")
    same(open_panel(frame), open_panel(frame.assign(ds=convert(frame["ds"]))))


def test_stamps_that_are_no_dates() -> None:
    frame = long()
    refused(
        frame.assign(ds=np.arange(24) % 12 + 0.5),
        "data frame: row 0: column 'ds' holds the time 0.5; expected dates or whole numbers",
    )
    refused(frame.assign(ds=True), "data frame: column 'ds' holds bool; expected dates or whole numbers")
    missing = frame.assign(ds=frame["ds"].where(frame.index != 3))
    refused(missing, "data frame: row 3: column 'ds' has no stamp; every row needs one")


def test_seconds_since_1970(csv: Any) -> None:
    path = csv("time,y\n1700000000,1\n1700003600,2\n1700007200,3\n")
    assert open_panel(path).frequency.alias == "3600"
    assert "--date-format s" in fact(open_panel(path), "stamps").evidence
    panel = open_panel(path, date_format="s")
    assert panel.frequency.alias == "h"
    assert panel.series[0].stamps[0] == pd.Timestamp("2023-11-14 22:13:20")


def test_irregular_stamps_are_refused() -> None:
    frame = pd.DataFrame(
        {"unique_id": "a", "ds": pd.to_datetime(["2024-10-02", "2024-10-05", "2024-10-14", "2024-10-16"]), "y": 1.0}
    )
    refused(
        frame,
        "data frame: id 'a': the steps of time fit no frequency: from 2024-10-02 00:00:00 to 2024-10-05 00:00:00, "
        "but step "
        "2 d in 1 of 3 steps (33.33 %); mend the rows, or name the frequency with --freq",
    )
    assert open_panel(frame.assign(ds=range(4))).frequency.alias == "1"
    assert len(open_panel(frame, freq="D").series[0]) == 15


def test_stamps_off_a_given_frequency_are_refused() -> None:
    frame = long(freq="MS", ids=("a",), rows=5)
    refused(
        frame,
        "data frame: row 0: id 'a', ds 2024-01-01 00:00:00 lies on no step of ME from 2024-01-01 00:00:00; the "
        "stamps fit "
        "MS (first days; step 1 months in all 4 steps)",
        freq="M",
    )
    refused(frame, "data frame: --freq 1 does not fit: column 'ds' holds dates", freq=1)
    refused(frame.assign(ds=range(5)), "data frame: --freq D does not fit: column 'ds' holds whole numbers", freq="D")
    refused(frame, "freq: no frequency is called 'hh' (did you mean h?); --freq takes pandas' names", freq="hh")
    days = long(freq="D", ids=("a",), rows=9)
    refused(
        days,
        "data frame: row 5: id 'a', ds 2024-01-06 00:00:00 lies on no step of B from 2024-01-01 00:00:00; the stamps "
        "fit D "
        "(one time of day; step 1 d in all 8 steps)",
        freq="B",
    )


def test_a_given_step_that_no_two_rows_lie_apart_is_refused() -> None:
    """Weeks of Saturdays on a grid of days: six of seven rows would be missing."""
    refused(
        long(("a",), freq="W-SAT"),
        "data frame: --freq D is too short: all rows lie 7 steps of it apart, or multiples; the stamps fit W-SAT "
        "(one day "
        "of the week; step 1 weeks in all 11 steps)",
        freq="D",
    )
    refused(
        long(("a",), freq="h").assign(ds=np.arange(12) * 10),
        "data frame: --freq 2 is too short: all rows lie 5 steps of it apart, or multiples; the stamps fit 10 (whole "
        "numbers; step 10 in all 11 steps)",
        freq=2,
    )


def test_options_are_checked_before_the_file(tmp_path: Path) -> None:
    nowhere = tmp_path / "no.csv"
    refused(nowhere, "separator must be one character; got ',;'", separator=",;")
    refused(nowhere, "decimal must be . or ,; got ';'", decimal=";")
    refused(nowhere, "fill must be one of none, linear, zero, calendar, previous, observed; got 'mean'", fill="y=mean")
    with pytest.raises(UserError, match="no frequency is called 'fortnight'"):
        open_panel(nowhere, freq="fortnight")


def test_series_of_different_times_of_day() -> None:
    one, other = long(("a",), freq="D"), long(("b",), freq="D", start="2024-01-01 06:00")
    panel = open_panel(pd.concat([one, other]))
    assert panel.frequency.alias == "D"
    assert panel.series[1].stamps[0].hour == 6
    with pytest.raises(UserError, match="no model can take them side by side"):
        panel.aligned()


def test_year_and_quarter(csv: Any) -> None:
    rows = "".join(f"{year}.0,{quarter}.0,{year + quarter}\n" for year in (1959, 1960) for quarter in (1, 2, 3, 4))
    panel = open_panel(csv(f"year,quarter,gdp\n{rows}"))
    assert panel.frequency.alias == "QS-OCT"
    assert panel.series[0].stamps[-1] == pd.Timestamp("1960-10-01")
    assert fact(panel, "time").value == "ds, out of year and quarter"


@settings(max_examples=40, deadline=None)
@given(
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Melbourne", "Asia/Kolkata", "UTC"]),
    start=st.datetimes(dt.datetime(1990, 1, 1), dt.datetime(2035, 1, 1)),
    freq=st.sampled_from(["h", "30min", "15min", "2h"]),
    descending=st.booleans(),
)
def test_clocks_of_a_zone_give_its_instants(zone: str, start: dt.datetime, freq: str, descending: bool) -> None:
    first = pd.Timestamp(start).floor("D").tz_localize(zone, ambiguous=True, nonexistent="shift_forward")
    stamps = pd.date_range(first, periods=24 * 60, freq=freq, unit="us")
    frame = pd.DataFrame({"ds": stamps.tz_localize(None), "y": np.arange(len(stamps)) / 2})
    try:
        panel = open_panel(frame.iloc[::-1] if descending else frame, zone=zone)
    except UserError as error:
        # Every second hour: the clock shows one of two equal hours, and nothing says which.
        assert "was twice in" in str(error)  # noqa: PT017
        assert freq == "2h"
        return
    assert panel.series[0].stamps.equals(stamps)
    np.testing.assert_array_equal(panel.series[0].values[:, 0], frame["y"])


@pytest.mark.parametrize("zone", ["America/Sao_Paulo", "America/Havana", "Asia/Beirut", "Europe/Berlin"])
def test_days_begin_where_the_clocks_of_the_zone_have_them(zone: str) -> None:
    """Midnight that the clocks skip, or show twice."""
    days = pd.date_range("2017-01-01", periods=700, freq="D", unit="us")
    panel = open_panel(pd.DataFrame({"ds": days, "y": np.arange(700.0)}), zone=zone)
    stamps = panel.series[0].stamps
    assert panel.frequency.alias == "D"
    assert len(stamps) == 700
    assert stamps.tz_localize(None).normalize().equals(days)
    assert panel.frequency.after(stamps[-1], 400).tz_localize(None).normalize()[-1] == pd.Timestamp("2020-01-05")
    again = open_panel(pd.DataFrame({"ds": stamps, "y": np.arange(700.0)}))
    assert again.series[0].stamps.equals(stamps)
