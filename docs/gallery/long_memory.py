"""
Tasks for a long memory
=======================

Can a unit keep something for a hundred or a thousand steps? Four tasks whose answer is known, all generated or shipped
with scikit-learn. ``python docs/gallery/long_memory.py`` trains every network below on one thread and writes the table
in *Long memory*; ``--smoke`` takes a few steps of each and writes nothing.
"""

import argparse
import csv
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.core.nn import GRU, LSTM, Elman, IndRNN

# %%
# The tasks
# ---------
#
# **Adding** (Li et al. 2018, section 5.1): each step brings a number from 0 to 1 and a mark; two numbers are marked,
# one in each half, and their sum is asked for after the last step. Always answering 1 has a squared error of 1/6.


def adding(batch: int, steps: int) -> tuple[Tensor, Tensor]:
    x = torch.zeros(batch, steps, 2)
    x[..., 0] = torch.rand(batch, steps)
    row, half = torch.arange(batch), steps // 2
    first, second = torch.randint(half, (batch,)), torch.randint(half, steps, (batch,))
    x[row, first, 1] = x[row, second, 1] = 1
    return x, x[row, first, 0] + x[row, second, 0]


# %%
# **Copy memory** (Arjovsky et al. 2016): ten symbols out of eight, a wait, a sign, and the ten again. Guessing has a
# cross entropy of 10 ln 8 / (wait + 20) a step.


def copy_memory(batch: int, wait: int) -> tuple[Tensor, Tensor]:
    symbols = torch.randint(8, (batch, 10))
    x = torch.full((batch, wait + 20), 8)
    x[:, :10] = symbols
    x[:, -11] = 9
    target = torch.full((batch, wait + 20), 8)
    target[:, -10:] = symbols
    return F.one_hot(x, 10).float(), target


# %%
# **Parity**: bits come in; at every step the question is whether there were an odd number of ones. Training is on
# sequences of 3 to 40 bits, the test on up to 256.


