"""Prepared layers give the numbers of the modules they are made from; models find their prepared forms."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recurra.core.nn import Conv2dGRU, ConvGRUCell, ConvIndRNNCell, ConvMGUCell
from recurra.core.nn.prepared import Cell, Convolution, Stack, unsupported
from recurra.core.prepared import prepare, register

CELLS = {"gru": ConvGRUCell, "mgu": ConvMGUCell, "indrnn": ConvIndRNNCell}
# Float32, relative to the largest value: 3e-7 for direct sums, up to 2.5e-6 for Winograd's convolution.
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def as_map(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous()


def assert_same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=TOLERANCE * want.abs().max().item(), rtol=0)


def spread_weights(module: nn.Module) -> None:
    """Weights that keep the size of features, and biases and scales that are not zero."""
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.dim() == 4 and parameter.shape[0] > 1 else 4
        nn.init.normal_(parameter, std=fan_in**-0.5)


@pytest.mark.parametrize("shape", [(1, 17, 12), (3, 5, 4), (1, 1, 1)])
@pytest.mark.parametrize("padding", ["replicate", "zeros"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "dilation", "kind"),
    [
        (4, 24, 5, 1, "direct"),
        (24, 17, 1, 1, "matrix"),
        (24, 17, 3, 1, "winograd"),
        (24, 17, 3, 2, "winograd"),
        (24, 17, 3, 4, "winograd"),
        (24, 2, 3, 1, "thin"),
        (24, 3, 3, 2, "taps"),
        (24, 2, 5, 2, "taps"),
        (8, 8, 3, 1, "direct"),
    ],
)
def test_convolution(shape, padding, relu, channels, filters, kernel, dilation, kind):
    batch, height, width = shape
    x, weight, bias = torch.randn(batch, channels, height, width), torch.randn(filters, channels, kernel, kernel), None
    for bias in (None, torch.randn(filters)):
        prepared = Convolution(weight, bias, dilation=dilation, padding=padding, relu=relu)
        assert prepared.kind == kind
        mode = "replicate" if padding == "replicate" else "constant"
        exact = F.conv2d(F.pad(x, (dilation * (kernel // 2),) * 4, mode=mode), weight, bias, dilation=dilation)
        out = torch.full((batch, height, width, filters), torch.nan)
        before = x.clone()
        y = prepared(as_map(x), out=out)
        assert y.is_contiguous()
        assert_same(y, as_map(exact.relu() if relu else exact))
        assert torch.equal(x, before)


def test_convolution_without_numba(monkeypatch):
    monkeypatch.setattr("recurra.core.nn.prepared.installed", lambda module: False)
    x, weight = torch.randn(2, 24, 9, 7), torch.randn(17, 24, 3, 3)
    prepared = Convolution(weight, None, padding="zeros")
    assert prepared.kind == "direct"
    assert_same(prepared(as_map(x)), as_map(F.conv2d(x, weight, padding=1)))
    prepared = Convolution(weight[:2], None, padding="zeros")
    assert prepared.kind == "taps"
    assert_same(prepared(as_map(x)), as_map(F.conv2d(x, weight[:2], padding=1)))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize(("channels", "hidden"), [(4, 6), (24, 32)])
@pytest.mark.parametrize("bias", [True, False])
def test_cell(cell, kernel, dilation, channels, hidden, bias):
    plain = CELLS[cell](channels, hidden, kernel=kernel, dilation=dilation, bias=bias)
    spread_weights(plain)
    assert unsupported(plain) is None
    prepared = Cell(plain)
    x, h = torch.randn(2, channels, 13, 11), torch.randn(2, hidden, 13, 11)
    state, seen = as_map(h), as_map(x)
    for _ in range(3):
        h = plain(x, h)
        assert prepared(seen, state) is state
        assert_same(state, as_map(h))
    assert torch.equal(seen, as_map(x))


@pytest.mark.parametrize("cell", CELLS)
def test_cell_in_many_chunks(cell, monkeypatch):
    monkeypatch.setattr("recurra.core.nn.prepared.CHUNK", 1)
    plain = CELLS[cell](5, 8)
    spread_weights(plain)
    x, h = torch.randn(1, 5, 19, 23), torch.randn(1, 8, 19, 23)
    assert_same(Cell(plain)(as_map(x), as_map(h)), as_map(plain(x, h)))


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("dense", [0, 1, 2])
def test_stack(layers, dense):
    plain = Conv2dGRU(3, 24, 2, num_layers=layers, dense_connect=dense)
    spread_weights(plain)
    assert unsupported(plain) is None
    prepared = Stack(plain)
    x, state = torch.randn(2, 3, 14, 9), None
    states = prepared.zeros(as_map(x))
    for _ in range(3):
        y, state = plain(x, state)
        assert_same(prepared(as_map(x), states), as_map(y))
    for got, want in zip(states, state.unbind(-1), strict=True):
        assert_same(got, as_map(want))


def test_threads_do_not_share_buffers():
    plain = ConvGRUCell(16, 32)
    prepared = Cell(plain)
    inputs = [(torch.randn(1, 16, 90, 90), torch.randn(1, 32, 90, 90)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda pair: prepared(as_map(pair[0]), as_map(pair[1])), inputs))
    for y, (x, h) in zip(got, inputs, strict=True):
        assert_same(y, as_map(plain(x, h)))


def test_weights_are_those_of_the_time_of_preparation():
    plain = ConvGRUCell(4, 6)
    x, h = torch.randn(1, 4, 5, 5), torch.randn(1, 6, 5, 5)
    before, prepared = as_map(plain(x, h)), Cell(plain)
    for parameter in plain.parameters():
        parameter.zero_()
    assert_same(prepared(as_map(x), as_map(h)), before)


def test_what_is_not_supported_is_told():
    assert unsupported(nn.Linear(2, 2)) == "Linear is not known here"
    assert unsupported(ConvGRUCell(2, 3).double()) == "parameters are not float32 on the CPU"
    assert unsupported(ConvGRUCell(2, 3, dim=3)) == "not two-dimensional"
    assert unsupported(Conv2dGRU(2, 3, instance_norm=True)) == "instance normalisation between the gates"
    assert unsupported(Conv2dGRU(2, 3, gru_kernel_size=3)) == "gates larger than 1x1"


class Doubling(nn.Linear):
    def forward(self, x: Tensor, *, times: Tensor | int = 2) -> Tensor:
        return times * super().forward(x)


class Other(Doubling):
    pass


def fast(model: Doubling):
    weight, bias = model.weight.clone(), model.bias.clone()
    return lambda x, *, times=2: (times * F.linear(x, weight, bias)).add(1000)  # so that one sees who computed


register(Doubling, fast, lambda model: "too wide" if model.in_features > 3 else None)


def test_a_model_finds_its_form():
    model, x = Doubling(3, 2), torch.randn(4, 3)
    prepared = prepare(model)
    assert (prepared.model, prepared.reason) == (model, None)
    assert torch.equal(prepared(x), model(x) + 1000)
    assert torch.equal(prepared(x, times=torch.tensor(3)), model(x, times=3) + 1000)
    with torch.enable_grad():
        assert not prepared(x).requires_grad


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Other(3, 2), "Other has no prepared form"),
        (lambda: Doubling(3, 2).double(), "its parameters are not float32 on the CPU"),
        (lambda: Doubling(4, 2), "too wide"),
    ],
)
def test_a_model_without_a_form_does_the_work(make, reason):
    model = make()
    prepared = prepare(model)
    x = torch.randn(5, model.in_features, dtype=model.weight.dtype)
    assert prepared.reason == reason
    assert torch.equal(prepared(x), model(x))
    with torch.enable_grad():
        assert not prepared(x).requires_grad


def test_what_the_form_does_not_serve_goes_to_the_model():
    model, x = Doubling(3, 2), torch.randn(4, 3)
    prepared = prepare(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prepared(x), model(x))
    scale = torch.tensor(3.0, dtype=torch.float64)
    assert torch.equal(prepared(x, times=scale), model(x, times=scale))
    with pytest.raises(RuntimeError, match="dtype"):
        prepared(x.double())
