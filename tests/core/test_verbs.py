import errno
import io
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import torch
import typer
from typer.testing import CliRunner

from recurra import core
from recurra.core.device import choose_device
from recurra.core.errors import Interrupted, UserError, one_line
from recurra.core.files import only_one, open_output, writing
from recurra.core.screen import print_table, progress
from recurra.core.verbs import (
    BatchSize,
    Device,
    Option,
    Out,
    Overwrite,
    Precision,
    Quiet,
    run,
    spelled,
    verb,
)
from recurra.core.verbs import app as make_app


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


ERRORS = {
    "user": UserError("knee.h5: wrong; do this"),
    "library": ValueError("two\nlines"),
    "file": FileNotFoundError(errno.ENOENT, "No such file or directory", "x.h5"),
    "os": OSError("unreadable"),
    "interrupt": KeyboardInterrupt(),
    "saved": Interrupted("interrupted; saved in runs/a, go on with --resume"),
    "memory": OutOfMemoryError("CUDA out of memory"),
    "bug": KeyError("x"),
}


@dataclass(frozen=True)
class Drawn:
    """A mask.

    Attributes:
        mask: its kind.
        factor: how sparse it is.
        seed: of the draw.
    """

    mask: str
    factor: Annotated[float, Option(min=1)] = 4.0
    seed: int | None = None


def fail(kind: str) -> None:
    """Fail somehow."""
    raise ERRORS[kind]


@verb
def work(
    out: Out,
    *,
    names: Annotated[Sequence[str], Option(flags=("--name", "--names"), listed=True)] = ("a", "b"),
    drawn: Drawn | None = None,
    preview: bool = True,
    device: Device = "auto",
    batch_size: BatchSize = 1,
    precision: Precision = "32",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> str:
    """Work.

    Args:
        names: of things,
            on two lines.
        preview: look before.

    Raises:
        ValueError: never.
    """
    return f"{out} {device} {batch_size} {precision} {overwrite} {quiet} {names} {drawn} {preview}"


@pytest.fixture
def app() -> typer.Typer:
    return make_app("recurra.core", "Toy.", [fail, work])


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("user", "knee.h5: wrong; do this"),
        ("library", "two lines"),
        ("file", "x.h5: No such file or directory"),
        ("os", "unreadable"),
        ("interrupt", "interrupted"),
        ("saved", "interrupted; saved in runs/a, go on with --resume"),
        ("memory", "not enough memory on the GPU; try a smaller --batch-size, --precision bf16 or --device cpu"),
    ],
)
def test_user_error_is_one_line_and_status_1(app: typer.Typer, kind: str, line: str) -> None:
    result = CliRunner().invoke(app, ["fail", kind])
    assert result.exit_code == 1
    assert result.stderr == line + "\n"
    assert result.stdout == ""


def test_debug_shows_the_traceback(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["fail", "user", "--debug"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("knee.h5: wrong; do this\n")
    assert "Traceback" not in CliRunner().invoke(app, ["fail", "user"]).stderr


def test_a_bug_is_not_dressed_up(app: typer.Typer) -> None:
    assert isinstance(CliRunner().invoke(app, ["fail", "bug"]).exception, KeyError)


@pytest.mark.parametrize("words", ["work", "nothing", "work -o x --precision 8", "work --bad"])
def test_usage_error_is_status_2(app: typer.Typer, words: str) -> None:
    assert CliRunner().invoke(app, words.split()).exit_code == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--mask x --factor inf", "--factor must be a finite number; got inf"),
        ("--mask x --seed 99999999999999999999", "--seed must be at most 4294967295; got 99999999999999999999"),
        ("--batch-size 100000000000000000000", "--batch-size must be at most 65536; got 100000000000000000000"),
        ("--mask=", "--mask is empty; expected a value"),
    ],
)
def test_numbers_that_nothing_can_use_are_one_line(app: typer.Typer, words: str, line: str) -> None:
    result = CliRunner().invoke(app, ["work", "-o", "r", *words.split()])
    assert (result.exit_code, result.stderr, result.stdout) == (1, f"{line}\n", "")


