"""Rules about the tree that no single part can check for itself."""

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = {
    path.parent.name: path.parent for path in [ROOT / "kernels/pyproject.toml", *ROOT.glob("packages/*/pyproject.toml")]
}
DOMAINS = set(PARTS) - {"kernels", "core"}
SOURCES = sorted(path for part in PARTS.values() for path in part.glob("src/**/*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of the recurra modules that a file imports anywhere, functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("recurra.")}


def allowed(part: str) -> set[str]:
    """Parts that a part may import: kernels <- core <- domain, and never another domain."""
    return {"kernels": {"kernels"}, "core": {"kernels", "core"}}.get(part, {"kernels", "core", part})


@pytest.mark.parametrize("part", PARTS)
def test_imports_point_downwards(part: str) -> None:
    files = sorted(PARTS[part].glob("src/**/*.py"))
    assert files
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in imported(path)
        if name.split(".")[1] not in allowed(part)
    }
    assert not wrong


@pytest.mark.parametrize("part", PARTS)
def test_declared_dependencies_point_downwards(part: str) -> None:
    project = tomllib.loads((PARTS[part] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    ours = {match[1] for one in declared if (match := re.match(r"recurra-(\w+)", one))}
    assert ours <= allowed(part)


@pytest.mark.parametrize("part", PARTS)
def test_no_upper_bounds(part: str) -> None:
    project = tomllib.loads((PARTS[part] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    capped = [one for one in declared if re.search(r"<|~=|==", one.split(";")[0]) and not one.startswith("recurra-")]
    assert not capped


def test_namespace_has_no_init() -> None:
    assert not list(ROOT.glob("**/recurra/__init__.py"))


@pytest.mark.parametrize("part", PARTS)
def test_part_is_typed(part: str) -> None:
    assert (PARTS[part] / "src" / "recurra" / part / "py.typed").is_file()


def test_no_init_among_tests() -> None:
    assert not list((ROOT / "tests").glob("**/__init__.py"))


UNSAFE = re.compile(
    r"\b(import|from) c?[Pp]ickle\b|\bpickle\.\w|weights_only\s*=\s*False|\byaml\.(unsafe_|full_)?load\("
    r"|^\s*(import|from) (dill|joblib|shelve|marshal)\b",
    re.MULTILINE,
)


def test_one_file_alone_reads_foreign_checkpoints() -> None:
    found = [path.relative_to(ROOT).as_posix() for path in SOURCES if UNSAFE.search(path.read_text(encoding="utf-8"))]
    assert len(found) <= 1
    assert all(name.startswith("packages/core/src/recurra/core/") for name in found)


def test_torch_load_is_always_restricted() -> None:
    calls = [
        ast.unparse(node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert not [call for call in calls if "weights_only=True" not in call]


def test_no_lock_file() -> None:
    locks = {"uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "pylock.toml", "conda-lock.yml"}
    assert not [
        path for folder in (ROOT, *PARTS.values()) for path in folder.iterdir() if path.name in locks and tracked(path)
    ]


def tracked(path: Path) -> bool:
    return (
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", path], cwd=ROOT, capture_output=True, check=False
        ).returncode
        == 0
    )


def test_development_tools_are_listed_once() -> None:
    text = {
        path: path.read_text(encoding="utf-8")
        for path in [
            ROOT / "pyproject.toml",
            ROOT / "requirements-dev.txt",
            *(folder / "pyproject.toml" for folder in PARTS.values()),
        ]
    }
    listing = {
        path.relative_to(ROOT).as_posix()
        for path, content in text.items()
        if re.search(r"^\s*\"?(pytest|ruff|mypy)\b[\"=>]", content, re.MULTILINE)
    }
    assert listing == {"packages/core/pyproject.toml"}


def test_constraints_are_exact() -> None:
    lines = [
        line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert not [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.]+", line)]


def test_nothing_shipped_is_ignored_by_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = [
        path
        for part in PARTS.values()
        for path in part.glob("src/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    listed = subprocess.run(
        ["git", "check-ignore", "--stdin"],
        cwd=ROOT,
        input="\n".join(map(str, files)),
        text=True,
        capture_output=True,
        check=False,
    )
    assert listed.stdout == ""


def test_versions_agree() -> None:
    done = subprocess.run([ROOT / "tools/bump"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_bump_reaches_every_place(tmp_path: Path) -> None:
    copied = [
        "pyproject.toml",
        "CITATION.cff",
        "tools/bump",
        *(f"{folder.relative_to(ROOT)}/pyproject.toml" for folder in PARTS.values()),
    ]
    for name in copied:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run([tmp_path / "tools/bump", "7.8.9"], check=True, capture_output=True)
    old = subprocess.run([ROOT / "tools/bump"], capture_output=True, text=True, check=True).stdout.strip()
    for name in copied:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert f'"{old}"' not in text
        assert f"=={old}" not in text
        assert "7.8.9" in text or name == "tools/bump"
    assert not list(tmp_path.glob("**/*.old"))


def test_bump_refuses_what_is_no_version() -> None:
    done = subprocess.run([ROOT / "tools/bump", "latest"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "not a version: latest (expected 1.2.3 or 1.2.3rc1)\n"


@pytest.mark.parametrize("tool", ["tools/demo", "tools/test", "tools/docs", "tools/bump", "tools/bench", ".ci/run"])
def test_tools_can_be_run(tool: str) -> None:
    assert (ROOT / tool).stat().st_mode & 0o111


def test_large_files_stay_where_they_are_meant_to_be() -> None:
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    paths = [Path(name) for name in files if name and (ROOT / name).is_file()]
    large = [
        path for path in paths if (ROOT / path).stat().st_size > 1024 * 1024 and path.parts[:2] != ("tests", "golden")
    ]
    assert not large
    assert sum((ROOT / path).stat().st_size for path in paths if path.parts[:2] == ("tests", "golden")) < 20e6
    assert sum((ROOT / path).stat().st_size for path in paths if "samples" in path.parts) <= 1e6 * len(DOMAINS)
