"""What a checkpoint's forecasts rest on: weights where the model is linear, else what hiding its inputs changes."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recurra.core.errors import UserError
from recurra.core.files import guard_inputs, open_output, writing
from recurra.forecast.data.context import Context
from recurra.forecast.data.prepared import Prepared
from recurra.forecast.data.tables import open_panel
from recurra.forecast.data.windows import blocks_of
from recurra.forecast.explanation import Coefficients, Explanation, Windows, explain_weights, occlusion
from recurra.forecast.inference import load_checkpoint
from recurra.forecast.models import ARNet, AutoRegression, Chimera, LinearMap, ReGENN
from recurra.forecast.models.forecaster import Forecaster


def explain_checkpoint(checkpoint: Any, data: Any, out: Path, *, windows: int, overwrite: bool) -> Explanation:
    """What the verb `explain` does, with its options."""
    model = load_checkpoint(checkpoint)
    open_output(out, overwrite)
    linear = coefficients(model)
    if linear is not None:
        explained = explain_weights(linear, name=type(model).__name__)
    elif data is None:
        raise UserError(f"{type(model).__name__} is not linear: give a table with --data, whose windows are looked at")
    else:
        if isinstance(data, str | Path):
            guard_inputs([out / "explanation.csv", out / "explanation.png"], [Path(data)])
        explained = _occluded(model, data, windows)
    out.mkdir(parents=True, exist_ok=True)
    with writing(out / "explanation.csv") as part, part.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([explained.columns, *explained.rows])
    explained.outputs = [out / "explanation.csv", explained.picture(out / "explanation.png")]
    explained.outputs += _inside(model, data, out)
    return explained


def _inside(model: Forecaster, data: Any, out: Path) -> list[Path]:
    """Pictures of what only one architecture has: ReGENN's graphs, Chimera's states over the last window."""
    from recurra.forecast.figures import energies_png, evolution_png

    if isinstance(model, ReGENN) and (graphs := model.graphs()):
        names = Context.of(model).variables
        matrices = {name: graph.double().numpy() for name, graph in graphs.items()}
        return [evolution_png(out / "graphs.png", matrices, names, title="graph evolution")]
    if isinstance(model, Chimera) and data is not None:
        prepared = _opened(model, data)
        block = prepared.blocks[0]
        found = prepared.at({0: np.array([len(block.values)])}, model, ahead=True)
        if not len(found):
            return []
        energies = model.energies(found.__getitems__([0])["past"])[-1]
        names = tuple(str(series.id) for series in prepared.panel.series)
        pictures = []
        for number, module in enumerate(("trend", "season")):
            time, variates = (value[0, number].detach().double().numpy() for value in energies)
            title = f"states of the {module} module of the last block, over the last window"
            pictures.append(energies_png(out / f"states_{module}.png", time, variates, names, title=title))
        return pictures
    return []


def _opened(model: Forecaster, data: Any) -> Prepared:
    """A table for the model, not parted."""
    context = Context.of(model)
    panel = open_panel(data, **context.options)
    context.check(panel, model)
    panel = context.ordered(panel, model).require(model.window + model.horizon, what="window + horizon")
    blocks = blocks_of(panel, model, context.scaling(panel), context.opened_encoder())
    return Prepared(panel, context, blocks, {}, None)


def coefficients(model: Forecaster) -> Coefficients | None:
    """The weights of a model that is linear, lag 1 first; None of another."""
    if isinstance(model, AutoRegression):
        weights = model.coefficients.numpy()[:, None]
        errors = model.errors.numpy()[:, None]
        return Coefficients({"y": weights}, {"y": errors}, model.terms.numpy()[:1])
    if isinstance(model, LinearMap):
        weights = model.map.weight.detach().double().numpy()[:, ::-1].T
        bias = None if model.map.bias is None else model.map.bias.detach().double().numpy()
        return Coefficients({"y": weights}, {}, bias)
    if isinstance(model, ARNet) and len(model.layers) == 1 and not model.quantiles and not model.covariates:
        return Coefficients({"y": model.coefficients().detach().double().numpy().T}, {}, None)
    return None


def _occluded(model: Forecaster, data: Any, count: int) -> Explanation:
    """What hiding parts of the input changes, over the last windows of a table."""
    prepared = _opened(model, data)
    panel, context, blocks = prepared.panel, prepared.context, prepared.blocks
    each = -(-count // len(blocks))
    origins = {}
    for number, block in enumerate(blocks):
        last = len(block.values) - model.horizon
        rows = np.arange(model.window, last + 1)
        origins[number] = np.unique(rows[np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int)])
    found = prepared.at(origins, model)

    def batches() -> Iterator[Windows]:
        for first in range(0, len(found), 64):
            batch = found.__getitems__(list(range(first, min(first + 64, len(found)))))
            numbers = {name: value.numpy().astype(np.float64) for name, value in batch.items()}
            yield Windows(numbers["past"], numbers.get("marks"), numbers.get("covariates"), numbers["scale"])

    names = [str(series.id) for series in panel.series] if model.layout == "variates" else []
    encoder = context.opened_encoder()
    return occlusion(
        model, batches(), variates=names if len(names) > 1 else (), covariates=encoder.columns if encoder else ()
    )
