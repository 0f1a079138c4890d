"""The forecaster Chimera: what its parts do to a window, and what a checkpoint of it keeps."""

import re
from pathlib import Path
from typing import Any
from unittest import mock

import jaxtyping
import pytest
import torch
from torch import Tensor

from recurra.core.testing import assert_close
from recurra.forecast.models.chimera import Chimera
from recurra.forecast.models.chimera_scan import closed_loop
from recurra.forecast.models.forecaster import Forecaster

SMALL: dict[str, Any] = {"window": 20, "horizon": 7, "patch": 4, "width": 6, "inner": 5, "states": 2}
FORMS: dict[str, dict[str, Any]] = {
    "direct": {},
    "closed loop": {"head": "closed_loop"},
    "order free": {"order_free": True},
    "closed loop, order free": {"head": "closed_loop", "order_free": True},
    "one direction": {"bidirectional": False},
    "constant": {"selective": False},
    "fft": {"selective": False, "scan": "fft"},
    "companion": {"structure": "companion"},
    "ragged patches, two blocks": {"patch": 6, "layers": 2},
    "no linear map": {"linear": False},
    "without gates": {"gated": False, "selective": False, "norm": "mean", "head": "last"},
    "head of states": {"head": "states", "layers": 2},
    "head of states, one direction": {"head": "states", "bidirectional": False},
    "a head for each variate": {"head": "last", "individual": True, "variates": 4},
    "quantiles": {"quantiles": (0.05, 0.5, 0.95)},
}
every_form = pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
# As for a user: no shape hook comes before our own checks.
unchecked = mock.patch.object(jaxtyping.config, "jaxtyping_disable", True)


def made(**options: Any) -> Chimera:
    """A small model with every parameter drawn at random, the head and the linear map included."""
    model = Chimera(**{**SMALL, **options}).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_cross") or name.startswith(("head.", "linear", "variate", "affine")):
                parameter.normal_(std=0.3)
    return model


def windows(batch: int = 3, variates: int = 4, steps: int = 20) -> Tensor:
    return torch.randn(batch, steps, variates, dtype=torch.float64) + 2 * torch.randn(variates, dtype=torch.float64)


@every_form
def test_forecast_of_every_form(options: dict[str, Any]) -> None:
    model, past = made(**options), windows()
    y = model(past)
    assert y.shape == (3, 7, 4, *([4] if model.quantiles else []))
    assert y.isfinite().all()
    for i in range(3):  # no window sees another
        assert_close(model(past[i : i + 1])[0], y[i], atol=1e-12)
    y.square().sum().backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # Where the variates come in one direction and are few, nothing is unused.
    assert not unused


def test_unpublished_parts_are_named_in_the_config(tmp_path: Path) -> None:
    for options in ({}, {"head": "closed_loop", "quantiles": (0.1, 0.9), "variates": 4, "affine": True}):
        model, past = made(**options), windows()
        model.save_pretrained(tmp_path / "model")
        loaded = Forecaster.from_pretrained(tmp_path / "model")
        assert isinstance(loaded, Chimera)
        assert loaded.config == model.config
        assert torch.equal(loaded.double()(past), model(past))


