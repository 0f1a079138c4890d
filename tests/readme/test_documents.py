"""The documents build without a warning, the gallery's examples included."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_documents_build(tmp_path: Path, execute: Callable[[list[str], Path], str]) -> None:
    source = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", source, ignore=shutil.ignore_patterns("_build", "examples"))
    execute([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "html"], tmp_path)
    pages = {path.relative_to(source).with_suffix(".html") for path in source.glob("**/*.md")}
    assert pages
    assert all((tmp_path / "html" / page).is_file() for page in pages)
    examples = sorted(source.glob("gallery/plot_*.py"))
    assert examples
    for example in examples:
        page = tmp_path / "html" / "examples" / f"{example.stem}.html"
        assert "sphx_glr_" in page.read_text(encoding="utf-8")


def test_page_of_speed_is_that_of_the_measurements(execute: Callable[[list[str], Path], str]) -> None:
    program = "import sys; sys.path.insert(0, 'tools'); from bench_cases.goals import page; print(page(), end='')"
    assert execute([sys.executable, "-c", program], ROOT) == (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")


def test_every_goal_names_a_case_and_its_variants(execute: Callable[[list[str], Path], str]) -> None:
    # A misspelt name would be taken for something not measured.
    program = """
import sys
sys.path.insert(0, "tools")
from bench_cases import CASES, goals
for goal in goals.GOALS:
    for measure in goal.measures:
        case = CASES[measure.case]
        assert goal.device in case.devices, measure
        variants = case.build(True, "cpu")
        assert measure.ours in variants and (not measure.rival or measure.rival in variants or goal.device == "cuda")
"""
    execute([sys.executable, "-W", "ignore", "-c", program], ROOT)
