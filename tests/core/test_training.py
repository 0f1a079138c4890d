import csv
import io
import json
import multiprocessing
import os
import random
import runpy
import signal
import socket
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from recurra.core.checkpoint import Pretrained
from recurra.core.errors import Interrupted, UserError
from recurra.core.files import only_one
from recurra.core.recipe import Recipe, construct
from recurra.core.sampling import Data
from recurra.core.training import Build, Report, Task, TrainSettings, fit, seed_all
from recurra.core.training import train as train_recipe


class Line(Pretrained):
    """A linear model with dropout."""

    def __init__(self, *, width: int = 4, dropout: float = 0.3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Dropout(dropout), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)


class Points(Dataset[dict[str, Any]]):
    """Noise of an epoch comes from (seed, epoch, index); asking for item `poison` gives NaN."""

    def __init__(self, count: int, *, poison: int = -1) -> None:
        self.count, self.poison, self.epoch = count, poison, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1000 * self.epoch + index)
        x = torch.rand(3, generator=generator)
        y = x.sum() if index != self.poison else x.sum() * torch.nan
        return {"x": x, "y": y, "file": f"point{index}.h5", "index": index}


def point_data(train: int = 10, validation: int = 7, *, workers: int = 0, poison: int = -1) -> Data:
    return Data(Points(train, poison=poison), Points(validation), workers=workers, val_batch_size=2)


class PlainTask(Task):
    monitor = "error"

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        return (self.model(batch["x"]) - batch["y"]).square().mean()

    def validation_step(self, batch: dict[str, Any], index: int) -> dict[str, Tensor]:
        error = (self.model(batch["x"]) - batch["y"]).abs()
        return {"error": error, "index": batch["index"].float()}

    def figure(self, batch: dict[str, Any], path: Path) -> None:
        path.write_bytes(b"png")


class LineTask(PlainTask):
    """Draws from every global generator."""

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        noise = torch.rand(()) + random.random() + np.random.rand()
        return super().training_step(batch, index) * (1 + 0.1 * noise)


SCHEDULE = {"name": "Cosine", "warmup": 2}


def train(out: Path, data: Data | None = None, *, resume: bool = False, **settings: Any) -> Report:
    seed_all(5)
    task = LineTask(Line(), optimizer={"name": "Adam", "lr": 0.05}, scheduler=SCHEDULE)
    options: dict[str, Any] = {"batch_size": 2, "device": "cpu", **settings}
    if not {"epochs", "steps"} & options.keys():
        options["epochs"] = 3
    return fit(task, data or point_data(), TrainSettings(**options), out, resume=resume, quiet=True)


def state(folder: Path) -> dict[str, Any]:
    return dict(torch.load(folder / "last" / "state.ckpt", weights_only=True))


def same_weights(one: Path, other: Path) -> bool:
    a, b = state(one), state(other)
    assert a["global_step"] == b["global_step"]
    return all(torch.equal(value, b["state_dict"][key]) for key, value in a["state_dict"].items())


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


@torch.no_grad()
def mean_error(model: Line) -> float:
    """What validation should say."""
    items = [Points(7)[index] for index in range(7)]
    return float(torch.stack([(model(item["x"][None]) - item["y"]).abs() for item in items]).mean())


# --- the run folder


def test_run_folder_is_a_checkpoint_of_the_best(tmp_path: Path) -> None:
    report = train(tmp_path / "run", epochs=4)
    table = rows(tmp_path / "run")
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4"]
    assert [row["step"] for row in table] == ["5", "10", "15", "20"]
    errors = [float(row["error"]) for row in table]
    assert report.best["error"] == min(errors)
    assert report.best["epoch"] == 1 + errors.index(min(errors))
    assert (report.epochs, report.steps, report.monitor) == (4, 20, "error")
    model = Line.from_pretrained(tmp_path / "run")
    assert model.metadata["training"]["error"] == min(errors)
    assert mean_error(model) == pytest.approx(min(errors), rel=1e-6)
    assert float(table[0]["index"]) == 3.0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"README.md", "config.json", "figures", "last", "log.txt", "metrics.csv", "model.safetensors"}
    assert [path.name for path in sorted((tmp_path / "run" / "figures").iterdir())] == [
        f"epoch-000{epoch}.png" for epoch in range(1, 5)
    ]
    assert [path.name for path in (tmp_path / "run" / "last").iterdir()] == ["state.ckpt"]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "training Line (21 parameters) on 1 x cpu" in log
    assert "epoch 4, step 20: " in log


