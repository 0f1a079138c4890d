"""Every command of README.md and docs/ is run, in the order of its page, on generated data."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("**/*.md") if "_build" not in path.parts)]
# Their blocks build on each other and need nothing beside them: test_units.py runs them.
CONNECTED = [ROOT / "docs" / "kernels.md", *(ROOT / "docs" / "units").glob("*.md")]
# These make or need a whole environment; tests/install and the continuous check run them.
ELSEWHERE = re.compile(r"(tools/\w+|git clone|cd |pip install|uv )")


NAMES: Callable[[Path], str] = lambda page: page.relative_to(ROOT).with_suffix("").as_posix()  # noqa: E731


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```([\w{}-]*)[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in found]


def runnable(page: Path) -> list[Block]:
    """Blocks to run, without the lines that are tested elsewhere."""
    kept = []
    for block in blocks(page):
        if block.language == "bash":
            lines = [line for line in block.text.splitlines() if not ELSEWHERE.match(line)]
            block = Block("bash", "\n".join(lines))
        if block.language in ("bash", "python") and re.sub(r"^\s*#.*$", "", block.text, flags=re.MULTILINE).strip():
            kept.append(block)
    return kept


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page) and page not in CONNECTED], ids=NAMES)
def test_page_runs(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest, execute: Callable[[list[str], Path], str]
) -> None:
    found = runnable(page)
    text = "".join(block.text for block in found)
    used = {
        "recurra-mri": "trained",
        "recurra.mri": "trained",
        "recurra-forecast": "tables",
        "recurra.forecast": "tables",
    }
    given = {name for word, name in used.items() if word in text}
    for source in map(request.getfixturevalue, sorted({*given, "authors_files"})):
        # What a page makes itself is not given to it.
        given = [path for path in source.iterdir() if not any(f"--out {path.name}\n" in f"{b.text}\n" for b in found)]
        for path in given:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    for block in found:
        if block.language == "bash":
            execute(["bash", "-euo", "pipefail", "-c", block.text], tmp_path)
        else:
            execute([sys.executable, "-W", "ignore", "-c", block.text], tmp_path)


def test_every_block_is_of_a_known_kind() -> None:
    kinds = {block.language for page in PAGES for block in blocks(page)}
    assert {kind for kind in kinds if not kind.startswith("{")} <= {"bash", "python", "yaml", "text", "toml"}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=NAMES)
def test_mentioned_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    links = set(re.findall(r"\]\((?!https?://)([^)#]+)", prose))
    assert not [link for link in links if not (page.parent / link).exists()]
    tools = set(re.findall(r"(?:tools|\.ci)/\w+(?:\.py)?", text))
    assert not [tool for tool in tools if not (ROOT / tool).is_file()]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=NAMES)
def test_mentioned_verbs_exist(page: Path, execute: Callable[[list[str], Path], str], tmp_path: Path) -> None:
    for command in ("recurra-forecast", "recurra-mri"):
        verbs = set(re.findall(rf"{command} ([a-z]+)", page.read_text(encoding="utf-8")))
        if verbs:
            listed = execute([command, "--help"], tmp_path)
            assert not [verb for verb in verbs if not re.search(rf"\b{verb}\b", listed)]


def test_every_measured_number_has_its_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.search(
        r"^\| what \| published \| reproduced \| command \|\n\|[ :|-]+\n((?:\|.*\n)+)", text, re.MULTILINE
    )
    assert table
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table[1].splitlines()]
    assert any(re.search(r"\d", reproduced) for _, _, reproduced, _ in rows)
    assert not [
        row for row in rows if not re.fullmatch(r"`(recurra-mri|recurra-forecast|python tools/|tools/)[^`]+`", row[3])
    ]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
