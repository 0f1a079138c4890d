"""ResNLS against golden pairs made by its authors' code: both forwards, gradients, statistics, whole trainings."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from recurra.core.testing import Golden, assert_close, golden
from recurra.core.testing import pairs as core_pairs
from recurra.forecast.conversion import from_resnls
from recurra.forecast.models.resnls import ResNLS
from recurra.forecast.protocols.resnls import ResnlsSettings, train_resnls, windows

pytestmark = pytest.mark.parity
pairs = partial(core_pairs, "forecast-classic")
Variant = Literal["paper", "published"]


def network(pair: Golden, variant: Variant, *, dropout: float = 0.1) -> ResNLS:
    """The network of a pair."""
    sizes = {key: pair.config[key] for key in ("n_input", "n_hidden")}
    arguments, weights = from_resnls(sizes, pair.state)
    model = ResNLS(**arguments | {"variant": variant, "dropout": dropout})
    model.load_state_dict(weights)
    return model


def series(x: Tensor) -> Tensor:
    """The authors' (batch, 1, window) as ours, (batch, window, 1)."""
    return x.transpose(1, 2)


@pairs("resnls_[0-9]*", reference="src/resnls.py class ResNLS")
def test_network(path: Path) -> None:
    pair = golden(path)
    if "mode" in pair.config:
        pytest.skip("a training, see test_training")
    x = pair.inputs["x"]
    compared = 0
    for variant, output in (("paper", "y_paper"), ("published", "y_as_published")):
        model = network(pair, variant).eval()  # type: ignore[arg-type]
        y = model(series(x))
        if output in pair.outputs:
            assert_close(y[:, 0], pair.outputs[output], pair.tolerance, name=output)
            compared += 1
        y.sub(0.5).square().mean().backward()
        grads = {key: value.grad for key, value in model.named_parameters()}
        for key, expected in pair.group(f"grad_{variant}").items():
            found = grads[key]
            assert found is not None, key
            assert_close(found, expected, pair.tolerance, name=f"grad_{variant} {key}")
    assert compared
    inner = {"cnn": model.correction(x), "residual_sum": x + model.weight * model.correction(x)}
    for name, expected in pair.group("intermediate").items():
        assert_close(inner[name], expected, pair.tolerance, name=name)


@pairs("resnls_[0-9]*", reference="src/resnls.py class ResNLS")
def test_statistics_of_a_training_step(path: Path) -> None:
    pair = golden(path)
    expected = pair.group("output.train_mode")
    if not expected:
        pytest.skip("the pair holds none")
    seen: dict[str, Any] = {}
    model = network(pair, "paper", dropout=0.0).train()
    model.cnn.register_forward_hook(lambda _, __, output: seen.update(cnn=output[:, None]))
    seen["y_paper"] = model(series(pair.inputs["x"]))[:, 0]
    seen |= {f"buffer.{key}": value for key, value in model.named_buffers()}
    for name, value in expected.items():
        assert_close(seen[name], value, pair.tolerance, name=name)
    # The published forward moves them too, though nothing comes of it.
    published = network(pair, "published", dropout=0.0).train()
    published(series(pair.inputs["x"]))
    for key, value in published.named_buffers():
        if f"buffer.{key}" in expected:
            assert_close(value, expected[f"buffer.{key}"], pair.tolerance, name=key)


@pairs("resnls_train_*", reference="its training loop")
def test_training(path: Path) -> None:
    pair = golden(path)
    config = pair.config
    variant = config["mode"]
    model = network(pair, variant, dropout=0.0)
    settings = ResnlsSettings(
        loss="PairwiseMSE" if variant == "published" else "MSE",
        shuffle=False,
        schedule="none",
        batch_size=config["batch_size"],
        epochs=config["epochs"],
        learning_rate=config["lr"],
    )
    scaled = pair.inputs["series"].numpy()
    losses = train_resnls(model, scaled, settings)
    assert_close(torch.tensor(losses), pair.outputs["losses"], rtol=pair.tolerance.rtol, name="losses")
    with torch.no_grad():
        forecast = model(windows(scaled, model.window)[0])
    assert_close(forecast[:, 0], pair.outputs["pred"], pair.tolerance, name="pred")
    state = model.state_dict()
    for key, expected in pair.group("output.state").items():
        assert_close(state[key], expected, pair.tolerance, name=key)