def test_training_learns(tmp_path: Path) -> None:
    report = train(tmp_path / "run", point_data(40, 20), epochs=15)
    assert report.best["error"] < 0.3 * report.history[0]["error"]


def test_existing_run_is_refused_or_replaced(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=3)
    with pytest.raises(UserError, match=r"run: exists already and is not empty; pass --overwrite .* or pass --resume"):
        train(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").touch()
    fit(
        LineTask(Line()),
        point_data(),
        TrainSettings(epochs=1, device="cpu"),
        tmp_path / "run",
        overwrite=True,
        quiet=True,
    )
    assert len(rows(tmp_path / "run")) == 1
    assert len(list((tmp_path / "run" / "figures").iterdir())) == 1
    assert (tmp_path / "run" / "notes.txt").exists()


def test_recipe_is_written_and_must_not_change_its_model(tmp_path: Path) -> None:
    recipe = Recipe(model={"name": "Line", "sizes": (1, 2)}, train={"epochs": 1})
    settings = TrainSettings(epochs=1, device="cpu")
    fit(LineTask(Line()), point_data(), settings, tmp_path / "run", recipe=recipe, quiet=True)
    assert "sizes:" in (tmp_path / "run" / "recipe.yaml").read_text()
    longer = TrainSettings(epochs=2, device="cpu")
    fit(LineTask(Line()), point_data(), longer, tmp_path / "run", recipe=recipe, resume=True, quiet=True)
    other = Recipe(model={"name": "Line", "sizes": (1, 3)})
    with pytest.raises(UserError, match=r"recipe\.yaml: model is another one"):
        fit(LineTask(Line()), point_data(), longer, tmp_path / "run", recipe=other, resume=True, quiet=True)


def test_without_validation_the_training_loss_decides(tmp_path: Path) -> None:
    report = train(tmp_path / "run", Data(Points(10)), epochs=2)
    assert report.monitor == "loss"
    assert report.best["loss"] == min(row["train_loss"] for row in report.history)
    assert Line.from_pretrained(tmp_path / "run").metadata["training"]["epoch"] == report.best["epoch"]


def test_steps_end_within_an_epoch_with_a_validation(tmp_path: Path) -> None:
    report = train(tmp_path / "run", steps=8)
    assert report.steps == 8
    assert [row["step"] for row in rows(tmp_path / "run")] == ["5", "8"]
    assert float(rows(tmp_path / "run")[-1]["error"]) > 0
    assert state(tmp_path / "run")["recurra"]["best"] == report.best
    assert sorted(path.name for path in (tmp_path / "run" / "figures").iterdir()) == [
        "epoch-0001.png",
        "epoch-0002.png",
    ]


def test_validation_after_some_epochs_and_at_the_end(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=5, validate_every=2)
    assert [bool(row["error"]) for row in rows(tmp_path / "run")] == [False, True, False, True, True]


def test_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    fit(LineTask(Line()), point_data(), TrainSettings(epochs=2, device="cpu"), tmp_path / "run")
    assert "10/10" in screen.getvalue()
    assert "batches/s" in screen.getvalue()
    assert "epoch 2, step 20: " in screen.getvalue()


def test_progress_lines_off_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(LineTask(Line()), point_data(), TrainSettings(epochs=2, device="cpu"), tmp_path / "run")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split(",")[0].split(" (")[0] for line in captured.err.splitlines()] == [
        "training Line",
        "epoch 1",
        "epoch 2",
    ]


# --- from a recipe

RECIPE = """\
model: {name: Line, width: 3}
data: {name: Points, train: 10}
noise: {name: White, level: 2}
optimizer: {name: SGD, lr: 0.05}
scheduler: {name: Cosine, warmup: 2}
train: {epochs: 2, batch_size: 2, device: cpu, twice: true}
tiny: {data.train: 4}
"""


@dataclass(frozen=True)
class LineSettings(TrainSettings):
    twice: bool = False


def white(*, level: int = 1) -> int:
    return level


def noisy_points(*, train: int, noise: int, seed: int) -> Data:
    return Data(Points(train), Points(noise), about=f"{train} points of seed {seed}")


