"""The CUDA kernels of linear_scan and elementwise_scan: in Triton's interpreter, and compiled for Hopper."""

import importlib
import math

import pytest
import torch

from recurra.kernels import elementwise_scan, explain, linear_scan

pytest.importorskip("triton")

CELLS = {
    "indrnn_relu": (1, 1),
    "indrnn_tanh": (1, 1),
    "indrnn_linear": (1, 1),
    "diag_gru": (3, 3),
    "diag_lstm_cifg": (3, 5),
}
NEWTON = ("indrnn_tanh", "diag_gru", "diag_lstm_cifg")
WIDTH, BATCH = 3, 3
# Relative errors of root mean squares: forward, and twice as much for gradients.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}
TOLERANCE |= {torch.complex64: 1e-6, torch.complex128: 1e-13}
linear = importlib.import_module("recurra.kernels.linear_scan.triton")
elementwise = importlib.import_module("recurra.kernels.elementwise_scan.triton")
gpu_scan = importlib.import_module("recurra.kernels.gpu_scan")
newton = importlib.import_module("recurra.kernels.elementwise_scan.triton_newton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=["lanes", "chunks"])
def form(request, monkeypatch):
    """One of the two forms whatever the sizes, with chunks of 8 steps so that few steps are several of them."""
    take(monkeypatch, request.param)
    return request.param


def take(monkeypatch, form):
    monkeypatch.setattr(linear, "chunked", lambda *sizes: form == "chunks")
    monkeypatch.setattr(elementwise, "chunked", lambda *sizes: form == "chunks")
    monkeypatch.setattr(linear, "CHUNK", 8)
    monkeypatch.setattr(elementwise, "WINDOW", dict.fromkeys(elementwise.WINDOW, 8))
    # The interpreter takes its time over each lane and each step loaded ahead, existing or not.
    monkeypatch.setattr(linear, "FORWARD_BYTES", 16)
    monkeypatch.setattr(linear, "BACKWARD_BYTES", 16)
    monkeypatch.setattr(elementwise, "LANES", {4: 4, 8: 4})
    monkeypatch.setattr(linear, "AHEAD", dict.fromkeys(linear.AHEAD, (4, 3, 3, 2)))
    monkeypatch.setattr(elementwise, "AHEAD", dict.fromkeys(elementwise.AHEAD, (4, 2)))
    monkeypatch.setattr(gpu_scan, "CARRY_TILE", 2)


def randn(*shape, dtype=torch.float64, scale=1.0):
    return (torch.randn(shape, dtype=dtype, device=DEVICE) * scale).requires_grad_()


def flags(steps, ragged, fresh):
    lengths = torch.tensor([steps, 0, max(steps - 2, 0)], device=DEVICE) if ragged else None
    return {"lengths": lengths, "reset": torch.rand(BATCH, steps, device=DEVICE) < 0.2 if fresh else None}


def drawn(cell, steps, dtype, *, scale=0.6):
    rows, weights = CELLS[cell]
    shape = (BATCH, steps, rows, WIDTH) if rows > 1 else (BATCH, steps, WIDTH)
    states = [randn(BATCH, WIDTH) for _ in range(2 if cell == "diag_lstm_cifg" else 1)]
    tensors = [randn(*shape), randn(*((weights, WIDTH) if weights > 1 else (WIDTH,)), scale=scale), *states]
    return [t.detach().to(dtype).requires_grad_() for t in tensors]


def error(got, want):
    got, want = got.detach().to(want.dtype), want.detach()
    assert got.isfinite().all()
    return float((got - want).abs().square().mean().sqrt() / want.abs().square().mean().sqrt().clamp_min(1e-30))


def compare(call, tensors, lengths=None, *, slack=1.0):
    """Outputs and all gradients of `call(backend, *tensors)` against the definition in float64, NaN in the padding."""
    kind = tensors[0].dtype
    exact = torch.complex128 if kind.is_complex else torch.float64
    doubles = [t.detach().to(exact).requires_grad_() for t in tensors]
    want = call("reference", *doubles)
    given = list(tensors)
    if lengths is not None:
        past = torch.arange(given[0].shape[1], device=DEVICE) >= lengths[:, None]
        given[0] = given[0].masked_fill(past.reshape(*past.shape, *[1] * (given[0].dim() - 2)), math.nan)
    got = call("triton", *given)
    tolerance = slack * TOLERANCE[kind]
    for mine, exactly in zip(got, want, strict=True):
        assert mine.numel() == 0 or error(mine, exactly) <= tolerance
    pulls = [torch.randn_like(t) for t in got]
    mine = torch.autograd.grad(got, tensors, pulls, allow_unused=True)
    exactly = torch.autograd.grad(want, doubles, [p.to(exact) for p in pulls], allow_unused=True)
    for found, expected in zip(mine, exactly, strict=True):
        if expected is not None and expected.numel():
            assert found.shape == expected.shape
            assert error(found, expected) <= 2 * tolerance


def scanned(cell, reverse=False, **more):
    def call(backend, wx, params, *state):
        y, last = elementwise_scan(cell, wx, params, state, reverse=reverse, backend=backend, **more)
        return y, *last

    return call


def solved(reverse=False, **more):
    return lambda backend, b, a, h0: linear_scan(a, b, h0, reverse=reverse, backend=backend, **more)


@pytest.mark.parametrize("cell", CELLS)
def test_cells_with_every_flag(cell, form):
    torch.manual_seed(0)
    # Newton's method leaves a residual of some roundings.
    slack = 3.0 if form == "chunks" and cell in NEWTON else 1.0
    sizes = (1, 3, 8, 17) if form == "chunks" or cell != "indrnn_relu" else (1, 2, 3, 17, 64, 65)
    for case, steps in enumerate(sizes):
        more = flags(steps, case % 2 == 1, case % 3 > 0)
        tensors = drawn(cell, steps, torch.float32)
        compare(scanned(cell, reverse=case in (1, 3, 5), **more), tensors, more["lengths"], slack=slack)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_dtypes_of_cells(cell, dtype, monkeypatch):
    torch.manual_seed(1)
    take(monkeypatch, "chunks" if dtype == torch.bfloat16 else "lanes")
    more = flags(17, True, True)
    tensors = drawn(cell, 17, dtype)
    compare(scanned(cell, **more), tensors, more["lengths"], slack=30.0 if dtype == torch.float64 else 1.5)
    with torch.no_grad():
        y, *last = scanned(cell, **more)("triton", *tensors)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert y.dtype == dtype
    assert all(state.dtype == wide for state in last)


# Of coefficients; 0 stands for the number of steps.
SHAPES = [(BATCH, 0, WIDTH), (0, WIDTH), (BATCH, 1, WIDTH), (WIDTH,)]


@pytest.mark.parametrize(
    ("shape", "kind"), [*((s, torch.float32) for s in SHAPES), *((s, torch.complex64) for s in SHAPES[::3])]
)
def test_linear_scan_with_coefficients_of_every_shape(shape, kind, form):
    torch.manual_seed(2)
    for case, steps in enumerate((2, 17, 33) if form == "lanes" else (17,)):
        more = flags(steps, case != 1, case < 2)
        a = randn(*(n or steps for n in shape), dtype=kind, scale=0.7)
        tensors = [randn(BATCH, steps, WIDTH, dtype=kind), a, randn(BATCH, WIDTH, dtype=kind)]
        tensors = [t.detach().requires_grad_() for t in tensors]
        compare(solved(reverse=case > 0 or form == "chunks", **more), tensors, more["lengths"], slack=2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex128])
