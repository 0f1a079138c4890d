"""The loop over files: order, errors, shares, processes, what is kept, Ctrl-C; and the digests of what was made."""

import functools
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from recurra.core.checkpoint import Pretrained
from recurra.core.errors import FileError, Interrupted, UserError, blaming
from recurra.core.files import find_inputs, guard_inputs
from recurra.core.inference import Origin, Result, Results, Runs, describe, each_file, load, share
from recurra.core.processes import outcomes


class Doubler(Pretrained):
    """Twice its input."""

    def __init__(self, *, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))


# Processes that are started anew import their work by its name.
WORK = """
import functools, os
import torch
from recurra.core.errors import blaming
from recurra.core.inference import Result

def double(out, path):
    if path.stem == "bug":
        raise KeyError("a mistake of the programmer")
    if path.stem == "dies":
        os._exit(3)
    with blaming(path):
        number = int(path.read_text())
    (out / path.name).write_text(f"{2 * number} in {os.getpid()}")
    return Result(path, [out / path.name], 1, "numbers")

def prepare(out):
    return functools.partial(double, out)

def threads():
    return lambda path: torch.get_num_threads()
"""


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The module of `WORK`."""
    place = tmp_path_factory.mktemp("work")
    (place / "work_over_files.py").write_text(WORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        yield importlib.import_module("work_over_files")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for number in range(5):
        (tmp_path / "in" / f"{number}.txt").write_text("x" if number == 2 else str(number))
    return tmp_path


@pytest.fixture
def run(folder: Path, work: ModuleType) -> Callable[..., Results]:
    def run(**options: Any) -> Results:
        prepare = functools.partial(work.prepare, folder / "out")
        return each_file(
            find_inputs(folder / "in", [".txt"]),
            prepare,
            folder / "out",
            Runs(quiet=True, **{name: value for name, value in options.items() if name != "kept"}),
            **({"kept": options["kept"]} if "kept" in options else {}),
        )

    return run


@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_file_is_reported_and_the_others_are_done(
    folder: Path, run: Callable[..., Results], workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(workers=workers)
    assert [result.file.stem for result in results] == list("01234")
    line = f"{folder}/in/2.txt: invalid literal for int() with base 10: 'x'"
    assert [result.error for result in results] == [None, None, line, None, None]
    written = [(folder / "out" / f"{number}.txt").read_text().split(" in ") for number in (0, 1, 3, 4)]
    assert [number for number, _ in written] == ["0", "2", "6", "8"]
    here = {int(process) == os.getpid() for _, process in written}
    assert here == {workers == 1}
    with pytest.raises(UserError, match="1 of 5 files failed") as caught:
        results.show()
    assert str(caught.value) == f"1 of 5 files failed: {line}"
    assert capsys.readouterr().out.splitlines()[0].startswith(f"{folder}/out/0.txt: 1 numbers, ")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_programmers_error_is_no_files(folder: Path, run: Callable[..., Results], workers: int) -> None:
    (folder / "in" / "bug.txt").write_text("1")
    with pytest.raises(KeyError, match="a mistake of the programmer"):
        run(workers=workers)


def test_a_process_that_dies_is_said_so(folder: Path, run: Callable[..., Results]) -> None:
    (folder / "in" / "dies.txt").write_text("1")
    with pytest.raises(UserError, match=r"a process died while .*\.txt and others were worked on, .* fewer --workers"):
        run(workers=2)


def test_shares_are_parts_of_the_whole() -> None:
    files = [Path(str(number)) for number in range(7)]
    parts = [share(files, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(one for part in parts for one in part) == list(enumerate(files))
    assert share(files, None) == list(enumerate(files))
    assert share(files[:1], "2/3") == []
    for wrong in ("0/2", "3/2", "1", "a/b", "1/0"):
        with pytest.raises(UserError, match=rf"shard must be I/N with I from 1 to N, such as 2/4; got '{wrong}'"):
            share(files, wrong)


def test_what_is_kept_is_not_done_again(folder: Path, run: Callable[..., Results]) -> None:
    def kept(path: Path) -> Result | None:
        return Result(path, [path]) if path.stem in "03" else None

    results = run(kept=kept, resume=True)
    assert [bool(result.seconds) for result in results] == [False, True, True, False, True]
    assert {path.stem for path in (folder / "out").iterdir()} == {"1", "4"}
    assert [result.file.stem for result in run(shard="2/2", kept=kept, resume=True)] == ["1", "3"]


def test_an_input_that_is_gone_does_not_stop_the_others(folder: Path, run: Callable[..., Results]) -> None:
    def kept(path: Path) -> Result | None:
        path.read_text()
        return None

    (folder / "in" / "gone.txt").symlink_to(folder / "nowhere")
    results = run(kept=kept, resume=True)
    assert [result.file.stem for result in results if result.error] == ["2", "gone"]


def test_a_programmers_value_error_is_no_line_of_a_user(folder: Path) -> None:
    def wrong(path: Path) -> Result:
        raise ValueError("too many values to unpack")

    files = find_inputs(folder / "in", [".txt"])
    with pytest.raises(RuntimeError, match=r"0\.txt: too many values to unpack"):
        each_file(files, lambda: wrong, folder / "out", Runs(quiet=True))


def test_ctrl_c_says_what_is_done(folder: Path, work: ModuleType) -> None:
    def stops(path: Path) -> Result:
        if path.stem == "3":
            raise KeyboardInterrupt
        result: Result = work.double(folder / "out", path)
        return result

    files = find_inputs(folder / "in", [".txt"])
    with pytest.raises(Interrupted) as caught:
        each_file(files, lambda: stops, folder / "out", Runs(quiet=True))
    line = f"interrupted in {folder}/in/3.txt; 2 of 5 files are done, in {folder}/out; give the others again"
    assert str(caught.value) == line


SLOW = """
import functools, sys, time
from pathlib import Path
from recurra.core.errors import Interrupted
from recurra.core.files import writing
from recurra.core.inference import Result, Runs, each_file

