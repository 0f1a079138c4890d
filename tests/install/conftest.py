"""A copy of the tree, its wheels, and fresh environments that see third-party packages but nothing of this project."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUIET = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONPATH": ""}


def pip(python: Path, *arguments: str | Path, cwd: Path = ROOT) -> str:
    """Standard output of the test environment's pip working on another environment."""
    command = [sys.executable, "-m", "pip", "--python", str(python), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=os.environ | QUIET, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Environment:
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, *command: str | Path) -> str:
        """Standard output of a command of this environment, run where no checkout is in sight."""
        done = subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=self.folder,
            env=os.environ | QUIET,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def install(self, *arguments: str | Path, cwd: Path = ROOT) -> None:
        """Install from local files alone: what is missing is an error, not a download."""
        pip(self.python, "install", "-q", "--no-compile", "--no-index", "--no-build-isolation", *arguments, cwd=cwd)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """A new environment with the third-party packages of the test environment and no part of this project."""
    folder = tmp_path / "env"
    venv.create(folder, symlinks=True)
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "recurra" not in entry.name and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "third_party.pth").write_text(f"{packages}\n", encoding="utf-8")
    return Environment(folder)


def copy_tree(target: Path) -> Path:
    """A copy of what a checkout holds, without what git ignores at its root."""
    skipped = {".git", ".venv", ".bench", "demo", "dist", "runs", "data", "build", "_build", "golden"}
    ignore: Callable[[str, list[str]], set[str]] = lambda folder, names: {  # noqa: E731
        name
        for name in names
        if name.endswith(("_cache", "__pycache__"))
        or (name in skipped and Path(folder).relative_to(ROOT).parts in ((), ("docs",), ("tests",)))
    }
    shutil.copytree(ROOT, target, ignore=ignore)
    return target


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the wheels of kernels, core and the domains."""
    tree = copy_tree(tmp_path_factory.mktemp("tree") / "recurra")
    folder = tmp_path_factory.mktemp("dist")
    parts = ["./kernels", "./packages/core", "./packages/forecast", "./packages/mri"]
    pip(Path(sys.executable), "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, *parts, cwd=tree)
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the tree under its own git, so that what is not committed yet is installed too."""
    tree = copy_tree(tmp_path / "checkout")
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "--no-verify", "-m", "all"]):
        subprocess.run(["git", *command], cwd=tree, check=True, capture_output=True)
    return tree
