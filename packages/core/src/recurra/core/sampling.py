"""Data of a training, and which sample goes where: the same whatever the number of processes and workers."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from recurra.core.errors import FileError, UserError
from recurra.core.files import find_inputs

_Item = TypeVar("_Item")
_Read = TypeVar("_Read")


@dataclass
class Data:
    """What a training sees; order and batches are the engine's.

    Attributes:
        train: training samples. Its `set_epoch(epoch)` is called before every epoch, if it has one; its `shapes` are
            those of its samples, by index, if they differ.
        val: validation samples, if there are any.
        collate: makes a batch of a list of samples.
        workers: processes that prepare samples.
        about: one line for the model card.
        val_batch_size: samples of a validation batch.
    """

    train: Dataset[Any]
    val: Dataset[Any] | None = None
    collate: Callable[[list[Any]], Any] = default_collate
    workers: int = 0
    about: str = ""
    val_batch_size: int = 1


class EpochDataset(Dataset[dict[str, Any]]):
    """A dataset that knows the epoch, and with it the seed of each sample.

    A sample draws from `seed_of(index)` and from nothing else, so that neither the number of workers nor the order of
    the samples changes it.

    Attributes:
        seed: of all samples.
        epoch: set by `set_epoch`; another epoch, other samples.
        fixed: the same samples in every epoch, as for validation.
    """

    seed: int = 0
    epoch: int = 0
    fixed: bool = False

    def set_epoch(self, epoch: int) -> None:
        """From now on samples are those of this epoch."""
        self.epoch = epoch

    def seed_of(self, index: int) -> tuple[int, int, int]:
        """Seed of a sample in the current epoch."""
        return self.seed, 0 if self.fixed else self.epoch, index


class Cached(Generic[_Item, _Read]):
    """Reads items by index, the first of them once.

    Args:
        read: reads an item.
        items: what can be read.
        share: of the items that are kept in memory; what is kept must not be changed in place.

    Raises:
        ValueError: the share is not between 0 and 1.
    """

    def __init__(self, read: Callable[[_Item], _Read], items: Sequence[_Item], share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"cache must be between 0 and 1; got {share}")
        self._read, self._items = read, items
        with ThreadPoolExecutor() as pool:
            self._kept = list(pool.map(read, items[: int(share * len(items))]))

    def __call__(self, index: int) -> _Read:
        """The item."""
        return self._kept[index] if 0 <= index < len(self._kept) else self._read(self._items[index])


def find_files(
    root: str | Path, folders: Sequence[str], listed: str | Path | None, suffixes: Sequence[str], what: str = "files"
) -> list[Path]:
    """The files of a part of the data: those listed, else those in and below the first of the root's folders with any.

    Args:
        root: where the folders are.
        folders: how the part's folder may be called.
        listed: a text file with one path a line, relative to it.
        suffixes: of the files, in lower case.
        what: what they are called in errors.

    Raises:
        UserError: there is no such folder, or it is empty.
        OSError: the list cannot be read.
    """
    if listed is not None:
        lines = Path(listed).read_text(encoding="utf-8").splitlines()
        return [Path(listed).parent / line.strip() for line in lines if line.strip()]
    for folder in folders:
        with suppress(FileError):  # it holds none
            if Path(root, folder).is_dir():
                return find_inputs(Path(root, folder), suffixes)
    raise UserError(f"{root}: no {what} in {', '.join(folders)}; set data.path")


def _rank_and_size() -> tuple[int, int]:
    """This process among those that train together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class TrainBatches(Sampler[list[int]]):
    """Batches of one process in an order that depends on seed and epoch alone.

    Every global batch is dealt out to the processes, so that together they see what one process would. The last one is
    filled up to a multiple of the processes with samples from the start of the epoch. Samples of different shapes never
    share a batch: where a dataset has several, each has a last batch of its own.

    Args:
        dataset: its `set_epoch(epoch)` is called at every epoch, if it has one; its `shapes` are those of its samples,
            by index, if they differ.
        batch_size: samples of one forward pass of all processes together.
        processes: how many there are.
        seed: of the order.
        generator: of the loader; seeded anew in every epoch, as it gives the workers their seeds.
    """

    def __init__(self, dataset: Any, batch_size: int, *, processes: int, seed: int, generator: torch.Generator) -> None:
        self.dataset, self.batch_size, self.processes = dataset, batch_size, processes
        self.seed, self.generator = seed, generator
        shapes = getattr(dataset, "shapes", None) or [()] * len(dataset)
        self.shapes = [tuple(shape) for shape in shapes]
        self.skip = 0
        self.sampler = self  # where Lightning looks for set_epoch
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch."""
        self.epoch = epoch
        self.generator.manual_seed(hash((self.seed, epoch)) % 2**63)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def go_to(self, epoch: int, batch: int) -> None:
        """Go to an epoch, whose first batches are done."""
        self.set_epoch(epoch)
        self.skip = batch

    def __len__(self) -> int:
        """Batches of one process in one epoch."""
        return sum(-(-count // self.batch_size) for count in Counter(self.shapes).values())

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of one batch after the other."""
        rank, _ = _rank_and_size()
        first, self.skip = self.skip, 0
        for batch in islice(self._batches(), first, None):
            yield batch[rank :: self.processes]

    def _batches(self) -> Iterator[list[int]]:
        """Batches of all processes together: one is complete as soon as its shape has samples enough."""
        order = torch.Generator().manual_seed(hash((self.seed, self.epoch, 1)) % 2**63)
        seen: dict[tuple[int, ...], list[int]] = {}
        for index in torch.randperm(len(self.shapes), generator=order).tolist():
            alike = seen.setdefault(self.shapes[index], [])
            alike.append(index)
            if len(alike) % self.batch_size == 0:
                yield alike[-self.batch_size :]
        for alike in seen.values():
            if left := len(alike) % self.batch_size:
                yield alike[-left:] + (alike * self.processes)[: -left % self.processes]