def test_an_empty_path_is_not_this_folder(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["work", "-o", ""])
    assert (result.exit_code, result.stderr) == (1, "-o is empty; expected a value\n")


def test_common_options(app: typer.Typer) -> None:
    options = ["--device", "cuda:1", "--batch-size", "4", "--precision", "bf16", "--overwrite", "-q"]
    result = CliRunner().invoke(app, ["work", "-o", "r", *options])
    assert result.stdout == "r cuda:1 4 bf16 True True ('a', 'b') None True\n"


def test_options_read_from_the_signature(app: typer.Typer) -> None:
    def given(words: str) -> str:
        return CliRunner().invoke(app, ["work", "-o", "r", *words.split()]).stdout.partition("False False ")[2].strip()

    assert given("--name c,d --no-preview") == "('c', 'd') None False"
    assert given("--names none") == "() None True"
    assert given("--mask x") == "('a', 'b') Drawn(mask='x', factor=4.0, seed=None) True"
    assert given("--mask x --factor 2 --seed 3").endswith("Drawn(mask='x', factor=2.0, seed=3) True")
    refused = CliRunner().invoke(app, ["work", "-o", "r", "--factor", "2"])
    assert (refused.exit_code, refused.stderr) == (
        1,
        "--factor says how --mask is drawn; give --mask too, or neither\n",
    )
    assert CliRunner().invoke(app, ["work", "-o", "r", "--mask", "x", "--factor", "0.5"]).exit_code == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--seed 1e26", "--seed must be a valid integer; got 1e26"),
        ("--seed=-1e300", "--seed must be a valid integer; got -1e300"),
        ("--factor nan", "--factor must be greater than or equal to 1; got nan"),
    ],
)
def test_texts_of_such_numbers_are_one_line(app: typer.Typer, words: str, line: str) -> None:
    refused = CliRunner().invoke(app, ["work", "-o", "r", "--mask", "x", *words.split()])
    assert (refused.exit_code, refused.stderr) == (1, f"{line}\n")


def test_every_option_is_explained(app: typer.Typer) -> None:
    shown = " ".join(CliRunner().invoke(app, ["work", "--help"]).stdout.split())
    for words in ("Of things, on two lines.", "Look before.", "Its kind.", "How sparse it is. [default: 4.0]"):
        assert words in shown
    assert "Raises" not in shown
    # Python's help has them too: what several verbs share stands in the types of parameters.
    assert work.__doc__ is not None
    assert "    precision: number format of the network.\n" in work.__doc__
    assert "    drawn: see `Drawn`.\n" in work.__doc__
    assert work.__doc__.endswith("\nRaises:\n    ValueError: never.")


def test_a_call_is_spelled_as_a_command() -> None:
    given = {"out": Path("my out"), "names": ("a", "b"), "drawn": Drawn("x", 2.0), "preview": False, "device": "auto"}
    given |= {"batch_size": 2, "precision": "32", "overwrite": True, "quiet": True}
    line = "recurra-core work --out 'my out' --mask x --factor 2.0 --no-preview --batch-size 2"
    assert spelled("recurra.core", work, given) == line


