"""What a user did wrong, or what befell the machine: one line, exit status 1, and nothing half-written."""

import csv
import errno
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from numpy.typing import NDArray

from recurra.core.testing import fails

Command = Callable[..., Any]


def write(path: Path, **datasets: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- k-space files


@pytest.fixture
def kspace(phantoms: NDArray[Any]) -> NDArray[Any]:
    return phantoms[:2].copy()


@pytest.fixture
def refused(command: Command, checkpoint: Path, tmp_path: Path) -> Callable[..., None]:
    """A function: reconstructing this file fails with this line after its name, and writes nothing."""

    def check(file: Path, line: str, *options: object, model: Path = checkpoint) -> None:
        fails(command, f"{file}: {line}", "reconstruct", model, file, "-o", tmp_path / "out", "-q", *options)
        assert not (tmp_path / "out").exists() or files_in(tmp_path / "out") == []

    return check


def test_truncated_file(refused: Callable[..., None], volume: Path, tmp_path: Path) -> None:
    content = volume.read_bytes()
    for share in (0.2, 0.9):
        (tmp_path / "cut.h5").write_bytes(content[: int(share * len(content))])
        refused(tmp_path / "cut.h5", "is cut short; the HDF5 file has less data than its header says")


def test_files_of_another_kind(refused: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("slices")
    (tmp_path / "empty.h5").touch()
    refused(tmp_path / "text.h5", "is not an HDF5 file, or its beginning is damaged")
    refused(tmp_path / "empty.h5", "is empty (0 bytes); expected an HDF5 file")
    refused(tmp_path / "absent.h5", "No such file or directory")
    refused(write(tmp_path / "a.h5", image=np.zeros(3)), "no dataset 'kspace'; the file has image")


def test_wrong_rank(refused: Callable[..., None], kspace: NDArray[Any], tmp_path: Path) -> None:
    expected = "expected (slice, coil, height, width)"
    single, plane = write(tmp_path / "s.h5", kspace=kspace[:, 0]), write(tmp_path / "p.h5", kspace=kspace[0, 0])
    hint = "For single-coil files pass --coils 1; for another order name the axes, such as --axes coil,height,width"
    refused(single, f"dataset 'kspace' has shape (2, 48, 40); {expected}. {hint}")
    refused(plane, f"dataset 'kspace' has shape (48, 40); {expected}")
    refused(
        write(tmp_path / "m.h5", kspace=kspace),
        "dataset 'kspace' has 3 coils; expected 1 as given by --coils",
        "--coils",
        1,
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers(
    command: Command, checkpoint: Path, kspace: NDArray[Any], tmp_path: Path, value: float
) -> None:
    """The other slices are worth having, but nobody is to take the volume for whole."""
    kspace[1, 0, 3, 4:6] = value
    file = write(tmp_path / "a.h5", kspace=kspace)
    arguments = ("reconstruct", checkpoint, file, "-o", tmp_path / "out", "-q", "--format", "fastmri,nifti,dicom")
    damage = "slice 1 has 2 samples that are NaN or infinite; expected numbers"
    line = f"{file}: {damage}: left out, 1 of 2 slices were written"
    fails(command, f"{line}; --skip-bad-slices takes that for a success", *arguments)
    with h5py.File(tmp_path / "out" / "a.h5") as written:
        image = written["reconstruction"][()]
    assert np.isfinite(image[0]).all()
    assert np.isnan(image[1]).all()
    assert [path.name for path in (tmp_path / "out" / "a_dicom").iterdir()] == ["slice_0001.dcm"]
    fails(command, f"{line}; --skip-bad-slices takes that for a success", *arguments, "--resume")  # never kept as whole
    result = command(*arguments, "--skip-bad-slices", "--overwrite")
    assert result.exit_code == 0
    assert "note: a.h5: slice 1 has 2 samples" in result.stdout


@pytest.mark.parametrize("verb", ["reconstruct", "evaluate"])
def test_a_file_where_results_are_to_go(verb: str, command: Command, checkpoint: Path, volume: Path) -> None:
    line = f"{volume}: is a file, and --out is a folder for the results; give another"
    for options in ([], ["--overwrite"]):
        fails(command, line, verb, checkpoint, volume, "-o", volume, "-q", *options)


@pytest.mark.parametrize("skipped", [False, True])
def test_a_volume_without_a_slice_that_serves(
    command: Command, checkpoint: Path, kspace: NDArray[Any], tmp_path: Path, skipped: bool
) -> None:
    kspace[:, 0, 3, 4] = np.nan
    file = write(tmp_path / "a.h5", kspace=kspace)
    slices = "; ".join(f"slice {n} has 1 samples that are NaN or infinite; expected numbers" for n in range(2))
    option = ["--skip-bad-slices"] * skipped
    arguments = ("reconstruct", checkpoint, file, "-o", tmp_path / "out", *option, "-q")
    fails(command, f"{file}: {slices}; no slice is left", *arguments)


def test_masks_that_do_not_serve(
    refused: Callable[..., None], make_checkpoint: Callable[..., Path], kspace: NDArray[Any], tmp_path: Path
) -> None:
    def file(mask: NDArray[Any]) -> Path:
        return write(tmp_path / "a.h5", kspace=kspace, mask=mask)

    refused(file(np.ones(39)), "dataset 'mask' has shape (39,); k-space of 48 x 40 needs (40,) or (48, 40)")
    refused(file(np.zeros(40)), "dataset 'mask' keeps no sample; expected at least one that is not zero")
    every_other = np.arange(40) % 2 == 0
    line = (
        "slice 0: ESPIRiT maps need at least 6 x 6 calibration samples; the mask has 24 x 1 (height x width) fully "
        "sampled in the centre. Use a larger center fraction, maps=rss, or give the maps"
    )
    refused(file(every_other), line, model=make_checkpoint(maps="espirit"))
    line = (
        "slice 0: coil maps need calibration samples; the mask has none fully sampled in the centre. "
        "Use a larger center fraction or give the maps"
    )
    refused(file(~every_other), line)


def test_maps_that_do_not_serve(
    refused: Callable[..., None], kspace: NDArray[Any], volume: Path, tmp_path: Path
) -> None:
    small = write(tmp_path / "small.h5", maps=kspace[0, :, :, :20])
    line = (
        f"{small}: dataset 'maps' has shape (3, 48, 20); "
        "the k-space needs (3, 48, 40) (coil, height, width) or (3, 3, 48, 40) (slice, coil, height, width)"
    )
    refused(volume, line, "--maps", small)
    other = write(tmp_path / "other.h5", image=kspace)
    refused(volume, f"{other}: no dataset 'sensitivity'; the file has image", "--maps", other)
    refused(volume, f"{tmp_path}/absent.h5: No such file or directory", "--maps", tmp_path / "absent.h5")


def test_one_bad_file_among_many(command: Command, checkpoint: Path, volume: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.h5", "c.h5"):
        shutil.copy(volume, folder / name)
    (folder / "b.h5").write_bytes(volume.read_bytes()[:3000])
    result = command("reconstruct", checkpoint, folder, "-o", out, "-q", "--no-preview")
    assert result.exit_code == 1
    line = f"{folder}/b.h5: is cut short; the HDF5 file has less data than its header says"
    assert result.stderr == f"1 of 3 files failed: {line}\n"
    assert [text.split(": 3 slices")[0] for text in result.stdout.splitlines()] == [f"{out}/a.h5", f"{out}/c.h5"]
    assert files_in(out) == ["a.h5", "c.h5"]


# --- options and outputs


def test_options_that_do_not_serve(command: Command, checkpoint: Path, volume: Path, tmp_path: Path) -> None:
    start = ["reconstruct", checkpoint, volume, "-o", tmp_path / "out", "-q"]
    fails(command, "device must be auto, cpu, cuda or cuda:INDEX; got 'gpu'", *start, "--device", "gpu")
    masks = command(*start, "--mask", "sparse")
    assert masks.exit_code == 1
    assert re.fullmatch(r"mask must be one of random, .*; got 'sparse'\n", masks.stderr)
    line = "maps must be espirit, rss, unit or FILE.h5[:dataset]; got 'espirt' (did you mean espirit?)"
    fails(command, line, *start, "--maps", "espirt")
    transforms = command(*start, "--fft", "centred")
    assert transforms.exit_code == 1
    assert re.fullmatch(r"fft must be one of centered-ortho, .*; got 'centred'\n", transforms.stderr)
    score = ["evaluate", checkpoint, volume, "-q"]
    known = "fastmri, calgary_campinas, scale_invariant"
    fails(command, f"metrics must be of {known}; got 'psnr'", *score, "--metrics", "psnr")
    known = "zero_filled, cg_sense, l1_wavelet"
    fails(command, f"baselines must be of {known}; got 'grappa'", *score, "--baselines", "grappa")
    example = "shape must be coils,height,width such as 8,64,64"
    model = tmp_path / "model.onnx"
    fails(command, f"{example}; got '8,64'", "export", checkpoint, "-o", model, "--shape", "8,64")
    fails(command, "format must be one of onnx, pt2; got 'tf'", "export", checkpoint, "-o", model, "--format", "tf")
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(command, f"{empty}: no .h5, .hdf5, .dat file in this folder", "reconstruct", checkpoint, empty, "-o", model)


def test_existing_results_are_kept(
    command: Command, recipe: Path, checkpoint: Path, volume: Path, tmp_path: Path
) -> None:
    def refusal(path: Path, state: str = "exists already") -> str:
        return f"{path}: {state}; pass --overwrite to replace it, or choose another --out"

    (tmp_path / "knee.h5").write_text("mine")
    folder = "exists already and is not empty"
    reconstruct = ["reconstruct", checkpoint, volume, "-o", tmp_path, "-q"]
    fails(command, refusal(tmp_path / "knee.h5"), *reconstruct)
    fails(command, refusal(tmp_path, folder), "evaluate", checkpoint, volume, "-o", tmp_path, "-q")
    fails(command, refusal(tmp_path, folder), "convert", volume, "--from", "direct", "-o", tmp_path)
    fails(command, refusal(tmp_path / "knee.h5"), "export", checkpoint, "-o", tmp_path / "knee.h5")
    line = f"{tmp_path}: {folder}; pass --overwrite to replace it, or pass --resume to go on with it, "
    fails(command, f"{line}or choose another --out", "train", recipe, "-o", tmp_path)
    assert (tmp_path / "knee.h5").read_text() == "mine"
    assert files_in(tmp_path) == ["knee.h5"]
    assert command(*reconstruct, "--overwrite").exit_code == 0
    with h5py.File(tmp_path / "knee.h5") as file:
        assert "reconstruction" in file


# --- checkpoints


def changed(checkpoint: Path, to: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(checkpoint, to)
    change(to)
    return to


def configured(checkpoint: Path, to: Path, **options: Any) -> Path:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | options))

    return changed(checkpoint, to, change)


def test_checkpoints_that_are_not_whole(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    def cut(folder: Path) -> None:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])

    def add(folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        safetensors.torch.save_file(weights | {"more": torch.zeros(1)}, folder / "model.safetensors")

    needs = "a checkpoint folder holds config.json and model.safetensors"
    for name in ("config.json", "model.safetensors"):
        folder = changed(checkpoint, tmp_path / f"no-{name}", lambda folder, name=name: (folder / name).unlink())
        fails(command, f"{folder}: no {name}; {needs}", "info", folder)
    fails(command, f"{tmp_path}/absent: no such checkpoint folder", "info", tmp_path / "absent")
    file = checkpoint / "config.json"
    expected = "expected a checkpoint folder (config.json, model.safetensors), got a file"
    fails(command, f"{file}: {expected}", "info", file)
    folder = changed(checkpoint, tmp_path / "cut", cut)
    result = command("info", folder)
    assert result.exit_code == 1
    assert re.fullmatch(rf"{folder}/model\.safetensors: damaged or truncated: [^\n]+\n", result.stderr)
    folder = changed(checkpoint, tmp_path / "more", add)
    line = "tensors are not those of CIRIM with this config: has more too many"
    fails(command, f"{folder}/model.safetensors: {line}", "info", folder)
    # Other files are nobody's business: a run folder has them too.
    assert command("info", changed(checkpoint, tmp_path / "notes", lambda f: (f / "notes").touch())).exit_code == 0


def test_checkpoints_of_something_else(command: Command, checkpoint: Path, tmp_path: Path) -> None:
    def transformers(folder: Path) -> None:
        (folder / "config.json").write_text('{"model_type": "bert"}')

    folder = changed(checkpoint, tmp_path / "bert", transformers)
    line = "no 'architecture'; this is not a Recurra checkpoint (for others, see convert)"
    fails(command, f"{folder}/config.json: {line}", "info", folder)
    folder = configured(checkpoint, tmp_path / "key", cascade=2)
    line = "cascade: CIRIM has no such option (did you mean cascades?)"
    fails(command, f"{folder}/config.json: {line}", "info", folder)
    folder = configured(checkpoint, tmp_path / "name", architecture="CIRAM")
    line = "architecture: no Reconstructor is called 'CIRAM' (did you mean CIRIM?)"
    fails(command, f"{folder}/config.json: {line}", "info", folder)
    folder = configured(checkpoint, tmp_path / "cell", cell="lstm")
    line = "CIRIM does not accept it: cell must be one of gru, mgu, indrnn; got 'lstm'"
    fails(command, f"{folder}/config.json: {line}", "info", folder)


@pytest.mark.parametrize("steps", [0, -1, "many", 1.5])
def test_steps_of_a_checkpoint_are_a_number_of_steps(
    command: Command, checkpoint: Path, tmp_path: Path, steps: object
) -> None:
    folder = configured(checkpoint, tmp_path / "steps", steps=steps)
    line = f"CIRIM does not accept it: steps must be a whole number from 1 on; got {steps!r}"
    fails(command, f"{folder}/config.json: {line}", "info", folder)


class Payload:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_payload_in_a_pickle_does_not_run(command: Command, tmp_path: Path) -> None:
    mark, out = tmp_path / "owned", tmp_path / "out"
    file = tmp_path / "model_1.pt"
    torch.save({"model": Payload(mark)}, file)
    start = f"{file}: not a readable torch checkpoint: "
    convert = ["convert", file, "--from", "direct", "-o", out]
    fails(command, f"{start}asks for posix.mkdir, which no checkpoint needs; refused", *convert)
    for protocol in (2, 4):
        file.write_bytes(pickle.dumps({"model": Payload(mark)}, protocol))
        result = command(*convert)
        assert result.exit_code == 1
        assert re.fullmatch(rf"{re.escape(start)}not in torch's zip format[^\n]*; refused\n", result.stderr)
    assert not mark.exists()
    assert not out.exists()
    pickle.loads(file.read_bytes())  # ours, to show that it would have run
    assert mark.exists()


def test_member_that_climbs_out_of_a_container(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "inner" / "a.mridc"
    file.parent.mkdir()
    with tarfile.open(file, "w:gz") as archive:
        entry = tarfile.TarInfo("../../owned")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    line = f"{file}: member '../../owned' lies outside the container; refused"
    fails(command, line, "convert", file, "--from", "mridc", "-o", tmp_path / "out")
    assert files_in(tmp_path) == ["inner/a.mridc"]


def test_foreign_files_that_are_none(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    convert = ["convert", file, "--from", "direct", "-o", tmp_path / "out"]
    fails(command, f"{file}: no such file", *convert)
    file.write_text("hello")
    fails(command, f"{file}: not a readable torch checkpoint: damaged, or of another format", *convert)
    fails(command, "--from must be one of direct, mridc, atommic; got 'fastmri'", *convert, "--from", "fastmri")
    torch.save({"weights": torch.ones(2)}, file)
    line = "has no 'model' with weights; expected direct's model_ITERATION.pt, got weights"
    fails(command, f"{file}: {line}", *convert)


# --- recipes


def test_recipes_that_do_not_serve(command: Command, recipe: Path, tmp_path: Path) -> None:
    out = ["-o", tmp_path / "run", "-q"]
    line = "small.yaml: model.cascade: CIRIM has no such option (did you mean cascades?)"
    fails(command, line, "train", recipe, "model.cascade=1", *out)
    fails(command, "rim-smal: no such file, and no recipe of this name (did you mean rim-small?)", "train", "rim-smal")
    line = "novalue: expected SECTION.KEY=VALUE, e.g. train.epochs=3"
    fails(command, line, "train", recipe, "novalue", *out)
    line = f"{tmp_path}/run: nothing to resume (no last/state.ckpt); train without --resume"
    fails(command, line, "train", recipe, "--resume", *out)
    line = "recipe needs CUDA for precision fp16, {}; use precision=bf16 or precision=32"
    line = line.format("device is cpu" if torch.cuda.is_available() else "no GPU found")
    fails(command, line, "train", recipe, "train.precision=fp16", "--device", "cpu", *out)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_file_in_training_is_named(
    command: Command, recipe: Path, kspace: NDArray[Any], volume: Path, tmp_path: Path, workers: int
) -> None:
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        shutil.copy(volume, tmp_path / part / "good.h5")
    kspace[0, 0, 0, 0] = np.nan
    file = write(tmp_path / "train" / "bad.h5", kspace=kspace)
    settings = yaml.safe_load(recipe.read_text())
    settings["data"] = {"name": "FastMRI", "path": str(tmp_path), "workers": workers}
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump(settings))
    line = f"{file}: slice 0 has 1 samples that are NaN or infinite; expected numbers"
    fails(command, line, "train", mine, "-q", "-o", tmp_path / "run")


def test_loss_that_is_not_finite_names_batch_and_file(command: Command, recipe: Path, tmp_path: Path) -> None:
    result = command("train", recipe, "optimizer.lr=1e30", "train.epochs=3", "-q", "-o", tmp_path / "run")
    assert result.exit_code == 1
    line = r"the loss is (nan|inf) in epoch \d, batch \d \(phantom_0_\d_\d\); "
    assert re.fullmatch(line + r"look at these data, lower optimizer\.lr or set train\.clip\n", result.stderr)
    assert "the loss is" in (tmp_path / "run" / "log.txt").read_text()


# --- the disk


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that holds 200 KB; where none can be mounted, writers that say so when they get there."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    mounted = mount is not None and subprocess.run([mount, *options], capture_output=True, check=False).returncode == 0
    if not mounted:

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("recurra.mri.outputs.FastMRIWriter._write", full)
        monkeypatch.setattr("lightning.pytorch.Trainer.save_checkpoint", full)
    yield folder
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_in_reconstruct(command: Command, checkpoint: Path, small_disk: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    parts = random.normal(size=(2, 2, 2, 192, 192)).astype(np.float32)
    file = write(tmp_path / "large.h5", kspace=parts[0] + 1j * parts[1])
    result = command("reconstruct", checkpoint, file, "-o", small_disk / "out", "-q", "--no-preview")
    assert result.exit_code == 1
    line = rf"{file}: {small_disk}/out/large\.h5: no space left on disk \S+ \(\d+\.\d MiB free\)\n"
    assert re.fullmatch(line, result.stderr)
    assert files_in(small_disk) == []


def test_full_disk_in_train(command: Command, recipe: Path, small_disk: Path) -> None:
    options = ["model.conv_filters=[64,64,2]", "model.recurrent_filters=[64,64,0]"]
    result = command("train", recipe, *options, "-q", "-o", small_disk / "run")
    assert result.exit_code == 1
    line = rf"{small_disk}/run/\S+: no space left on disk \S+ \(\d+\.\d MiB free\)\n"
    assert re.fullmatch(line, result.stderr)
    written = files_in(small_disk / "run")
    assert "last/state.ckpt" not in written
    assert [name for name in written if name.endswith(".part") or ".saving" in name] == []


# --- Ctrl-C


def started(*arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "recurra.mri", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def interrupted(process: subprocess.Popen[str], ready: Callable[[], bool]) -> tuple[int, str, str]:
    """Status and outputs of a process that gets Ctrl-C once it is `ready`."""
    deadline = time.monotonic() + 100
    while not ready() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_ctrl_c_in_reconstruct(checkpoint: Path, volume: Path, tmp_path: Path) -> None:
    endless = tmp_path / "endless.h5"
    with h5py.File(endless, "w") as file:
        file.create_dataset("kspace", (20_000, 3, 48, 40), np.complex64)[-1] = 1
    out = tmp_path / "out"
    files = [volume, endless, checkpoint.parent / "later.h5"]
    process = started("reconstruct", checkpoint, *files, "-o", out, "-q", "--no-preview", "--device", "cpu")
    status, printed, errors = interrupted(process, lambda: bool(list(out.glob("endless.h5.*.part"))))
    assert (status, printed) == (1, "")
    assert errors == f"interrupted in {endless}; 1 of 3 files are done, in {out}; give the others again\n"
    assert files_in(out) == [volume.name]
    with h5py.File(out / volume.name) as finished:
        assert finished["reconstruction"].shape == (3, 40, 40)


def test_ctrl_c_in_train_saves_and_resumes_bit_for_bit(command: Command, recipe: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    # A schedule of a thousand epochs would be another one.
    options = [recipe, "data.train=8", "scheduler.name=none", "-q"]
    process = started("train", *options, "train.epochs=1000", "-o", run)
    status, printed, errors = interrupted(process, (run / "metrics.csv").exists)
    assert (status, printed) == (1, "")
    saved = run / "last" / "state.ckpt"
    place = r"(in epoch \d+ after batch \d|after epoch \d+)"
    assert re.fullmatch(rf"interrupted {place}; saved in {saved}, go on with --resume\n", errors)
    assert [name for name in files_in(run) if name.endswith(".part")] == []
    with (run / "metrics.csv").open() as stream:
        epochs = len(list(csv.DictReader(stream))) + 2
    options.append(f"train.epochs={epochs}")
    resumed = command("train", *options, "-o", run, "--resume")
    assert (resumed.exit_code, resumed.stderr) == (0, "")
    assert command("train", *options, "-o", whole).exit_code == 0
    ours, theirs = (torch.load(path / "last" / "state.ckpt", weights_only=True) for path in (run, whole))
    assert ours["global_step"] == theirs["global_step"] == 8 * epochs
    for key, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][key], value)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
