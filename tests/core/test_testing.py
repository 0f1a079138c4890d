import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recurra.core.testing import Golden, Tolerance, assert_close, golden, golden_files


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    path = tmp_path / "core" / "pair.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"reference": "a/b Cell", "config": "{}", "notes": "n", "tolerance": "atol 1e-3"}))
    save_file({"state.w": torch.ones(2), "input.x": torch.zeros(3)}, path.with_suffix(".safetensors"))
    return path


def test_golden_groups_tensors(pair: Path) -> None:
    read = golden(pair)
    assert read.name == "pair"
    assert read.config == {}
    assert read.state.keys() == {"w"}
    assert read.inputs["x"].shape == (3,)
    assert not read.outputs
    assert read.tolerance == Tolerance(1e-3, 0.0)


def test_golden_of_no_such_name_is_named() -> None:
    with pytest.raises(ValueError, match=r"nothing\.json: no such golden pair"):
        golden("core/nothing")


@pytest.mark.parametrize(
    ("stated", "double", "single"),
    [
        ("float64 outputs: match 1e-10 in float64, 2e-5 abs+rel in float32", (1e-10, 1e-10), (2e-5, 2e-5)),
        ({"atol": 1e-5, "rtol": 1e-4}, (1e-5, 1e-4), (1e-5, 1e-4)),
        ("1e-10 in float64; rtol 1e-4, atol 1e-6 in float32", (1e-10, 1e-10), (1e-6, 1e-4)),
        ("atol 1e-5 + rtol 1e-4 (float32, CPU)", (1e-5, 1e-4), (1e-5, 1e-4)),
        ("1e-6 relative", (0.0, 1e-6), (0.0, 1e-6)),
        ("max abs error <= 0.00017", (0.00017, 0.0), (0.00017, 0.0)),
    ],
)
def test_tolerance_is_read(stated: object, double: tuple[float, float], single: tuple[float, float]) -> None:
    read = Golden(Path("x.json"), {"tolerance": stated})
    assert read.tolerance_for(torch.float64) == read.tolerance_for(torch.complex128) == Tolerance(*double)
    assert read.tolerance_for(torch.float32) == Tolerance(*single)


@pytest.mark.parametrize("stated", [None, "close enough"])
def test_unreadable_tolerance_is_refused(stated: object) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        _ = Golden(Path("x.json"), {"tolerance": stated}).tolerance


def test_golden_files_by_name_or_reference(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recurra.core.testing._root", {"folder": pair.parent.parent, "own": True})
    assert golden_files("core", "other|pa*") == [pair]
    assert golden_files("core", "other", reference="a/b Cell") == [pair]
    with pytest.raises(ValueError, match="no golden pair matches 'other'"):
        golden_files("core", "other")


def test_foreign_golden_folder_may_lack_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recurra.core.testing._root", {"folder": tmp_path, "own": False})
    assert golden_files("core", "*") == []


def test_assert_close_reports_the_worst() -> None:
    expected = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    actual = expected.clone()
    actual[1, 0] += 0.5
    assert_close(actual, expected, atol=0.5)
    assert_close(actual, expected, Tolerance(0.0, 0.2), name="y")
    with pytest.raises(AssertionError, match=r"y: 1 of 4 values differ: max abs error 0.5, .*worst at \(1, 0\)"):
        assert_close(actual, expected, atol=0.4, name="y")


def test_assert_close_compares_shape_and_nan() -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_close(torch.ones(2), torch.ones(1), atol=9.0)
    with pytest.raises(AssertionError, match="differ"):
        assert_close(torch.tensor([torch.nan]), torch.ones(1), atol=9.0)
    with pytest.raises(AssertionError, match="differ"):
        assert_close(torch.ones(1), torch.tensor([torch.inf]), atol=9.0, rtol=1.0)
    assert_close(np.array([np.inf]), torch.tensor([torch.inf]))


def test_assert_close_takes_trailing_two() -> None:
    value = torch.randn(3, dtype=torch.complex64)
    assert_close(value, torch.view_as_real(value))


def test_poisoned_memory_reaches_torch_and_numpy(poisoned_memory: Any) -> None:
    before = np.empty
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.zeros(2, dtype=torch.complex64)).isnan().all()
        assert torch.zeros(3).new_empty(5).isnan().all()
        assert torch.empty(2, dtype=torch.int64).min() > 1 << 60
        assert np.isnan(np.empty(3, np.float32)).all()
        assert np.isnan(np.empty_like(np.zeros(3))).all()
    assert not torch.are_deterministic_algorithms_enabled()
    assert np.empty is before


def test_poison_fills_the_memory_of_the_process(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--poison"):
        pytest.skip("--poison is not given")
    for size in (1, 3, 40, 5000, 2_000_000):
        assert torch.empty(size).min() > 3e38
        assert torch.empty(size, dtype=torch.float64).min() > 1e306
        assert size < 1000 or np.empty(size).min() > 1e306


def test_shuffle_draws_the_same_order_for_the_same_seed(request: pytest.FixtureRequest) -> None:
    plugins = request.config.pluginmanager.get_plugins()
    conftest: Any = next(p for p in plugins if getattr(p, "begin_again", None))
    names = [f"test_{i}" for i in range(50)]

    def order(seed: int | None) -> list[str]:
        items = [mock.Mock(name=name, get_closest_marker=lambda mark: None) for name in names]
        numbered = {id(item): name for item, name in zip(items, names, strict=True)}
        conftest.pytest_collection_modifyitems(mock.Mock(getoption=lambda option: seed), items)
        return [numbered[id(item)] for item in items]

    assert order(None) == names
    assert order(1) == order(1)
    assert names != order(1) != order(2)
    assert sorted(order(1)) == sorted(names)
