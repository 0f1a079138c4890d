"""Which rows train, validate and test, and the windows in them, against the loaders of the published protocols."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from recurra.core.errors import UserError
from recurra.core.testing import Golden, assert_close, golden, pairs
from recurra.forecast.data.calendar import Frequency
from recurra.forecast.data.scaler import Scaler
from recurra.forecast.data.splits import Part, Protocol, Split, column_order, split, tslib_protocol
from recurra.forecast.data.tables import open_panel

RULES = {"ett_h": "tslib-ett-hour", "ett_m": "tslib-ett-minute", "custom70": "tslib", "custom60": "tpgn"}
LOADERS = {"Dataset_ETT_hour": "tslib-ett-hour", "Dataset_ETT_minute": "tslib-ett-minute", "Dataset_Custom": "tslib"}
PARTS: tuple[Part, ...] = get_args(Part)
EXACT = 1e-12
"""The same double-precision operations, but for the order of a sum of 1e5 terms."""


@pytest.mark.parity
@pairs("forecast-long", "data_*")
def test_borders(path: Path) -> None:
    for row in json.loads(path.read_text(encoding="utf-8")).get("table", []):
        window, horizon = row["seq_len"], row["pred_len"]
        made = split(RULES[row["rule"]], row["rows"], window=window, horizon=horizon)
        for part, begin, end, count in zip(PARTS, row["border1"], row["border2"], row["n_windows"], strict=True):
            assert made.rows(part) == (begin, end), row
            assert made.windows(part, window, horizon) == count, row


def file_of(pair: Golden, folder: Path) -> Path:
    """The file that a pair was made from: generated where its notes give a formula, else where other people's lie."""
    name = pair.config["data_path"]
    if "synthetic" not in pair.notes:
        return pair.path.parents[2] / "data" / "forecast" / str(name)
    rows = np.arange(69680)
    columns = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    frame = pd.DataFrame({"date": pd.date_range("2016-07-01", periods=len(rows), freq="15min")})
    for at, column in enumerate(columns):
        frame[column] = np.sin(2 * np.pi * rows / 96 + at) + 1e-4 * rows * (at + 1) / 7
    frame.to_csv(folder / str(name), index=False)
    return folder / str(name)


@pytest.mark.parity
@pairs("forecast-long", "data_*")
def test_windows(path: Path, tmp_path: Path) -> None:
    pair = golden(path)
    if "splits" not in pair.description:
        pytest.skip("a table of borders")
    config = pair.config
    source = file_of(pair, tmp_path)
    if not source.is_file():
        pytest.skip(f"{source} is not here")
    panel = open_panel(source)
    protocol = "tpgn" if "TPGN" in pair.reference else LOADERS[pair.reference.split()[-1]]
    window, label, horizon = config["size"]
    stamps, values = panel.aligned()
    columns = [str(one.id) for one in panel.series]
    if protocol != "tpgn":
        assert tslib_protocol(columns, panel.frequency, len(stamps), str(source))[0] == protocol
    chosen = [config["target"]] if config["features"] == "S" else column_order(protocol, columns, config["target"])
    values = values[:, [columns.index(name) for name in chosen]]
    made = split(protocol, len(stamps), window=window, horizon=horizon)
    scaler = Scaler.fit("standard", values[slice(*made.train)])
    assert_close(scaler.shift, pair.outputs["scaler.mean"], rtol=EXACT, atol=EXACT, name="mean")
    assert_close(scaler.scale, pair.outputs["scaler.scale"], rtol=EXACT, name="scale")
    scaled, marks = scaler.apply(values), panel.frequency.exact_marks(stamps)
    for part in PARTS:
        begin, end = made.rows(part)
        assert end - begin == pair.description["splits"][part]["n_rows_in_split_slice"]
        count = made.windows(part, window, horizon)
        assert count == pair.description["splits"][part]["n_windows"]
        for which, first in (("first", begin), ("last", begin + count - 1)):
            origin = first + window
            for name, rows in (("x", slice(first, origin)), ("y", slice(origin - label, origin + horizon))):
                key = f"{part}.{which}.{name}"
                assert_close(scaled[rows], pair.outputs[key], rtol=EXACT, atol=EXACT * 10, name=key)
                assert_close(marks[rows], pair.outputs[f"{key}_mark"], atol=EXACT, name=f"{key}_mark")


