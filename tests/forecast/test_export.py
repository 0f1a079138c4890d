"""Programs from raw values to forecasts, run by numpy and onnxruntime where torch cannot be imported."""

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from recurra.core.errors import UserError
from recurra.forecast.exporting import FIELDS, OriginalUnits, export, marks_of, scaling_of
from recurra.forecast.models.forecaster import Forecaster, Layout

MARKS = ("hour", "weekday", "day", "day of year")


class Toy(Forecaster):
    """Linear in everything it takes."""

    layout: ClassVar[Layout] = "variates"
    takes_marks: ClassVar[bool] = True
    takes_covariates: ClassVar[bool] = True

    def __init__(
        self,
        *,
        window: int = 6,
        horizon: int = 3,
        features: int = 4,
        covariates: int = 0,
        quantiles: tuple[float, ...] = (),
        calibration: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__(window=window, horizon=horizon, quantiles=quantiles, calibration=calibration)
        self.features, self.covariates = features, covariates
        self.past = nn.Linear(window, horizon)
        self.beside = nn.Linear((window + horizon) * max(1, features + covariates), horizon)

    def forward(
        self,
        past: Float[Tensor, "batch window variate"],
        marks: Float[Tensor, "batch steps mark"] | None = None,
        covariates: Float[Tensor, "batch steps covariate"] | None = None,
    ) -> Float[Tensor, "batch horizon variate *quantile"]:
        self.check(past, marks, covariates)
        y = self.past(past.mT).mT
        beside = [one for one in (marks, covariates) if one is not None]
        if beside:
            y = y + self.beside(torch.cat(beside, -1).flatten(1))[..., None]
        return torch.stack([y, *(y + (q - 0.5) for q in self.quantiles)], -1) if self.quantiles else y


class Each(Toy):
    """One series at a time."""

    layout: ClassVar[Layout] = "series"
    takes_marks: ClassVar[bool] = False


class Closed(Each):
    unexportable: ClassVar[str | None] = "its states are kept outside"


SHIFT, SCALE = [100.0, -3.0, 1e6], [10.0, 0.5, 2e5]


def toy(kind: type[Toy] = Toy, data: dict[str, Any] | None = None, **options: Any) -> Toy:
    torch.manual_seed(0)
    model = kind(**options).eval()
    described = {"scaler": {"kind": "standard", "shift": SHIFT, "scale": SCALE}, "ids": ["a", "b", "c"]}
    model.metadata = {"data": {**described, "frequency": "h", "marks": list(MARKS), **(data or {})}}
    return model


def fields(start: datetime.datetime, steps: int) -> np.ndarray:
    rows = []
    for step in range(steps):
        at = start + datetime.timedelta(hours=step)
        day = at.timetuple().tm_yday
        rows.append([at.month, at.day, at.weekday(), at.hour, at.minute, at.second, day, at.isocalendar().week])
    return np.array(rows, np.int64)


def raw(batch: int = 2, variates: int = 3, seed: int = 5) -> np.ndarray:
    draw = np.random.default_rng(seed).standard_normal((batch, 6, variates))
    return (draw * SCALE[:variates] + SHIFT[:variates]).astype(np.float32)


def run(path: Path, given: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    names = [one.name for one in session.get_outputs()]
    found = dict(zip(names, session.run(names, given), strict=True))
    return found, json.loads(session.get_modelmeta().custom_metadata_map["recurra"])


def by_hand(model: Toy, past: np.ndarray, stamps: np.ndarray | None = None) -> np.ndarray:
    """What the model forecasts in original units, step by step."""
    seen = torch.from_numpy((past.astype(np.float64) - SHIFT) / SCALE).float()
    marks = None
    if stamps is not None:
        month, day, weekday, hour, _, _, year_day, _ = np.moveaxis(stamps.astype(np.float64), -1, 0)
        del month
        scaled = np.stack([hour / 23, weekday / 6, (day - 1) / 30, (year_day - 1) / 365], -1) - 0.5
        marks = torch.from_numpy(scaled).float()
    with torch.no_grad():
        return model(seen, marks).double().numpy() * SCALE + SHIFT


def test_numpy_and_onnxruntime_alone(tmp_path: Path) -> None:
    model = toy(calibration=(20, 3, 3))
    model.residuals.copy_(torch.rand(20, 3, 3) + 0.1)
    model.save_pretrained(tmp_path / "run")
    report = export(tmp_path / "run", tmp_path / "model.onnx", batch=2)
    assert report.difference < 1e-6
    past = raw()
    stamps = np.stack([fields(datetime.datetime(2024, 2, 28, 20), 9), fields(datetime.datetime(2026, 12, 31, 21), 9)])
    np.savez(tmp_path / "given.npz", past=past, stamps=stamps)
    code = """
import json, sys
sys.modules["torch"] = sys.modules["recurra"] = None  # neither can be imported
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
names = [one.name for one in session.get_outputs()]
found = session.run(names, dict(np.load(sys.argv[2])))
np.savez(sys.argv[3], **dict(zip(names, found)))
print(session.get_modelmeta().custom_metadata_map["recurra"])
"""
    command = [sys.executable, "-c", code, tmp_path / "model.onnx", tmp_path / "given.npz", tmp_path / "found.npz"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["ids"] == ["a", "b", "c"]
    assert (told["frequency"], told["levels"], told["fields"]) == ("h", [80.0, 95.0], list(FIELDS))
    assert (told["architecture"], told["window"], told["horizon"], told["layout"]) == ("Toy", 6, 3, "variates")
    found = np.load(tmp_path / "found.npz")
    expected = by_hand(model, past, stamps)
    assert np.abs((found["forecast"] - expected) / SCALE).max() < 1e-4  # float32 of values near 1e6
    ordered = np.sort(model.residuals.numpy(), axis=0)
    half = np.stack([ordered[16], ordered[19]], -1) * np.array(SCALE)[:, None]
    assert found["half_widths"] == pytest.approx(np.broadcast_to(half, (2, 3, 3, 2)), rel=1e-6)


def test_each_series_has_its_scale(tmp_path: Path) -> None:
    model = toy(Each, features=0, calibration=(4, 3, 1))
    model.residuals.copy_(torch.full((4, 3, 1), 0.5))
    export(model, tmp_path / "model.onnx", batch=3)
    past, series = raw(1)[0].T[[2, 0, 1], :, None], np.array([2, 0, 1])
    found, told = run(tmp_path / "model.onnx", {"past": past, "series": series})
    assert told["levels"] == [80.0]  # four residuals are enough for 80, not for 95
    expected = by_hand(model, raw(1))[0].T[[2, 0, 1]]
    scale = np.array(SCALE)[[2, 0, 1], None]
    assert np.abs((found["forecast"][..., 0] - expected) / scale).max() < 1e-4
    assert found["half_widths"][..., 0, 0] == pytest.approx(np.broadcast_to(0.5 * scale, (3, 3)))


def test_quantiles_and_covariates(tmp_path: Path) -> None:
    encoder = {
        "past": ["price"],
        "future": ["kind"],
        "static": [],
        "numbers": {"price": [50.0, 5.0]},
        "categories": {"kind": []},
    }
    model = toy(covariates=2, quantiles=(0.1, 0.9), data={"encoder": encoder})
    export(model, tmp_path / "model.onnx", batch=2)
    given = np.random.default_rng(0).normal(50, 5, (2, 9, 2)).astype(np.float32)
    given[:, 6:, 1] = np.nan  # not known ahead
    stamps = np.stack([fields(datetime.datetime(2025, 5, 1), 9)] * 2)
    past = raw()
    found, told = run(tmp_path / "model.onnx", {"past": past, "stamps": stamps, "covariates": given})
    assert (told["covariates"], told["quantiles"], told["levels"]) == (["price", "kind=?"], [0.1, 0.9], [])
    seen = np.nan_to_num((given.astype(np.float64) - [50, 0]) / [5, 1]).astype(np.float32)
    numbers = stamps.astype(np.float64)
    marks = np.stack([numbers[..., 3] / 23, numbers[..., 2] / 6, (numbers[..., 1] - 1) / 30], -1) - 0.5
    marks = np.concatenate([marks, (numbers[..., 6:7] - 1) / 365 - 0.5], -1).astype(np.float32)
    scaled = ((past.astype(np.float64) - SHIFT) / SCALE).astype(np.float32)
    with torch.no_grad():
        y = model(*map(torch.from_numpy, (scaled, marks, seen))).double().numpy()
    original = y * np.array(SCALE)[:, None] + np.array(SHIFT)[:, None]
    both = np.concatenate([found["forecast"][..., None], found["quantiles"]], -1)
    assert np.abs((both - original) / np.array(SCALE)[:, None]).max() < 1e-4


def test_pt2_has_the_same_and_its_metadata(tmp_path: Path) -> None:
    import warnings

    model = toy()
    report = export(model, tmp_path / "model.pt2", format="pt2", batch=2)
    extra = {"recurra": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its pickled trees
        program = torch.export.load(report.path, extra_files=extra).module()
    stamps = np.stack([fields(datetime.datetime(2025, 5, 1), 9)] * 2)
    past = raw()
    (found,) = program(torch.from_numpy(past), torch.from_numpy(stamps))
    assert np.abs((found.detach().numpy() - by_hand(model, past, stamps)) / SCALE).max() < 1e-4
    assert json.loads(extra["recurra"])["ids"] == ["a", "b", "c"]


def test_without_a_scaler_values_are_as_they_are(tmp_path: Path) -> None:
    model = toy(Each, features=0)
    model.metadata = {}
    made = OriginalUnits(model)
    assert (made.inputs, made.outputs) == (("past",), ("forecast",))
    past = torch.randn(2, 6, 1)
    with torch.no_grad():
        assert torch.equal(made(past)[0], model(past))
    assert scaling_of(model).shift.tolist() == [0.0]


def test_a_model_that_cannot_be_exported_says_why(tmp_path: Path) -> None:
    toy(Closed, features=0).save_pretrained(tmp_path / "run")
    with pytest.raises(UserError) as error:
        export(tmp_path / "run", tmp_path / "model.onnx")
    assert str(error.value) == f"{tmp_path / 'run'}: Closed cannot be exported: its states are kept outside"
    assert not (tmp_path / "model.onnx").exists()


def refused(model: Toy, out: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        export(model, out, **options)
    assert not out.exists()
    return str(error.value)


def test_refusals(tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    assert refused(toy(), out, format="tflite") == "format must be one of onnx, pt2; got 'tflite'"
    assert refused(toy(), out, batch=0) == "batch must be at least 1; got 0"
    assert refused(toy(), out, levels="0.8") == "levels are percentages; got 0.8, did you mean 80?"
    assert refused(toy(calibration=(4, 3, 1)), out, levels="80") == (
        "0 residuals are too few for level 80, which is infinite then; expected at least 4; "
        "leave --levels out for those that there can be"
    )
    assert refused(toy(data={"scaler": {"shift": [0.0], "scale": [0.0]}}), out).startswith("the checkpoint's scaler")
    assert refused(toy(data={"scaler": {"shift": "x", "scale": [1.0]}}), out).startswith("the checkpoint's scaler")
    assert refused(toy(data={"marks": ["moon"]}), out).startswith("the checkpoint's calendar feature 'moon' is unknown")
    assert refused(toy(covariates=2), out) == "Toy takes 2 covariates, whose scales are not in the checkpoint"


def test_marks_are_those_of_the_checkpoint() -> None:
    assert marks_of(toy()) == MARKS
    assert marks_of(toy(Each)) == ()