def from_recipe(folder: Path, *overrides: str, **options: Any) -> Report:
    def make_task(build: Build, settings: LineSettings) -> tuple[Task, Data]:
        assert settings.twice
        model = build("model")
        return LineTask(model), build("data", noise=build("noise"), seed=settings.seed)

    (folder / "line.yaml").write_text(RECIPE)
    sections: Any = {"model": {"Line": Line}, "data": {"Points": noisy_points}, "noise": {"White": white}}
    domain: Any = {"package": "recurra.core", "sections": sections, "settings": LineSettings, "make_task": make_task}
    return train_recipe(folder / "line.yaml", overrides, **domain, quiet=True, **options)


def test_a_recipe_becomes_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = from_recipe(tmp_path, "train.seed=7", "noise.level=3")
    assert report.folder == Path("runs/line")
    assert (report.epochs, report.steps) == (2, 10)
    model = Line.from_pretrained("runs/line")
    about = {"recipe": "line", "training_data": "10 points of seed 7", "noise": {"name": "White", "level": 3}}
    assert model.metadata == {**about, "training": report.best}
    assert "SGD" in Path("runs/line/recipe.yaml").read_text()
    # The seed is set before the model is built, and the sections of optimizer and scheduler are used.
    seed_all(7)
    settings = TrainSettings(epochs=2, batch_size=2, device="cpu", seed=7)
    task = LineTask(Line(width=3), optimizer={"name": "SGD", "lr": 0.05}, scheduler=SCHEDULE)
    fit(task, Data(Points(10), Points(3)), settings, tmp_path / "same", quiet=True)
    assert same_weights(tmp_path / "runs" / "line", tmp_path / "same")
    assert from_recipe(tmp_path, out="tiny", tiny=True, device="cpu").steps == 4
    assert from_recipe(tmp_path, "train.epochs=3", out="tiny", tiny=True, resume=True).steps == 6
    with pytest.raises(UserError, match="tiny: exists already"):
        from_recipe(tmp_path, out="tiny")
    assert from_recipe(tmp_path, out="tiny", overwrite=True).steps == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.lr=fast", "line.yaml: optimizer.lr: SGD expects float; got 'fast'"),
        ("data.trian=3", "line.yaml: data.trian: Points has no such option (did you mean train?)"),
        ("data.noise=3", "line.yaml: data.noise: Points has no such option (known: train)"),
        ("train.epochs=0", "line.yaml: train: epochs must be at least 1; got 0"),
    ],
)
def test_a_bad_recipe_is_one_line(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        from_recipe(tmp_path, change, out=tmp_path / "run")
    assert str(caught.value) == message
    assert not (tmp_path / "run").exists()


def test_a_misspelt_section_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "RECIPE", RECIPE.replace("scheduler:", "schedular:"))
    with pytest.raises(UserError, match=r"^line\.yaml: schedular: no such section \(did you mean scheduler\?\)$"):
        from_recipe(tmp_path)


# --- laws


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_law(tmp_path: Path, workers: int) -> None:
    train(tmp_path / "whole", point_data(workers=workers), epochs=4)
    for stop in (1, 3):
        part = tmp_path / f"part{stop}"
        seed_all(5)
        task = StoppingTask(Line(), optimizer={"name": "Adam", "lr": 0.05}, scheduler=SCHEDULE)
        task.stop = stop
        settings = TrainSettings(epochs=4, batch_size=2, device="cpu")
        with pytest.raises(Interrupted):
            fit(task, point_data(workers=workers), settings, part, quiet=True)
        assert state(part)["epoch"] == stop - 1
        torch.rand(7)  # the world goes on in between
        train(part, point_data(workers=workers), epochs=4, resume=True)
        assert same_weights(part, tmp_path / "whole")
        assert rows(part) == rows(tmp_path / "whole")
        assert Line.from_pretrained(part).metadata == Line.from_pretrained(tmp_path / "whole").metadata


class StoppingTask(LineTask):
    """Asks to stop in the last validation batch of an epoch."""

    stop: int

    def validation_step(self, batch: dict[str, Any], index: int) -> dict[str, Tensor]:
        if (self.current_epoch + 1, index) == (self.stop, 3):
            os.kill(os.getpid(), signal.SIGINT)
        return super().validation_step(batch, index)


