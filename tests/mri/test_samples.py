"""The checkpoint that ships with the package."""

from pathlib import Path

import pytest

from recurra.mri import Undersampling, evaluate, load_checkpoint, reconstruct
from recurra.mri.data import write_sample

COLUMNS = Undersampling("equispaced_fraction", 4.0, 0.08)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_sample(folder, slices=1, seed=0, train=1, val=4)
    return folder


def test_rim_small_beats_zero_filling_by_far_on_slices_it_has_never_seen(volumes: Path) -> None:
    table = evaluate("rim-small", volumes / "val", undersampling=COLUMNS, baselines=("zero_filled",), quiet=True)
    scores = {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}
    assert scores["CIRIM"]["psnr"] > scores["zero_filled"]["psnr"] + 7
    assert scores["CIRIM"]["ssim"] > scores["zero_filled"]["ssim"] + 0.3


def test_rim_small_reconstructs_both_kinds_of_masked_files(volumes: Path, tmp_path: Path) -> None:
    results = reconstruct("rim-small", volumes / "test", tmp_path, preview=False, quiet=True)
    assert [result.error for result in results] == [None, None]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phantom_test_0.h5", "phantom_test_1.h5"]


def test_rim_small_says_where_it_comes_from() -> None:
    model = load_checkpoint("rim-small")
    assert model.metadata["license"] == "apache-2.0"
    assert "phantoms" in model.metadata["training_data"]
