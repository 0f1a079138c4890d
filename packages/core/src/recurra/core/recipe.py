"""Recipes: a whole experiment as one page of YAML, whose schema is the signatures of the classes it names.

A recipe has sections (model, data, loss, optimizer, scheduler, train, ...). In most, `name` picks a class from a dict
of the domain, and the other keys are that class's constructor arguments. Section `tiny` holds what `--tiny` changes:
single options ("section.key": value) or whole sections.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from recurra.core.errors import FileError, UserError, nearest
from recurra.core.files import check_file, writing

_Kind = TypeVar("_Kind")

_LENGTH, _VALUES, _DEPTH = 2**18, 20_000, 50
"""The most characters, values and nesting of a text; recipes have some thousand, hundred and four."""


class Recipe(dict[str, Any]):
    """Sections of a recipe by name, and where they came from.

    Attributes:
        source: name of the file, for error messages.
    """

    source: str = "recipe"

    def section(self, name: str) -> dict[str, Any]:
        """A section, empty if the recipe has none of this name."""
        section: dict[str, Any] = self.get(name, {})
        return section

    def where(self, name: str) -> str:
        """How errors call a section."""
        return f"{self.source}: {name}"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but 1e-3 is a number, and a key that occurs twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a section", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# The resolvers are shared with the parent class until they are copied.
_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_WITH_EXPONENT = re.compile(r"[-+]?(\d[\d_]*(\.\d*)?|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _WITH_EXPONENT, list("-+.0123456789"))


def list_recipes(package: str) -> dict[str, str]:
    """Recipes shipped with a package: name and first line of the comment at the top."""
    return {
        entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for entry in sorted(files(package).joinpath("recipes").iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    }


def recipe_text(name: str, package: str) -> str:
    """The YAML of a shipped recipe.

    Raises:
        UserError: the package ships none of this name.
    """
    return _shipped(name, package, "no recipe of this name is shipped").read_text(encoding="utf-8")


def load_recipe(
    path_or_name: str | Path,
    overrides: Sequence[str] = (),
    *,
    tiny: bool = False,
    package: str,
    sections: Mapping[str, Mapping[str, Callable[..., Any]]] | None = None,
) -> Recipe:
    """The recipe in a file or shipped under a name, with `tiny` and then the overrides applied.

    Args:
        path_or_name: a YAML file, or the name of a recipe of the package.
        overrides: "section.key=value" each, see `parse_overrides`.
        tiny: apply the section `tiny`. That section itself is never in the result.
        package: the domain's package, e.g. "recurra.mri".
        sections: what sections may name. An override of a name keeps those options that the other class has as well.

    Raises:
        UserError: there is no such recipe, it is no YAML, or an override fits nowhere.
    """
    entry = _find(str(path_or_name), package)
    content = (
        read_yaml(entry) if isinstance(entry, Path) else parse_value(entry.read_text(encoding="utf-8"), entry.name)
    )
    if not isinstance(content, dict):
        raise UserError(f"{entry.name}: expected sections such as model and data, got {type(content).__name__}")
    recipe = Recipe(content)
    recipe.source = entry.name
    for name, section in recipe.items():
        if not isinstance(name, str):
            raise UserError(f"{recipe.source}: {name!r}: expected the name of a section")
        if not isinstance(section, dict):
            raise UserError(f"{recipe.where(name)}: expected a section of keys and values, got {shown(section)}")
        for key in section:
            if not isinstance(key, str):
                raise UserError(f"{recipe.where(name)}: {key!r}: expected the name of an option")
    reduced = recipe.pop("tiny", None)
    if tiny and reduced is None:
        raise UserError(f"{recipe.source}: has no section tiny; run it without --tiny")
    for key, value in (reduced or {}).items() if tiny else ():
        if isinstance(value, dict) and key in recipe:
            recipe[key] = value  # another class has other options
        else:
            _set(recipe, key, value, f"{recipe.source}: tiny: {key}")
    changes = parse_overrides(overrides, "{}: expected SECTION.KEY=VALUE, e.g. train.epochs=3")
    for section, kinds in (sections or {}).items():
        _rename(recipe, section, changes.get(f"{section}.name"), kinds)
    for key, value in changes.items():
        _set(recipe, key, value, f"{recipe.source}: {key}")
    return recipe


def parse_overrides(items: Sequence[str], complaint: str = "{}: expected KEY=VALUE") -> dict[str, Any]:
    """Values by key from "key=value" each; of a key that is given twice the last value holds.

    Args:
        items: as typed; a value is YAML as in a recipe, where 1e-3 is a number.
        complaint: what to say of an item without key or value.

    Raises:
        UserError: an item has no key or no value, or its value is not YAML.
    """
    values: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise UserError(complaint.format(item))
        values.pop(key, None)  # the last one comes last, too
        values[key] = parse_value(text, item)
    return values


def parse_value(text: str, where: str) -> Any:
    """YAML as plain values.

    Args:
        text: YAML, where 1e-3 is a number.
        where: file or key for error messages.

    Raises:
        UserError: it is not YAML.
    """
    if len(text) > _LENGTH:
        raise UserError(f"{where}: has {len(text):,} characters; expected at most {_LENGTH:,}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise UserError(f"{where}: not YAML: nested too deeply") from None
    except Exception as error:  # PyYAML's own, and whatever a value does that is none of its type
        said = str(error) if isinstance(error, yaml.YAMLError | UserError) else f"a value is none of its type: {error}"
        raise UserError(f"{where}: not YAML: {' '.join(said.split())[:300]}") from error


def read_yaml(path: Path) -> Any:
    """Plain values of a YAML file.

    Raises:
        OSError: it cannot be read.
        UserError: it is no file, too large, or not YAML.
    """
    check_file(path, "a YAML file")
    if path.stat().st_size > 4 * _LENGTH:
        raise FileError(path, f"has {path.stat().st_size:,} bytes; expected at most {_LENGTH:,}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileError(path, f"not YAML: not UTF-8 text: {error}") from error
    return parse_value(text, path.name)


def _count(node: yaml.Node, known: dict[int, int], depth: int = 0) -> int:
    """How many values there are once what is named in several places stands in each.

    Raises:
        UserError: too many, or they hold themselves.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise UserError("a value holds itself")
        return known[id(node)]
    if depth > _DEPTH:
        raise UserError(f"nested more than {_DEPTH} deep")
    known[id(node)], total = 0, 1
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            total += sum(_count(one, known, depth + 1) for one in (child if isinstance(child, tuple) else (child,)))
    if total > _VALUES:
        raise UserError(f"stands for more than {_VALUES:,} values")
    known[id(node)] = total
    return total