class Stopping(Points):
    """Asks to stop when so many samples were drawn."""

    def __init__(self, count: int, at: int) -> None:
        super().__init__(count)
        self.left = at

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(index)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_law_within_an_epoch(tmp_path: Path, accumulate: int) -> None:
    train(tmp_path / "whole", epochs=3, accumulate=accumulate)
    with pytest.raises(Interrupted, match=r"interrupted in epoch 2 after batch \d; saved in .*state.ckpt, go on with"):
        train(tmp_path / "part", Data(Stopping(10, 15), Points(7), val_batch_size=2), epochs=3, accumulate=accumulate)
    assert state(tmp_path / "part")["recurra"]["batch"] > 0
    train(tmp_path / "part", epochs=3, accumulate=accumulate, resume=True)
    assert same_weights(tmp_path / "part", tmp_path / "whole")
    assert [row["error"] for row in rows(tmp_path / "part")] == [row["error"] for row in rows(tmp_path / "whole")]


def test_a_finished_run_can_go_on(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=2)
    assert train(tmp_path / "run", epochs=2, resume=True).steps == 10
    assert train(tmp_path / "run", epochs=3, resume=True).steps == 15
    assert len(rows(tmp_path / "run")) == 3


def test_seed_law(tmp_path: Path) -> None:
    train(tmp_path / "one", epochs=2, seed=1)
    train(tmp_path / "again", point_data(workers=2), epochs=2, seed=1)
    train(tmp_path / "other", epochs=2, seed=2)
    assert same_weights(tmp_path / "one", tmp_path / "again")
    assert not same_weights(tmp_path / "one", tmp_path / "other")


def test_accumulated_passes_give_the_same_step(tmp_path: Path) -> None:
    for name, accumulate in (("one", 1), ("two", 2)):
        seed_all(1)
        settings = TrainSettings(epochs=2, batch_size=4, accumulate=accumulate, device="cpu")
        fit(PlainTask(Line(dropout=0.0)), point_data(8), settings, tmp_path / name, quiet=True)
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    assert one["global_step"] == two["global_step"] == 4
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(value, two["state_dict"][key])


# --- what goes wrong


def test_loss_that_is_not_finite_names_batch_and_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is nan in epoch 1, batch \d \(.*point4\.h5.*\); look at these data"):
        train(tmp_path / "run", point_data(poison=4))
    assert "the loss is nan" in (tmp_path / "run" / "log.txt").read_text()


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run: nothing to resume \(no last/state.ckpt\)"):
        train(tmp_path / "run", resume=True)


def test_damaged_state_is_named(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=1)
    path = tmp_path / "run" / "last" / "state.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"state\.ckpt: damaged or not complete; train anew with --overwrite$"):
        train(tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "lacks",
    ["state_dict", "optimizer_states", "loops", "recurra", "recurra.random", "recurra.losses", "recurra.history"],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_state_that_is_not_complete_is_named(lacks: str, there: bool, tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=1)
    path = tmp_path / "run" / "last" / "state.ckpt"
    state = torch.load(path, weights_only=True)
    *places, name = lacks.split(".")
    within = state[places[0]] if places else state
    del within[name]
    if there:
        within[name] = "x" if name == "best" else {"x": 1}
    torch.save(state, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"state\.ckpt: damaged or not complete; train anew with --overwrite$"):
        train(tmp_path / "run", epochs=2, resume=True)
    assert path.read_bytes() == before


def test_one_process_trains_into_a_folder(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=1)
    before = (tmp_path / "run" / "log.txt").read_text()
    with only_one(tmp_path / "run" / "last", wait=False):
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match="another process writes into it; choose another --out"):
                fit(LineTask(Line()), point_data(), TrainSettings(epochs=2), tmp_path / "run", quiet=True, **options)
    assert (tmp_path / "run" / "log.txt").read_text() == before


