"""Time-parallel scans: exact where a composition exists, certified where Newton's method is used."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from recurra.kernels import elementwise_scan, newton_scan
from recurra.kernels.elementwise_scan import ROWS
from recurra.kernels.elementwise_scan.doubling import linear, rectified
from recurra.kernels.elementwise_scan.reference import STEPS

NEWTON = ["indrnn_tanh", "diag_gru", "diag_lstm_cifg"]


def draw(cell: str, *, batch: int = 4, steps: int = 1000, width: int = 64, std: float = 0.5, dtype=torch.float64):
    """Inputs of N(0, 1) and parameters of N(0, std²)."""
    generator = torch.Generator().manual_seed(0)
    wx = torch.randn(batch, steps, *ROWS[cell][:1], width, generator=generator, dtype=torch.float64)
    params = torch.randn(*ROWS[cell][1:], width, generator=generator, dtype=torch.float64) * std
    return wx.to(dtype), params.to(dtype)


def residual(cell: str, wx: Tensor, params: Tensor, y: Tensor) -> Tensor:
    """Of each sequence from zero, of a cell whose state is y: max|h_t - f(h_(t-1), x_t)| / (1 + max|h|)."""
    before = torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1)
    (after,) = STEPS[cell](params, before, wx)
    return (after - y).abs().amax((1, 2)) / (1 + y.abs().amax((1, 2)))


@pytest.mark.parametrize("steps", [1, 2, 3, 64, 65, 1000, 4096])
def test_rectified_scan_is_exact(steps):
    generator = torch.Generator().manual_seed(steps)
    u = (torch.rand(8, generator=generator, dtype=torch.float64) * 2 - 1) * 1.0005
    u[0], u[1], u[2] = 1.0005, -1.0005, 0
    x = torch.randn(2, steps, 8, generator=generator, dtype=torch.float64)
    expected, _ = elementwise_scan("indrnn_relu", x, u, backend="reference")
    found, _, iterations = newton_scan("indrnn_relu", x, u)
    assert (found - expected).abs().max() <= 2e-13 * (1 + expected.abs().max())
    assert iterations.tolist() == [0, 0]


def test_compositions_with_slopes_of_zero_and_overflow():
    a = torch.tensor([0.0, 2.0, 0.0, -1.0, 1e200, 1e200, 0.0, 1.0], dtype=torch.float64)[None, :, None]
    b = torch.tensor([1.0, -3.0, 5.0, 2.0, 0.0, 0.0, 7.0, -1.0], dtype=torch.float64)[None, :, None]
    assert rectified(a, b)[0, :, 0].tolist() == [1, 0, 5, 0, 0, 0, 7, 6]
    assert linear([[a]], [b])[0][0, [0, 1, 2, 3, 6, 7], 0].tolist() == [1, -1, 5, -3, 7, 6]


def test_growth_beyond_range_is_what_the_definition_says():
    u, x = torch.tensor([3.0, 0.5], dtype=torch.float64), torch.ones(1, 1000, 2, dtype=torch.float64)
    for cell in ("indrnn_relu", "indrnn_linear"):
        expected, _ = elementwise_scan(cell, x, u, backend="reference")
        found, _, iterations = newton_scan(cell, x, u)
        assert iterations.tolist() == [-1]
        assert torch.allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("cell", "std", "at_1e6", "at_1e12"),
    [
        ("diag_gru", 2 / math.sqrt(5 * 64), 3, 4),
        ("diag_gru", 0.5, 5, 6),
        ("diag_gru", 1.0, 7, 8),
        ("diag_lstm_cifg", 2 / math.sqrt(5 * 64), 3, 4),
        ("indrnn_tanh", 2 / math.sqrt(5 * 64), 3, 4),
    ],
)
def test_iterations(cell, std, at_1e6, at_1e12):
    wx, params = draw(cell, std=std)
    expected, _ = elementwise_scan(cell, wx, params)
    for tolerance, most in ((1e-6, at_1e6), (1e-12, at_1e12)):
        y, _, iterations = newton_scan(cell, wx, params, tolerance=tolerance)
        # The draw of the weights moves it, the more the larger they are.
        assert most - 1 <= int(iterations.max()) <= most + 2 * (std == 1)
        assert int(iterations.min()) >= 1
        assert (y - expected).abs().max() < 20 * tolerance


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("cell", NEWTON)
def test_never_an_uncertified_result(cell, std):
    wx, params = draw(cell, batch=3, steps=300, width=16, std=std)
    expected, last = elementwise_scan(cell, wx, params, backend="reference")
    y, state, iterations = newton_scan(cell, wx, params, max_iterations=12)
    assert torch.isfinite(y).all()
    # Above a weight scale of 1 differences grow along the sequence, until the sequential kernel takes over.
    converged = iterations >= 0
    assert (y - expected).abs().max() < (1e-9 if std > 1 else 1e-12)
    assert all(torch.allclose(s, e, rtol=1e-9, atol=1e-9) for s, e in zip(state, last, strict=True))
    if cell != "diag_lstm_cifg":
        assert (residual(cell, wx, params, y)[converged] < 8 * torch.finfo(y.dtype).eps).all()
    if std >= 2:
        assert not converged.all()
    if std <= 0.5:
        assert converged.all()


@pytest.mark.parametrize("cell", NEWTON)
def test_sequences_are_certified_one_by_one(cell):
    wx, params = draw(cell, batch=3, steps=200, width=8, std=4.0)
    # Of a sequence that is cut short the first steps alone have to converge; one is spoiled.
    lengths = torch.tensor([200, 2, 200])
    wx[2, 100:] = torch.nan
    y, _, iterations = newton_scan(cell, wx, params, lengths=lengths, max_iterations=6)
    expected, _ = elementwise_scan(cell, wx, params, lengths=lengths, backend="reference")
    assert 0 <= iterations[1] <= 3
    assert iterations[2] == -1
    assert torch.allclose(y, expected, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert torch.isfinite(y[:2]).all()


@pytest.mark.parametrize("cell", NEWTON)
def test_bounds_of_the_call_change_no_result(cell):
    wx, params = draw(cell, batch=2, steps=50, width=4, std=1.0)
    expected, _ = elementwise_scan(cell, wx, params, backend="reference")
    for arguments in ({"max_iterations": 0}, {"max_iterations": 2}, {"tolerance": 1e-300}, {"max_iterations": 200}):
        y, _, iterations = newton_scan(cell, wx, params, **arguments)
        assert (y - expected).abs().max() < 1e-13
        if arguments.get("max_iterations", 9) < 9:
            assert (iterations == -1).all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", list(ROWS))
def test_gradients(cell, reverse):
    wx, params = (t.requires_grad_() for t in draw(cell, batch=2, steps=5, width=2))
    lengths, reset = torch.tensor([5, 3]), torch.tensor([[0, 0, 1, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)

    def of(wx: Tensor, params: Tensor) -> tuple[Tensor, ...]:
        y, state, _ = newton_scan(cell, wx, params, lengths=lengths, reset=reset, reverse=reverse)
        return y, *state

    assert gradcheck(of, (wx, params))
    assert gradgradcheck(of, (wx, params))


def test_inference_mode():
    wx, params = draw("diag_gru", batch=2, steps=30, width=3)
    expected, _, _ = newton_scan("diag_gru", wx, params)
    with torch.inference_mode():
        found, _, _ = newton_scan("diag_gru", wx, params)
    assert torch.equal(found, expected)


def test_arguments_that_do_not_fit():
    wx, params = draw("diag_gru", batch=1, steps=3, width=2)
    with pytest.raises(ValueError, match=r"tolerance is 0.0; expected a positive number"):
        newton_scan("diag_gru", wx, params, tolerance=0.0)
    with pytest.raises(ValueError, match="max_iterations is -1; expected 0 or more"):
        newton_scan("diag_gru", wx, params, max_iterations=-1)
    with pytest.raises(ValueError, match="cell must be one of"):
        newton_scan("gru", wx, params)
