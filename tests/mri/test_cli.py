"""Every verb through the command line: what it writes, what it prints, and its exit status."""

import csv
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import pytest
import torch
import yaml

from recurra.core.exporting import FORMATS
from recurra.mri.baselines import BASELINES
from recurra.mri.conversion import SOURCES
from recurra.mri.inference import load_checkpoint
from recurra.mri.metrics import METRICS
from recurra.mri.models import CIRIM, RecurrentVarNet
from recurra.mri.outputs import OutputFormat

Command = Callable[..., Any]

VERBS = ["train", "reconstruct", "evaluate", "convert", "export", "info", "recipes", "sample"]
UNDERSAMPLED = ["--mask", "equispaced_fraction", "--acceleration", 4, "--center-fraction", 0.2]


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_train_writes_a_checkpoint_that_every_verb_takes(
    command: Command, recipe: Path, volume: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = command("train", recipe, "loss.normalize=max", "--tiny", "-o", run)
    assert result.exit_code == 0
    assert result.stdout == f"checkpoint {run}\n"
    assert names(run) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "recipe.yaml",
        "metrics.csv",
        "log.txt",
        "last/state.ckpt",
        "figures/epoch-0001.png",
        "figures/epoch-0002.png",
    }
    # The numbers on the screen are in the files.
    log = (run / "log.txt").read_text()
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line in log
    with (run / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["epoch", "step", "learning_rate", "train_loss", "ssim", "psnr", "nmse"]
    for line, row in zip(lines[1:], rows, strict=True):
        assert f"ssim {float(row['ssim']):.5g}, psnr {float(row['psnr']):.5g}" in line
    assert [row["step"] for row in rows] == ["1", "2"]
    resolved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (resolved["data"]["train"], resolved["loss"]["normalize"]) == (1, "max")
    assert load_checkpoint(run).metadata["recipe"] == "small"
    assert command("reconstruct", run, volume, "-o", tmp_path / "out", *UNDERSAMPLED, "-q").exit_code == 0
    assert "small" in command("info", run).stdout


def test_train_goes_to_runs_by_default(
    command: Command, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("train", recipe, "train.epochs=null", "train.steps=1", "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "checkpoint runs/small\n"
    assert (tmp_path / "runs" / "small" / "model.safetensors").is_file()


def test_reconstruct(command: Command, checkpoint: Path, volume: Path, tmp_path: Path) -> None:
    result = command("reconstruct", checkpoint, volume, "-o", tmp_path, *UNDERSAMPLED)
    assert result.exit_code == 0
    assert re.fullmatch(rf"{tmp_path}/knee\.h5: 3 slices, \d+\.\d s\n", result.stdout)
    assert re.fullmatch(r"knee\.h5: 3 slices in \d+\.\d s \(\S+ slices/s\)\n", result.stderr)
    assert names(tmp_path) == {"knee.h5", "knee.png"}
    with h5py.File(tmp_path / "knee.h5") as file:
        assert file["reconstruction"].shape == (3, 40, 40)


def test_reconstruct_folders_without_pictures(command: Command, checkpoint: Path, volume: Path, tmp_path: Path) -> None:
    for name in ("b.h5", "a.h5", "notes.txt"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(volume.read_bytes())
    result = command("reconstruct", checkpoint, tmp_path / "in", volume, "-o", tmp_path / "out", "--no-preview", "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        str(tmp_path / "out" / name) for name in ("a.h5", "b.h5", "knee.h5")
    ]
    assert names(tmp_path / "out") == {"a.h5", "b.h5", "knee.h5"}


def test_evaluate_prints_what_it_writes(command: Command, checkpoint: Path, volume: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    options = ["--baselines", "zero_filled,cg_sense", *UNDERSAMPLED]
    result = command("evaluate", checkpoint, volume, "-o", out, *options, "-q")
    assert result.exit_code == 0
    assert names(out) == {"metrics.csv", "metrics.json", "comparison.png"}
    means = json.loads((out / "metrics.json").read_text())["mean"]
    assert list(means) == ["zero_filled", "cg_sense", "CIRIM"]
    for method, metrics in means.items():
        line = next(line for line in result.stdout.splitlines() if f" {method} " in line)
        printed = [float(number) for number in line.replace(method, "").split("│") if number.strip()]
        assert printed == [pytest.approx(value, rel=1e-4) for value in metrics.values()]
    with (out / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    with h5py.File(volume) as file:
        slices = len(file["kspace"])
    numbers = ["all", *map(str, range(slices))]
    assert [(row["file"], row["method"], row["slice"]) for row in rows] == [
        (str(volume), method, number) for method in means for number in numbers
    ]
    whole = [row for row in rows if row["slice"] == "all"]
    assert [float(row["psnr"]) for row in whole] == [metrics["psnr"] for metrics in means.values()]
    for row in whole:  # of slices of one size under one peak, errors and SSIM are means
        own = [one for one in rows if one["method"] == row["method"] and one["slice"] != "all"]
        assert np.mean([float(one["ssim"]) for one in own]) == pytest.approx(float(row["ssim"]))
        assert np.mean([10 ** (-float(one["psnr"]) / 10) for one in own]) == pytest.approx(
            10 ** (-float(row["psnr"]) / 10)
        )


def test_evaluate_measured_undersampled_files_by_held_out_samples(
    command: Command, checkpoint: Path, sample: Path, tmp_path: Path
) -> None:
    options = ["--split", "test", "--holdout", 0.1, "--baselines", "zero_filled,cg_sense", "-q"]
    result = command("evaluate", checkpoint, sample, *options, "-o", tmp_path)
    assert result.exit_code == 0
    means = json.loads((tmp_path / "metrics.json").read_text())["mean"]
    assert means["zero_filled"]["kspace_nmse"] == 1.0
    assert 0 < means["cg_sense"]["kspace_nmse"] < 1
    assert means["CIRIM"]["kspace_nmse"] > 0


def test_magnitudes_predict_no_samples(command: Command, sample: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RecurrentVarNet(steps=1, hidden=2, layers=1, initializer="none", refine="none", maps="rss")
    model.save_pretrained(tmp_path / "model")
    file = sample / "test" / "phantom_test_0.h5"
    result = command("evaluate", tmp_path / "model", file, "--holdout", 0.1, "--baselines", "none", "-q")
    assert result.exit_code == 1
    assert result.stderr == (
        f"{file}: RecurrentVarNet gives magnitudes, which predict no k-space; score it without --holdout\n"
    )


def test_evaluate_scores_the_other_files_when_one_fails(
    command: Command, checkpoint: Path, volume: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.h5").write_text("text")
    options = ["--baselines", "zero_filled", *UNDERSAMPLED, "-q", "-o", tmp_path / "out"]
    result = command("evaluate", checkpoint, tmp_path / "bad.h5", volume, *options)
    assert result.exit_code == 1
    failure = f"{tmp_path}/bad.h5: is not an HDF5 file, or its beginning is damaged"
    assert result.stderr == f"1 of 2 files failed: {failure}\n"
    assert "mean over 1 file" in result.stdout
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["failures"] == [failure]
    assert set(written["mean"]) == {"zero_filled", "CIRIM"}


def test_evaluate_without_any_file_that_can_be_scored(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.h5").write_text("text")
    result = command("evaluate", checkpoint, tmp_path / "bad.h5", "-q", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "is not an HDF5 file" in result.stderr


def test_convert(command: Command, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = CIRIM(conv_filters=(4, 4, 2), recurrent_filters=(4, 4, 0), cascades=1)
    config = {
        "model_name": "CIRIM",
        "recurrent_layer": "IndRNN",
        "conv_filters": [4, 4, 2],
        "conv_kernels": [5, 3, 3],
        "conv_dilations": [1, 2, 1],
        "conv_bias": [True, True, False],
        "recurrent_filters": [4, 4, 0],
        "recurrent_kernels": [1, 1, 0],
        "recurrent_dilations": [1, 1, 0],
        "recurrent_bias": [True, True, False],
        "depth": 2,
        "time_steps": 8,
        "conv_dim": 2,
        "num_cascades": 1,
        "no_dc": True,
        "keep_eta": True,
        "accumulate_estimates": True,
        "fft_type": "orthogonal_norm_only",
    }
    stream = io.BytesIO()
    torch.save({key.replace("cascades.", "cirim."): value for key, value in model.state_dict().items()}, stream)
    with tarfile.open(tmp_path / "a.mridc", "w:gz") as archive:
        for name, content in (
            ("model_config.yaml", yaml.safe_dump(config).encode()),
            ("model_weights.ckpt", stream.getvalue()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    result = command("convert", tmp_path / "a.mridc", "--from", "mridc", "-o", tmp_path / "out", "license=mit")
    assert (result.exit_code, result.stdout) == (0, f"checkpoint {tmp_path}/out\n")
    assert names(tmp_path / "out") == {"config.json", "model.safetensors", "README.md"}
    converted = load_checkpoint(tmp_path / "out")
    assert all(torch.equal(value, converted.state_dict()[key]) for key, value in model.state_dict().items())
    assert "mit" in command("info", tmp_path / "out").stdout


@pytest.mark.filterwarnings("ignore")  # of the exporter, for its programmers
def test_export_says_how_far_it_is_from_torch(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pt2"
    result = command("export", checkpoint, "--format", "pt2", "--shape", "2,16,16", "-o", out)
    assert result.exit_code == 0
    printed = re.search(rf"^{out}: largest difference to torch (\S+)$", result.stdout, re.MULTILINE)
    assert printed is not None
    assert 0 <= float(printed[1]) <= 1e-4
    assert names(tmp_path) == {out.name}


def test_export_refuses_a_program_that_differs(
    command: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong: Any = lambda made, path: (made.module(*made.example) * 1.01,)  # noqa: E731
    monkeypatch.setattr("recurra.core.exporting._to_pt2", wrong)
    result = command("export", checkpoint, "--format", "pt2", "--shape", "2,16,16", "-o", tmp_path / "model.pt2")
    assert result.exit_code == 1
    assert result.stderr == (
        f"{tmp_path}/model.pt2: the pt2 program differs from torch by 1.0e-02 of the largest value; "
        "at most 1e-04 is accepted, so it is not written\n"
    )
    assert names(tmp_path) == set()


def test_info(command: Command, checkpoint: Path) -> None:
    result = command("info", checkpoint)
    assert result.exit_code == 0
    shown = {
        cells[0].strip(): cells[1].strip()
        for line in result.stdout.splitlines()
        if len(cells := line.strip("│ ").split("│")) == 2
    }
    count = sum(parameter.numel() for parameter in load_checkpoint(checkpoint).parameters())
    assert shown["architecture"] == "CIRIM"
    assert shown["parameters"] == f"{count:,}"
    assert shown["fft"] == "centered-ortho"
    assert shown["license"] == "apache-2.0"
    assert shown["output"] == "magnitude image in the units of the k-space"


def test_recipes(command: Command) -> None:
    listed = command("recipes").stdout
    assert "rim-small" in listed
    assert "cirim-paper" in listed
    shown = command("recipes", "rim-small")
    assert shown.exit_code == 0
    assert yaml.safe_load(shown.stdout)["model"]["name"] == "CIRIM"
    assert shown.stdout.startswith("# ")
    missing = command("recipes", "rim-smal")
    assert missing.exit_code == 1
    assert "rim-small" in missing.stderr
    assert missing.stderr.count("\n") == 1


def test_sample(command: Command, tmp_path: Path) -> None:
    result = command("sample", "-o", tmp_path / "data", "--slices", 1)
    assert result.exit_code == 0
    written = [Path(line) for line in result.stdout.splitlines()]
    assert {str(path.relative_to(tmp_path / "data")) for path in written} == names(tmp_path / "data")
    assert {path.parent.name for path in written} == {"train", "val", "test"}
    with h5py.File(written[0]) as file:
        assert file["kspace"].shape[0] == 1
        assert file["kspace"].dtype == np.complex64
    again = command("sample", "-o", tmp_path / "data", "--slices", 1)
    assert again.exit_code == 1
    assert again.stderr == (
        f"{tmp_path}/data: exists already and is not empty; pass --overwrite to replace it, or choose another --out\n"
    )
    assert command("sample", "-o", tmp_path / "data", "--slices", 1, "--overwrite").exit_code == 0


HELP = """
import sys, time
from typer.testing import CliRunner
started = time.perf_counter()
from recurra.core.verbs import app
from recurra.mri.verbs import VERBS
app = app("recurra.mri", "", VERBS)
for verb in sys.argv[1:]:
    result = CliRunner().invoke(app, [*verb.split(","), "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output and "--help" in result.output, result.output
print(time.perf_counter() - started)
print(sorted({"torch", "numpy", "h5py", "lightning", "monai", "matplotlib"} & {*sys.modules}))
"""


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    command = [sys.executable, "-c", HELP, *VERBS]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, loaded = result.stdout.splitlines()
    assert loaded == "[]"
    assert float(seconds) < 3  # 0.4 s for all of them on a quiet machine


def test_help_names_every_verb(command: Command) -> None:
    shown = command("--help")
    assert shown.exit_code == 0
    assert [verb for verb in VERBS if verb not in shown.stdout] == []
    version = command("--version")
    assert re.fullmatch(r"recurra-mri \d+\.\d+\.\d+\S*\n", version.stdout)


@pytest.mark.parametrize(
    ("verb", "option", "choices"),
    [
        ("evaluate", "--metrics", METRICS),
        ("evaluate", "--baselines", BASELINES),
        ("reconstruct", "--formats", get_args(OutputFormat)),
        ("export", "--format", FORMATS),
        ("convert", "--from", SOURCES),
    ],
)
def test_help_names_the_choices(command: Command, verb: str, option: str, choices: Iterable[str]) -> None:
    shown = " ".join(command(verb, "--help").stdout.split())
    about = re.split(r" -\w, --| --(?!format)", shown.partition(f"{option} ")[2])[0]
    assert not [choice for choice in choices if not re.search(rf"\b{choice}\b", about)], about


@pytest.mark.parametrize(
    "words",
    [
        "reconstrct",
        "reconstruct",
        "reconstruct model",
        "reconstruct model a.h5",
        "reconstruct model a.h5 -o x --batch-size 0",
        "reconstruct model a.h5 -o x --precision fp8",
        "reconstruct model a.h5 -o x --acceleration 0.5",
        "reconstruct model a.h5 -o x --slices 3",
        "evaluate model",
        "evaluate model a.h5 --holdout 0.9",
        "train",
        "convert a.pt -o x",
        "export model",
        "info",
        "sample",
        "sample -o x --slices 0",
    ],
)
def test_usage_errors_have_status_2(command: Command, words: str) -> None:
    result = command(*words.split())
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(command: Command, tmp_path: Path) -> None:
    plain = command("info", tmp_path / "absent")
    assert plain.exit_code == 1
    assert plain.stderr == f"{tmp_path}/absent: no such checkpoint folder\n"
    debug = command("info", tmp_path / "absent", "--debug")
    assert debug.exit_code == 1
    assert "Traceback (most recent call last)" in debug.stderr
    assert debug.stderr.endswith(plain.stderr)
    assert "Traceback" not in command("info", tmp_path / "absent").stderr  # the switch does not stick


def test_debug_shows_the_traceback_of_a_file_that_failed(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.h5").write_text("text")
    result = command("reconstruct", checkpoint, tmp_path / "bad.h5", "-o", tmp_path / "out", "-q", "--debug")
    assert result.exit_code == 1
    assert "in open_hdf5" in result.stderr


def test_as_a_module() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "recurra.mri", "recipes", "absent"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
