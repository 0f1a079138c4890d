"""Every part's wheel holds every file of its source, and opens them."""

import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = {"kernels": "kernels", **{name: f"packages/{name}" for name in ("core", "forecast", "mri")}}


@pytest.mark.parametrize("part", PARTS)
def test_wheel_holds_the_whole_source(part: str, wheels: Path) -> None:
    source = ROOT / PARTS[part] / "src"
    files = {
        p.relative_to(source).as_posix() for p in source.glob("**/*") if p.is_file() and "__pycache__" not in p.parts
    }
    with zipfile.ZipFile(next(wheels.glob(f"recurra_{part}-*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert packed == files
        assert f"recurra/{part}/py.typed" in packed
        assert all(wheel.read(name) == (source / name).read_bytes() for name in files)


@pytest.mark.parametrize("domain", ["forecast", "mri"])
def test_wheel_of_a_domain_holds_recipes(domain: str, wheels: Path) -> None:
    with zipfile.ZipFile(next(wheels.glob(f"recurra_{domain}-*.whl"))) as wheel:
        recipes = [
            name
            for name in wheel.namelist()
            if name.startswith(f"recurra/{domain}/recipes/") and name.endswith(".yaml")
        ]
    assert len(recipes) >= 5


@pytest.mark.parametrize("part", PARTS)
def test_wheel_carries_version_and_licence(part: str, wheels: Path) -> None:
    project = tomllib.loads((ROOT / PARTS[part] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(next(wheels.glob(f"recurra_{part}-{project['version']}-py3-none-any.whl"))) as wheel:
        metadata = wheel.read(f"recurra_{part}-{project['version']}.dist-info/METADATA").decode()
    assert f"\nVersion: {project['version']}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
