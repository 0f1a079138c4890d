import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from recurra.core.errors import UserError
from recurra.core.recipe import (
    Recipe,
    build,
    construct,
    list_recipes,
    load_recipe,
    parse_overrides,
    recipe_text,
    save_recipe,
)

KNEE = """\
# Toy on knees.
# More about it.
model: {name: Toy, cascades: 5, hidden: [64, 2]}
data: {name: Files, fractions: [0.08, 0.04]}
optimizer: {name: Adam, lr: 1e-3}
train: {epochs: 100}
tiny: {model.cascades: 1, train.epochs: 3}
"""


class Toy:
    def __init__(
        self, cascades: int, *, hidden: tuple[int, ...] = (8,), cell: Literal["gru", "mgu"] = "gru", rate: float = 0.5,
        note: str | None = None, gates: bool = True,
    ) -> None:  # fmt: skip
        if cascades == 13:
            raise ValueError("cascades must not be 13")
        self.given = {"cascades": cascades, "hidden": hidden, "cell": cell, "rate": rate, "note": note, "gates": gates}


def fit(params: list[int], *, lr: float = 0.1) -> tuple[list[int], float]:
    return params, lr


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that ships a recipe."""
    folder = tmp_path / "lib" / "toy_domain"
    (folder / "recipes").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "recipes" / "toy-knee.yaml").write_text(KNEE)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.chdir(tmp_path)
    yield "toy_domain"
    sys.modules.pop("toy_domain", None)


def test_shipped_recipes(package: str) -> None:
    assert list_recipes(package) == {"toy-knee": "Toy on knees."}
    assert recipe_text("toy-knee", package) == KNEE
    with pytest.raises(UserError, match=r"toy-kne: no recipe of this name is shipped \(did you mean toy-knee\?\)"):
        recipe_text("toy-kne", package)
    with pytest.raises(UserError, match="no recipe of this name"):
        recipe_text("../toy-knee", package)


def test_load(package: str) -> None:
    recipe = load_recipe("toy-knee", package=package)
    assert recipe["model"] == {"name": "Toy", "cascades": 5, "hidden": [64, 2]}
    assert recipe["optimizer"]["lr"] == 0.001
    assert "tiny" not in recipe
    assert recipe.source == "toy-knee.yaml"
    assert recipe.section("scheduler") == {}


def test_overrides_win_over_tiny_over_file(package: str) -> None:
    overrides = ["train.epochs=7", "model.hidden=[1, 2]", "optimizer.lr=2e-4", "model.deep.er=a=b", "data.name=null"]
    recipe = load_recipe("toy-knee", overrides, tiny=True, package=package)
    assert recipe["model"] == {"name": "Toy", "cascades": 1, "hidden": [1, 2], "deep": {"er": "a=b"}}
    assert recipe["train"] == {"epochs": 7}
    assert recipe["optimizer"]["lr"] == 2e-4
    assert recipe["data"]["name"] is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle.cascades=1", r"toy-knee\.yaml: modle\.cascades: no such section \(did you mean model\?\)"),
        ("model.cascades", "model.cascades: expected SECTION.KEY=VALUE"),
        ("model=3", "model: expected SECTION.KEY=VALUE"),
        ("model.=3", "expected SECTION.KEY=VALUE"),
        ("model.cascades.x=3", "cascades is a value, not a section"),
        ("model.cascades=[1", r"model\.cascades=\[1: not YAML: "),
        ("model.cascades=!!python/object/apply:os.system [x]", "not YAML: could not determine a constructor"),
    ],
)
def test_bad_override_is_one_line(package: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_recipe("toy-knee", [override], package=package)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", r"x\.yaml: expected sections such as model and data, got list"),
        ("", r"x\.yaml: expected sections .*, got NoneType"),
        ("model: 3", r"x\.yaml: model: expected a section of keys and values, got 3"),
        ("a: {b: 1\nc: 2", r"x\.yaml: not YAML: .*line 2"),
        ("a: {b: 1, b: 2}", r"x\.yaml: not YAML: b is there twice"),
        ("a: !!python/name:os.system", r"x\.yaml: not YAML: could not determine a constructor"),
    ],
)
def test_bad_file_is_one_line(package: str, text: str, message: str) -> None:
    Path("x.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_recipe("x.yaml", package=package)
    assert "\n" not in str(caught.value)


def test_tiny_needs_a_section(package: str) -> None:
    Path("x.yaml").write_text("model: {name: Toy}")
    with pytest.raises(UserError, match=r"x\.yaml: has no section tiny"):
        load_recipe(Path("x.yaml"), tiny=True, package=package)


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "+1.e-3", "0.001", ".1e-2", "1_0e-4"])
def test_numbers_are_numbers(package: str, number: str) -> None:
    assert load_recipe("toy-knee", [f"optimizer.lr={number}"], package=package)["optimizer"]["lr"] == pytest.approx(
        1e-3
    )


@pytest.mark.parametrize("text", ["e-3", "1e", "v1e-3", "1e-3x"])
def test_text_stays_text(package: str, text: str) -> None:
    assert load_recipe("toy-knee", [f"data.note={text}"], package=package)["data"]["note"] == text


def test_overrides_are_read_as_a_recipe_is() -> None:
    items = ["scale=1e-3", "filters=[4, 2]", "fft=centered-ortho", "none=null", "text=a=b.yaml", "scale=2e-4"]
    values = parse_overrides(items)
    assert values == {"filters": [4, 2], "fft": "centered-ortho", "none": None, "text": "a=b.yaml", "scale": 2e-4}
    assert list(values)[-1] == "scale"
    for item in ("fft", "=3"):
        with pytest.raises(UserError, match=f"^'{item}': expected key=value, for example fft=centered-ortho$"):
            parse_overrides([item], "{!r}: expected key=value, for example fft=centered-ortho")
    with pytest.raises(UserError, match=r"^scale=\[1: not YAML: "):
        parse_overrides(["scale=[1"])


def test_resolved_recipe_repeats(package: str) -> None:
    recipe = load_recipe("toy-knee", ["model.sizes=[[1, 2], [3]]", "optimizer.lr=1e-5"], tiny=True, package=package)
    recipe["model"]["shape"] = (3, 4)
    save_recipe(recipe, Path("run/recipe.yaml"))
    again = load_recipe("run/recipe.yaml", package=package)
    assert again["model"].pop("shape") == [3, 4]
    del recipe["model"]["shape"]
    assert again == recipe
    assert [path.name for path in Path("run").iterdir()] == ["recipe.yaml"]


def test_build_makes_what_the_section_says() -> None:
    section = {"name": "Toy", "cascades": 3, "hidden": [4, 5], "cell": "mgu", "rate": 1, "note": None}
    made = build({"Toy": Toy}, section, "a.yaml: model")
    assert made.given == {"cascades": 3, "hidden": (4, 5), "cell": "mgu", "rate": 1.0, "note": None, "gates": True}
    assert section["name"] == "Toy"
    assert build({"fit": fit}, {"name": "fit", "lr": 0.5}, "a.yaml: optimizer", params=[1]) == ([1], 0.5)
    assert construct(fit, {}, "a.yaml: optimizer", params=[1]) == ([1], 0.1)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"cascades": 1}, "a.yaml: model: no name; known: Toy"),
        ({"name": "Tory"}, "a.yaml: model.name: there is no 'Tory' (did you mean Toy?)"),
        ({"name": "os.system"}, "a.yaml: model.name: there is no 'os.system' (known: Toy)"),
        ({"name": "Toy", "cascade": 1}, "a.yaml: model.cascade: Toy has no such option (did you mean cascades?)"),
        ({"name": "Toy"}, "a.yaml: model: Toy needs cascades"),
        ({"name": "Toy", "cascades": "x"}, "a.yaml: model.cascades: Toy expects int; got 'x'"),
        ({"name": "Toy", "cascades": 1.5}, "a.yaml: model.cascades: Toy expects int; got 1.5"),
        ({"name": "Toy", "cascades": None}, "a.yaml: model.cascades: Toy expects int; got None"),
        ({"name": "Toy", "cascades": 1, "cell": "lstm"}, "a.yaml: model.cell must be one of gru, mgu; got 'lstm'"),
        (
            {"name": "Toy", "cascades": 1, "hidden": [1, "x"]},
            "a.yaml: model.hidden: Toy expects tuple[int, ...]; got [1, 'x']",
        ),
        ({"name": "Toy", "cascades": 1, "note": 3}, "a.yaml: model.note: Toy expects str | None; got 3"),
        ({"name": "Toy", "cascades": 1, "rate": None}, "a.yaml: model.rate: Toy expects float; got None"),
        ({"name": "Toy", "cascades": 13}, "a.yaml: model: cascades must not be 13"),
    ],
)
def test_bad_section_is_one_line(section: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build({"Toy": Toy}, section, Recipe().where("model").replace("recipe", "a.yaml"))
    assert str(caught.value) == message


def test_given_arguments_are_not_options() -> None:
    with pytest.raises(UserError, match=r"a\.yaml: optimizer\.params: fit has no such option"):
        build({"fit": fit}, {"name": "fit", "params": 3}, "a.yaml: optimizer", params=[1])


def test_another_name_keeps_what_both_classes_have(tmp_path: Path) -> None:
    def one(path: str = ".", *, workers: int = 2, coils: int | None = None) -> None: ...
    def other(*, noise: float = 0.0, workers: int = 0, coils: tuple[int, int] = (1, 2)) -> None: ...

    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {name: other, noise: 0.1, workers: 5, coils: [6, 10]}\n")
    sections = {"data": {"one": one, "other": other}}
    changes = ["data.path=x", "data.name=one"]
    found = load_recipe(recipe, changes, package="recurra.mri", sections=sections)
    assert found == {"data": {"name": "one", "workers": 5, "path": "x"}}
    same = load_recipe(recipe, ["data.name=other"], package="recurra.mri", sections=sections)
    assert same["data"] == {"name": "other", "noise": 0.1, "workers": 5, "coils": [6, 10]}
