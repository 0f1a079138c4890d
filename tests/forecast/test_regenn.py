"""ReGENN: what a forecast may depend on, how the graph grows and is kept, and the two protocols."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recurra.core.errors import FileError, UserError
from recurra.forecast import conversion
from recurra.forecast.models.graph_evolution import GraphSoftEvolution, co_occurrence
from recurra.forecast.models.regenn import ReGENN
from recurra.forecast.protocols.panel_scores import drift, regenn_table
from recurra.forecast.protocols.regenn import RegennSettings, forecast_last, train_regenn
from recurra.forecast.protocols.scaling import duplicated, scaled


def small(**options: Any) -> ReGENN:
    """A ReGENN of 3 variables, 5 steps to 2."""
    return ReGENN(**{"window": 5, "horizon": 2, "variables": 3, "autoregression": True, "dropout": 0.0} | options)


def counts(samples: int = 6, steps: int = 24, variables: int = 3) -> Tensor:
    """Cumulative counts that begin with zeros."""
    return torch.poisson(torch.rand(samples, steps, variables) * 4).cumsum(1) * (torch.rand(samples, 1, 1) > 0.1)


def trained(data: Tensor, *, protocol: Any = "honest", epochs: int = 1, axis: int = 1, **options: Any) -> Any:
    """A small model after so many epochs, and its history."""
    torch.manual_seed(0)
    model = small(**options)
    settings = RegennSettings(2, protocol=protocol, epochs=epochs, batch_size=3, normalization_axis=axis)
    return model, train_regenn(model, data, settings)


# --- the graph


def by_expansion(x: Tensor) -> Tensor:
    """The adjacency by its definition: the batch once for each variable, masked by where that one is positive."""
    expanded = x[..., :, None] * (x[..., None, :] > 0)  # (sample, time, variable, variable)
    adjacency = expanded.sum((0, 1))
    diagonal = (2 * adjacency.diagonal() - adjacency.sum(1)).clamp_min(0)
    return adjacency - torch.diag(adjacency.diagonal()) + torch.diag(diagonal)


def test_adjacency_is_that_of_the_definition() -> None:
    x = torch.randn(7, 4, 5, dtype=torch.float64).clamp_min(-0.5)
    torch.testing.assert_close(co_occurrence(x), by_expansion(x))
    parts = by_expansion(x[:3]) + by_expansion(x[3:6]) + by_expansion(x[6:])
    torch.testing.assert_close(co_occurrence(x, 3), parts)
    assert (co_occurrence(x, 3) != co_occurrence(x)).any(), "the split changes the result"


def test_graph_takes_each_batch_of_the_first_epoch_once() -> None:
    model = small().train()
    batches = [torch.rand(4, 5, 3) for _ in range(3)]
    for _ in range(2):
        for model.step_of_epoch, batch in enumerate(batches):
            model(batch)
    assert model.SourceEvolution is not None
    torch.testing.assert_close(model.SourceEvolution.adjacency, sum(map(co_occurrence, batches)))


def test_a_resumed_training_adds_no_batch_again(tmp_path: Path) -> None:
    model = small().train()
    for model.step_of_epoch in range(2):
        model(torch.rand(4, 5, 3))
    model.save_pretrained(tmp_path)
    again = ReGENN.from_pretrained(tmp_path).train()
    before = again.graphs()["source adjacency"]
    for again.step_of_epoch in range(2):
        again(torch.rand(4, 5, 3))
    assert torch.equal(again.graphs()["source adjacency"], before)
    again.step_of_epoch = 2
    again(torch.rand(4, 5, 3))
    assert (again.graphs()["source adjacency"] != before).any(), "the first epoch goes on where it was"


def test_preset_graph_stays() -> None:
    model = small().train()
    graph = torch.eye(3)
    model.preset_adjacency(graph)
    model.step_of_epoch = 0
    model(torch.rand(4, 5, 3))
    assert torch.equal(model.graphs()["source adjacency"], graph)
    with pytest.raises(ValueError, match=r"adjacency has shape \(2, 2\); expected \(3, 3\)"):
        model.preset_adjacency(torch.eye(2))
    with pytest.raises(ValueError, match="ablation leaves the graph out"):
        small(ablation=True).preset_adjacency(graph)


@pytest.mark.parametrize("which", ["stored", "current"])
def test_target_graph_in_evaluation(which: Any) -> None:
    """After a change of the source's weights, the stored graph is stale and the current one is not."""
    model = small(target_graph=which).train()
    x, model.step_of_epoch = torch.rand(4, 5, 3), 0
    model(x)
    stale = model.graphs()["source hidden"]
    assert model.SourceEvolution is not None
    with torch.no_grad():
        model.SourceEvolution.adjacency_bias += torch.rand(3, 1)
    model.eval()(x)
    graphs = model.graphs()
    assert list(graphs) == [f"{a} {b}" for a in ("source", "target") for b in ("adjacency", "hidden", "evolution")]
    fresh = graphs["source hidden"]
    assert not torch.equal(fresh, stale)
    torch.testing.assert_close(graphs["target adjacency"], stale if which == "stored" else fresh)
    assert small(ablation=True).graphs() == {}


