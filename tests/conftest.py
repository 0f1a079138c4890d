"""One thread; Triton's interpreter where there is no GPU; golden pairs from a folder; a browser for what is a page."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", metavar="DIR", type=Path, help="read golden pairs from DIR/PART/*.json")


def pytest_configure(config: pytest.Config) -> None:
    # A part's own tests run with that part alone installed: the kernels have no core beside them.
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        if not torch.cuda.is_available():
            # Read when triton is first imported: its kernels then run on CPU tensors.
            os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("recurra") and importlib.util.find_spec("recurra.core"):
        from recurra.core.testing import use_golden

        given = config.getoption("--golden")
        if given is None:
            use_golden(Path(__file__).parent / "golden", own=True)
        elif not given.is_dir():
            raise pytest.UsageError(f"--golden {given}: no such folder")
        else:
            use_golden(given)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="module")
def visit() -> Iterator[Callable[..., Any]]:
    """Opens an HTML file in Chromium without a network; fails if it complains, asks for anything or lacks a picture."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium to look at pages with; install it with: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright to drive Chromium: pip install playwright")
    # Not for the whole session: while it runs, its thread has an event loop, and others could not start one.
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])  # root has no sandbox

        def opened(path: Path, *, width: int = 1280) -> Any:
            page = browser.new_page(viewport={"width": width, "height": 900}, offline=True)
            asked: list[str] = []
            problems: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
            page.on("console", lambda message: problems.append(message.text))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
            page.goto(path.as_uri())
            page.wait_for_load_state("networkidle")
            assert not [url for url in asked if url != path.as_uri() and not url.startswith("data:")]
            assert not problems
            assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
            return page

        yield opened
        browser.close()
