"""TPGN and its parts against golden pairs made by the authors' code, under their names; a trained model's scores."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from recurra.core.nn import PGN
from recurra.core.testing import (
    Golden,
    Tolerance,
    assert_close,
    check_grads,
    check_outputs,
    golden,
    golden_files,
)
from recurra.core.testing import pairs as core_pairs
from recurra.forecast.conversion import convert, from_tpgn
from recurra.forecast.models.tpgn import TPGN, ShortTerm, TemporalPGN

pytestmark = pytest.mark.parity

pairs = partial(core_pairs, "forecast-long", "")
FEATURES = {"t": 5, "min": 5, "h": 4, "d": 3}
DATA = Path(__file__).parents[3] / "shared" / "data" / "forecast"


def features(config: Mapping[str, Any]) -> int:
    return FEATURES[config["freq"].lower()]


def grid(x: Tensor, marks: Tensor) -> Tensor:
    """Values (batch, row, column, channel, 1) and marks of the same form as (channel, feature, row, batch, column)."""
    return torch.cat([x, marks], -1).permute(3, 4, 1, 0, 2)


def caught(module: nn.Module, name: str) -> dict[str, Tensor]:
    """Where what the module returns will be found."""
    found: dict[str, Tensor] = {}
    module.register_forward_hook(lambda _module, _inputs, output: found.update({name: output}))
    return found


def check_gradients(pair: Golden, model: nn.Module, y: Tensor, inputs: Mapping[str, Tensor]) -> None:
    """The loss and its gradients, of weights and inputs, where the pair has them."""
    if "target" not in pair.inputs:
        return
    loss = (y - pair.inputs["target"]).square().mean()
    if "loss" in pair.outputs:
        assert_close(loss.reshape(pair.outputs["loss"].shape), pair.outputs["loss"], pair.tolerance, name="loss")
    loss.backward()
    of_inputs = {key: pair.grads[key] for key in pair.grads if key in inputs}
    for key, expected in of_inputs.items():
        gradient = inputs[key].grad
        assert gradient is not None, key
        assert_close(gradient, expected, pair.tolerance, name=f"grad {key}")
    of_weights = {f"grad.{key}": value for key, value in pair.grads.items() if key not in of_inputs}
    alone = Golden(pair.path, pair.description)
    alone.__dict__["tensors"] = of_weights
    check_grads(alone, model)


@pairs(reference="PGN_2d")
@pytest.mark.parametrize("of_input", [False, True])
def test_unit(path: Path, of_input: bool) -> None:
    pair = golden(path)
    config, x, marks = pair.config, pair.inputs["x"], pair.inputs["x_mark"]
    unit = PGN(
        x.shape[-1] + marks.shape[-1],
        config["c_out"],
        rows=config["seq_R"],
        window=config["windows_size"],
        channels=config["c_in"],
    )
    unit.load_state_dict(pair.state)
    x.requires_grad_(of_input)
    y = unit(x, marks)
    gated = unit.gated(grid(x, marks).flatten(3)).unflatten(3, (x.shape[0], -1)).permute(3, 2, 4, 0, 1)
    rows, _ = unit.states(x, marks)
    assert_close(rows, gated, pair.tolerance, name="by convolutions")
    outputs = {"y": y, "gated": gated}
    # What the gate gets stands in the unit's plain form.
    of_rows = torch.cat([x, marks], -1)
    before = torch.cat([of_rows.new_zeros(x.shape[0], unit.window, *of_rows.shape[2:]), of_rows], 1)
    outputs["hie"] = unit._of_rows(unit.hidden_MLP, before[:, :-1])
    check_outputs(
        pair, {name: outputs[name] for name in pair.outputs if name != "loss"} | {"loss": pair.outputs.get("loss")}
    )
    check_gradients(without_input(pair) if not of_input else pair, unit, y, {"x": x} if of_input else {})


def without_input(pair: Golden) -> Golden:
    """The pair without gradients of its inputs."""
    alone = Golden(pair.path, pair.description)
    alone.__dict__["tensors"] = {
        key: value
        for key, value in pair.tensors.items()
        if key.removeprefix("grad.") not in pair.inputs or "." not in key or not key.startswith("grad.")
    }
    return alone


@pairs(reference="short_term_deal")
def test_short_term_branch(path: Path) -> None:
    pair = golden(path)
    config, x, marks = pair.config, pair.inputs["x"], pair.inputs["x_mark"]
    branch = ShortTerm(
        x.shape[-1] + marks.shape[-1],
        config["c_out"],
        rows=config["seq_R"],
        period=config["period"],
        channels=config["c_in"],
    )
    branch.load_state_dict(pair.state)
    sh = branch(grid(x, marks))  # (channel, batch, hidden), the same for all columns
    y = sh.transpose(0, 1).unsqueeze(1).expand(-1, config["period"], -1, -1)
    check_outputs(pair, {"y": y, "loss": pair.outputs.get("loss")})
    check_gradients(without_input(pair), branch, y, {})


@pairs(reference="TPGN(need_short")
def test_network(path: Path) -> None:
    pair = golden(path)
    config, x, marks = pair.config, pair.inputs["x"], pair.inputs["x_mark"]
    assert config["windows_size"] == config["seq_R"] - 1, "the model's window is the whole past"
    network = TemporalPGN(
        1 + marks.shape[-1],
        config["c_out"],
        rows=config["seq_R"],
        period=config["period"],
        rows_ahead=config["pred_R"],
        channels=config["c_in"],
        short=bool(config.get("need_short", 1)),
    )
    network.load_state_dict(pair.state)
    every = marks.unsqueeze(3).expand(-1, -1, -1, config["c_in"], -1)
    y = network(grid(x.unsqueeze(-1), every)).permute(2, 1, 3, 0).flatten(1, 2)
    check_outputs(pair, {"y": y, "loss": pair.outputs.get("loss")})
    check_gradients(without_input(pair), network, y, {})


def model_of(config: Mapping[str, Any], state: Mapping[str, Tensor], *, whole: bool = True) -> TPGN:
    """The authors' model; `whole`, with all rows that theirs returns."""
    period = config["TPGN_period"]
    arguments, weights = from_tpgn(state, {"norm": bool(config["norm"]), "period": period, "freq": config["freq"]})
    expected = {
        "window": config["seq_len"],
        "horizon": -(-config["pred_len"] // period) * period,
        "period": period,
        "variates": config["enc_in"],
        "features": features(config),
        "hidden": config["d_model"],
        "short": any("s_t_p_e" in key for key in state),
    }
    assert arguments == expected
    model = TPGN(**arguments | ({} if whole else {"horizon": config["pred_len"]}), norm=bool(config["norm"]))
    model.load_state_dict(weights, strict=True)
    return model


def ahead(marks: Tensor, horizon: int) -> Tensor:
    """The window's marks with any for the horizon, of which there are none in the pairs."""
    return torch.cat([marks, torch.full((marks.shape[0], horizon, marks.shape[2]), torch.nan)], 1)


@pairs(reference="Model(configs)")
@pytest.mark.parametrize("of_input", [False, True])
def test_model(path: Path, of_input: bool) -> None:
    pair = golden(path)
    config, x, marks = pair.config, pair.inputs["x_enc"], pair.inputs["x_mark_enc"]
    model = model_of(config, pair.state)
    assert sum(p.numel() for p in model.parameters()) == pair.description.get(
        "params", sum(map(torch.numel, pair.state.values()))
    )
    x.requires_grad_(of_input)
    unit = model.TPGN.LNN_dim
    y = model(x, ahead(marks, model.horizon))
    folded = (
        model._grid(*((x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt(), marks))
        if config["norm"]
        else model._grid(x, marks)
    )
    outputs = {"y": y, "loss": pair.outputs.get("loss")} | intermediates(model, folded)
    check_outputs(pair, outputs)
    cut = model_of(config, pair.state, whole=False)
    assert_close(cut(x, ahead(marks, cut.horizon)), pair.outputs["y"][:, : config["pred_len"]], pair.tolerance)
    if "target" in pair.inputs and pair.grads:
        check_gradients(pair if of_input else without_input(pair), model, y, {"x_enc": x} if of_input else {})
    assert unit.window == unit.rows - 1


def intermediates(model: TPGN, folded: Tensor) -> dict[str, Tensor]:
    """What the pairs hold of the inside, in their axes."""
    unit, batch = model.TPGN.LNN_dim, folded.shape[3]
    x = folded.permute(3, 2, 4, 0, 1)  # (batch, row, column, channel, feature)
    before = torch.cat([x.new_zeros(batch, unit.window, *x.shape[2:]), x], 1)
    history = unit._of_rows(unit.hidden_MLP, before[:, :-1])
    found = {
        "hie_conv": history.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1),
        "long_branch": unit(x),
    }
    if model.TPGN.short:
        sh = model.TPGN.s_t_p_e(folded).transpose(0, 1).unsqueeze(1)
        found["short_branch"] = sh.expand(-1, model.period, -1, -1)
    return found


def calendar(stamps: pd.DatetimeIndex) -> Tensor:
    """Hour, day of week, of month and of year, each between -0.5 and 0.5."""
    parts = [stamps.hour / 23, stamps.day_of_week / 6, (stamps.day - 1) / 30, (stamps.day_of_year - 1) / 365]
    return torch.tensor(np.stack([np.asarray(part) for part in parts], -1) - 0.5, dtype=torch.float32)


def trained() -> list[Path]:
    """Pairs of a trained checkpoint and its scores; they rest on a file of other people, which may not be here."""
    try:
        found = golden_files("forecast-long", "tpgn_e2e_*")
    except ValueError:
        return []
    return [path for path in found if path.with_suffix(".pth").exists()]


@pytest.mark.parametrize("path", trained(), ids=lambda path: path.stem)
def test_trained_checkpoint_reproduces_its_scores(path: Path, tmp_path: Path) -> None:
    described = json.loads(path.read_text(encoding="utf-8"))
    config, results = described["config"], described["results"]
    # Beside the folder of pairs, or beside the repository.
    folders = (path.parents[2] / "data" / "forecast", DATA)
    source = next((folder / described["data"] for folder in folders if (folder / described["data"]).exists()), None)
    if source is None:
        pytest.skip(f"no {described['data']} here")
    given = [f"norm={'true' if config['norm'] else 'false'}", f"horizon={config['pred_len']}", f"freq={config['freq']}"]
    model = TPGN.from_pretrained(convert(path.with_suffix(".pth"), "tpgn", tmp_path / "tpgn", given))
    table = pd.read_csv(source, parse_dates=["date"])
    rows = len(table)
    train, test, window, horizon = int(rows * 0.6), int(rows * 0.2), config["seq_len"], config["pred_len"]
    values = table[described["target"]].to_numpy(np.float64)
    values = torch.tensor((values - values[:train].mean()) / values[:train].std(), dtype=torch.float32)
    marks = calendar(pd.DatetimeIndex(table["date"]))
    spans = {"val": (train - window, rows - test), "test": (rows - test - window, rows)}
    for split, (first, last) in spans.items():
        expected, starts = results[split], range(first, last - window - horizon + 1)
        assert len(starts) == expected["n_windows"]
        forecasts, truth = forecast(model, values, marks, starts), follow(values, starts, window, horizon)
        error = forecasts.double() - truth.double()
        kept = len(starts) // 32 * 32
        scores = {"mse": error.square().mean(), "mae": error.abs().mean()}
        scores |= {"mse_first_multiple_of_32": error[:kept].square().mean()}
        scores |= {"mae_first_multiple_of_32": error[:kept].abs().mean()}
        for name, score in scores.items():
            assert_close(score, expected[name], Tolerance(1e-6, 0.0), name=f"{split} {name}")
        for name, index in (("window0", 0), ("last", -1)):
            wanted = torch.tensor(results[f"{split}_pred_{name}"])
            assert_close(forecasts[index], wanted, Tolerance(1e-5, 0.0), name=f"{split} {name}")


def follow(values: Tensor, starts: range, window: int, horizon: int) -> Tensor:
    """What came after each window."""
    return values.unfold(0, horizon, 1)[starts.start + window : starts.stop + window]


@torch.no_grad()
def forecast(model: TPGN, values: Tensor, marks: Tensor, starts: range) -> Tensor:
    steps = model.window + model.horizon
    past = values.unfold(0, model.window, 1)[starts.start : starts.stop].unsqueeze(-1)
    of_steps = marks.unfold(0, steps, 1)[starts.start : starts.stop].transpose(1, 2)
    parts = [model(p, m)[..., 0] for p, m in zip(past.split(512), of_steps.split(512), strict=True)]
    return torch.cat(parts)
