"""Everything that is decided in silence is printed: facts about a table, and what will be done with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recurra.core.errors import FileError
from recurra.core.inspection import inspect_files
from recurra.forecast.data.sample import write_samples
from recurra.forecast.inspection import facts_of


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("samples")
    write_samples(out)
    return out


def facts(path: Path, **options: Any) -> dict[str, tuple[str, str]]:
    return {fact.what: (fact.value, fact.evidence) for fact in facts_of(path, **options)}


def test_facts_of_a_wide_table(samples: Path) -> None:
    found = facts(samples / "co2.csv", window=104, horizon=26, fill="linear")
    assert found == {
        "format": ("CSV, separated by comma", "2 fields in the header and in the lines after it"),
        "decimals": ("point", "no number has a comma"),
        "time": ("date", "the name"),
        "dates": ("%Y-%m-%d (2284 rows)", "their spelling"),
        "form": ("wide: a column a series", "no column of ids"),
        "values": ("1 columns: co2", "all that are left"),
        "zone": ("none", "the stamps have none; --zone NAME sets one"),
        "frequency": ("W-SAT", "one day of the week; step 1 weeks in all 2283 steps"),
        "gaps": ("none", "every step of W-SAT from first to last stamp has its row"),
        "missing values": ("59 of 2284, absent rows included", "co2 59: 59 filled (linear)"),
        "series": ("1: 'co2'", "ids are names of columns, and come back so"),
        "span": ("1958-03-29 00:00:00 to 2001-12-29 00:00:00, 2284 rows", "first and last stamp of all series"),
        "season": ("52 steps of W-SAT", "of the seasonal naive forecast and of scores"),
        "calendar features": ("day, week", "of steps of W-SAT"),
        "windows that fit": ("2155 in 1 of 1 series", "window 104 + horizon 26 = 130 rows"),
    }


def test_facts_of_a_long_table_with_covariates(samples: Path) -> None:
    options = {"past": ["visitors"], "future": ["price", "offer"], "static": ["region"]}
    found = facts(samples / "shops.csv", future_frame=samples / "shops_future.csv", **options)
    assert found["ids"] == ("column unique_id", "the name")
    assert found["values"] == ("y", "the name")
    assert found["past covariates"][0] == "visitors"
    assert found["future covariates"][0] == "price, offer (category)"
    assert found["static covariates"][0] == "region (category)"
    assert found["rows ahead"] == ("112", "all rows come after the values")
    assert found["common span"][1] == "all series have the same"


def test_short_series_are_counted(tmp_path: Path) -> None:
    rows = "".join(
        f"{one},2024-01-{day:02d},{day}\n" for one, last in (("a", 20), ("b", 5)) for day in range(1, last + 1)
    )
    path = tmp_path / "a.csv"
    path.write_text(f"unique_id,ds,y\n{rows}")
    found = facts(path, window=7, horizon=3)
    assert found["windows that fit"] == (
        "11 in 1 of 2 series",
        "window 7 + horizon 3 = 10 rows; 1 series are too short, first 'b' with 5: --skip-short",
    )
    assert found["common span"][1] == "'a' begins last and 'b' ends first; 1 series have more rows"


def test_what_was_found_before_an_error_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("date,y\n2024-01-01,1\n2024-01-02,2\n2024-01-02,3\n")
    good = tmp_path / "b.csv"
    good.write_text("date,y\n2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n")
    found = inspect_files([path, good], facts_of)
    assert [fact.what for fact in found.files[path]][:3] == ["format", "decimals", "time"]
    assert found.problems == {
        path: f"{path}: date 2024-01-02 00:00:00 occurs twice: line 3 (y 2.0) and line 4 (y 3.0); keep one"
    }
    assert len(found.files[good]) > 10


def test_no_table(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\x80\x04\x95abc")
    with pytest.raises(FileError, match="is a pickle, which may run code"):
        list(facts_of(path))


def test_constant_series_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    frame = pd.DataFrame({"date": pd.date_range("2024", periods=9), "a": np.arange(9), "b": 1})
    frame.to_csv(path, index=False)
    assert facts(path)["constant series"][0] == "1: 'b' (9 rows)"
