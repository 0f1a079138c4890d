"""Chimera's two-dimensional recurrence against golden pairs: its definition, and its relatives by their authors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recurra.core.testing import Golden, assert_close, golden, golden_files
from recurra.forecast.models.chimera_scan import (
    Coefficients,
    closed_loop,
    companion,
    convolution,
    grid_scan,
    impulse_response,
    read,
)
from recurra.forecast.models.chimera_ssm import Discrete, discretise

pytestmark = pytest.mark.parity

DTYPES = {"float64": torch.float64, "float32": torch.float32}
ORDERS = ("auto", "row", "column", "wavefront", "loop")
KNOWN = {"B", "V", "T", "D", "N", "kind", "discretisation", "seed", "loop", "zero", "oneway"}


def of(reference: str) -> Any:
    """Pairs made by code of this reference, whatever their names are."""
    return marked(lambda pair: reference in pair.reference)


def marked(wanted: Callable[[Golden], bool]) -> Any:
    paths = [path for path in golden_files("forecast-long") if wanted(golden(path))]
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


class Grid:
    """A pair of the definition in our layout: states before channels."""

    def __init__(self, pair: Golden, dtype: torch.dtype) -> None:
        unknown = set(pair.config) - KNOWN
        assert not unknown, f"config has unknown entries {sorted(unknown)}"
        given = {name: value.to(dtype) for name, value in pair.inputs.items()}
        self.x, self.states = given.pop("x"), given["A1"].shape[-1]
        self.given = {name: value.transpose(-1, -2) for name, value in given.items()}
        a, b, steps = (self.all(*names) for names in (("A1", "A2", "A3", "A4"), ("B1", "B2"), ("delta1", "delta2")))
        self.discrete: Discrete = discretise(a, b, steps, pair.config["discretisation"])  # type: ignore[arg-type]
        absent = ["a2", "a3"] if pair.config.get("zero") else ["a3"] if pair.config.get("oneway") else []
        nothing = {name: torch.zeros_like(getattr(self.discrete, name)) for name in absent}
        self.discrete = self.discrete._replace(**nothing)

    def all(self, *names: str) -> tuple[Tensor, ...]:
        return tuple(self.given[name] for name in names)

    def theirs(self, h: Tensor) -> Tensor:
        """Our states (..., state * channel) as (..., channel, state)."""
        return h.unflatten(-1, (self.states, -1)).transpose(-1, -2)

    def driven(self, x: Tensor) -> list[Tensor]:
        return [(b * x[..., None, :]).flatten(-2) for b in (self.discrete.b1, self.discrete.b2)]

    def run(self, x: Tensor, order: Any = "auto", state: Any = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h1, h2 = grid_scan(self.discrete.flat(), *self.driven(x), state, order=order)
        return read(h1, h2, *self.all("C1", "C2")), (h1[:, :, -1], h2[:, :, -1])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("order", [*ORDERS, "fft"])
@marked(lambda pair: "discretisation" in pair.config)
def test_grid(path: Path, order: str, dtype: torch.dtype) -> None:
    pair = golden(path)
    grid = Grid(pair, dtype)
    outputs = {f"{n}_bar": v.transpose(-1, -2) for n, v in grid.discrete._asdict().items()}
    if order == "fft":
        if pair.config["kind"] != "lti":
            pytest.skip("coefficients that depend on the input have no kernel")
        a, d = grid.discrete.flat(), grid.discrete
        kernel = impulse_response(a, d.b1, d.b2, *grid.all("C1", "C2"), *grid.x.shape[1:3])
        outputs |= {"kernel": kernel, "y": convolution(grid.x, kernel)}
    else:
        y, (h1, h2) = grid.run(grid.x, order)
        outputs |= {"y": y, "h1_last": grid.theirs(h1), "h2_last": grid.theirs(h2)}
        outputs["y_bidirectional_same_params"] = y + grid.run(grid.x.flip(1), order)[0].flip(1)
        outputs |= rolled_out(grid, pair.config, order) if "K1" in grid.given else {}
    found = 0
    for name in outputs.keys() & pair.outputs.keys():
        assert_close(outputs[name], pair.outputs[name], pair.tolerance_for(dtype), name=name)
        found += 1
    missing = pair.outputs.keys() - outputs.keys()
    assert found
    assert missing <= ({"h1_last", "h2_last"} if order == "fft" else {"kernel"}) | of_fft(order), missing


def of_fft(order: str) -> set[str]:
    """What the FFT does not make."""
    return {"y_bidirectional_same_params", "closed_loop_x", "closed_loop_y"} if order == "fft" else set()


def rolled_out(grid: Grid, config: dict[str, Any], order: str) -> dict[str, Tensor]:
    _, last = grid.run(grid.x, order)
    x, y, _ = closed_loop(
        lambda state: read(*state, *grid.all("K1", "K2")),
        lambda x, state: grid.run(x, order, state),
        last,
        config["loop"],
    )
    return {"closed_loop_x": x, "closed_loop_y": y}


@of("selective_scan_ref")
def test_selective_scan_in_one_dimension(path: Path) -> None:
    pair = golden(path)
    given = pair.inputs
    unknown = set(pair.config) - {"B", "D", "N", "L", "seed", "delta_softplus"}
    assert not unknown, f"config has unknown entries {sorted(unknown)}"
    delta = given["delta"] + (given["delta_bias"][:, None] if "delta_bias" in given else 0)
    delta = F.softplus(delta) if pair.config.get("delta_softplus") else delta
    x, step = (t.transpose(1, 2)[:, None] for t in (given["u"], delta))  # one variate
    b, c = (given[name].transpose(1, 2)[:, None, ..., None] for name in ("B", "C"))
    own = given["A"].T
    nothing = torch.zeros_like(own)
    steps = step[..., None, :], torch.ones(1, own.shape[1])
    d = discretise((own, nothing, nothing, own), (b, torch.zeros_like(b)), steps, "euler_b")
    driven = [(gain * x[..., None, :]).flatten(-2) for gain in (d.b1, d.b2)]
    h1, h2 = grid_scan(d.flat(), *driven)
    y = read(h1, h2, c, torch.zeros_like(c))
    gated = y + given["D"] * x if "D" in given else y
    gated = gated * F.silu(given["z"].transpose(1, 2)[:, None]) if "z" in given else gated
    outputs = {"y": gated, "y_no_skip_no_gate": y}
    outputs = {name: value[:, 0].transpose(1, 2) for name, value in outputs.items()}
    outputs["last_state"] = h1[:, 0, -1].unflatten(-1, own.shape).transpose(1, 2)
    for name, expected in pair.outputs.items():
        assert_close(outputs[name], expected, pair.tolerance, name=name)


def in_one_norm(x: Tensor, order: int) -> Tensor:
    return x / x.norm(order, dim=-1, keepdim=True) if order else x


@of("ClosedLoopCompanionSSM")
def test_closed_loop_of_a_companion_matrix(path: Path) -> None:
    pair = golden(path)
    weights, order = pair.state, pair.config["norm_order"]
    a, b, c, k = (in_one_norm(weights[name], order).T for name in "abck")  # (state, channel)
    u = pair.inputs["u"][:, None]  # one variate
    nothing = torch.zeros(a.numel())

    def scan(x: Tensor, gain: Tensor, state: Any = None) -> tuple[Tensor, Tensor]:
        driven = (gain * x[..., None, :]).flatten(-2)
        return companion(a, torch.ones(()), Coefficients(*[nothing] * 4), driven, torch.zeros_like(driven), state)

    def look(h: Tensor, gain: Tensor) -> Tensor:
        return read(h, torch.zeros_like(h), gain, torch.zeros_like(gain))

    def advance(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        # Theirs reads the state before the step, and K as it is, where what is fed back is normalised.
        before = torch.cat([look(state[0], gain)[:, :, None] for gain in (c, weights["k"].T)], -1)
        h1, h2 = scan(x, b, state)
        return before, (h1[:, :, 0], h2[:, :, 0])

    # The state of the lags is made with B as it is, too.
    lags = tuple(h[:, :, -1] for h in scan(u, weights["b"].T))
    _, y, _ = closed_loop(lambda state: look(state[0], k), advance, lags, pair.config["horizon"])
    outputs = dict(zip(("closed_loop_y", "closed_loop_u"), y[:, 0].chunk(2, -1), strict=True))
    h1, _ = scan(u, b)
    outputs |= {"open_loop_y": look(h1, c)[:, 0], "open_loop_u": look(h1, k)[:, 0]}
    for name, expected in pair.outputs.items():
        assert_close(outputs[name], expected, pair.tolerance, name=name)


@of("TwoDimensionalSSM")
def test_layer_for_images(path: Path) -> None:
    pair = golden(path)
    config, given = pair.config, pair.state
    if config["complex_ssm"] or config["normalize"]:
        pytest.skip("Chimera's states are real, and its kernels are not normalised")
    size, channels, directions = round(config["L"] ** 0.5), config["embed_dim"], config["directions_amount"]
    repeat = channels * directions // given["A.A_1"].shape[0]
    weights = {name: torch.sigmoid(given[name]) for name in ("A.A_1", "A.A_2", "A.A_3", "A.A_4", "B_1", "B_2")}
    weights = {name: value.repeat(repeat, 1).T for name, value in weights.items()}
    c1, c2 = (given[name].T * config["ndim"] ** -0.5 for name in ("C_1", "C_2"))
    a = Coefficients(*(weights[f"A.A_{i}"].flatten() for i in (1, 2, 3, 4)))
    kernel = baron_kernel(a, weights["B_1"], weights["B_2"], c1, c2, size)
    x = pair.inputs["x"].permute(0, 2, 3, 1)
    # Two directions: from the first corner, and from the last.
    turns = {1: [[]], 2: [[], [1, 2]], 4: [[], [2], [1], [1, 2]]}[directions]
    y = sum(
        convolution(x.flip(turn), k).flip(turn) for turn, k in zip(turns, kernel.chunk(directions, -1), strict=True)
    )
    y = y + x * given["omega"] if config["use_residual_inside_ssm"] else y
    outputs = {"kernel": kernel, "y": y.permute(0, 3, 1, 2)}
    for name, expected in pair.outputs.items():
        assert_close(outputs[name], expected, pair.tolerance, name=name)


def baron_kernel(a: Coefficients, b1: Tensor, b2: Tensor, c1: Tensor, c2: Tensor, size: int) -> Tensor:
    """Impulse response where a sum of two terms is halved, unless one of them is 0 so near the impulse."""
    v, t = torch.arange(size)[:, None, None], torch.arange(size)[None, :, None]
    both1 = ((v == 0) & (t == 1)) | ((v >= 1) & (t >= 2))
    both2 = ((t == 0) & (v == 1)) | ((t >= 1) & (v >= 2))
    half1, half2 = (torch.where(both, 0.5, 1.0) for both in (both1, both2))
    halved = Coefficients(a.a1 * half1, a.a2 * half1, a.a3 * half2, a.a4 * half2)
    kernel = impulse_response(halved, b1, b2, c1, c2, size, size)
    kernel = kernel * torch.where(v == 0, 2.0, 1.0) * torch.where(t == 0, 2.0, 1.0)
    return kernel * torch.where((v == 0) & (t == 0), 0.25, 1.0)
