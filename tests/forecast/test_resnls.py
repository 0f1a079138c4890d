"""ResNLS: its two forwards, several steps, and the split of its training."""

from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recurra.core.conversion import convert
from recurra.core.errors import FileError, UserError
from recurra.forecast.conversion import SOURCES
from recurra.forecast.models.resnls import ResNLS
from recurra.forecast.protocols.resnls import PUBLISHED, ResnlsSettings, forecast_test_days, train_resnls, windows


def walk(days: int = 150) -> np.ndarray:
    return 100 + np.random.default_rng(0).normal(0, 1, days).cumsum()


def test_variants_differ_by_what_feeds_the_lstm() -> None:
    paper, published = ResNLS(hidden=8).eval(), ResNLS(hidden=8, variant="published").eval()
    published.load_state_dict(paper.state_dict())
    x = torch.rand(4, 5, 1)
    assert torch.equal(paper(x), published(x)), "the scalar is 0 at first"
    with torch.no_grad():
        paper.weight.fill_(0.5)
        published.weight.fill_(0.5)
    assert not torch.equal(paper(x), published(x))


def test_published_parameters() -> None:
    assert sum(p.numel() for p in ResNLS().parameters()) == 32_711
    published = ResNLS(variant="published")
    assert sum(p.numel() for p in published.parameters() if p.requires_grad) == 18_241


def test_recurrent_weights_get_no_gradient() -> None:
    model = ResNLS(hidden=8)
    model(torch.rand(4, 5, 1)).sum().backward()
    assert model.lstm.weight_hh_l0.grad is not None
    assert not model.lstm.weight_hh_l0.grad.any()


def test_more_steps_are_fed_back() -> None:
    one, three = ResNLS(hidden=8).eval(), ResNLS(hidden=8, horizon=3).eval()
    three.load_state_dict(one.state_dict())
    x = torch.rand(4, 5, 1)
    expected, seen = [], x
    for _ in range(3):
        expected.append(one(seen))
        seen = torch.cat([seen[:, 1:], expected[-1]], dim=1)
    torch.testing.assert_close(three(x), torch.cat(expected, dim=1))


def test_wrong_input_is_said() -> None:
    with pytest.raises(ValueError, match="past has 2 variates; expected 1, a series a row"):
        ResNLS(hidden=8)(torch.rand(4, 5, 2))


def test_windows_are_followed_by_the_next_value() -> None:
    past, target = windows(np.arange(8.0), 5)
    assert past.squeeze(-1).tolist() == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [2, 3, 4, 5, 6]]
    assert target.flatten().tolist() == [5, 6, 7]
    with pytest.raises(UserError, match="series has 5 values; expected more than the window, 5"):
        windows(np.arange(5.0), 5)


def test_honest_forecasts_see_nothing_ahead() -> None:
    """Days after a test day change no forecast up to it; published, the scale of all days gives them away."""
    closes = walk()
    later = closes.copy()
    later[145:] += 300
    for settings, same in ((ResnlsSettings(epochs=1), True), (PUBLISHED, False)):
        options: Any = {"variant": "paper" if same else "published", "hidden": 4}
        settings = ResnlsSettings(**{**vars(settings), "epochs": 1})
        results = []
        for series in (closes, later):
            torch.manual_seed(0)
            results.append(forecast_test_days(ResNLS(**options), series, settings))
        first = results[0].first
        assert first == ceil(0.9087 * 150)
        assert len(results[0].forecast) == 150 - first
        assert np.array_equal(results[0].forecast[: 146 - first], results[1].forecast[: 146 - first]) == same
        assert results[0].after != results[1].after


def test_training_is_repeatable_and_learns() -> None:
    closes = (walk() - 80) / 40
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append(train_resnls(ResNLS(hidden=8), closes, ResnlsSettings(epochs=8, learning_rate=1e-2)))
    assert runs[0] == runs[1]
    assert len(runs[0]) == 8 * ceil(145 / 64)
    assert runs[0][-1] < 0.5 * runs[0][0]


def test_what_does_not_serve_is_said() -> None:
    with pytest.raises(UserError, match="series is constant at 3"):
        forecast_test_days(ResNLS(hidden=4), np.full(50, 3.0), ResnlsSettings(epochs=1))
    with pytest.raises(UserError, match="value 7 is not finite"):
        train_resnls(ResNLS(hidden=4), np.where(np.arange(50) == 7, np.nan, 1.0), ResnlsSettings(epochs=1))
    with pytest.raises(UserError, match="forecasts 2 steps; expected one step ahead"):
        forecast_test_days(ResNLS(hidden=4, horizon=2), walk(), ResnlsSettings(epochs=1))
    with pytest.raises(ValueError, match="loss must be one of"):
        ResnlsSettings(loss="mse")


@pytest.mark.parametrize("lost", [True, False])
def test_authors_file_is_converted(tmp_path: Path, lost: bool) -> None:
    """Files of a training on a GPU lack the scalar."""
    model = ResNLS(hidden=8, variant="published").eval()
    dropped = ("residuals", "weight") if lost else ("residuals",)
    torch.save({k: v for k, v in model.state_dict().items() if k not in dropped}, tmp_path / "resnls.pth")
    folder = convert(tmp_path / "resnls.pth", SOURCES, "resnls", tmp_path / "out")
    converted = ResNLS.from_pretrained(folder)
    assert converted.config["variant"] == "published"
    assert ("weight" in converted.metadata.get("assumed", {})) == lost
    x = torch.rand(4, 5, 1)
    assert torch.equal(converted(x), model(x))
    longer = ResNLS.from_pretrained(
        convert(tmp_path / "resnls.pth", SOURCES, "resnls", tmp_path / "more", ["horizon=3", "variant=paper"])
    )
    assert longer(x).shape == (4, 3, 1)


def test_another_file_is_said(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(FileError, match="holds epoch; expected a dict of tensors"):
        convert(tmp_path / "other.pt", SOURCES, "resnls", tmp_path / "out")
