"""Every operation with Triton kernels at sizes that fill a GPU, against its definition in float64 on the CPU.

The tests of small sizes run there too: `conftest.py` sends what they compute by Triton to the GPU.
"""

import pytest
import torch
from law_cases import CASES, TOLERANCE, TYPICAL, assert_near, assert_same, exactly, run, weights_of
from visits import Visit

from recurra.kernels import elementwise_scan, explain, gated_scan, linear_scan, memory_conv, ssm2d_scan

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Batch, steps, width: programs that fill the processors, several chunks of time, no multiple of a block.
LARGE = {
    linear_scan: [(64, 257, 520), (2, 5000, 100)],
    elementwise_scan: [(64, 257, 520), (2, 5000, 100)],
    gated_scan: [(18, 300, 64)],
    ssm2d_scan: [(3, 257, 33)],
    memory_conv: [(3, 1000, 130)],
}
# In the interpreter, so that it is known that these tests themselves work.
SMALL = (3, 5, 3)


def sizes(chosen, dtypes=(torch.float32,)):
    """Parameters (case, size, dtype): large ones for a GPU, a small one of every operation for the interpreter."""
    found = [
        (case, size, dtype, [pytest.mark.gpu]) for case in chosen for size in LARGE[case.function] for dtype in dtypes
    ]
    found += [(case, SMALL, torch.float32, []) for case in TYPICAL if DEVICE.type == "cpu"]
    parameters = [
        pytest.param(case, size, dtype, marks=marks, id=f"{case.name}-{'x'.join(map(str, size))}-{dtype}")
        for case, size, dtype, marks in found
        if dtype in case.dtypes
    ]
    return pytest.mark.parametrize(("case", "size", "dtype"), parameters)


def flags(case, size):
    """An empty sequence, full ones and others; episodes that begin now and then."""
    batch, steps, _ = size
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, steps + 1, (batch,), generator=generator)
    lengths[:2] = torch.tensor([0, steps])[:batch]
    reset = torch.rand(batch, steps, generator=generator) < 0.02
    return case.known(lengths=lengths, reset=reset, reverse=True)


def placed(values, device=DEVICE):
    """Tensors of a dict on the device, all else as it is."""
    return {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in values.items()}


def home(found):
    """(outputs, gradients) on the CPU."""
    return [y.cpu() for y in found[0]], {name: g.cpu() for name, g in found[1].items()}


@sizes(CASES, (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("flagged", [False, True], ids=["plain", "flags"])
def test_agrees_with_the_definition(case, size, dtype, flagged):
    tensors, given = case.tensors(*size, dtype), flags(case, size) if flagged else {}
    want_y = exactly(case, tensors, **given)[0]
    weights = weights_of([y.to(t) for y, t in zip(want_y, kinds(case, tensors), strict=True)])
    want = exactly(case, tensors, weights, **given)
    got = run(case, placed(tensors), "triton", [w.to(DEVICE) for w in weights], **placed(given))
    assert_near(home(got), want, TOLERANCE[dtype])


def kinds(case, tensors):
    """Dtypes of (y, *last)."""
    lead = tensors[case.sequences[0]].dtype
    carried = torch.float32 if lead.itemsize == 2 and case.wide else lead
    return [lead, *[carried] * len(case.states)]


@sizes(CASES)
def test_twenty_runs_are_bit_equal(case, size, dtype):
    tensors, given = placed(case.tensors(*size, dtype)), placed(flags(case, size))
    first = run(case, tensors, "triton", **given)
    for _ in range(20):
        assert_same(run(case, tensors, "triton", **given), first)


@sizes(TYPICAL)
def test_another_stream(case, size, dtype):
    tensors = placed(case.tensors(*size, dtype))
    want = run(case, tensors, "triton")
    if DEVICE.type == "cpu":
        return
    stream = torch.cuda.Stream()
    late = {name: torch.full_like(t, torch.nan) for name, t in tensors.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        # What runs on another stream than this one meets NaN.
        torch.cuda._sleep(100_000_000)
        for name, t in late.items():
            t.copy_(tensors[name])
        got = run(case, late, "triton")
    stream.synchronize()
    assert_same(got, want)


@sizes(TYPICAL)
def test_inside_a_compiled_program(case, size, dtype):
    torch._dynamo.reset()
    tensors = placed(case.tensors(*size, dtype))
    names = list(tensors)

    def program(*values):
        return case.bare(dict(zip(names, values, strict=True)), backend="triton")

    compiled = torch.compile(program, backend="aot_eager", fullgraph=True)
    for got, want in zip(compiled(*tensors.values()), program(*tensors.values()), strict=True):
        assert torch.equal(got, want)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_it_is_chosen(case):
    tensors = placed(case.tensors(*LARGE[case.function][0], torch.float32))
    positional, named = case.arguments(tensors)
    choice = explain(case.function, *positional, **named)
    assert choice.backend == "triton", str(choice)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_on_the_second_of_two(case):
    tensors = case.tensors(3, 20, 33, torch.float32)
    want = run(case, placed(tensors, "cuda:0"), "triton")
    got = run(case, placed(tensors, "cuda:1"), "triton")
    assert got[0][0].device == torch.device("cuda:1")
    assert_same(home(got), home(want))


def test_what_visits_a_device_keeps_its_layout_and_gets_its_gradient():
    memory = torch.randn(40, dtype=torch.float64)
    for value in (
        memory[3:23].reshape(4, 5).T,
        memory[:4].expand(3, 4),
        memory.as_strided((3, 4), (2, 7), 1),
        memory[:0],
    ):
        leaf = value.detach().requires_grad_()
        moved = Visit.apply(leaf, torch.device("cpu"))
        assert (moved.stride(), moved.storage_offset()) == (value.stride(), value.storage_offset())
        assert moved.numel() == 0 or moved.data_ptr() != value.data_ptr()
        assert torch.equal(moved, value)
        assert torch.equal(torch.autograd.grad((moved * moved).sum(), leaf)[0], 2 * value)
