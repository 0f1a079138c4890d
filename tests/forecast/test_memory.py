"""Long tables are trained on, forecast and backtested within a few times their size: windows are views, rows stream."""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recurra.forecast.backtesting import Backtesting, run_backtest

Maker = Callable[..., Any]

LONG = """
import json, resource, sys
import numpy as np, pandas as pd
import lightning, torch
from recurra.forecast import verbs
import recurra.forecast.training
from recurra.forecast.forecasting import Forecasting, forecast_table

torch.set_num_threads(1)
rows, columns = 300_000, 8
values = np.random.default_rng(0).standard_normal((rows, columns)).cumsum(0)
frame = pd.DataFrame(values, columns=[f"c{at}" for at in range(columns)])
frame.insert(0, "date", pd.date_range("2000-01-01", periods=rows, freq="h"))
verbs.fit(frame.head(1000), sys.argv[1])  # what is imported and compiled on the way
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = verbs.fit(frame, sys.argv[1])
made = forecast_table(Forecasting(model, levels=(80.0,)), frame).frame
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
finite = bool(np.isfinite(made.select_dtypes("number").to_numpy()).all())
print(json.dumps({"grown": (after - before) / 1024, "rows": len(made), "finite": finite}))
"""


@pytest.mark.parametrize("kind", ["linear", "arnet"])
def test_a_long_table_takes_a_few_times_its_size(kind: str, recipe: Maker) -> None:
    """Values of 18 MiB; all windows of 96 + 24 steps would be 1100 MiB in float32.

    Kept at once: the panel's values (18), those that are trained and validated on, on the model's scale in float32
    (9 each), and in passing a copy in float64 of what is being scaled or solved for (18 to 36); batches are small.
    """
    sizes = {"model": {"window": 96, "horizon": 24}, "data": {"stride": 400, "calibration": 50}}
    path = recipe(kind, **sizes, train={"epochs": 1, "batch_size": 256})
    result = subprocess.run([sys.executable, "-c", LONG, path], check=True, capture_output=True, text=True, timeout=500)
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["rows"], found["finite"]) == (8 * 24, True)
    assert found["grown"] < 8 * 18


def test_a_backtest_streams_its_rows(long_frame: Maker, learned: Maker, tmp_path: Path) -> None:
    frame = long_frame(1500, tuple("abcd"), freq="h")
    model = learned(frame, "linear", model={"horizon": 24}, data={"fractions": [0.2, 0.1, 0.7]})
    peaks = []
    for origins in (520, 1000):  # 2080 and 4000 windows; a picture keeps those of the first 2000
        tracemalloc.start()
        how = Backtesting(model, origins=origins, baselines=("last_value",), batch_size=64, quiet=True)
        run_backtest(how, frame, tmp_path / str(origins), overwrite=False)
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    written = pd.read_csv(tmp_path / "1000" / "backtest.csv")
    assert len(written) == 1000 * 4 * 24
    assert written["cutoff"].nunique() == 1000
    assert np.isfinite(written["LinearMap"]).all()
    # The rows that are more are 4 MiB of text, and in memory several times that.
    assert peaks[1] - peaks[0] < 2