def test_dtypes_of_linear_scan(dtype, form):
    torch.manual_seed(3)
    more = flags(17, True, True)
    kind = torch.complex128 if dtype.is_complex else torch.float64
    tensors = [randn(*n, dtype=kind, scale=0.7) for n in ((BATCH, 17, WIDTH), (BATCH, 17, WIDTH), (BATCH, WIDTH))]
    tensors = [t.detach().to(dtype).requires_grad_() for t in tensors]
    compare(solved(**more), tensors, more["lengths"], slack=30.0 if kind == dtype else 1.5)


def test_sizes_choose_the_form():
    for cell in elementwise.WINDOW:
        assert elementwise.chunked(cell, 256, 5000)
        assert not elementwise.chunked(cell, 1 << 20, 5000)
        assert not elementwise.chunked(cell, 256, 64)
    assert linear.chunked(256, 5000)
    assert not linear.chunked(256, 100)
    # A grid has at most 65,535 programs along its second axis.
    assert not linear.chunked(256, 128 * 65536)


def test_strided_and_expanded_inputs(form):
    torch.manual_seed(4)
    more = flags(17, True, True)
    for cell in ("indrnn_tanh",) if form == "chunks" else ("indrnn_relu", "diag_gru"):
        wx, params, h = drawn(cell, 17, torch.float64)
        compare(scanned(cell, **more), [wx.transpose(0, 1).contiguous().transpose(0, 1), params, h], slack=30.0)
        compare(scanned(cell, **more), [wx[:, :1].expand_as(wx), params, h.T.contiguous().T], slack=30.0)
        wide = wx.repeat_interleave(2, -1)[..., ::2]
        y, _ = elementwise_scan(cell, wide, params, (h,), backend="triton")
        want, _ = elementwise_scan(cell, wide, params, (h,), backend="reference")
        # The gradient of a sum is one number expanded.
        torch.testing.assert_close(torch.autograd.grad(y.sum(), wx)[0], torch.autograd.grad(want.sum(), wx)[0])
    b, a = randn(BATCH, 17, WIDTH, dtype=torch.complex128), randn(WIDTH, dtype=torch.complex128)
    h, last = linear_scan(a.conj(), b.conj().transpose(0, 1).contiguous().transpose(0, 1), backend="triton")
    want, end = linear_scan(a.conj(), b.conj(), backend="reference")
    torch.testing.assert_close((h, last), (want, end))


