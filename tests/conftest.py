"""One thread; Triton's interpreter where there is no GPU; golden pairs; a browser for what is a page.

--golden DIR reads golden pairs from a folder of the form of tests/golden. --poison fills memory that nobody has written
yet with large numbers, --shuffle SEED runs the tests in another order: both find tests that pass by chance.
"""

import importlib.util
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

# Read by glibc when a process begins: every byte of new memory is 0x7f (3.4e38 in float32 and bfloat16, 1.4e306 in
# float64, NaN in float16); a cache of its own for each thread would hand out memory as it is.
LARGE = "glibc.malloc.perturb=128:glibc.malloc.tcache_count=0"

# Read when torch is imported: a thread that waits for another does not spin meanwhile, on cores that others want.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if sys.dont_write_bytecode:
    # Where Python may keep no bytecode beside the sources, each of a run's processes would compile torch's afresh:
    # several seconds each. This run keeps it in a folder of its own.
    _bytecode = tempfile.TemporaryDirectory(prefix="recurra-bytecode-", ignore_cleanup_errors=True)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = _bytecode.name
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", metavar="DIR", type=Path, help="read golden pairs from DIR/PART/*.json")
    parser.addoption("--poison", action="store_true", help="fill memory that is not yet written with large numbers")
    parser.addoption("--shuffle", metavar="SEED", type=int, help="run the tests in an order drawn with this seed")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--poison") and os.environ.get("GLIBC_TUNABLES") != LARGE:
        begin_again(config)
    os.environ.pop("RECURRA_BACKEND", None)
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


def begin_again(config: pytest.Config) -> None:
    """The same command in a process, and processes of that one, whose memory is poisoned."""
    if not sys.platform.startswith("linux"):
        raise pytest.UsageError("--poison needs the C library of Linux")
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.stop_global_capturing()
    os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": LARGE})


# Last: pytest itself gathers the tests of a fixture first.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    if config.getoption("--shuffle") is not None:
        random.Random(config.getoption("--shuffle")).shuffle(items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # The same numbers whichever tests ran before.
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if item.config.getoption("--poison"):
        import numpy as np

        # Numpy keeps up to seven small blocks of each size and hands them out as they are.
        for size in range(4, 1024, 4):
            _ = [np.full(size, 0x7F, np.uint8) for _ in range(7)]


@pytest.fixture
def poisoned_memory() -> Callable[[], AbstractContextManager[None]]:
    """The context in which memory that is not yet written holds NaN, integers their largest value.

    Reaches `torch.empty` and its kin whoever calls them, so a kernel that forgets to write an element, or reads one it
    never wrote, shows.
    """
    import numpy as np
    import torch

    def poisoning(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **named: Any) -> Any:
            array = make(*arguments, **named)
            if array.dtype.kind in "fciu":
                array.fill(np.nan if array.dtype.kind in "fc" else np.iinfo(array.dtype).max)
            return array

        return made

    @contextmanager
    def poisoned() -> Iterator[None]:
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            for name in ("empty", "empty_like"):
                patch.setattr(np, name, poisoning(getattr(np, name)))
            # Torch fills its memory where it is told to be deterministic; only that is wanted.
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
            torch.use_deterministic_algorithms(True, warn_only=True)
            try:
                yield
            finally:
                torch.use_deterministic_algorithms(before[0], warn_only=before[1])

    return poisoned


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


@pytest.fixture(scope="session")
def straight_interpreter() -> Iterator[None]:
    """Triton's interpreter in half of its time, where it is what runs the kernels."""
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        yield
        return
    from straight_interpreter import straighten

    with pytest.MonkeyPatch.context() as patch:
        straighten(patch)
        yield
