"""ONNX and torch.export programs compute what the model computes, or are not written."""

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recurra.core import exporting
from recurra.core.exporting import Exportable
from recurra.mri.exporting import RealInterface, export
from recurra.mri.models import CIRIM, MODELS, DirectRIM, Reconstructor, RecurrentVarNet
from recurra.mri.models.varnet import VarNet

INITIALIZER: dict[str, Any] = {
    "initializer_channels": (2, 3),
    "initializer_dilations": (1, 2),
    "initializer_multiscale": 2,
}
RVN: dict[str, Any] = {"steps": 2, "hidden": 3, "layers": 2, "refine_filters": 2, "refine_pools": 1}


def cirim(**options: Any) -> CIRIM:
    small = {"conv_filters": (3, 3, 2), "recurrent_filters": (3, 3, 0), "steps": 1, "round_steps": False}
    return CIRIM(**{**small, "cascades": 2, **options})


# Every architecture, with the parts that differ in what has to be exported, and the example's shape.
CASES: dict[str, tuple[Callable[[], Reconstructor], str]] = {
    "CIRIM-gru": (lambda: cirim(cell="gru", steps=2, cascades=1), "3,16,12"),
    "CIRIM-mgu": (lambda: cirim(cell="mgu", semantics="atommic", keep_prediction=False), "2,17,13"),
    "CIRIM-indrnn": (lambda: cirim(cell="indrnn", fft="uncentered-backward", cascades=3), "1,15,18"),
    "CIRIM-explicit": (lambda: cirim(data_consistency="explicit"), "2,17,13"),
    "CIRIM-rss": (lambda: cirim(data_consistency="explicit", semantics="atommic", combine="rss"), "2,13,17"),
    "CIRIM-learned-maps": (
        lambda: cirim(sensitivity_net="normunet", sensitivity_filters=2, sensitivity_pools=2, cascades=1),
        "2,17,22",
    ),
    "CIRIM-compat-maps": (
        lambda: cirim(
            sensitivity_net="normunet", sensitivity_filters=2, sensitivity_pools=1, compat_rss=True, cascades=1
        ),
        "2,9,10",
    ),
    "CIRIM-3d": (lambda: cirim(dim=3, fft_dim=2, cascades=1), "2,3,9,8"),
    "RecurrentVarNet": (lambda: RecurrentVarNet(**RVN, **INITIALIZER), "2,17,13"),
    "RecurrentVarNet-normalized": (
        lambda: RecurrentVarNet(**RVN | {"normalized": True, "shared": True, "refine": "none", "initializer": "none"}),
        "3,12,15",
    ),
    "DirectRIM": (lambda: DirectRIM(hidden=3, length=2), "2,17,13"),
    "DirectRIM-initializer": (
        lambda: DirectRIM(
            hidden=3,
            length=2,
            shared=False,
            skip=False,
            start="zero_filled",
            learned_initializer=True,
            instance_norm=True,
            dense_connect=1,
            **INITIALIZER,
        ),
        "2,16,11",
    ),
}


