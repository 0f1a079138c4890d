"""Laws of every operation over time under autograd, torch's compilers and its transforms of functions."""

import pytest
import torch
from law_cases import CASES, TOLERANCE, TYPICAL, assert_near, assert_same, exactly, leaves, pairs, run, weights_of

from recurra.kernels import opaque, use_backend

FLOAT32 = TOLERANCE[torch.float32]


def flags_of(case, batch, steps):
    """All that the operation knows, with some of it in use."""
    lengths = torch.arange(batch) % (steps + 1)
    reset = torch.zeros(batch, steps, dtype=torch.bool)
    reset[:, steps // 2] = True
    return case.known(lengths=lengths.flip(0), reset=reset, reverse=True)


@pairs(given=lambda case, backend: [False, bool(case.flags)])
def test_first_and_second_gradients(case, backend, given):
    tensors = leaves(case.tensors(2, 5, 3))
    flags = flags_of(case, 2, 5) if given else {}

    def function(*values):
        return case.call(dict(zip(tensors, values, strict=True)), backend=backend, **flags)

    # The full check perturbs every value; the quick one a random mixture of them, which kernels see afresh in any case.
    quick = backend != "reference" or given
    assert torch.autograd.gradcheck(function, list(tensors.values()), fast_mode=quick)
    assert torch.autograd.gradgradcheck(function, list(tensors.values()), fast_mode=True)


@pairs(TYPICAL, lambda case, backend: [bool(case.flags) and backend != "reference"])
def test_registration_with_torch(case, backend, given):
    options, inputs = case.prepared(leaves(case.tensors(2, 2, 2)), **(flags_of(case, 2, 2) if given else {}))
    tensors = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs if t is not None]
    text = opaque.encode(options, inputs)
    torch.library.opcheck(case.op.forward_op, (text, tensors, backend, True))
    results = [t.detach() for t in case.op.forward_op(text, tensors, backend, True)]
    gradients = [w.requires_grad_() for w in weights_of(results[: case.op.definition.outputs(options)])]
    torch.library.opcheck(case.op.backward_op, (text, tensors, results, gradients))


def sizes(case, backend):
    """Those of the calls to be traced: the definition becomes as many operations as it has steps, a kernel one."""
    return [((3, 4), (2, 6))] if backend != "reference" else [((3, 3),)] * (case in TYPICAL)


@pairs(given=sizes)
def test_compiles_into_one_graph(case, backend, given):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=len(given) > 1)
    def compiled(tensors, flags):
        return [2 * y for y in case.bare(tensors, backend=backend, **flags)]

    for batch, steps in given:
        tensors = leaves(case.tensors(batch, steps, 3, torch.float32))
        flags = {name: value for name, value in flags_of(case, batch, steps).items() if name != "reverse"}
        got, want = compiled(tensors, flags), [2 * y for y in case.bare(tensors, backend=backend, **flags)]
        weights = weights_of(want)
        gradients = [
            dict(zip(tensors, torch.autograd.grad(y, list(tensors.values()), weights, allow_unused=True), strict=True))
            for y in (got, want)
        ]
        gradients = [{k: torch.zeros_like(tensors[k]) if g is None else g for k, g in d.items()} for d in gradients]
        assert_near((got, gradients[0]), (want, gradients[1]), FLOAT32)


class Called(torch.nn.Module):
    def __init__(self, case, backend):
        super().__init__()
        self.case, self.backend = case, backend

    def forward(self, tensors, flags):
        return self.case.bare(tensors, backend=self.backend, **flags)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_exports_with_dynamic_batch_and_time(case):
    batch, steps = torch.export.Dim("batch"), torch.export.Dim("steps")

    def given(batch, steps):
        flags = {name: value for name, value in flags_of(case, batch, steps).items() if name != "reverse"}
        return case.tensors(batch, steps, 3, torch.float32), flags

    tensors, flags = given(3, 4)
    kinds = {name: {0: batch, 1: steps} for name in (*case.sequences, "reset")}
    kinds |= {name: {0: batch} for name in (*case.states, "lengths")}
    shapes = [{name: kinds.get(name, {}) for name in part} for part in (tensors, flags)]
    program = torch.export.export(Called(case, None), (tensors, flags), dynamic_shapes=tuple(shapes))
    tensors, flags = given(5, 7)
    want = case.bare(tensors, backend="reference", **flags)
    assert_near((program.module()(tensors, flags), {}), (want, {}), FLOAT32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_transforms_of_functions(case):
    several = [case.tensors(2, 5, 3, torch.float32, seed=seed) for seed in range(3)]
    stacked = {name: torch.stack([tensors[name] for tensors in several]) for name in several[0]}
    each = [torch.stack(ys) for ys in zip(*(case.bare(tensors) for tensors in several), strict=True)]
    assert_near((torch.vmap(case.bare)(stacked), {}), (each, {}), FLOAT32)

    def loss(tensors):
        return sum((y * w.conj()).real.sum() for y, w in zip(case.call(tensors), weights, strict=True))

    outputs, want = exactly(case, several[0])
    weights = [w.to(y.dtype) for w, y in zip(weights_of(outputs), case.call(several[0]), strict=True)]
    assert_near(([], torch.func.grad(loss)(several[0])), ([], want), FLOAT32)


@pairs([case for case in CASES if not case.complex])
def test_autocast_leaves_the_operation_alone(case, backend):
    for dtype in (torch.bfloat16, torch.float32):
        tensors = case.cast(case.tensors(3, 9, 5), dtype, weights=torch.float32)
        want = run(case, tensors, backend)
        with torch.autocast("cpu", torch.bfloat16):
            free = leaves(tensors)
            outputs = case.call(free, backend=backend)
        gradients = torch.autograd.grad(outputs, list(free.values()), weights_of(outputs))
        assert_same((outputs, dict(zip(free, gradients, strict=True))), want)


@pairs([case for case in CASES if not case.complex])
def test_projections_in_autocast_feed_the_operation(case, backend):
    tensors = case.tensors(3, 9, 4, torch.float32)
    lead, *_ = case.sequences
    weight = torch.eye(tensors[lead].shape[-1])
    with torch.autocast("cpu", torch.bfloat16):
        narrow = {k: torch.nn.functional.linear(t, weight) if k in case.sequences else t for k, t in tensors.items()}
        y, *last = case.call(narrow, backend=backend)
    assert y.dtype == torch.bfloat16
    assert not case.wide or all(value.dtype == torch.float32 for value in last)


@pairs(given=lambda case, backend: ["eager", *["compiled"] * (backend != "reference" and case in TYPICAL)])
def test_the_backward_pass_is_by_the_backend_of_the_forward_pass(case, backend, given):
    tensors = leaves(case.tensors(2, 4, 3, torch.float32))
    torch._dynamo.reset()
    call = torch.compile(case.bare, fullgraph=True, backend="aot_eager") if given == "compiled" else case.bare
    with use_backend(backend):
        outputs = list(call(tensors))
    want = case.bare(tensors, backend=backend)
    for then in case.backends:
        with use_backend(then):
            found = torch.autograd.grad(outputs, list(tensors.values()), weights_of(outputs), retain_graph=True)
        expected = torch.autograd.grad(want, list(tensors.values()), weights_of(want), retain_graph=True)
        gradients, exact = (dict(zip(tensors, values, strict=True)) for values in (found, expected))
        assert_near((outputs, gradients), (want, exact), FLOAT32)
