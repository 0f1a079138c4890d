from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from recurra.core.nn import Conv2dGRU, ConvGRUCell, ConvIndRNNCell, ConvMGUCell, NormConv2dGRU
from recurra.core.testing import Golden, assert_close, golden, golden_files
from recurra.kernels import use_backend

pytestmark = pytest.mark.usefixtures("straight_interpreter")

CELLS: dict[str, Any] = {"ConvGRUCell": ConvGRUCell, "ConvMGUCell": ConvMGUCell, "IndRNNCell": ConvIndRNNCell}
GATES = {ConvGRUCell: 3, ConvMGUCell: 2, ConvIndRNNCell: 1}


def cosine_loss(outputs: list[Tensor]) -> Tensor:
    """The scalar behind the gradients of the pairs in golden/core."""
    total = torch.zeros((), dtype=torch.float64)
    for y in outputs:
        flat = y.double().flatten()
        total = total + (torch.cos(torch.arange(1, len(flat) + 1, dtype=torch.float64)) * flat).sum()
    return total


def check(pair: Golden, model: nn.Module, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    """Compare outputs and every gradient the pair has."""
    tolerance = pair.tolerance_for(next(model.parameters()).dtype)
    for name in pair.description["outputs"]:
        assert_close(outputs[name], pair.outputs[name], tolerance, name=name)
    cosine_loss([outputs[name] for name in pair.description["outputs"]]).backward()
    ours = {key: value.grad for key, value in model.named_parameters()}
    ours |= {f"input.{key}": value.grad for key, value in inputs.items()}
    for key, expected in pair.grads.items():
        found = ours[key]
        assert found is not None, key
        assert_close(found, expected, tolerance, name=f"grad {key}")


@pytest.mark.parity
@pytest.mark.parametrize("backend", ["reference", "numba", "triton"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "path", golden_files("core", "conv_gru*|conv_mgu*|conv_indrnn*", reference="rnn_cells"), ids=lambda p: p.stem
)
def test_cell_equals_the_authors(path: Path, dtype: torch.dtype, backend: str) -> None:
    pair = golden(path)
    config = pair.config
    kind = CELLS[pair.reference.rsplit(".", 1)[-1].rsplit("::", 1)[-1]]
    cell = kind(
        config["input_size"],
        config["hidden_size"],
        kernel=config["kernel_size"],
        dilation=config["dilation"],
        bias=config["bias"],
        dim=pair.state["ih.weight"].ndim - 2,
    )
    cell.load_state_dict(pair.state)
    cell.to(dtype)
    inputs = {key: value.to(dtype).requires_grad_() for key, value in pair.inputs.items()}
    batch, _, *spatial = inputs["x"][0].shape
    h = inputs.get("h0", torch.zeros(batch, config["hidden_size"], *spatial, dtype=dtype))
    states = []
    with use_backend(backend):
        for x in inputs["x"]:
            h = cell(x, h)
            states.append(h)
    check(pair, cell, inputs, {"y": torch.stack(states)})


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "path", golden_files("core", "direct_*conv2dgru*", reference="direct.nn.recurrent"), ids=lambda p: p.stem
)
def test_conv2d_gru_equals_the_authors(path: Path, dtype: torch.dtype) -> None:
    pair = golden(path)
    config = {key: value for key, value in pair.config.items() if key != "replication_padding"}
    model: nn.Module = NormConv2dGRU(**config) if "Norm" in pair.reference else Conv2dGRU(**config)
    model.load_state_dict(pair.state)
    model.to(dtype)
    inputs = {key: value.to(dtype).requires_grad_() for key, value in pair.inputs.items()}
    y1, state1 = model(inputs["x"], inputs.get("state"))
    y2, state2 = model(y1, state1)
    check(pair, model, inputs, {"y1": y1, "state1": state1, "y2": y2, "state2": state2})


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("kind", [ConvGRUCell, ConvMGUCell, ConvIndRNNCell])
def test_cell_gradients_in_every_dimension(kind: Any, dim: int) -> None:
    torch.manual_seed(0)
    cell = kind(2, 3, kernel=3, dilation=2, dim=dim).double()
    shape = (3, 4, 2)[:dim]
    x = torch.randn(2, 2, *shape, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    weights = tuple(cell.parameters())

    def step(x: Tensor, h: Tensor, *_: Tensor) -> Tensor:
        result: Tensor = cell(x, h)
        return result

    assert step(x, h).shape == h.shape
    assert torch.autograd.gradcheck(step, (x, h, *weights), fast_mode=True)


@pytest.mark.parametrize("kind", [ConvGRUCell, ConvMGUCell, ConvIndRNNCell])
def test_cell_of_one_line_is_the_cell_in_one_dimension(kind: Any) -> None:
    torch.manual_seed(0)
    flat, line = kind(2, 3, kernel=3, dim=2), kind(2, 3, kernel=3, dim=1)
    # The middle row of a 3x3 kernel is all that meets an image of one row.
    state = {
        key: value[..., value.shape[-2] // 2, :] if value.ndim == 4 else value
        for key, value in flat.state_dict().items()
    }
    line.load_state_dict(state)
    x, h = torch.randn(2, 2, 5), torch.randn(2, 3, 5)
    assert_close(line(x, h), flat(x[:, :, None], h[:, :, None])[:, :, 0], atol=1e-6)


@pytest.mark.parametrize("kind", [ConvGRUCell, ConvMGUCell, ConvIndRNNCell])
def test_cell_initial_weights(kind: Any) -> None:
    torch.manual_seed(0)
    cell = kind(64, 64, kernel=3)
    assert cell.ih.weight.shape == (GATES[kind] * 64, 64, 3, 3)
    assert cell.ih.bias.eq(0).all()
    if kind is ConvGRUCell:
        for weight in (cell.ih.weight, cell.hh.weight):
            rows = weight.flatten(1)
            assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-4)
    elif kind is ConvMGUCell:
        bound = (6 / (9 * (64 + 128))) ** 0.5
        assert bound * 0.99 < cell.hh.weight.abs().max() <= bound
        assert bound * 0.99 * 2**0.5 < cell.ih.weight.abs().max() <= bound * 2**0.5
    else:
        assert_close(cell.ih.weight.std(), 1 / 640, rtol=0.02)
        assert_close(cell.hh.std(), 1 / 640, rtol=0.3)


def test_cell_refuses_other_dimensions() -> None:
    refused = cast(Any, 4)
    # With the type checks of the tests on, the annotation refuses it first.
    with pytest.raises((ValueError, TypeError), match="dim"):
        ConvGRUCell(2, 3, dim=refused)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 1},
        {"num_layers": 3, "dense_connect": 2},
        {"instance_norm": True, "gru_kernel_size": 3},
        {"out_channels": 3, "orthogonal_initialization": False},
    ],
)
def test_conv2d_gru_gradients(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Conv2dGRU(2, 3, **options).double()
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    state = torch.randn(1, 3, 4, 3, model.num_layers, dtype=torch.float64, requires_grad=True)
    y, _ = model(x, state)
    assert y.shape == (1, options.get("out_channels", 2), 4, 3)
    assert torch.autograd.gradcheck(model, (x, state))


def test_conv2d_gru_starts_with_closed_reset_gates() -> None:
    model = Conv2dGRU(2, 8)
    assert all(gate[-1].bias.eq(-1).all() for gate in model.reset_gates)
    assert all(gate[-1].bias.eq(0).all() for gate in [*model.update_gates, *model.out_gates])


@pytest.mark.parametrize("kind", [Conv2dGRU, NormConv2dGRU])
def test_conv2d_gru_items_of_a_batch_do_not_meet(kind: Any) -> None:
    torch.manual_seed(0)
    model = kind(2, 4, num_layers=2)
    x, state = torch.randn(3, 2, 6, 5), torch.randn(3, 4, 6, 5, 2)
    y, new = model(x, state)
    y1, new1 = model(x[1:2], state[1:2])
    assert_close(y[1:2], y1, atol=1e-6)
    assert_close(new[1:2], new1, atol=1e-6)


def test_norm_conv2d_gru_follows_scale_and_offset() -> None:
    torch.manual_seed(0)
    model = NormConv2dGRU(2, 4).double()
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    assert_close(model(3 * x + 1)[0], 3 * model(x)[0] + 1, atol=1e-10)


def test_norm_conv2d_gru_survives_an_image_of_zeros() -> None:
    y, state = NormConv2dGRU(2, 4)(torch.zeros(1, 2, 6, 5))
    assert_close(y, torch.zeros_like(y), atol=1e-30)
    assert state.isfinite().all()
