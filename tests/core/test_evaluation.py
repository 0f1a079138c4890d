"""Scores of many files: the table and its files, shares and processes, what is kept, and what a file can do wrong."""

import csv
import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from recurra.core.errors import Interrupted, UserError
from recurra.core.evaluation import Method, Table, score_files
from recurra.core.inference import Runs
from recurra.core.scores import Run

# Processes that are started anew import their work by its name.
WORK = """
from recurra.core.errors import FileError
from recurra.core.scores import Scores

done = []

def score(path):
    done.append(path.stem)
    text = path.read_text()
    if text == "stop":
        raise KeyboardInterrupt
    if not text.isdigit():
        raise FileError(path, "holds no number")
    value = int(text)
    metrics = {name: {"error": value / factor, "gain": float(value)} for name, factor in (("rival", 2), ("ours", 3))}
    return Scores(metrics, {"rival": 0.5 * value, "ours": 0.25 * value}, value, picture=text)

def prepare():
    return score
"""


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The module of `WORK`."""
    place = tmp_path_factory.mktemp("work")
    (place / "scoring_of_files.py").write_text(WORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        yield importlib.import_module("scoring_of_files")


@pytest.fixture
def done(work: ModuleType) -> list[str]:
    """Names of the files that were scored in this process."""
    work.done.clear()
    names: list[str] = work.done
    return names


@pytest.fixture
def scored(work: ModuleType) -> Callable[..., Table]:
    def scored(files: list[Path], out: Path | None, *, options: str = "x", **more: Any) -> Table:
        runs = {name: more.pop(name) for name in ("workers", "shard", "resume", "overwrite") if name in more}
        run = Run(out, "numbers", "unit", options, **{"draw": draw, **more}, runs=Runs(quiet=True, **runs))
        return score_files(files, work.prepare, run)

    return scored


def draw(path: Path, picture: str) -> None:
    path.write_text(f"picture of {picture}")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = []
    for name, text in (("a", "bad"), ("b", "1"), ("c", "3"), ("d", "5")):
        found.append(tmp_path / f"{name}.txt")
        found[-1].write_text(text)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_table_and_its_files(
    scored: Callable[..., Table], files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    table = scored(files, out)
    assert table.title == "numbers: mean over 3 files"
    assert table.columns == ("method", "error", "gain", "seconds_a_unit")
    assert table.rows == [("rival", 1.5, 3.0, 0.5), ("ours", 1.0, 3.0, 0.25)]
    assert (table.files, table.failures) == (4, [f"{files[0]}: holds no number"])
    assert [path.name for path in table.outputs] == ["metrics.csv", "metrics.json", "comparison.png"]
    assert set(contents(out)) == {"metrics.csv", "metrics.json", "comparison.png"}
    assert (out / "comparison.png").read_text() == "picture of 1"
    with (out / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["file"], row["method"], float(row["error"])) for row in rows] == [
        (str(path), method, number / factor)
        for path, number in zip(files[1:], (1, 3, 5), strict=True)
        for method, factor in (("rival", 2), ("ours", 3))
    ]
    means = json.loads((out / "metrics.json").read_text())["mean"]
    assert means["ours"] == {"error": 1.0, "gain": 3.0, "seconds_a_unit": 0.25}
    with pytest.raises(UserError, match=r"1 of 4 files failed: .*a\.txt: holds no number"):
        table.show()
    assert "numbers: mean over 3 files" in capsys.readouterr().out


def test_processes_and_shares_give_what_one_run_gives(
    scored: Callable[..., Table], files: list[Path], tmp_path: Path
) -> None:
    scored(files, tmp_path / "one")
    whole = contents(tmp_path / "one")
    scored(files, tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == whole
    for shard in ("3/3", "1/3", "2/3"):  # in any order, into one folder
        assert not (tmp_path / "three" / "metrics.csv").exists()
        table = scored(files, tmp_path / "three", shard=shard)
    assert table.files == 4
    assert contents(tmp_path / "three") == whole


def test_an_interrupted_run_goes_on(
    scored: Callable[..., Table], done: list[str], files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    scored(files, tmp_path / "whole")
    files[3].write_text("stop")
    with pytest.raises(Interrupted, match="interrupted; 3 of 4 files are done, go on with --resume"):
        scored(files, out)
    assert not (out / "metrics.csv").exists()  # what is not complete does not look complete
    files[3].write_text("5")
    with pytest.raises(UserError, match="exists already and is not empty"):
        scored(files, out)
    done.clear()
    scored(files, out, resume=True)
    assert done == ["a", "d"]  # what failed is tried again
    assert contents(out) == contents(tmp_path / "whole")


def test_a_file_that_was_replaced_is_scored_again(
    scored: Callable[..., Table], done: list[str], files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    scored(files[1:], out)
    files[2].write_text("7")
    done.clear()
    table = scored(files[1:], out, resume=True)
    assert done == ["c"]
    assert table.rows[1][2] == pytest.approx((1 + 7 + 5) / 3)
    with pytest.raises(UserError, match=r"metrics\.json: was made by another checkpoint or with other options"):
        scored(files, out, options="y", resume=True)


def test_what_is_in_the_way_is_refused_before_anything_is_scored(
    scored: Callable[..., Table], done: list[str], files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    for options in ({}, {"shard": "1/2"}):
        with pytest.raises(UserError, match="exists already and is not empty"):
            scored(files, tmp_path / "out", **options)
    with pytest.raises(UserError, match="need --out"):
        scored(files, None, shard="1/2")
    with pytest.raises(UserError, match="shard must be I/N"):
        scored(files, tmp_path / "new", shard="2/1")
    assert done == []


def test_a_method_counts_its_own_time_and_moves_its_input() -> None:
    method = Method("double", lambda x, factor: factor * x, device="cpu")
    assert torch.equal(method(torch.ones(2), factor=2), 2 * torch.ones(2))
    assert not method(torch.ones(2, requires_grad=True), factor=1).requires_grad
    assert method.seconds > 0


def test_a_report_holds_pictures_of_the_first_files(
    scored: Callable[..., Table], files: list[Path], tmp_path: Path
) -> None:
    def draws(path: Path, picture: str) -> None:
        Figure(figsize=(1, 1)).savefig(path, format="png")

    out = tmp_path / "out"
    report = {"command": "recurra-x evaluate", "checkpoint": {}, "higher_is_better": {"gain": True}}
    table = scored(files, out, draw=draws, report=report)
    assert table.outputs[-1] == out / "report.html"
    page = re.sub("<(?!img)[^>]*>", "", table.outputs[-1].read_text())
    assert page.count("data:image/png;base64") == 3
    assert "recurra-x evaluate" in page
    assert "holds no number" in page


def test_nothing_of_an_earlier_run_stays_beside_a_new_one(
    scored: Callable[..., Table], files: list[Path], tmp_path: Path
) -> None:
    def draws(path: Path, picture: str) -> None:
        Figure(figsize=(1, 1)).savefig(path, format="png")

    out, report = tmp_path / "out", {"command": "recurra-x evaluate", "checkpoint": {}}
    scored(files, out, draw=draws, report=report)
    (out / "mine.txt").touch()
    scored(files[:2], out, draw=draws, overwrite=True)
    assert set(contents(out)) == {"metrics.csv", "metrics.json", "comparison.png", "mine.txt"}
    with pytest.raises(UserError, match="--overwrite would remove what other shares left in"):
        scored(files, out, shard="1/2", overwrite=True)


def test_only_its_own_is_removed_and_no_run_folder_is_touched(
    scored: Callable[..., Table], files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "pictures").mkdir(parents=True)
    (out / "pictures" / "holiday.jpg").write_text("mine")
    scored(files, out, overwrite=True)
    assert (out / "pictures" / "holiday.jpg").read_text() == "mine"
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "metrics.csv"):
        (run / name).write_text("of a training")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="is a checkpoint, whose metrics are those of its training"):
            scored(files, run, **options)
    assert (run / "metrics.csv").read_text() == "of a training"
    with pytest.raises(UserError, match="--resume keeps what is there and --overwrite replaces it"):
        scored(files, out, resume=True, overwrite=True)


def test_shares_of_different_files_are_not_mixed(
    scored: Callable[..., Table], files: list[Path], tmp_path: Path
) -> None:
    others = [path.with_name(f"other {path.name}") for path in files]
    for path in others:
        path.write_text("2")
    scored(files, tmp_path / "out", shard="1/2")
    with pytest.raises(UserError, match="its shares are of different files"):
        scored(others, tmp_path / "out", shard="2/2")
    assert not (tmp_path / "out" / "metrics.csv").exists()


def test_a_file_that_changes_while_it_is_scored_is_scored_again(
    scored: Callable[..., Table], work: ModuleType, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(path: Path) -> Any:
        scores = work.score(path)
        path.write_text("9")
        return scores

    with monkeypatch.context() as patch:
        patch.setattr(work, "prepare", lambda: changing)
        assert scored(files[1:2], tmp_path / "out").rows[1][2] == 1.0
    assert scored(files[1:2], tmp_path / "out", resume=True).rows[1][2] == 9.0


def test_a_page_names_what_failed_where_nothing_was_scored(
    scored: Callable[..., Table], files: list[Path], tmp_path: Path
) -> None:
    report = {"command": "recurra-x evaluate", "checkpoint": {}, "main": "gain"}
    table = scored(files[:1], tmp_path / "out", report=report)
    assert table.rows == []
    assert "holds no number" in (tmp_path / "out" / "report.html").read_text()
