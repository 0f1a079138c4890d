"""The run folder: where everything lies that a training leaves behind, and what of it may be replaced."""

import csv
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from recurra.core.checkpoint import CARD, CONFIG, WEIGHTS
from recurra.core.errors import UserError
from recurra.core.files import only_one, open_output, writing
from recurra.core.recipe import load_recipe, plain, save_recipe

LAST, RECIPE, METRICS, LOG, FIGURES = "last/state.ckpt", "recipe.yaml", "metrics.csv", "log.txt", "figures"
STATE = "recurra"  # our part of Lightning's checkpoint

# What a state must have: of much that is missing Lightning says nothing, and begins anew.
_STATE = {"state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "loops": dict, "global_step": int}
_OURS = {"epoch": int, "batch": int, "losses": float, "batches": int, "history": list, "best": dict, "random": dict}


def is_first_process() -> bool:
    """Whether this process writes; known before the processes are joined."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


class RunFolder:
    """Writes what a run leaves; in every process but the first it writes nothing.

    Args:
        path: the folder.
        quiet: print nothing.
    """

    def __init__(self, path: Path, *, quiet: bool = False) -> None:
        self.path, self.quiet = path, quiet
        self.last = path / LAST

    def check(self, *, resume: bool, overwrite: bool, recipe: Mapping[str, Any] | None) -> None:
        """Refuse a folder that this run may not use.

        Raises:
            UserError: there is no run to resume, it trained another model, or there is one that may not be replaced.
        """
        if not is_first_process():
            return
        if not resume:
            open_output(self.path, overwrite, instead="pass --resume to go on with it, or choose another --out")
            return
        if not self.last.is_file():
            raise UserError(f"{self.path}: nothing to resume (no {LAST}); train without --resume")
        written = self.path / RECIPE
        if recipe is not None and written.is_file():
            before = load_recipe(written, package=__package__ or "").get("model")
            if before != plain(recipe.get("model")):
                raise UserError(f"{written}: model is another one than in the recipe given; train into another --out")

    @contextmanager
    def held(self, *, resume: bool, recipe: Mapping[str, Any] | None) -> Iterator[None]:
        """The folder, made, for this run alone; without what an earlier one left in it unless that is resumed.

        Raises:
            UserError: another process trains into it.
        """
        if not is_first_process():
            yield
            return
        self.last.parent.mkdir(parents=True, exist_ok=True)
        with only_one(self.last.parent, wait=False):
            if not resume:
                for name in (CONFIG, WEIGHTS, CARD, RECIPE, METRICS, LOG):
                    (self.path / name).unlink(missing_ok=True)
                shutil.rmtree(self.path / FIGURES, ignore_errors=True)
                for path in self.last.parent.iterdir():
                    path.unlink()
            if recipe is not None:
                save_recipe(recipe, self.path / RECIPE)
            yield

    def position(self) -> tuple[int, int, int]:
        """Where the run stopped: epoch, batches of that epoch that are done, steps.

        Raises:
            UserError: the state is damaged.
        """
        try:
            state = torch.load(self.last, map_location="cpu", mmap=True, weights_only=True)
            for part, kinds in ((state, _STATE), (state[STATE], _OURS)):
                for name, kind in kinds.items():
                    if not isinstance(part[name], kind):
                        raise ValueError(f"{name} is no {kind.__name__}")
            if not all(isinstance(row, dict) for row in state[STATE]["history"]):
                raise ValueError("history is no table")
            found = state[STATE]["epoch"], state[STATE]["batch"], state["global_step"]
        except Exception as error:  # whatever a damaged file does to a reader
            raise self.damaged() from error
        return found

    def damaged(self) -> UserError:
        """The error of a state that nothing can go on from."""
        return UserError(f"{self.last}: damaged or not complete; train anew with --overwrite")

    def say(self, line: str, *, show: bool = True) -> None:
        """One line into the log, and onto the screen."""
        if not is_first_process() or not self.path.is_dir():
            return
        with (self.path / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        if show and not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def write_history(self, history: Sequence[Mapping[str, int | float]]) -> None:
        """The table of epochs."""
        if not is_first_process():
            return
        columns = list(dict.fromkeys(key for row in history for key in row))
        with writing(self.path / METRICS) as part, part.open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, columns)
            table.writeheader()
            table.writerows(history)

    @contextmanager
    def figure(self, epoch: int) -> Iterator[Path]:
        """A path for an epoch's picture; what is there afterwards is whole, or nothing if nothing was drawn."""
        path = self.path / FIGURES / f"epoch-{epoch:04d}.png"
        part = path.with_name(f".{os.getpid()}-{path.name}")
        path.parent.mkdir(exist_ok=True)
        try:
            yield part
            if part.exists():
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)
