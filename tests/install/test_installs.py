"""Every documented way to install ends in the same set of parts, each importable and complete."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = """
import importlib, importlib.metadata as metadata, importlib.resources as resources, json, sys
domain = sys.argv[1]
names = sorted(d.name for d in metadata.distributions() if d.name == "recurra" or d.name.startswith("recurra-"))
paths = {part: next(iter(importlib.import_module(f"recurra.{part}").__path__)) for part in ("kernels", "core", domain)}
version = importlib.import_module(f"recurra.{domain}").__version__
folder = resources.files(f"recurra.{domain}") / "recipes"
recipes = [len(path.read_bytes()) for path in folder.iterdir() if path.name.endswith(".yaml")]
print(json.dumps({"names": names, "paths": paths, "version": version, "recipes": recipes}))
"""
BASE = ["recurra-core", "recurra-kernels"]
MRI = [*BASE, "recurra-mri"]
VERB = {"forecast": "backtest", "mri": "reconstruct"}


def installed(environment, domain: str = "mri") -> dict[str, object]:
    found = json.loads(environment.run("python", "-c", CHECK, domain))
    assert found["version"] == "0.1.0"
    assert len(found["recipes"]) >= 5
    assert min(found["recipes"]) > 0
    assert VERB[domain] in environment.run(f"recurra-{domain}", "--help")
    return found


@pytest.mark.parametrize("domain", VERB)
def test_from_the_root(domain: str, environment, tree: Path) -> None:
    environment.install(f".[{domain}]", cwd=tree)
    found = installed(environment, domain)
    # The domain alone: no other one comes with it.
    assert found["names"] == sorted(["recurra", *BASE, f"recurra-{domain}"])
    assert all(path.startswith(str(environment.folder)) for path in found["paths"].values())


def test_from_git(environment, tree: Path) -> None:
    environment.install(f"recurra[mri] @ git+file://localhost{tree}")
    assert installed(environment)["names"] == ["recurra", *MRI]


def test_part_by_part(environment, tree: Path) -> None:
    environment.install("./kernels", "./packages/core", "./packages/mri", cwd=tree)
    assert installed(environment)["names"] == MRI


@pytest.mark.parametrize("domain", VERB)
def test_from_wheels(domain: str, environment, wheels: Path) -> None:
    environment.install("--find-links", wheels, f"recurra-{domain}")
    assert installed(environment, domain)["names"] == sorted([*BASE, f"recurra-{domain}"])


def test_for_development(environment) -> None:
    environment.install("-r", "requirements-dev.txt")
    for domain in VERB:
        found = installed(environment, domain)
        assert found["names"] == sorted([*BASE, *(f"recurra-{one}" for one in VERB)])
        assert all(path.startswith(str(ROOT)) for path in found["paths"].values())


ALONE = """
import importlib.metadata, sys
import torch
from recurra.kernels import explain, linear_scan

a = torch.rand(2, 50, 3, requires_grad=True)
b, h0 = torch.randn(2, 50, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
h, last = linear_scan(a, b, h0)
state, states = h0, []
for a_t, b_t in zip(a.unbind(1), b.unbind(1)):
    state = a_t * state + b_t
    states.append(state)
torch.testing.assert_close(h, torch.stack(states, 1))
torch.testing.assert_close(last, state)
for got, want in zip(*(torch.autograd.grad(y.sum(), [a, b, h0]) for y in (h, torch.stack(states, 1)))):
    torch.testing.assert_close(got, want)
rejected = explain(linear_scan, a, b, h0).rejected
print(importlib.metadata.version("recurra-kernels"), rejected["numba"], rejected["triton"], sep="\\n")
print(sorted({"numba", "triton", "jaxtyping", "recurra.core"} & set(sys.modules)))
"""


def test_kernels_alone(environment) -> None:
    # Torch is all they need: none of the extras is there, nor the other parts.
    hidden = ("numba", "llvmlite", "triton")
    for entry in (environment.folder.parent / "packages").iterdir():
        if entry.name.split("-")[0].split(".")[0] in hidden:
            entry.unlink()
    environment.install("./kernels")
    assert environment.run("python", "-c", ALONE).splitlines() == [
        "0.1.0",
        "numba is not installed; pip install 'recurra-kernels[numba]'",
        "triton is not installed; pip install 'recurra-kernels[triton]'",
        "[]",
    ]


@pytest.mark.parametrize("domain", VERB)
def test_a_domain_alone_cannot_find_core(domain: str, environment) -> None:
    with pytest.raises(AssertionError, match="recurra-core"):
        environment.install(f"./packages/{domain}")
    assert "alone cannot find" in (ROOT / f"packages/{domain}/README.md").read_text(encoding="utf-8")
