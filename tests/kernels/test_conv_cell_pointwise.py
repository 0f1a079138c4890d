"""The fused gate arithmetic: every backend against the definition."""

import pytest
import torch
from torch import Tensor

from recurra.kernels import conv_cell_pointwise, conv_cell_update
from recurra.kernels.conv_cell_pointwise import reference

CELLS = ["gru", "mgu", "indrnn", "gru_before_reset", "gru_before_update"]
# Float32: the rational tanh is 3e-7 off, a few roundings follow. 16 bit: the unit in the last place of values up to 8.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 3.2e-2, torch.float16: 4e-3}


def arguments(
    cell: str, *, batch: int = 2, channels: int = 5, spatial=(4, 7), dtype=torch.float64, hidden: bool = True
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return (1.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    gi = draw(batch, reference.GATES[cell] * channels, *spatial)
    gh = None if cell == "indrnn" or not hidden else draw(*gi.shape)
    u = draw(1, channels, *[1] * len(spatial)) if cell == "indrnn" else None
    return gi, gh, draw(batch, channels, *spatial), u


def gradients(y: Tensor, leaves: list[Tensor], d: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, leaves, d))


def compare(backend: str, cell: str, tensors, dtype: torch.dtype) -> None:
    gi, gh, h, u = tensors
    leaves = [t.requires_grad_() for t in tensors if t is not None]
    exact = reference.new_state(cell, *(None if t is None else t.detach().double() for t in tensors))
    y = conv_cell_pointwise(cell, gi, gh, h, u=u, backend=backend)
    assert y.dtype == h.dtype
    assert y.shape == h.shape
    torch.testing.assert_close(y.double(), exact, atol=TOLERANCE[dtype], rtol=0)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    spread = iter(wide)
    again = [None if t is None else next(spread) for t in tensors]
    d = torch.randn_like(h)
    expected = gradients(reference.new_state(cell, *again), wide, d.double())
    for got, want, leaf in zip(gradients(y, leaves, d), expected, leaves, strict=True):
        assert got.dtype == leaf.dtype
        torch.testing.assert_close(got.double(), want, atol=20 * TOLERANCE[dtype], rtol=20 * TOLERANCE[dtype])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spatial", [(6,), (4, 7), (3, 2, 5)])
def test_agrees_with_the_definition_in_float64(backend, cell, dtype, spatial):
    compare(backend, cell, arguments(cell, spatial=spatial, dtype=dtype), dtype)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_is_computed_in_float32(cell, dtype):
    gi, gh, h, u = arguments(cell, dtype=dtype)
    compare("reference", cell, (gi, gh, h, u), dtype)
    wide = reference.new_state(cell, *(None if t is None else t.detach().float() for t in (gi, gh, h, u)))
    assert torch.equal(conv_cell_pointwise(cell, gi, gh, h, u=u), wide.to(dtype))
    with pytest.raises(ValueError, match=r"numba serves float32 or float64 throughout"):
        conv_cell_pointwise(cell, gi, gh, h, u=u, backend="numba")


@pytest.mark.parametrize("cell", ["gru_before_reset", "gru_before_update"])
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_hidden_part_may_be_absent(backend, cell):
    compare(backend, cell, arguments(cell, hidden=False), torch.float64)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded", "mixed"])
def test_any_memory_layout(cell, layout):
    tensors = arguments(cell, dtype=torch.float32)

    def laid_out(t: Tensor | None, position: int) -> Tensor | None:
        if t is None or t.dim() != 4 or t.shape[0] == 1:
            return t
        if layout == "channels_last" or (layout == "mixed" and position == 0):
            return t.contiguous(memory_format=torch.channels_last)
        if layout == "strided":
            return torch.stack([t, torch.full_like(t, torch.nan)], dim=-1)[..., 0]
        return t[:1].expand_as(t) if layout == "expanded" else t

    changed = tuple(laid_out(t, i) for i, t in enumerate(tensors))
    compare("numba", cell, changed, torch.float32)
    h = changed[2]
    y = conv_cell_pointwise(cell, changed[0], changed[1], h, u=changed[3], backend="numba")
    if layout == "channels_last":
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("empty", ["batch", "image"])
def test_nothing_in_nothing_out(backend, cell, empty):
    sizes = {"batch": 0} if empty == "batch" else {"spatial": (0, 3)}
    gi, gh, h, u = (None if t is None else t.requires_grad_() for t in arguments(cell, **sizes))
    y = conv_cell_pointwise(cell, gi, gh, h, u=u, backend=backend)
    assert y.shape == h.shape
    y.sum().backward()
    assert gi.grad.shape == gi.shape


@pytest.mark.parametrize("cell", CELLS)
def test_every_output_value_is_written(cell, monkeypatch):
    def poisoned(like: Tensor, **options) -> Tensor:
        return torch.full_like(like, torch.nan, **options)

    tensors = arguments(cell, channels=67, spatial=(33,), dtype=torch.float32)
    leaves = [t.requires_grad_() for t in tensors if t is not None]
    monkeypatch.setattr(torch, "empty_like", poisoned)
    y = conv_cell_pointwise(cell, tensors[0], tensors[1], tensors[2], u=tensors[3], backend="numba")
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(y, leaves, torch.ones_like(y)))


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_where_it_is(cell):
    gi, gh, h, u = arguments(cell, dtype=torch.float32)
    gi[1, 2, 3, 4] = torch.nan
    y = conv_cell_pointwise(cell, gi, gh, h, u=u, backend="numba")
    assert torch.equal(y.isnan().nonzero(), torch.tensor([[1, 2, 3, 4]]))


