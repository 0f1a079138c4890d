"""Tables in every form open as the same series, or are refused in one line that says what, where and what to do."""

import datetime as dt
import decimal
import fractions
import gzip
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.core.errors import UserError
from recurra.forecast.data.panel import Panel
from recurra.forecast.data.tables import open_panel


def long(ids: tuple[Any, ...] = ("b", "a"), rows: int = 12, freq: str = "h", start: str = "2024-01-01") -> pd.DataFrame:
    stamps = pd.date_range(start, periods=rows, freq=freq, unit="us")
    frames = [
        pd.DataFrame({"unique_id": one, "ds": stamps, "y": np.arange(rows) + 100.0 * at}) for at, one in enumerate(ids)
    ]
    return pd.concat(frames, ignore_index=True)


def same(one: Panel, other: Panel, *, ids: bool = True) -> None:
    assert one.frequency == other.frequency and one.variables == other.variables
    assert not ids or [series.id for series in one.series] == [series.id for series in other.series]
    for a, b in zip(one.series, other.series, strict=True):
        pd.testing.assert_index_equal(a.stamps, b.stamps, check_names=False)
        np.testing.assert_array_equal(a.values, b.values)


def refused(source: Any, line: str, **options: Any) -> None:
    with pytest.raises(UserError) as error:
        open_panel(source, **options)
    assert str(error.value) == line


def fact(panel: Panel, what: str) -> Any:
    return next(one for one in panel.facts if one.what == what)


@pytest.fixture
def csv(tmp_path: Path) -> Any:
    def write(text: str | bytes, name: str = "a.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# --- time ------------------------------------------------------------------------------------------------------------


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
    assert str(after.tz) == str(other["ds"].dt.tz) and (after == one.frequency.after(one.series[0].stamps[-1], 2)).all()


def test_offsets_in_text(csv: Any) -> None:
    rows = "\n".join(f"2024-01-01T{hour:02d}:00:00+05:30,{hour}" for hour in range(6))
    panel = open_panel(csv(f"date,y\n{rows}\n"))
    assert str(panel.series[0].stamps.tz) == "UTC+05:30" and panel.series[0].stamps[3].hour == 3
    rows = "\n".join(f"2014-12-31T{hour:02d}:00:00Z,{hour}" for hour in range(18, 24))
    assert str(open_panel(csv(f"date,y\n{rows}\n")).series[0].stamps.tz) == "UTC"


@pytest.mark.parametrize("space", ["", " "])
def test_shifting_offsets_become_utc_with_a_note(csv: Any, space: str) -> None:
    stamps = pd.date_range("2024-03-30", periods=72, freq="h", tz="Europe/Berlin")
    text = [f"{one:%Y-%m-%d %H:%M:%S}{space}{one:%z}"[:-2] + ":" + f"{one:%z}"[3:] for one in stamps]
    path = csv("date,y\n" + "\n".join(f"{one},{at}" for at, one in enumerate(text)) + "\n")
    panel = open_panel(path)
    assert panel.frequency.alias == "h" and str(panel.series[0].stamps.tz) == "UTC"
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
        f"{path}: the steps of time fit no frequency: from 2024-03-30 23:00:00+00:00 to 2024-03-31 22:00:00+00:00, but step "
        "1 d in 28 of 29 steps (96.6 %); mend the rows, or name the frequency with --freq",
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
        f"data frame: ds 2024-04-07 02:00:00 occurs twice: row {rows[0]} (y {values[0]}) and row {rows[1]} (y {values[1]}); "
        "keep one; if the change of clocks repeats it, name the zone with --zone",
    )
    panel = open_panel(frame, zone="Australia/Melbourne")
    assert panel.series[0].stamps.equals(stamps.as_unit("us"))
    np.testing.assert_array_equal(panel.series[0].values[:, 0], np.arange(48.0))


def test_an_hour_shown_twice_needs_the_order_of_rows() -> None:
    stamps = pd.date_range("2024-04-06", periods=48, freq="h", tz="Australia/Melbourne")
    frame = pd.DataFrame({"ds": stamps.tz_localize(None), "y": np.arange(48.0)}).sample(frac=1, random_state=1)
    with pytest.raises(UserError, match="the rows are not in the order of time.*give stamps with their offset"):
        open_panel(frame, zone="Australia/Melbourne")
    once = pd.DataFrame({"ds": stamps.tz_localize(None), "y": np.arange(48.0)}).drop(index=26)
    with pytest.raises(UserError, match="2024-04-07 02:00:00 was twice in Australia/Melbourne, and one row has it"):
        open_panel(once, zone="Australia/Melbourne")