def slow(out, path):
    with writing(out / path.name) as part:
        part.write_text("half")
        time.sleep(0 if path.stem == "0" else 60)
    return Result(path, [out / path.name])

def prepare(out):
    return functools.partial(slow, out)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    files = sorted((folder / "in").iterdir())
    try:
        each_file(files, functools.partial(prepare, folder / "out"), folder / "out", Runs(2, quiet=True))
    except Interrupted as stop:
        print(stop)
"""


def test_ctrl_c_stops_every_process_and_leaves_nothing_half_written(folder: Path) -> None:
    script = folder / "slow.py"
    script.write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", script, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 100
    out = folder / "out"
    while len(list(out.glob("*.part"))) < 2 or not (out / "0.txt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    printed, errors = process.communicate(timeout=50)
    assert printed == f"interrupted in {folder}/in/1.txt; 1 of 5 files are done, in {out}; give the others again\n"
    assert errors == ""
    assert [path.name for path in out.iterdir()] == ["0.txt"]


def test_threads_of_a_process_are_those_of_one(tmp_path: Path, work: ModuleType) -> None:
    files = [tmp_path / name for name in "ab"]
    for path in files:
        path.touch()
    before = torch.get_num_threads()
    assert [outcome.value for outcome in outcomes(files, work.threads, workers=2, quiet=True)] == [before] * 2


# --- errors and files


def test_readers_may_fail_in_any_way() -> None:
    for error in (KeyError("x"), RecursionError("deep"), ValueError("two\nlines"), OSError("gone")):
        with pytest.raises(FileError, match=r"^a\.h5: ") as caught, blaming("a.h5"):
            raise error
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is error
    with pytest.raises(UserError, match=r"^other$"), blaming("a.h5"):
        raise UserError("other")
    with pytest.raises(TypeError), blaming("a.h5", ValueError):
        raise TypeError("a programmer's")


@pytest.mark.parametrize(
    ("path", "reason", "line"),
    [
        ("a", "absent", "a: absent"),
        ("a", "a: absent", "a: absent"),
        ("runs", "runs/config.json: no", "runs/config.json: no"),
        ("a.h5", "maps.h5: no\n dataset", "a.h5: maps.h5: no dataset"),
    ],
)
def test_a_file_is_named_once(path: str, reason: str, line: str) -> None:
    assert str(FileError(path, reason)) == line


def test_results_never_go_where_an_input_lies(tmp_path: Path) -> None:
    scan, link, hard = tmp_path / "scan.h5", tmp_path / "link.h5", tmp_path / "hard.h5"
    scan.write_text("raw")
    link.symlink_to(scan)
    hard.hardlink_to(scan)
    (tmp_path / "folder").symlink_to(tmp_path, target_is_directory=True)
    for output in (scan, link, hard, tmp_path / "folder" / "scan.h5", tmp_path):
        with pytest.raises(UserError, match="is an input, and results never go where an input lies"):
            guard_inputs([tmp_path / "new.h5", output], [scan])
    guard_inputs([tmp_path / "new.h5"], [scan])


# --- checkpoints and origins


def test_load_finds_models_folders_and_shipped_names(tmp_path: Path) -> None:
    model = Doubler(factor=3.0)
    model.save_pretrained(tmp_path / "run", metadata={"license": "mit"})
    assert load(Doubler, model, package="recurra.core") is model
    loaded = load(Doubler, tmp_path / "run", package="recurra.core")
    assert loaded.config == {"factor": 3.0}
    with pytest.raises(
        UserError, match=r"^rim-smal: no such checkpoint folder, .* shipped \(did you mean rim-small\?\)$"
    ):
        load(Doubler, "rim-smal", package="recurra.mri")
    facts = describe(loaded, input="numbers")
    assert facts == {
        "architecture": "Doubler",
        "parameters": "1",
        "factor": "3.0",
        "input": "numbers",
        "license": "mit",
    }


def test_an_origin_knows_its_input_and_its_options(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1")
    model = Doubler()
    origin = Origin.of(path, model, {"x": 1})
    assert len(str(origin)) <= 80
    assert Origin.read(str(origin)) == Origin.of(path, Doubler(), {"x": 1}) == origin
    assert Origin.read("somebody else's") is None
    assert Origin.of(path, model, {"x": 2}).options != origin.options
    assert Origin.of(path, Doubler(factor=2.5), {"x": 1}).options != origin.options
    with torch.no_grad():
        model.factor += 1e-6
    assert Origin.of(path, model, {"x": 1}).options != origin.options
    path.write_text("2")
    assert Origin.of(path, Doubler(), {"x": 1}).input != origin.input
