"""Losses: what is not observed counts for nothing, gradients stay finite, and each is what its name says."""

import numpy as np
import pytest
import torch
from torch import Tensor

from recurra.forecast.losses import LOSSES, Huber, Loss, PairwiseMSE, Pinball, R2Loss, r2_score

NAMES = sorted(LOSSES)


def batch(quantiles: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Positive forecasts, targets with NaN, and what was observed of them."""
    generator = torch.Generator().manual_seed(1)
    shape = (6, 4, 3)
    prediction = torch.rand((*shape, quantiles + 1) if quantiles else shape, generator=generator) + 0.1
    target = torch.rand(shape, generator=generator)
    observed = torch.rand(shape, generator=generator) > 0.4
    return prediction.requires_grad_(), torch.where(observed, target, torch.nan), observed


@pytest.mark.parametrize("name", NAMES)
def test_missing_targets_leave_value_and_gradient_finite(name: str) -> None:
    prediction, target, observed = batch()
    loss = LOSSES[name]()(prediction, target, observed)
    loss.backward()
    assert torch.isfinite(loss)
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()
    if name != "PairwiseMSE":  # which compares a forecast with the targets of others
        assert not prediction.grad[~observed].any()
    assert prediction.grad[observed].all()


@pytest.mark.parametrize("name", NAMES)
def test_values_that_are_not_observed_do_not_matter(name: str) -> None:
    prediction, target, observed = batch()
    loss = LOSSES[name]()
    other = torch.where(observed, target, torch.inf)
    forecast = torch.where(observed, prediction, -5.0)
    assert loss(prediction, target, observed) == loss(forecast, other, observed)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_observed_is_zero_and_everything_is_the_plain_mean(name: str) -> None:
    prediction, target, observed = batch()
    loss = LOSSES[name]()
    nothing = loss(prediction, target, torch.zeros_like(observed))
    assert float(nothing.detach()) == pytest.approx(0.0, abs=1e-12)
    target = torch.where(observed, target, 0.25)
    plain, masked = loss(prediction, target), loss(prediction, target, torch.ones_like(observed))
    torch.testing.assert_close(plain, masked)


@pytest.mark.parametrize("name", ["MAE", "MSE", "RMSE", "Huber", "MSLE", "RMSLE", "MALE"])
def test_definition(name: str) -> None:
    prediction, target, observed = batch()
    p, t = (x.detach().numpy()[observed.numpy()].astype(np.float64) for x in (prediction, target))
    e, log = p - t, np.log1p(p) - np.log1p(t)
    expected = {
        "MAE": np.abs(e).mean(),
        "MSE": (e**2).mean(),
        "RMSE": (e**2).mean() ** 0.5,
        "Huber": np.where(np.abs(e) < 0.2, 0.5 * e**2, 0.2 * (np.abs(e) - 0.1)).mean(),
        "MALE": np.abs(log).mean(),
        "MSLE": (log**2).mean(),
        "RMSLE": (log**2).mean() ** 0.5,
    }[name]
    loss: Loss = Huber(delta=0.2) if name == "Huber" else LOSSES[name]()
    assert float(loss(prediction, target, observed).detach()) == pytest.approx(expected, rel=1e-5)


def test_pinball_is_least_at_the_quantiles() -> None:
    values = torch.linspace(0, 1, 1001)[:, None, None]
    loss = Pinball(quantiles=(0.1, 0.9))
    best = torch.tensor([0.5, 0.1, 0.9]).expand(1001, 1, 1, 3)
    least = loss(best, values)
    for head in range(3):
        for shift in (-0.05, 0.05):
            moved = best.clone()
            moved[..., head] += shift
            assert loss(moved, values) > least
    assert float(Pinball()(values * 0, values)) == pytest.approx(0.25, rel=1e-3)


def test_point_losses_take_the_first_head() -> None:
    prediction, target, observed = batch(quantiles=2)
    for name in ("MAE", "MSE", "Huber", "R2Loss", "PairwiseMSE"):
        loss = LOSSES[name]()
        assert loss(prediction, target, observed) == loss(prediction[..., 0], target, observed)


def test_pairwise_compares_all_with_all() -> None:
    prediction, target = torch.rand(5, 1, 1), torch.rand(5, 1, 1)
    broadcast = (prediction[:, 0] - target[:, 0, 0]).square().mean()
    torch.testing.assert_close(PairwiseMSE()(prediction, target), broadcast)


def test_root_has_a_gradient_at_zero() -> None:
    prediction = torch.ones(2, 1, 1, requires_grad=True)
    LOSSES["RMSE"]()(prediction, torch.ones(2, 1, 1)).backward()
    assert prediction.grad is not None
    assert not prediction.grad.any()


def test_score_of_a_perfect_forecast_is_one() -> None:
    target = torch.rand(4, 5, 2)
    assert float(r2_score(target, target)) == pytest.approx(1.0, abs=1e-6)
    assert float(R2Loss()(target, target)) == pytest.approx(0.0, abs=1e-6)


def test_half_precision_is_widened() -> None:
    prediction = torch.full((1, 1, 1), 300.0, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES["MSE"]()(prediction, torch.full((1, 1, 1), 1.0))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(299.0**2)


def test_shapes_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"have shapes \(2, 1\), \(2,\); expected"):
        LOSSES["MSE"]()(torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="prediction has 2 heads; expected the point and 2 quantiles"):
        Pinball(quantiles=(0.1, 0.9))(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="quantiles must be between"):
        Pinball(quantiles=(1.0,))
    with pytest.raises(ValueError, match="delta must be positive"):
        Huber(delta=0.0)
