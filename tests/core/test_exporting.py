"""Programs of modules with several inputs and outputs, with and without complex numbers inside."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from recurra.core.errors import UserError
from recurra.core.exporting import Exportable, check_export, export
from recurra.core.real_arithmetic import Pair, RealArithmetic, aten
from recurra.core.testing import assert_close


class Enhancer(nn.Module):
    """A mask on a spectrum, its waveform and its state: what a domain with two outputs has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)

    def forward(self, wave: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        spectrum = torch.fft.fft(torch.complex(wave, state))
        masked = torch.sigmoid(self.linear(spectrum.abs())) * spectrum
        return torch.fft.ifft(masked).real, masked.real


def enhancer() -> Exportable:
    torch.manual_seed(0)
    module = Enhancer().eval()
    return Exportable(module, {"wave": torch.randn(2, 5), "state": torch.randn(2, 5)}, ("clean", "after"), "Enhancer")


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_several_outputs(format: str, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
    made, out = enhancer(), tmp_path / f"model.{format}"
    report = export(made, out, format, package="recurra.toy")
    assert report.path == out
    assert report.difference < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    other = torch.randn(2, 2, 5)
    with torch.no_grad():
        expected = made.module(*other)
    if format == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(out))
        given = dict(zip(made.inputs, other.numpy(), strict=True))
        found = [torch.from_numpy(session.run([name], given)[0]) for name in made.outputs]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of its pickled trees
            found = torch.export.load(out).module()(*other)
    for one, want in zip(found, expected, strict=True):
        assert_close(one, want, atol=1e-5)


@pytest.mark.parametrize("wrong", [0, 1])
def test_every_output_is_measured(wrong: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def differ(made: Exportable, path: Path) -> tuple[Tensor, ...]:
        found = list(made.module(*made.example))
        found[wrong] = found[wrong] * 1.01
        path.write_text("a program")
        return tuple(found)

    monkeypatch.setattr("recurra.core.exporting._to_pt2", differ)
    with pytest.raises(UserError, match=r"the pt2 program differs from torch by 1\.0e-02 of the largest value"):
        export(enhancer(), tmp_path / "model", "pt2", package="recurra.toy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_not_replaced_by_a_program(overwrite: bool, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=f"^{folder}: is a folder; expected the name of the pt2 file to write$"):
        export(enhancer(), folder, "pt2", package="recurra.toy", overwrite=overwrite)
    assert (folder / "mine.txt").read_text() == "mine"


def test_options_are_checked_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "model"

    def refused(format: str) -> str:
        with pytest.raises(UserError) as caught:
            check_export(out, format, package="recurra.toy")
        return str(caught.value)

    assert refused("tflite") == "format must be one of onnx, pt2; got 'tflite'"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    expected = "exporting ONNX needs the package onnxscript; install it with: pip install 'recurra-toy[export]'"
    assert refused("onnx") == expected
    out.write_text("mine")
    assert refused("pt2").startswith(f"{out}: exists already; pass --overwrite")
    check_export(out, "pt2", package="recurra.toy", overwrite=True)


def test_what_has_no_real_form_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")

    class Exp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.view_as_real(torch.view_as_complex(x).exp())

    made = Exportable(Exp(), {"x": torch.randn(3, 2)}, ("y",), "Exp")
    told = r"^Exp cannot be exported as ONNX: aten\.exp\.default on complex values has no real form$"
    with pytest.raises(UserError, match=told):
        export(made, tmp_path / "model.onnx", package="recurra.toy")
    assert not list(tmp_path.iterdir())


# --- real arithmetic -------------------------------------------------------------------------------------------------


def test_every_operation_on_complex_values() -> None:
    torch.manual_seed(0)

    class Everything(nn.Module):
        def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
            a, b, r = torch.view_as_complex(x), torch.view_as_complex(y), x[..., 0]
            found = [a + b, a + r, r - a, a - (1 + 2j), a * b, r * a, a * r, 2 * a, a * 3j, a / b, a / r, r / b, a / 3]
            found += [a.conj(), -a, a.conj().resolve_conj(), torch.where(mask, a, 0), torch.where(mask, r, b)]
            found += [torch.complex(r, a.imag), torch.roll(a, 2, 1), a.sum((0, 1)), a.permute(1, 0), a[1:], a[0]]
            found += [torch.cat([a, b]), a.view(-1), a[None].expand(2, -1, -1), a[:, :1].squeeze(1), a.clone()]
            found += [torch.fft.fft2(a, norm="ortho"), torch.fft.ifftn(a, dim=(0,)), torch.fft.fft(r)]
            found += [torch.zeros(3, dtype=torch.complex128) + a[0, 0], a.new_zeros(2)]
            real = [a.abs(), torch.linalg.vector_norm(a), torch.linalg.vector_norm(a, dim=0), a.real * a.imag]
            return (*(torch.view_as_real(z.resolve_conj()) for z in found), *real)

    x, y = torch.randn(2, 4, 5, 2, dtype=torch.float64)
    mask = torch.rand(4, 5) < 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        program = torch.export.export(Everything(), (x, y, mask)).run_decompositions()
        real = RealArithmetic(program.module(check_guards=False))
        again = torch.export.export(real, (x, y, mask))
    complex_values = [
        node for node in again.graph.nodes if isinstance(node.meta.get("val"), Tensor) and node.meta["val"].is_complex()
    ]
    assert {node.target for node in complex_values} <= {aten.complex.default, aten._fft_c2c.default}
    for found, expected in zip(real(x, y, mask), Everything()(x, y, mask), strict=True):
        assert_close(found, expected, atol=1e-12)


def test_an_operation_without_real_form_is_named() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(aten.exp.default, (graph.call_function(aten.view_as_complex.default, (x,)),)))
    with pytest.raises(ValueError, match=r"^aten\.exp\.default on complex values has no real form$"):
        RealArithmetic(fx.GraphModule({}, graph))(torch.zeros(3, 2))
    assert Pair(torch.ones(1), torch.zeros(1)).re == 1


class Guarded(nn.Module):
    """Whose product is kept out of autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return x @ x


def test_a_region_without_autocast_and_metadata_are_kept(tmp_path: Path) -> None:
    made = Exportable(Guarded(), {"x": torch.eye(3) + 1}, ("y",), "Guarded", {"made": "of rain"})
    path = export(made, tmp_path / "model.pt2", "pt2", package="recurra.toy").path
    extra = {"made": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its pickled trees
        program = torch.export.load(path, extra_files=extra).module()
    assert extra == {"made": "of rain"}
    assert_close(program(torch.eye(3)), torch.eye(3))
