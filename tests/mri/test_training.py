"""Training of reconstruction models: its laws, several processes, and that it learns."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from recurra.core.errors import Interrupted
from recurra.mri.data.dataset import PhantomDataset
from recurra.mri.data.sample import write_sample
from recurra.mri.data.sources import sample as sample_data
from recurra.mri.inference import load_checkpoint
from recurra.mri.masks import MASKS
from recurra.mri.metrics import psnr
from recurra.mri.models.reconstructor import Reconstructor
from recurra.mri.operators import center_crop
from recurra.mri.training import train

Command = Callable[..., Any]


def fit(recipe: Path, out: Path, *overrides: str, resume: bool = False) -> Path:
    train(recipe, overrides, out=out, resume=resume, quiet=True)
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those of the last step, not of the best."""
    state: dict[str, torch.Tensor] = torch.load(folder / "last" / "state.ckpt", weights_only=True)["state_dict"]
    return state


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="session")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the small recipe; read only."""
    return fit(recipe, tmp_path_factory.mktemp("run") / "run")


# --- laws


@pytest.mark.parametrize("after", [2, 6, 9])  # within the first epoch, in its validation, within the second
def test_resume_law(recipe: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    drawn = 0
    draw = PhantomDataset.__getitem__

    def interrupting(dataset: PhantomDataset, index: int) -> dict[str, Any]:
        nonlocal drawn
        drawn += 1
        if drawn == after:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(dataset, index)

    with monkeypatch.context() as context:
        context.setattr(PhantomDataset, "__getitem__", interrupting)
        with pytest.raises(Interrupted, match="go on with --resume"):
            fit(recipe, tmp_path / "part")
    assert not same(tmp_path / "part", run)
    fit(recipe, tmp_path / "part", resume=True)
    assert same(tmp_path / "part", run)
    assert rows(tmp_path / "part") == rows(run)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "part" / name).read_bytes() == (run / name).read_bytes()


def test_seed_law(recipe: Path, sample: Path, tmp_path: Path) -> None:
    """Two worker processes draw what none does, generated or masked anew in every epoch; another seed does not."""
    settings = yaml.safe_load(recipe.read_text())
    size = {key: settings["data"][key] for key in ("train", "val", "height", "width", "coils")}
    for name, data in (("phantom", {"name": "Phantom", **size}), ("files", {"name": "FastMRI", "path": str(sample)})):
        mine = tmp_path / f"{name}.yaml"
        mine.write_text(yaml.safe_dump({**settings, "data": data}))
        alone = fit(mine, tmp_path / f"{name}-0", "data.workers=0")
        shared = fit(mine, tmp_path / f"{name}-2", "data.workers=2")
        other = fit(mine, tmp_path / f"{name}-other", "data.workers=0", "train.seed=1")
        assert same(alone, shared)
        assert rows(alone) == rows(shared)
        assert not same(alone, other)


def test_the_recipe_of_a_run_folder_repeats_it(recipe: Path, run: Path, tmp_path: Path) -> None:
    assert same(fit(run / "recipe.yaml", tmp_path / "again"), run)
    assert not same(fit(run / "recipe.yaml", tmp_path / "other", "optimizer.lr=1e-4"), run)


def test_recomputed_activations_change_no_number(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recomputed = 0
    checkpoint = torch.utils.checkpoint.checkpoint

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal recomputed
        recomputed += 1
        return checkpoint(*arguments, **options)

    monkeypatch.setattr("recurra.mri.models.rim.checkpoint", counting)
    options = ["model.cascades=2", "train.epochs=1"]
    plain = fit(recipe, tmp_path / "plain", *options)
    assert recomputed == 0
    frugal = fit(recipe, tmp_path / "frugal", *options, "train.checkpointing=true")
    assert recomputed > 0
    assert same(plain, frugal)


def test_the_best_model_is_kept(run: Path) -> None:
    best = max(rows(run), key=lambda row: float(row["ssim"]))
    model = load_checkpoint(run)
    assert model.metadata["training"]["epoch"] == int(best["epoch"])
    assert model.metadata["training"]["ssim"] == float(best["ssim"])
    assert model.metadata["training_data"] == "generated phantoms, 4 an epoch, 2 coils, 32 x 24"


def test_validation_is_what_the_shipped_model_does(recipe: Path, run: Path, tmp_path: Path) -> None:
    """The metrics in the table, computed again from the saved model and the validation slices."""
    settings = yaml.safe_load(recipe.read_text())["data"]
    model: Reconstructor = load_checkpoint(run)
    mask = MASKS["equispaced_fraction"]([4], [0.2])
    size = {key: settings[key] for key in ("train", "val", "height", "width", "coils")}
    values = []
    for slice_ in sample_data(**size, mask=mask, preparation=model).val:
        with torch.no_grad():
            image = model(*(slice_[name][None] for name in ("kspace", "sensitivity", "mask"))).abs()
        target = slice_["target"]
        values.append(psnr(target[None].numpy(), center_crop(image, target.shape).numpy()))
    assert np.mean(values) == pytest.approx(model.metadata["training"]["psnr"], rel=1e-5)


# --- several processes


def _launch(arguments: list[str], torchrun: bool) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--master-addr", "127.0.0.1", "--master-port", port]
    extra = [] if torchrun else ["train.devices=2"]
    command = [sys.executable, *(launcher if torchrun else []), "-m", "recurra.mri", "train", *arguments, *extra]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


PAIRS = ["train.batch_size=2", "train.epochs=2"]


@pytest.fixture(scope="session")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process with batches of two; read only."""
    return fit(recipe, tmp_path_factory.mktemp("alone") / "run", *PAIRS)


