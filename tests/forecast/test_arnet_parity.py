"""AR-Net against the authors' programs: forward, penalties, schedules, quantiles, and whole trainings."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recurra.core.testing import Golden, Tolerance, assert_close, check_grads, golden, pairs, renamed
from recurra.forecast.arnet_recipes import automatic_batches, pinball, tabulated, train_one_cycle, train_v0_1
from recurra.forecast.conversion import from_v0_1
from recurra.forecast.data.synthetic_ar import ar_series, random_coefficients
from recurra.forecast.models.arnet import ARNet, spread_quantiles
from recurra.forecast.sparsity import (
    lambda_v0_1,
    lambda_v1_2,
    logarithmic,
    mean_symmetric_error,
    noise_of,
    ramp_neuralprophet,
    ramp_v1_2,
    squashed,
    symmetric_error,
)

pytestmark = pytest.mark.parity

CLOSE = Tolerance(1e-6, 1e-5)
"""Of float32 sums of some ten products; the pairs of this kind state none."""


@pairs("forecast-classic", "arnet_dar_*")
def test_forward(path: Path) -> None:
    pair = golden(path)
    config, state = from_v0_1(pair.state)
    assert config["window"] == pair.config["ar"]
    assert config["hidden"] == (pair.config["d_hidden"],) * (pair.config["num_layers"] - 1)
    model = ARNet(**config)
    model.load_state_dict({**model.state_dict(), **state})
    y = model(pair.inputs["x"][..., None])[..., 0]
    assert_close(y, pair.outputs["y"], CLOSE)
    y.square().mean().backward()
    names = renamed(pair.state, lambda order: from_v0_1(order, shapes=pair.state)[1])
    check_grads_within(pair, model, names)


def check_grads_within(pair: Golden, model: ARNet, names: dict[str, str]) -> None:
    if "tolerance" in pair.description:
        check_grads(pair, model, names)
        return
    ours = dict(model.named_parameters())
    for key, expected in pair.grads.items():
        gradient = ours[names[key]].grad
        assert gradient is not None
        assert_close(gradient, expected, CLOSE, name=key)


def fresh(pair: Golden, weight: Tensor, bias: Tensor, **options: Any) -> ARNet:
    """The linear model with these weights."""
    horizon, window = weight.shape
    model = ARNet(window=window, horizon=horizon, parity=True, **options)
    model.load_state_dict({**model.state_dict(), "layers.0.weight": weight, "layers.0.bias": bias})
    return model


@pairs("forecast-classic", "arnet_train_v0_1*")
def test_training_of_the_paper(path: Path) -> None:
    pair = golden(path)
    config = pair.config
    model = fresh(
        pair,
        pair.state["layer_1.weight"],
        pair.state["layer_1.bias"],
        regulariser="v0_1",
        sparsity=config["est_sparsity"],
        epochs=config["epochs"],
        delay=float(config["lambda_delay"]),
    )
    x, y = tabulated(pair.inputs["series"], config["p"])
    x, y = x[: config["n"]], y[: config["n"]]
    trajectory = train_v0_1(model, x, y, batch_size=config["batch_size"], lr=config["lr"], decay=config["lr_decay"])
    assert_close(np.array(trajectory.losses), pair.outputs["losses"], rtol=1e-3, name="losses")
    assert_close(np.array(trajectory.epochs), pair.outputs["epoch_losses"], rtol=1e-3, name="epoch losses")
    for key in ("weight", "bias"):
        ours = model.state_dict()[f"layers.0.{key}"]
        assert_close(ours, pair.outputs[f"state.layer_1.{key}"], atol=1e-4, name=key)
    assert_close(model.coefficients()[0], pair.outputs["coeff_lag1_first"], atol=1e-4, name="coefficients")


@pairs("forecast-classic", "arnet_train_onecycle*")
def test_training_of_arnet_1_2(path: Path) -> None:
    pair = golden(path)
    config, adam = pair.config, pair.config["adam"]
    assert adam["decouple_wd"]
    model = fresh(pair, pair.state["weight"], pair.state["bias"], regulariser="v1_2", sparsity=config["sparsity"])
    x, y = tabulated(pair.inputs["series"], config["p"], config["n_out"])
    trajectory = train_one_cycle(
        model,
        x[: config["n"]],
        y[: config["n"]],
        lr=config["lr_max"],
        epochs=config["epochs"],
        batch_size=config["batch_size"],
        div=config["div"],
        div_final=config["div_final"],
        start=config["pct_start"],
        momenta=tuple(config["moms"]),
        square_momentum=adam["sqr_mom"],
        eps=adam["eps"],
        weight_decay=adam["wd"],
        shown=True,
    )
    assert_close(np.array(trajectory.rates), pair.outputs["lr"], atol=1e-6 * config["lr_max"], name="lr")
    assert_close(np.array(trajectory.momenta), pair.outputs["mom"], rtol=1e-6, name="momentum")
    steps = len(pair.outputs["lam"])
    weights = [lambda_v1_2(config["sparsity"]) * ramp_v1_2((step + 1) / steps) for step in range(steps)]
    assert_close(np.array(weights), pair.outputs["lam"], rtol=1e-6, name="lambda")
    # Closer than the pairs ask for: what they take for round-off of the penalty's gradient is the want of it.
    assert_close(np.array(trajectory.losses), pair.outputs["loss"], rtol=1e-5, name="losses")
    final = model.state_dict()
    assert_close(final["layers.0.weight"], pair.outputs["weight"], atol=1e-5, name="weight")
    assert_close(final["layers.0.bias"], pair.outputs["bias"], atol=1e-5, name="bias")


@pairs("forecast-classic", "arnet_utils*")
def test_pieces(path: Path) -> None:
    pair = golden(path)
    given, expected, config = pair.inputs, pair.outputs, pair.config
    weights = given["weights"]
    for name in expected:
        if found := re.fullmatch(r"reg_c1_([\d.]+)_c2_([\d.]+)", name):
            check_penalty(weights, float(found[1]), float(found[2]), expected)
    assert_close(weights.abs().sqrt().mean(), expected["reg_alt_sqrt"], rtol=1e-6)
    sparsity = given["sparsity"].tolist()
    for name, weigh in (
        ("lambda_v0_1", lambda_v0_1),
        ("lambda_v1_2_noise_none", lambda_v1_2),
        ("lambda_v1_2_noise_0p13", lambda s: lambda_v1_2(s, 0.13)),
    ):
        assert_close(np.array([weigh(s) for s in sparsity]), expected[name], rtol=1e-9, name=name)
    schedule = config["schedule"]
    total = schedule["n_iter"] * schedule["n_epoch"]
    ramp = [ramp_v1_2((i + 1) / total, schedule["start_pct"], schedule["full_pct"]) for i in range(total)]
    ours = lambda_v1_2(schedule["sparsity"]) * np.array(ramp)
    assert_close(ours, expected["lam_schedule"], rtol=1e-9, name="schedule")


def check_penalty(weights: Tensor, c1: float, c2: float, expected: dict[str, Tensor]) -> None:
    name = f"c1_{c1:g}_c2_{c2:g}"
    ours = weights.clone().requires_grad_()
    value = squashed(ours, c1, c2, tiny=0.0).mean()
    assert_close(value, expected[f"reg_{name}"], rtol=1e-6, name=name)
    (gradient,) = torch.autograd.grad(value, ours)
    theirs = expected[f"reg_grad_{name}"].flatten()
    # At exactly 0 theirs is NaN; ours is finite as soon as there is 1e-9 inside the root.
    there = ~theirs.isnan()
    assert torch.equal(~gradient.isnan(), there)
    assert_close(gradient[there], theirs[there], rtol=1e-5, name=f"gradient {name}")
    (mended,) = torch.autograd.grad(squashed(ours, c1, c2).mean(), ours)
    assert mended.isfinite().all()
    assert_close(mended[there], theirs[there], rtol=1e-3, name=f"mended gradient {name}")


@pairs("forecast-classic", "arnet_utils*")
def test_scores_and_data(path: Path) -> None:
    pair = golden(path)
    given, expected = pair.inputs, pair.outputs
    estimated, true = given["est"].numpy(), given["real"].numpy()
    for name, ours in (
        ("sTPE", symmetric_error(estimated, true)),
        ("sTPE_row0", symmetric_error(estimated[0], true[0])),
        ("sMAPE_row0", mean_symmetric_error(estimated[0], true[0])),
        ("est_noise", noise_of(given["series"].numpy())),
    ):
        assert_close(np.float64(ours), expected[name], rtol=1e-12, name=name)
    assert_close(((estimated[1] - true[1]) ** 2).mean(), expected["MSE_row1"], rtol=1e-12)
    (window, horizon) = expected["tab_x"].shape[1], expected["tab_y"].shape[1]
    x, y = tabulated(given["series"], window, horizon)
    assert torch.equal(x, expected["tab_x"])
    assert torch.equal(y, expected["tab_y"])
    # The last tenth is held out, rounded down to no fewer than it takes.
    assert expected["split_sizes"].tolist() == [len(x) - int(0.1 * len(x) + 1), int(0.1 * len(x) + 1)]
    loss = torch.nn.SmoothL1Loss()(given["h_pred"], given["h_true"])
    assert_close(loss, expected["huber"], rtol=1e-6)
    seed = pair.config["seed"]
    drawn = random_coefficients(len(expected["random_arparams"]), np.random.RandomState(seed))
    assert_close(drawn, expected["random_arparams"], rtol=1e-12)
    generator = np.random.RandomState(seed)
    drawn = random_coefficients(len(expected["generated_params"]), generator)
    assert_close(drawn, expected["generated_params"], rtol=1e-12)
    series = ar_series(drawn, len(expected["generated_series"]), generator, noise=0.1)  # arnet 1.2's own default
    assert_close(series, expected["generated_series"], rtol=1e-9, atol=1e-12)


@pairs("forecast-classic", "arnet_quantiles_neuralprophet*")
def test_quantiles_of_neuralprophet(path: Path) -> None:
    pair = golden(path)
    given, expected = pair.inputs, pair.outputs
    levels = tuple(pair.config["quantiles"])
    below = sum(level < 0.5 for level in levels)
    train = spread_quantiles(given["diffs"], below, cross=True)
    assert_close(train, expected["train_quantiles"], atol=1e-6)
    assert_close(spread_quantiles(given["diffs"], below), expected["predict_quantiles"], atol=1e-6)
    for name, base, beta in (("mae", "mae", 1.0), ("mse", "mse", 1.0), ("smoothl1_beta0p3", "smoothl1", 0.3)):
        loss = pinball(train, given["target"], levels, base=base, beta=beta)  # type: ignore[arg-type]
        assert_close(loss, expected[f"pinball_{name}"], atol=1e-6, rtol=1e-6, name=name)
        assert_close(loss.sum(-1).mean(), expected[f"loss_{name}"], rtol=1e-6, name=name)
    assert_close(logarithmic(given["weights"]), expected["ar_penalty"], atol=1e-6)
    assert_close(squashed(given["weights"], 2.0, 2.0), expected["ar_penalty_original"], atol=1e-6)
    chosen = torch.tensor([automatic_batches(int(samples)) for samples in given["n_data"]])
    assert torch.equal(chosen, expected["auto_batch_epochs"])
    ramp = [ramp_neuralprophet(progress) for progress in given["progress"].tolist()]
    assert_close(np.array(ramp), expected["reg_delay_weight"], atol=1e-12)
