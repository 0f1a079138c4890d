"""The CUDA kernels of gated_scan: in Triton's interpreter, compiled for Hopper, and on a GPU."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import product

import pytest
import torch

from recurra.kernels import explain, gated_scan
from recurra.kernels.gated_scan import FORMS, OP

pytest.importorskip("triton")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels run on the GPU here")
anywhere = pytest.mark.gpu if torch.cuda.is_available() else interpreted

# Root of the mean squared error over that of the values, against float64 and the same inputs, after a dozen steps. With
# 16 bit the factors of every product are rounded, 2^-9 each in bfloat16.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
AFTER = [cell for cell in FORMS if cell not in ("gru_before", "mgu")]


def draw(cell, dtype, *, batch=3, steps=6, heads=2, width=20, projected=None, device="cpu"):
    """Leaves of a call: wx, r, bias, projection or None, states."""
    torch.manual_seed(0)
    form, old = FORMS[cell], projected or width
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def randn(*shape, scale=1.0, kind=dtype):
        return (scale * torch.randn(shape, dtype=torch.float64)).to(device, kind).requires_grad_()

    wx, r = randn(batch, steps, form.gates, heads, width), randn(form.gates, heads, width, old, scale=width**-0.5)
    states = [randn(batch, heads, old, kind=wide)]
    states += [randn(batch, heads, width, kind=wide) for _ in form.states[1:]]
    if cell == "slstm":
        # One half begins in the middle of a sequence, the other afresh.
        states[2].data[:] = states[2].data.abs() + 1
        for state in states[1:]:
            state.data[..., ::2] = 0
    projection = None if projected is None else randn(heads, projected, width, scale=width**-0.5)
    return wx, r, randn(form.biases, heads, width), projection, states


def difference(got, want):
    """How far apart, relative to what is wanted."""
    return float((got.double() - want).norm() / want.norm().clamp_min(1e-300))


def compare(cell, dtype, tensors, *, lengths=None, reset=None, reverse=False, save="gates", factor=2.0):
    """Runs the kernels and, on the same numbers in float64, the definition; outputs and all gradients agree."""
    wx, r, bias, projection, states = tensors
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (wx, r, bias, projection, *states)]
    if lengths is not None:
        with torch.no_grad():
            wx[torch.arange(wx.shape[1], device=wx.device) >= lengths[:, None]] = float("nan")
    flags = {"lengths": lengths, "reset": reset, "reverse": reverse, "save": save}
    y, last = gated_scan(cell, wx, r, bias, states, projection=projection, backend="triton", **flags)
    want, want_last = gated_scan(
        cell, *exact[:3], exact[4:], projection=exact[3], backend="reference",
        **(flags | {"lengths": lengths}),
    )  # fmt: skip
    for name, a, b in zip(("y", *FORMS[cell].states), (y, *last), (want, *want_last), strict=True):
        assert difference(a.detach(), b.detach()) < TOLERANCE[dtype], name
    weights = [torch.randn_like(t.detach()) for t in (y, *last)]
    leaves = [
        (n, t, e) for n, t, e in zip(NAMES, (wx, r, bias, projection, *states), exact, strict=False) if e is not None
    ]
    found = torch.autograd.grad((y, *last), [t for _, t, _ in leaves], weights)
    needed = torch.autograd.grad((want, *want_last), [e for _, _, e in leaves], [w.double() for w in weights])
    for (name, _, _), a, b in zip(leaves, found, needed, strict=True):
        assert difference(a, b) < factor * TOLERANCE[dtype], f"gradient of {name}"


NAMES = ("wx", "r", "bias", "projection", "h", "c", "n", "m")


def borders(batch, steps):
    """Lengths with an empty sequence among them, and episodes that begin anywhere."""
    lengths = torch.tensor([steps, 2, 0, *range(1, batch)])[:batch].clamp(max=steps)
    return lengths, torch.rand(batch, steps) < 0.3


@anywhere
@pytest.mark.parametrize("cell", FORMS)
@pytest.mark.parametrize(
    ("dtype", "save", "reverse"),
    [(torch.float32, "gates", False), (torch.float32, "recompute", True), (torch.bfloat16, "gates", True)],
)
def test_agrees_with_the_definition(cell, dtype, save, reverse, poisoned_memory):
    lengths, reset = borders(3, 6)
    with poisoned_memory():
        compare(cell, dtype, draw(cell, dtype), lengths=lengths, reset=reset, reverse=reverse, save=save)


@anywhere
@pytest.mark.parametrize(("cell", "dtype"), [("lstm", torch.bfloat16), ("gru", torch.float16), ("mgu", torch.float64)])
def test_widths_and_batches_that_fill_no_tile(cell, dtype):
    tensors = draw(cell, dtype, batch=17, steps=3, heads=1, width=33)
    compare(cell, dtype, tensors, save="recompute", factor=2)


@anywhere
@pytest.mark.parametrize("save", ["gates", "recompute"])
def test_projection(save, poisoned_memory):
    lengths, reset = borders(3, 6)
    with poisoned_memory():
        compare(
            "lstm", torch.float32, draw("lstm", torch.float32, projected=12), lengths=lengths, reset=reset, save=save
        )


@anywhere
def test_chunks_of_recomputed_gates(monkeypatch):
    from recurra.kernels.gated_scan import triton as backend

    monkeypatch.setattr(backend, "RECOMPUTED", 4)
    lengths, reset = borders(3, 9)
    for cell, reverse in (("gru", True), ("gru_before", False)):
        tensors = draw(cell, torch.float32, steps=9)
        compare(cell, torch.float32, tensors, lengths=lengths, reset=reset, reverse=reverse, save="recompute")


def laid_out(monkeypatch, mode, tile, chunk):
    """Makes every call take this layout."""
    from recurra.kernels.gated_scan import triton as backend
    from recurra.kernels.gated_scan.triton_plan import Plan

    def plan(options, inputs, *, back=False):
        width, gates = inputs.wx.shape[-1], inputs.wx.shape[2]
        chunks = -(-width // chunk) * (gates if back else 1)
        return Plan(mode, 16, tile, chunk, chunks, -(-width // tile), 4)

    monkeypatch.setattr(backend, "plan", plan)


@anywhere
@pytest.mark.parametrize(("cell", "mode"), [*((c, "shared") for c in FORMS), *((c, "given") for c in AFTER)])
def test_heads_of_several_programs(cell, mode, monkeypatch):
    # Shared: the interpreter runs one program after the other, so the one here holds all units, in two chunks.
    laid_out(monkeypatch, mode, tile=32 if mode == "shared" else 16, chunk=16)
    lengths, reset = borders(3, 4)
    reverse = cell in ("gru", "lstm", "elman_tanh")
    tensors = draw(cell, torch.float32, steps=4)
    compare(cell, torch.float32, tensors, lengths=lengths, reset=reset, reverse=reverse)


def side_by_side(launch):
    """Runs a launch's programs as a GPU may, each as far as it can before the next one goes on.

    The interpreter by itself runs one after the other, and the first would wait for the others for ever.
    """
    from triton.runtime import interpreter

    builder, function = interpreter.interpreter_builder, launch.kernel.rewrite()
    constants = interpreter.GridExecutor(function, launch.kernel.arg_names, launch.grid).constexprs
    programs = list(product(*map(range, launch.grid)))
    running, turns = list(range(len(programs))), [threading.Semaphore(0) for _ in programs]
    atomic, asked, failed = builder.create_atomic_rmw, [], []

    def turn(own):
        turns[own].acquire()
        builder.set_grid_idx(*programs[own], 0)
        assert not failed, "another program failed"

    def counted(*given):
        own = programs.index(tuple(builder.grid_idx[:2]))
        asked.append(own if not given[2].data.any() else None)
        # Who asks twice in a row how many have arrived waits for another.
        if asked[-2:] == [own, own]:
            assert len(asked) < 10_000, "the programs wait for each other for ever"
            turns[running[(running.index(own) + 1) % len(running)]].release()
            turn(own)
        return atomic(*given)

    def program(own):
        try:
            turn(own)
            function(**arguments)
        except BaseException:
            failed.append(own)
            raise
        finally:
            after = running[(running.index(own) + 1) % len(running)]
            running.remove(own)
            turns[after].release()

    builder.set_grid_dim(*launch.grid, 1)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(programs)) as threads:
        language = interpreter._patch_lang(launch.kernel.fn)
        patch.setattr(builder, "create_atomic_rmw", counted)
        given = launch.arguments.items()
        arguments = {n: v if n in constants else interpreter._implicit_cvt(v) for n, v in given}
        done = [threads.submit(program, own) for own in running]
        turns[0].release()
        wait(done)
        language.restore()
    for each in done:
        each.result()


@interpreted
@pytest.mark.parametrize(
    ("cell", "steps", "reverse"),
    [("gru", 3, True), ("lstm", 2, False), ("mgu", 1, False), ("mgu", 3, True), ("gru_before", 3, False)],
)
def test_programs_that_share_a_head_compute_their_own_part(cell, steps, reverse, monkeypatch, poisoned_memory):
    from recurra.kernels.gated_scan.triton_launch import Launch

    grids = []
    laid_out(monkeypatch, "shared", tile=16, chunk=16)
    monkeypatch.setattr(Launch, "run", lambda launch: grids.append(launch.grid) or side_by_side(launch))
    lengths, reset = borders(3, steps)
    tensors = draw(cell, torch.float32, steps=steps, width=40, heads=1)
    with poisoned_memory():
        compare(cell, torch.float32, tensors, lengths=lengths, reset=reset, reverse=reverse)
    assert grids == [(3, 1)] * 2


@anywhere
def test_no_steps_and_no_sequences():
    for batch, steps in ((2, 0), (0, 3)):
        wx, r, bias, _, states = draw("lstm", torch.float32, batch=batch, steps=steps)
        y, last = gated_scan("lstm", wx, r, bias, states, backend="triton")
        assert y.shape == (batch, steps, 2, 20)
        for a, b in zip(last, states, strict=True):
            assert torch.equal(a, b)
        found = torch.autograd.grad((y.sum(), *(s.sum() for s in last)), [wx, r, *states])
        assert [g.shape for g in found] == [t.shape for t in (wx, r, *states)]
        assert not found[1].any()
        assert all(bool((g == 1).all()) for g in found[2:])


@anywhere
def test_strided_and_expanded_inputs():
    wx, r, bias, _, states = draw("gru", torch.float32)
    y, _ = gated_scan("gru", wx, r, bias, states, backend="triton")
    turned = wx.detach().transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(gated_scan("gru", turned, r, bias, states, backend="triton")[0], y)
    apart = wx.detach().transpose(2, 4).contiguous().transpose(2, 4)
    assert torch.equal(gated_scan("gru", apart, r, bias, states, backend="triton")[0], y)
    same = wx.detach()[:1].expand_as(wx)
    by_copy = gated_scan("gru", same.contiguous(), r, bias, states, backend="triton")[0]
    assert torch.equal(gated_scan("gru", same, r, bias, states, backend="triton")[0], by_copy)


def meta(cell, width, *, dtype=torch.bfloat16, heads=1, batch=16, projected=None):
    """Options and inputs of a call with tensors that have no memory."""
    form, old = FORMS[cell], projected or width
    wx = torch.empty(batch, 4, form.gates, heads, width, dtype=dtype, device="meta")
    projection = None if projected is None else wx.new_empty(heads, projected, width)
    return OP.definition.prepare(cell, wx, wx.new_empty(form.gates, heads, width, old), projection=projection)


def test_layouts():
    from recurra.kernels.gated_scan.triton_plan import WEIGHTS, plan

    assert plan(*meta("lstm", 64, heads=12))[:3] == ("held", 16, 64)
    assert plan(*meta("lstm", 64, heads=12)).warps == 8
    assert plan(*meta("lstm", 64, heads=12, batch=512)).warps == 4, "many programs: fewer warps each"
    assert plan(*meta("gru", 100, heads=6)).mode == "held"
    assert plan(*meta("lstm", 128, dtype=torch.float32)).mode == "shared"
    for back in (False, True):
        layout = plan(*meta("lstm", 768), back=back)
        assert layout.mode == "shared"
        assert layout.parts * layout.tile >= 768
        assert layout.chunks * layout.old_tile >= 768 * (4 if back else 1)
        assert layout.chunks * layout.old_tile * (1 if back else 4) * layout.tile * 2 <= WEIGHTS
        assert layout.parts <= 132, "programs that wait for each other are on the device together"
    assert plan(*meta("lstm", 2048)).mode == "given"
    assert plan(*meta("gru", 256, dtype=torch.float64)).mode == "given"


@interpreted
def test_what_is_not_served_is_said_in_words():
    def reason(cell, width, **named):
        options, inputs = meta(cell, width, **named)
        return OP.backends["triton"].supports(options, inputs._replace(wx=torch.empty_like(inputs.wx, device="cpu")))

    assert reason("lstm", 2048) is None
    assert reason("mgu", 128) is None
    assert reason("lstm", 4096) == "heads of 4096 units are more than 2048"
    assert reason("mgu", 512) is None
    assert reason("gru_before", 2048) == "heads of 2048 units of gru_before are more than all programs together hold"
    expected = "heads of 512 units with a projection are more than a program holds"
    assert reason("lstm", 512, projected=64) == expected
    wx, r, bias, _, states = draw("lstm", torch.float32)
    assert explain(gated_scan, "lstm", wx, r, bias, states).backend != "triton", "the interpreter is no way to compute"


def test_no_register_spills_on_hopper(ahead_of_time):
    rows = [[cell, "bfloat16", 64, 12, 16, way, "gates"] for cell in FORMS for way in ("forward", "backward")]
    rows += [
        [cell, "bfloat16", 128, 6, 16, way, "gates"] for cell in ("lstm", "gru") for way in ("forward", "backward")
    ]
    rows += [["lstm", "bfloat16", 64, 12, 16, "backward", "recompute"]]
    rows += [["lstm", "float32", 64, 12, 16, "forward", "gates"]]
    rows += [["lstm", "bfloat16", 64, 1, 16, way, "gates", True, 32] for way in ("forward", "backward")]
    rows += [["lstm", "bfloat16", 768, 1, 16, way, "gates"] for way in ("forward", "backward")]
    for row, found in zip(rows, ahead_of_time(rows, "gated_resources.py"), strict=True):
        assert found["registers"] <= 255, row
        # Two registers' worth where the candidate's product makes the way back longer.
        assert found["stack"] + found["local"] <= (8 if row[0] in ("gru_before", "mgu") else 0), row
        assert found["shared"] <= 227 * 1024, row
        assert found["mma"] + found["wgmma"] > 0, row


@pytest.mark.gpu
@pytest.mark.parametrize("cell", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "width"), [(3, 64), (1, 100), (1, 384)])
def test_on_a_gpu(cell, dtype, heads, width):
    tensors = draw(cell, dtype, batch=18, steps=50, heads=heads, width=width, device="cuda")
    reason = OP.explain(cell, *tensors[:3], tensors[4]).rejected.get("triton", "")
    if "together hold" in reason:
        pytest.skip(reason)
    lengths, reset = (t.cuda() for t in borders(18, 50))
    for save, reverse in (("gates", False), ("recompute", True)):
        fresh = [None if t is None else t.detach().clone().requires_grad_() for t in tensors[:4]]
        compare(cell, dtype, (*fresh, tensors[4]), lengths=lengths, reset=reset, reverse=reverse, save=save)


@pytest.mark.gpu
def test_two_runs_on_a_gpu_are_equal():
    for width in (64, 512):
        wx, r, bias, _, states = draw("lstm", torch.bfloat16, steps=64, heads=1, width=width, device="cuda")
        runs = []
        for _ in range(2):
            y, last = gated_scan("lstm", wx, r, bias, states, backend="triton")
            runs.append([y, *last, *torch.autograd.grad((y, *last), [wx, r], [torch.ones_like(t) for t in (y, *last)])])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
