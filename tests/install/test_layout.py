"""Rules about the tree that no single part can check for itself."""

import ast
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Iterator, Mapping
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


def module_of(path: Path) -> str:
    """Dotted name of a source file; that of the folder for its `__init__`."""
    parts = path.with_suffix("").parts
    names = parts[len(parts) - parts[::-1].index("src") :]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imports(tree: ast.AST, *, typing: bool = False) -> Iterator[tuple[str, str]]:
    """(name here, dotted name) of what is imported at any depth, functions included, either when the module runs or
    only for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and not typing:
            source = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            yield from ((alias.asname or alias.name, source + alias.name) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from imports(ast.Module(node.body if typing else node.orelse, []))
        else:
            yield from imports(node, typing=typing)


def graph(sources: Iterable[Path]) -> dict[str, set[str]]:
    """For every module the modules that it needs, when it is imported or later."""
    trees = {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sources}
    # Lazy folders say for type checkers where a name is from.
    homes = {f"{folder}.{name}": origin for folder in trees for name, origin in imports(trees[folder], typing=True)}

    def home(name: str) -> str:
        name = homes.get(name, name)
        return name if name in trees else name.rpartition(".")[0]

    return {
        module: {home(name) for _, name in imports(tree)} & trees.keys() - {module} for module, tree in trees.items()
    }


def by_folder(graph: Mapping[str, set[str]], folders: Iterable[str]) -> dict[str, set[str]]:
    """The graph with each folder as one module."""

    def place(module: str) -> str:
        return next((folder for folder in folders if f"{module}.".startswith(f"{folder}.")), module)

    merged: dict[str, set[str]] = {place(module): set() for module in graph}
    for module, others in graph.items():
        merged[place(module)] |= {place(other) for other in others} - {place(module)}
    return merged


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """Groups of modules that need each other, each as its imports."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            new = graph[ahead.pop()] - seen
            seen |= new
            ahead += new
        return seen

    reach = {module: reached(module) for module in graph}
    groups = {frozenset(b for b in reach[a] if a in reach[b]) for a in graph}
    return sorted(
        "; ".join(f"{a} -> {b}" for a in sorted(group) for b in sorted(graph[a] & group))
        for group in groups - {frozenset()}
    )


def test_no_module_needs_itself() -> None:
    whole = graph(SOURCES)
    assert len(whole) == len(SOURCES)
    assert circles(whole) == []
    folders = sorted(
        module_of(path) for path in SOURCES if path.name == "__init__.py" and path.parents[2].name != "src"
    )
    assert circles(by_folder(whole, folders)) == []


def test_circles_are_found(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from recurra.toy.a import A",
        "a.py": "import typing\nif typing.TYPE_CHECKING:\n    from recurra.toy.b import B\nfrom recurra.toy import c",
        "b.py": "from recurra.toy import A\nimport recurra.toy.c",
        "c.py": "from recurra.toy.data.d import D",
        "e.py": "def late():\n    from recurra.toy.data import d",
        "data/__init__.py": "",
        "data/d.py": "import os, torch",
        "data/f.py": "",
    }
    folder = tmp_path / "src" / "recurra" / "toy"
    (folder / "data").mkdir(parents=True)

    def found(**more: str) -> tuple[list[str], list[str]]:
        for name, text in {**files, **{f"data/{name}.py": text for name, text in more.items()}}.items():
            (folder / name).write_text(text)
        whole = graph(folder.glob("**/*.py"))
        return circles(whole), circles(by_folder(whole, ["recurra.toy.data"]))

    assert found() == ([], [])
    in_folders = "recurra.toy.data -> recurra.toy.e; recurra.toy.e -> recurra.toy.data"
    assert found(f="import recurra.toy.e") == ([], [in_folders])
    late = "recurra.toy.data.d -> recurra.toy.e; recurra.toy.e -> recurra.toy.data.d"
    assert found(d="import recurra.toy.e", f="") == ([late], [in_folders])
    lazy = ["a -> c", "c -> data.d", "data.d -> a"]
    (both,), _ = found(d="def late():\n    from recurra.toy import A")
    assert both == "; ".join(" -> ".join(f"recurra.toy.{name}" for name in one.split(" -> ")) for one in lazy)


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
