"""Small checkpoints and k-space files that several tests share, and the command line as a function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import Result

from recurra.core.testing import command as command_of
from recurra.mri.data.phantom import phantom_slice
from recurra.mri.data.sample import write_sample, write_volume
from recurra.mri.models import CIRIM
from recurra.mri.verbs import VERBS

Command = Callable[..., Result]

HEIGHT, WIDTH, COILS = 48, 40, 3
RECIPE: dict[str, Any] = {
    "model": {
        "name": "CIRIM",
        "cascades": 1,
        "steps": 2,
        "round_steps": False,
        "conv_filters": [4, 4, 2],
        "recurrent_filters": [4, 4, 0],
        "maps": "rss",
    },
    "data": {"name": "Sample", "train": 4, "val": 3, "height": 32, "width": 24, "coils": 2},
    "mask": {"name": "equispaced_fraction", "accelerations": [4], "center_fractions": [0.2]},
    "loss": {"name": "L1"},
    "optimizer": {"name": "Adam", "lr": 0.003},
    "scheduler": {"name": "Cosine"},
    "train": {"epochs": 2, "batch_size": 1, "device": "cpu"},
    "tiny": {"data.train": 1, "data.val": 1},
}


def small_cirim(**options: Any) -> CIRIM:
    """A CIRIM of two steps with random weights; with `idle=True` its image is the zero-filled one."""
    idle = options.pop("idle", False)
    settings: dict[str, Any] = {
        "cascades": 1,
        "steps": 2,
        "round_steps": False,
        "cell": "indrnn",
        "conv_filters": (4, 4, 2),
        "recurrent_filters": (4, 4, 0),
        "fft": "centered-ortho",
        "maps": "rss",
        "scaling": "max_image",
    }
    torch.manual_seed(0)
    model = CIRIM(**{**settings, **options}).eval()
    if idle:
        for parameter in model.parameters():
            parameter.data.zero_()
    return model


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that saves a `small_cirim` with these options; returns its folder."""

    def make(**options: Any) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint") / "model"
        small_cirim(**options).save_pretrained(folder, metadata={"license": "apache-2.0", "training_data": "none"})
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint with random weights; read only."""
    return make_checkpoint()


@pytest.fixture(scope="session")
def phantoms() -> np.ndarray:
    """K-space of three slices (slice, coil, height, width)."""
    return np.stack([phantom_slice(HEIGHT, WIDTH, COILS, (9, index), noise=0.002)[0] for index in range(3)])


@pytest.fixture(scope="session")
def volume(phantoms: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fully sampled fastMRI file of three slices; read only."""
    path = tmp_path_factory.mktemp("volume") / "knee.h5"
    write_volume(path, phantoms)
    return path


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample's train, val and test files, one small slice each; read only."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, slices=1, height=HEIGHT, width=WIDTH, coils=COILS, train=1, val=1)
    return folder


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of the smallest of everything: two epochs of four steps; read only."""
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="session")
def command() -> Command:
    """`recurra-mri` with these arguments, in this process."""
    return command_of("recurra.mri", VERBS)
