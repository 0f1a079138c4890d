"""What verbs of different domains share is the same in all: name, letter, default and help."""

import importlib
import inspect
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest

from recurra.core import verbs

DOMAINS = sorted(path.name for path in (Path(__file__).parents[2] / "packages").iterdir() if path.name != "core")
SHARED = {
    "batch_size": (verbs.BatchSize, None),  # the default is the domain's
    "device": (verbs.Device, "auto"),
    "overwrite": (verbs.Overwrite, False),
    "precision": (verbs.Precision, "32"),
    "quiet": (verbs.Quiet, False),
    "resume": (verbs.Resume, False),
    "shard": (verbs.Shard, None),
    "workers": (verbs.Workers, 1),
}
TRAIN = {"recipe", "overrides", "out", "resume", "tiny", "device", "overwrite", "quiet"}
OWN = {"forecast": {"seeds"}}  # what a domain's train has beyond that
WITHOUT = {"forecast": {"precision"}}  # forecasts are float32
# Of one name, but a thing of each field: the parts of its data, the methods to beat, how much fits in memory at once.
UNLIKE = {("evaluate", name) for name in ("baselines", "batch_size", "split")}


@pytest.mark.parametrize("domain", DOMAINS)
def test_shared_options_are_those_of_core(domain: str) -> None:
    found = importlib.import_module(f"recurra.{domain}.verbs").VERBS
    assert {"train", "evaluate", "convert", "export", "info"} <= {verb.__name__ for verb in found}
    seen = set()
    for verb in found:
        parameters = verb.__annotated__.parameters
        if verb.__name__ == "train":  # takes its device from the recipe, and resumes a run
            assert set(parameters) == TRAIN | OWN.get(domain, set())
            continue
        for name, (kind, default) in SHARED.items():
            if name in parameters:
                seen.add(name)
                assert get_args(parameters[name].annotation)[1:] == get_args(kind)[1:], (verb.__name__, name)
                assert name == "batch_size" or parameters[name].default == default, (verb.__name__, name)
    assert seen | WITHOUT.get(domain, set()) == set(SHARED)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_parameter_of_a_verb_is_explained(domain: str) -> None:
    for verb in importlib.import_module(f"recurra.{domain}.verbs").VERBS:
        text = inspect.getdoc(verb) or ""
        assert not [name for name in inspect.signature(verb).parameters if f"    {name}: " not in text], verb.__name__


def options(domain: str) -> dict[tuple[str, str], tuple[tuple[str, ...], Any]]:
    """(verb, parameter): its flags and its default."""
    found = {}
    for verb in importlib.import_module(f"recurra.{domain}.verbs").VERBS:
        for name, parameter in verb.__annotated__.parameters.items():
            option = next((one for one in get_args(parameter.annotation) if isinstance(one, verbs.Option)), None)
            found[verb.__name__, name] = (option.flags if option else (), parameter.default)
    return found


@pytest.mark.parametrize(("one", "other"), list(combinations(DOMAINS, 2)))
def test_options_of_one_name_are_written_alike(one: str, other: str) -> None:
    here, there = options(one), options(other)
    shared = here.keys() & there.keys() - UNLIKE
    assert {("train", "recipe"), ("evaluate", "report"), ("convert", "source"), ("export", "format")} <= shared
    assert {key: here[key] for key in shared} == {key: there[key] for key in shared}
