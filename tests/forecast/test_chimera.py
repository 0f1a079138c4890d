"""Chimera: what holds exactly of its recurrence, and of the model made of it."""

import re
from typing import Any
from unittest import mock

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recurra.core.testing import assert_close
from recurra.forecast.models.chimera_scan import (
    Coefficients,
    companion,
    convolution,
    grid_scan,
    impulse_response,
    order_free,
    read,
)
from recurra.forecast.models.chimera_ssm import GridSSM, VariatesSSM, discretise, phi, stable

ORDERS = ("auto", "row", "column", "wavefront", "loop")
FORMS: dict[str, dict[str, Any]] = {
    "held": {},
    "per matrix": {"mode": "zoh_per_matrix"},
    "euler": {"mode": "euler_b"},
    "one way": {"coupling": "one_way"},
    "uncoupled": {"coupling": "none"},
    "constant": {"selective": False},
    "companion": {"structure": "companion"},
    "constant companion": {"structure": "companion", "selective": False},
    "order free": {"order_free": True},
}
# As for a user: no shape hook comes before our own checks.
unchecked = mock.patch.object(jaxtyping.config, "jaxtyping_disable", True)
every_form = pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def drawn(model: Any, spread: float = 1.0) -> Any:
    """The model in float64 with every parameter drawn at random, coupling included."""
    model = model.double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return model


def coefficients(shape: tuple[int, ...], *, coupled: bool = True) -> Coefficients:
    own = torch.rand(2, *shape, dtype=torch.float64)
    other = (1 - own) * (2 * torch.rand(2, *shape, dtype=torch.float64) - 1) * coupled
    return Coefficients(own[0], other[0], other[1], own[1])


# --- discretisation


def test_steps_along_an_axis_add_up() -> None:
    own = -torch.rand(3, 4, dtype=torch.float64) - 0.1
    step, nothing = torch.rand(1, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
    for times in (2, 5, 17):
        once, often = (
            discretise((own, nothing, nothing, own), (nothing, nothing), (s, s)) for s in (step, times * step)
        )
        assert_close(often.a1, once.a1**times, rtol=1e-13)
        assert_close(often.a4, once.a4**times, rtol=1e-13)


def test_many_steps_carry_a_state_as_far_as_one_long_step() -> None:
    torch.manual_seed(1)
    short = GridSSM(3, 2, coupling="none", selective=False).double()
    state = normal(1, 1, 6), torch.zeros(1, 1, 6, dtype=torch.float64)
    _, after_five = short(torch.zeros(1, 1, 5, 3, dtype=torch.float64), state)
    with torch.no_grad():
        wide = 5 * torch.nn.functional.softplus(short.step_bias)
        short.step_bias.copy_(wide + torch.log(-torch.expm1(-wide)))
    _, after_one = short(torch.zeros(1, 1, 1, 3, dtype=torch.float64), state)
    assert_close(after_one[0], after_five[0], rtol=1e-12)
    assert (after_one[0] != 0).all()


def test_phi_has_its_limit_and_keeps_its_digits() -> None:
    step = torch.tensor([[0.3, 1e-3, 2.0]], dtype=torch.float64)
    assert_close(phi(step, torch.zeros(1, 3, dtype=torch.float64)), step, rtol=1e-11)
    tiny = torch.full((1, 3), -1e-9, dtype=torch.float64)
    assert_close(phi(step, tiny), step * (1 + step * tiny / 2), rtol=1e-15)
    a = torch.tensor([[-0.5, 0.0, -3.0]], dtype=torch.float64, requires_grad=True)
    phi(step, a).sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    variates=st.integers(1, 6),
    steps=st.integers(1, 30),
    rho=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    scale=st.sampled_from([1e-4, 1e-2, 1.0, 100.0]),
)
def test_bound_of_the_held_discretisation(seed: int, variates: int, steps: int, rho: float, scale: float) -> None:
    torch.manual_seed(seed)
    shape, size = (2, variates, steps, 1, 4), (3, 4)
    own1, own4 = -torch.exp(normal(2, *size))
    # The worst that is allowed: as much coupling as rho lets be, all of one sign; and inputs of one sign.
    sign = 1.0 if seed % 2 else torch.sign(normal(*size))
    a = own1, -own1 * rho * sign, -own4 * rho * sign, own4
    b, x = (normal(3, 4), normal(3, 4)), 2 * torch.rand(2, variates, steps, 4, dtype=torch.float64) - 1
    x = torch.ones_like(x) if seed % 3 == 0 else x
    d = discretise(a, b, tuple(scale * torch.rand(2, *shape, dtype=torch.float64).exp()))  # type: ignore[arg-type]
    driven = [(gain * x[..., None, :]).flatten(-2) for gain in (d.b1, d.b2)]
    for scan in (grid_scan, order_free):
        h1, h2 = scan(d.flat(), *driven)  # type: ignore[operator]
        most = torch.maximum(b[0].abs() / own1.abs(), b[1].abs() / own4.abs()).flatten() * x.abs().max() / (1 - rho)
        assert (torch.maximum(h1.abs(), h2.abs()) <= most * (1 + 1e-12)).all()