def test_graph_is_no_half_precision() -> None:
    layer = GraphSoftEvolution(4, 5, 5).train()
    x = torch.rand(9, 5, 4) * 1000
    plain, hidden = layer(x, 0)
    layer.merged.zero_()
    layer.shared_adjacency.zero_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, again = layer(x, 0)
    assert inside.dtype == torch.float32
    assert torch.equal(plain, inside)
    assert torch.equal(hidden, again)


# --- what a forecast depends on


def test_samples_are_independent_unless_attended_over() -> None:
    x = torch.rand(6, 5, 3)
    alone = small(attend_over="variables", output_function=None).eval()
    alone.preset_adjacency(co_occurrence(x))
    together = small(attend_over="samples", output_function=None).eval()
    together.load_state_dict(alone.state_dict())
    torch.testing.assert_close(alone(x)[:2], alone(x[:2]))
    assert (together(x)[:2] - together(x[:2])).abs().max() > 1e-4
    one = torch.rand(1, 5, 3)
    assert (alone(one) - together(one)).abs().max() > 1e-6, "over one sample, or over three variables"


@pytest.mark.parametrize("output", ["ReLU", "Softplus", "Residual", None])
def test_only_relu_dies(output: str | None) -> None:
    """Far below zero, a ReLU forecasts zeros and learns nothing; the others still have a gradient."""
    model = small(output_function=output).train()
    model.step_of_epoch = 0
    assert model.Autoregression is not None
    with torch.no_grad():
        model.Autoregression.bias.fill_(-8.0)
    x = torch.rand(4, 5, 3)
    y = model(x)
    y.sum().backward()
    gradient = model.Autoregression.bias.grad
    assert gradient is not None
    assert bool(gradient.any()) == (output != "ReLU")
    assert bool(y.any()) == (output != "ReLU")


def test_residual_adds_the_last_value() -> None:
    model = small(output_function="Residual", bias=False).eval()
    plain = small(output_function=None, bias=False).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.rand(4, 5, 3)
    torch.testing.assert_close(model(x), plain(x) + x[:, -1:])


