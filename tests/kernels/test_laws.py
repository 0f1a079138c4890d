"""Laws of every operation over time, with every cell and on every backend."""

from itertools import pairwise

import pytest
import torch
from law_cases import (
    CASES,
    TOLERANCE,
    TYPICAL,
    VARIANTS,
    assert_near,
    assert_same,
    evaluate,
    exactly,
    missing,
    pairs,
    run,
    typical,
    weights_of,
)
from torch import Tensor

from recurra.kernels import chunks, gated_scan

FLOAT32 = TOLERANCE[torch.float32]
# Neither sorted nor all different; one sequence is empty, two are full.
LENGTHS = torch.tensor([4, 0, 6, 1, 6])
STEPS = 6

# What Inductor imports says this of itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Chunks of three compiled steps stand for those of fifty, which take minutes to compile."""
    monkeypatch.setattr(chunks, "CHUNK", 3)


def resets(batch: int, steps: int) -> Tensor:
    """Episode borders here and there, at first and last steps too."""
    return torch.rand(batch, steps, generator=torch.Generator().manual_seed(3)) < 0.25


@pytest.mark.parametrize("case", [*CASES, *VARIANTS], ids=lambda case: case.name.replace(" ", "_"))
def test_who_serves_what(case):
    assert set(case.op.backends) >= set(case.backends)
    for dtype in case.dtypes:
        tensors = case.tensors(2, 3, 4, dtype)
        flags = case.known(lengths=torch.tensor([3, 1]), reset=resets(2, 3), reverse=True)
        for name, backend in case.op.backends.items():
            if missing(name):
                continue
            for given in ({}, flags):
                reason = backend.supports(*case.prepared(tensors, **given))
                assert (reason is None) == (name in case.backends), reason
                assert reason is None or (reason and "\n" not in reason)


def numbers(case, backend):
    """Dtypes, each without flags and with all; fewer of them where that is slow."""
    if backend == "compiled" or (backend == "triton" and case in VARIANTS):
        return [(torch.float32, "flags")]
    plain = [torch.float32] if backend == "triton" else case.dtypes
    return [(dtype, "flags") for dtype in case.dtypes] + [(dtype, "plain") for dtype in plain]


@pairs([*CASES, *VARIANTS], numbers, slowly=lambda case, backend: backend == "triton" or case in TYPICAL)
def test_agrees_with_the_definition_in_float64(case, backend, given):
    dtype, flagged = given
    tensors = case.tensors(5, STEPS, 7, dtype)
    flags = {} if flagged == "plain" else case.known(lengths=LENGTHS, reset=resets(5, STEPS), reverse=True)
    got = run(case, tensors, backend, **flags)
    assert_near(got, exactly(case, tensors, weights_of(got[0]), **flags), TOLERANCE[dtype])
    lead = tensors[case.sequences[0]].dtype
    assert got[0][0].dtype == lead
    carried = torch.float32 if lead.itemsize == 2 and case.wide else lead
    assert all(last.dtype == carried for last in got[0][1:])


@pairs([case for case in CASES if not case.complex])
def test_weights_may_be_wide(case, backend):
    tensors = case.cast(case.tensors(3, STEPS, 7), torch.bfloat16, weights=torch.float32)
    got = run(case, tensors, backend)
    assert_near(got, exactly(case, tensors, weights_of(got[0])), TOLERANCE[torch.bfloat16])


def widths(case, backend):
    """Hardly a power of two; heads laid over several programs take the interpreter minutes: test_gated_triton.py."""
    return [1, 3, 5, 33] if backend == "triton" and case.function is gated_scan else [1, 3, 5, 33, 100]


@pairs(given=widths)
def test_any_width(case, backend, given):
    tensors = case.tensors(3, 4, given, torch.float32)
    assert_near(run(case, tensors, backend), exactly(case, tensors), FLOAT32)


def in_pieces(case, tensors, borders, backend, lengths=None, reverse=False):
    """(y, *last) of calls each of which starts from the state that the one before it left."""
    steps = tensors[case.sequences[0]].shape[1]
    ys, state = [], {name: tensors[name] for name in case.states}
    spans = list(pairwise([0, *borders, steps]))
    for start, stop in spans[::-1] if reverse else spans:
        part = {k: t[:, start:stop] if k in case.sequences else t for k, t in tensors.items()} | state
        own = None if lengths is None else (lengths - start).clamp(0, stop - start)
        y, *last = case.call(part, backend=backend, **case.known(lengths=own, reverse=reverse))
        ys.append(y)
        state = dict(zip(case.states, last, strict=True))
    return torch.cat(ys[::-1] if reverse else ys, 1), *last


