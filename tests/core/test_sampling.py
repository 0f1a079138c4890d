"""Data of a training and the order of its samples; learning-rate schedules."""

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from recurra.core.errors import UserError
from recurra.core.sampling import (
    Cached,
    Data,
    EpochDataset,
    TrainBatches,
    ValidationBatches,
    find_files,
    train_loader,
    validation_loader,
)
from recurra.core.schedules import SCHEDULES


class Draws(EpochDataset):
    """Every sample is what its seed draws."""

    def __init__(self, count: int, *, seed: int = 0, fixed: bool = False) -> None:
        self.count, self.seed, self.fixed = count, seed, fixed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": np.random.default_rng(self.seed_of(index)).random(), "index": index}


def draws(data: Data, epoch: int) -> dict[int, float]:
    """What the samples of an epoch are, by index."""
    loader = train_loader(data, 4, processes=1, accumulate=2, seed=3)
    batches: Any = loader.batch_sampler
    batches.set_epoch(epoch)
    return {int(i): float(x) for batch in loader for i, x in zip(batch["index"], batch["x"], strict=True)}


# --- data


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_sample_depends_on_seed_epoch_and_index_alone() -> None:
    data = Data(Draws(7, seed=1))
    first = draws(data, 1)
    assert sorted(first) == list(range(7))
    assert len(set(first.values())) == 7
    assert draws(Data(Draws(7, seed=1), workers=2), 1) == first
    assert not set(draws(data, 2).values()) & set(first.values())
    assert not set(draws(Data(Draws(7, seed=2)), 1).values()) & set(first.values())
    assert draws(data, 1) == first
    fixed = Data(Draws(7, seed=1, fixed=True))
    assert draws(fixed, 1) == draws(fixed, 2)


def test_validation_is_in_order_and_may_be_missing() -> None:
    assert validation_loader(Data(Draws(7)), processes=1) is None
    loader = validation_loader(Data(Draws(7), Draws(5), list, val_batch_size=2), processes=1)
    assert loader is not None
    assert [[item["index"] for item in batch] for batch in loader] == [[0, 1], [2, 3], [4]]


def test_training_needs_samples() -> None:
    options: Any = {"processes": 1, "accumulate": 1, "seed": 0}
    with pytest.raises(UserError, match="Draws: the dataset is empty"):
        train_loader(Data(Draws(0)), 1, **options)
    with pytest.raises(UserError, match="Draws: the dataset is empty"):
        validation_loader(Data(Draws(1), Draws(0)), processes=1)
    with pytest.raises(UserError, match="EpochDataset: training needs a dataset with a length"):
        train_loader(Data(EpochDataset()), 1, **options)


def test_what_is_cached_is_read_once() -> None:
    read: list[str] = []

    def length(item: str) -> int:
        read.append(item)
        return len(item)

    items = ["", "a", "bb", "ccc"]
    cached = Cached(length, items, 0.5)
    assert sorted(read) == ["", "a"]
    assert [cached(index) for index in (0, 1, 2, 3, 2, 0, -1)] == [0, 1, 2, 3, 2, 0, 3]
    assert read[2:] == ["bb", "ccc", "bb", "ccc"]
    assert Cached(length, items, 0.0)(1) == 1
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"cache must be between 0 and 1; got {share}"):
            Cached(length, items, share)
    with pytest.raises(ZeroDivisionError):
        Cached(lambda item: 1 / item, [1, 0], 1.0)


def test_files_are_listed_or_those_of_the_first_folder_with_any(tmp_path: Path) -> None:
    for name in ("Train/b.H5", "Train/a.h5", "Train/notes.txt", "other_train/c.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folders = ("train", "Train", "other_train")
    found = find_files(tmp_path, folders, None, (".h5",))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["Train/a.h5", "Train/b.H5"]
    (tmp_path / "mine.txt").write_text("other_train/c.h5\n\n")
    assert find_files(tmp_path, folders, tmp_path / "mine.txt", (".h5",)) == [tmp_path / "other_train/c.h5"]
    with pytest.raises(UserError, match=r": no recordings in val, Val; set data\.path$"):
        find_files(tmp_path, ("val", "Val"), None, (".wav",), "recordings")


def test_data_and_recipes_need_no_engine() -> None:
    modules = "recurra.core.sampling, recurra.core.recipe, recurra.core.schedules"
    program = f"import sys, {modules}; print({{'lightning', 'typer'}} & {{*sys.modules}} or 'none')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "none\n"


# --- order


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_sample_is_validated_once(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for count, size in ((7, 2), (1, 1), (2, 4), (6, 2), (9, 1)):
        seen, lengths = [], set()
        for rank in range(processes):
            monkeypatch.setattr("recurra.core.sampling._rank_and_size", lambda rank=rank: (rank, processes))
            batches = ValidationBatches(range(count), size, processes=processes)
            lengths.add(len(list(batches)))
            for number, batch in enumerate(batches):
                seen += batch[: batches.real(number)]
        assert sorted(seen) == list(range(count))
        assert lengths == {len(batches)}


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_global_batch(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(rank: int, size: int) -> list[list[int]]:
        monkeypatch.setattr("recurra.core.sampling._rank_and_size", lambda: (rank, size))
        given = TrainBatches(range(11), 6, processes=size, seed=3, generator=torch.Generator())
        given.set_epoch(2)
        assert len(list(given)) == len(given)
        return list(given)

    alone = batches(0, 1)
    shared = [batches(rank, processes) for rank in range(processes)]
    for number, whole in enumerate(alone):
        together = [index for rank in range(processes) for index in shared[rank][number]]
        assert sorted(together)[: len(whole)] == sorted(whole) or set(whole) <= set(together)
        assert len({len(shared[rank][number]) for rank in range(processes)}) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_samples_of_different_shapes_never_share_a_batch(processes: int) -> None:
    class Ragged(Draws):
        shapes: ClassVar = [(2, 8) if index % 3 else (2, 9) for index in range(13)]

    data = Ragged(13)
    batches = TrainBatches(data, 4, processes=processes, seed=3, generator=torch.Generator())
    found = list(batches)
    assert len(found) == len(batches) == 2 + 2  # of eight samples and of five
    assert all(len({data.shapes[index] for index in batch}) == 1 for batch in found)
    if processes == 1:
        assert sorted(index for batch in found for index in batch) == list(range(13))
    batches.skip = 2
    assert list(batches) == found[2:]


# --- schedules


def factors(name: str, steps: list[int], **options: Any) -> list[float]:
    factor = SCHEDULES[name](total=100, **options)
    return [factor(step) for step in steps]


def test_schedules() -> None:
    assert factors("none", [0, 50]) == [1.0, 1.0]
    assert factors("InverseSquareRoot", [0, 9, 10, 43], warmup=10) == pytest.approx([1 / 11, 10 / 11, 1.0, 0.5])
    assert factors("InverseSquareRoot", [10, 43], warmup=0.1) == pytest.approx([1.0, 0.5])
    assert factors("Cosine", [0, 10, 55, 100, 200], warmup=10, minimum=0.2) == pytest.approx([1 / 11, 1, 0.6, 0.2, 0.2])
    assert factors("Step", [0, 5, 10, 19, 20, 40], every=20, factor=0.2, warmup=10) == pytest.approx(
        [1 / 3, 2 / 3, 1, 1, 0.2, 0.04]
    )
    assert factors("PerEpoch", [0, 19, 20, 40], epoch=10, factor=0.9) == pytest.approx([1, 1, 0.9, 0.9**3])