def test_an_hour_that_never_was() -> None:
    frame = pd.DataFrame({"ds": pd.date_range("2024-03-30 12:00", periods=24, freq="h"), "y": 1.0})
    refused(
        frame,
        "data frame: row 14: ds 2024-03-31 02:00:00 never was in Europe/Berlin: the clocks skip it; is it another zone?",
        zone="Europe/Berlin",
    )


def test_a_skipped_hour_of_clocks_without_a_zone_is_named() -> None:
    stamps = pd.date_range("2024-03-30", periods=48, freq="h", tz="Europe/Berlin")
    panel = open_panel(pd.DataFrame({"ds": stamps.tz_localize(None), "y": np.arange(48.0)}))
    assert len(panel.series[0]) == 49 and np.isnan(panel.series[0].values).sum() == 1
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
    assert panel.frequency.alias == "100ns" and panel.series[0].stamps.equals(stamps)
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
    assert panel.frequency.alias == "h" and len(panel.series[0]) == 4
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
    assert order.value == alias and order.evidence.startswith(f"line 14: '{last}' is no ")


def test_mixed_orders_are_refused(csv: Any) -> None:
    path = csv("date,y\n13/01/2003,1\n01/14/2003,1\n")
    refused(
        path,
        f"{path}: column 'date' mixes orders of day and month: line 3: '01/14/2003' is %m/%d/%Y, line 2: '13/01/2003' is "
        "%d/%m/%Y; mend the rows",
    )


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        ("", "line 3: column 'date' has no stamp; every row needs one"),
        (
            "soon",
            "line 3: column 'date' holds 'soon', which is no date that is known here; expected a date, or --date-format",
        ),
        (
            "2024-02-30",
            "line 3: column 'date' holds '2024-02-30', which is no date that is known here; expected a date, or --date-format",
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


def test_date_format_that_does_not_fit(csv: Any) -> None:
    path = csv("date,y\n2024-01-01,1\n01/02/2024,2\n")
    refused(
        path,
        f"{path}: line 3: column 'date' holds '01/02/2024', which has not the form %Y-%m-%d of --date-format; expected a "
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
    assert panel.frequency.alias == "h" and panel.series[0].stamps[0] == pd.Timestamp("2023-11-14 22:13:20")


def test_irregular_stamps_are_refused() -> None:
    frame = pd.DataFrame(
        {"unique_id": "a", "ds": pd.to_datetime(["2024-10-02", "2024-10-05", "2024-10-14", "2024-10-16"]), "y": 1.0}
    )
    refused(
        frame,
        "data frame: id 'a': the steps of time fit no frequency: from 2024-10-02 00:00:00 to 2024-10-05 00:00:00, but step "
        "2 d in 1 of 3 steps (33.3 %); mend the rows, or name the frequency with --freq",
    )
    assert open_panel(frame.assign(ds=range(4))).frequency.alias == "1"
    assert len(open_panel(frame, freq="D").series[0]) == 15


def test_stamps_off_a_given_frequency_are_refused() -> None:
    frame = long(freq="MS", ids=("a",), rows=5)
    refused(
        frame,
        "data frame: row 0: id 'a', ds 2024-01-01 00:00:00 lies on no step of ME from 2024-01-01 00:00:00; the stamps fit "
        "MS (first days; step 1 months in all 4 steps)",
        freq="M",
    )
    refused(frame, "data frame: --freq 1 does not fit: column 'ds' holds dates", freq=1)
    refused(frame.assign(ds=range(5)), "data frame: --freq D does not fit: column 'ds' holds whole numbers", freq="D")
    refused(frame, "freq: no frequency is called 'hh' (did you mean h?); --freq takes pandas' names", freq="hh")
    days = long(freq="D", ids=("a",), rows=9)
    refused(
        days,
        "data frame: row 5: id 'a', ds 2024-01-06 00:00:00 lies on no step of B from 2024-01-01 00:00:00; the stamps fit D "
        "(one time of day; step 1 d in all 8 steps)",
        freq="B",
    )


def test_series_of_different_times_of_day() -> None:
    one, other = long(("a",), freq="D"), long(("b",), freq="D", start="2024-01-01 06:00")
    panel = open_panel(pd.concat([one, other]))
    assert panel.frequency.alias == "D" and panel.series[1].stamps[0].hour == 6
    with pytest.raises(UserError, match="no model can take them side by side"):
        panel.aligned()


def test_year_and_quarter(csv: Any) -> None:
    rows = "".join(f"{year}.0,{quarter}.0,{year + quarter}\n" for year in (1959, 1960) for quarter in (1, 2, 3, 4))
    panel = open_panel(csv(f"year,quarter,gdp\n{rows}"))
    assert panel.frequency.alias == "QS-OCT" and panel.series[0].stamps[-1] == pd.Timestamp("1960-10-01")
    assert fact(panel, "time").value == "ds, out of year and quarter"


# --- order, identity -------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), freq=st.sampled_from(["h", "ME", "B", "W-SAT"]))
def test_the_order_of_rows_changes_nothing(seed: int, freq: str) -> None:
    frame = long(ids=("b", "a", "c"), freq=freq).drop(index=[4, 17])
    shuffled = frame.sample(frac=1, random_state=seed)
    one, other = open_panel(frame), open_panel(shuffled)
    same(one, other)
    assert [other.series[at].id for at in other.order] == list(shuffled["unique_id"].unique())
    assert [one.series[at].id for at in one.order] == ["b", "a", "c"]


def test_hours_in_the_order_of_text(csv: Any) -> None:
    """A file of market prices whose hours go 0:00, 10:00, 11:00, ..., 1:00."""
    stamps = [f"{day}/15 {hour}:00" for day in ("1/1", "1/13") for hour in range(24)]
    stamps = [f"1/{day}/15 {hour}:00" for day in range(10, 15) for hour in range(24)]
    rows = {one: at for at, one in enumerate(stamps)}
    straight = open_panel(csv("ds,y\n" + "".join(f"{one},{at}\n" for one, at in rows.items())))
    mixed = open_panel(csv("ds,y\n" + "".join(f"{one},{rows[one]}\n" for one in sorted(rows)), "b.csv"))
    same(straight, mixed)
    assert straight.frequency.alias == "h"


def test_descending_rows() -> None:
    same(open_panel(long()), open_panel(long().iloc[::-1]))


@pytest.mark.parametrize("order", [["unique_id", "y", "ds"], ["y", "ds", "unique_id"], ["ds", "unique_id", "y"]])
def test_columns_go_by_name(order: list[str]) -> None:
    same(open_panel(long()), open_panel(long()[order]))


def test_date_as_the_last_column(csv: Any) -> None:
    path = csv(
        "beer,Date\n" + "".join(f"{at},{one:%Y-%m-%d}\n" for at, one in enumerate(pd.date_range("2020", periods=5)))
    )
    panel = open_panel(path)
    assert panel.wide and panel.series[0].id == "beer" and panel.names == ("unique_id", "Date")


@pytest.mark.parametrize(
    "ids",
    [
        (7, 3),
        (np.int32(7), np.int32(3)),
        ("007", "03"),
        (b"x", b"a"),
        (2.5, 1.5),
        (True, False),
        ((1, "a"), (0, "b")),
        (dt.date(2020, 1, 2), dt.date(2020, 1, 1)),
    ],
)
def test_ids_come_back_as_they_were(ids: tuple[Any, Any]) -> None:
    frame = long(("p", "q"))
    frame["unique_id"] = pd.Series([ids[0]] * 12 + [ids[1]] * 12, dtype=getattr(ids[0], "dtype", None))
    panel = open_panel(frame)
    back = panel.id_column(list(panel.order))
    assert back.dtype == frame["unique_id"].dtype
    assert back.tolist() == list(ids)


@pytest.mark.parametrize("dtype", ["category", "string", "str", "Int64", "int8", "uint64", "object"])
def test_dtypes_of_ids_come_back(dtype: str) -> None:
    frame = long((2, 1))
    frame["unique_id"] = (
        frame["unique_id"].astype(str).astype(dtype) if dtype[0] in "cso" else frame["unique_id"].astype(dtype)
    )
    panel = open_panel(frame)
    back = panel.id_column(np.array([panel.order[0]] * 3))
    assert back.dtype == frame["unique_id"].dtype and back.tolist() == frame["unique_id"].tolist()[:3]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("007", "008"), ["007", "008"]),
        (("7", "10"), [7, 10]),
        (("NA", "US"), ["NA", "US"]),
        (("1.0", "2.0"), ["1.0", "2.0"]),
        (("12345678901234567890", "1"), ["1", "12345678901234567890"]),
        (("nan", "null"), ["nan", "null"]),
        (("7", "007"), ["007", "7"]),
    ],
)
def test_ids_of_a_csv(csv: Any, cells: tuple[str, str], expected: list[Any]) -> None:
    rows = "".join(f"{one},2024-01-0{day},{day}\n" for one in cells for day in range(1, 5))
    panel = open_panel(csv(f"unique_id,ds,y\n{rows}"))
    assert [one.id for one in panel.series] == expected


