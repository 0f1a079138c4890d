"""The pages of the units: their examples run, none is missing; and the example of tasks for a long memory."""

import csv
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import recurra.core.nn

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "kernels.md", *sorted((ROOT / "docs" / "units").glob("*.md"))]
EXAMPLE = ROOT / "docs" / "gallery" / "long_memory.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, object] = {"__name__": "__main__"}
    # In one process and one scope: a page's blocks follow each other.
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def test_every_unit_has_a_page() -> None:
    units = {
        name
        for name in recurra.core.nn.__all__
        if isinstance(thing := getattr(recurra.core.nn, name), type) and issubclass(thing, torch.nn.Module)
    }
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    parts = {"DilatedDenseMemory"}  # of DilatedFSMN
    assert {"GRU", "LSTM", "IndRNN", "FSMN"} <= units
    assert not [name for name in units - parts if not re.search(rf"\b{name}\b", text)]


def test_long_memory_tasks_run(execute: Callable[[list[str], Path], str], tmp_path: Path) -> None:
    lines = execute([sys.executable, "-W", "error", str(EXAMPLE), "--smoke"], tmp_path).splitlines()
    with (ROOT / "docs" / "bench" / "long_memory.csv").open(newline="") as file:
        kept = [(row["task"], row["network"], row["recipe"]) for row in csv.DictReader(file)]
    assert [tuple(line.split(" | ")[:3]) for line in lines] == kept


def test_page_of_long_memory_is_that_of_its_table() -> None:
    example = runpy.run_path(str(EXAMPLE))
    with (ROOT / "docs" / "bench" / "long_memory.csv").open(newline="") as file:
        page = example["page"](list(csv.DictReader(file)))
    assert page == (ROOT / "docs" / "long_memory.md").read_text(encoding="utf-8")
