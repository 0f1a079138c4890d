"""Authors' checkpoint files, turned into ours.

regenn    torch.save of a dict with the weights under "model_dict", or of the weights alone
resnls    weights alone
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recurra.core.checkpoint import read_foreign
from recurra.core.conversion import Found, Source, ask, some, tensors
from recurra.forecast.models.regenn import ReGENN
from recurra.forecast.models.resnls import ResNLS

State = Mapping[str, Tensor]
Converted = tuple[dict[str, Any], dict[str, Tensor]]

_REGENN_NAMES = {"stride": "horizon", "ablation_mode": "ablation"}
_RESNLS_NAMES = {"n_input": "window", "n_hidden": "hidden"}
_GATES = {1: "RNN", 3: "GRU", 4: "LSTM"}
REGENN_KEYS = frozenset({"evolution_function", "output_function", "dropout", "batch_size", "gate", *_REGENN_NAMES})


# --- ReGENN


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
    weights["residuals"] = torch.zeros(0, ours["horizon"], 1)
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
    weights = {"weight": torch.zeros(1), **state, "residuals": torch.zeros(0, 1, 1)}
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
    horizon = given.get("horizon", 1)
    if isinstance(horizon, int) and horizon > 0:
        weights["residuals"] = torch.zeros(0, horizon, 1)
    return Found(ResNLS, arguments, weights, {} if "weight" in state else {"assumed": {"weight": 0.0}})


SOURCES = {
    "regenn": Source("https://github.com/gabrielspadon/ReGENN", "its code is under GPL-3.0", _read_regenn, REGENN_KEYS),
    "resnls": Source("https://github.com/Yuanzhe-Jia/ResNLS", "its code is under MIT", _read_resnls),
}
