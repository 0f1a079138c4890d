"""tools/gpu: one line without a GPU; with a pretended one its steps, none of which a failing or hanging item stops."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOY = """
import os, time, pytest
pytestmark = pytest.mark.gpu
def test_right(): pass
def test_wrong(): assert 1 + 1 == 3
def test_hangs(): time.sleep(1000)
def test_dies(): os._exit(11)
def test_skips(): pytest.skip("not here")
"""


def test_without_a_gpu_it_says_so_and_imports_nothing(tmp_path: Path) -> None:
    # No driver is found, and what is slow to import cannot be.
    for name in ("torch", "triton", "pytest"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = [str(ROOT / "tools" / "gpu"), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "gpu: no GPU here: the driver offers none\n"
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    done = subprocess.run([ROOT / "tools" / "gpu", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{tmp_path} is there and not an empty folder; give another one" in done.stderr


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it leaves of tests that pass, fail, hang and die, of three cases and of one that there is not."""
    folder = tmp_path_factory.mktemp("gpu")
    for name, text in {"toy": TOY, "absent": "import a_package_that_is_absent", "broken": "x = ("}.items():
        (folder / f"test_{name}.py").write_text(text)
    only = [*map(str, sorted(folder.glob("*.py"))), "no such case", "linear forward, 16x4096x1024", "gru gates"]
    options = ["--device", "cpu", "--patience", "10", "--seconds", "240", "--only", *only]
    command = [sys.executable, str(ROOT / "tools" / "gpu.py"), str(folder / "out"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 1, done.stderr
    assert (folder / "out" / "report.txt").read_text() in done.stdout
    return folder / "out"


def states(out: Path) -> dict[str, Any]:
    """(state, message) an item."""
    events = map(json.loads, (out / "events.jsonl").read_text().splitlines())
    found = {e["item"].rpartition("::")[2]: (e["state"], e["message"]) for e in events if e["state"] != "found"}
    return found


def test_each_test_has_its_own_outcome(out: Path) -> None:
    found = states(out)
    assert found["test_right"][0] == "passed"
    assert found["test_wrong"][0] == "failed"
    assert "assert (1 + 1) == 3" in found["test_wrong"][1]
    assert found["test_hangs"][0] == "failed"
    assert found["test_hangs"][1].startswith("took more than 10 s and was stopped")
    assert found["test_dies"][0] == "failed"
    assert found["test_dies"][1].startswith("ended the process with status 11")
    assert found["test_skips"][0] == "skipped"
    assert found["test_absent.py"] == ("skipped", "ModuleNotFoundError: No module named 'a_package_that_is_absent'")
    assert found["test_broken.py"][0] == "failed"
    assert "SyntaxError" in found["test_broken.py"][1]


def test_cases_are_measured_whatever_else_fails(out: Path) -> None:
    assert states(out)["no such case"][0] == "failed"
    for table, case in (("core", "linear forward, 16x4096x1024"), ("kernels", "gru gates")):
        with (
            (out / f"{table}.csv").open(newline="") as ours,
            (ROOT / f"docs/bench/{table}.csv").open(newline="") as all,
        ):
            rows, columns = list(csv.DictReader(ours)), csv.DictReader(all).fieldnames
        assert [*rows[0]] == columns
        assert {row["case"] for row in rows} == {case}
        assert all_numbers(rows)


def all_numbers(rows: list[dict[str, str]]) -> bool:
    return all(float(row["wall_seconds"]) > 0 and float(row["difference"]) <= 1e-3 for row in rows)


def test_what_is_slower_than_what_it_replaces_is_profiled(out: Path) -> None:
    # Three steps take longer by a scan than by a loop.
    assert "linear forward, 16x4096x1024: recurra: " in (out / "profile.txt").read_text()


def test_the_report_names_what_failed(out: Path) -> None:
    report = (out / "report.txt").read_text()
    assert report.startswith("NOT GREEN\n")
    for words in ("test_wrong: assert (1 + 1) == 3", "test_hangs: took more than", "== core.csv", "== profile"):
        assert words in report
    assert "skipped" in report
    assert "a_package_that_is_absent" in report


def test_its_tables_are_merged(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import bench

    monkeypatch.setattr(bench, "BENCH", tmp_path)
    monkeypatch.setattr(bench.goals, "write", lambda: None)
    bench.merge([out / "core.csv", out / "kernels.csv"])
    bench.merge([out / "core.csv"])
    for name in ("core.csv", "kernels.csv"):
        assert (tmp_path / name).read_text() == (out / name).read_text()