@pytest.mark.parametrize("torchrun", [True, False], ids=["torchrun", "devices"])
def test_two_processes_equal_one(recipe: Path, alone: Path, tmp_path: Path, torchrun: bool) -> None:
    shared = tmp_path / "shared"
    result = _launch([str(recipe), *PAIRS, "-o", str(shared)], torchrun)
    assert result.returncode == 0, result.stderr
    # Three validation slices do not share evenly; none may count twice.
    for mine, theirs in zip(rows(alone), rows(shared), strict=True):
        assert mine["step"] == theirs["step"]
        for metric in ("ssim", "psnr", "nmse", "train_loss"):
            assert float(theirs[metric]) == pytest.approx(float(mine[metric]), rel=1e-4)
    for key, value in weights(alone).items():
        torch.testing.assert_close(weights(shared)[key], value, rtol=1e-3, atol=1e-5)
    log = (shared / "log.txt").read_text()
    assert log.count("epoch 1, step 2: ") == log.count("epoch 2, step 4: ") == 1
    assert "on 2 x cpu" in log
    assert result.stderr.count("epoch 1, step 2: ") == 1
    assert result.stdout.count("checkpoint") == 1
    assert sorted(path.name for path in shared.rglob("*") if path.is_file()) == sorted(
        path.name for path in alone.rglob("*") if path.is_file()
    )


# --- from nothing to an image


MARGIN = 1.0  # dB; this training reaches 1.6


def test_from_nothing_to_better_than_zero_filled(command: Command, recipe: Path, tmp_path: Path) -> None:
    """Train on generated slices, then reconstruct and score volumes that the training never saw."""
    settings = yaml.safe_load(recipe.read_text())
    settings["model"] |= {"steps": 4, "conv_filters": [16, 16, 2], "recurrent_filters": [16, 16, 0]}
    settings["model"] |= {"semantics": "atommic"}
    settings["data"] = {"name": "Sample", "train": 64, "val": 2, "height": 64, "width": 48, "coils": 4}
    settings["mask"]["center_fractions"] = [0.15]
    settings["loss"] = {"name": "L1SSIM", "l1": 1.0, "ssim": 0.5}
    settings["optimizer"]["lr"] = 5e-3
    settings["scheduler"] = {"name": "Cosine", "warmup": 0.1}
    settings["train"] |= {"clip": 1.0}
    (tmp_path / "learns.yaml").write_text(yaml.safe_dump(settings))
    write_sample(tmp_path / "data", slices=2, height=64, width=48, coils=4, train=1, val=3)
    run, out = tmp_path / "run", tmp_path / "out"
    assert command("train", tmp_path / "learns.yaml", "-q", "-o", run).exit_code == 0
    masked = ["--mask", "equispaced_fraction", "--acceleration", 4, "--center-fraction", 0.15, "--device", "cpu", "-q"]
    options = ["--split", "val", "--baselines", "zero_filled", "-o", tmp_path / "scores", *masked]
    assert command("evaluate", run, tmp_path / "data", *options).exit_code == 0
    means = json.loads((tmp_path / "scores" / "metrics.json").read_text())["mean"]
    assert means["CIRIM"]["psnr"] > means["zero_filled"]["psnr"] + MARGIN
    assert means["CIRIM"]["ssim"] > means["zero_filled"]["ssim"]
    # The files written are what was scored.
    assert command("reconstruct", run, tmp_path / "data" / "val", "-o", out, "--no-preview", *masked).exit_code == 0
    values = []
    for path in sorted((tmp_path / "data" / "val").iterdir()):
        with h5py.File(path) as truth, h5py.File(out / path.name) as written:
            values.append(psnr(truth["reconstruction_rss"][()], written["reconstruction"][()]))
    assert np.mean(values) == pytest.approx(means["CIRIM"]["psnr"], rel=1e-3)