@every_form
def test_states_stay_bounded_for_any_parameters(options: dict[str, Any]) -> None:
    ssm = drawn(GridSSM(4, 3, **options), 3.0)
    with torch.no_grad():
        ssm.A_log.clamp_(-2, 2)
        ssm.step_bias.fill_(-4.0)  # small steps are the dangerous ones: many paths through the grid
    x = torch.ones(1, 12, 400, 4, dtype=torch.float64)
    with torch.no_grad():
        h1, h2, _ = ssm.run(x)
    assert h1.isfinite().all()
    assert h2.isfinite().all()
    late, early = (h.abs().amax((0, 1, 3)) for h in (h1[:, :, 200:], h1[:, :, :200]))
    assert float(late.max()) <= 20 * float(early.max())


def test_halving_is_what_bounds_one_matrix_a_time() -> None:
    own = torch.full((1, 1), -1.0, dtype=torch.float64)
    steps = (torch.full((1, 1), 1e-3, dtype=torch.float64),) * 2
    one = torch.ones(1, 24, 24, 1, dtype=torch.float64)
    plain, halved = (
        discretise((own,) * 4, (own, own), steps, "zoh_per_matrix", bounded=bounded).flat() for bounded in (False, True)
    )
    assert not stable(plain)
    assert stable(halved)
    # The plain response to a constant grows with the number of paths, far beyond what a single scan could hold.
    far = [float(grid_scan(a, one, one)[0].max()) for a in (plain, halved)]
    assert far[0] > 1e6 * far[1]


@given(st.lists(st.floats(0, 1.5), min_size=4, max_size=4))
@settings(max_examples=100, deadline=None)
def test_criterion_is_that_of_the_spectral_radius(a: list[float]) -> None:
    a1, a2, a3, a4 = (torch.tensor([value], dtype=torch.float64) for value in a)
    radius = float(torch.linalg.eigvals(torch.stack([torch.cat([a1, a2]), torch.cat([a3, a4])])).abs().max())
    if abs(radius - 1) > 1e-9:
        assert stable(Coefficients(a1, a2, a3, a4)) == (radius < 1)


def test_criterion_says_whether_a_response_dies_out() -> None:
    for a, dies in (((0.5, 0.9, 0.5, 0.05), True), ((0.5, 0.9, 0.6, 0.1), False), ((0.2, 0.7, 0.9, 0.3), False)):
        flat = Coefficients(*(torch.tensor([value], dtype=torch.float64) for value in a))
        assert stable(flat) == dies
        one = torch.zeros(1, 300, 300, 1, dtype=torch.float64)
        one[0, 0, 0] = 1
        h1, h2 = grid_scan(flat, one, one)
        far = h1[0, 250:, 250:].abs().max() + h2[0, 250:, 250:].abs().max()
        assert (float(far) < 1e-3) == dies


# --- orders of evaluation


@pytest.mark.parametrize("order", ORDERS[1:])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (5, 8), (9, 4)])
@pytest.mark.parametrize("shape", ["cell", "constant", "row"])
def test_orders_agree(order: Any, size: tuple[int, int], shape: str) -> None:
    full = (2, *size, 6)
    a = coefficients({"cell": full, "constant": (6,), "row": (size[0], 1, 6)}[shape])
    b1, b2, left = normal(*full), normal(*full), (normal(2, size[0], 6), normal(2, size[0], 6))
    for state in (None, left):
        expected = grid_scan(a, b1, b2, state)
        for ours, theirs in zip(grid_scan(a, b1, b2, state, order=order), expected, strict=True):
            assert_close(ours, theirs, atol=1e-13, rtol=1e-13)


def test_unknown_order_is_refused() -> None:
    with (
        unchecked,
        pytest.raises(ValueError, match=r"order must be one of auto, row, column, wavefront, loop; got 'diagonal'"),
    ):
        grid_scan(coefficients((2,)), normal(1, 2, 2, 2), normal(1, 2, 2, 2), order="diagonal")  # type: ignore[arg-type]


