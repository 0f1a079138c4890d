"""Small tables, recipes and models that several tests share, and the command line as a function."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import Result

from recurra.core.recipe import load_recipe
from recurra.core.testing import command as command_of
from recurra.core.training import OPTIMIZERS, SCHEDULES, Build
from recurra.forecast.inference import residual_rows
from recurra.forecast.models.forecaster import Forecaster
from recurra.forecast.training import SECTIONS, ForecastSettings, ForecastTask, make_task
from recurra.forecast.verbs import VERBS

Command = Callable[..., Result]

KINDS: dict[str, dict[str, Any]] = {
    "arnet": {"model": {"name": "ARNet", "window": 8, "horizon": 4}},
    "arnet-one-step": {"model": {"name": "ARNet", "window": 6, "horizon": 1}},
    "arnet-hidden": {"model": {"name": "ARNet", "window": 8, "horizon": 4, "hidden": [5]}},
    "arnet-by-window": {"model": {"name": "ARNet", "window": 8, "horizon": 4}, "data": {"scaler": "window"}},
    "arnet-covariates": {
        "model": {"name": "ARNet", "window": 8, "horizon": 4},
        "data": {"targets": ["y"], "past": ["rain"], "future": ["price"], "static": ["kind"], "categorical": ["kind"]},
    },
    "arnet-quantiles": {
        "model": {"name": "ARNet", "window": 8, "horizon": 4, "quantiles": [0.05, 0.1, 0.5, 0.9, 0.95]},
        "loss": {"name": "Pinball", "quantiles": [0.05, 0.1, 0.5, 0.9, 0.95]},
    },
    "autoregression": {"model": {"name": "AutoRegression", "window": 5, "horizon": 4}},
    "linear": {"model": {"name": "LinearMap", "window": 8, "horizon": 4}},
    "tpgn": {"model": {"name": "TPGN", "window": 8, "horizon": 4, "period": 4, "hidden": 4, "norm": True}},
    "chimera": {
        "model": {
            "name": "Chimera",
            "window": 8,
            "horizon": 4,
            "patch": 4,
            "width": 4,
            "inner": 4,
            "states": 2,
            "scan": "wavefront",
        }
    },
    "regenn": {
        "model": {"name": "ReGENN", "window": 6, "horizon": 4, "batch_size": 4, "output_function": None},
        "data": {"scaler": "maximum", "targets": ["y", "rain"]},
    },
    "resnls": {"model": {"name": "ResNLS", "window": 5, "hidden": 6}, "data": {"scaler": "minmax"}},
}


@pytest.fixture
def csv(tmp_path: Path) -> Callable[..., Path]:
    """Writes a text, or bytes, as a file."""

    def write(text: str | bytes, name: str = "a.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture(scope="session")
def command() -> Command:
    """`recurra-forecast` with these arguments, in this process."""
    return command_of("recurra.forecast", VERBS)


def recipe_of(kind: str = "arnet", **sections: Any) -> dict[str, Any]:
    """The recipe of a kind, with what is said of its sections."""
    base: dict[str, Any] = {
        "model": {},
        "data": {"name": "Table", "csv": None, "fractions": [0.6, 0.2, 0.2]},
        "loss": {"name": "MSE"},
        "optimizer": {"name": "Adam", "lr": 0.01},
        "train": {"epochs": 2, "batch_size": 32, "device": "cpu"},
    }
    for given in (KINDS[kind], sections):
        for name, options in given.items():
            base[name] = {**base[name], **options}
    return base


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the recipe of a kind, changed section by section; returns its path."""

    def write(kind: str = "arnet", name: str = "small", **sections: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe_of(kind, **sections)))
        return path

    return write


def task_of(frame: Any, kind: str = "arnet", **sections: Any) -> ForecastTask:
    """What a kind's training begins with: the data prepared, the weights drawn or, where they can be, solved for."""
    torch.manual_seed(3)
    named = {**SECTIONS, "optimizer": OPTIMIZERS, "scheduler": SCHEDULES}
    with tempfile.TemporaryDirectory(prefix="recurra-test-") as folder:
        path = Path(folder) / "small.yaml"
        path.write_text(yaml.safe_dump(recipe_of(kind, **sections)))
        loaded = load_recipe(path, [], package="recurra.forecast", sections=named)
    settings = ForecastSettings(epochs=1)
    task, data = make_task(Build(SECTIONS, loaded), settings, frame)
    task.where = "recipe"
    if task.closed_form:
        task.solve(data)
    else:
        with torch.no_grad():
            for parameter in task.model.parameters():  # some networks begin as one that ignores its input
                parameter += 0.05 * torch.randn_like(parameter)
    return task


@pytest.fixture(scope="session")
def begun() -> Callable[..., ForecastTask]:
    """`task_of`, for tests."""
    return task_of


@pytest.fixture(scope="session")
def learned() -> Callable[..., Forecaster]:
    """A function: a model of a kind that knows a table and keeps residuals of it; weights as `task_of` leaves them."""

    def learn(frame: Any, kind: str = "arnet", **sections: Any) -> Forecaster:
        task = task_of(frame, kind, **sections)
        model = task.model.eval()
        residuals = residual_rows(model, task.prepared, task.calibration)
        return model if residuals is None else model.calibrated(residuals).eval()

    return learn


@pytest.fixture(scope="session")
def long_frame() -> Callable[..., pd.DataFrame]:
    """A function that makes series one under another, each an autoregression on a level of its own."""

    def make(
        rows: int = 120,
        ids: tuple[Any, ...] = ("a", "b", "c"),
        *,
        freq: str = "D",
        seed: int = 0,
        covariates: bool = False,
        tz: str | None = None,
    ) -> pd.DataFrame:
        generator = np.random.default_rng(seed)
        pieces = []
        for number, one in enumerate(ids):
            y, noise = np.zeros(rows + 20), generator.standard_normal(rows + 20)
            for t in range(2, rows + 20):
                y[t] = 0.6 * y[t - 1] - 0.2 * y[t - 2] + noise[t]
            stamps = pd.date_range("2024-01-01", periods=rows, freq=freq, tz=tz)
            piece = pd.DataFrame({"unique_id": [one] * rows, "ds": stamps, "y": 10.0 * (number + 1) + y[20:]})
            if covariates:
                piece["rain"] = generator.standard_normal(rows)
                piece["price"] = generator.standard_normal(rows)
                piece["kind"] = ["big", "small", "small"][number % 3]
            pieces.append(piece)
        return pd.concat(pieces, ignore_index=True)

    return make