def assert_continues(case, backend, steps, borders, **flags):
    tensors = case.tensors(2, steps, 3, torch.float32)
    with torch.no_grad():
        whole = case.call(tensors, backend=backend, **case.known(**flags))
        parts = in_pieces(case, tensors, borders, backend, **flags)
    if backend == "reference":
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    else:
        assert_near((parts, {}), (whole, {}), FLOAT32)


STREAMING = [case for case in CASES if case.streams]


@pairs(STREAMING)
@pytest.mark.parametrize("steps", [1, 2, 3, 17])
def test_streaming_from_any_step(case, backend, steps):
    for border in range(steps + 1) if backend != "triton" or steps <= 3 else (0, 8, steps):
        assert_continues(case, backend, steps, [border])


@pairs(STREAMING, slowly=typical)
@pytest.mark.parametrize("steps", [64, 65, 1000])
def test_streaming_from_the_borders_of_chunks(case, backend, steps):
    if backend == "triton":
        steps = min(steps, 20 if case.function is gated_scan else 130)
    borders = [k for chunk in (1, 16, 32, 64, 128, 256, 512, steps) for k in (chunk - 1, chunk, chunk + 1)]
    borders = sorted({k for k in borders if 0 < k < steps})
    assert_continues(case, backend, steps, borders)
    assert_continues(case, backend, steps, [borders[len(borders) // 2]])


@pairs(STREAMING)
def test_streaming_with_lengths_and_in_reverse(case, backend):
    for reverse in [False, True] if "reverse" in case.flags else [False]:
        flags = case.known(lengths=torch.tensor([4, 9]), reverse=reverse)
        for border in (1, 3, 4, 5, 8):
            assert_continues(case, backend, 9, [border], **flags)


@pairs(STREAMING, slowly=typical)
def test_gradients_pass_through_the_state(case, backend):
    tensors = case.tensors(2, 9, 3, torch.float32)
    parts = evaluate(lambda t: in_pieces(case, t, [1, 4, 8], backend), tensors)
    assert_near(parts, exactly(case, tensors), FLOAT32)


def apart(case, tensors, backend, lengths, reset, reverse):
    """(y, *last) of one call an episode, none of which has lengths, borders or a direction of its own."""
    rows = []
    for row, length in enumerate(lengths.tolist()):
        borders = [] if reset is None else reset[row, :length].nonzero().flatten().tolist()
        edges = sorted({0, length, *(t + 1 if reverse else t for t in borders)})
        spans = list(pairwise(edges)) or [(0, 0)]
        ys = []
        for start, stop in spans[::-1] if reverse else spans:
            part = {k: t[row : row + 1, start:stop] for k, t in tensors.items() if k in case.sequences}
            part = {k: t.flip(1) if reverse else t for k, t in part.items()}
            part |= {k: t[row : row + 1] if k in case.states else t for k, t in tensors.items() if k not in part}
            y, *last = case.call(part, backend=backend)
            ys.insert(0 if reverse else len(ys), y.flip(1) if reverse else y)
        ys.append(ys[0].new_zeros(1, tensors[case.sequences[0]].shape[1] - length, *ys[0].shape[2:]))
        rows.append((torch.cat(ys, 1), *last))
    return [torch.cat(parts) for parts in zip(*rows, strict=True)]


def flags_apart(case, backend):
    """Each flag alone, and all together."""
    return [case.flags] if backend == "triton" else [*((flag,) for flag in case.flags), case.flags]


@pairs([*CASES, *VARIANTS], flags_apart)
def test_lengths_borders_and_direction_are_runs_apart(case, backend, given):
    tensors = case.tensors(5, STEPS, 3, torch.float32)
    lengths = LENGTHS if "lengths" in given else torch.full((5,), STEPS)
    reset, reverse = resets(5, STEPS) if "reset" in given else None, "reverse" in given
    flags = case.known(lengths=lengths if "lengths" in given else None, reset=reset, reverse=reverse)
    got = run(case, tensors, backend, **flags)
    want = evaluate(lambda t: apart(case, t, backend, lengths, reset, reverse), tensors)
    assert_near(got, want, FLOAT32)
    padding = torch.arange(STEPS) >= lengths[:, None]
    assert not got[0][0][padding].any()
    assert not any(got[1][name][padding].any() for name in case.sequences)
    for last, name in zip(got[0][1:], case.states, strict=False):
        assert torch.equal(last[lengths == 0], tensors[name][lengths == 0])


@pairs([case for case in CASES if "lengths" in case.flags], lambda case, backend: [False, "reverse" in case.flags])
def test_padding_leaks_nowhere(case, backend, given):
    padding = torch.arange(STEPS) >= LENGTHS[:, None]
    runs = []
    for filling in (0, torch.nan):
        tensors = case.tensors(5, STEPS, 3, torch.float32)
        weights = weights_of(case.call(tensors, backend=backend))
        for t in (*(tensors[name] for name in case.sequences), weights[0]):
            t[padding] = filling
        runs.append(run(case, tensors, backend, weights, **case.known(lengths=LENGTHS, reverse=given)))
    assert_same(*runs)


@pairs()
def test_nothing_to_do(case, backend):
    for batch, steps in ((0, 4), (3, 0), (0, 0)):
        tensors = case.tensors(batch, steps, 3, torch.float32)
        flags = case.known(lengths=torch.zeros(batch, dtype=torch.int64), reset=resets(batch, steps), reverse=True)
        for given in ({}, flags):
            (y, *last), gradients = run(case, tensors, backend, **given)
            assert y.shape[:2] == (batch, steps)
            for value, name, weight in zip(last, case.states, weights_of((y, *last))[1:], strict=False):
                assert torch.equal(value, tensors[name])
                assert torch.equal(gradients[name], weight)
            rest = [gradient for name, gradient in gradients.items() if name not in case.states]
            assert not any(gradient.any() for gradient in rest)


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The same values elsewhere in memory, among NaN."""
    if layout == "strided":
        return torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0]
    if layout == "offset":
        return torch.cat([torch.full_like(t[:1], torch.nan), t])[1:] if len(t) else t
    order = {"transposed": list(range(t.dim()))[::-1], "time first": [*range(t.dim())[:2][::-1], *range(2, t.dim())]}
    return t.permute(order[layout]).contiguous().permute(order[layout])


@pairs()
@pytest.mark.parametrize("layout", ["strided", "offset", "transposed", "time first"])
def test_any_layout(case, backend, layout):
    tensors = case.tensors(5, STEPS, 3, torch.float32)
    moved = {name: laid_out(t, layout) for name, t in tensors.items()}
    flags = case.known(lengths=LENGTHS, reset=resets(5, STEPS))
    other = {name: torch.stack([t, t], -1)[..., 0] for name, t in flags.items()}
    weights = weights_of(case.call(tensors, backend=backend))
    got = run(case, moved, backend, [laid_out(w, layout) for w in weights], **other)
    assert_near(got, run(case, tensors, backend, weights, **flags), FLOAT32)


@pairs()
def test_expanded_inputs(case, backend):
    tensors = case.tensors(5, STEPS, 3, torch.float32)
    for axis in (0, 1):
        names = case.sequences if axis else (*case.sequences, *case.states)
        spread = {k: t.narrow(axis, 0, 1).expand_as(t) if k in names else t for k, t in tensors.items()}
        dense = {k: t.contiguous() for k, t in spread.items()}
        weights = [w.narrow(axis, 0, 1).expand_as(w) for w in weights_of(case.call(dense, backend=backend))]
        assert_near(run(case, spread, backend, weights), run(case, dense, backend, weights), FLOAT32)


@pairs()
def test_sequences_of_a_batch_know_nothing_of_each_other(case, backend):
    tensors = case.tensors(5, STEPS, 3, torch.float32)
    flags = case.known(lengths=LENGTHS, reset=resets(5, STEPS))

    def chosen(t, rows):
        part = {k: v[rows] if k in (*case.sequences, *case.states) else v for k, v in t.items()}
        return case.call(part, backend=backend, **{name: value[rows] for name, value in flags.items()})

    def shuffled(t):
        order = torch.tensor([3, 0, 4, 2, 1])
        return [y[order.argsort()] for y in chosen(t, order)]

    def split(t):
        return [torch.cat(halves) for halves in zip(chosen(t, slice(0, 2)), chosen(t, slice(2, 5)), strict=True)]

    whole = run(case, tensors, backend, **flags)
    assert_near(evaluate(shuffled, tensors), whole, FLOAT32)
    assert_near(evaluate(split, tensors), whole, FLOAT32)


@pairs()
@pytest.mark.parametrize("threads", [1, 2])
def test_two_runs_are_bit_equal(case, backend, threads):
    # Enough values that a second thread is worth waking.
    batch, steps, width = (2, 5, 20) if backend == "triton" else (3, 33, 700)
    tensors = case.tensors(batch, steps, min(width, case.widest), torch.float32)
    torch.set_num_threads(threads)
    try:
        first = run(case, tensors, backend)
        assert_same(run(case, tensors, backend), first)
    finally:
        torch.set_num_threads(1)
    assert_near(first, run(case, tensors, backend), FLOAT32)


@pairs()
def test_every_value_is_written(case, backend, poisoned_memory):
    flags = case.known(lengths=LENGTHS, reset=resets(5, STEPS), reverse=True)
    for given in ({}, flags):
        for steps in (STEPS, 1):
            tensors = case.tensors(5, steps, 11, torch.float32)
            given = given if steps == STEPS else {}
            want = run(case, tensors, backend, **given)
            with poisoned_memory():
                assert_same(run(case, tensors, backend, **given), want)