def test_nothing_is_left_unwritten(form, poisoned_memory, monkeypatch):
    torch.manual_seed(5)
    monkeypatch.setattr(linear, "CHUNK", 4)
    monkeypatch.setattr(elementwise, "WINDOW", dict.fromkeys(elementwise.WINDOW, 4))
    more = flags(9, True, True)
    with poisoned_memory():
        for cell in CELLS:
            compare(scanned(cell, **more), drawn(cell, 9, torch.float64), more["lengths"], slack=30.0)
        tensors = [randn(BATCH, 9, WIDTH), randn(BATCH, 9, WIDTH, scale=0.7), randn(BATCH, WIDTH)]
        compare(solved(**more), tensors, more["lengths"], slack=30.0)


def test_two_runs_agree_bit_for_bit(form):
    torch.manual_seed(6)
    more = flags(17, True, True)
    for cell in ("indrnn_relu",) if form == "chunks" else ("indrnn_relu", "diag_gru"):
        tensors = drawn(cell, 17, torch.float32)
        runs = []
        for _ in range(2):
            out = scanned(cell, **more)("triton", *tensors)
            runs.append((*out, *torch.autograd.grad([t.square().sum() for t in out], tensors)))
        assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_to_do(cell, form):
    for batch, steps in ((0, 4), (BATCH, 0)):
        tensors = [t.detach()[:batch].requires_grad_() for t in drawn(cell, steps, torch.float32)]
        tensors[1] = drawn(cell, steps, torch.float32)[1]
        y, *last = scanned(cell)("triton", *tensors)
        assert y.shape == (batch, steps, WIDTH)
        assert all(torch.equal(state, start) for state, start in zip(last, tensors[2:], strict=True))
        found = torch.autograd.grad([y.sum(), *(s.sum() for s in last)], tensors, allow_unused=True)
        assert found[1] is None or not found[1].any()
        assert all(bool((g == 1).all()) for g in found[2:])


