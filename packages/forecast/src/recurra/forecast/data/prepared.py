"""Series cut into parts, scaled and laid out for a model: what trains it, chooses, calibrates and scores."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.core.errors import UserError
from recurra.forecast.data.context import Context, plain_id, stamp_text
from recurra.forecast.data.covariates import Encoder
from recurra.forecast.data.panel import Panel
from recurra.forecast.data.scaler import Scaler
from recurra.forecast.data.splits import Part, Split, split, tslib_protocol
from recurra.forecast.data.windows import Block, Origins, Windows, blocks_of, origins_between
from recurra.forecast.models.forecaster import Forecaster

Borders = dict[Part, list[tuple[int, int]]]


@dataclass
class Prepared:
    """A table for a model.

    Attributes:
        panel: its series, in the model's order.
        context: what the checkpoint keeps.
        blocks: rows that windows lie within.
        borders: of each part and block.
        rule: of the parts; None of a table that is not parted.
    """

    panel: Panel
    context: Context
    blocks: list[Block]
    borders: Borders
    rule: Split | None

    def left_out(self) -> list[str]:
        """Which series are too short, for people."""
        return [f"left out {fact.value}: {fact.evidence}" for fact in self.panel.facts if fact.what == "left out"]

    def windows(self, part: Part, model: Forecaster, *, stride: int = 1) -> Windows:
        """Windows of a part."""
        borders = self.borders[part]
        rows = origins_between(self.blocks, borders, model.window, model.horizon, stride=stride)
        return self.at(rows, model, known=[stop for _, stop in borders])

    def at(
        self,
        origins: Origins,
        model: Forecaster,
        *,
        steps: int | None = None,
        ahead: bool = False,
        known: Sequence[int] | None = None,
    ) -> Windows:
        """Windows before these origins; `ahead` lets them reach beyond the last row, `known` is that of `Windows`."""
        return Windows(
            self.panel,
            self.blocks,
            origins,
            model,
            by_window=self.context.by_window,
            unknown_future=ahead,
            steps=steps,
            past_columns=self.context.past_columns(),
            known=known,
        )

    def channels(self, model: Forecaster) -> NDArray[np.int64]:
        """(block, variate): channel of the model's residuals of each series and variable, -1 of one that has none."""
        variables, kept = len(self.panel.variables), model.residuals.shape[2]
        width = self.blocks[0].values.shape[1]
        ids = self.context.places(self.panel)
        own = [one * variables + v if one >= 0 else -1 for one in ids for v in range(variables)]
        found = np.asarray(own, np.int64).reshape(len(self.blocks), width)
        if model.layout == "samples" and kept == variables:  # the residuals of all samples are kept together
            found = np.tile(np.arange(variables), (1, len(ids)))
        return np.where(found < kept, found, -1)


def rule_of(panel: Panel, length: int, model: Forecaster, options: dict[str, Any]) -> Split:
    """The rule of the parts of so many rows; "tslib" is ETT's where the table is one of ETT's."""
    protocol = str(options["split"])
    given: dict[str, Any] = {}
    if protocol == "tslib":
        names = [str(series.id) for series in panel.series] if panel.wide else list(panel.variables)
        protocol, _ = tslib_protocol(names, panel.frequency, length, panel.source)
    if protocol == "fractions":
        given["fractions"] = tuple(options["fractions"])
    if protocol == "last" and options.get("origins"):
        given["origins"] = options["origins"]
    return split(protocol, length, window=model.window, horizon=model.horizon, **given)


def borders_of(panel: Panel, model: Forecaster, options: dict[str, Any]) -> tuple[Split, Borders]:
    """The rule, and first and last row of each part for each block: parted at the same instants in all series."""
    parts: tuple[Part, ...] = ("train", "val", "test")
    if model.layout != "series":
        stamps, _ = panel.aligned()
        rule = rule_of(panel, len(stamps), model, options)
        return rule, {part: [rule.rows(part)] for part in parts}
    first = min(series.stamps[0] for series in panel.series)
    begins = [int(panel.frequency.steps(series.stamps[:1], first)[0]) for series in panel.series]
    length = max(begin + len(series) for begin, series in zip(begins, panel.series, strict=True))
    rule = rule_of(panel, length, model, options)
    borders: Borders = {}
    for part in parts:
        start, stop = rule.rows(part)
        own = [
            (max(0, start - begin), min(len(series), max(0, stop - begin)))
            for begin, series in zip(begins, panel.series, strict=True)
        ]
        borders[part] = [pair for pair in own for _ in panel.variables]
    return rule, borders