@given(
    protocol=st.sampled_from(["last", "fractions", "tslib", "tpgn", "regenn", "resnls"]),
    length=st.integers(1, 3000),
    window=st.integers(1, 50),
    horizon=st.integers(1, 30),
    stride=st.integers(1, 30),
)
def test_no_target_is_in_two_parts(protocol: str, length: int, window: int, horizon: int, stride: int) -> None:
    """Strictly after the cutoff: the day of the cutoff was once in both."""
    try:
        made = split(protocol, length, window=window, horizon=horizon, stride=min(stride, horizon))
    except UserError:
        assume(False)
    targets = [set(range(made.rows(part)[0] + window, made.rows(part)[1])) for part in PARTS[1:]]
    train = set(range(made.train[1]))
    assert not train & targets[0]
    assert not train & targets[1]
    assert not targets[0] & targets[1]
    assert max(targets[1]) == length - 1
    assert not targets[0] or max(train) < min(targets[0]) < min(targets[1])
    assert made.windows("train", window, horizon) > 0
    assert made.windows("test", window, horizon) > 0


def test_last_horizons() -> None:
    made = split("last", 1000, window=50, horizon=24, origins=3)
    assert (made.train, made.val, made.test) == ((0, 856), (806, 928), (878, 1000))
    assert split("last", 1000, window=50, horizon=24).test == (1000 - 5 * 24 - 50, 1000)


def test_regenn_and_resnls() -> None:
    made = split("regenn", 120, window=7, horizon=14, stride=7)
    # time_test = T - w - h, time_dev = time_test - stride; training positions end where the development's window does.
    assert made == Split("regenn", (0, 99), (92, 106), (99, 120))
    resnls = split("resnls", 2673, window=5, horizon=1)
    assert resnls.train == (0, 2429)
    assert resnls.val == (2429, 2429)
    assert resnls.windows("test", 5, 1) == 244


@pytest.mark.parametrize(
    ("protocol", "length", "line"),
    [
        (
            "tlib",
            100,
            "protocol must be one of last, fractions, tslib, tslib-ett-hour, tslib-ett-minute, tpgn, regenn, resnls; "
            "got "
            "'tlib'",
        ),
        ("tslib-ett-hour", 14399, "protocol tslib-ett-hour: needs 14400 rows (20 months); got 14399"),
        (
            "tslib",
            100,
            "protocol tslib: train would have 70 of the 100 rows and needs 120 for a window of 96 and a horizon of 24; "
            "give longer series, or shorten either",
        ),
        (
            "last",
            130,
            "protocol last: train would have 82 of the 130 rows and needs 120 for a window of 96 and a horizon of 24; "
            "give longer series, or shorten either",
        ),
    ],
)
def test_what_is_refused(protocol: str, length: int, line: str) -> None:
    with pytest.raises(UserError) as error:
        split(protocol, length, window=96, horizon=24)
    assert str(error.value) == line


def test_fractions_must_sum_to_one() -> None:
    with pytest.raises(UserError, match="fractions must be three shares that sum to 1"):
        split("fractions", 100, window=2, horizon=1, fractions=(0.5, 0.1, 0.1))
    made = split("fractions", 100, window=2, horizon=1, fractions=(0.5, 0.25, 0.25))
    assert (made.train, made.val, made.test) == ((0, 50), (48, 75), (73, 100))


@pytest.mark.parametrize(
    ("columns", "alias", "length", "source", "protocol"),
    [
        ("HUFL HULL MUFL MULL LUFL LULL OT", "h", 17420, "a.csv", "tslib-ett-hour"),
        ("OT HUFL HULL MUFL MULL LUFL LULL", "15min", 69680, "a.csv", "tslib-ett-minute"),
        ("a b", "h", 17420, "x/ETTh2.csv", "tslib-ett-hour"),
        ("a b", "h", 17420, "x/ETTm2.csv", "tslib"),
        ("HUFL HULL MUFL MULL LUFL LULL OT", "h", 400, "ETTh1.csv", "tslib"),
        ("HUFL HULL MUFL MULL LUFL LULL OT", "D", 17420, "a.csv", "tslib"),
    ],
)
def test_ett_is_known_by_evidence(columns: str, alias: str, length: int, source: str, protocol: str) -> None:
    found, evidence = tslib_protocol(columns.split(), Frequency.of(alias), length, source)
    assert found == protocol
    assert evidence


def test_column_order() -> None:
    assert column_order("tslib", ["a", "OT", "b"]) == ["a", "b", "OT"]
    assert column_order("tpgn", ["a", "c", "b"], "a") == ["c", "b", "a"]
    assert column_order("tslib-ett-hour", ["a", "OT", "b"]) == ["a", "OT", "b"]
    with pytest.raises(UserError, match="target 'z' is no column; there are a, b"):
        column_order("tslib", ["a", "b"], "z")


def test_every_protocol_is_told_in_words() -> None:
    for protocol in get_args(Protocol):
        (fact,) = split(protocol, 60_000, window=5, horizon=2).facts()
        assert fact.what == "split"
        assert f"protocol {protocol}: " in fact.evidence
