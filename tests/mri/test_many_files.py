"""Many files: processes and shares give what one run gives, a killed run goes on, raw data are never written over."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from recurra.mri.outputs import origin_of

Command = Callable[..., Any]
MASK = ["--mask", "equispaced_fraction", "--center-fraction", 0.2]


@pytest.fixture
def scans(volume: Path, tmp_path: Path) -> Path:
    """A folder of three volumes and a file that is none."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a", "b", "d"):
        shutil.copy(volume, folder / f"{name}.h5")
    (folder / "c.h5").write_text("text")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_processes_and_shares_write_the_same_bytes(
    command: Command, checkpoint: Path, scans: Path, tmp_path: Path
) -> None:
    def run(out: str, *options: object) -> Any:
        return command("reconstruct", checkpoint, scans, "-o", tmp_path / out, *MASK, "-q", *options)

    formats = ["--format", "fastmri,nifti,dicom"]
    plain = run("one", *formats)
    assert (plain.exit_code, plain.stderr.count("1 of 4 files failed")) == (1, 1)
    whole = contents(tmp_path / "one")
    assert {"a.h5", "a.nii", "a.png", "b_dicom/slice_0001.dcm"} <= set(whole)
    assert "c.h5" not in whole
    shared = run("two", *formats, "--workers", 2)
    assert shared.stderr == plain.stderr
    assert contents(tmp_path / "two") == whole
    assert run("three", *formats, "--shard", "2/2").exit_code == 0
    assert run("three", *formats, "--shard", "1/2").exit_code == 1  # the file that is none is the third
    assert contents(tmp_path / "three") == whole


def test_a_killed_run_goes_on_to_the_same_bytes(checkpoint: Path, scans: Path, tmp_path: Path) -> None:
    (scans / "c.h5").unlink()
    with h5py.File(scans / "d.h5", "a") as file:  # long enough to be killed in
        kspace = np.concatenate([file["kspace"][()]] * 40)
        del file["kspace"]
        file["kspace"] = kspace

    def start(out: str, *options: str) -> subprocess.Popen[str]:
        words = ["reconstruct", checkpoint, scans, "-o", tmp_path / out, *MASK, "-q", "--no-preview", *options]
        line = [sys.executable, "-m", "recurra.mri", *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    killed, deadline = start("killed"), time.monotonic() + 100
    while not list((tmp_path / "killed").glob("d.h5.*.part")):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "d.h5").exists()
    resumed, whole = start("killed", "--resume"), start("whole")
    out, err = resumed.communicate(timeout=200)
    assert (resumed.returncode, err) == (0, "")
    assert [line.split(", ")[1] for line in out.splitlines()][:2] == ["kept", "kept"]
    assert whole.communicate(timeout=200)[1] == ""
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_resume_does_what_is_missing_damaged_or_of_another_input(
    command: Command, checkpoint: Path, scans: Path, phantoms: np.ndarray, tmp_path: Path
) -> None:
    (scans / "c.h5").unlink()
    out = tmp_path / "out"

    def run(*options: object) -> dict[str, str]:
        result = command("reconstruct", checkpoint, scans, "-o", out, "-q", *options)
        assert result.exit_code == 0, result.stderr
        return {line.split(":")[0][-4:-3]: line.split(", ")[1] for line in result.stdout.splitlines()}

    assert "kept" not in run().values()
    before = contents(out)
    assert set(run("--resume").values()) == {"kept"}
    (out / "a.h5").write_bytes(before["a.h5"][:-1000])  # damaged
    (out / "b.png").unlink()
    assert [name for name, what in run("--resume").items() if what == "kept"] == ["d"]
    assert contents(out) == before
    when = (scans / "d.h5").stat()
    with h5py.File(scans / "d.h5", "a") as file:  # replaced, and says it is as old as before
        file["kspace"][...] = phantoms[::-1]
    os.utime(scans / "d.h5", ns=(when.st_atime_ns, when.st_mtime_ns))
    assert [name for name, what in run("--resume").items() if what == "kept"] == ["a", "b"]
    assert contents(out)["d.h5"] != before["d.h5"]


def test_resume_refuses_results_of_other_options(
    command: Command, checkpoint: Path, make_checkpoint: Callable[..., Path], scans: Path, tmp_path: Path
) -> None:
    (scans / "c.h5").unlink()
    out = tmp_path / "out"
    assert command("reconstruct", checkpoint, scans, "-o", out, "-q").exit_code == 0
    before = contents(out)
    line = (
        f"{out}/a.h5: was made by another checkpoint or with other options; "
        "give the same, choose another --out, or pass --overwrite\n"
    )
    for model, options in ((make_checkpoint(steps=1), []), (checkpoint, MASK), (checkpoint, ["--precision", "bf16"])):
        result = command("reconstruct", model, scans, "-o", out, "-q", "--resume", *options)
        assert (result.exit_code, result.stderr) == (1, line)
    shutil.copy(scans / "a.h5", out / "a.h5")  # somebody else's
    result = command("reconstruct", checkpoint, scans, "-o", out, "-q", "--resume")
    assert (result.exit_code, contents(out)["a.h5"]) == (1, (scans / "a.h5").read_bytes())
    assert contents(out) == before | {"a.h5": (scans / "a.h5").read_bytes()}


