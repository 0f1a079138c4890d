"""Authors' checkpoint files, turned into ours: one function a source.

tpgn      checkpoint.pth: a plain state dict; everything but the normalisation follows from its shapes
arnet     state dicts: of AR-Net v0_1 (layer_1, layer_out), of arnet 1.2 (layers.0.0) or of NeuralProphet (ar_net.*).
          The last two save whole learners as pickles, whose state dict has to be saved by those programs first.
regenn    torch.save of a dict with the weights under "model_dict", or of the weights alone
resnls    weights alone
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recurra.core import conversion
from recurra.core.checkpoint import read_foreign
from recurra.core.conversion import Found, Renames, Source, ask, count, rename, some, tensors
from recurra.forecast.models import TPGN, ARNet, ReGENN, ResNLS

State = Mapping[str, Tensor]
Converted = tuple[dict[str, Any], dict[str, Tensor]]

# --- TPGN

# Calendar features of each frequency of the authors.
_FEATURES = {"s": 6, "t": 5, "min": 5, "h": 4, "d": 3, "b": 3, "w": 2, "m": 1}
_HIE, _LONG, _ROW = "TPGN.LNN_dim.hidden_MLP", "TPGN.LNN_dim.fc", "TPGN.s_t_p_e.fc_row"


def from_tpgn(state: State, given: Mapping[str, Any]) -> Converted:
    """Arguments and weights of `TPGN` from the authors' weights, which keep their names.

    Args:
        state: weights, each name with `module.` before it where they were trained on several GPUs.
        given: `norm`, which no weight tells; `period` where there is no short-term branch that tells it; `freq`, which
            must agree with the number of calendar features.

    Raises:
        ValueError: the weights are none of a TPGN, or `given` lacks something.
    """
    weights = {re.sub(r"^module\.", "", key): value for key, value in state.items()}
    needed = (f"{_HIE}.weight", f"{_HIE}.bias", f"{_LONG}.weight", "TPGN.fc.bias")
    if missing := [key for key in needed if key not in weights]:
        raise ValueError(f"holds no TPGN: lacks {some(missing)}; there is {some(weights)}")
    short = f"{_ROW}.weight" in weights
    hints = {"norm": "true if it was trained with norm 1, false if with norm 0"}
    ask(hints if short else hints | {"period": "steps of a row; there is no short-term branch that tells it"}, given)
    period = weights[f"{_ROW}.weight"].shape[2] if short else int(given["period"])
    hidden, rows = weights[f"{_LONG}.weight"].shape[1:]
    variates = weights[f"{_HIE}.bias"].shape[0] // hidden
    features = weights[f"{_HIE}.weight"].shape[1] - 1
    freq = given.get("freq")
    if freq is not None and _FEATURES.get(str(freq).lower()) != features:
        known = ", ".join(name for name, count in _FEATURES.items() if count == features) or "none of the authors'"
        raise ValueError(f"freq: the weights are for {features} calendar features ({known}); got {freq!r}")
    arguments = {
        "window": rows * period,
        "horizon": weights["TPGN.fc.bias"].shape[0] // variates * period,
        "period": period,
        "variates": variates,
        "features": features,
        "hidden": hidden,
        "short": short,
    }
    return arguments, weights


def _read_tpgn(path: Path, given: Mapping[str, Any]) -> Found:
    content = read_foreign(path)
    wrong = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if wrong or not content:
        raise ValueError(f"expected TPGN's checkpoint.pth, a state dict of tensors alone; got {some(wrong)}")
    arguments, weights = from_tpgn(content, given)
    return Found(TPGN, arguments, weights, {"freq": given["freq"]} if "freq" in given else {})


# --- AR-Net

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
    return Found(ARNet, config, weights)


# --- ReGENN

_REGENN_NAMES = {"stride": "horizon", "ablation_mode": "ablation"}
_RESNLS_NAMES = {"n_input": "window", "n_hidden": "hidden"}
_GATES = {1: "RNN", 3: "GRU", 4: "LSTM"}
REGENN_KEYS = frozenset({"evolution_function", "output_function", "dropout", "batch_size", "gate", *_REGENN_NAMES})


def from_regenn(config: Mapping[str, Any], state: State) -> Converted:
    """Arguments and weights of `ReGENN` from those of the authors' class, to compute what theirs does.

    Their checkpoints do not count the batches that a graph was made of: a graph that is not empty grows no more.
    """
    ours = {_REGENN_NAMES.get(key, key): value for key, value in config.items()}
    weights = dict(state)
    for layer in ("SourceEvolution", "TargetEvolution"):
        if f"{layer}.adjacency" in state:
            made = bool(state[f"{layer}.shared_adjacency"].any()) and layer == "SourceEvolution"
            weights[f"{layer}.merged"] = torch.tensor(-1 if made else 0)
    return {"attend_over": "samples", "target_graph": "stored"} | ours, weights


def regenn_config(state: State) -> dict[str, Any]:
    """Arguments of the authors' class that the shapes of its weights tell: all but activations and dropout.

    Raises:
        ValueError: these are no weights of a ReGENN.
    """
    gate = state.get("TimeGate.weight_ih_l0")
    if gate is None:
        raise ValueError(f"holds no ReGENN (TimeGate.weight_ih_l0), but {some(state)}")
    window, stride = gate.shape[1], state["TimeGate.weight_hh_l0"].shape[1]
    sequencer = state.get("VariableSequencer.weight_ih_l0")
    graph = state.get("SourceEvolution.adjacency")
    config = {
        "window": window,
        "stride": stride,
        "gate": _GATES.get(gate.shape[0] // stride),
        "sequencer": None if sequencer is None else _GATES.get(sequencer.shape[0] // sequencer.shape[1]),
        "bidirectional_gate": "TimeGate.weight_ih_l0_reverse" in state,
        "bidirectional_sequencer": "VariableSequencer.weight_ih_l0_reverse" in state,
        "encoder": "TimeEncoder.linear1.weight" in state,
        "autoregression": "Autoregression.weights" in state,
        "bias": "TimeGate.bias_ih_l0" in state,
        "ablation_mode": graph is None,
    }
    sized = graph if graph is not None else sequencer
    return config if sized is None else config | {"variables": sized.shape[1]}


def _read_regenn(path: Path, given: Mapping[str, Any]) -> Found:
    """ReGENN of a checkpoint of the authors' command, or of bare weights."""
    content = read_foreign(path)
    bare = content and all(isinstance(value, Tensor) for value in content.values())
    state = content if bare else tensors(content, "model_dict", "has no model_dict; expected one with weights")
    config = regenn_config(state)
    hints = {"output_function": "activation of the output; ReLU by default of the authors' command"}
    if "variables" not in config:
        hints["variables"] = "without graph and sequencer no weight depends on them"
    ask(hints, given)
    config |= {key: value for key, value in given.items() if key in REGENN_KEYS or key == "variables"}
    arguments, weights = from_regenn(config, state)
    assumed = {"evolution_function": None, "dropout": 0.1, "batch_size": 32}
    about = {"assumed": {key: value for key, value in assumed.items() if key not in given}}
    return Found(ReGENN, arguments, weights, about)


