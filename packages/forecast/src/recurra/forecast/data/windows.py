"""Windows of series: strided views of one array, gathered batch by batch; nothing is copied per window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from recurra.core.sampling import EpochDataset
from recurra.forecast.data.covariates import Encoder
from recurra.forecast.data.panel import Panel
from recurra.forecast.models.forecaster import Forecaster

Origins = Mapping[int, NDArray[np.int64]]
"""Of each block, the rows at which forecasts begin: a window ends before it."""


@dataclass
class Block:
    """Rows that a window lies within.

    Attributes:
        name: for messages: the series, or all of them.
        stamps: (time,).
        values: (time, variate), in original units, NaN where missing.
        center: (variate,) that is taken from values.
        scale: (variate,) that the difference is divided by.
        series: number of the panel's series that each variate belongs to.
        covariates: (time or more, column), or None.
        needs: (time,) the later row that a filled value was made from, else -1; or None if no value was.
    """

    name: str
    stamps: pd.Index
    values: NDArray[np.float64]
    center: NDArray[np.float64]
    scale: NDArray[np.float64]
    series: NDArray[np.int64]
    covariates: NDArray[np.float32] | None = None
    needs: NDArray[np.int64] | None = None

    def seen(self, stop: int) -> NDArray[np.float64]:
        """The values of the rows before one, as they were known when it was not: (stop, variate)."""
        if self.needs is None:
            return self.values[:stop]
        return np.where((self.needs[:stop] >= stop)[:, None], np.nan, self.values[:stop])


def blocks_of(
    panel: Panel,
    model: Forecaster,
    scaling: tuple[NDArray[np.float64], NDArray[np.float64]],
    encoder: Encoder | None,
    *,
    ahead: int = 0,
    spare: int = 0,
) -> list[Block]:
    """The rows that the model's windows lie within: those of each series and variable, or of all side by side.

    Args:
        panel: the table.
        model: its layout decides.
        scaling: center and scale (series, variable).
        encoder: of the covariates, if the model takes them.
        ahead: steps after the last row that covariates are wanted for.
        spare: so many more are taken where they are given: what a model sees does not hang on what it is asked for.

    Raises:
        UserError: series that must be side by side have no common span.
    """
    center, scale = scaling
    count, variables = len(panel.series), len(panel.variables)
    if model.layout != "series":
        stamps, values = panel.aligned()
        numbers = np.repeat(np.arange(count), variables)
        needs = _needs(panel, stamps)
        return [Block("all series", stamps, values, center.reshape(-1), scale.reshape(-1), numbers, needs=needs)]
    blocks = []
    for number, series in enumerate(panel.series):
        rows = len(series)
        given = 0 if series.covariates is None else len(series.covariates) - rows
        until = rows + max(ahead, min(ahead + spare, given))
        covariates = None if encoder is None else encoder.encode(series, 0, until, known_until=rows)
        for v, name in enumerate(panel.variables):
            label = str(series.id) if variables == 1 else f"{series.id} {name}"
            own = slice(v, v + 1)
            made = Block(
                label,
                series.stamps,
                series.values[:, own],
                center[number, own],
                scale[number, own],
                np.array([number]),
                covariates,
                None if series.needs is None else series.needs[:, v],
            )
            blocks.append(made)
    return blocks


def _needs(panel: Panel, stamps: pd.Index) -> NDArray[np.int64] | None:
    """Of rows that all series have side by side: the latest row that any of their filled values was made from."""
    filled = [series for series in panel.series if series.needs is not None]
    if not filled:
        return None
    latest = np.full(len(stamps), -1, np.int64)
    for series in filled:
        assert series.needs is not None
        first = int(series.stamps.searchsorted(stamps[0]))
        own = series.needs[first : first + len(stamps)].max(1)
        latest = np.maximum(latest, np.where(own >= 0, own - first, -1))
    return latest


class Windows(EpochDataset):
    """Windows of blocks, on the model's scale. Takes a list of indices at once, and gives a batch.

    A batch has `past` (batch, window, variate), `future` (batch, horizon, variate), where unobserved values are 0, and
    `observed` bool like it; `center` and `scale` (batch, variate), with which value = center + scale * number;
    `marks` and `covariates` (batch, window + horizon, feature) where the model takes them; `block` and `origin`
    (batch,). Windows with a missing value in their past are left out, and those without any observed one to come.

    Args:
        panel: the table.
        blocks: of it.
        origins: rows of each block at which forecasts begin.
        model: says how long windows are, and what it takes.
        by_window: center and scale are mean and standard deviation of each window; else those of the blocks.
        unknown_future: windows may reach beyond the last row, as in use.
        steps: to be forecast; the model's horizon by default.
        past_columns: columns of the covariates that nobody knows after the origin.
        known: rows of each block that are known: what was filled from a later one is missing. By default all.

    Attributes:
        left_out: how many windows have a missing value in their past.
    """

    def __init__(
        self,
        panel: Panel,
        blocks: Sequence[Block],
        origins: Origins,
        model: Forecaster,
        *,
        by_window: bool = False,
        unknown_future: bool = False,
        steps: int | None = None,
        past_columns: Sequence[int] = (),
        known: Sequence[int] | None = None,
    ) -> None:
        self.blocks, self.by_window, self.unknown_future = blocks, by_window, unknown_future
        self.known = [len(block.values) for block in blocks] if known is None else list(known)
        self.window, self.horizon, self.layout = model.window, steps or model.horizon, model.layout
        self.variables = len(panel.variables)
        rows = [len(block.values) + self.horizon * unknown_future for block in blocks]
        self.starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        kind = np.float64 if by_window else np.float32
        self.values = np.full((self.starts[-1], blocks[0].values.shape[1] if blocks else 1), np.nan, kind)
        for start, block, stop in zip(self.starts, blocks, self.known, strict=False):
            scaled = block.values if by_window else (block.values - block.center) / block.scale
            self.values[start : start + len(scaled)] = scaled
            if block.needs is not None:
                self.values[start + np.flatnonzero(block.needs >= stop)] = np.nan
        self.block, self.origin = self._places(origins)
        self.marks: NDArray[np.float32] | None = None
        self.mark_start = self.starts
        if model.takes_marks:
            self.marks, self.mark_start = self._marked(panel)
        self.covariates = self._covariates() if model.takes_covariates else None
        self.past_columns = list(past_columns)

    def _places(self, origins: Origins) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Block and row of every window that can be used."""
        missing = np.isnan(self.values)
        gaps, known = _counted(missing.any(1)), _counted(~missing.all(1))
        found, self.left_out = [], 0
        for number, rows in sorted(origins.items()):
            first = self.starts[number]
            rows = np.asarray(rows, np.int64)
            whole = gaps[first + rows] == gaps[first + rows - self.window]
            whole &= ~self._foreseen(self.blocks[number])[rows]
            self.left_out += int((~whole).sum())
            last = np.minimum(rows + self.horizon, self.starts[number + 1] - first)
            use = whole & ((known[first + last] > known[first + rows]) | self.unknown_future)
            found.append(np.stack([np.full(int(use.sum()), number, np.int64), rows[use]]))
        block, origin = np.concatenate(found, 1) if found else np.zeros((2, 0), np.int64)
        return block, origin

    def _foreseen(self, block: Block) -> NDArray[np.bool_]:
        """Origins (time + 1,) whose window holds a filled value that was made from a later row: nobody knew it then."""
        change = np.zeros(len(block.values) + 2, np.int64)
        if block.needs is not None:
            filled = np.flatnonzero(block.needs >= 0)
            np.add.at(change, filled + 1, 1)
            np.add.at(change, np.minimum(block.needs[filled], filled + self.window) + 1, -1)
        foreseen: NDArray[np.bool_] = np.cumsum(change)[:-1] > 0
        return foreseen

    def _marked(self, panel: Panel) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Calendar features of all rows, and where those of each block begin; blocks of the same span share them."""
        at: dict[tuple[Any, int], int] = {}
        pieces, starts, total = [], [], 0
        for block in self.blocks:
            key = (block.stamps[0], len(block.stamps))
            if key not in at:
                stamps = block.stamps
                if self.unknown_future:
                    stamps = stamps.append(panel.frequency.after(stamps[-1], self.horizon))
                pieces.append(panel.frequency.marks(stamps))
                at[key], total = total, total + len(stamps)
            starts.append(at[key])
        return np.concatenate(pieces), np.asarray(starts, np.int64)

    def _covariates(self) -> NDArray[np.float32] | None:
        if not self.blocks or self.blocks[0].covariates is None:
            return None
        made = np.zeros((self.starts[-1], self.blocks[0].covariates.shape[1]), np.float32)
        for first, last, block in zip(self.starts, self.starts[1:], self.blocks, strict=False):
            assert block.covariates is not None
            rows = min(last - first, len(block.covariates))
            made[first : first + rows] = block.covariates[:rows]
        return made

    def __len__(self) -> int:
        """How many windows there are."""
        return len(self.origin)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """A batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch."""
        block, origin = self.block[indices], self.origin[indices]
        steps = np.arange(-self.window, self.horizon)
        rows = (self.starts[block] + origin)[:, None] + steps
        values = torch.from_numpy(self.values[rows])  # (batch, step, variate)
        if self.layout == "samples":
            values = _apart(values, self.variables)
        past, future = values[:, : self.window], values[:, self.window :]
        observed = ~future.isnan()
        if self.by_window:
            center, scale = window_scaling(past)
            divisor = torch.where(scale > 0, scale, 1)[:, None]
            past, future = (past - center[:, None]) / divisor, (future - center[:, None]) / divisor
            observed = observed & (scale > 0)[:, None]
        else:
            center, scale = self._scaling(block)
        made = {
            "past": past.float().contiguous(),
            "future": torch.where(observed, future, 0).float(),
            "observed": observed,
            "center": center,
            "scale": scale,
            "block": torch.from_numpy(block),
            "origin": torch.from_numpy(origin),
        }
        if self.marks is not None:
            made["marks"] = torch.from_numpy(self.marks[(self.mark_start[block] + origin)[:, None] + steps])
        if self.covariates is not None:
            covariates = self.covariates[rows]
            covariates[:, self.window :, self.past_columns] = 0
            made["covariates"] = torch.from_numpy(covariates)
        return made

    def _scaling(self, block: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        pairs = [
            torch.from_numpy(np.stack([getattr(one, name) for one in self.blocks])[block])
            for name in ("center", "scale")
        ]
        if self.layout == "samples":
            pairs = [_apart(pair[:, None], self.variables)[:, 0] for pair in pairs]
        return pairs[0], pairs[1]

    def whole(self, most: int = 50_000) -> tuple[Tensor, Tensor]:
        """Past and future, (window, step, variate), of all windows that miss nothing, or of at most so many of them.

        Where they follow one another, as of a table without gaps, they are views of one array.
        """
        rows = self.starts[self.block] + self.origin
        missing = np.concatenate([[0], np.cumsum(np.isnan(self.values).any(1))])
        complete = np.flatnonzero(missing[rows + self.horizon] == missing[rows])
        rows = rows[complete]
        if not self.by_window and self.layout != "samples" and len(rows) and (np.diff(rows) == 1).all():
            length = self.window + self.horizon
            first = int(rows[0]) - self.window
            values = torch.from_numpy(self.values[first : first + len(rows) + length - 1])
            view = values.unfold(0, length, 1).transpose(1, 2)
            return view[:, : self.window], view[:, self.window :]
        chosen = complete if len(complete) <= most else complete[np.linspace(0, len(complete) - 1, most).astype(int)]
        batch = self.__getitems__(chosen.tolist())
        return batch["past"], batch["future"]

    def describe(self, batch: Mapping[str, Tensor]) -> str:
        """Which windows a batch is of, for messages."""
        block, origin = self.blocks[int(batch["block"][0])], int(batch["origin"][0])
        stamp = block.stamps[min(origin, len(block.stamps) - 1)]
        return f"{block.name}, forecast from {stamp}, and {len(batch['block']) - 1} other windows"


def _counted(flags: Any) -> NDArray[np.int32]:
    """How many are set before each place, and in all; in half of the memory of numpy's own integers."""
    counts = np.zeros(len(flags) + 1, np.int32)
    np.cumsum(flags, out=counts[1:])
    return counts


