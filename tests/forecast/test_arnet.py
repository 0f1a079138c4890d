"""AR-Net: its contract as a forecaster, its penalties, the optimizer of its recipe, and its conversion."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recurra.core.checkpoint import Pretrained
from recurra.core.conversion import convert
from recurra.core.testing import assert_close
from recurra.forecast.arnet_recipes import best_learning_rate, pinball, tabulated, train_one_cycle, train_v0_1
from recurra.forecast.conversion import SOURCES
from recurra.forecast.data.synthetic_ar import ar_series, padded, random_coefficients
from recurra.forecast.models.arnet import ARNet, spread_quantiles
from recurra.forecast.models.autoregression import AutoRegression
from recurra.forecast.onecycle import FastaiAdam, fastai_adam, momentum_cycle, one_cycle
from recurra.forecast.sparsity import ramp_neuralprophet, ramp_v0_1, ramp_v1_2, symmetric_error

REGULARISERS = ("v0_1", "v1_2", "neuralprophet")


def test_is_the_autoregression_of_its_coefficients() -> None:
    model = ARNet(window=4)
    past = torch.randn(6, 4, 3)
    expected = (model.coefficients()[0] @ past.flip(1)) + model.layers[0].bias
    assert_close(model(past)[:, 0], expected, atol=1e-6)
    # Every variate goes through the same weights, on its own.
    assert_close(model(past[..., 1:2]), model(past)[..., 1:2], atol=1e-7)


def test_every_hidden_layer_is_trained_and_saved(tmp_path: Path) -> None:
    model = ARNet(window=5, horizon=2, hidden=(7, 6, 4))
    assert len(model.layers) == 4
    model(torch.randn(8, 5, 1)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path / "arnet")
    again = Pretrained.from_pretrained(tmp_path / "arnet")
    past = torch.randn(2, 5, 1)
    assert torch.equal(again(past), model(past))
    assert model.coefficients().shape == (7, 5)


def test_covariates_are_linear_inputs() -> None:
    model = ARNet(window=3, horizon=2, covariates=2)
    past, covariates = torch.randn(4, 3, 1), torch.randn(4, 5, 2)
    without = model(past, covariates=torch.zeros(4, 5, 2))
    added = covariates.flatten(1) @ model.covariate_layer.weight.T
    assert_close(model(past, covariates=covariates), without + added[..., None], atol=1e-6)
    with pytest.raises(ValueError, match="covariates has 0 columns; expected 2"):
        model(past)
    with pytest.raises(ValueError, match=r"covariates has shape \(4, 4, 2\); expected \(4, 5, feature\)"):
        model(past, covariates=covariates[:, :4])
    with pytest.raises(ValueError, match="covariates has 2 columns; expected 0"):
        ARNet(window=3, horizon=2)(past, covariates=covariates)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), below=st.integers(0, 3), above=st.integers(0, 3))
def test_quantiles_never_cross(seed: int, below: int, above: int) -> None:
    outputs = torch.randn(5, 1 + below + above, generator=torch.Generator().manual_seed(seed))
    spread = spread_quantiles(outputs, below)
    median, rest = spread[:, :1], spread[:, 1:]
    assert (torch.cat([rest[:, :below], median, rest[:, below:]], 1).diff(dim=1) >= 0).all()
    # What crosses in training is what NeuralProphet trains, and the same where nothing does.
    ordered = torch.cat([median, outputs[:, 1:].abs().sort(1).values], 1)
    ordered[:, 1 : 1 + below] = ordered[:, 1 : 1 + below].flip(1)
    assert_close(spread_quantiles(ordered, below), spread_quantiles(ordered, below, cross=True), atol=1e-6)


def test_quantiles_of_a_model() -> None:
    model = ARNet(window=4, horizon=3, quantiles=(0.05, 0.5, 0.9, 0.95)).eval()
    forecast = model(torch.randn(50, 4, 2))
    assert forecast.shape == (50, 3, 2, 5)
    assert (forecast[..., 1:].diff(dim=-1) >= 0).all()
    assert torch.equal(forecast[..., 0], forecast[..., 2])
    assert model.coefficients().shape == (3, 4)
    # The other quantiles do not train the median.
    model.train()(torch.randn(50, 4, 2))[..., 1].sum().backward()
    gradient = model.layers[0].weight.grad
    assert gradient is not None
    gradient = gradient.unflatten(0, (3, 4))
    assert not gradient[:, 0].any()
    assert gradient[:, 1].any()


def test_learned_quantiles_cover() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2000, 1, 1), torch.randn(2000, 1, 1)
    model, levels = ARNet(window=1, quantiles=(0.1, 0.9)), (0.5, 0.1, 0.9)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(120):
        optimizer.zero_grad()
        pinball(model(x)[:, :, 0], y, levels).sum(-1).mean().backward()
        optimizer.step()
    forecast = model.eval()(x)[:, :, 0]
    inside = ((y[..., 0] > forecast[..., 1]) & (y[..., 0] < forecast[..., 2])).float().mean()
    assert 0.75 < inside < 0.85


@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_penalty_is_finite_and_pulls_towards_0(regulariser: str) -> None:
    model = ARNet(window=6, regulariser=regulariser, sparsity=0.2, epochs=4, delay=2.0)
    with torch.no_grad():
        model.layers[0].weight[0, :3] = 0.0
    penalty = model.penalty(1.0)
    assert penalty is not None
    penalty.backward()
    gradient = model.layers[0].weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert torch.equal(gradient[0, 3:].sign(), model.layers[0].weight[0, 3:].sign())
    first = model.penalty(1e-3)
    assert first is not None
    assert float(first.detach()) < 1e-3 * float(penalty.detach())
    assert ARNet(window=6).penalty(1.0) is None


def test_penalties_set_in_as_published() -> None:
    assert [ramp_v0_1((step + 1) / 12, 4, 2.0) for step in range(12)] == [0] * 3 + [0.5] * 3 + [1] * 6
    assert ramp_v0_1(0.01, 4, 0.0) == 1.0
    for ramp in (ramp_v1_2, ramp_neuralprophet):
        shares = [ramp(i / 50) for i in range(51)]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0.0, 1.0)
    # Begun late, that of arnet 1.2 would stay 0 for ever.
    assert ramp_v1_2(0.3, 0.2, 0.6) > 0 == ramp_v1_2(0.1, 0.2, 0.6)


def test_cycle_of_learning_rate_and_momentum() -> None:
    factor, momentum = one_cycle(total=100), momentum_cycle(total=100)
    assert factor(0) == pytest.approx(1 / 25)
    assert factor(25) == pytest.approx(1.0)
    assert factor(100) == pytest.approx(1e-4)
    assert (momentum(0), momentum(25), momentum(100)) == pytest.approx((0.95, 0.85, 0.95))


def quadratic(weight: nn.Parameter, optimizer: FastaiAdam, schedule: torch.optim.lr_scheduler.LambdaLR) -> None:
    optimizer.zero_grad()
    (weight - 3).square().sum().backward()
    optimizer.step()
    schedule.step()


def test_momentum_follows_the_cycle_and_survives_a_restart() -> None:
    def made(weight: nn.Parameter) -> tuple[FastaiAdam, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = fastai_adam([weight], lr=0.1)
        assert isinstance(optimizer, FastaiAdam)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(total=40))

    weight, expected = nn.Parameter(torch.zeros(2, 2)), momentum_cycle(total=40)
    optimizer, schedule = made(weight)
    for step in range(40):
        if step == 17:
            kept = copy.deepcopy((weight.detach(), optimizer.state_dict(), schedule.state_dict()))
        quadratic(weight, optimizer, schedule)
        assert optimizer.param_groups[0]["momentum"] == pytest.approx(expected(step), abs=1e-9)
    again = nn.Parameter(kept[0].clone())
    optimizer, schedule = made(again)
    optimizer.load_state_dict(kept[1])
    schedule.load_state_dict(kept[2])
    for _ in range(17, 40):
        quadratic(again, optimizer, schedule)
    assert torch.equal(again, weight)


def test_adam_without_a_schedule_keeps_its_momentum_and_spares_biases() -> None:
    matrix, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = FastaiAdam([matrix, bias], lr=0.1, weight_decay=0.5)
    for parameter in (matrix, bias):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(lambda: 1.0)
    assert optimizer.param_groups[0]["momentum"] == 0.95
    assert_close(matrix, torch.full((2, 2), 0.95), atol=1e-7)
    assert torch.equal(bias, torch.ones(2))


def data(seed: int, length: int, lags: int) -> tuple[np.ndarray, Tensor, Tensor]:
    truth = padded({1: 0.2, 2: 0.3, 3: -0.5}, lags)
    series = ar_series(truth, length, np.random.RandomState(seed), burn_in=200)
    x, y = tabulated(torch.from_numpy(series).float(), lags)
    return truth, x, y


@pytest.mark.parametrize("seed", range(3))
def test_learns_what_the_exact_fit_finds(seed: int) -> None:
    _, x, y = data(seed, 4000, 5)
    torch.manual_seed(seed)
    model = ARNet(window=5, epochs=8)
    generator = torch.Generator().manual_seed(seed)
    train_v0_1(model, x, y, lr=0.02, decay=0.6, batch_size=64, generator=generator)
    series = torch.cat([x[0], y[:, 0]]).double().numpy()
    exact = AutoRegression(window=5).fit([series])
    assert_close(model.coefficients()[0], exact.coefficients, atol=0.03)


def test_sparsity_helps_where_lags_are_many() -> None:
    truth, x, y = data(0, 1500, 60)
    errors = {}
    for sparsity in (1.0, 0.05):
        torch.manual_seed(0)
        model = ARNet(window=60, regulariser="v0_1", sparsity=sparsity, epochs=25, delay=5.0)
        train_v0_1(model, x, y, lr=5e-3, batch_size=64, generator=torch.Generator().manual_seed(0))
        errors[sparsity] = symmetric_error(model.coefficients()[0].detach().double().numpy(), truth)
    assert errors[0.05] < 0.6 * errors[1.0]


def test_one_cycle_trains_and_its_range_test_changes_nothing() -> None:
    _, x, y = data(1, 3000, 4)
    model = ARNet(window=4, regulariser="v1_2", sparsity=0.75)
    before = copy.deepcopy(model.state_dict())
    rate = best_learning_rate(model, x, y, generator=torch.Generator().manual_seed(0))
    assert 1e-4 < rate < 10.0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    trajectory = train_one_cycle(model, x, y, lr=0.02, epochs=3, loss=nn.SmoothL1Loss())
    assert len(trajectory.losses) == 3 * (len(x) // 32)
    assert trajectory.epochs[-1] < 0.8 * trajectory.epochs[0]


def test_drawn_coefficients_are_stationary() -> None:
    for seed in range(5):
        drawn = random_coefficients(4, np.random.RandomState(seed))
        assert abs(drawn.mean()) < 1e-12
        roots = np.roots(np.concatenate([-drawn[::-1], [1.0]]))
        assert (abs(roots) > 1).all()
    assert random_coefficients(1, np.random.RandomState(0)) == 0


@pytest.mark.parametrize("kind", ["v0_1", "v0_1 hidden", "v1_2", "neuralprophet", "neuralprophet quantiles"])
def test_converts_the_authors_state_dicts(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first, last = nn.Linear(6, 4), nn.Linear(4, 3)
    past, options = torch.randn(5, 6), []
    expected = first(past)
    if kind == "v0_1":
        state = {f"layer_1.{k}": v for k, v in first.state_dict().items()}
    elif kind == "v0_1 hidden":
        state = {f"layer_1.{k}": v for k, v in first.state_dict().items()}
        state |= {f"layer_out.{k}": v for k, v in last.state_dict().items()}
        expected = last(first(past).relu())
    elif kind == "v1_2":
        state = {f"layers.0.0.{k}": v for k, v in first.state_dict().items()}
    else:
        state = {f"model.ar_net.0.{k}": v for k, v in first.state_dict().items()}
        state |= {"model.ar_net.2.weight": last.weight.detach(), "model.trend.k0": torch.zeros(3)}
        expected = first(past).relu() @ last.weight.T
        options = ["quantiles=[0.1,0.9]"] if kind.endswith("quantiles") else []
    torch.save(state, tmp_path / "state.pth")
    convert(tmp_path / "state.pth", SOURCES, "arnet", tmp_path / "out", options)
    model = Pretrained.from_pretrained(tmp_path / "out")
    ours = model(past[..., None])[..., 0, :] if options else model(past[..., None])[..., 0]
    if options:
        expected = spread_quantiles(expected.unflatten(1, (1, 3)), 1)
    assert_close(ours, expected, atol=1e-6)


def test_refuses_another_network(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x.pth: holds neither layer_1 .* but conv.weight"):
        convert(tmp_path / "x.pth", SOURCES, "arnet", tmp_path / "out")
    with pytest.raises(ValueError, match="sparsity must be above 0 and at most 1; got 0"):
        ARNet(window=3, sparsity=0.0)