def parity(batch: int, steps: int, shortest: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    bits = torch.randint(2, (batch, steps))
    lengths = torch.randint(shortest or steps, steps + 1, (batch,))
    return F.one_hot(bits, 2).float(), bits.cumsum(1) % 2, lengths


# %%
# **Digits**: the 8x8 images of scikit-learn as 64 steps of one pixel, in their order or in one fixed, random order,
# which tears apart what belongs together.


def digits(permuted: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    if permuted:
        pixels = pixels[:, torch.randperm(64, generator=torch.Generator().manual_seed(0)).numpy()]
    parts = train_test_split(pixels / 16 * 2 - 1, labels, test_size=360, random_state=0, stratify=labels)
    x, x_test, y, y_test = (torch.as_tensor(part) for part in parts)
    return x.float()[..., None], x_test.float()[..., None], y, y_test


# %%
# Networks and training
# ---------------------


class Reader(nn.Module):
    """A recurrent unit, and a linear layer over its output."""

    def __init__(self, unit: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.unit, self.read = unit, nn.Linear(width, outputs)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.read(self.unit(x, lengths=lengths)[0])

    def last(self, x: Tensor) -> Tensor:
        return self.read(self.unit(x)[0][:, -1])


def train(model: nn.Module, losses: Iterator[Tensor], rate: float, clip: float, enough: float = 0.0) -> int:
    """Steps of Adam taken until `losses` end, or until the mean of the last 50 is below `enough`."""
    optimizer, taken = torch.optim.Adam(model.parameters(), lr=rate), []
    model.train()
    for loss in losses:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        taken.append(loss.item())
        if len(taken) >= 50 and sum(taken[-50:]) < 50 * enough:
            break
    model.eval()
    return len(taken)


class Outcome(NamedTuple):
    """What a run shows: the steps it took, and its measure on fresh data beside that of a network without memory."""

    steps: int
    measure: str
    reached: str
    forgetful: str


def run_adding(unit: nn.Module, width: int, stages: dict[int, float], most: int, smoke: bool) -> Outcome:
    """Trained on sequences as long as the keys of `stages`, one after the other, at the rates that are its values."""
    model, taken = Reader(unit, width, 1), 0

    def losses(steps: int) -> Iterator[Tensor]:
        for _ in range(3 if smoke else most):
            x, y = adding(50, steps)
            yield F.mse_loss(model.last(x)[:, 0], y)

    for steps, rate in stages.items():
        taken += train(model, losses(steps), rate, clip=10, enough=0.005)
    with torch.no_grad():
        x, y = adding(50 if smoke else 1000, steps)
        error = F.mse_loss(model.last(x)[:, 0], y)
    return Outcome(taken, "squared error", f"{error:.4f}", "0.1667")


def run_copy(unit: nn.Module, width: int, wait: int, rate: float, most: int, smoke: bool) -> Outcome:
    model = Reader(unit, width, 10)

    def loss(batch: int) -> Tensor:
        x, y = copy_memory(batch, wait)
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    taken = train(model, (loss(64) for _ in range(3 if smoke else most)), rate, clip=1, enough=1e-3)
    with torch.no_grad():
        reached = loss(64 if smoke else 500)
    return Outcome(taken, "cross entropy", f"{reached:.4f}", f"{10 * math.log(8) / (wait + 20):.4f}")


def run_parity(unit: nn.Module, width: int, rate: float, most: int, smoke: bool) -> Outcome:
    model = Reader(unit, width, 2)

    def losses() -> Iterator[Tensor]:
        for _ in range(3 if smoke else most):
            bits, odd, lengths = parity(128, 40, shortest=3)
            known = torch.arange(40) < lengths[:, None]
            yield F.cross_entropy(model(bits, lengths)[known], odd[known])

    taken, right = train(model, losses(), rate, clip=1), []
    for steps in (40, 100, 256):
        with torch.no_grad():
            bits, odd, _ = parity(100 if smoke else 1000, steps)
            right.append((model.last(bits).argmax(-1) == odd[:, -1]).float().mean())
    return Outcome(taken, "right after 40, 100, 256 bits", ", ".join(f"{r:.1%}" for r in right), "50 %")


def run_digits(unit: nn.Module, width: int, permuted: bool, rate: float, epochs: int, smoke: bool) -> Outcome:
    model = Reader(unit, width, 10)
    x, x_test, y, y_test = digits(permuted)

    def losses() -> Iterator[Tensor]:
        for _ in range(1 if smoke else epochs):
            for rows in torch.randperm(len(x)).split(64)[: 3 if smoke else None]:
                yield F.cross_entropy(model.last(x[rows]), y[rows])

    taken = train(model, losses(), rate, clip=10)
    with torch.no_grad():
        right = (model.last(x_test).argmax(-1) == y_test).float().mean()
    return Outcome(taken, "right of 360 test images", f"{right:.1%}", "10 %")


# %%
# The runs
# --------
#
# The IndRNN keeps \|u\| below 2^(1/T), so that a gradient can at most double on its way back, and starts its last layer
# with u close to 1, for what has to be kept up to the last step. The 64 pixels of a digit need neither.
# For 1000 steps of adding it learns on short sequences first: on long ones alone it needs several times as long.


def indrnn(inputs: int, steps: int) -> IndRNN:
    return IndRNN(inputs, 128, num_layers=2, steps=steps, mag=2.0, long_memory=True)


class Experiment(NamedTuple):
    """A network, made when it is trained, and its training."""

    network: str
    make: Callable[[], nn.Module]
    run: Callable[..., Outcome]
    recipe: str


def adding_with(make: Callable[[int], nn.Module], name: str, stages: dict[int, float], most: int) -> Experiment:
    run = partial(run_adding, width=128, stages=stages, most=most)
    rates = ", then ".join(f"{rate:g}" + f" on {steps} steps" * (len(stages) > 1) for steps, rate in stages.items())
    return Experiment(name, partial(make, max(stages)), run, f"Adam {rates}, batch 50, norm clipped to 10")


def parity_with(kind: type[nn.Module], name: str, most: int) -> Experiment:
    run = partial(run_parity, width=32, rate=3e-3, most=most)
    return Experiment(name, lambda: kind(2, 32), run, "Adam 0.003, batch 128, norm clipped to 1")


def digits_with(make: Callable[[], nn.Module], name: str, width: int, permuted: bool, rate: float) -> Experiment:
    run = partial(run_digits, width=width, permuted=permuted, rate=rate, epochs=15)
    return Experiment(name, make, run, f"Adam {rate:g}, batch 64, 15 epochs")


def copy_with(make: Callable[[], nn.Module], name: str, wait: int, rate: float, most: int) -> Experiment:
    run = partial(run_copy, width=128, wait=wait, rate=rate, most=most)
    return Experiment(name, make, run, f"Adam {rate:g}, batch 64, norm clipped to 1")


EXPERIMENTS = {
    "adding, 100 steps": [
        adding_with(partial(indrnn, 2), "IndRNN 2x128", {100: 2e-3}, 1500),
        adding_with(lambda _: LSTM(2, 128), "LSTM 128", {100: 2e-3}, 1500),
    ],
    "adding, 1000 steps": [
        adding_with(partial(indrnn, 2), "IndRNN 2x128", {100: 2e-3, 300: 1e-3, 1000: 1e-3}, 1000),
    ],
    "copy, 100 steps apart": [
        copy_with(lambda: indrnn(10, 120), "IndRNN 2x128", 100, 2e-3, 1500),
        copy_with(lambda: LSTM(10, 128), "LSTM 128", 100, 2e-3, 500),
    ],
    "parity": [
        parity_with(LSTM, "LSTM 32", 1000),
        parity_with(GRU, "GRU 32", 600),
        parity_with(Elman, "Elman 32", 1000),
    ],
    **{
        f"digits, {order}": [
            digits_with(
                lambda: IndRNN(1, 128, num_layers=2, batch_norm="after"),
                "IndRNN 2x128, batch norm",
                128,
                permuted,
                2e-3,
            ),
            digits_with(lambda: GRU(1, 64), "GRU 64", 64, permuted, 3e-3),
        ]
        for permuted, order in ((False, "in order"), (True, "permuted"))
    },
}

# %%
# The table
# ---------

DOCS = Path(__file__).resolve().parents[1] if "__file__" in globals() else Path()
HEAD = """# Long memory

Written by `python docs/gallery/long_memory.py`, where tasks and training are described and can be changed; the rows
are kept in `docs/bench/long_memory.csv`. One run of each, seed 0, seconds of one thread: what is within reach of a
unit, not a ranking of units. *Forgetful* is what a network without memory reaches; a run that ends near it has not
learnt its task within these steps. Steps of training end early where the error is small enough.

| task | network | recipe | steps | measure | reached | forgetful | seconds |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def trial(task: str, experiment: Experiment, smoke: bool) -> dict[str, str]:
    torch.manual_seed(0)
    start = time.process_time()
    outcome = experiment.run(experiment.make(), smoke=smoke)
    seconds = time.process_time() - start
    row = {"task": task, "network": experiment.network, "recipe": experiment.recipe}
    return row | {name: str(value) for name, value in outcome._asdict().items()} | {"seconds": f"{seconds:.0f}"}


def page(rows: list[dict[str, str]]) -> str:
    return HEAD + "".join("| " + " | ".join(row.values()) + " |\n" for row in rows)


def keep(row: dict[str, str]) -> None:
    """Puts a row in its place in the table, and writes the page."""
    table = DOCS / "bench" / "long_memory.csv"
    rows = list(csv.DictReader(table.open(newline=""))) if table.exists() else []
    known = {(one["task"], one["network"]): one for one in [*rows, row]}
    order = [(task, experiment.network) for task, some in EXPERIMENTS.items() for experiment in some]
    rows = [known[key] for key in order if key in known]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, row.keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (DOCS / "long_memory.md").write_text(page(rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train every network on its task and write the table.")
    parser.add_argument("tasks", nargs="*", help=f"parts of names, all by default: {'; '.join(EXPERIMENTS)}")
    parser.add_argument("--smoke", action="store_true", help="a few steps of each, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for task, experiments in EXPERIMENTS.items():
        for experiment in experiments:
            if not options.tasks or any(part in f"{task}, {experiment.network}" for part in options.tasks):
                row = trial(task, experiment, options.smoke)
                print(" | ".join(row.values()), flush=True)
                if not options.smoke:
                    keep(row)


if __name__ == "__main__":
    main()
