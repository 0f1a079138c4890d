"""Explanations: weights as they are, and what a forecast loses without a part of its input."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from recurra.forecast.explanation import Coefficients, Linear, Windows, explain_weights, occlusion
from recurra.forecast.models.forecaster import Forecaster


class Last(Forecaster):
    """Twice the value before the last, half of a covariate of the step itself, and a mark."""

    takes_marks: ClassVar[bool] = True
    takes_covariates: ClassVar[bool] = True

    def __init__(self, *, window: int = 6, horizon: int = 2, quantiles: tuple[float, ...] = ()) -> None:
        super().__init__(window=window, horizon=horizon, quantiles=quantiles)

    def forward(
        self,
        past: Float[Tensor, "batch window variate"],
        marks: Float[Tensor, "batch steps mark"] | None = None,
        covariates: Float[Tensor, "batch steps covariate"] | None = None,
    ) -> Float[Tensor, "batch horizon variate *quantile"]:
        y = 2 * past[:, -2:-1].expand(-1, self.horizon, -1)
        if covariates is not None:
            y = y + 0.5 * covariates[:, -self.horizon :, :1]
        if marks is not None:
            y = y + marks[:, -self.horizon :, :1]
        if self.quantiles:
            return torch.stack([y, y - 1, y + 1], -1)
        return y


def windows(count: int = 5, seed: int = 0, **options: Any) -> Windows:
    draw = np.random.default_rng(seed)
    past = draw.normal(size=(count, 6, 2))
    given = {"marks": draw.normal(size=(count, 8, 1)), "covariates": draw.normal(size=(count, 8, 2)), **options}
    return Windows(past, **given)


def test_occlusion_of_a_model_that_is_known() -> None:
    batch = windows(scale=np.array([[10.0, 1.0]]))
    found = occlusion(Last(), [batch], blocks=1, variates=["a", "b"], covariates=["c", "d"], unit="MW")
    changes = {str(label): float(mean) for label, mean, *_ in found.rows}  # type: ignore[arg-type]
    assert list(changes) == [*(f"lag {i}" for i in range(1, 7)), "a", "b", "c", "d", "calendar"]
    scale = np.array([10.0, 1.0])
    gap = 2 * np.abs(batch.past[:, -2] - batch.past.mean(1)) * scale
    assert changes["lag 2"] == pytest.approx(gap.mean(), rel=1e-5)
    assert changes["a"] == pytest.approx(gap[:, 0].mean() / 2, rel=1e-5)
    assert changes["b"] == pytest.approx(gap[:, 1].mean() / 2, rel=1e-5)
    assert all(changes[name] == 0 for name in ("lag 1", "lag 3", "lag 6", "d"))
    covariate = batch.covariates
    assert covariate is not None
    expected = 0.5 * np.abs(covariate[:, 6:, 0] - covariate[:, :6, 0].mean(1, keepdims=True)).mean() * 5.5
    assert changes["c"] == pytest.approx(expected, rel=1e-5)
    assert changes["calendar"] > 0
    assert found.columns[1] == "mean absolute change, MW"
    assert max(float(row[3]) for row in found.rows) == 1  # type: ignore[arg-type]


def test_the_same_in_batches_and_with_quantiles_and_it_leaves_all_as_it_was() -> None:
    one, two = windows(seed=1), windows(3, seed=2)
    before = one.past.copy()
    model = Last(quantiles=(0.1, 0.9)).train()
    parts = occlusion(model, iter([one, two]))
    whole = occlusion(
        Last(),
        [
            Windows(
                np.concatenate([one.past, two.past]),
                np.concatenate([one.marks, two.marks]),  # type: ignore[arg-type]
                np.concatenate([one.covariates, two.covariates]),  # type: ignore[arg-type]
            )
        ],
    )
    assert [row[0] for row in parts.rows] == [row[0] for row in whole.rows]
    for mine, theirs in zip(parts.rows, whole.rows, strict=True):
        assert mine[1:] == pytest.approx(theirs[1:], rel=1e-6)
    assert model.training
    assert (one.past == before).all()


def test_blocks_cover_the_window_once() -> None:
    found = occlusion(Last(), [Windows(np.ones((1, 6, 1)))], blocks=4)
    assert [row[0] for row in found.rows] == ["lags 1-4", "lags 5-6"]
    assert all(row[1] == 0 for row in found.rows)  # a constant window is its own mean


def test_names_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="1 names of variates; the windows have 2"):
        occlusion(Last(), [windows()], variates=["a"])
    with pytest.raises(ValueError, match="3 names of covariates; the windows have 2"):
        occlusion(Last(), [windows()], covariates=["a", "b", "c"])
    with pytest.raises(ValueError, match="no window to explain"):
        occlusion(Last(), [])


def test_weights_of_a_linear_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Model:
        def lag_weights(self) -> Coefficients:
            weights = {"y": np.array([[0.5, 0.1], [0.2, 0.3]]), "t": np.array([[1.0, 2.0]])}
            return Coefficients(weights, {"y": np.full((2, 2), 0.01)}, np.array([7.0, 8.0]))

    model = Model()
    assert isinstance(model, Linear)
    assert not isinstance(Last(), Linear)
    found = explain_weights(model.lag_weights(), name="AutoRegression", step=2)
    assert found.rows == [("y", 1, 0.1, 0.01), ("y", 2, 0.3, 0.01), ("t", 1, 2.0, ""), ("intercept", "", 8.0, "")]
    found.outputs.append(found.picture(tmp_path / "weights.png"))
    found.show()
    shown = " ".join(capsys.readouterr().out.split())
    assert "AutoRegression: weights of the forecast of step 2" in shown
    assert "weights.png" in shown
    assert (tmp_path / "weights.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="step must be between 1 and 2; got 3"):
        explain_weights(model.lag_weights(), name="m", step=3)


def test_the_picture_of_an_occlusion(tmp_path: Path) -> None:
    found = occlusion(Last(), [windows()])
    assert found.picture(tmp_path / "a.png").stat().st_size > 5000
