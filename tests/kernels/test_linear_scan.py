"""The linear scan: kernels against the definition, the definition against calculus and against a convolution."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from recurra.kernels import chunks, explain, linear_scan
from recurra.kernels.linear_scan import OP

TOLERANCE = {torch.float64: 1e-13, torch.complex128: 1e-13, torch.float32: 3e-6, torch.bfloat16: 1.6e-2}
BATCH, STEPS, WIDTH = 3, 17, 5
COEFFICIENTS = {
    "everywhere": (BATCH, STEPS, WIDTH),
    "units": (WIDTH,),
    "steps": (STEPS, WIDTH),
    "sequences": (BATCH, 1, WIDTH),
    "one": (1,),
}
FORMS = [
    {},
    {"reverse": True},
    {"lengths": torch.tensor([17, 0, 13])},
    {"lengths": torch.tensor([17, 0, 13]), "reverse": True},
    {"reset": torch.rand(BATCH, STEPS, generator=torch.Generator().manual_seed(1)) < 0.3, "reverse": True},
]


def draw(shape: tuple[int, ...], dtype: torch.dtype, *, batch=BATCH, steps=STEPS, width=WIDTH) -> list[Tensor]:
    """a of this shape, b and h0."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.complex128 if dtype.is_complex else torch.float64
    shapes = [shape, (batch, steps, width), (batch, width)]
    a, b, h0 = (torch.randn(s, generator=generator, dtype=drawn) for s in shapes)
    return [t.to(dtype).requires_grad_() for t in (a * 0.7, b, h0)]