def test_axes_may_change_places() -> None:
    a, b1, b2, c = coefficients((2, 5, 7, 6)), normal(2, 5, 7, 6), normal(2, 5, 7, 6), normal(2, 3, 2)
    y = read(*grid_scan(a, b1, b2), c[0], c[1])
    turned = grid_scan(a.swapped(), b2.transpose(1, 2), b1.transpose(1, 2))
    assert_close(read(*turned, c[1], c[0]).transpose(1, 2), y, atol=1e-13)


@pytest.mark.parametrize("order", ORDERS)
def test_gradients(order: Any) -> None:
    arguments = [t.requires_grad_() for t in (*coefficients((1, 3, 4, 2)), normal(1, 3, 4, 2), normal(1, 3, 4, 2))]
    left = [normal(1, 3, 2).requires_grad_() for _ in "hg"]

    def scan(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return grid_scan(Coefficients(*tensors[:4]), tensors[4], tensors[5], (tensors[6], tensors[7]), order=order)

    assert torch.autograd.gradcheck(scan, [*arguments, *left])


@every_form
def test_gradients_of_the_layer(options: dict[str, Any]) -> None:
    ssm = drawn(GridSSM(2, 2, **options), 0.5)
    x = normal(1, 3, 3, 2).requires_grad_()
    names, values = zip(*ssm.named_parameters(), strict=True)

    def layer(x: Tensor, *parameters: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(ssm, dict(zip(names, parameters, strict=True)), (x,))[0]
        return y

    assert torch.autograd.gradcheck(layer, [x, *values])


# --- the layer


@every_form
def test_same_numbers_with_and_without_gradients(options: dict[str, Any]) -> None:
    ssm, x = drawn(VariatesSSM(3, 2, **options)), normal(2, 4, 5, 3)
    y, _ = ssm(x)
    with torch.no_grad():
        assert_close(ssm(x)[0], y, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("order", [*ORDERS, "fft"])
def test_layers_agree_in_every_order(order: Any) -> None:
    ssm, x = drawn(VariatesSSM(3, 2, selective=False)), normal(2, 4, 9, 3)
    other = VariatesSSM(3, 2, selective=False, scan=order).double()
    other.load_state_dict(ssm.state_dict())
    assert_close(other(x)[0], ssm(x)[0], atol=1e-11)


@every_form
def test_no_cell_sees_a_later_one(options: dict[str, Any]) -> None:
    for bidirectional in (False, True):
        ssm = drawn(VariatesSSM(3, 2, bidirectional=bidirectional, **options))
        x = normal(1, 5, 8, 3)
        changed = x.clone()
        changed[:, 2, 4] += 1
        difference = (ssm(changed)[0] - ssm(x)[0]).abs().amax((0, 3))
        assert difference[:, :4].max() == 0
        assert difference[2, 4] > 0
        if not bidirectional and not options.get("order_free"):
            assert difference[:2].max() == 0


@every_form
def test_coupling_reaches_where_it_should(options: dict[str, Any]) -> None:
    ssm, x = drawn(GridSSM(3, 2, **options)), normal(1, 5, 8, 3)
    if not ssm.selective:
        changed = x.clone()
        changed[:, 0, 0] += 1
        difference = (ssm(changed)[0] - ssm(x)[0]).abs().amax((0, 3))
        assert (difference[1:, 1:].max() > 0) == (options.get("coupling") != "none")
        return
    # Coefficients follow the input: where a cell alone differs, all that can differ is what it reaches.
    changed = x.clone()
    changed[:, 1, 2] += 1
    difference = (ssm(changed)[0] - ssm(x)[0]).abs().amax((0, 3))
    reached = difference[2:, 3:].max() > 0
    assert reached == (options.get("coupling") != "none")


def constant_ssm(**options: Any) -> Any:
    return drawn(VariatesSSM(3, 2, selective=False, **options))


@pytest.mark.parametrize("options", [{}, {"structure": "companion"}, {"order_free": True}], ids=str)
def test_constant_coefficients_make_it_linear_and_shift_invariant(options: dict[str, Any]) -> None:
    ssm, x, other = constant_ssm(**options), normal(2, 4, 9, 3), normal(2, 4, 9, 3)
    assert_close(ssm(2 * x - 3 * other)[0], 2 * ssm(x)[0] - 3 * ssm(other)[0], atol=1e-11)
    later = torch.cat([torch.zeros_like(x[:, :, :3]), x], 2)
    assert_close(ssm(later)[0][:, :, 3:], ssm(x)[0], atol=1e-11)


def test_kernel_is_the_response_to_an_impulse() -> None:
    a, b, c = coefficients((6,)), normal(2, 3, 2), normal(2, 3, 2)
    kernel = impulse_response(a, b[0], b[1], c[0], c[1], 5, 7)
    x = normal(2, 5, 7, 2)
    driven = [(gain * x[..., None, :]).flatten(-2) for gain in b]
    assert_close(convolution(x, kernel), read(*grid_scan(a, *driven), c[0], c[1]), atol=1e-12)
    # By the definition: every cell is a sum over those before it.
    cell = sum(kernel[v, t] * x[:, 3 - v, 5 - t] for v in range(4) for t in range(6))
    assert_close(convolution(x, kernel)[:, 3, 5], cell, atol=1e-12)


@every_form
@pytest.mark.parametrize("cut", [1, 4, 8])
def test_columns_may_come_in_pieces(options: dict[str, Any], cut: int) -> None:
    ssm, x = drawn(VariatesSSM(3, 2, **options)), normal(2, 4, 9, 3)
    y, last = ssm(x)
    first, state = ssm(x[:, :, :cut])
    second, end = ssm(x[:, :, cut:], state)
    assert_close(torch.cat([first, second], 2), y, atol=1e-12, rtol=1e-12)
    state, steps = None, []
    for t in range(x.shape[2]):
        out, state = ssm(x[:, :, t : t + 1], state)
        steps.append(out)
    assert_close(torch.cat(steps, 2), y, atol=1e-12, rtol=1e-12)
    for ours, other, theirs in zip(end, state, last, strict=True):
        for i in range(2):
            assert_close(ours[i], theirs[i], atol=1e-12, rtol=1e-12)
            assert_close(other[i], theirs[i], atol=1e-12, rtol=1e-12)


def test_a_single_column_is_a_scan_over_the_variates() -> None:
    a, b1, b2 = coefficients((2, 6, 1, 3)), normal(2, 6, 1, 3), normal(2, 6, 1, 3)
    h2, above = [], torch.zeros(2, 3, dtype=torch.float64)
    for v in range(6):
        h1_above = b1[:, v - 1, 0] if v else torch.zeros_like(above)
        above = a.a3[:, v, 0] * h1_above + a.a4[:, v, 0] * above + b2[:, v, 0]
        h2.append(above)
    found = grid_scan(a, b1, b2)
    assert_close(found[0], b1)
    assert_close(found[1][:, :, 0], torch.stack(h2, 1), atol=1e-13)


def test_a_single_variate_is_a_scan_over_time() -> None:
    a, b1, b2 = coefficients((2, 1, 9, 3), coupled=False), normal(2, 1, 9, 3), normal(2, 1, 9, 3)
    h1, before = [], torch.zeros(2, 3, dtype=torch.float64)
    for t in range(9):
        before = a.a1[:, 0, t] * before + b1[:, 0, t]
        h1.append(before)
    assert_close(grid_scan(a, b1, b2)[0][:, 0], torch.stack(h1, 1), atol=1e-13)


def test_companion_matrix_holds_an_autoregression() -> None:
    weights, x = normal(4, 1), normal(1, 1, 40, 1)  # phi_1 to phi_4
    nothing = torch.zeros(4, dtype=torch.float64)
    first = torch.tensor([[1.0], [0], [0], [0]], dtype=torch.float64)
    driven = (first * x[..., None, :]).flatten(-2)
    one, zeros = torch.ones((), dtype=torch.float64), Coefficients(*[nothing] * 4)
    h1, h2 = companion(torch.zeros(4, 1, dtype=torch.float64), one, zeros, driven, torch.zeros_like(driven))
    y = read(h1, h2, weights, torch.zeros_like(weights))[0, 0, :, 0]
    series = x[0, 0, :, 0]
    expected = [sum(weights[i, 0] * series[t - i] for i in range(4) if t >= i) for t in range(40)]
    assert_close(y, torch.stack(expected), atol=1e-13)


def test_companion_matrix_is_a_matrix() -> None:
    column, keep = normal(3, 2) / 3, 0.8
    a = Coefficients(*(torch.zeros(6, dtype=torch.float64) for _ in range(4)))
    driven = normal(2, 1, 10, 6)
    h1, _ = companion(column, torch.tensor(keep, dtype=torch.float64), a, driven, torch.zeros_like(driven))
    matrix = torch.zeros(2, 3, 3, dtype=torch.float64)
    matrix[:, 1, 0] = matrix[:, 2, 1] = 1
    matrix[:, :, 2] += column.T
    state = torch.zeros(2, 2, 3, dtype=torch.float64)
    for t in range(10):
        state = keep * torch.einsum("cij,bcj->bci", matrix, state) + driven[:, 0, t].view(2, 3, 2).transpose(1, 2)
        assert_close(h1[:, 0, t].view(2, 3, 2).transpose(1, 2), state, atol=1e-12)


def test_bound_of_the_companion_structure() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        ssm = drawn(GridSSM(3, 4, structure="companion", selective=False, rho=0.9), 3.0)
        x = torch.ones(1, 6, 60, 3, dtype=torch.float64)
        with torch.no_grad():
            h1, h2, _ = ssm.run(x)
            own4 = ssm.A_log[1, 0].exp()
            most = torch.maximum(ssm.B[0].abs().sum(0), ssm.B[1].abs().sum(0) / own4) / (1 - ssm.rho)
        for h in (h1, h2):
            assert (h.unflatten(-1, (4, 3)).abs().sum(-2) <= most * (1 + 1e-12)).all()


def test_order_free_is_what_its_equation_says() -> None:
    a, b1, b2 = coefficients((2, 5, 6, 3)), normal(2, 5, 6, 3), normal(2, 5, 6, 3)
    h1, h2 = order_free(a, b1, b2)
    zero = torch.zeros_like(h1[:, :, :1])
    before1, before2 = (torch.cat([zero, h[:, :, :-1]], 2) for h in (h1, h2))
    m1, m2 = (h.mean(1, keepdim=True) for h in (h1, h2))
    assert_close(h1, a.a1 * before1 + a.a2 * before2 + b1, atol=1e-12)
    assert_close(h2, a.a3 * m1 + a.a4 * m2 + b2, atol=1e-12)


def test_order_of_variates() -> None:
    x, order = normal(1, 6, 5, 3), torch.tensor([3, 0, 5, 1, 4, 2])
    ordered, free = drawn(VariatesSSM(3, 2)), drawn(VariatesSSM(3, 2, order_free=True))
    assert len(free.directions) == 1
    assert_close(free(x[:, order])[0], free(x)[0][:, order], atol=1e-12)
    assert (ordered(x[:, order])[0] - ordered(x)[0][:, order]).abs().max() > 1e-2
    # With one set of weights for both directions, reading backwards is the same.
    ordered.directions[1].load_state_dict(ordered.directions[0].state_dict())
    assert_close(ordered(x.flip(1))[0], ordered(x)[0].flip(1), atol=1e-12)


def test_untrained_layer_is_uncoupled_and_its_steps_lie_in_their_ranges() -> None:
    ssm = GridSSM(200, 2, time_steps=(1e-3, 1e-2), variate_steps=(1e-2, 1.0))
    _, cross2, cross3, _ = ssm.rates()
    assert cross2.abs().max() == cross3.abs().max() == 0
    steps = torch.nn.functional.softplus(ssm.step_bias)
    for step, (low, high) in zip(steps, ((1e-3, 1e-2), (1e-2, 1.0)), strict=True):
        assert 0.99 * low <= step.min() < 1.3 * low
        assert 0.7 * high < step.max() <= 1.01 * high


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"mode": "zoh"}, "mode must be one of zoh_held, zoh_per_matrix, euler_b; got 'zoh'"),
        ({"rho": 1.0}, "rho must be at least 0 and below 1; got 1.0"),
        ({"scan": "fft"}, "scan=fft needs selective=False: coefficients that depend on the input have no kernel"),
        ({"structure": "companion", "mode": "euler_b"}, "structure=companion needs mode=zoh_held; got 'euler_b'"),
        ({"order_free": True, "scan": "row"}, "scan must be auto with order_free or structure=companion; got 'row'"),
        ({"order_free": True, "structure": "companion"}, "order_free needs structure=diagonal; got 'companion'"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], line: str) -> None:
    with unchecked, pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        GridSSM(2, 2, **options)


def test_sixteen_bit_values_are_accumulated_in_float32() -> None:
    ssm = GridSSM(4, 2, time_steps=(1e-3, 1e-3))
    x = torch.rand(1, 2, 300, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = ssm(x)
    assert inside.dtype == torch.float32
    assert_close(inside, ssm(x)[0], rtol=1e-6)
    halves, _ = ssm(x.bfloat16())
    assert halves.dtype == torch.bfloat16
    assert_close(halves, ssm(x.bfloat16().float())[0], rtol=1e-2)
