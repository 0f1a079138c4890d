"""TPGN beyond its authors' pairs: its fast paths against its equations, and what it promises of any input."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import recurra.core.nn.pgn as products
import recurra.core.nn.pgn_rules as pgn_rules
from recurra.core.errors import UserError
from recurra.core.nn import PGN
from recurra.core.testing import assert_close
from recurra.forecast.conversion import convert
from recurra.forecast.models.tpgn import TPGN

DOUBLE = torch.float64


def layers() -> Callable[..., Tensor]:
    """The definition that tools/bench measures against."""
    path = Path(__file__).parents[2] / "tools" / "bench_cases" / "tpgn_definition.py"
    spec = importlib.util.spec_from_file_location("tpgn_definition", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    definition: Callable[..., Tensor] = module.definition
    return definition


def made(seed: int = 0, dtype: torch.dtype = DOUBLE, **arguments: Any) -> TPGN:
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {"window": 24, "horizon": 10, "period": 6, "features": 3, "hidden": 4, "norm": True}
    return TPGN(**defaults | arguments).to(dtype).eval()


def batch(model: TPGN, size: int = 3) -> tuple[Tensor, Tensor]:
    """Past and marks of the model's precision."""
    dtype = next(model.parameters()).dtype
    marks = torch.rand(size, model.window + model.horizon, model.features, dtype=dtype) - 0.5
    return torch.randn(size, model.window, model.variates, dtype=dtype), marks