def test_slopes_above_one_below_zero_and_zero(form):
    torch.manual_seed(7)
    wx, _, h = drawn("indrnn_relu", 33, torch.float64)
    params = torch.tensor([-0.9, 0.0, 1.05], dtype=torch.float64, requires_grad=True, device=DEVICE)
    for more in (flags(33, False, False), flags(33, True, True)):
        compare(scanned("indrnn_relu", **more), [wx, params, h], more["lengths"], slack=100.0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_unit_and_ends_with_its_episode(cell, form):
    torch.manual_seed(8)
    wx, params, *state = (t.detach() for t in drawn(cell, 10, torch.float64))
    wx[1, 5, ..., 2] = math.nan
    reset = torch.zeros(BATCH, 10, dtype=torch.bool, device=DEVICE)
    for again in (None, 8):
        if again:
            reset[1, again] = True
        kept = reset if again else None
        y, _ = elementwise_scan(cell, wx, params, tuple(state), reset=kept, backend="triton")
        want, _ = elementwise_scan(cell, wx, params, tuple(state), reset=kept, backend="reference")
        assert torch.equal(y.isnan(), want.isnan())
        torch.testing.assert_close(y, want, equal_nan=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("scale", [2.0, 4.0])
@pytest.mark.parametrize("cell", NEWTON)
def test_newton_never_returns_what_did_not_converge(cell, scale, monkeypatch):
    torch.manual_seed(9)
    take(monkeypatch, "chunks")
    monkeypatch.setattr(elementwise, "WINDOW", dict.fromkeys(elementwise.WINDOW, 32))
    monkeypatch.setattr(elementwise, "LIMIT", 4)
    more = flags(40, True, False)
    wx, params, *state = drawn(cell, 40, torch.float64, scale=scale)
    call = scanned(cell, **more)
    for mine, want in zip(call("triton", wx, params, *state), call("reference", wx, params, *state), strict=True):
        torch.testing.assert_close(mine, want, atol=1e-8, rtol=1e-8)


@pytest.mark.skipif(DEVICE != "cpu", reason="the interpreter alone lets itself be watched")
@pytest.mark.parametrize("cell", NEWTON)
def test_newton_takes_to_the_loop_only_where_it_must(cell, monkeypatch):
    torch.manual_seed(10)
    windows, loop = [], newton._loop
    monkeypatch.setattr(newton, "_loop", lambda *given: windows.append(1) or loop(*given))
    tensors = drawn(cell, 20, torch.float32)
    call = scanned(cell)
    take(monkeypatch, "lanes")
    want = call("triton", *tensors)
    take(monkeypatch, "chunks")
    for mine, other in zip(call("triton", *tensors), want, strict=True):
        torch.testing.assert_close(mine, other, atol=3e-6, rtol=0)
    assert not windows
    monkeypatch.setattr(elementwise, "LIMIT", 0)
    assert all(torch.equal(a, b) for a, b in zip(call("triton", *tensors), want, strict=True))
    # Three windows of 8 steps, three programs of 4 lanes.
    assert len(windows) == 9


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("cell", NEWTON)
def test_a_lane_does_not_depend_on_its_companions(cell, monkeypatch):
    torch.manual_seed(11)
    take(monkeypatch, "chunks")
    wx, params, *state = (t.detach() for t in drawn(cell, 20, torch.float32))
    # The last unit is one that needs more corrections, or the loop.
    params[..., -1] = 6.0
    together = scanned(cell)("triton", wx, params, *state)
    alone = scanned(cell)("triton", wx[..., :2], params[..., :2], *(h[:, :2] for h in state))
    assert all(torch.equal(a[..., :2], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("row", [0, 1])
def test_offsets_past_two_to_the_31(row, form):
    far = 2**31 + 3
    memory = torch.empty(far + 64, dtype=torch.float16, device=DEVICE)
    wx = memory.as_strided((2, 3, 5), (far, 5, 1)) if row else memory.as_strided((2, 3, 5), (20, far // 2, 1))
    wx.copy_(torch.randn(2, 3, 5))
    params = torch.rand(5, device=DEVICE)
    for cell in ("indrnn_relu", "indrnn_tanh"):
        y, _ = elementwise_scan(cell, wx, params, backend="triton")
        torch.testing.assert_close(y, elementwise_scan(cell, wx.clone(), params, backend="reference")[0])
    h, _ = linear_scan(params, wx, backend="triton")
    torch.testing.assert_close(h, linear_scan(params, wx.clone(), backend="reference")[0])


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU it is")
def test_the_interpreter_is_never_chosen():
    wx, params = torch.randn(2, 4, 5), torch.rand(5)
    assert explain(elementwise_scan, "indrnn_relu", wx, params).backend != "triton"
    assert explain(linear_scan, params, wx).backend != "triton"


SPACE = {"tl.float32": ("*fp32", 4), "tl.float64": ("*fp64", 8)}


def case(module, function, bound, *, element="fp32", wide="tl.float32", num_warps=4, **constants):
    """A kernel as it is launched with every flag on, and the registers it may use."""
    kernel = getattr(importlib.import_module(f"recurra.kernels.{module}"), function)
    carried = ("maps", "before", "h_last", "c_last", "c_all", "last", "d_last", "dh_last", "dc_last", "dh0", "dc0")
    every = {
        "REVERSE": True,
        "RAGGED": True,
        "RESET": True,
        "SAVING": True,
        "WANTED": True,
        "SETS": True,
        "AGAIN": False,
    }
    every |= {"WIDE": wide, "LIMIT": 12, "TOLERANCE": 1e-6} | constants
    constants = {name: value for name, value in every.items() if name in kernel.arg_names}
    signature = {}
    for name in kernel.arg_names:
        if name in ("steps", "width", "total", "chunks"):
            signature[name] = "i32"
        elif name.endswith(("_row", "_step", "_gate", "_unit")):
            signature[name] = "i64"
        else:
            kind = SPACE[wide][0] if name in (*carried, "start", "dparams") else f"*{element}"
            signature[name] = {"lengths": "*i64", "reset": "*u8"}.get(name, kind)
    signature = {name: kind for name, kind in signature.items() if name not in constants}
    given = {"module": f"recurra.kernels.{module}", "function": function, "signature": signature}
    return given | {"constants": constants, "num_warps": num_warps}, bound


def hopper_cases():
    """The largest forms of every kernel, with the sizes of their launches."""
    lanes, chunks = "linear_scan.triton", "linear_scan.triton_chunks"
    cells, steps, window = (f"elementwise_scan.triton_{name}" for name in ("lanes", "chunks", "newton"))
    ahead, behind = linear.AHEAD, elementwise.AHEAD
    block = {"BLOCK": 128}
    yield case(lanes, "forward_lanes", 128, PARTS=1, FIXED=False, TILE=ahead[4][1], **block)
    yield case(lanes, "forward_lanes", 128, PARTS=1, FIXED=True, TILE=ahead[4][0], RESET=False, **block)
    yield case(lanes, "backward_lanes", 128, element="bf16", PARTS=1, FIXED=False, TILE=ahead[4][3], **block)
    yield case(lanes, "backward_lanes", 128, PARTS=2, FIXED=False, TILE=ahead[8][3], **block)
    chunk = {"APPLY": True, "CHUNK": linear.CHUNK}
    yield case(chunks, "forward_chunk", 168, PARTS=1, BLOCK=linear.FORWARD_BYTES // 4, **chunk)
    yield case(chunks, "backward_chunk", 208, PARTS=1, FIXED=False, BLOCK=linear.BACKWARD_BYTES // 4, **chunk)
    yield case(chunks, "backward_chunk", 168, PARTS=2, FIXED=True, BLOCK=linear.BACKWARD_BYTES // 8, **chunk)
    for cell, bound in ((0, 168), (2, 128), (3, 128)):
        forward, backward = behind[list(elementwise.CELLS)[cell]]
        yield case(cells, "forward_lanes", bound, CELL=cell, TILE=forward, **block)
        yield case(cells, "backward_lanes", 128, CELL=cell, TILE=backward, **block)
    yield case(steps, "relu_chunk", 128, APPLY=True, CHUNK=elementwise.WINDOW["indrnn_relu"], BLOCK=8)
    yield case(steps, "backward_chunk", 168, CELL=0, APPLY=True, CHUNK=elementwise.WINDOW["indrnn_relu"], BLOCK=8)
    yield case(window, "newton_lanes", 168, CELL=1, CHUNK=elementwise.WINDOW["indrnn_tanh"], BLOCK=8)
    tanh = {"element": "bf16", "CELL": 1, "AGAIN": True}
    yield case(steps, "backward_chunk", 168, APPLY=True, CHUNK=128, BLOCK=8, **tanh)
    yield case(cells, "backward_lanes", 128, TILE=behind["indrnn_tanh"][1], **tanh, **block)
    for cell, name in ((2, "diag_gru"), (3, "diag_lstm_cifg")):
        size = {"CELL": cell, "CHUNK": elementwise.WINDOW[name]}
        warps = elementwise.WARPS * (2 if cell == 3 else 1)
        yield case(steps, "backward_chunk", 168, APPLY=True, BLOCK=8, **size)
        # A window of diag_gru holds its inputs, states and slopes: two programs a processor.
        yield case(window, "newton_lanes", 208, BLOCK=8, num_warps=warps, **size)
        yield case(window, "newton_lanes", 208, element="fp64", wide="tl.float64", BLOCK=4, num_warps=warps, **size)
    yield case("gpu_scan", "carry_kernel", 128, KIND=3, NUMBERS=6, TILE=8, BLOCK=32, num_warps=1)


def test_kernels_fit_hopper_without_spills(ahead_of_time):
    cases, bounds = zip(*hopper_cases(), strict=True)
    for given, bound, found in zip(cases, bounds, ahead_of_time(cases), strict=True):
        name = given["module"], given["function"], given["constants"]
        assert found["stack"] == found["local"] == 0, (name, found)
        assert found["registers"] <= bound, (name, found)
        assert found["shared"] <= 227 * 1024, (name, found)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", CELLS)
def test_large_sizes_on_a_gpu(cell):
    torch.manual_seed(12)
    for batch, steps, width in ((64, 257, 520), (2, 5000, 100)):
        rows, weights = CELLS[cell]
        wx = torch.randn(batch, steps, *([rows] if rows > 1 else []), width, device="cuda", requires_grad=True)
        shape = (weights, width) if weights > 1 else (width,)
        params = (torch.rand(shape, device="cuda") * 0.9).requires_grad_()
        y, _ = elementwise_scan(cell, wx, params, backend="triton")
        wide = [t.detach().double().requires_grad_() for t in (wx, params)]
        want, _ = elementwise_scan(cell, *wide, backend="parallel")
        assert error(y, want) <= 4e-6
        pull = torch.randn_like(y)
        exact = torch.autograd.grad(want, wide, pull.double())
        for found, expected in zip(torch.autograd.grad(y, (wx, params), pull), exact, strict=True):
            assert error(found, expected) <= 1e-5
