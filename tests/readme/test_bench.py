"""The benchmarks: their variants agree, their goals name what is measured, their page is up to date."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("bench", ROOT / "tools" / "bench.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_variants_agree_at_small_sizes(bench: Any) -> None:
    compared = 0
    for name, case in bench.CASES.items():
        # What needs CUDA alone runs here too: on the CPU it is the same mathematics.
        if case.group != "core" or case.tolerance is None:
            continue
        runs = {variant: make() for variant, make in case.build(True, "cpu").items()}
        differences = bench.compare(case, runs)
        assert len(differences) == len(runs) - len(case.unlike), name
        assert all(difference <= case.tolerance for difference in differences.values()), (name, differences)
        compared += 1
    assert compared > 40


def test_every_goal_names_a_case_and_its_variants(bench: Any) -> None:
    # A misspelt name would be taken for something not measured.
    for goal in bench.goals.GOALS:
        for measure in goal.measures:
            case = bench.CASES[measure.case]
            assert goal.device in case.devices, measure
            assert {measure.ours, measure.rival} - {""} <= set(case.build(True, "cpu")), measure


def test_page_of_speed_is_that_of_the_measurements(bench: Any) -> None:
    assert bench.goals.page() == (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")


def test_misses_are_shown_as_misses(bench: Any, tmp_path: Path) -> None:
    table = tmp_path / "core.csv"
    row = "linear forward and backward, 16x1024x128"
    common = "AMD,AVX512,2.13"
    table.write_text(
        "case,variant,device,cpu_seconds,wall_seconds,processor,instructions,torch\n"
        f'"{row}",python loop,cpu,0.040,0.9,{common}\n"{row}",recurra,cpu,0.010,0.1,{common}\n'
        f'"import",recurra.kernels after torch,cpu,0.2,0.1,{common}\n'
    )
    page = bench.goals.page(table)
    assert "| linear scan, forward and backward | Python loop with `unbind` | 8x | 4x, **missed** |  |" in page
    assert "| import of `recurra.kernels` | 0.15 s beyond torch | 150 ms | 100 ms, met |  |" in page
    assert "| GRU inference, larger | torch.nn.GRU | 0.95x |  |  |" in page