def test_names_of_wide_columns_come_back() -> None:
    stamps = pd.date_range("2024", periods=4)
    frame = pd.DataFrame({0: np.arange(4.0), 1: np.arange(4.0), "ds": stamps})
    panel = open_panel(frame)
    assert panel.id_column([0, 1]).tolist() == [0, 1] and [one.id for one in panel.series] == [0, 1]


def test_a_missing_id(csv: Any) -> None:
    path = csv("unique_id,ds,y\na,2024-01-01,1\n,2024-01-02,2\n")
    refused(path, f"{path}: line 3: column 'unique_id' has no id; every row needs one")


def test_duplicates_are_refused() -> None:
    """Two rows of one stamp, also where they are the same."""
    frame = long()
    twice = pd.concat([frame, frame.iloc[[15]].assign(y=-1.0)], ignore_index=True)
    refused(
        twice,
        "data frame: id 'a', ds 2024-01-01 03:00:00 occurs twice: row 15 (y 103.0) and row 24 (y -1.0); keep one",
    )
    same_row = pd.concat([frame.iloc[10:12], frame], ignore_index=True)
    refused(
        same_row,
        "data frame: id 'b', ds 2024-01-01 10:00:00 occurs twice: row 0 (y 10.0) and row 12 (y 10.0), and 1 more; keep one",
    )