def test_version_and_help(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("recurra-core 0.")
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "Fail somehow." in result.stdout


def test_run_exits_with_the_status(app: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        run(app, ["fail", "user", "--debug"])
    assert capsys.readouterr().err.endswith("knee.h5: wrong; do this\n")


def test_import_is_fast_and_without_torch() -> None:
    code = (
        "import sys, recurra.core.verbs, recurra.core; print(sorted({'torch', 'lightning', 'numpy'} & {*sys.modules}))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1  # 0.2 s; time on the processor


def test_open_output_refuses_what_is_there(tmp_path: Path) -> None:
    assert open_output(tmp_path / "new") == tmp_path / "new"
    assert open_output(tmp_path) == tmp_path
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"exists already and is not empty; pass --overwrite to replace it, or choose"):
        open_output(tmp_path)
    with pytest.raises(UserError, match=r"file: exists already; .* or pass --resume"):
        open_output(tmp_path / "file", instead="pass --resume")
    assert open_output(tmp_path, overwrite=True) == tmp_path


def test_writing_renames_on_success(tmp_path: Path) -> None:
    target = tmp_path / "a" / "recon.h5"
    with writing(target) as part:
        assert part.parent == target.parent
        assert re.fullmatch(rf"recon\.h5\.[0-9a-f]{{8}}-{os.getpid()}-[0-9a-f]{{6}}\.part", part.name)
        part.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["recon.h5"]


def write_half(target: Path, error: BaseException) -> None:
    with writing(target) as part:
        part.write_text("half")
        raise error


def test_writing_removes_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "recon.h5"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half(target, KeyboardInterrupt())
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["recon.h5"]


def test_writing_replaces_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with writing(tmp_path / "out") as part:
        part.mkdir()
        (part / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_writing_refuses_a_folder_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").touch()
    with pytest.raises(UserError, match=r"out: is a folder; expected"), writing(tmp_path / "out") as part:
        part.touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/thesis"]


def test_two_processes_with_one_output_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with writing(target) as first, first.open("w") as stream:
        stream.write("first ")
        child = os.fork()
        if child == 0:
            with writing(target) as second:
                second.write_text("half of the sec")
                os._exit(1)  # killed
        os.waitpid(child, 0)
        stream.write("and whole")
        assert len(list(tmp_path.glob("result.*.part"))) == 2
    assert target.read_text() == "first and whole"
    with writing(target) as third:
        third.write_text("third")
    assert [path.name for path in tmp_path.iterdir()] == ["result"], "what the killed process left is removed"


def test_the_parts_of_living_processes_and_of_other_files_stay(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as first:
        first.touch()
        for other in ("a.b.part", "a.00000000-1-aaaaaa.part", "ab.part"):
            (tmp_path / other).touch()
        with writing(tmp_path / "a") as second:
            second.touch()
            assert len(list(tmp_path.iterdir())) == 5


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match="another process writes into it")
    with only_one(tmp_path, wait=False), refused, only_one(tmp_path, wait=False):
        pass
    with only_one(tmp_path, wait=True):
        pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("Can't write data (error message = 'No space left on device')"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_one_line(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OSError, match="no space left") as caught:
        write_half(tmp_path / "r" / "x.h5", error)
    line = one_line(caught.value)
    assert line.startswith(f"{tmp_path}/r/x.h5: no space left on disk /")
    assert line.endswith("MiB free)")
    assert not list((tmp_path / "r").iterdir())


def test_choose_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="--device cuda:1: no GPU found; use --device cpu"):
        choose_device("cuda:1")
    with pytest.raises(UserError, match="device must be auto, cpu, cuda or cuda:INDEX; got 'gpu'"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="--device cuda:2: no such GPU; this machine has cuda:0 to cuda:1"):
        choose_device("cuda:2")


def test_progress_off_a_terminal_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3, "reconstruct", unit="slices") as advance:
        advance()
        advance(2, note="loss 0.1")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("reconstruct: 3 slices in ")
    assert captured.err.endswith("slices/s), loss 0.1\n")
    assert captured.err.count("\n") == 1


def test_progress_may_be_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(None, "x", quiet=True) as advance:
        advance()
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_shows_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with progress(3, "train", unit="steps") as advance:
        advance(3, note="loss 0.5")
    assert "3/3" in screen.getvalue()
    assert "steps/s loss 0.5" in screen.getvalue()


def test_print_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["metric", "value"], [["psnr", 31.234567], ["[b]ssim", 0.9]], title="run")
    printed = capsys.readouterr().out
    assert "31.235" in printed
    assert "[b]ssim" in printed
    assert "0.9" in printed


def test_core_exports_what_it_names() -> None:
    for name in core.__all__:
        assert getattr(core, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = core.nothing
