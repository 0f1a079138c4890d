"""The tables that the forecasting domain reads, with good files of them and the damage that each can have."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from mutants import Format

from recurra.forecast.inspection import facts_of

_STAMPS = pd.date_range("2024-01-12", periods=60, freq="h", unit="us")
_WIDE = pd.DataFrame({"date": _STAMPS, "a": np.arange(60) / 7, "b": np.arange(60) % 24, "c": 1.5})
_LONG = pd.DataFrame(
    {
        "unique_id": np.repeat(["007", "b"], 60),
        "ds": np.tile(_STAMPS.strftime("%d/%m/%Y %H:%M"), 2),
        "y": np.arange(120) * 0.25,
        "price": 3.0,
    }
)
_WORDS = (
    "nan",
    "inf",
    "1e999",
    '"',
    ",",
    "\n",
    ";",
    "\r",
    "\0",
    "-",
    "9" * 30,
    "1700",
    "9999",
    "1/2/3",
    "24:00",
    "+05:30",
)
_WORDS += ("ü", "\ufeff", "1_0", "0x10", "NA", "True", "2262-04-12", "0001-01-01", "1,5", " ", "Z", "12", "02/13")


def _use(path: Path) -> None:
    """All that a verb does with a table before it computes."""
    list(facts_of(path, window=12, horizon=4))
    list(facts_of(path, fill="linear", targets=("a",) if "wide" in path.name else None))


def _edited(before: str, after: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        path.write_text(path.read_text(encoding="utf-8").replace(before, after, 1), encoding="utf-8")

    return edit


def _npz(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, data=np.arange(48.0).reshape(2, 24), ids=np.array(["a", "b"]), ds=np.arange(24))


def _objects(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, data=np.array([{"a": 1}], object))


FORECAST = [
    Format(
        "wide.csv",
        lambda path: _WIDE.to_csv(path, index=False),
        _use,
        {
            "a stamp of another age": _edited("2024-01-13 03", "9024-01-02 03"),
            "a stamp before all": _edited("2024-01-12 00", "0001-01-01 00"),
            "seconds": _edited("2024-01-13 03:00:00", "2024-01-13 03:00:01"),
            "a quote": _edited("2024-01-12 05", '"2024-01-12 05'),
            "a column twice": _edited("date,a,b", "date,a,a"),
        },
        _WORDS,
    ),
    Format(
        "long.csv",
        lambda path: _LONG.to_csv(path, index=False),
        _use,
        {"a huge id": _edited("007", "7" * 100_000), "no id": _edited("007,", ",")},
        _WORDS,
    ),
    Format(
        "numbers.csv",
        lambda path: path.write_text("time,y\n" + "".join(f"{at},{at % 7}\n" for at in range(50))),
        _use,
        {"far away": _edited("\n49,", "\n900000000000000000,"), "further": _edited("\n49,", "\n99999999999999999999,")},
        _WORDS,
    ),
    Format("packed.csv.gz", lambda path: path.write_bytes(gzip.compress(_WIDE.to_csv(index=False).encode())), _use),
    Format("table.parquet", lambda path: _LONG.to_parquet(path, index=False), _use),
    Format("arrays.npz", _npz, _use, {"objects": _objects}),
]
