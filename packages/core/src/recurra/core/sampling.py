"""Which sample goes where: the same batches whatever the number of processes and workers, and after a resume."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from recurra.core.errors import UserError


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


def train_loader(
    given: DataLoader[Any], batch_size: int, *, processes: int, accumulate: int, seed: int
) -> DataLoader[Any]:
    """A loader of the given one's dataset whose order is ours.

    Args:
        given: its dataset, collation and workers are taken over.
        batch_size: samples of one optimizer step, of all processes and passes together.
        processes: how many processes share a batch.
        accumulate: in how many passes a batch is computed.
        seed: of the order.
    """
    if batch_size % (processes * accumulate):
        raise UserError(
            f"batch_size {batch_size} cannot be shared by {processes} processes in {accumulate} passes; "
            f"it must be a multiple of {processes * accumulate}"
        )
    generator = torch.Generator()
    size = batch_size // accumulate
    batches = TrainBatches(_dataset(given), size, processes=processes, seed=seed, generator=generator)
    return _loader(given, batches, generator)


def validation_loader(given: DataLoader[Any], *, processes: int) -> DataLoader[Any]:
    """A loader of the given one's dataset that the processes share, every sample once."""
    batches = ValidationBatches(_dataset(given), given.batch_size or 1, processes=processes)
    return _loader(given, batches, torch.Generator())


def _dataset(given: DataLoader[Any]) -> Any:
    """The loader's dataset, which has a length."""
    dataset: Any = given.dataset
    if not hasattr(dataset, "__len__"):
        raise UserError(f"{type(dataset).__name__}: training needs a dataset with a length")
    if not len(dataset):
        raise UserError(f"{type(dataset).__name__}: the dataset is empty")
    return dataset


def _loader(given: DataLoader[Any], batches: Sampler[list[int]], generator: torch.Generator) -> DataLoader[Any]:
    # Workers live for one epoch: a dataset's set_epoch does not reach those that are running.
    return DataLoader(
        given.dataset,
        batch_sampler=batches,
        num_workers=given.num_workers,
        collate_fn=given.collate_fn,
        pin_memory=given.pin_memory,
        worker_init_fn=given.worker_init_fn,
        generator=generator,
    )
