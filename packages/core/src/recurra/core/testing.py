"""What the tests of every part share: golden pairs, and a comparison that says how far off.

A golden pair is `NAME.json` (reference, config, notes, tolerance) beside `NAME.safetensors` (`state.*`, `input.*`,
`output.*`, `grad.*`), made by an architecture's own authors' code. Tests take everything from the pair, so that the
same test serves any other pair of the same form.
"""

import fnmatch
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from recurra.core.schedules import OPTIMIZERS, SCHEDULES
from recurra.core.verbs import app


@dataclass(frozen=True)
class Tolerance:
    """|actual - expected| <= atol + rtol * |expected|."""

    atol: float
    rtol: float


@dataclass(frozen=True)
class Golden:
    """One golden pair, read when its tensors are first asked for."""

    path: Path
    description: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """File name without its ending."""
        return self.path.stem

    @property
    def reference(self) -> str:
        """Repository, commit and class that made the pair."""
        return str(self.description.get("reference", ""))

    @property
    def notes(self) -> str:
        """What the tensors are and how the scalar behind the gradients is formed."""
        return str(self.description.get("notes", ""))

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments of the reference class."""
        config = self.description.get("config", {})
        return dict(json.loads(config) if isinstance(config, str) else config)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the pair under its full name."""
        return load_file(self.path.with_suffix(".safetensors"))

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors called `prefix.NAME`, under NAME."""
        return {key[len(prefix) + 1 :]: value for key, value in self.tensors.items() if key.startswith(prefix + ".")}

    @property
    def state(self) -> dict[str, Tensor]:
        """Weights under the authors' key names."""
        return self.group("state")

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Inputs of the reference."""
        return self.group("input")

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Outputs of the reference."""
        return self.group("output")

    @property
    def grads(self) -> dict[str, Tensor]:
        """Gradients of the scalar that `notes` describes, under the authors' key names."""
        return self.group("grad")

    @property
    def tolerance(self) -> Tolerance:
        """Tolerance of a float32 run."""
        return self.tolerance_for(torch.float32)

    def tolerance_for(self, dtype: torch.dtype) -> Tolerance:
        """Tolerance of a run in `dtype` (a complex type counts as its real part's).

        Raises:
            ValueError: the pair states no tolerance, or none this can read.
        """
        notes = self.description.get("notes")
        inside = notes.get("tolerance") if isinstance(notes, dict) else None
        stated = self.description.get("tolerance", inside)
        if isinstance(stated, dict):
            return Tolerance(float(stated["atol"]), float(stated["rtol"]))
        if not isinstance(stated, str):
            raise ValueError(f"{self.path.name}: tolerance: expected text or {{atol, rtol}}, got {stated!r}")
        double = dtype in (torch.float64, torch.complex128)
        return _read_tolerance(stated, double=double, where=self.path.name)


_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"


def _read_tolerance(text: str, *, double: bool, where: str) -> Tolerance:
    """Tolerance from a sentence such as "match 1e-10 in float64, 2e-5 abs+rel in float32"."""
    in_double = re.search(rf"{_NUMBER} in float64", text)
    if double and in_double:
        return Tolerance(float(in_double[1]), float(in_double[1]))
    rest = text.replace(in_double[0], "") if in_double else text
    both = re.search(rf"{_NUMBER} abs\+rel", rest)
    if both:
        return Tolerance(float(both[1]), float(both[1]))
    atol = re.search(rf"atol {_NUMBER}", rest) or re.search(rf"(?:max abs error <=|up to) {_NUMBER}", rest)
    rtol = re.search(rf"rtol {_NUMBER}", rest) or re.search(rf"{_NUMBER} relative", rest)
    if atol is None and rtol is None:
        raise ValueError(f"{where}: cannot read the tolerance {text!r}; expected e.g. 'atol 1e-5, rtol 1e-4'")
    return Tolerance(float(atol[1]) if atol else 0.0, float(rtol[1]) if rtol else 0.0)


_root: dict[str, Any] = {"folder": Path("tests/golden"), "own": True}


def use_golden(folder: Path, *, own: bool = False) -> None:
    """Make `golden` and `golden_files` read `folder/PART/*.json` from now on.

    Args:
        folder: holds one folder a part.
        own: the folder is the project's own, so a pattern that matches nothing is a mistake in the test. In a foreign
            folder it only means that there is nothing of this kind.
    """
    _root.update(folder=Path(folder), own=own)


def golden_files(part: str, pattern: str = "*", *, reference: str = "") -> list[Path]:
    """Golden pairs of a part, for `pytest.mark.parametrize`.

    Args:
        part: folder name, e.g. "mri".
        pattern: shell patterns for the file name without ending, separated by "|", e.g. "cell_convgru*|conv_gru*".
        reference: part of the pair's "reference"; a pair that has it is taken too, whatever its name is.

    Raises:
        ValueError: nothing matches in the project's own folder.
    """
    patterns = pattern.split("|")
    found = []
    for path in sorted(Path(_root["folder"], part).glob("*.json")):
        named = any(fnmatch.fnmatchcase(path.stem, one) for one in patterns)
        if named or (reference and reference in golden(path).reference):
            found.append(path)
    if not found and _root["own"]:
        raise ValueError(f"{_root['folder'] / part}: no golden pair matches {pattern!r}")
    return found


def golden(name: str | Path) -> Golden:
    """The golden pair of this name ("mri/ops"), or at this path (one of `golden_files`).

    Raises:
        ValueError: there is no such pair.
    """
    path = name if isinstance(name, Path) else Path(_root["folder"], f"{name}.json")
    if not path.is_file():
        raise ValueError(f"{path}: no such golden pair")
    return Golden(path, json.loads(path.read_text(encoding="utf-8")))


