"""Authors' checkpoint files, turned into ours: tables of key names, one a source.

arnet    state dicts: of AR-Net v0_1 (layer_1, layer_out), of arnet 1.2 (layers.0.0) or of NeuralProphet (ar_net.*).
         The last two save whole learners as pickles, whose state dict has to be saved by those programs first.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from recurra.core.checkpoint import read_foreign
from recurra.core.conversion import Found, Renames, Source, count, rename, some
from recurra.forecast.models.arnet import ARNet

State = Mapping[str, Tensor]
Converted = tuple[dict[str, Any], dict[str, Tensor]]

_V0_1: Renames = (
    (r"layer_1\.(weight|bias)", r"layers.0.\1"),
    (r"layer_out\.(weight|bias)", r"layers.1.\1"),
)
_V1_2: Renames = ((r"layers\.0\.0\.(weight|bias)", r"layers.0.\1"),)


def from_v0_1(state: State, *, shapes: State | None = None) -> Converted:
    """Arguments and weights of `ARNet` from those of v0_1's DAR.

    Args:
        state: weights.
        shapes: weights that have the shapes, where `state` stands for their names alone.
    """
    known = state if shapes is None else shapes
    first, last = known["layer_1.weight"], known.get("layer_out.weight")
    hidden = () if last is None else (first.shape[0],)
    horizon = (first if last is None else last).shape[0]
    return {"window": first.shape[1], "horizon": horizon, "hidden": hidden}, rename(state, _V0_1)


def from_v1_2(state: State) -> Converted:
    """Arguments and weights of `ARNet` from those of arnet 1.2, a tabular model of fastai without hidden layers."""
    horizon, window = state["layers.0.0.weight"].shape
    return {"window": window, "horizon": horizon}, rename(state, _V1_2)


def from_neuralprophet(state: State, quantiles: tuple[float, ...] = ()) -> Converted:
    """Arguments and weights of `ARNet` from NeuralProphet's `ar_net`, whose other components are left behind.

    Args:
        state: weights; the last layer has no bias.
        quantiles: those of the forecaster but the median.
    """
    numbers = sorted({int(match[1]) for key in state if (match := re.fullmatch(r"(?:.*\.)?ar_net\.(\d+)\..*", key))})
    table: Renames = (
        *((rf"(?:.*\.)?ar_net\.{number}\.(weight|bias)", rf"layers.{i}.\1") for i, number in enumerate(numbers)),
        (r"(?!(?:.*\.)?ar_net\.).*", None),
    )
    weights = rename(state, table)
    widths = [weights[f"layers.{i}.weight"].shape for i in range(len(numbers))]
    outputs = 1 + len(quantiles)
    if widths[-1][0] % outputs:
        raise ValueError(f"ar_net has {widths[-1][0]} outputs, no multiple of {outputs} for quantiles {quantiles}")
    config = {
        "window": widths[0][1],
        "horizon": widths[-1][0] // outputs,
        "hidden": tuple(shape[0] for shape in widths[:-1]),
        "output_bias": f"layers.{len(numbers) - 1}.bias" in weights,
        "quantiles": quantiles,
    }
    return config, weights


def _read_arnet(path: Path, given: Mapping[str, Any]) -> Found:
    """What a state dict of any of the three programs holds."""
    content = read_foreign(path)
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if "layer_1.weight" in state:
        config, weights = from_v0_1(state)
    elif "layers.0.0.weight" in state:
        config, weights = from_v1_2(state)
    elif count(state, r"(?:.*\.)?ar_net\.(\d+)\."):
        config, weights = from_neuralprophet(state, tuple(given.get("quantiles", ())))
    else:
        raise ValueError(f"holds neither layer_1 (v0_1), layers.0.0 (arnet 1.2) nor ar_net, but {some(content)}")
    return Found(ARNet, config, with_residuals(ARNet(**config), weights))


def with_residuals(model: ARNet, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, and the model's own empty residuals, which no other program knows."""
    return {**weights, "residuals": model.residuals}


SOURCES = {
    "arnet": Source("https://github.com/ourownstory/AR-Net", "no trained weights are published", _read_arnet),
}
