"""Heat maps of graphs."""

from pathlib import Path

import pytest
import torch

from recurra.forecast.graph_figures import graphs_png


def test_every_graph_is_drawn(tmp_path: Path) -> None:
    few = graphs_png(tmp_path / "few.png", {"source adjacency": torch.rand(3, 3)}, ("a", "b", "c"), title="Graph")
    many = graphs_png(tmp_path / "many.png", {f"graph {i}": torch.rand(40, 40) * 1e6 for i in range(6)})
    zeros = graphs_png(tmp_path / "zeros.png", {"source evolution": torch.zeros(2, 2)})
    assert few.read_bytes()[:4] == zeros.read_bytes()[:4] == b"\x89PNG"
    assert len(many.read_bytes()) > 3 * len(few.read_bytes())


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="graphs is empty"):
        graphs_png(tmp_path / "x.png", {})
    with pytest.raises(ValueError, match=r"source hidden has shape \(2, 3\); expected \(variable, variable\)"):
        graphs_png(tmp_path / "x.png", {"source hidden": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="3 names for 2 variables of target hidden"):
        graphs_png(tmp_path / "x.png", {"target hidden": torch.zeros(2, 2)}, ("a", "b", "c"))
    assert not list(tmp_path.iterdir())