def shown(value: object) -> str:
    """A value in an error: not more of it than a reader wants to see."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def save_recipe(recipe: Mapping[str, Any], path: Path) -> None:
    """Write a recipe with everything applied; training from the file repeats the run."""
    text = yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True, width=120)
    with writing(path) as part:
        part.write_text(text, encoding="utf-8")


def build(registry: Mapping[str, Callable[..., Any]], section: Mapping[str, Any], where: str, **given: Any) -> Any:
    """What the section describes: `name` picks from the registry, the other keys are arguments.

    Args:
        registry: classes, or functions, by the names recipes use.
        section: of the recipe.
        where: file and section for error messages, e.g. "knee.yaml: model".
        given: arguments that do not come from the recipe.

    Raises:
        UserError: no such name, no such option, an option is missing or has a wrong value.
    """
    options = dict(section)
    name = options.pop("name", None)
    if name is None:
        raise UserError(f"{where}: no name; known: {', '.join(sorted(registry))}")
    if not isinstance(name, str) or name not in registry:
        raise UserError(f"{where}.name: there is no {shown(name)}{nearest(str(name)[:100], registry)}")
    return _construct(registry[name], name, options, where, given)


def construct(kind: Callable[..., _Kind], options: Mapping[str, Any], where: str, **given: Any) -> _Kind:
    """The class, or function, called with options of a recipe that are checked against its signature.

    Args:
        kind: class or function.
        options: from the recipe.
        where: file and section for error messages.
        given: arguments that do not come from the recipe.

    Raises:
        UserError: no such option, an option is missing or has a wrong value.
    """
    return _construct(kind, getattr(kind, "__name__", str(kind)), options, where, given)


def _construct(
    kind: Callable[..., _Kind], name: str, options: Mapping[str, Any], where: str, given: Mapping[str, Any]
) -> _Kind:
    """What `construct` does, of a class or function that errors call by a name."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    add = parser.add_class_arguments if inspect.isclass(kind) else parser.add_function_arguments
    known = add(kind, fail_untyped=False, skip=set(given))
    for key, value in options.items():
        if key not in known:
            raise UserError(f"{where}.{key}: {name} has no such option{nearest(key, known)}")
        if not _finite(value):
            raise UserError(f"{where}.{key}: {name} expects finite numbers; got {shown(value)}")
        if value is None and not _may_be_none(kind, key):  # jsonargparse takes it for an option that is not there
            raise UserError(_explain(f'Parser key "{key}"', kind, name, options, where))
    options = {key: _as_choice(kind, key, value) for key, value in options.items()}
    try:
        parsed = vars(parser.parse_object(dict(options), defaults=False))
    except Exception as error:  # of several types, by version
        raise UserError(_explain(str(error), kind, name, options, where)) from error
    try:
        return kind(**{key: parsed[key] for key in options}, **given)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _finite(value: Any) -> bool:
    """Whether no number in a value is NaN or infinite."""
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _may_be_none(kind: Callable[..., Any], key: str) -> bool:
    """Whether the annotation of a parameter allows None."""
    parameter = inspect.signature(kind).parameters.get(key)
    annotation = parameter.annotation if parameter else Any
    return annotation in (Any, None, inspect.Parameter.empty) or type(None) in get_args(annotation)