def _apart(values: Tensor, variables: int) -> Tensor:
    """(batch, step, sample x variable) -> (batch x sample, step, variable)."""
    batch, steps, _ = values.shape
    return values.reshape(batch, steps, -1, variables).transpose(1, 2).reshape(-1, steps, variables)


def window_scaling(
    past: Float[Tensor, "batch window variate"],
) -> tuple[Float[Tensor, "batch variate"], Float[Tensor, "batch variate"]]:
    """Mean and standard deviation of each window; of a constant one, whose rounding is no signal, the scale is 0."""
    center, scale = past.mean(1), past.std(1, correction=0)
    return center, torch.where(scale > 1e-9 * center.abs(), scale, 0)


def origins_between(
    blocks: Sequence[Block], borders: Sequence[tuple[int, int]], window: int, horizon: int, *, stride: int = 1
) -> Origins:
    """All rows of each block at which a window and its horizon lie between the borders: as many as fit.

    Args:
        blocks: rows.
        borders: first row, and the row after the last, of each block; the window may begin at the first.
        window: steps before.
        horizon: steps after.
        stride: take every so many.
    """
    found: dict[int, NDArray[np.int64]] = {}
    for number, (block, (first, last)) in enumerate(zip(blocks, borders, strict=True)):
        rows = np.arange(max(0, first) + window, min(last, len(block.values)) - horizon + 1, stride)
        found[number] = rows
    return found


def observed_mean(values: Float[Tensor, "*shape"], observed: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of what is observed; 0 of nothing."""
    return torch.where(observed, values, 0).sum() / observed.sum().clamp_min(1)