def shared_starts(prepared: Prepared) -> list[int]:
    """Step of each block's first row on the time axis that all series share."""
    panel = prepared.panel
    first = min(block.stamps[0] for block in prepared.blocks)
    return [int(panel.frequency.steps(block.stamps[:1], first)[0]) for block in prepared.blocks]


def until(panel: Panel, model: Forecaster, borders: Borders) -> dict[Hashable, int]:
    """How many rows of each series are for training, counted from its first."""
    if model.layout == "series":
        count = len(panel.variables)
        return {series.id: borders["train"][at * count][1] for at, series in enumerate(panel.series)}
    stamps, _ = panel.aligned()
    last = stamps[borders["train"][0][1] - 1]
    return {series.id: int(series.stamps.searchsorted(last, side="right")) for series in panel.series}


def learn_encoder(panel: Panel, model: Forecaster, borders: Borders) -> Encoder | None:
    """The encoder of the covariates, if there are any; it knows the training rows alone."""
    given = (*panel.past, *panel.future, *panel.series[0].static)
    rows = until(panel, model, borders)
    return Encoder.fit(panel, [rows[series.id] for series in panel.series]) if given else None


def learn_context(
    panel: Panel, model: Forecaster, source: Any, borders: Borders, rule: Split, encoder: Encoder | None
) -> Context:
    """What the checkpoint keeps of its training data; the scaler knows the training rows alone."""
    rows = until(panel, model, borders)
    scalers = [Scaler.fit(source.scaler, series.seen(0, rows[series.id])) for series in panel.series]
    by_series = source.scaler not in ("window", "none")
    last = max(series.stamps[max(0, rows[series.id] - 1)] for series in panel.series)
    return Context(
        frequency=panel.frequency.alias,
        season=panel.frequency.season,
        ids=[plain_id(series.id) for series in panel.series],
        names=panel.names,
        variables=tuple(panel.variables),
        wide=panel.wide,
        options={**source.options, **({} if panel.wide else {"targets": list(panel.variables)})},
        scaler={
            "kind": source.scaler,
            "shift": [one.shift.tolist() for one in scalers] if by_series else [],
            "scale": [one.scale.tolist() for one in scalers] if by_series else [],
        },
        encoder=None if encoder is None else encoder.to_json(),
        split={
            "split": source.split,
            "fractions": list(source.fractions),
            "origins": source.origins,
            "rule": rule.evidence,
        },
        trained_until=stamp_text(last),
        source=Path(panel.source).name,
    )


def prepare(panel: Panel, model: Forecaster, context: Context, options: dict[str, Any] | None = None) -> Prepared:
    """A table for a trained model, parted by the checkpoint's rule or by another; `left_out` says what is too short.

    Raises:
        UserError: the table is not of the kind that the model knows, or too short.
    """
    context.check(panel, model)
    what = f"window {model.window} + horizon {model.horizon}"
    needed, alone = model.window + model.horizon, model.layout == "series"
    panel = context.ordered(panel, model).require(needed, what=what, skip=alone)
    rule, borders = borders_of(panel, model, options or context.split)
    scaling = context.scaling(panel, until(panel, model, borders))
    blocks = blocks_of(panel, model, scaling, context.opened_encoder())
    return Prepared(panel, context, blocks, borders, rule)


def sizes(panel: Panel) -> dict[str, int]:
    """What a model's constructor wants to know of its data."""
    return {
        "variates": len(panel.series) * len(panel.variables),
        "variables": len(panel.variables),
        "features": len(panel.frequency.features),
    }


def check_covariates(panel: Panel, model: Forecaster) -> None:
    """Refuse covariates for a model that takes none."""
    given = (*panel.past, *panel.future, *(name for name in panel.series[0].static))
    if given and not model.takes_covariates:
        raise UserError(
            f"{panel.source}: {type(model).__name__} takes no covariates; got {', '.join(map(str, given))}. Leave out "
            "data.past, data.future and data.static, or train ARNet"
        )
