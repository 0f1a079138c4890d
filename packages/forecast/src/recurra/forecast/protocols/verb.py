"""Scores a checkpoint that was trained by the published protocol of ReGENN, on the last steps of a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recurra.core.errors import UserError
from recurra.core.evaluation import Table
from recurra.core.files import find_inputs, open_output, writing
from recurra.core.recipe import construct
from recurra.core.scores import TABLE
from recurra.core.verbs import Inputs
from recurra.forecast.data.tables import open_panel
from recurra.forecast.forecasting import SUFFIXES
from recurra.forecast.models import ReGENN
from recurra.forecast.models.forecaster import Forecaster
from recurra.forecast.protocols.panel_scores import regenn_table
from recurra.forecast.protocols.regenn import History, RegennSettings, Times
from recurra.forecast.protocols.scaling import scaled
from recurra.forecast.protocols.training import KEY, samples_of


def evaluate_regenn(models: Mapping[str, Forecaster], data: Inputs, *, out: Path | None, overwrite: bool) -> Table:
    """ReGENN on the last steps of a table by its protocol, beside last value, drift and the leak alone.

    Raises:
        UserError: a checkpoint was not trained by the protocol, or the data do not fit.
    """
    files = find_inputs(data, SUFFIXES)
    if len(files) != 1:
        raise UserError(f"protocol regenn scores one table; got {len(files)}")
    rows: list[tuple[object, ...]] = []
    protocol = ""
    for name, model in models.items():
        stored = model.metadata.get(KEY)
        if not isinstance(model, ReGENN) or not isinstance(stored, dict):
            raise UserError(f"{name} was not trained by the protocol regenn; leave out --protocol")
        options = {key: value for key, value in stored.items() if key != "name"}
        settings = construct(RegennSettings, options, f"{name}: protocol")
        panel = open_panel(files[0])
        if len(panel.variables) != model.variables:
            raise UserError(
                f"{files[0]}: has {len(panel.variables)} variables; {name} was trained on {model.variables}"
            )
        values = samples_of(panel)
        times = Times.of(values.shape[1], model.window, model.horizon, settings.validation_stride)
        honest = settings.protocol == "honest"
        scale = scaled(
            values,
            settings.normalization_type,
            settings.normalization_axis,
            training_steps=times.trained if honest else None,
        )
        parts = max(len(values) // settings.batch_size, 1)
        empty: Any = np.zeros((2, 1, 1, parts, 1))
        history = History(settings.protocol, ([], []), times, scale, empty, empty, empty)  # type: ignore[arg-type]
        table = regenn_table(model, history, values)
        protocol = settings.protocol
        found = [tuple(row) for row in table[["forecast", "mae", "rmse"]].itertuples(index=False, name=None)]
        rows = [*found[:-1], *rows[len(found) - 1 :], (name, *found[-1][1:])]
    leak = "; each forecast is scaled by the truth of its own step" if protocol == "published" else ""
    made = Table(f"protocol regenn, {protocol}{leak}: {files[0].name}", ("method", "mae", "rmse"), rows, 1)
    if out is not None:
        open_output(out, overwrite).mkdir(parents=True, exist_ok=True)
        lines = [",".join(made.columns), *(",".join(map(str, row)) for row in rows)]
        with writing(out / TABLE) as part:
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        made.outputs = [out / TABLE]
    return made
