"""Every golden pair of a unit, on every backend that serves it: outputs and gradients."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import recurra.core.nn as units
from recurra.core.testing import Golden, assert_close, golden, golden_files
from recurra.kernels import gated_scan, linear_scan, ssm2d_scan, use_backend
from recurra.kernels.registry import _operations

pytestmark = pytest.mark.usefixtures("straight_interpreter")

DTYPES = {"float64": torch.float64, "float32": torch.float32}


class Ran(NamedTuple):
    """What a pair is compared with: outputs under its names, and what has its gradients."""

    outputs: dict[str, Tensor]
    leaves: dict[str, Tensor]


Tensors = dict[str, Tensor]
Runner = Callable[[Golden, Tensors, torch.dtype], Ran]


def pick(config: dict[str, Any], names: dict[str, str], *, ignore: str = "T B") -> dict[str, Any]:
    """Constructor arguments out of a config; an entry nobody knows is an error, not something to pass over."""
    unknown = set(config) - set(names) - set(ignore.split())
    assert not unknown, f"config has unknown entries {sorted(unknown)}"
    return {names[key]: value for key, value in config.items() if key in names and value is not None}


def load(unit: nn.Module, pair: Golden, dtype: torch.dtype) -> tuple[nn.Module, Tensors]:
    """The unit with the pair's weights, and its parameters under the pair's names."""
    unit.load_state_dict(pair.state, strict=True)
    unit.to(dtype)
    named = dict(unit.named_parameters())
    return unit, {key: named[key if key in named else f"{key}_l0"] for key in pair.state}


def first(x: Tensor) -> Tensor:
    """The batch before the time, and back."""
    return x.transpose(0, 1)


def every_prefix(x: Tensor) -> tuple[Tensor, Tensor]:
    """The batch as often as it has steps, cut after each: units give of c, n and m the last state alone."""
    return x.repeat(x.shape[1], *[1] * (x.dim() - 1)), torch.arange(1, x.shape[1] + 1).repeat_interleave(x.shape[0])


def torch_rnn(pair: Golden, inputs: Tensors, dtype: torch.dtype) -> Ran:
    names = {"input_size": "input", "hidden_size": "hidden", "bias": "bias", "dropout": "dropout"}
    names |= {key: key for key in ("num_layers", "bidirectional", "proj_size", "nonlinearity")}
    arguments = {"bias": "bias_ih_l0" in pair.state, **pick(pair.config, names, ignore="T B lengths batch_first")}
    kinds = {"GRU": units.GRU, "LSTM": units.LSTM, "RNN": units.Elman}
    unit, leaves = load(kinds[pair.reference.rsplit(".", 1)[-1]](**arguments), pair, dtype)
    turned = (lambda t: t) if pair.config.get("batch_first") else first
    given = tuple(inputs[name] for name in ("h0", "c0") if name in inputs)
    lengths = inputs.get("lengths")
    if lengths is None and pair.config.get("lengths") is not None:
        lengths = torch.tensor(pair.config["lengths"])
    y, state = unit(turned(inputs["x"]), given or None, lengths=lengths)
    return Ran({"y": turned(y), "h_n": state[0], "c_n": state[-1]}, leaves)


def gated_cell(pair: Golden, inputs: Tensors, dtype: torch.dtype) -> Ran:
    config = pair.config
    kind, reset = {
        "gru_before": (units.GRU, "before"),
        "mgu_paper": (units.MGU, "before"),
        "mgu_before": (units.MGU, "before"),
        "mgu_after": (units.MGU, "after"),
    }[config.pop("kind")]
    arguments = pick(config, {"input_size": "input", "hidden_size": "hidden"})
    unit, leaves = load(kind(**arguments, reset=reset, bias="bias" in pair.state), pair, dtype)
    y, (h,) = unit(first(inputs["x"]), (inputs["h0"][None],) if "h0" in inputs else None)
    return Ran({"y": first(y), "h_n": h[0]}, leaves)


def flashrnn(pair: Golden, inputs: Tensors, dtype: torch.dtype) -> Ran:
    function = pair.config["function"]
    leaves = {key: value.to(dtype).requires_grad_() for key, value in pair.state.items()}
    r, bias = units.from_flashrnn(leaves["R"], leaves.get("b"), function)
    wx, state = inputs["Wx"], tuple(s[:, 0] for s in inputs["states"].unbind())
    cell = {"elman": "elman_tanh"}.get(function, function)
    y, last = gated_scan(cell, wx, r, bias, state)
    trajectory = [y]
    if len(state) > 1:
        again, lengths = every_prefix(wx)
        _, ends = gated_scan(cell, again, r, bias, tuple(s.repeat(wx.shape[1], 1, 1) for s in state), lengths=lengths)
        trajectory += [first(end.reshape(wx.shape[1], *last[0].shape)) for end in ends[1:]]
    return Ran({"states_all": torch.stack(trajectory), "last": torch.stack(last)[:, :, None]}, leaves)


def indrnn(pair: Golden, inputs: Tensors, dtype: torch.dtype) -> Ran:
    names = {"input_size": "input", "hidden_size": "hidden", "activation": "nonlinearity"}
    arguments = {"input": None, **pick(pair.config, names), "bias": "bias" in pair.state}
    unit, leaves = load(units.IndRNN(**arguments), pair, dtype)
    y, (h,) = unit(first(inputs["x"]), (inputs["h0"][None],) if "h0" in inputs else None)
    return Ran({"y": first(y), "h_n": h[0]}, leaves)


def diagonal(pair: Golden, inputs: Tensors, dtype: torch.dtype) -> Ran:
    kind = units.DiagLSTM if "LSTMCIFGDiagMH" in pair.reference else units.DiagGRU
    arguments = pick(pair.config, {"state_dim": "hidden", "input_dim": "input", "num_heads": "heads"})
    unit, leaves = load(kind(**arguments, bias="b" in pair.state), pair, dtype)
    x = inputs["x"]
    y, _ = unit(x)
    again, lengths = every_prefix(x)
    _, ends = unit(again, lengths=lengths)
    states = torch.cat([end[0].reshape(x.shape[1], x.shape[0], -1) for end in ends[::-1]], -1)  # [c, h]
    return Ran({"y": y, "state": first(states)}, leaves)


def fsmn(pair: Golden, inputs: Tensors, dtype: torch.dtype) -> Ran:
    config = pair.config
    assert config.pop("output_dim") == config["input_dim"], "the block adds its input to its output"
    arguments = pick(config, {"input_dim": "input", "hidden_size": "hidden", "lorder": "lorder", "depth": "depth"})
    if "dilated" in pair.reference:
        unit: nn.Module = units.DilatedFSMN(**arguments)
    else:
        causal = pair.state["conv1.weight"].shape[2] == arguments["lorder"]
        memory = "dual" if "conv2.weight" in pair.state else "causal" if causal else "bidirectional"
        unit = units.FSMN(**arguments, memory=memory)
    unit, leaves = load(unit, pair, dtype)
    return Ran({"y": unit(inputs["x"])[0]}, leaves)


def dense_memory(pair: Golden, inputs: Tensors, dtype: torch.dtype) -> Ran:
    arguments = pick(pair.config, {"in_channels": "channels", "lorder": "lorder", "depth": "depth"})
    unit, leaves = load(units.DilatedDenseMemory(**arguments), pair, dtype)
    return Ran({"y": unit(inputs["x"])}, leaves)


def complex_fsmn(pair: Golden, inputs: Tensors, dtype: torch.dtype) -> Ran:
    config = pair.config
    assert config.pop("nOut", config["nIn"]) == config["nIn"], "the block adds its input to its output"
    lorder = pair.state["fsmn_re_L1.conv1.weight"].shape[2]
    arguments = pick(config, {"nIn": "input", "nHidden": "hidden"})
    unit, leaves = load(units.ComplexFSMN(**arguments, lorder=lorder), pair, dtype)
    x = inputs["x"]  # (batch, channel, height, time, 2)
    y, _ = unit(x.permute(0, 3, 1, 2, 4).flatten(2, 3))
    y = y.reshape(x.shape[0], x.shape[3], x.shape[1], x.shape[2], 2).permute(0, 2, 3, 1, 4)
    return Ran({"y": y}, leaves)


def pgn(pair: Golden, inputs: Tensors, dtype: torch.dtype) -> Ran:
    names = {"c_in": "channels", "c_out": "hidden", "seq_R": "rows", "windows_size": "window"}
    marks = inputs.get("x_mark")
    features = inputs["x"].shape[-1] + (0 if marks is None else marks.shape[-1])
    unit, leaves = load(units.PGN(features, **pick(pair.config, names, ignore="freq")), pair, dtype)
    return Ran({"y": unit(inputs["x"], marks)}, leaves)


def linear(pair: Golden, inputs: Tensors, dtype: torch.dtype) -> Ran:
    pick(pair.config, {}, ignore="T B H complex time_invariant")
    if pair.config["complex"]:
        inputs = {key: torch.view_as_complex(value) for key, value in inputs.items()}
    a, b = inputs["a"], inputs["b"]
    h, last = linear_scan(first(a) if a.dim() == b.dim() else a, first(b), inputs.get("h0"))
    outputs = {"y": first(h), "h_n": last}
    return Ran({k: torch.view_as_real(v) if v.is_complex() else v for k, v in outputs.items()}, {})


def ssm2d(pair: Golden, inputs: Tensors, dtype: torch.dtype) -> Ran:
    pick(pair.config, {}, ignore="T B V N time_invariant")
    left, top = (
        (inputs[f"h_{side}"], inputs[f"v_{side}"]) if f"h_{side}" in inputs else None for side in ("left", "top")
    )
    h, g = ssm2d_scan(*(inputs[name] for name in ("a1", "a2", "a3", "a4", "b1", "b2")), left, top)
    return Ran({"h": h, "v": g}, {})


class Kind(NamedTuple):
    """How to recognise pairs of a kind, what runs them, and the operation that does the work."""

    reference: str
    config: set[str]
    inputs: set[str]
    run: Runner
    op: str | None


KINDS = [
    Kind("torch.nn.", {"input_size", "hidden_size"}, {"x"}, torch_rnn, "gated_layer"),
    Kind("flashrnn", {"function"}, {"Wx", "states"}, flashrnn, "gated_scan"),
    Kind("IndRNN", {"activation"}, {"x"}, indrnn, "elementwise_scan"),
    Kind("ml-pararnn", {"state_dim"}, {"x"}, diagonal, "elementwise_scan"),
    Kind("UniDeepFsmn", {"lorder", "input_dim"}, {"x"}, fsmn, "memory_conv"),
    Kind("DilatedDenseNet", {"depth", "in_channels"}, {"x"}, dense_memory, "memory_conv"),
    Kind("ComplexUniDeepFsmn", {"nIn"}, {"x"}, complex_fsmn, "memory_conv"),
    Kind("PGN_2d", {"seq_R"}, {"x"}, pgn, None),
    Kind("", {"kind", "hidden_size"}, {"x"}, gated_cell, "gated_layer"),
    Kind("", {"complex"}, {"a", "b"}, linear, "linear_scan"),
    Kind("", {"V", "N"}, {"a1", "a2", "a3", "a4", "b1", "b2"}, ssm2d, "ssm2d_scan"),
]
# test_conv_cells.py has these.
ELSEWHERE = ("rnn_cells", "direct.nn.recurrent")


def kind_of(pair: Golden) -> Kind:
    """What a pair is of, by what it says of itself; its file name says nothing."""
    for kind in KINDS:
        known = kind.reference in pair.reference and kind.config <= set(pair.config)
        if known and kind.inputs <= set(pair.inputs):
            return kind
    raise ValueError(f"{pair.path.name}: no test knows pairs of {pair.reference!r} with {sorted(pair.config)}")


def cases() -> list[Any]:
    """Every pair with every backend of its operation; a pair of no known kind too, so that it fails."""
    found = []
    for path in golden_files("core"):
        pair = golden(path)
        if any(name in pair.reference for name in ELSEWHERE):
            continue
        try:
            op = kind_of(pair).op
        except ValueError:
            op = None
        for backend in backends(op):
            found.append(pytest.param(path, backend, id=f"{path.stem}-{backend}"))
    return found


def backends(op: str | None) -> list[str | None]:
    """None, the automatic choice, and every backend by name."""
    names = list(_operations[op].backends) if op else []
    if op == "gated_layer":  # its "scan" is an operation with backends of its own
        names = ["torch", *_operations["gated_scan"].backends]
    return [None, *names]


def cosine_loss(pair: Golden, outputs: Tensors) -> Tensor:
    """The scalar behind the gradients of the pairs."""
    total = torch.zeros((), dtype=torch.float64)
    for name in pair.description["outputs"]:
        flat = outputs[name].double().flatten()
        total = total + (torch.cos(torch.arange(1, len(flat) + 1, dtype=torch.float64)) * flat).sum()
    return total


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's own word
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("path", "backend"), cases())
def test_equals_the_reference(path: Path, backend: str | None, dtype: torch.dtype) -> None:
    # Compiling the chunks of one backend takes minutes, and tests/kernels does it: here they run as they are written.
    with torch.compiler.set_stance("force_eager" if backend == "compiled" else "default"):
        check(golden(path), backend, dtype)


def check(pair: Golden, backend: str | None, dtype: torch.dtype) -> None:
    """Outputs and gradients at the pair's tolerance."""
    kind = kind_of(pair)
    inputs = {k: v.to(dtype).requires_grad_() if v.is_floating_point() else v for k, v in pair.inputs.items()}
    try:
        with use_backend(backend) if backend else nullcontext():
            ran = kind.run(pair, inputs, dtype)
    except ValueError as error:
        if backend is None or "cannot serve" not in str(error):
            raise
        pytest.skip(str(error))
    tolerance = pair.tolerance_for(dtype)
    for name in pair.description["outputs"]:
        assert ran.outputs[name].dtype == dtype
        assert_close(ran.outputs[name], pair.outputs[name], tolerance, name=name)
    cosine_loss(pair, ran.outputs).backward()
    leaves = ran.leaves | {f"input.{key}": value for key, value in inputs.items()}
    assert pair.grads
    for key, expected in pair.grads.items():
        gradient = leaves[key].grad
        assert gradient is not None, key
        assert_close(gradient, expected, tolerance, name=f"gradient of {key}")