def equations(model: TPGN, past: Tensor, marks: Tensor) -> Tensor:
    """The forecast by the equations, one row after the other, one variate after the other."""
    rows, columns, unit = model.window // model.period, model.period, model.TPGN.LNN_dim
    past, marks = past[:, -rows * columns :], marks[:, model.window - rows * columns : model.window]
    mean, scale = past.mean(1, keepdim=True), (past.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    x = (past - mean) / scale if model.norm else past
    of_variates = []
    for m in range(model.variates):
        z = torch.cat([x[..., m : m + 1], marks], -1).unflatten(1, (rows, columns))  # (batch, row, column, feature)

        def of(convolution: Any, m: int = m) -> tuple[Tensor, Tensor]:
            share = slice(m * (size := convolution.out_channels // model.variates), (m + 1) * size)
            return convolution.weight[share], convolution.bias[share]

        (w, b), (g, c), (f, e) = of(unit.hidden_MLP), of(unit.gate), of(unit.fc)
        long = e.expand(x.shape[0], columns, -1)
        for r in range(rows):
            history = b.expand(x.shape[0], columns, -1)
            for j in range(max(0, r - unit.window), r):
                history = history + z[:, j] @ w[:, :, unit.window - r + j].T
            s, t = (torch.cat([z[:, r], history], -1) @ g[..., 0].T + c).chunk(2, -1)
            h = s.sigmoid() * history + (1 - s.sigmoid()) * t.tanh()
            long = long + h @ f[:, :, r].T
        read = long
        if model.TPGN.short:
            (w, b), (f, e) = of(model.TPGN.s_t_p_e.fc_row), of(model.TPGN.s_t_p_e.fc_col)
            short = e + sum((torch.einsum("bpk,dkp->bd", z[:, r], w) + b) @ f[:, :, r].T for r in range(rows))
            read = torch.cat([short[:, None].expand(-1, columns, -1), long], -1)
        w, b = of(model.TPGN.fc)
        of_variates.append((read @ w[..., 0].T + b).transpose(1, 2).flatten(1))  # (batch, row ahead and column)
    y = torch.stack(of_variates, -1)[:, : model.horizon]
    return y * scale + mean if model.norm else y


# --- the fast paths


# hidden 40: one map of the window to the gate; 4: the history first; horizons above and below the hidden width in rows.
SIZES = st.fixed_dictionaries(
    {
        "period": st.integers(1, 7),
        "window": st.integers(14, 40),
        "horizon": st.integers(1, 30),
        "variates": st.integers(1, 3),
        "features": st.integers(0, 3),
        "hidden": st.sampled_from([1, 4, 40]),
        "norm": st.booleans(),
        "short": st.booleans(),
    }
)


@given(SIZES, st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_any_sizes_follow_the_equations(sizes: dict[str, Any], seed: int) -> None:
    model = made(seed, **sizes)
    past, marks = batch(model)
    expected = equations(model, past, marks)
    y = model(past, marks if model.features else None)
    assert y.shape == (3, model.horizon, model.variates)
    assert_close(y, expected, atol=1e-10, rtol=1e-10)
    with torch.no_grad():
        assert_close(model(past, marks if model.features else None), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("hidden", [2, 40])
@pytest.mark.parametrize("horizon", [6, 60])
@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("of_input", [True, False])
def test_gradients_are_those_of_the_definition(hidden: int, horizon: int, short: bool, of_input: bool) -> None:
    model = made(hidden=hidden, horizon=horizon, short=short, variates=2)
    past, marks = batch(model)
    past.requires_grad_(of_input)
    found = []
    for forward in (model, lambda *data: layers()(model, *data)):
        model.zero_grad()
        past.grad = None
        (forward(past, marks) * torch.linspace(-1, 2, horizon, dtype=DOUBLE)[:, None]).square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()} | ({"past": past.grad} if of_input else {}))
    for name, gradient in found[0].items():
        expected = found[1][name]
        assert gradient is not None, name
        assert expected is not None, name
        assert_close(gradient, expected, atol=1e-10, rtol=1e-10, name=name)


@pytest.mark.parametrize("hidden", [1, 4])  # six features are reached: the history first, one map to the gate
@pytest.mark.parametrize("rows_ahead", [1, 4])
@pytest.mark.parametrize("of_input", [True, False])
def test_gradcheck(hidden: int, rows_ahead: int, of_input: bool) -> None:
    model = made(window=6, period=2, horizon=2 * rows_ahead, features=1, hidden=hidden, norm=False)
    past, marks = batch(model, 2)
    names, values = zip(*model.named_parameters(), strict=True)

    def forward(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (x, marks))

    inputs = (past.requires_grad_(of_input), *(value.detach().clone().requires_grad_() for value in values))
    assert torch.autograd.gradcheck(forward, inputs, fast_mode=True)


@pytest.mark.parametrize("hidden", [2, 40])
@pytest.mark.parametrize("window", [1, 3, 8, 20])
def test_frequency_domain_equals_products(hidden: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = PGN(3, hidden, rows=9, window=window, channels=2).double()
    x = torch.randn(2, 3, 9, 11, dtype=DOUBLE)
    upstream = torch.randn(2, hidden, 9, 11, dtype=DOUBLE)
    found = []
    monkeypatch.setattr(pgn_rules, "PLACES", 4)  # the last part has three
    for rows in (64, 1):
        monkeypatch.setattr(products, "FFT_ROWS", rows)
        weights = [p for name, p in unit.named_parameters() if not name.startswith("fc")]
        h = unit.gated(x)
        found.append((h, *torch.autograd.grad(h, weights, upstream)))
        with torch.no_grad():
            assert_close(unit.gated(x), h, atol=1e-12)
    plain, _ = unit.states(x.permute(3, 2, 0, 1).unsqueeze(2))
    assert_close(found[0][0], plain[:, :, 0].permute(2, 3, 1, 0), atol=1e-10)
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_long_windows_go_through_the_frequency_domain() -> None:
    model = made(window=4 * 70, horizon=4 * 70, period=4, hidden=3)
    assert model.TPGN.LNN_dim.rows > products.FFT_ROWS
    past, marks = batch(model)
    assert_close(model(past, marks), layers()(model, past, marks), atol=1e-10, rtol=1e-10)
    single, (past, marks) = model.float(), (past.float(), marks.float())
    assert_close(single(past, marks), layers()(single, past, marks), atol=2e-5, rtol=2e-5)


# --- what it promises


@pytest.mark.parametrize("norm", [True, False])
def test_nothing_after_the_origin_or_before_whole_periods_is_seen(norm: bool) -> None:
    model = made(norm=norm, window=27)
    past, marks = batch(model)
    y = model(past, marks)
    later = marks.clone()
    later[:, model.window :] = torch.nan
    unseen = past.clone()
    unseen[:, :3] = 1e9
    assert torch.equal(model(past, later), y)
    assert torch.equal(model(unseen, marks), y)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_scale_and_shift_of_a_normalised_model_pass_through(dtype: torch.dtype) -> None:
    model = made(dtype=dtype, window=48, period=12, horizon=24)
    past, marks = batch(model)
    # Against the variance, the 1e-5 beside it is what does not scale.
    assert_close(model(100 * past, marks), 100 * model(past, marks), atol=2e-3, rtol=1e-5)
    assert_close(model(past + 3, marks), model(past, marks) + 3, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", [True, False])
def test_members_of_a_batch_and_variates_stand_alone(norm: bool) -> None:
    model = made(norm=norm, variates=3)
    past, marks = batch(model, 4)
    y = model(past, marks)
    assert_close(torch.cat([model(p[None], m[None]) for p, m in zip(past, marks, strict=True)]), y, atol=1e-12)
    other = past.clone()
    other[..., 1] = 1e3
    changed = (model(other, marks) != y).flatten(0, 1).any(0)
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("level", [0.0, 3.88, -1e6])
def test_constant_series_are_finite(level: float) -> None:
    model = made(dtype=torch.float32)
    past, marks = batch(model)
    past[0] = level
    y = model(past, marks)
    y.square().mean().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_residuals_are_stored_when_there_are_some() -> None:
    model = made(dtype=torch.float32)
    assert not [key for key in model.state_dict() if not key.startswith("TPGN.")]
    calibrated = model.calibrated(torch.rand(5, model.horizon, 1))
    past, marks = batch(model)
    assert calibrated.state_dict()["residuals"].shape == (5, model.horizon, 1)
    assert torch.equal(calibrated(past, marks), model(past, marks))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"window": 11}, "window must be at least two periods, 12 steps; got 11"),
        ({"hidden": 0}, "hidden must be at least 1; got 0"),
        ({"features": -1}, "features must be at least 0; got -1"),
        ({"horizon": 0}, "horizon must be at least 1; got 0"),
        ({"quantiles": (0.1, 0.9)}, r"quantiles: TPGN makes point forecasts; expected \(\), got \(0.1, 0.9\)"),
    ],
)
def test_wrong_options(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}$"):
        made(**arguments)


@pytest.mark.parametrize(
    ("past", "marks", "line"),
    [
        ((2, 23, 2), (2, 34, 3), r"past has shape \(2, 23, 2\); expected \(batch, 24, variate\)"),
        ((2, 24, 1), (2, 34, 3), "past has 1 variates; expected 2, those it has weights for"),
        ((2, 24, 2), (2, 24, 3), r"marks has shape \(2, 24, 3\); expected \(2, 34, feature\)"),
        ((2, 24, 2), (2, 34, 4), "marks has 4 features; expected 3"),
        ((2, 24, 2), None, "marks has 0 features; expected 3"),
    ],
)
def test_wrong_shapes(past: tuple[int, ...], marks: tuple[int, ...] | None, line: str) -> None:
    model = made(variates=2, dtype=torch.float32)
    with pytest.raises(ValueError, match=f"^{line}$"):
        model(torch.zeros(past), None if marks is None else torch.zeros(marks))


# --- conversion


def authors_file(path: Path, model: TPGN, prefix: str = "") -> Path:
    torch.save({prefix + key: value for key, value in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("short", [True, False])
def test_converted_and_loaded_checkpoints_give_the_same_numbers(tmp_path: Path, prefix: str, short: bool) -> None:
    model = made(dtype=torch.float32, variates=2, short=short, horizon=12)
    given = ["norm=true", "horizon=10", *([] if short else ["period=6"])]
    file = authors_file(tmp_path / "checkpoint.pth", model, prefix)
    loaded = TPGN.from_pretrained(convert(file, "tpgn", tmp_path / "ours", given))
    past, marks = batch(model)
    assert loaded.config == model.config | {"horizon": 10}
    assert torch.equal(loaded(past, marks[:, :-2]), model(past, marks)[:, :10])
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(TPGN.from_pretrained(tmp_path / "again")(past, marks[:, :-2]), loaded(past, marks[:, :-2]))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            [],
            "the file does not say norm (true if it was trained with norm 1, false if with norm 0); "
            "give each as key=value",
        ),
        (["norm=true", "freq=t"], "freq: the weights are for 3 calendar features (d, b); got 't'"),
        (["norm=true", "hiden=3"], "hiden: TPGN has no such option (did you mean hidden?)"),
    ],
)
def test_what_a_file_does_not_say(tmp_path: Path, given: list[str], line: str) -> None:
    file = authors_file(tmp_path / "checkpoint.pth", made(dtype=torch.float32))
    with pytest.raises(UserError) as caught:
        convert(file, "tpgn", tmp_path / "ours", given)
    assert str(caught.value) == f"{file}: {line}"


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pth"
    for content, line in (
        ({"weight": torch.zeros(3)}, "holds no TPGN: lacks TPGN.LNN_dim.hidden_MLP.weight"),
        ({"epoch": 3}, "expected TPGN's checkpoint.pth, a state dict of tensors alone; got epoch"),
        ({}, "expected TPGN's checkpoint.pth, a state dict of tensors alone; got nothing"),
    ):
        torch.save(content, file)
        with pytest.raises(UserError) as caught:
            convert(file, "tpgn", tmp_path / "ours", ["norm=true"])
        assert str(caught.value).startswith(f"{file}: {line}")
