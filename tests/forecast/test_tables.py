"""Tables in every form open as the same series, or are refused in one line that says what, where and what to do."""

import datetime as dt
import decimal
import fractions
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_checks import fact, long, refused, same

from recurra.core.errors import UserError
from recurra.forecast.data.tables import open_panel

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
    assert panel.wide
    assert panel.series[0].id == "beer"
    assert panel.names == ("unique_id", "Date")


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
    assert back.dtype == frame["unique_id"].dtype
    assert back.tolist() == frame["unique_id"].tolist()[:3]


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
    assert panel.id_column([0, 1]).tolist() == [0, 1]
    assert [one.id for one in panel.series] == [0, 1]


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
        "data frame: id 'b', ds 2024-01-01 10:00:00 occurs twice: row 0 (y 10.0) and row 12 (y 10.0), and 1 more; "
        "keep one",
    )


# --- columns ---------------------------------------------------------------------------------------------------------


def test_columns_by_what_they_hold(csv: Any) -> None:
    rows = "".join(f"{name},2024-01-0{day},{day}.5\n" for name in ("MSFT", "AMZN") for day in range(1, 6))
    panel = open_panel(csv(f"company,when,price\n{rows}"))
    assert [one.id for one in panel.series] == ["AMZN", "MSFT"]
    assert panel.names == ("company", "when")
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


def test_numbered_series_whose_column_is_not_known() -> None:
    refused(
        long((1, 2)).rename(columns={"unique_id": "shop"}),
        "data frame: ds 2024-01-01 00:00:00 occurs twice: row 0 (shop 1, y 0.0) and row 12 (shop 2, y 100.0), and 11 "
        "more; "
        "keep one; of several series? Then name the column of ids with --id",
    )


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
    assert not panel.wide
    assert [one.id for one in panel.series] == ["a"]
    numbered = long((3,)).rename(columns={"unique_id": "id"})
    assert [one.id for one in open_panel(numbered).series] == [3]


def test_dates_as_the_index() -> None:
    series = pd.Series(np.arange(5.0), pd.date_range("2024-01-31", periods=5, freq="ME"), name="sales")
    panel = open_panel(series)
    assert panel.series[0].id == "sales"
    assert panel.frequency.alias == "ME"
    assert panel.names == ("unique_id", "ds")


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
        "data frame: row 0: column 'y' holds '[1]', which is no number; mend it or empty it; columns to leave out "
        "are left "
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
    assert len(panel.series[0]) == 57
    assert panel.frequency.alias == "B"
    assert panel.series[0].stamps.equals(pd.DatetimeIndex(frame["ds"]))
    assert fact(panel, "gaps").evidence == "--fill observed: rows follow each other as they are"


def test_a_step_too_fine_for_the_rows() -> None:
    frame = pd.DataFrame({"ds": pd.to_datetime(["2024-01-01", "2024-06-01", "2024-12-01"]), "y": 1.0})
    refused(
        frame,
        "data frame: at a step of s the 3 rows would become 28944001, nearly all missing; name a longer step with "
        "--freq",
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
        "data frame: series 'short' has 3 rows; needed are 20 (window 16 + horizon 4); pass --skip-short to leave "
        "them out"
    )
    left = panel.require(20, what="window 16 + horizon 4", skip=True)
    assert [one.id for one in left.series] == ["a", "flat", "none"]
    assert fact(left, "left out").value == "1 series: 'short' (3)"
    assert [one.id for one in open_panel(frame, skip_short=4).series] == ["a", "flat", "none"]


def test_a_table_without_anything_to_learn() -> None:
    with pytest.raises(UserError) as error:
        open_panel(long().assign(y=[3.0] * 12 + [4.0] * 12)).check_varies()
    assert str(error.value) == (
        "data frame: every series is constant (the first is 4 in all rows): nothing can be learnt from them"
    )
    with pytest.raises(UserError, match="data frame: every value is missing; expected some to train on"):
        open_panel(long().assign(y=np.nan)).check_varies()
    open_panel(long()).check_varies()


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
        "data frame: series 'b' begins at 2025-01-01 00:00:00, after 'a' ends at 2024-01-01 09:00:00: no stamp is in "
        "all "
        "series; leave one out, or choose a model that takes each series by itself"
    )


def test_aligned_of_a_wide_table_is_the_table(csv: Any) -> None:
    path = csv("date,a,b\n2024-01-01,1,2\n2024-01-02,3,4\n2024-01-03,5,6\n")
    panel = open_panel(path)
    _, values = panel.aligned()
    assert np.shares_memory(values, panel.series[1].values)
    np.testing.assert_array_equal(values, [[1, 2], [3, 4], [5, 6]])