# --- ResNLS


def from_resnls(config: Mapping[str, Any], state: State) -> Converted:
    """Arguments and weights of `ResNLS` from those of the authors' class, by default as its code computes.

    The scalar `weight` is missing in files of a training on a GPU, where the authors' code lost it: it is then 0.
    """
    ours = {_RESNLS_NAMES.get(key, key): value for key, value in config.items()}
    weights = {"weight": torch.zeros(1), **state}
    return {"variant": "published"} | ours, weights


def resnls_config(state: State) -> dict[str, Any]:
    """Arguments of the authors' class from the shapes of its weights.

    Raises:
        ValueError: these are no weights of a ResNLS.
    """
    if "lstm.weight_ih_l0" not in state or "cnn.0.weight" not in state:
        raise ValueError(f"holds no ResNLS (lstm.weight_ih_l0, cnn.0.weight), but {some(state)}")
    gates, window = state["lstm.weight_ih_l0"].shape
    return {"n_input": window, "n_hidden": gates // 4}


def _read_resnls(path: Path, given: Mapping[str, Any]) -> Found:
    """ResNLS of bare weights."""
    content = read_foreign(path)
    state = content if content and all(isinstance(value, Tensor) for value in content.values()) else {}
    if not state:
        raise ValueError(f"holds {some(content)}; expected a dict of tensors")
    arguments, weights = from_resnls(resnls_config(state), state)
    return Found(ResNLS, arguments, weights, {} if "weight" in state else {"assumed": {"weight": 0.0}})


# --- the sources

SOURCES = {
    "tpgn": Source(
        "https://github.com/Water2sea/TPGN",
        "its repository states none",
        _read_tpgn,
        frozenset({"freq"}),
    ),
    "arnet": Source("https://github.com/ourownstory/AR-Net", "no trained weights are published", _read_arnet),
    "regenn": Source(
        "https://github.com/gabrielspadon/ReGENN",
        "its code is under GPL-3.0",
        _read_regenn,
        REGENN_KEYS,
    ),
    "resnls": Source("https://github.com/Yuanzhe-Jia/ResNLS", "its code is under MIT", _read_resnls),
}


def convert(
    path: str | Path,
    source: str,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    data: str | Path | None = None,
    targets: Sequence[str] = (),
    split: str = "tpgn",
    overwrite: bool = False,
) -> Path:
    """As the verb: the folder of the converted checkpoint."""
    made = conversion.convert(path, SOURCES, source, out, overrides, example="norm=true", overwrite=overwrite)
    if data is not None:
        from recurra.forecast.training import adopt

        adopt(made, data, tuple(targets), split)
    return made
