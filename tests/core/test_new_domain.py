"""A new domain, one format, one model and one recipe, is written in a temporary folder; all its verbs work at once."""

import importlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recurra.core.testing import command as command_of

TOY = Path(__file__).parent / "toy"


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """The command `recurra-toy` of a domain that is installed nowhere: it lies on the path."""
    place = tmp_path_factory.mktemp("domain")
    shutil.copytree(TOY, place / "recurra" / "toy")
    (place / "recurra" / "toy" / "__init__.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        command = command_of("recurra.toy", importlib.import_module("recurra.toy.verbs").VERBS)

        def run(*arguments: object, status: int = 0) -> Any:
            result = command(*arguments)
            assert result.exit_code == status, result.output
            return result

        yield run


@pytest.fixture(scope="session")
def checkpoint(toy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("toy") / "run"
    assert toy("train", "waves", "-o", run, "-q").stdout == f"checkpoint {run}\n"
    return run


@pytest.fixture
def series(tmp_path: Path) -> Path:
    folder = tmp_path / "series"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(3):
        noisy = np.sin(np.linspace(0, 12, 60) + number) + 0.3 * random.normal(size=60)
        np.savetxt(folder / f"{number}.txt", noisy)
    (folder / "bad.txt").write_text("no numbers")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_is_small() -> None:
    lines = [line for path in TOY.rglob("*") if path.is_file() for line in path.read_text().splitlines()]
    assert len([line for line in lines if line.strip()]) < 150


def test_train_writes_a_run_folder_and_resumes(toy: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    assert {"config.json", "model.safetensors", "recipe.yaml", "metrics.csv", "log.txt"} <= set(contents(checkpoint))
    toy("train", "waves", "train.epochs=2", "-o", tmp_path / "run", "-q")
    toy("train", "waves", "-o", tmp_path / "run", "--resume", "-q")
    weights = contents(checkpoint)["model.safetensors"]
    assert contents(tmp_path / "run")["model.safetensors"] == weights
    refused = toy("train", "waves", "model.hiden=2", "--tiny", "-o", tmp_path / "x", status=1)
    assert refused.stderr == "waves.yaml: model.hiden: Smoother has no such option (did you mean hidden?)\n"


def test_smooth_by_processes_shares_and_again(
    toy: Callable[..., Any], checkpoint: Path, series: Path, tmp_path: Path
) -> None:
    failed = f"1 of 4 files failed: {series}/bad.txt: could not convert string to float: 'no numbers'"
    plain = toy("smooth", checkpoint, series, "-o", tmp_path / "one", status=1)
    assert plain.stderr.startswith(failed[:60])
    whole = contents(tmp_path / "one")
    assert set(whole) == {"0.txt", "1.txt", "2.txt"}
    toy("smooth", checkpoint, series, "-o", tmp_path / "two", "--workers", 2, "-q", status=1)
    toy("smooth", checkpoint, series, "-o", tmp_path / "three", "--shard", "1/2", "-q")
    toy("smooth", checkpoint, series, "-o", tmp_path / "three", "--shard", "2/2", "-q", status=1)
    assert contents(tmp_path / "two") == contents(tmp_path / "three") == whole
    (tmp_path / "one" / "1.txt").unlink()
    again = toy("smooth", checkpoint, series, "-o", tmp_path / "one", "--resume", "-q", status=1)
    assert [line.endswith("kept") for line in again.stdout.splitlines()] == [True, False, True]
    assert contents(tmp_path / "one") == whole
    assert "exists already" in toy("smooth", checkpoint, series, "-o", tmp_path / "one", status=1).stderr
    assert "is an input" in toy("smooth", checkpoint, series, "-o", series, "--overwrite", status=1).stderr


def test_evaluate_scores_beside_the_baseline_and_writes_a_page(
    toy: Callable[..., Any], checkpoint: Path, series: Path, tmp_path: Path
) -> None:
    (series / "bad.txt").unlink()
    shown = toy("evaluate", checkpoint, series, "-o", tmp_path / "out", "--report", "-q").stdout
    assert "as_is" in shown
    assert "Smoother" in shown
    assert set(contents(tmp_path / "out")) == {"metrics.csv", "metrics.json", "report.html"}
    page = re.sub("<[^>]*>", "", (tmp_path / "out" / "report.html").read_text())
    assert f"recurra-toy evaluate {checkpoint} {series} --out {tmp_path}/out --report" in page


def test_convert_export_info_and_recipes(toy: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    from recurra.toy.training import Smoother  # type: ignore[import-not-found]

    torch.manual_seed(0)
    model = Smoother(hidden=3)
    names = {"unit.": "gru.", "head.": "out."}
    state = {names[key[:5]] + key[5:]: value for key, value in model.state_dict().items()}
    torch.save({"weights": state}, tmp_path / "theirs.pt")
    out = tmp_path / "ours"
    assert toy("convert", tmp_path / "theirs.pt", "colleague", "-o", out).stdout == f"checkpoint {out}\n"
    converted = Smoother.from_pretrained(out)
    assert all(torch.equal(value, converted.state_dict()[key]) for key, value in model.state_dict().items())
    assert "largest difference to torch" in toy("export", checkpoint, "-o", tmp_path / "smoother.pt2").stdout
    info = toy("info", out).stdout
    assert "https://example.org/smoother" in info
    assert "numbers in the units of the series" in info
    assert "waves" in toy("recipes").stdout
    assert toy("recipes", "waves").stdout == (TOY / "recipes" / "waves.yaml").read_text()


def test_every_verb_has_help(toy: Callable[..., Any]) -> None:
    for verb in ("train", "smooth", "evaluate", "convert", "export", "info", "recipes"):
        assert "Usage" in toy(verb, "--help").stdout
