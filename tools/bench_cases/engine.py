"""What the training engine and an import cost."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench_cases.case import Case, Run, Variants


def fit_overhead(small: bool, device: str) -> Variants:
    """Steps of a tiny model by a bare loop and by `fit`; the difference is what the engine costs."""
    from torch.utils.data import DataLoader, TensorDataset

    from recurra.core.checkpoint import Pretrained
    from recurra.core.training import Data, Task, TrainSettings, fit

    class Line(Pretrained):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(20, 1)

    class Fitting(Task):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return torch.nn.functional.mse_loss(self.model.linear(batch[0]), batch[1])

    steps = 20 if small else 2000
    data = TensorDataset(torch.randn(32 * steps, 20), torch.randn(32 * steps, 1))

    def bare() -> None:
        net = Line()
        optimizer = torch.optim.Adam(net.parameters())
        for x, y in DataLoader(data, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(net.linear(x), y).backward()
            optimizer.step()

    def engine() -> None:
        with tempfile.TemporaryDirectory() as out:
            fit(Fitting(Line()), Data(data), TrainSettings(epochs=1, batch_size=32), Path(out) / "run", quiet=True)

    return {f"bare loop, {steps} steps": lambda: bare, f"fit, {steps} steps": lambda: engine}


def imports(small: bool, device: str) -> Variants:
    """Seconds that importing torch takes, and recurra.kernels after it."""

    def importing(before: str, module: str) -> tuple[float, float]:
        clock = "(time.process_time(), time.perf_counter())"
        program = f"import time{before}; a = {clock}; import {module}; b = {clock}; print(b[0] - a[0], b[1] - a[1])"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        processor, wall = map(float, done.stdout.split())
        return processor, wall

    def run(before: str, module: str) -> Run:
        return lambda: importing(before, module)

    return {
        "torch": lambda: run("", "torch"),
        "recurra.kernels after torch": lambda: run(", torch", "recurra.kernels"),
    }


CASES = {
    "fit": Case("core", fit_overhead, None, 3),
    "import": Case("core", imports, None, 5, own_clock=True),
}
