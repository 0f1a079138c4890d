"""One thread; Triton's interpreter where there is no GPU; golden pairs from tests/golden or a folder of that form."""

import importlib.util
import os
from pathlib import Path

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