def _as_choice(kind: Callable[..., Any], key: str, value: Any) -> Any:
    """The value as text where the choices are texts: YAML takes `precision: 32` for a number."""
    parameter = inspect.signature(kind).parameters.get(key)
    if parameter and get_origin(parameter.annotation) is Literal and type(value) in (int, float):
        return str(value) if str(value) in get_args(parameter.annotation) else value
    return value


def _explain(message: str, kind: Callable[..., Any], name: str, options: Mapping[str, Any], where: str) -> str:
    """Jsonargparse's complaint in one line."""
    lacking = re.search(r"arguments are required: (.*)", message)
    if lacking:
        return f"{where}: {name} needs {lacking[1]}"
    found = re.search(r'Parser key "([^"]+)"', message)
    if not found:
        return f"{where}: {' '.join(message.split())[:300]}"
    key = found[1].partition(".")[0]
    parameter = inspect.signature(kind).parameters.get(key)
    annotation = parameter.annotation if parameter else None
    if get_origin(annotation) is Literal:
        choices = ", ".join(str(choice) for choice in get_args(annotation))
        return f"{where}.{key} must be one of {choices}; got {shown(options[key])}"
    expected = annotation.__name__ if type(annotation) is type else str(annotation).replace("typing.", "")
    return f"{where}.{key}: {name} expects {expected}; got {shown(options[key])}"


def _find(name: str, package: str) -> Traversable:
    """File of a recipe: a user's own, else a shipped one."""
    return Path(name) if Path(name).exists() and not Path(name).is_dir() else _shipped(name, package)


def _shipped(name: str, package: str, complaint: str = "no such file, and no recipe of this name") -> Traversable:
    """File of a shipped recipe."""
    shipped = files(package).joinpath("recipes", f"{name.removesuffix('.yaml')}.yaml")
    if re.fullmatch(r"[\w.-]+", name) and shipped.is_file():
        return shipped
    known = [entry.name.removesuffix(".yaml") for entry in files(package).joinpath("recipes").iterdir()]
    raise UserError(f"{name}: {complaint}{nearest(name, known)}")


def _set(recipe: Recipe, key: str, value: Any, where: str) -> None:
    """Set "section.key" or deeper."""
    first, *parts = key.split(".")
    if not parts or not all(parts):
        raise UserError(f"{where}: expected SECTION.KEY=VALUE, e.g. train.epochs=3")
    if len(parts) > _DEPTH:
        raise UserError(f"{where[:100]}...: nested more than {_DEPTH} deep")
    if first not in recipe:
        raise UserError(f"{where}: no such section{nearest(first, recipe)}")
    place = recipe[first]
    for part in parts[:-1]:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise UserError(f"{where}: {part} is a value, not a section")
    place[parts[-1]] = value


def _rename(recipe: Recipe, section: str, name: Any, kinds: Mapping[str, Callable[..., Any]]) -> None:
    """Drop the options of a section that the class of another name has not, or has with another type."""
    options = recipe.get(section, {})
    before = options.get("name")
    if not isinstance(name, str) or name == before or not {name, before} <= set(kinds):
        return
    types = {key: one.annotation for key, one in inspect.signature(kinds[before]).parameters.items()}
    known = inspect.signature(kinds[name]).parameters
    same = [key for key in options if key in known and known[key].annotation == types.get(key)]
    recipe[section] = {key: options[key] for key in options if key == "name" or key in same}


def plain(value: Any) -> Any:
    """The value with lists for tuples, as it comes back from a file."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