# --- columns ---------------------------------------------------------------------------------------------------------


def test_columns_by_what_they_hold(csv: Any) -> None:
    rows = "".join(f"{name},2024-01-0{day},{day}.5\n" for name in ("MSFT", "AMZN") for day in range(1, 6))
    panel = open_panel(csv(f"company,when,price\n{rows}"))
    assert [one.id for one in panel.series] == ["AMZN", "MSFT"] and panel.names == ("company", "when")
    assert panel.variables == ("price",)
    assert fact(panel, "ids").evidence == "stamps occur more than once, and it is the only column of text"


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("date,time,y", "several columns may be the time: date, time; name it with --time"),
        ("a,b,c", None),
    ],
)
def test_ambiguous_time(csv: Any, header: str, line: str | None) -> None:
    path = csv(f"{header}\n2024-01-01,2024-01-01,1\n2024-01-02,2024-01-02,2\n")
    refused(path, f"{path}: {line or 'several columns may be the time: a, b; name it with --time'}")


def test_ambiguous_ids_and_values(csv: Any) -> None:
    rows = "".join(f"{one},{other},2024-01-0{day},1,2\n" for one in "ab" for other in "cd" for day in range(1, 4))
    path = csv(f"store,product,date,sold,left\n{rows}")
    refused(path, f"{path}: several columns may hold the ids: store, product; name it with --id")
    path = csv(f"symbol,sensor,date,sold,left\n{rows}")
    refused(path, f"{path}: several columns may hold the ids: symbol, sensor; name it with --id")
    rows = "".join(f"{one},2024-01-0{day},1,2\n" for one in "ab" for day in range(1, 4))
    path = csv(f"symbol,date,sold,left\n{rows}")
    refused(path, f"{path}: several columns may hold the values: sold, left; name them with --targets")
    assert open_panel(path, targets=["sold", "left"]).variables == ("sold", "left")


def test_missing_columns(csv: Any) -> None:
    path = csv("a,b\n1,2\n3,4\n")
    refused(path, f"{path}: no column of time among a, b; name it with --time")
    refused(long(), "data frame: no column 'yy' (--targets) (did you mean y?)", targets=["yy"])
    refused(long(), "data frame: no column 'dss' (--time) (did you mean ds?)", time="dss")
    refused(long(), "data frame: no column 'id' (--id) (known: ds, unique_id, y)", id="id")
    refused(long(), "data frame: no column 'p' (covariate) (known: ds, unique_id, y)", past=["p"])
    refused(long()[["unique_id", "ds"]], "data frame: no column of values beside those of time, ids and covariates")


@pytest.mark.parametrize("name", ["id", "", "Unnamed: 0"])
def test_numbers_of_rows_are_no_series(csv: Any, name: str) -> None:
    path = csv(f"{name},date,a\n" + "".join(f"{at},2024-01-0{at + 1},{at}\n" for at in range(5)))
    panel = open_panel(path)
    assert [one.id for one in panel.series] == ["a"]


def test_one_series_with_an_id() -> None:
    panel = open_panel(long(("a",)))
    assert not panel.wide and [one.id for one in panel.series] == ["a"]
    numbered = long((3,)).rename(columns={"unique_id": "id"})
    assert [one.id for one in open_panel(numbered).series] == [3]


def test_dates_as_the_index() -> None:
    series = pd.Series(np.arange(5.0), pd.date_range("2024-01-31", periods=5, freq="ME"), name="sales")
    panel = open_panel(series)
    assert panel.series[0].id == "sales" and panel.frequency.alias == "ME" and panel.names == ("unique_id", "ds")


