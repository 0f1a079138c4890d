"""What verbs of different domains share is the same in all: name, letter, default and help."""

import importlib
import inspect
from pathlib import Path
from typing import get_args

import pytest

from recurra.core import verbs

DOMAINS = sorted(path.name for path in (Path(__file__).parents[2] / "packages").iterdir() if path.name != "core")
SHARED = {
    "batch_size": (verbs.BatchSize, 1),
    "device": (verbs.Device, "auto"),
    "overwrite": (verbs.Overwrite, False),
    "precision": (verbs.Precision, "32"),
    "quiet": (verbs.Quiet, False),
    "resume": (verbs.Resume, False),
    "shard": (verbs.Shard, None),
    "workers": (verbs.Workers, 1),
}
TRAIN = {"recipe", "overrides", "out", "resume", "tiny", "device", "overwrite", "quiet"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_shared_options_are_those_of_core(domain: str) -> None:
    found = importlib.import_module(f"recurra.{domain}.verbs").VERBS
    assert {"train", "evaluate", "convert", "export", "info"} <= {verb.__name__ for verb in found}
    seen = set()
    for verb in found:
        parameters = verb.__annotated__.parameters
        if verb.__name__ == "train":  # takes its device from the recipe, and resumes a run
            assert set(parameters) == TRAIN
            continue
        for name, (kind, default) in SHARED.items():
            if name in parameters:
                seen.add(name)
                assert get_args(parameters[name].annotation)[1:] == get_args(kind)[1:], (verb.__name__, name)
                assert parameters[name].default == default, (verb.__name__, name)
    assert seen == set(SHARED)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_parameter_of_a_verb_is_explained(domain: str) -> None:
    for verb in importlib.import_module(f"recurra.{domain}.verbs").VERBS:
        text = inspect.getdoc(verb) or ""
        assert not [name for name in inspect.signature(verb).parameters if f"    {name}: " not in text], verb.__name__