class ValidationBatches(Sampler[list[int]]):
    """Batches of one process that together cover the dataset, with `padding` after the real samples.

    Every process has equally many batches, as their collective operations must match; `real(batch)` says how many
    samples of a batch count.
    """

    def __init__(self, dataset: Any, batch_size: int, *, processes: int) -> None:
        self.count, self.batch_size, self.processes = len(dataset), batch_size, processes

    def __len__(self) -> int:
        """Batches of one process in one epoch."""
        return -(-self.count // (self.batch_size * self.processes))

    def real(self, batch: int) -> int:
        """How many samples at the head of a batch are no padding."""
        rank, size = _rank_and_size()
        mine = len(range(rank, self.count, size))
        return max(0, min(self.batch_size, mine - batch * self.batch_size))

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of one batch after the other."""
        rank, size = _rank_and_size()
        mine = list(range(rank, self.count, size))
        for batch in range(len(self)):
            start = batch * self.batch_size
            yield mine[start : start + self.batch_size] or [0]


def train_loader(data: Data, batch_size: int, *, processes: int, accumulate: int, seed: int) -> DataLoader[Any]:
    """A loader of the training samples.

    Args:
        data: its training dataset.
        batch_size: samples of one optimizer step, of all processes and passes together.
        processes: how many processes share a batch.
        accumulate: in how many passes a batch is computed.
        seed: of the order.

    Raises:
        UserError: a batch cannot be shared evenly, or there is no sample.
    """
    if batch_size % (processes * accumulate):
        raise UserError(
            f"batch_size {batch_size} cannot be shared by {processes} processes in {accumulate} passes; "
            f"it must be a multiple of {processes * accumulate}"
        )
    generator = torch.Generator()
    size = batch_size // accumulate
    batches = TrainBatches(_counted(data.train), size, processes=processes, seed=seed, generator=generator)
    return _loader(data, data.train, batches, generator)


def validation_loader(data: Data, *, processes: int) -> DataLoader[Any] | None:
    """A loader of the validation samples, if there are any; the processes share them, every sample once.

    Raises:
        UserError: there is a dataset without a sample.
    """
    if data.val is None:
        return None
    batches = ValidationBatches(_counted(data.val), data.val_batch_size, processes=processes)
    return _loader(data, data.val, batches, torch.Generator())


def _counted(dataset: Any) -> Any:
    """The dataset, which has a length."""
    if not hasattr(dataset, "__len__"):
        raise UserError(f"{type(dataset).__name__}: training needs a dataset with a length")
    if not len(dataset):
        raise UserError(f"{type(dataset).__name__}: the dataset is empty")
    return dataset


def _loader(
    data: Data, dataset: Dataset[Any], batches: Sampler[list[int]], generator: torch.Generator
) -> DataLoader[Any]:
    # Workers live for one epoch: a dataset's set_epoch does not reach those that are running.
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=data.workers, collate_fn=data.collate, generator=generator
    )