def test_other_libraries_frames() -> None:
    arrow = pytest.importorskip("pyarrow")
    same(open_panel(long()), open_panel(arrow.Table.from_pandas(long())))
    same(open_panel(long()), open_panel(long().to_dict("list")))
    refused(3, "expected a path or a data frame; got int")


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert",
    [
        lambda y: y.astype(np.float32),
        lambda y: y.astype(np.float16),
        lambda y: y.astype(int),
        lambda y: y.astype(np.uint8),
        lambda y: y.astype("Int64"),
        lambda y: y.astype("Float64"),
        lambda y: y.astype(object),
        lambda y: y.astype("category"),
        lambda y: y.astype(str),
        lambda y: y.astype(str).astype("category"),
        lambda y: y.map(decimal.Decimal),
        lambda y: y.map(fractions.Fraction),
        lambda y: y.astype("int32[pyarrow]"),
        lambda y: y.map(np.float32).astype(object),
        lambda y: y.astype("Sparse[float]"),
    ],
)
def test_types_of_values_are_alike(convert: Any) -> None:
    pytest.importorskip("pyarrow")
    frame = long()
    same(open_panel(frame), open_panel(frame.assign(y=convert(frame["y"]))))


@pytest.mark.parametrize(
    "convert", [lambda y: y, lambda y: y.astype("boolean"), lambda y: y.astype(object), lambda y: y.astype(str)]
)
def test_truth_is_0_and_1(convert: Any) -> None:
    truth = pd.Series([True, False] * 12)
    panel = open_panel(long().assign(y=convert(truth)))
    np.testing.assert_array_equal(panel.series[0].values[:2, 0], [1, 0])


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
@pytest.mark.parametrize("dtype", [object, "Int64", "Float64", float, "string"])
def test_missing_values_of_any_kind(missing: Any, dtype: Any) -> None:
    values = pd.Series([1, missing, 3, 4], dtype=object)
    if dtype is not object:
        values = pd.Series([1, None, 3, 4], dtype="Int64").astype(dtype)
    frame = pd.DataFrame({"ds": pd.date_range("2024", periods=4), "y": values})
    panel = open_panel(frame)
    np.testing.assert_array_equal(panel.series[0].values[:, 0], [1, np.nan, 3, 4])
    assert fact(panel, "missing values").value == "1 of 4, absent rows included"


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("x", "holds 'x', which is no number; mend it or empty it; columns to leave out are left out by --targets"),
        (
            "1_000",
            "holds '1_000', which is no number; mend it or empty it; columns to leave out are left out by --targets",
        ),
        (
            "12:30",
            "holds '12:30', which is no number; mend it or empty it; columns to leave out are left out by --targets",
        ),
        (
            "0x1F",
            "holds '0x1F', which is no number; mend it or empty it; columns to leave out are left out by --targets",
        ),
        ('"1,234"', "holds '1,234', which is no number; separators of thousands are not read, take them out"),
        ('"1,234.5"', "holds '1,234.5', which is no number; separators of thousands are not read, take them out"),
        ('"1,5"', "holds '1,5', which is no number; a decimal comma? Pass --decimal ,"),
        ("1 234", "holds '1 234', which is no number; separators of thousands are not read, take them out"),
    ],
)
@pytest.mark.parametrize("row", [3, 700])
def test_cells_that_are_no_numbers(csv: Any, cell: str, said: str, row: int) -> None:
    """Named by their line in the file, however far down."""
    rows = [f"{stamp},1.5,2" for stamp in pd.date_range("2024", periods=800)]
    rows[row] = f"{rows[row].split(',')[0]},2,{cell}"
    path = csv("date,a,b\n\n" + "\n".join(rows) + "\n")
    refused(path, f"{path}: line {row + 3}: column 'b' {said}")
    assert len(open_panel(path, targets=["a"]).series) == 1


@pytest.mark.parametrize("cell", ["inf", "-inf", "Infinity", "1e999"])
def test_infinity_is_named(csv: Any, cell: str) -> None:
    path = csv(f"date,y\n2024-01-01,1\n2024-01-02,{cell}\n2024-01-03,1\n")
    refused(path, f"{path}: line 3: column 'y' is infinite; a number or an empty cell is expected")
    frame = long().assign(y=np.where(np.arange(24) == 5, np.inf, 1.0))
    refused(frame, "data frame: row 5: column 'y' is infinite; a number or an empty cell is expected")


def test_values_that_are_no_numbers() -> None:
    frame = long()
    refused(frame.assign(y=1j), "data frame: column 'y' holds complex128; expected real numbers")
    refused(frame.assign(y=frame["ds"]), "data frame: column 'y' holds datetime64[us]; expected real numbers")
    objects = frame.assign(y=[[1]] + [1] * 23)
    refused(
        objects,
        "data frame: row 0: column 'y' holds '[1]', which is no number; mend it or empty it; columns to leave out are left "
        "out by --targets",
    )


def test_a_number_is_the_nearest_double(csv: Any) -> None:
    values = np.random.default_rng(0).normal(size=500) * 10.0 ** np.arange(-25, 25).repeat(10)
    stamps = pd.date_range("2024", periods=500).strftime("%Y-%m-%d")
    path = csv("date,y\n" + "".join(f"{a},{b!r}\n" for a, b in zip(stamps, values.tolist(), strict=True)))
    np.testing.assert_array_equal(open_panel(path).series[0].values[:, 0], values)


