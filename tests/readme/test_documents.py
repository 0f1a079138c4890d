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
