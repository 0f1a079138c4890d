"""Metrics against golden pairs made by Time-Series-Library's own functions."""

from pathlib import Path

import numpy as np
import pytest

from recurra.core.testing import assert_close, golden, pairs
from recurra.forecast.metrics import Scorer

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("batch", [1, 7, 10_000])
@pairs("forecast-long", "metrics_*", reference="utils/metrics.py")
def test_metrics(path: Path, batch: int) -> None:
    pair = golden(path)
    if not path.with_suffix(".safetensors").exists() or "pred" not in pair.inputs:
        pytest.skip("a pair of something else that the same library made")
    prediction, target = pair.inputs["pred"].numpy(), pair.inputs["true"].numpy()
    scorer = Scorer(horizon=prediction.shape[1], ids=prediction.shape[2])
    for start in range(0, len(prediction), batch):
        scorer.add(prediction[start : start + batch], target[start : start + batch])
    found = {name.upper(): np.array([value]) for name, value in scorer.scores().items()}
    found["CORR"] = scorer.by_step()["corr_legacy"]
    limit = pair.tolerance_for(pair.inputs["pred"].dtype)
    assert pair.outputs.keys() <= found.keys()
    for name, expected in pair.outputs.items():
        assert_close(found[name].reshape(expected.shape), expected, limit, name=name)
