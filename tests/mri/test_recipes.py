"""Every shipped recipe: complete, resolvable, of the published size, and able to take a training step."""

import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from recurra.core.recipe import Recipe, build, construct, list_recipes, load_recipe, recipe_text
from recurra.core.schedules import OPTIMIZERS, SCHEDULES
from recurra.core.testing import check_written_out
from recurra.core.training import seed_all
from recurra.mri import load_checkpoint
from recurra.mri.losses import LOSSES
from recurra.mri.masks import MASKS
from recurra.mri.models import MODELS
from recurra.mri.training import SECTIONS, ReconstructionSettings, train

NAMES = sorted(list_recipes("recurra.mri"))
REFINEMENT = 484_898  # the U-Net that makes or refines coil maps, where there is one
SIZES = {
    "rim-paper": 94_080,
    "rim-paper-mgu": 77_568,
    "irim-paper": 52_992,
    "cirim-paper": 264_960,
    "cirim-paper-8": 423_936,
    "cirim-fastmri-brain": 264_960 + REFINEMENT,
    "cirim-fastmri-knee": 264_960,
    "cirim-calgary-campinas-5x": 980_480 + REFINEMENT,
    "cirim-calgary-campinas-10x": 980_480 + REFINEMENT,
    "cirim-stanford-knee": 264_960,
    "recurrentvarnet-calgary-campinas": 6_918_424 + REFINEMENT,
    "recurrentvarnet-fastmri-axt1": 2_827_320 + REFINEMENT,
    "recurrentvarnet-t11": 6_727_841 + REFINEMENT,
    "recurrentvarnet-no-rsi": 6_770_712 + REFINEMENT,
    "recurrentvarnet-shared": 994_051 + REFINEMENT,
    "recurrentvarnet-default": 3_296_045,
    "recurrentvarnet-atommic": 1_796_120,
    "rim-direct-calgary-campinas": 360_194,
    "varnet": 7_654_070,
}
# What train and the trainer hand over themselves.
GIVEN = {"mask", "preparation", "seed"}


def load(name: str, **options: Any) -> Recipe:
    return load_recipe(name, package="recurra.mri", **options)


def test_every_recipe_has_a_known_size() -> None:
    assert set(NAMES) - set(SIZES) == {"rim-small"}  # ours, and free to change
    assert set(SIZES) <= set(NAMES)


@pytest.mark.parametrize("name", SIZES)
def test_size_is_the_published_one(name: str) -> None:
    recipe = load(name)
    model = build(MODELS, recipe.section("model"), recipe.where("model"))
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name]
    # The head of the file says so too, in groups of three digits.
    head = recipe_text(name, "recurra.mri").partition("model:")[0]
    parts = [SIZES[name] - REFINEMENT, REFINEMENT] if f"{REFINEMENT:,}".replace(",", " ") in head else [SIZES[name]]
    for part in parts:
        assert f"{part:,} ".replace(",", " ") in head


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_written_out(name: str) -> None:
    recipe = load(name)
    check_written_out(recipe, SECTIONS, ReconstructionSettings, given=GIVEN)


@pytest.mark.parametrize("name", NAMES)
def test_every_section_builds(name: str) -> None:
    recipe = load(name)
    settings = construct(ReconstructionSettings, recipe.section("train"), recipe.where("train"))
    build(MASKS, recipe.section("mask"), recipe.where("mask"))
    build(LOSSES, recipe.section("loss"), recipe.where("loss"))
    parameter = torch.nn.Parameter(torch.ones(1))
    build(OPTIMIZERS, recipe.section("optimizer"), recipe.where("optimizer"), params=[parameter])
    factor = build(SCHEDULES, recipe.section("scheduler"), recipe.where("scheduler"), total=settings.steps or 1000)
    assert 0 < factor(0) < 1  # every published schedule warms up


@pytest.mark.parametrize("name", NAMES)
def test_first_line_says_what_it_is(name: str) -> None:
    line = list_recipes("recurra.mri")[name]
    assert line.endswith(".")
    assert len(line) < 120


def test_recipes_are_package_data() -> None:
    shipped = {item.name for item in (files("recurra.mri") / "recipes").iterdir()}
    assert shipped == {f"{name}.yaml" for name in NAMES}


def test_tiny_may_replace_a_section(tmp_path: Path) -> None:
    recipe = load("recurrentvarnet-shared", tiny=True)
    assert recipe["mask"] == {"name": "equispaced_fraction", "accelerations": [4], "center_fractions": [0.15]}
    assert recipe["data"]["name"] == "Sample"
    assert recipe["model"]["shared"] is True


@pytest.mark.parametrize("name", NAMES)
def test_takes_a_tiny_training_step(name: str, tmp_path: Path) -> None:
    recipe = load(name, tiny=True)
    length = "epochs" if "epochs" in recipe["train"] else "steps"
    changes = [f"train.{length}=1", "data.train=2", "data.val=1", "train.batch_size=2"]
    report = train(name, changes, out=tmp_path / "run", tiny=True, device="cpu", quiet=True)
    assert report.steps == 1
    assert all(math.isfinite(value) for value in report.best.values())
    seed_all(recipe.section("train").get("seed", 0))
    untrained = build(MODELS, recipe.section("model"), recipe.where("model")).state_dict()
    trained = load_checkpoint(tmp_path / "run").state_dict()
    assert all(torch.isfinite(weight).all() for weight in trained.values())
    assert any(not torch.equal(weight, untrained[key]) for key, weight in trained.items()), "the step moved nothing"