def test_failed_save_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "run", epochs=1)
    before = (tmp_path / "run" / "last" / "state.ckpt").read_bytes()

    def full(self: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning.pytorch.Trainer.save_checkpoint", full)
    with pytest.raises(OSError, match=r"no space left on disk"):
        train(tmp_path / "run", epochs=2, resume=True)
    assert (tmp_path / "run" / "last" / "state.ckpt").read_bytes() == before
    assert [path.name for path in (tmp_path / "run" / "last").iterdir()] == ["state.ckpt"]


def test_a_training_that_gets_no_better_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = iter([3.0, 2.0, 2.5, 2.0, 2.25, 1.0])
    monkeypatch.setattr(LineTask, "validation_step", lambda self, batch, index: {"error": torch.full((2,), self.told)})
    monkeypatch.setattr(LineTask, "on_train_epoch_start", lambda self: setattr(self, "told", next(worse)))
    report = train(tmp_path / "run", epochs=6, patience=3)
    assert report.epochs == 5
    assert report.best["epoch"] == 2
    assert "no better model in 3 validations; best is epoch 2" in (tmp_path / "run" / "log.txt").read_text()


def test_a_schedule_may_go_by_epochs(tmp_path: Path) -> None:
    task = LineTask(Line(), optimizer={"name": "SGD", "lr": 1.0}, scheduler={"name": "PerEpoch", "factor": 0.1})
    settings = TrainSettings(epochs=4, batch_size=2, device="cpu")
    report = fit(task, point_data(), settings, tmp_path / "run", quiet=True)
    # What is recorded is the rate of the step that comes next.
    assert [row["learning_rate"] for row in report.history] == pytest.approx([1, 0.1, 0.01, 0.001])


def test_metric_that_decides_must_be_there(tmp_path: Path) -> None:
    task = LineTask(Line())
    task.monitor = "ssim"
    with pytest.raises(ValueError, match="validation_step: no 'ssim', which decides; it returned error, index"):
        fit(task, point_data(), TrainSettings(epochs=1, device="cpu"), tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a.yaml: train: give epochs or steps, one of both; got epochs=None, steps=None"),
        ({"epochs": 1, "steps": 1}, "a.yaml: train: give epochs or steps, one of both; got epochs=1, steps=1"),
        ({"epochs": 0}, "a.yaml: train: epochs must be at least 1; got 0"),
        ({"epochs": 1, "patience": 0}, "a.yaml: train: patience must be at least 1; got 0"),
        ({"epochs": 1, "clip": -1.0}, "a.yaml: train: clip must be positive; got -1.0"),
        ({"epochs": 1, "precision": "fp8"}, "a.yaml: train.precision must be one of 32, bf16, fp16; got 'fp8'"),
        ({"epoch": 1}, "a.yaml: train.epoch: TrainSettings has no such option (did you mean epochs?)"),
    ],
)
def test_bad_settings_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        construct(TrainSettings, options, "a.yaml: train")
    assert str(caught.value) == message


def test_precision_may_be_a_number_in_yaml() -> None:
    assert construct(TrainSettings, {"epochs": 1, "precision": 32}, "a.yaml: train").precision == "32"


def test_precision_needs_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", precision="fp16")
    message = "recipe needs CUDA for precision fp16, no GPU found; use precision=bf16 or precision=32"
    assert str(caught.value) == message
    assert not (tmp_path / "run").exists()


def test_bf16_trains(tmp_path: Path) -> None:
    train(tmp_path / "run", epochs=1, precision="bf16")
    assert Line.from_pretrained(tmp_path / "run").layers[0].weight.dtype == torch.float32


def test_batch_must_be_shared_evenly(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="batch_size 3 cannot be shared by 1 processes in 2 passes; it must be a multiple of 2"
    ):
        train(tmp_path / "run", batch_size=3, accumulate=2)


def test_run_that_cannot_start_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Points: the dataset is empty"):
        train(tmp_path / "run", point_data(0))
    assert not (tmp_path / "run").exists()


def test_absent_logger_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train.logger=wandb needs wandb; pip install 'recurra-core\[wandb\]'"):
        train(tmp_path / "run", logger="wandb")