# --- gaps and filling ------------------------------------------------------------------------------------------------


def gapped() -> pd.DataFrame:
    frame = long(("a", "b"), rows=40, freq="D")
    return frame.drop(index=[3, 4, 20, 79 - 9])


def test_gaps_are_named_and_left_missing() -> None:
    panel = open_panel(gapped())
    said = fact(panel, "gaps")
    assert said.value == "4 absent rows in 3 gaps"
    assert said.evidence == (
        "id 'a', 2 after 2024-01-03 00:00:00; id 'a', 1 after 2024-01-20 00:00:00; id 'b', 1 after 2024-01-30 00:00:00"
    )
    assert [int(np.isnan(one.values).sum()) for one in panel.series] == [3, 1]
    assert [len(one) for one in panel.series] == [40, 40]
    assert fact(panel, "missing values").evidence == "y 4: left missing"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("linear", [2, 3, 4, 5]),
        ("zero", [2, 0, 0, 5]),
        ("previous", [2, 2, 2, 5]),
        ("calendar", [2, np.nan, np.nan, 5]),
        ("none", [2, np.nan, np.nan, 5]),
    ],
)
def test_policies_of_filling(policy: str, expected: list[float]) -> None:
    panel = open_panel(gapped(), fill=policy)
    np.testing.assert_array_equal(panel.series[0].values[2:6, 0], expected)
    if policy == "calendar":
        assert panel.series[0].values[20, 0] == 13
        assert fact(panel, "missing values").evidence == "y 4: 2 filled (calendar), 2 left"


def test_a_policy_a_column(csv: Any) -> None:
    path = csv("date,HUFL,OT,x\n2024-01-01,1,1,1\n2024-01-02,,,\n2024-01-03,3,3,3\n2024-01-04,,4,4\n")
    panel = open_panel(path, fill="HUFL=linear,OT=zero")
    np.testing.assert_array_equal(panel.aligned()[1].T, [[1, 2, 3, np.nan], [1, 0, 3, 4], [1, np.nan, 3, 4]])
    same(panel, open_panel(path, fill={"HUFL": "linear", "OT": "zero"}))
    refused(path, "fill must be one of none, linear, zero, calendar, previous, observed; got 'cubic'", fill="cubic")
    refused(path, f"{path}: fill: 'HUF' is no column that is filled (did you mean HUFL?)", fill="HUF=zero")


def test_nothing_is_filled_from_after_an_origin() -> None:
    panel = open_panel(gapped(), fill="linear")
    one = panel.series[0]
    np.testing.assert_array_equal(one.seen(2, 4)[:, 0], [2, np.nan])
    np.testing.assert_array_equal(one.seen(2, 5)[:, 0], [2, np.nan, np.nan])
    np.testing.assert_array_equal(one.seen(2, 6)[:, 0], [2, 3, 4, 5])
    for policy in ("zero", "previous", "calendar"):
        other = gapped()
        other.loc[other["ds"] > "2024-01-20", "y"] += 1000
        a, b = open_panel(gapped(), fill=policy).series[0], open_panel(other, fill=policy).series[0]
        np.testing.assert_array_equal(a.seen(0, 21), b.seen(0, 21))
    linear = open_panel(other, fill="linear").series[0]
    for origin in range(1, 21):
        np.testing.assert_array_equal(one.seen(0, origin), linear.seen(0, origin))


def test_observed_rows_follow_each_other() -> None:
    """A trading calendar: days without trade are no steps."""
    frame = long(("a",), freq="B", rows=60).drop(index=[7, 8, 30])
    panel = open_panel(frame, fill="observed")
    assert len(panel.series[0]) == 57 and panel.frequency.alias == "B"
    assert panel.series[0].stamps.equals(pd.DatetimeIndex(frame["ds"]))
    assert fact(panel, "gaps").evidence == "--fill observed: rows follow each other as they are"


def test_a_step_too_fine_for_the_rows() -> None:
    frame = pd.DataFrame({"ds": pd.to_datetime(["2024-01-01", "2024-06-01", "2024-12-01"]), "y": 1.0})
    refused(
        frame,
        "data frame: at a step of s the 3 rows would become 28944001, nearly all missing; name a longer step with --freq",
        freq="s",
    )


