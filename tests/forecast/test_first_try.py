"""What somebody meets who tries the forecasting domain for the first time, each on the smallest input that shows it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recurra.forecast import fit
from recurra.forecast.evaluation import _compared

SMALL = ("model.window=12", "model.horizon=3", "data.split=fractions", "train.epochs=1")


def hourly(rows: int = 120, seed: int = 0, name: object = "a") -> pd.DataFrame:
    """A day's wave with noise, of one id."""
    noise = np.random.default_rng(seed).normal(size=rows)
    values = 10 + 3 * np.sin(2 * np.pi * np.arange(rows) / 24) + noise
    stamps = pd.date_range("2024-01-01", periods=rows, freq="h")
    return pd.DataFrame({"unique_id": [name] * rows, "ds": stamps, "y": values})


def test_a_frame_takes_the_place_of_the_recipes_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hourly(name="other").to_csv("ETTh1.csv", index=False)  # a recipe's own file lies there too
    made = fit(hourly(name="mine"), "linear", SMALL)
    data: Any = made.metadata["data"]
    assert data["ids"] == ["mine"]


def test_the_better_by_absolute_error_is_named() -> None:
    # Smaller mean absolute error, larger mean of its square.
    ours, theirs = np.tile([0.0, 0.0, 0.0, 2.8], 12), np.full(48, 1.0) + np.tile([0.01, 0.0], 24)
    assert "ours has the smaller" in _compared("ours", "theirs", ours, theirs, 1)
