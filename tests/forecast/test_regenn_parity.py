"""ReGENN against golden pairs made by its authors' code: layers, network, losses, whole trainings."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recurra.core.testing import Golden, assert_close, check_grads, golden
from recurra.core.testing import pairs as core_pairs
from recurra.forecast.conversion import from_regenn
from recurra.forecast.losses import LOSSES, r2_score
from recurra.forecast.models.graph_evolution import GraphSoftEvolution
from recurra.forecast.models.regenn import ReGENN
from recurra.forecast.protocols.regenn import History, RegennSettings, train_regenn

pytestmark = pytest.mark.parity
pairs = partial(core_pairs, "forecast-classic")


def published(config: dict[str, Any], state: dict[str, Tensor]) -> ReGENN:
    """The network of a pair, as its authors compute it."""
    arguments, weights = from_regenn(config, state)
    model = ReGENN(**arguments)
    model.load_state_dict({**model.state_dict(), **weights})
    assert set(weights) == set(model.state_dict()), "every weight of ours is the authors'"
    return model


def outputs_in_authors_layout(model: ReGENN, x: Tensor) -> dict[str, Tensor]:
    """Outputs of the parts by name, as hooks see them."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, __: Any, output: Any) -> None:
        if name.endswith("Evolution"):
            seen[f"{name}.output"], seen[f"{name}.graph"] = output
        else:
            seen[name] = output[0] if isinstance(output, tuple) else output

    hooks = [part.register_forward_hook(partial(keep, name)) for name, part in model.named_children()]
    seen["y"] = model(x)
    for hook in hooks:
        hook.remove()
    return seen


@pairs("regenn_[!tl]*|regenn_lstm*", reference="networks.py ReGENN")
def test_network(path: Path) -> None:
    pair = golden(path)
    model = published(pair.config, pair.state).eval()
    seen = outputs_in_authors_layout(model, pair.inputs["x"])
    assert_close(seen["y"], pair.outputs["y"], pair.tolerance, name="y")
    for name, expected in pair.group("intermediate").items():
        assert_close(seen[name], expected, pair.tolerance, name=name)
    (seen["y"] - 0.37).square().mean().backward()
    drop_key_bias(model, pair)
    check_grads(pair, model)


def drop_key_bias(model: ReGENN, pair: Golden) -> None:
    """The keys' bias has no gradient in exact arithmetic: what is there is round-off."""
    name = "TimeEncoder.self_attn.in_proj_bias"
    ours = dict(model.named_parameters())
    if name in pair.grads and ours[name].grad is not None:
        w = model.window
        ours[name].grad[w : 2 * w] = pair.grads[name][w : 2 * w]  # type: ignore[index]


@pairs("gse_*", reference="layers.py GSEvolution")
def test_graph_evolution(path: Path) -> None:
    """The graph grows in the first epoch only, and the target's is stale in evaluation."""
    pair = golden(path)
    config, expected = pair.config, pair.outputs
    shared = {key: config[key] for key in ("batch_size", "bias", "dropout")}
    times = (config["variables"], config["in_time"], config["out_time"])
    source = GraphSoftEvolution(*times, time_dot=config["time_dot"], activation=config["activation"], **shared)
    target = GraphSoftEvolution(times[0], times[2], times[2], time_dot=False, **shared)
    for name, layer in (("source", source), ("target", target)):
        layer.load_state_dict({"merged": torch.tensor(0), **pair.group(f"state.{name}")})
    call = 0
    for _ in range(config["epochs"]):
        for b in range(config["n_batches"]):
            y, graph = source(pair.inputs[f"x{b}"], b)
            after, hidden = target(y, graph=graph)
            seen = {"source": y, "source_graph": graph, "source_adjacency": source.adjacency, "target": after}
            seen |= {"source_shared": source.shared_adjacency, "target_graph": hidden}
            seen |= {"target_adjacency": target.adjacency}
            for name, value in seen.items():
                assert_close(value, expected[f"call{call}.{name}"], pair.tolerance, name=f"call{call}.{name}")
            with torch.no_grad():
                source.adjacency_weights += 0.01
            call += 1
    y, graph = source.eval()(pair.inputs["x0"], 99)
    after, _ = target.eval()(y, graph=graph)
    for name, value in {"source": y, "target": after, "target_adjacency": target.adjacency}.items():
        assert_close(value, expected[f"eval.{name}"], pair.tolerance, name=f"eval.{name}")


@pairs("regenn_losses*", reference="losses.py")
def test_losses(path: Path) -> None:
    pair = golden(path)
    compared = 0
    for key, expected in pair.outputs.items():
        name = key.removesuffix("Loss")
        loss = r2_score if name == "R2Score" else LOSSES[name]()
        assert_close(loss(pair.inputs["y_pred"], pair.inputs["y_true"]), expected, rtol=1e-5, name=key)
        compared += 1
    assert compared


@pairs("regenn_train_*", reference="neural_trainer.py NeuralTrainer")
def test_training(path: Path) -> None:
    """Scales, splits, shuffles, every score, the best and the last weights."""
    pair = golden(path)
    config = dict(pair.config["trainer"])
    config["costs"] = tuple(config.pop("cost_list"))
    whole = {field.name for field in dataclasses.fields(RegennSettings) if field.type is float}
    settings = RegennSettings(**{key: float(value) if key in whole else value for key, value in config.items()})
    model = published(pair.config["model"], pair.state)
    recorded = [pair.inputs[f"permutation{i}"] for i in range(sum("permutation" in key for key in pair.inputs))]
    order = iter(recorded)
    samples = pair.inputs["train_samples"], pair.inputs["dev_samples"]
    history = train_regenn(
        model, pair.inputs["dataset"], settings, samples=samples, shuffle=lambda members: next(order)
    )
    assert next(order, None) is None, "every recorded shuffle was used"
    check_training(pair, history, model)


def check_training(pair: Golden, history: History, model: ReGENN) -> None:
    """Assert what the pair says of a training."""
    limit = pair.tolerance
    times = history.times
    assert pair.outputs["time_indices"].tolist() == [times.train, times.dev, times.test, history.train.shape[3]]
    shape = pair.inputs["dataset"].shape
    assert_close(history.panel.scale.expand(shape), pair.outputs["scale"].expand(shape), rtol=1e-6, name="scale")
    assert_close(history.panel.values, pair.outputs["normalised"], rtol=1e-6, atol=1e-7, name="normalised")
    for name, scores in (("trn", history.train), ("dev", history.dev), ("tst", history.test)):
        assert_close(scores, pair.outputs[f"{name}_loss"], rtol=limit.rtol, name=f"{name}_loss")
    assert_close(history.best, pair.outputs["min_loss"], rtol=limit.rtol, name="min_loss")
    for group, state in (("output.final", history.final_state), ("output.best", model.state_dict())):
        for key, expected in pair.group(group).items():
            value = state[key]
            if key.endswith("in_proj_bias"):
                w = model.window
                value = torch.cat([value[:w], expected[w : 2 * w], value[2 * w :]])
            assert_close(value, expected, limit, name=f"{group}.{key}")