def test_constant_empty_and_short_series_are_named() -> None:
    frame = pd.concat(
        [
            long(("a",), rows=50),
            long(("flat",), rows=50).assign(y=3.0),
            long(("none",), rows=50).assign(y=np.nan),
            long(("short",), rows=3),
        ]
    )
    panel = open_panel(frame)
    assert fact(panel, "constant series").value == "1: 'flat' (50 rows)"
    assert fact(panel, "series without a value").value == "1: 'none' (50 rows)"
    assert fact(panel, "short series").value == "1: 'short' (3 rows)"
    with pytest.raises(UserError) as error:
        panel.require(20, what="window 16 + horizon 4")
    assert str(error.value) == (
        "data frame: series 'short' has 3 rows; needed are 20 (window 16 + horizon 4); pass --skip-short to leave them out"
    )
    left = panel.require(20, what="window 16 + horizon 4", skip=True)
    assert [one.id for one in left.series] == ["a", "flat", "none"]
    assert fact(left, "left out").value == "1 series: 'short' (3)"
    assert [one.id for one in open_panel(frame, skip_short=4).series] == ["a", "flat", "none"]


# --- side by side ----------------------------------------------------------------------------------------------------


def test_aligned_takes_the_common_span() -> None:
    frame = pd.concat([long(("a",), rows=10), long(("b",), rows=10, start="2024-01-01 04:00")])
    panel = open_panel(frame)
    stamps, values = panel.aligned()
    assert list(stamps) == list(pd.date_range("2024-01-01 04:00", periods=6, freq="h"))
    np.testing.assert_array_equal(values, [[4, 0], [5, 1], [6, 2], [7, 3], [8, 4], [9, 5]])
    assert panel.common_span()[2].evidence == "'b' begins last and 'a' ends first; 2 series have more rows"
    apart = pd.concat([long(("a",), rows=10), long(("b",), rows=10, start="2025-01-01")])
    with pytest.raises(UserError) as error:
        open_panel(apart).aligned()
    assert str(error.value) == (
        "data frame: series 'b' begins at 2025-01-01 00:00:00, after 'a' ends at 2024-01-01 09:00:00: no stamp is in all "
        "series; leave one out, or choose a model that takes each series by itself"
    )


def test_aligned_of_a_wide_table_is_the_table(csv: Any) -> None:
    path = csv("date,a,b\n2024-01-01,1,2\n2024-01-02,3,4\n2024-01-03,5,6\n")
    panel = open_panel(path)
    _, values = panel.aligned()
    assert np.shares_memory(values, panel.series[1].values)
    np.testing.assert_array_equal(values, [[1, 2], [3, 4], [5, 6]])


# --- files -----------------------------------------------------------------------------------------------------------

WIDE = "date,a,b\n2024-01-01,1.5,2\n2024-01-02,2.5,3\n2024-01-03,3.5,4\n"


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + WIDE,
        WIDE.replace(",", ";"),
        WIDE.replace(",", "\t"),
        WIDE.replace(",", "|"),
        WIDE.replace(",", ";").replace(".", ","),
        WIDE.replace("\n", "\r\n"),
        WIDE.replace("2024-01-01", '"2024-01-01"').replace("1.5", '"1.5"'),
        WIDE.replace("\n", "\n\n"),
        WIDE.strip(),
        WIDE.replace("\n", ",\n"),
        WIDE.replace("1.5", " 1.50 ").replace("3\n", "3e0\n"),
    ],
)
def test_forms_of_a_csv(csv: Any, text: str) -> None:
    same(open_panel(csv(WIDE)), open_panel(csv(text, "b.csv")))


def test_packed_csv_whatever_it_is_called(csv: Any) -> None:
    same(open_panel(csv(WIDE)), open_panel(csv(gzip.compress(WIDE.encode()), "b.csv.gz")))
    same(open_panel(csv(WIDE)), open_panel(csv(gzip.compress(WIDE.encode()), "b.txt")))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; expected a table with a header line"),
        (" \n\n", "is empty; expected a table with a header line"),
        ("date,a\n", "has a header line and no rows"),
        ("2024-01-01,1\n2024-01-02,2\n", "line 1: holds values (2024-01-01, 1); expected the names of the columns"),
        (
            "date a\n2024-01-01 1\n",
            "line 1: no separator (comma, semicolon, tab, bar) in 'date a'; expected a column of time and one of values",
        ),
        ("date,a,a\n2024-01-01,1,2\n", "line 1: column 'a' occurs twice; rename one"),
        ("date,a,b\n2024-01-01,1,2\n2024-01-02,1\n", "line 3: has 2 fields and the header 3; mend the line"),
        ("date,a\n2024-01-01,1\n2024-01-02,1,5\n", "line 3: has 3 fields and the header 2; mend the line"),
        (
            "date;a\n2024-01-01;1,234\n2024-01-02;2,345\n",
            "1,234 may be a decimal comma or a separator of thousands; pass --decimal , or take the commas out",
        ),
        (
            "date;a\n2024-01-01;1,2\n2024-01-02;2.345\n",
            "numbers with a point (2.345) and with a comma (1,2); pass --decimal , or --decimal .",
        ),
        (WIDE.encode("utf-16"), "is text in UTF-16; expected a table as CSV in UTF-8, Parquet or npz"),
        (
            "date,größe\n2024-01-01,1\n".encode("latin-1"),
            "line 1: byte 0xf6 is no UTF-8; save the table in this encoding",
        ),
        (b"date,a\n2024-01-01,1\n2024-01-02,\x00\n", "line 3: holds a zero byte; the file is damaged, or no text"),
        (b"\x89HDF\r\n\x1a\n....", "is an HDF5 file; expected a table as CSV in UTF-8, Parquet or npz"),
        (
            pickle.dumps(pd.DataFrame({"a": [1]})),
            "is a pickle, which may run code when it is opened; save the table as CSV or Parquet",
        ),
        (
            pickle.dumps(pd.DataFrame({"a": [1]}), protocol=0),
            "is a pickle, which may run code when it is opened; save the table as CSV or Parquet",
        ),
    ],
)
def test_files_that_are_no_tables(csv: Any, text: str | bytes, said: str) -> None:
    for name in ("a.csv", "a.parquet", "a.npz"):
        path = csv(text, name)
        refused(path, f"{path}: {said}")


