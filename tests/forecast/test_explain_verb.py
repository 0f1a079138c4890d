"""The verb explain on checkpoints: weights where a model is linear, else a refusal that says what is missing."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from recurra.core.errors import UserError
from recurra.forecast import ARNet, explain


def test_weights_of_a_linear_arnet(tmp_path: Path) -> None:
    model = ARNet(window=3, horizon=2)
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.tensor([[3.0, 2.0, 1.0], [30.0, 20.0, 10.0]]))
    model.save_pretrained(tmp_path / "model")
    explain(tmp_path / "model", out=tmp_path / "out")
    table = pd.read_csv(next((tmp_path / "out").glob("*.csv")))
    assert table["lag"].tolist() == [1, 2, 3]
    assert table["weight"].tolist() == [1.0, 2.0, 3.0]  # of the first step, the last value first


def test_a_network_needs_a_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data"):
        explain(ARNet(window=3, hidden=(4,)), out=tmp_path / "out")
