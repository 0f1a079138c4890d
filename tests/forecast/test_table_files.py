"""CSV, Parquet and npz files of any form hold the same table, or are refused in one line."""

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
from table_checks import fact, long, refused, same

from recurra.core.errors import UserError
from recurra.forecast.data.tables import open_panel

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
            "line 1: no separator (comma, semicolon, tab, bar) in 'date a'; expected a column of time and one of "
            "values",
        ),
        ("date,a,a\n2024-01-01,1,2\n", "line 1: column 'a' occurs twice; rename one"),
        ("date,a,b\n2024-01-01,1,2\n2024-01-02,1\n", "line 3: has 2 fields and the header 3; mend the line"),
        ("date,a\n2024-01-01,1\n2024-01-02,1,5\n", "line 3: has 3 fields and the header 2; mend the line"),
        (
            "date;a\n2024-01-01;1,234\n2024-01-02;2,345\n",
            "1,234 may be a decimal comma or a separator of thousands; pass --decimal , or take the commas out",
        ),
        (
            "date;a\n2024-01-01;1.234\n2024-01-02;987\n",
            "1.234, beside 987, may have a decimal point or a separator of thousands; pass --decimal . or take the "
            "points "
            "out",
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
    with pytest.raises(FileNotFoundError):
        open_panel(tmp_path / "no.csv")
    refused(tmp_path, f"{tmp_path}: is a folder; expected a table: CSV, Parquet or npz")


def test_lines_are_counted_across_quotes(csv: Any) -> None:
    rows = '2024-01-01,"a\nb",1\n2024-01-02,"c ""d"", e",2\n2024-01-03,x,oops\n'
    path = csv(f"date,note,y\n{rows}")
    refused(
        path,
        f"{path}: line 5: column 'y' holds 'oops', which is no number; mend it or empty it; columns to leave out are "
        "left out "
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
    assert panel.variables == ("a", "b", "c")
    assert [one.id for one in panel.series] == ["NA", "US"]
    np.testing.assert_array_equal(panel.series[1].values, data[0])
    np.savez(path, data=data[0, :, 0])
    assert open_panel(path).frequency.alias == "1"
    np.savez(path, data=data, dates=dates[:3])
    refused(
        path,
        f"{path}: the axes of data (2, 4, 3) do not fit their names; the file holds data int64 (2, 4, 3), dates <U10 "
        "(3,)",
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


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_table_comes_back_from_any_csv(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    ids = data.draw(
        st.lists(
            st.text("ab0 é", min_size=1, max_size=4).map(lambda one: f"x{one}y"), min_size=1, max_size=3, unique=True
        )
    )
    freq = data.draw(st.sampled_from(["h", "D", "B", "W-SAT", "ME", "MS", "QS-OCT", "YS-JAN", "15min"]))
    zone = data.draw(st.sampled_from([None, "UTC"]))
    frame = long(tuple(ids), rows=20, freq=freq, start="2019-12-28")
    values = st.one_of(st.none(), st.floats(-1e9, 1e9), st.integers(-5, 5).map(float))
    frame["y"] = data.draw(st.lists(values, min_size=len(frame), max_size=len(frame)))
    frame["y"] = frame["y"].astype(float)
    frame["ds"] = frame["ds"].dt.tz_localize(zone)
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    separator, decimal = data.draw(st.sampled_from([(",", "."), (";", ","), ("\t", "."), ("|", ".")]))
    form = data.draw(st.sampled_from([None, "%Y/%m/%d %H:%M", "%d %b %Y %H:%M:%S", "%Y-%m-%dT%H:%M"]))
    order = data.draw(st.permutations(["unique_id", "ds", "y"]))
    mixed = frame[order].sample(frac=1, random_state=data.draw(st.integers(0, 9)))
    mixed.to_csv(
        path,
        index=False,
        sep=separator,
        decimal=decimal,
        date_format=None if zone else form,
        lineterminator=data.draw(st.sampled_from(["\n", "\r\n"])),
        encoding=data.draw(st.sampled_from(["utf-8", "utf-8-sig"])),
    )
    same(open_panel(frame), open_panel(path, decimal=decimal))
