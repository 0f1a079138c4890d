"""Every shipped recipe resolves and builds; networks have their papers' sizes, tiny forms take a step."""

from pathlib import Path

import pytest

from recurra.core.recipe import list_recipes, load_recipe
from recurra.core.training import Build
from recurra.forecast import train
from recurra.forecast.inference import load_checkpoint
from recurra.forecast.models.forecaster import Forecaster
from recurra.forecast.protocols.training import PROTOCOLS
from recurra.forecast.training import SECTIONS, ForecastSettings, make_task

PACKAGE = "recurra.forecast"
RECIPES = sorted(list_recipes(PACKAGE))
# Parameters of the published configurations, horizons 168, 336, 720 and 1440, one variate.
TPGN = {
    "ecl": (22151, 22606, 23646, 25596),
    "traffic": (285191, 286990, 1106462, 1121852),
    "etth1": (431, 466, 546, 3372),
    "etth2": (2471, 2590, 2862, 3372),
    "weather": (983, 1046, 1190, 1460),
}
GIVEN = {"TPGN": {"variates": 1, "features": 4}, "Chimera": {"variates": 7}, "ReGENN": {"variables": 3}}


def build(name: str, *, tiny: bool = False) -> Build:
    return Build(SECTIONS, load_recipe(name, (), tiny=tiny, package=PACKAGE, sections=SECTIONS))


def model_of(made: Build) -> Forecaster:
    section = made.recipe.section("model")
    given = {key: value for key, value in GIVEN.get(section["name"], {}).items() if key not in section}
    model: Forecaster = made("model", **given)
    return model


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_complete_and_builds(name: str) -> None:
    made = build(name)
    model = model_of(made)
    assert model.window > 0
    if "protocol" in made.recipe:
        assert made.recipe["protocol"]["name"] in PROTOCOLS
        return
    assert set(made.recipe) - {"tiny"} == {"model", "data", "loss", "optimizer", "scheduler", "train"}
    assert made("loss")
    whose = made.recipe["data"].get("csv")
    assert made("data") if whose or made.recipe["data"]["name"] == "Sample" else name == "arnet"


@pytest.mark.parametrize(
    ("name", "count"),
    [
        (f"tpgn-{data}-{horizon}", count)
        for data, counts in TPGN.items()
        for horizon, count in zip((168, 336, 720, 1440), counts, strict=True)
    ],
)
def test_tpgn_has_the_published_number_of_parameters(name: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in model_of(build(name)).parameters()) == count


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in RECIPES if not name.startswith(("tpgn", "chimera"))),
        "tpgn-etth1-168",
        "tpgn-traffic-1440",
        "chimera-etth1-96",
    ],
)
def test_its_tiny_form_becomes_a_checkpoint(name: str, tmp_path: Path) -> None:
    steps = ["train.epochs=1"] if "train" in build(name, tiny=True).recipe else []
    report = train(name, steps, tiny=True, out=tmp_path / "run", device="cpu", quiet=True)
    model = load_checkpoint(report.folder)
    assert model.metadata["recipe"] == name
    assert (report.folder / "recipe.yaml").is_file()
    assert (report.folder / "metrics.csv").read_text(encoding="utf-8").count("\n") >= 2


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith(("tpgn", "chimera"))])
def test_its_tiny_form_has_data_of_its_own(name: str) -> None:
    made = build(name, tiny=True)
    task, data = make_task(made, ForecastSettings(epochs=1))
    assert len(data.train) > 0  # type: ignore[arg-type]
    assert task.model.window == made.recipe["model"]["window"]