def test_extreme_gates_saturate_without_overflow():
    values = torch.tensor([-torch.inf, -1e30, -90.0, -9.0, 0.0, 9.0, 90.0, 1e30, torch.inf])
    h, gi = torch.zeros(1, 1, 9), torch.stack([values, values])[None]
    for backend in ("reference", "numba"):
        y = conv_cell_pointwise("gru_before_update", gi, None, h, backend=backend)
        expected = torch.sigmoid(values.double()) * torch.tanh(values.double())
        torch.testing.assert_close(y[0, 0].double(), expected, atol=5e-7, rtol=0)
        assert y.abs().max() <= 1


def test_rational_tanh_is_within_eight_units_in_the_last_place():
    x = torch.cat([torch.linspace(-10, 10, 200_001), torch.logspace(-30, 0, 20_000)])
    h, ones = torch.zeros(1, 1, len(x)), torch.full((1, 1, len(x)), torch.inf)
    y = conv_cell_pointwise("gru_before_update", torch.cat([ones, x[None, None]], 1), None, h, backend="numba")[0, 0]
    exact = torch.tanh(x.double())
    unit = torch.nextafter(exact.abs().float(), torch.tensor(torch.inf)).double() - exact.abs().float().double()
    assert ((y.double() - exact).abs() / unit.clamp_min(1e-45)).max() <= 8
    assert (y.double() - exact).abs().max() < 4e-7


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("cell", CELLS)
def test_two_runs_are_bit_equal(cell, backend):
    tensors = arguments(cell, dtype=torch.float32, spatial=(17, 19))
    leaves = [t.requires_grad_() for t in tensors if t is not None]
    runs = []
    for _ in range(2):
        y = conv_cell_pointwise(cell, tensors[0], tensors[1], tensors[2], u=tensors[3], backend=backend)
        runs.append([y, *gradients(y, leaves, torch.ones_like(y))])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_several_threads_give_the_numbers_of_one():
    gi, gh, h, _ = arguments("gru", channels=64, spatial=(64, 64), dtype=torch.float32)
    one = conv_cell_pointwise("gru", gi, gh, h, backend="numba")
    torch.set_num_threads(2)
    try:
        assert torch.equal(conv_cell_pointwise("gru", gi, gh, h, backend="numba"), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_gradients_and_second_gradients(cell, backend):
    tensors = arguments(cell, channels=2, spatial=(2, 3))
    present = [t is not None for t in tensors]
    leaves = [t.requires_grad_() for t in tensors if t is not None]

    def op(*values: Tensor) -> Tensor:
        rest = iter(values)
        gi, gh, h, u = (next(rest) if there else None for there in present)
        return conv_cell_pointwise(cell, gi, gh, h, u=u, backend=backend)

    assert torch.autograd.gradcheck(op, leaves)
    assert torch.autograd.gradgradcheck(op, leaves)


@pytest.mark.parametrize("backend", [None, "numba", "reference"])
def test_compiles_into_one_graph(backend):
    gi, gh, h, _ = arguments("gru", dtype=torch.float32)
    leaves = [t.requires_grad_() for t in (gi, gh, h)]

    def step(gi: Tensor, gh: Tensor, h: Tensor) -> Tensor:
        return 2 * conv_cell_pointwise("gru", gi, gh, h, backend=backend)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    y, expected = compiled(*leaves), step(*leaves)
    torch.testing.assert_close(y, expected)
    d = torch.randn_like(h)
    for got, want in zip(gradients(y, leaves, d), gradients(expected, leaves, d), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_exports_with_dynamic_sizes(backend):
    class Step(torch.nn.Module):
        def forward(self, gi: Tensor, gh: Tensor, h: Tensor) -> Tensor:
            return conv_cell_pointwise("gru", gi, gh, h, backend=backend)

    batch, height = torch.export.Dim("batch"), torch.export.Dim("height")
    gi, gh, h, _ = arguments("gru", dtype=torch.float32)
    program = torch.export.export(Step(), (gi, gh, h), dynamic_shapes=[{0: batch, 2: height}] * 3)
    gi, gh, h, _ = arguments("gru", batch=3, spatial=(9, 7), dtype=torch.float32)
    torch.testing.assert_close(program.module()(gi, gh, h), conv_cell_pointwise("gru", gi, gh, h), atol=2e-6, rtol=0)


@pytest.mark.parametrize("backend", [None, "reference", "numba"])
@pytest.mark.parametrize("cell", CELLS)
def test_update_in_place_is_the_operation(cell, backend):
    gi, gh, h, u = arguments(cell, batch=1, channels=70, spatial=(301,), dtype=torch.float32)
    gates = reference.GATES[cell]
    bias = torch.randn(gates * 70)
    expected = conv_cell_pointwise(cell, gi + bias[None, :, None], gh, h, u=u, backend="reference")

    def matrix(t: Tensor | None, *, padded: bool = False) -> Tensor | None:
        if t is None:
            return None
        rows = t[0].t()
        # One block of channels before the cell's own must not matter.
        return torch.cat([torch.full((301, 70), torch.nan), rows], 1) if padded else rows.contiguous()

    for block in (0, 1):
        state = matrix(h)
        scale = None if u is None else u.flatten()
        parts = matrix(gi, padded=bool(block)), matrix(gh, padded=bool(block))
        out = conv_cell_update(cell, *parts, state, u=scale, bias=bias, block=block, out=state, backend=backend)
        assert out is state
        torch.testing.assert_close(state.t()[None], expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "lstm"}, "cell must be one of gru, mgu, indrnn, gru_before_reset, gru_before_update; got 'lstm'"),
        ({"gi": torch.zeros(2, 10, 4, 7)}, r"gi has shape (2, 10, 4, 7); expected (2, 15, 4, 7): 3 gate(s)"),
        ({"gh": None}, "cell gru needs gh, the output of the hidden convolution; got None"),
        ({"u": torch.ones(5)}, "u belongs to cell indrnn alone; got u with cell gru"),
        ({"cell": "indrnn"}, "gi has shape (2, 15, 4, 7); expected (2, 5, 4, 7)"),
        ({"gi": torch.zeros(2, 15, 4, 7, dtype=torch.int32)}, "gi is torch.int32 on cpu; expected a real floating"),
        ({"gi": torch.zeros(2, 15, 4, 7, device="meta")}, "gi is torch.float32 on meta; expected"),
        ({"h": torch.zeros(5)}, "h has shape (5,); expected (batch, channel, *spatial)"),
        ({"backend": "cuda"}, "must be one of reference, numba, triton; got 'cuda'"),
    ],
)
def test_bad_input_is_named_in_one_line(change, message):
    gi, gh, h, u = arguments("gru", dtype=torch.float32)
    given = {"cell": "gru", "gi": gi, "gh": gh, "h": h, "u": u, "backend": None} | change
    with pytest.raises(ValueError, match=r".") as caught:
        conv_cell_pointwise(given["cell"], given["gi"], given["gh"], given["h"], u=given["u"], backend=given["backend"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_indrnn_without_scales_is_refused():
    h = torch.zeros(2, 5, 4)
    with pytest.raises(ValueError, match=r"takes gh=None and u with one value a channel \(5\); got u=None"):
        conv_cell_pointwise("indrnn", h, None, h)