def saved(make: Callable[[], Reconstructor], folder: Path) -> tuple[Reconstructor, Path]:
    """A model whose weights are not small, so that every part matters, and its checkpoint."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model, folder


def other_input(model: Reconstructor, shape: str) -> tuple[Tensor, Tensor, Tensor]:
    """Not the example of the export: what the program computes must not be baked in."""
    sizes = [int(n) for n in shape.split(",")]
    random = torch.Generator().manual_seed(7)
    mask = torch.rand(1, 1, *sizes[1:], generator=random) < 0.4
    mask[..., sizes[-1] // 2 - 2 : sizes[-1] // 2 + 2] = True
    kspace, maps = torch.randn(2, 1, *sizes, 2, generator=random)
    return kspace * mask[..., None], maps, mask


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_every_architecture_is_here() -> None:
    assert {name.split("-")[0] for name in CASES} | {"VarNet"} == set(MODELS)


@pytest.mark.parametrize(("make", "shape"), CASES.values(), ids=CASES.keys())
def test_onnx(make: Callable[[], Reconstructor], shape: str, tmp_path: Path) -> None:
    import onnxruntime

    model, folder = saved(make, tmp_path / "run")
    report = export(folder, tmp_path / "model.onnx", format="onnx", shape=shape)
    # Tighter than what is accepted: float32 through a few convolutions, transforms in float64.
    assert report.difference <= 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "run"]
    args = other_input(model, shape)
    session = onnxruntime.InferenceSession(str(report.path))
    feeds = {name: x.numpy() for name, x in zip(("kspace", "sensitivity", "mask"), args, strict=True)}
    with torch.no_grad():
        assert_same(torch.from_numpy(session.run(["image"], feeds)[0]), RealInterface(model)(*args))


@pytest.mark.parametrize(("make", "shape"), CASES.values(), ids=CASES.keys())
def test_pt2(make: Callable[[], Reconstructor], shape: str, tmp_path: Path) -> None:
    model, folder = saved(make, tmp_path / "run")
    report = export(folder, tmp_path / "model.pt2", format="pt2", shape=shape)
    assert report.difference <= 1e-6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2", "run"]
    args = other_input(model, shape)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its pickled trees
        assert_same(torch.export.load(report.path).module()(*args), RealInterface(model)(*args))


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_monai_network_cannot_be_exported(format: str, tmp_path: Path) -> None:
    _, folder = saved(lambda: VarNet(cascades=1, features=(2,) * 6, sensitivity_features=(2,) * 6), tmp_path / "run")
    with pytest.raises(ValueError, match=r"calibration columns") as caught:
        export(folder, tmp_path / "model", format=format)
    assert str(caught.value) == (
        f"{folder}: VarNet cannot be exported: "
        "MONAI's network looks for the calibration columns in the values of the mask"
    )
    assert not (tmp_path / "model").exists()


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return saved(lambda: DirectRIM(hidden=2, length=1), tmp_path / "run")[1]


def refused(*args: Any, **options: Any) -> str:
    """The one line of a refusal."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        export(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [1.001, float("nan")])
def test_a_program_that_differs_is_not_written(
    value: float, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(made: Exportable, path: Path) -> tuple[Tensor, ...]:
        path.write_text("a program")
        return (made.module(*made.example) * value,)

    monkeypatch.setattr(exporting, "_to_pt2", wrong)
    told = "nan" if value != value else "1.0e-03"
    out = tmp_path / "model.pt2"
    assert refused(checkpoint, out, format="pt2", shape="2,8,8") == (
        f"{out}: the pt2 program differs from torch by {told} of the largest value; "
        "at most 1e-04 is accepted, so it is not written"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_missing_package_is_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    expected = "exporting ONNX needs the package onnxruntime; install it with: pip install 'recurra-mri[export]'"
    assert refused(checkpoint, tmp_path / "model.onnx") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    export(checkpoint, tmp_path / "model.pt2", format="pt2", shape="2,8,8")


def test_what_the_exporter_does_not_know_is_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise torch.onnx.OnnxExporterError("long\nstory") from KeyError("aten.nothing has no ONNX function\nTrace")

    monkeypatch.setattr(torch.onnx, "export", fail)
    told = refused(checkpoint, tmp_path / "model.onnx", shape="2,8,8")
    assert told.startswith("DirectRIM cannot be exported as ONNX: ")
    assert "aten.nothing has no ONNX function" in told
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_existing_output_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pt2"
    out.write_text("mine")
    assert refused(checkpoint, out, format="pt2").startswith(f"{out}: exists already; pass --overwrite to replace it")
    assert out.read_text() == "mine"
    export(checkpoint, out, format="pt2", shape="2,8,8", overwrite=True)
    assert out.stat().st_size > 1000


def test_a_failure_keeps_the_file_that_was_there(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.pt2"
    out.write_text("mine")
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    refused(checkpoint, out, format="pt2", shape="2,8,8", overwrite=True)
    assert out.read_text() == "mine"


def test_the_checkpoint_itself_is_kept(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    before = weights.read_bytes()
    assert refused(checkpoint, weights, format="pt2", shape="2,8,8", overwrite=True).startswith(
        f"{weights}: is an input"
    )
    assert weights.read_bytes() == before


def test_wrong_options(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert refused(checkpoint, out, format="tflite") == "format must be one of onnx, pt2; got 'tflite'"
    for shape in ("8,64", "8,64,x", "0,8,8", "2,-8,8", "", "1,2,3,4"):
        told = f"shape must be coils,height,width such as 8,64,64; got {shape!r}"
        assert refused(checkpoint, out, format="pt2", shape=shape) == told
    _, volume = saved(lambda: cirim(dim=3), tmp_path / "3d")
    told = "shape must be coils,depth,height,width such as 8,16,64,64; got '8,64,64'"
    assert refused(volume, out, format="pt2") == told
    assert not out.exists()


def test_exporters_are_silent(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export(checkpoint, tmp_path / "model.onnx", shape="2,8,9")
    assert not caught
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == disabled