def assert_close(
    actual: "Tensor | NDArray[Any] | float",
    expected: "Tensor | NDArray[Any] | float",
    tolerance: Tolerance | None = None,
    *,
    atol: float = 0.0,
    rtol: float = 0.0,
    name: str = "value",
) -> None:
    """Assert |actual - expected| <= atol + rtol * |expected| everywhere; the report names the worst element.

    A complex `actual` may be compared to an `expected` with a trailing axis of (real, imaginary). NaN is never close to
    anything, infinities are close to themselves.

    Args:
        actual: what the code gave.
        expected: what it should be.
        tolerance: both limits at once; instead of `atol` and `rtol`.
        atol: absolute limit.
        rtol: relative limit.
        name: what the report calls the value.
    """
    limit = tolerance or Tolerance(atol, rtol)
    ours, theirs = _as_double(actual), _as_double(expected)
    if ours.is_complex() and not theirs.is_complex() and theirs.shape == (*ours.shape, 2):
        ours = torch.view_as_real(ours)
    assert ours.shape == theirs.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}"
    error = torch.where(ours == theirs, 0.0, (ours - theirs).abs()).nan_to_num(torch.inf, torch.inf)
    # An infinite expectation would allow any error at all.
    allowed = limit.atol + limit.rtol * theirs.abs().nan_to_num(0.0, 0.0)
    wrong = error > allowed
    if not wrong.any():
        return
    worst = int((error - allowed).flatten().argmax())
    index = tuple(int(i) for i in np.unravel_index(worst, ours.shape))
    relative = (error / theirs.abs()).nan_to_num(0.0, torch.inf).max()
    raise AssertionError(
        f"{name}: {int(wrong.sum())} of {wrong.numel()} values differ: max abs error {float(error.max()):.3g}, "
        f"max rel error {float(relative):.3g}; allowed atol {limit.atol:g}, rtol {limit.rtol:g}; "
        f"worst at {index}: got {ours.flatten()[worst].item():.8g}, expected {theirs.flatten()[worst].item():.8g}"
    )


def _as_double(value: "Tensor | NDArray[Any] | float") -> Tensor:
    """Value as a float64 or complex128 tensor on the CPU."""
    tensor = torch.as_tensor(value).detach().cpu()
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


# --- golden pairs


def pairs(part: str, pattern: str, *, elsewhere: bool = False, **options: Any) -> Any:
    """A mark: the test runs for every golden pair of the pattern.

    Args:
        part: folder name, e.g. "mri".
        pattern: as for `golden_files`, and so the options.
        elsewhere: the project's own folder holds none.
        options: of `golden_files`.
    """
    import pytest

    try:
        found = golden_files(part, pattern, **options)
    except ValueError:
        if not elsewhere:
            raise
        found = []
    return pytest.mark.parametrize("path", found, ids=lambda path: path.stem)


def check_outputs(pair: Golden, outputs: Mapping[str, Tensor]) -> None:
    """Assert that every output of the pair is there and equal."""
    assert pair.outputs.keys() <= outputs.keys(), pair.outputs.keys() - outputs.keys()
    for name, expected in pair.outputs.items():
        assert_close(outputs[name], expected, pair.tolerance, name=name)


def check_grads(pair: Golden, model: nn.Module, names: Mapping[str, str] | None = None) -> None:
    """Assert that every gradient of the pair is there and equal; `names` maps the authors' keys to ours."""
    ours = {key: value.grad for key, value in model.named_parameters()}
    for key, expected in pair.grads.items():
        found = ours[names[key] if names else key]
        assert found is not None, key
        assert_close(found, expected, pair.tolerance, name=f"grad {key}")


def renamed(state: Iterable[str], convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> dict[str, str]:
    """Our key for each of the authors' keys, by sending their names through the conversion."""
    order = {key: torch.tensor(i) for i, key in enumerate(state)}
    names = list(order)
    return {names[int(index)]: ours for ours, index in convert(order).items()}


# --- commands and recipes


def command(package: str, verbs: Iterable[Callable[..., Any]]) -> Callable[..., Any]:
    """The domain's command as a function of its arguments, in this process; it returns typer's Result.

    As for a user, no shape hook comes before our own checks; an exception that would be a traceback is raised.
    """
    import jaxtyping
    from typer.testing import CliRunner

    made = app(package, "Under test.", verbs)

    def run(*arguments: object) -> Any:
        with mock.patch.object(jaxtyping.config, "jaxtyping_disable", True):
            result = CliRunner().invoke(made, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def fails(command: Callable[..., Any], line: str, *arguments: object) -> None:
    """Assert that the command ends with status 1 and exactly this line on standard error."""
    result = command(*arguments)
    assert (result.exit_code, result.stderr) == (1, f"{line}\n")


def check_written_out(
    recipe: Mapping[str, Any],
    sections: Mapping[str, Mapping[str, Callable[..., Any]]],
    settings: type,
    *,
    given: Iterable[str] = (),
) -> None:
    """Assert that a recipe has every section, and each every option of what it names: the whole experiment on a page.

    Args:
        recipe: resolved.
        sections: what each may name; optimizer and scheduler are core's.
        settings: dataclass of the section `train`.
        given: arguments that do not come from recipes.
    """
    known = {**sections, "optimizer": OPTIMIZERS, "scheduler": SCHEDULES}
    assert set(recipe) == {*known, "train"}
    for section, registry in known.items():
        options = set(inspect.signature(registry[recipe[section]["name"]]).parameters)
        assert set(recipe[section]) == options - {"self", "params", "total", *given} | {"name"}, section
    length = "epochs" if "epochs" in recipe["train"] else "steps"
    assert set(recipe["train"]) == set(inspect.signature(settings).parameters) - {"epochs", "steps"} | {length}