@pytest.mark.parametrize("norm", ["standard", "mean", "last"])
@pytest.mark.parametrize("head", ["direct", "closed_loop"])
def test_forecasts_move_and_grow_with_the_series(norm: Any, head: Any) -> None:
    model, past = made(norm=norm, head=head), windows()
    y = model(past)
    assert_close(model(past + 7), y + 7, atol=1e-7)
    if norm == "standard":
        for scale in (1e-6, 100.0, 1e9):
            assert_close(model(scale * past), scale * y, rtol=1e-9, atol=scale * 1e-9)
        scales = torch.tensor([1.0, 1e3, 1e-3, 50.0], dtype=torch.float64)
        assert_close(model(scales * past) / scales, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0, -273.15, 1e6, 1e-20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_series_stays_what_it_is_and_does_not_stop_the_others(value: float, dtype: torch.dtype) -> None:
    model, past = made().to(dtype), windows().to(dtype)
    past[:, :, 1] = 5.0
    others = model(past)
    past[:, :, 1] = value
    y = model(past)
    assert y.isfinite().all()
    assert_close(y[:, :, 1], torch.full_like(y[:, :, 1], value), rtol=1e-4, atol=1e-10)
    assert torch.equal(y[:, :, [0, 2, 3]], others[:, :, [0, 2, 3]])


def test_order_of_the_variates() -> None:
    past, order = windows(), torch.tensor([2, 0, 3, 1])
    for head in ("direct", "closed_loop"):
        free, ordered = made(order_free=True, head=head), made(head=head)
        assert_close(free(past[:, :, order]), free(past)[:, :, order], atol=1e-12)
        assert (ordered(past[:, :, order]) - ordered(past)[:, :, order]).abs().max() > 1e-4
    named = made(order_free=True, variates=4)
    assert (named(past[:, :, order]) - named(past)[:, :, order]).abs().max() > 1e-4


def test_any_number_of_variates_unless_each_has_a_name() -> None:
    for variates in (1, 2, 9):
        assert made()(windows(variates=variates)).shape == (3, 7, variates)
    with pytest.raises(ValueError, match="past has 5 variates; this Chimera was made for 4"):
        made(variates=4)(windows(variates=5))


def test_orders_of_evaluation_give_the_same_forecast() -> None:
    for selective in (True, False):
        model, past = made(selective=selective), windows()
        for scan in ("row", "column", "wavefront", "loop", *([] if selective else ["fft"])):
            other = made(selective=selective, scan=scan)
            other.load_state_dict(model.state_dict())
            assert_close(other(past), model(past), atol=1e-10)


def test_nothing_but_the_window_counts() -> None:
    model, past = made(), windows()
    y = model(past)
    for step in (0, 10, 19):  # the linear map and the grid both read all of it
        changed = past.clone()
        changed[:, step, 0] += 1
        assert (model(changed) - y).abs()[:, :, 0].min() > 0


def test_rolling_out_is_a_pass_over_the_extended_sequence() -> None:
    for options in ({}, {"order_free": True}, {"bidirectional": False}):
        head: Any = made(head="closed_loop", **options).head
        grid = torch.randn(2, 4, 5, 6, dtype=torch.float64)
        y, last = head.ssm(grid)
        x, rolled, end = closed_loop(head.feed, head.ssm, last, 6)
        together, end_of_all = head.ssm(torch.cat([grid, x], 2))
        assert_close(torch.cat([y, rolled], 2), together, atol=1e-12)
        for ours, theirs in zip(end, end_of_all, strict=True):
            assert_close(ours[0], theirs[0], atol=1e-12)
        # And what goes in is what the state before it says.
        for t in range(1, 6):
            _, before = head.ssm(torch.cat([grid, x[:, :, :t]], 2))
            assert_close(head.feed(before), x[:, :, t], atol=1e-12)


def test_a_longer_closed_loop_begins_like_a_shorter_one() -> None:
    short, long = made(head="closed_loop"), made(head="closed_loop", horizon=19, linear=True)
    state = {k: v for k, v in short.state_dict().items() if k not in ("linear", "residuals")}
    long.load_state_dict({**long.state_dict(), **state})
    with torch.no_grad():
        long.linear[:7] = short.linear  # type: ignore[index]
    past = windows()
    assert_close(long(past)[:, :7], short(past), atol=1e-12)


# --- the linear map


def least_squares(past: Tensor, future: Tensor, ridge: float) -> Tensor:
    x, y = (t.transpose(1, 2).reshape(-1, t.shape[1]) for t in (past, future))
    mean = x.mean(1, keepdim=True)
    rows = torch.cat([x - mean, len(x) ** 0.5 * ridge**0.5 * torch.eye(x.shape[1], dtype=torch.float64)])
    return torch.linalg.lstsq(rows, torch.cat([y - mean, torch.zeros(x.shape[1], y.shape[1]).double()])).solution


def sliding(rows: int = 900, variates: int = 3) -> tuple[Tensor, Tensor]:
    """Windows of 20 and the 7 steps after each, views of one table of random walks."""
    view = torch.randn(rows, variates, dtype=torch.float64).cumsum(0).unfold(0, 27, 1).transpose(1, 2)
    return view[:, :20], view[:, 20:]


def test_an_untrained_model_is_the_linear_map() -> None:
    past, future = sliding()
    for head in ("direct", "closed_loop"):
        model = Chimera(**SMALL, head=head, ridge=0.1, head_ridge=1e9).double()
        model.initialise(past, future)
        expected = (past - past.mean(1, keepdim=True)).transpose(1, 2) @ least_squares(past, future, 0.1)
        expected = expected.transpose(1, 2) + past.mean(1, keepdim=True)
        assert_close(model.linear_forecast(past), expected, atol=1e-8)
        assert_close(model(past), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "norm", "variates", "quantiles"),
    [("direct", "standard", 0, ()), ("last", "mean", 3, ()), ("states", "standard", 3, (0.5, 0.9))],
)
def test_the_head_starts_from_what_the_linear_map_leaves_over(
    head: Any, norm: Any, variates: int, quantiles: tuple[float, ...]
) -> None:
    past, future = sliding()
    options = {"norm": norm, "variates": variates, "individual": bool(variates), "quantiles": quantiles}
    options |= {"head": head}
    model = Chimera(**SMALL, **options, coupling_start=1.0, dropout=0.5, head_ridge=1e-9).double()
    assert model.training
    model.initialise(past, future)
    assert model.training
    model.eval()
    point = model(past)[..., 0] if quantiles else model(past)
    left, before = future - point, future - model.linear_forecast(past)
    assert left.square().mean() < before.square().mean()
    # Least squares: what is left is orthogonal to everything that the head read.
    x, _, scale = model._normalised(past.transpose(1, 2))
    features = model.head.read(model._features(x)) * scale[..., 0]  # type: ignore[operator]
    products = torch.einsum("bvf,bhv->vfh", features, left)
    products = products if variates else products.sum(0, keepdim=True)
    size = torch.einsum("bvf,bhv->vfh", features.abs(), before.abs()).amax()
    assert_close(products / size, torch.zeros_like(products), atol=1e-5)