def everything(tensors: list[Tensor], backend: str, **arguments) -> list[Tensor]:
    """h, the last state and all gradients of a random weighing of both."""
    results = linear_scan(*tensors, backend=backend, **arguments)
    generator = torch.Generator().manual_seed(2)
    drawn = torch.complex128 if results[0].is_complex() else torch.float64
    weights = [torch.randn(r.shape, generator=generator, dtype=drawn).to(r.dtype) for r in results]
    gradients = torch.autograd.grad(results, tensors, weights, allow_unused=True)
    return [*results, *(torch.zeros_like(t) if g is None else g for g, t in zip(gradients, tensors, strict=True))]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest over all tensors of the largest difference relative to the largest value."""
    assert [(f.shape, f.dtype) for f in found] == [(e.shape, e.dtype) for e in expected]
    pairs = [(f.detach(), e.detach()) for f, e in zip(found, expected, strict=True) if e.numel()]
    assert all(torch.isfinite(f).all() for f, _ in pairs)
    return max([float((f - e).abs().max() / (e.abs().max() + 1e-30)) for f, e in pairs], default=0.0)


@pytest.mark.parametrize("coefficients", list(COEFFICIENTS))
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_agrees_with_the_definition(dtype, coefficients, poisoned_memory):
    pytest.importorskip("numba")
    for form in FORMS:
        tensors = draw(COEFFICIENTS[coefficients], dtype)
        expected = everything(tensors, "reference", **form)
        with poisoned_memory():
            found = everything(tensors, "numba", **form)
        # The gradient of a single coefficient is one sum over everything, in which most cancels.
        assert difference(found, expected) < TOLERANCE[dtype] * (4 if coefficients == "one" else 1), form


@pytest.mark.parametrize(
    ("batch", "steps", "width"), [(0, 5, 3), (2, 0, 3), (2, 5, 0), (1, 1, 1), (2, 65, 33), (2, 257, 3)]
)
def test_awkward_sizes(batch, steps, width):
    pytest.importorskip("numba")
    for shape in ((batch, steps, width), (width,)):
        tensors = draw(shape, torch.float64, batch=batch, steps=steps, width=width)
        assert difference(everything(tensors, "numba"), everything(tensors, "reference")) < 1e-13


def test_padding_is_never_read():
    pytest.importorskip("numba")
    lengths = torch.tensor([17, 0, 13])
    for reverse in (False, True):
        tensors = draw(COEFFICIENTS["everywhere"], torch.float64)
        clean = everything(tensors, "numba", lengths=lengths, reverse=reverse)
        spoiled = [t.detach().clone() for t in tensors]
        for value in spoiled[:2]:
            value[1], value[2, 13:] = torch.nan, torch.nan
        found = everything([t.requires_grad_() for t in spoiled], "numba", lengths=lengths, reverse=reverse)
        assert all(torch.equal(f, c) for f, c in zip(found, clean, strict=True))


def test_layouts_and_threads_change_nothing():
    pytest.importorskip("numba")
    tensors = draw((2, 40, 2048), torch.float32, batch=2, steps=40, width=2048)
    expected = everything(tensors, "numba")
    moved = [t.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for t in tensors[:2]]
    assert difference(everything([*moved, tensors[2]], "numba"), expected) == 0
    torch.set_num_threads(3)  # more than rows: the width is split
    try:
        found = everything(tensors, "numba")
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients(dtype, backend):
    pytest.importorskip("numba")
    lengths, reset = torch.tensor([5, 3]), torch.tensor([[0, 0, 1, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
    for shape in ((2, 5, 3), (3,)):
        tensors = draw(shape, dtype, batch=2, steps=5, width=3)

        def of(*given: Tensor) -> tuple[Tensor, Tensor]:
            return linear_scan(*given, lengths=lengths, reset=reset, reverse=True, backend=backend)

        assert gradcheck(of, tensors)
        assert gradgradcheck(of, tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_equals_a_convolution_where_nothing_changes_in_time(dtype):
    steps, width = 300, 4
    a, b, _ = (t.detach() for t in draw((width,), dtype, batch=2, steps=steps, width=width))
    a = 0.98 * a / a.abs()
    kernel = a ** torch.arange(steps)[:, None]
    spectrum = torch.fft.fft(b, 2 * steps, dim=1) * torch.fft.fft(kernel, 2 * steps, dim=0)
    convolved = torch.fft.ifft(spectrum, dim=1)[:, :steps]
    h, _ = linear_scan(a, b)
    assert (h - (convolved if dtype.is_complex else convolved.real)).abs().max() < 1e-12


def test_coefficients_of_any_sign_and_zero():
    a = torch.tensor([[0.0], [-1.5], [0.0], [1e-300], [1e-300], [2.0]], dtype=torch.float64)
    b = torch.tensor([[[1.0], [2.0], [3.0], [1e300], [0.0], [1.0]]], dtype=torch.float64)
    for backend in ("reference", "numba"):
        h, _ = linear_scan(a, b, backend=backend)
        assert torch.allclose(h[0, :, 0], torch.tensor([1, 0.5, 3, 1e300, 1, 3], dtype=torch.float64))


def test_serves_compilers():
    pytest.importorskip("numba")
    from recurra.kernels.opaque import encode

    a, b, h0 = draw((2, 4, 3), torch.float64, batch=2, steps=4, width=3)
    options, inputs = OP.definition.prepare(a, b, h0, lengths=torch.tensor([4, 2]))
    given = encode(options, inputs), [t for t in inputs if t is not None], "numba", True
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OP.forward_op, given, test_utils=tests)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_chunks(monkeypatch):
    # Chunks of three steps stand for those of fifty, which take minutes to compile.
    monkeypatch.setattr(chunks, "CHUNK", 3)
    if reason := chunks.compiler_reason(torch.empty(0)):
        pytest.skip(reason)
    counts = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]
    for batch, steps, width in ((3, 17, 5), (2, 5, 4), (4, 9, 6), (3, 1, 5), (5, 3, 3), (2, 30, 64)):
        forms = FORMS if (batch, steps) == (BATCH, STEPS) else FORMS[:2]
        for form in forms:
            for shape in ((batch, steps, width), (width,)):
                tensors = draw(shape, torch.float32, batch=batch, steps=steps, width=width)
                expected = everything(tensors, "reference", **form)
                assert difference(everything(tensors, "compiled", **form), expected) < 3e-6
    assert counts["unique_graphs"] - before <= 3


def test_complex_numbers_are_not_compiled():
    b = torch.zeros(1, 4, 2, dtype=torch.complex64)
    assert "no code for complex numbers" in explain("linear_scan", b[0, 0], b).rejected["compiled"]
