import torch
from torch import nn

from recurra.core.checkpoint import Pretrained
from recurra.core.nn import GRU
from recurra.core.sampling import Data, EpochDataset
from recurra.core.training import Task


class Smoother(Pretrained):
    """Series (batch, time) -> the same without noise."""

    def __init__(self, *, hidden: int = 8) -> None:
        super().__init__()
        self.unit, self.head = GRU(1, hidden), nn.Linear(hidden, 1)

    def forward(self, series):
        return series + self.head(self.unit(series[..., None])[0])[..., 0]


class Waves(EpochDataset):
    """Sines with noise; a sample is a function of (seed, epoch, index)."""

    def __init__(self, count: int, *, seed: int = 0, fixed: bool = False) -> None:
        self.count, self.seed, self.fixed = count, seed, fixed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        draw = torch.Generator().manual_seed(hash(self.seed_of(index)) % 2**63)
        clean = torch.sin(torch.linspace(0, 12, 60) + 6 * torch.rand(1, generator=draw))
        return {"clean": clean, "noisy": clean + 0.3 * torch.randn(60, generator=draw), "file": f"wave {index}"}


class SmoothingTask(Task):
    monitor = "error"

    def training_step(self, batch, index):
        return nn.functional.mse_loss(self.model(batch["noisy"]), batch["clean"])

    def validation_step(self, batch, index):
        return {"error": (self.model(batch["noisy"]) - batch["clean"]).square().mean(1)}


def waves(*, train: int = 64, val: int = 8, seed: int = 0) -> Data:
    return Data(Waves(train, seed=seed), Waves(val, seed=2**31 - 1, fixed=True), about=f"{train} generated waves")


SECTIONS = {"model": {"Smoother": Smoother}, "data": {"Waves": waves}}


def make_task(build, settings):
    return SmoothingTask(build("model")), build("data", seed=settings.seed)