def test_without_gates_and_selection_the_model_is_linear_in_its_window() -> None:
    model = made(gated=False, selective=False, norm="mean", head="last", coupling_start=1.0)
    with torch.no_grad():
        model.head.bias.zero_()
        model.embedding.bias.zero_()
    past, other = windows(), windows()
    assert_close(model(2 * past - 3 * other), 2 * model(past) - 3 * model(other), atol=1e-10)


def test_the_linear_map_is_trained_only_if_asked() -> None:
    for train in (False, True):
        model = Chimera(**SMALL, train_linear=train)
        assert ("linear" in [name for name, p in model.named_parameters() if p.requires_grad]) == train
        with torch.no_grad():
            model.linear.normal_()  # type: ignore[union-attr]
        model(torch.randn(2, 20, 3)).square().sum().backward()
        assert (model.linear.grad is not None) == train  # type: ignore[union-attr]


def test_no_linear_map_where_none_is_wanted() -> None:
    model = Chimera(**SMALL, linear=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.initialise(torch.randn(5, 20, 2), torch.randn(5, 7, 2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="this Chimera has no linear map; it was made with linear=False"):
        model.linear_forecast(torch.randn(5, 20, 2))


# --- quantiles, energies, errors


@pytest.mark.parametrize("quantiles", [(0.5,), (0.1,), (0.05, 0.95), (0.1, 0.2, 0.3), (0.05, 0.25, 0.5, 0.75, 0.95)])
def test_quantiles_never_cross(quantiles: tuple[float, ...]) -> None:
    model, past = made(quantiles=quantiles), 100 * windows()
    y = model(past)
    assert y.shape == (3, 7, 4, 1 + len(quantiles))
    assert (y[..., 1:].diff(dim=-1) > 0).all()
    assert_close(model(3 * past), 3 * y, rtol=1e-9, atol=1e-7)


def test_quantiles_leave_the_point_forecast_alone() -> None:
    plain, both = made(), made(quantiles=(0.1, 0.9))
    state = {name: value for name, value in plain.state_dict().items() if not name.startswith("head")}
    both.load_state_dict({**both.state_dict(), **state})
    with torch.no_grad():
        both.head.weight[:, ::3] = plain.head.weight
        both.head.bias[:, ::3] = plain.head.bias
    past = windows()
    assert_close(both(past)[..., 0], plain(past), atol=1e-12)


def test_head_of_states_reads_all_states_of_the_last_column() -> None:
    model, past = made(head="states"), windows()
    x, _, _ = model._normalised(past.transpose(1, 2))
    features = model._features(x)[:, :, 0]
    trend = model.blocks[0].modules_by_name["trend"]  # type: ignore[index]
    u, _ = model.blocks[0].inside(model._embedded(x))  # type: ignore[operator]
    h1, h2, _ = trend.directions[1].run(u.flip(1))
    expected = torch.cat([h1[:, :, -1], h2[:, :, -1]], -1).flip(1)
    assert features.shape == (3, 4, 6 + 2 * 2 * 2 * 2 * 5)
    assert_close(features[:, :, 6 + 20 : 6 + 40], expected, atol=1e-12)
    squares = features[:, :, 6:].reshape(3, 4, 2, 2, 2, 10).square().mean(-1).sum(3)  # module, state
    energies = model.energies(past)[0]
    assert_close(squares[..., 0].transpose(1, 2), energies.time[..., -1], atol=1e-12)
    assert_close(squares[..., 1].transpose(1, 2), energies.variate[..., -1], atol=1e-12)


def test_energies_are_those_of_the_states() -> None:
    model, past = made(layers=2), windows()
    energies = model.energies(past)
    assert len(energies) == 2
    for block in energies:
        for energy in block:
            assert energy.shape == (3, 2, 4, 5)
            assert (energy > 0).all()
    # From outside: the trend module of the first block, both directions.
    x, _, _ = model._normalised(past.transpose(1, 2))
    u, _ = model.blocks[0].inside(model._embedded(x))  # type: ignore[operator]
    trend = model.blocks[0].modules_by_name["trend"]  # type: ignore[index]
    forth, back = trend.directions
    expected = forth.run(u)[0].square().mean(-1) + back.run(u.flip(1))[0].square().mean(-1).flip(1)
    assert_close(energies[0].time[:, 0], expected, atol=1e-12)


def test_trend_and_season_begin_with_their_own_steps() -> None:
    block: Any = Chimera(window=20, horizon=7, patch=4, inner=200).blocks[0]
    means = [
        torch.nn.functional.softplus(block.modules_by_name[name].directions[0].step_bias[0]).log().mean().exp()
        for name in ("trend", "season")
    ]
    assert 2e-3 < means[0] < 5e-3
    assert 0.2 < means[1] < 0.5


def test_dropout_is_for_training_alone() -> None:
    model, past = made(dropout=0.5), windows()
    assert torch.equal(model(past), model(past))
    model.train()
    assert not torch.equal(model(past), model(past))


def test_calibrated_residuals_come_along() -> None:
    model = made()
    residuals = torch.rand(9, 7, 4, dtype=torch.float64)
    assert torch.equal(model.calibrated(residuals.float()).residuals, residuals.float())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"head": "linear"}, "head must be one of direct, last, states, closed_loop; got 'linear'"),
        ({"norm": "max"}, "norm must be one of standard, mean, last, none; got 'max'"),
        ({"patch": 0}, "patch must be at least 1; got 0"),
        ({"affine": True}, "affine needs variates: each has a scale and a shift of its own"),
        ({"individual": True}, "individual needs variates: each has a head of its own"),
        (
            {"head": "states", "selective": False, "scan": "fft"},
            "head=states needs the states of the last column, which scan=fft does not make",
        ),
        (
            {"head": "closed_loop", "selective": False, "scan": "fft"},
            "head=closed_loop needs the states of the last column, which scan=fft does not make",
        ),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], line: str) -> None:
    with unchecked, pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        Chimera(**{**SMALL, **options})


def test_arguments_that_are_refused() -> None:
    model = Chimera(**SMALL)
    with unchecked, pytest.raises(ValueError, match=r"past has shape \(2, 19, 3\); expected \(batch, 20, variate\)"):
        model(torch.zeros(2, 19, 3))
    with unchecked, pytest.raises(ValueError, match="Chimera takes no marks"):
        model(torch.zeros(2, 20, 3), torch.zeros(2, 27, 4))
    with pytest.raises(ValueError, match="windows and targets have 3 and 2 samples; expected as many, at least 1"):
        model.initialise(torch.zeros(3, 20, 1), torch.zeros(2, 7, 1))