def test_a_byte_far_down_that_is_no_text(csv: Any) -> None:
    rows = "".join(f"{stamp},1,a\n" for stamp in pd.date_range("1990", periods=9000))
    path = csv(f"date,y,note\n{rows}".encode() + b"2030-01-01,1,\xe9\n")
    refused(path, f"{path}: line 9002: byte 0xe9 is no UTF-8; save the table in this encoding", targets=["y"])


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        open_panel(tmp_path / "no.csv")
    refused(tmp_path, f"{tmp_path}: is a folder; expected a table: CSV, Parquet or npz")


def test_lines_are_counted_across_quotes(csv: Any) -> None:
    rows = '2024-01-01,"a\nb",1\n2024-01-02,"c ""d"", e",2\n2024-01-03,x,oops\n'
    path = csv(f"date,note,y\n{rows}")
    refused(
        path,
        f"{path}: line 5: column 'y' holds 'oops', which is no number; mend it or empty it; columns to leave out are left out "
        "by --targets",
        targets=["y"],
    )


def test_decimal_is_told(csv: Any) -> None:
    path = csv("date;a\n2024-01-01;1,234\n2024-01-02;2,345\n")
    np.testing.assert_array_equal(open_panel(path, decimal=",").series[0].values[:, 0], [1.234, 2.345])
    assert fact(open_panel(csv("date;a\n2024-01-01;1,5\n2024-01-02;2,5\n")), "decimals").value == "comma"


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    frame = long()
    frame["ds"] = frame["ds"].dt.tz_localize("Asia/Kolkata")
    frame["unique_id"] = frame["unique_id"].astype("category")
    path = tmp_path / "a.parquet"
    frame.to_parquet(path)
    panel = open_panel(path)
    same(open_panel(frame), panel)
    assert panel.id_column([0]).dtype == "category"
    wide = pd.DataFrame({"v": np.arange(5.0)}, index=pd.date_range("2024", periods=5))
    wide.to_parquet(path)
    assert open_panel(path).series[0].id == "v"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=f"^{path}: "):
        open_panel(path)
    frame.to_parquet(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(path, "reading Parquet needs the package pyarrow; install it with: pip install 'recurra-forecast[parquet]'")


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    data = np.arange(24).reshape(2, 4, 3)
    dates = np.array(["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"])
    np.savez(path, data=data, countries=np.array(["US", "NA"]), dates=dates, variables=np.array(["a", "b", "c"]))
    panel = open_panel(path)
    assert panel.variables == ("a", "b", "c") and [one.id for one in panel.series] == ["NA", "US"]
    np.testing.assert_array_equal(panel.series[1].values, data[0])
    np.savez(path, data=data[0, :, 0])
    assert open_panel(path).frequency.alias == "1"
    np.savez(path, data=data, dates=dates[:3])
    refused(
        path,
        f"{path}: the axes of data (2, 4, 3) do not fit their names; the file holds data int64 (2, 4, 3), dates <U10 (3,)",
    )
    np.savez(path, data=np.array([{}], object))
    with pytest.raises(UserError, match=f"^{path}: Object arrays cannot be loaded"):
        open_panel(path)


def test_a_large_file_takes_little_more_than_its_size(tmp_path: Path) -> None:
    import tracemalloc

    rows = 100_000
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(rows, 8)).round(4), columns=list("abcdefgh"))
    frame.insert(0, "date", pd.date_range("2024", periods=rows, freq="min"))
    path = tmp_path / "a.csv"
    frame.to_csv(path, index=False)
    tracemalloc.start()
    panel = open_panel(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert panel.frequency.alias == "min"
    assert peak < 4 * path.stat().st_size