def test_published_number_of_parameters() -> None:
    """Figures of the authors' code for windows of a week, three variables."""
    model = ReGENN(window=7, horizon=7, variables=3, autoregression=True)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == 31_695
    both = ReGENN(
        window=7, horizon=7, variables=3, autoregression=True, bidirectional_gate=True, bidirectional_sequencer=True
    )
    assert sum(p.numel() for p in both.parameters() if p.requires_grad) == 32_239


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"gate": "lstm"}, "gate must be one of RNN, GRU, LSTM; got 'lstm'"),
        ({"output_function": "Swish"}, "output_function must be one of Residual, None"),
        ({"evolution_function": "Swish"}, "activation must be one of None"),
        ({"variables": 0}, "variables must be at least 1; got 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=line):
        small(**options)


def test_training_needs_the_number_of_the_step() -> None:
    model, x = small().train(), torch.rand(4, 5, 3)
    with pytest.raises(ValueError, match="step_of_epoch is None in training"):
        model(x)
    model.step_of_epoch = 0
    model(x)
    model.step_of_epoch = None
    model(x)
    small(ablation=True).train()(x)


def test_wrong_shapes_are_said() -> None:
    with pytest.raises(ValueError, match="past has 2 variables; expected 3"):
        small()(torch.rand(4, 5, 2))
    with pytest.raises(ValueError, match=r"expected \(batch, 5, variate\)"):
        small()(torch.rand(4, 6, 3))


# --- protocols


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", ["maximum", "logarithm"])
def test_only_the_published_scale_sees_the_future(axis: int, kind: Any) -> None:
    data = counts()
    later = data.clone()
    later[:, 20:] = 9 * data[:, 20:] + 50
    honest, changed = (scaled(x, kind, axis, training_steps=20) for x in (data, later))
    assert torch.equal(honest.scale, changed.scale)
    assert torch.equal(honest.values[:, :20], changed.values[:, :20])
    leaky, moved = (scaled(x, kind, axis).scale for x in (data, later))
    assert not torch.equal(leaky, moved)
    torch.testing.assert_close(honest.restored(honest.values, honest.scale), data)
    assert float(honest.scale.min()) >= 1


@pytest.mark.parametrize("protocol", ["honest", "published"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_forecast_from_the_last_window_sees_nothing_ahead(protocol: Any, axis: int) -> None:
    """Whatever comes after the origin: honest, not a bit changes; published, the scale gives it away."""
    data = counts()
    other = data.clone()
    other[:, -2:] = data[:, -2:] * 3 + 100
    forecasts = []
    for panel in (data, other):
        model, history = trained(panel, protocol=protocol, axis=axis)
        forecasts.append(forecast_last(model, history))
    assert torch.equal(*forecasts) == (protocol == "honest")


def test_honest_refuses_a_duplicated_variable() -> None:
    data = counts()
    data[..., 1] = data[..., 0]
    assert duplicated(data) == [(0, 1)]
    line = "data: confirmed and deaths are the same numbers, which counts one error twice; drop one of them"
    settings = RegennSettings(2, protocol="honest", epochs=1)
    with pytest.raises(UserError) as error:
        train_regenn(small(), data, settings, variables=("confirmed", "deaths", "recovered"))
    assert str(error.value) == line
    train_regenn(small(), data, RegennSettings(2, epochs=1))


def test_training_is_repeatable_and_ends_with_the_best_epoch() -> None:
    data = counts()
    model, history = trained(data, epochs=4)
    again, other = trained(data, epochs=4)
    assert history.watched == other.watched
    assert history.best == min(history.watched) == history.watched[history.best_epoch]
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert history.train.shape == (2, 4, 14, 2, 3)


def test_training_stops_early_and_says_each_epoch() -> None:
    seen: list[int] = []
    settings = RegennSettings(2, epochs=50, early_stop=1, learning_rate=0.0, batch_size=3)
    train_regenn(small(), counts(), settings, on_epoch=lambda epoch, watched: seen.append(epoch))
    assert len(seen) < 50


def test_table_has_the_simple_forecasts_and_the_leak() -> None:
    data = counts(samples=5)
    model, history = trained(data, protocol="published", axis=2)
    table = regenn_table(model, history, data)
    assert table["forecast"].tolist()[:2] == ["last value", "drift"]
    assert "the leak alone" in table["forecast"][2]
    assert set(table["protocol"]) == {"published"}
    model, history = trained(data)
    assert regenn_table(model, history, data)["forecast"].tolist() == ["last value", "drift", "ReGENN"]


def test_drift_goes_on_a_line_exactly() -> None:
    line = torch.arange(20.0)[None, :, None]
    torch.testing.assert_close(drift(line[:, :15], 5), line[:, 15:])
    with pytest.raises(UserError, match="past has 7 steps; the drift of 7 needs 8"):
        drift(line[:, :7], 2)


@pytest.mark.parametrize(
    ("steps", "stride", "line"),
    [
        (10, 2, "data has 10 steps; window 5, horizon 2 and stride 2 need 11"),
        (24, 3, "validation_stride is 3; expected at most the horizon, 2"),
    ],
)
def test_short_panels_are_said(steps: int, stride: int, line: str) -> None:
    with pytest.raises(UserError, match=line):
        train_regenn(small(), counts(steps=steps), RegennSettings(stride, epochs=1))


def test_values_that_are_not_finite_are_named() -> None:
    data = counts()
    data[2, 3, 1] = torch.nan
    with pytest.raises(UserError, match="sample 2, step 3, variable 1 is not finite"):
        train_regenn(small(), data, RegennSettings(2, epochs=1))


# --- the authors' files


@pytest.mark.parametrize("bare", [True, False])
def test_authors_file_is_converted(tmp_path: Path, bare: bool) -> None:
    model = small(
        gate="GRU",
        sequencer="RNN",
        bidirectional_gate=True,
        bias=False,
        output_function="Tanh",
        attend_over="samples",
        target_graph="stored",
    ).train()
    model.step_of_epoch = 0
    model(torch.rand(4, 5, 3))
    ours = ("residuals", "SourceEvolution.merged", "TargetEvolution.merged")
    state = {key: value for key, value in model.state_dict().items() if key not in ours}
    torch.save(state if bare else {"model_dict": state, "test_loss": 1.0}, tmp_path / "best.pt")
    source = conversion.SOURCES["regenn"]
    with pytest.raises(ValueError, match="output_function"):
        source.read(tmp_path / "best.pt", {})
    found = source.read(tmp_path / "best.pt", {"output_function": "Tanh"})
    converted = ReGENN(**found.arguments)
    converted.load_state_dict(found.weights)
    x = torch.rand(4, 5, 3)
    assert torch.equal(converted.eval()(x), model.eval()(x))
    graph = converted.graphs()["source adjacency"]
    converted.train().step_of_epoch = 0
    converted(x)
    assert torch.equal(converted.graphs()["source adjacency"], graph), "data are not added a second time"


def test_another_file_is_said(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "other.pt")
    from recurra.core.conversion import convert

    with pytest.raises(FileError, match=r"other.pt: holds no ReGENN .*, but encoder.weight"):
        convert(tmp_path / "other.pt", conversion.SOURCES, "regenn", tmp_path / "out")