def test_tensorboard_records(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(tmp_path / "run", epochs=1, logger="tensorboard")
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


# --- several processes

SCRIPT = """
import importlib.util, json, os, sys
from pathlib import Path
from lightning.pytorch.utilities import rank_zero_only
os.environ.update({environment!r})
rank_zero_only.rank = int(os.environ.get("RANK", 0))  # Lightning looks when it is imported, which was before
sys.stderr = open({errors!r}, "w")
spec = importlib.util.spec_from_file_location("case", {test!r})
case = importlib.util.module_from_spec(spec)
sys.modules["case"] = case
spec.loader.exec_module(case)
report = case.train_plainly(Path({out!r}), epochs={epochs})
Path({report!r}).write_text(json.dumps([report.best, report.history, report.steps]))
"""


def train_plainly(out: Path, *, epochs: int, resume: bool = False) -> Report:
    """Train without any randomness but the order's."""
    seed_all(5)
    task = PlainTask(Line(dropout=0.0), optimizer={"name": "Adam", "lr": 0.05})
    settings = TrainSettings(epochs=epochs, batch_size=4, device="cpu")
    return fit(task, point_data(10, 7), settings, out, resume=resume, quiet=True)


def start(out: Path, *, epochs: int, rank: int = 0, **environment: str) -> BaseProcess:
    """Train in a process of its own, which leaves OUT-RANK.json and OUT-RANK.txt with what it wrote to stderr."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["recurra.core.training"])  # imported once, which takes seconds
    name = out.with_name(f"{out.name}-{rank}")
    places = {"out": str(out), "errors": f"{name}.txt", "report": f"{name}.json"}
    script = SCRIPT.format(**places, test=__file__, epochs=epochs, environment=environment)
    name.with_suffix(".py").write_text(script)
    process = context.Process(target=runpy.run_path, args=(f"{name}.py",))
    process.start()
    return process


def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # What torchrun sets.
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0"}
    shared |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    out = tmp_path / "two"
    processes = [start(out, epochs=2, rank=rank, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    for rank, process in enumerate(processes):
        process.join(200)
        assert process.exitcode == 0, (tmp_path / f"two-{rank}.txt").read_text()
    reports = [json.loads((tmp_path / f"two-{rank}.json").read_text()) for rank in range(2)]
    alone = train_plainly(tmp_path / "one", epochs=2)
    for best, history, steps in reports:
        assert steps == alone.steps == 6
        # 7 samples do not share evenly; the mean of their indices says that each counted once.
        assert [row["index"] for row in history] == [row["index"] for row in alone.history] == [3.0, 3.0]
        assert [row["error"] for row in history] == pytest.approx([row["error"] for row in alone.history], rel=1e-5)
        assert best["error"] == pytest.approx(alone.best["error"], rel=1e-5)
    # Written by one process only, and whole.
    assert mean_error(Line.from_pretrained(tmp_path / "two")) == pytest.approx(alone.best["error"], rel=1e-5)
    assert (tmp_path / "two" / "log.txt").read_text().count("epoch 1, step 3") == 1
    assert [row["epoch"] for row in rows(tmp_path / "two")] == ["1", "2"]
    assert [path.name for path in (tmp_path / "two" / "last").iterdir()] == ["state.ckpt"]


# --- Ctrl-C in a real process


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path: Path) -> None:
    process = start(tmp_path / "run", epochs=100_000)
    deadline = time.monotonic() + 100
    while not (tmp_path / "run" / "last" / "state.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode not in (None, 0)
    errors = (tmp_path / "run-0.txt").read_text()
    assert "Interrupted: interrupted" in errors
    assert "state.ckpt, go on with --resume" in errors
    saved = state(tmp_path / "run")
    epochs = saved["recurra"]["epoch"] + 1
    assert train_plainly(tmp_path / "run", epochs=epochs, resume=True).steps == 3 * epochs
    train_plainly(tmp_path / "whole", epochs=epochs)
    assert same_weights(tmp_path / "run", tmp_path / "whole")


# --- models that are solved for


class MeanTask(Task):
    """The bias that fits best has a formula."""

    closed_form = True

    def solve(self, data: Data) -> dict[str, int | float]:
        points: Any = data.train
        targets = torch.stack([points[index]["y"] for index in range(len(points))])
        last = self.model.layers[-1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias.fill_(targets.mean())
        return {"loss": float(targets.var(correction=0))}


def test_a_model_that_is_solved_for_becomes_a_run_folder(tmp_path: Path) -> None:
    task, settings = MeanTask(Line(dropout=0.0)), TrainSettings(epochs=1, device="cpu")
    report = fit(task, point_data(), settings, tmp_path / "run", quiet=True, recipe={"model": {"name": "Line"}})
    targets = torch.stack([Points(10)[index]["y"] for index in range(10)])
    model = Line.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(model(torch.rand(2, 3)), targets.mean().expand(2))
    assert model.metadata["training"]["loss"] == report.best["loss"] == pytest.approx(float(targets.var(correction=0)))
    assert [row["loss"] for row in rows(tmp_path / "run")] == [str(report.best["loss"])]
    (tmp_path / "run" / "last").mkdir(exist_ok=True)
    (tmp_path / "run" / "last" / "state.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match="Line is solved for, there is nothing to resume"):
        fit(task, point_data(), settings, tmp_path / "run", resume=True, quiet=True)
    with pytest.raises(UserError, match="exists already"):
        fit(task, point_data(), settings, tmp_path / "run", quiet=True)