def test_raw_data_are_never_written_over(command: Command, checkpoint: Path, scans: Path) -> None:
    before = contents(scans)
    result = command("reconstruct", checkpoint, scans / "a.h5", "-o", scans, "--overwrite", "-q")
    assert result.exit_code == 1
    assert result.stderr == (
        f"{scans}/a.h5: is an input, and results never go where an input lies; choose another --out\n"
    )
    assert contents(scans) == before


def test_maps_and_checkpoints_are_never_written_over(
    command: Command, checkpoint: Path, volume: Path, tmp_path: Path
) -> None:
    (tmp_path / "maps").mkdir()
    maps = tmp_path / "maps" / volume.name
    with h5py.File(volume) as file, h5py.File(maps, "w") as own:
        own["maps"] = file["kspace"][()]
    before = maps.read_bytes()
    result = command("reconstruct", checkpoint, volume, "-o", maps.parent, "--maps", maps, "--overwrite", "-q")
    assert result.stderr.startswith(f"{maps}: is an input")
    assert maps.read_bytes() == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "knee.png").write_text("mine")
    result = command("reconstruct", checkpoint, volume, "-o", tmp_path / "out", "-q")
    assert (result.exit_code, (tmp_path / "out" / "knee.png").read_text()) == (1, "mine")
    (tmp_path / "taken" / "knee.h5").mkdir(parents=True)
    result = command("reconstruct", checkpoint, volume, "-o", tmp_path / "taken", "--overwrite", "-q")
    assert result.stderr.endswith("knee.h5: is a folder, and a file is to be written there; choose another --out\n")
    assert (tmp_path / "taken" / "knee.h5").is_dir()
    words = ["--format", "fastmri, fastmri", "--no-preview"]
    assert command("reconstruct", checkpoint, volume, "-o", tmp_path / "new", "-q", *words).exit_code == 0


def test_a_result_knows_what_it_was_made_from(command: Command, checkpoint: Path, volume: Path, tmp_path: Path) -> None:
    formats = ["--format", "fastmri,nifti,dicom"]
    assert command("reconstruct", checkpoint, volume, "-o", tmp_path, "-q", *formats).exit_code == 0
    found = [origin_of(tmp_path / name) for name in ("knee.h5", "knee.nii", "knee_dicom")]
    assert found[0] == found[1] == found[2]
    text, slices = found[0]
    assert (str(text)[:8], slices) == ("recurra ", 3)
    (tmp_path / "knee.nii").write_bytes((tmp_path / "knee.nii").read_bytes()[:-1])
    (tmp_path / "knee_dicom" / "slice_0002.dcm").unlink()
    assert origin_of(tmp_path / "knee.nii")[0] is None
    assert origin_of(tmp_path / "knee_dicom")[0] is None


def test_evaluate_by_shares_and_processes(command: Command, checkpoint: Path, scans: Path, tmp_path: Path) -> None:
    def run(out: str, *options: object) -> Any:
        words = ["-o", tmp_path / out, "--baselines", "zero_filled", *MASK, "-q", *options]
        return command("evaluate", checkpoint, scans, *words)

    def kept(out: str) -> dict[str, Any]:
        files = contents(tmp_path / out)
        content = json.loads(files.pop("metrics.json"))
        for one in (*content["files"], *content["mean"].values()):  # a clock is in it
            one.pop("seconds", None), one.pop("seconds_a_slice", None)
        return {**files, "metrics.json": content}

    assert run("one").exit_code == 1
    assert run("two", "--workers", 2).exit_code == 1
    assert run("three", "--shard", "2/2").exit_code == 0
    assert run("three", "--shard", "1/2").exit_code == 1
    assert kept("one") == kept("two") == kept("three")
    assert set(kept("one")) == {"metrics.csv", "metrics.json", "comparison.png"}


def test_evaluate_has_the_options_of_reconstruct(
    command: Command, checkpoint: Path, volume: Path, tmp_path: Path
) -> None:
    def means(name: str, *options: object) -> dict[str, float]:
        words = ["-o", tmp_path / name, "--baselines", "none", *MASK, "-q", *options]
        assert command("evaluate", checkpoint, volume, *words).exit_code == 0
        found: dict[str, float] = json.loads((tmp_path / name / "metrics.json").read_text())["mean"]["CIRIM"]
        return found

    plain = means("plain")
    assert means("batches", "--batch-size", 2)["psnr"] == pytest.approx(plain["psnr"], rel=1e-4)
    assert means("rough", "--precision", "bf16")["psnr"] != plain["psnr"]
    assert means("other", "--fft", "recentered-ortho")["psnr"] != plain["psnr"]


def test_the_page_of_an_evaluation_in_a_browser(
    command: Command, checkpoint: Path, scans: Path, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    words = ["-o", tmp_path / "out", "--baselines", "zero_filled", *MASK, "-q", "--report"]
    result = command("evaluate", checkpoint, scans, *words)
    assert f"{tmp_path}/out/report.html" in result.stdout
    page = visit(tmp_path / "out" / "report.html")
    assert page.locator("img").count() == 3
    shown = page.inner_text("body")
    assert "CIRIM" in shown
    assert "c.h5: is not an HDF5 file" in shown
    line = f"recurra-mri evaluate {checkpoint} {scans} --out {tmp_path}/out --baselines zero_filled"
    assert f"{line} --mask equispaced_fraction --center-fraction 0.2 --report" in shown
