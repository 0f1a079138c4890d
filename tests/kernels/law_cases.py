"""The operations over time as one table of cases, and what the laws in test_laws*.py need of them.

A case draws named tensors for any batch, steps and width, and knows how to call its operation with them; a call gives
(y, *last): y of shape (batch, time, ...) and the state after each sequence's last step.
"""

import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from recurra.kernels import elementwise_scan, gated_scan, linear_scan, memory_conv, registry, ssm2d_scan
from recurra.kernels.chunks import compiler_reason
from recurra.kernels.gated_scan import FORMS

Tensors = dict[str, Tensor]
Draw = Callable[[Callable[..., Tensor], int, int, int], Tensors]

# Root of the mean squared error over that of the values, against a float64 run of the same inputs: some eight units in
# the last place of float32, and one of 16 bit, which storing the result costs in any case. Gradients: twice as much.
# Float64 has thirty units in the last place, since sums are taken in several orders.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
SIXTEEN = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """One operation with its options.

    Attributes:
        name: operation, cell and options in words.
        function: the public function.
        draw: (randn, batch, steps, width) -> tensors in float64.
        arguments: tensors -> positional and keyword arguments of the function.
        outputs: (what the function returns, tensors, lengths) -> (y, *last).
        sequences: names of tensors (batch, time, ...), the leading one first.
        states: names of tensors (batch, ...), in the order of the last states; all others are weights.
        backends: who serves it.
        flags: which of lengths, reset and reverse the function takes.
        streams: whether the last state, fed to the steps that follow, continues the call.
        widest: width that is enough for several threads.
        complex: whether values are complex, of which there are none of 16 bit.
        wide: whether last states of 16 bit are float32.
    """

    name: str
    function: Callable[..., Any]
    draw: Draw
    arguments: Callable[[Tensors], tuple[tuple[Any, ...], dict[str, Any]]]
    outputs: Callable[[Any, Tensors, Tensor | None], tuple[Tensor, ...]]
    sequences: tuple[str, ...]
    states: tuple[str, ...]
    backends: tuple[str, ...]
    flags: tuple[str, ...] = ("lengths", "reset", "reverse")
    streams: bool = True
    widest: int = 700
    complex: bool = False
    wide: bool = True

    @property
    def op(self) -> Any:
        """The registered operation."""
        return registry._operations[self.function.__name__]

    def call(self, tensors: Tensors, **flags: Any) -> tuple[Tensor, ...]:
        """(y, *last) of a call of the public function."""
        positional, named = self.arguments(tensors)
        return self.outputs(self.function(*positional, **named, **flags), tensors, flags.get("lengths"))

    def bare(self, tensors: Tensors, **flags: Any) -> list[Tensor]:
        """What the public function returns, its tensors in a row."""
        positional, named = self.arguments(tensors)
        return tree_leaves(self.function(*positional, **named, **flags))

    def prepared(self, tensors: Tensors, **flags: Any) -> tuple[Any, Any]:
        """Options and inputs as the backends get them."""
        positional, named = self.arguments(tensors)
        options, inputs = self.op.definition.prepare(*positional, **named, **flags)
        return options, inputs

    def tensors(self, batch: int, steps: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensors:
        """Drawn in float64, then cast: the same numbers in every dtype."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()) + seed)

        def randn(*shape: int, complex: bool = False) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.complex128 if complex else torch.float64)

        return self.cast(self.draw(randn, batch, steps, width), dtype)

    def cast(self, tensors: Tensors, dtype: torch.dtype, weights: torch.dtype | None = None) -> Tensors:
        """In this dtype; states in the one they are carried in, weights in another where told so."""
        carried = torch.float32 if dtype in SIXTEEN else dtype
        kinds = dict.fromkeys(tensors, weights or dtype) | dict.fromkeys(self.sequences, dtype)
        kinds |= dict.fromkeys(self.states, carried)
        return {k: t.to(kinds[k].to_complex() if t.is_complex() else kinds[k]) for k, t in tensors.items()}

    def known(self, **flags: Any) -> dict[str, Any]:
        """Those of the flags that the function takes."""
        return {name: value for name, value in flags.items() if name in self.flags}

    @property
    def dtypes(self) -> list[torch.dtype]:
        """What there is."""
        return [dtype for dtype in TOLERANCE if not (self.complex and dtype in SIXTEEN)]


def _linear(name: str, shape: Callable[[int, int, int], tuple[int, ...]], complex: bool = False) -> Case:
    def draw(randn: Callable[..., Tensor], batch: int, steps: int, width: int) -> Tensors:
        a = randn(*shape(batch, steps, width), complex=complex)
        b, h0 = randn(batch, steps, width, complex=complex), randn(batch, width, complex=complex)
        return {"b": b, "a": a / (1 + a.abs()), "h0": h0}

    return Case(
        name=f"linear_scan {name}",
        function=linear_scan,
        draw=draw,
        arguments=lambda t: ((t["a"], t["b"], t["h0"]), {}),
        outputs=lambda found, t, lengths: found,
        sequences=("b", "a") if shape(2, 3, 5)[:2] == (2, 3) else ("b",),
        states=("h0",),
        backends=("reference", "numba", *["compiled"] * (not complex), "triton"),
        complex=complex,
    )


def _elementwise(cell: str) -> Case:
    rows = {"diag_gru": (3, 3), "diag_lstm_cifg": (3, 5)}.get(cell, ())
    states = ("h", "c") if cell == "diag_lstm_cifg" else ("h",)

    def draw(randn: Callable[..., Tensor], batch: int, steps: int, width: int) -> Tensors:
        params = randn(*rows[1:], width)
        drawn = {"wx": randn(batch, steps, *rows[:1], width), "params": params / (1 + params.abs())}
        return drawn | {name: randn(batch, width) for name in states}

    return Case(
        name=f"elementwise_scan {cell}",
        function=elementwise_scan,
        draw=draw,
        arguments=lambda t: ((cell, t["wx"], t["params"], tuple(t[name] for name in states)), {}),
        outputs=lambda found, t, lengths: (found[0], *found[1]),
        sequences=("wx",),
        states=states,
        backends=("reference", "numba", "compiled", "parallel", "triton"),
    )


def _gated(cell: str, *, projected: bool = False, biased: bool = True, recompute: bool = False) -> Case:
    gates, biases, states, _ = FORMS[cell]

    def draw(randn: Callable[..., Tensor], batch: int, steps: int, width: int) -> Tensors:
        old = max(width - 1, 1) if projected else width
        # Contracting, so that a rounding error dies out over a thousand steps.
        drawn = {"wx": randn(batch, steps, gates, 2, width), "r": 0.6 * randn(gates, 2, width, old) / old**0.5}
        drawn |= {"bias": randn(biases, 2, width)} if biased else {}
        drawn |= {"projection": 0.6 * randn(2, old, width) / width**0.5} if projected else {}
        drawn |= {name: randn(batch, 2, old if name == "h" else width) for name in states}
        return drawn | ({"n": 1 + drawn["n"].abs()} if "n" in states else {})

    return Case(
        name=f"gated_scan {cell}{' projected' * projected}{' unbiased' * (not biased)}{' recompute' * recompute}",
        function=gated_scan,
        draw=draw,
        arguments=lambda t: (
            (cell, t["wx"], t["r"], t.get("bias"), tuple(t[name] for name in states)),
            {"projection": t.get("projection"), "save": "recompute" if recompute else "gates"},
        ),
        outputs=lambda found, t, lengths: (found[0], *found[1]),
        sequences=("wx",),
        states=states,
        backends=("reference", "numba", "triton"),
        widest=64,
    )


def _ssm2d(along: str, *, fixed: bool = False) -> Case:
    """Time is the axis of columns or of rows; the other one has three places."""
    a, b = ("a1", "a2", "a3", "a4"), ("b1", "b2")
    first, across = (("left_h", "left_g"), ("top_h", "top_g"))[:: 1 if along == "columns" else -1]

    def draw(randn: Callable[..., Tensor], batch: int, steps: int, width: int) -> Tensors:
        drawn = {name: randn(batch, steps, 3, width) for name in b}
        coefficients = {name: randn(*(() if fixed else (batch, steps, 3)), width) for name in a}
        drawn |= {name: value / (2 + 2 * value.abs()) for name, value in coefficients.items()}
        drawn |= {name: randn(batch, 3, width) for name in first} | {
            name: randn(batch, steps, width) for name in across
        }
        return drawn

    def turned(t: Tensor) -> Tensor:
        return t.transpose(1, 2) if along == "columns" and t.dim() == 4 else t

    def outputs(found: tuple[Tensor, Tensor], t: Tensors, lengths: Tensor | None) -> tuple[Tensor, ...]:
        h, g = map(turned, found)
        last = (h[:, -1], g[:, -1]) if h.shape[1] else tuple(t[name] for name in first)
        return torch.cat([h, g], -1), *last

    return Case(
        name=f"ssm2d_scan along {along}{' fixed' * fixed}",
        function=ssm2d_scan,
        draw=draw,
        arguments=lambda t: (
            (*(turned(t[k]) for k in (*a, *b)), (t["left_h"], t["left_g"]), (t["top_h"], t["top_g"])),
            {},
        ),
        outputs=outputs,
        sequences=(*b, *(() if fixed else a), *across),
        states=first,
        backends=("reference", "numba", "triton"),
        flags=(),
        wide=False,
    )


def _memory(name: str, *, left: int, right: int = 0, dilation: int = 1, buffers: int = 1) -> Case:
    names = tuple(f"x{i}" for i in range(buffers))

    def draw(randn: Callable[..., Tensor], batch: int, steps: int, width: int) -> Tensors:
        drawn = {x: randn(batch, steps, width) for x in names}
        weight = randn(width, buffers, left + 1 + right)
        return drawn | {"weight": weight, "past": randn(batch, left * dilation, buffers * width)}

    def outputs(y: Tensor, t: Tensors, lengths: Tensor | None) -> tuple[Tensor, ...]:
        seen = torch.cat([t["past"], torch.cat([t[x] for x in names], 2)], 1)
        ends = torch.full((len(y),), y.shape[1]) if lengths is None else lengths
        places = ends[:, None] + torch.arange(left * dilation)
        return y, seen.gather(1, places[:, :, None].expand(-1, -1, seen.shape[2]))

    return Case(
        name=f"memory_conv {name}",
        function=memory_conv,
        draw=draw,
        arguments=lambda t: (
            (t["x0"] if buffers == 1 else [t[x] for x in names], t["weight"]),
            {"left": left, "right": right, "dilation": dilation, "past": t["past"]},
        ),
        outputs=outputs,
        sequences=names,
        states=("past",),
        backends=("reference", "numba", "triton"),
        flags=("lengths",),
        streams=right == 0,
    )


CASES = [
    _linear("varying", lambda batch, steps, width: (batch, steps, width)),
    _linear("fixed", lambda batch, steps, width: (width,)),
    _linear("complex", lambda batch, steps, width: (batch, steps, width), complex=True),
    *(_elementwise(c) for c in ("indrnn_relu", "indrnn_tanh", "indrnn_linear", "diag_gru", "diag_lstm_cifg")),
    *(_gated(cell) for cell in FORMS),
    _gated("lstm", projected=True),
    _ssm2d("columns"),
    _ssm2d("rows"),
    _memory("causal", left=3),
    _memory("dilated", left=2, right=2, dilation=2, buffers=2),
]
# Laws that look into what is saved hold for these too.
VARIANTS = [
    *(_gated(cell, recompute=True) for cell in FORMS),
    _gated("lstm", projected=True, recompute=True),
    _gated("gru", biased=False),
    _gated("lstm", biased=False),
    _ssm2d("columns", fixed=True),
    _memory("causal dilated", left=2, dilation=3, buffers=2),
]


# One case of every operation: what is common to its cells need not be asked of each where that is slow, which is in
# Triton's interpreter (tens of milliseconds a step) and with compilers (seconds a cell).
SLOW = ("triton", "compiled")
TYPICAL = [
    case
    for case in CASES
    if case.name
    in (
        "linear_scan varying",
        "elementwise_scan diag_lstm_cifg",
        "gated_scan lstm",
        "ssm2d_scan along columns",
        "memory_conv causal",
    )
]


def typical(case: Case, backend: str) -> bool:
    """Lets through one case of every operation, on backends that compile too."""
    return case in TYPICAL


def pairs(
    chosen: Iterable[Case] = CASES,
    given: Callable[[Case, str], Iterable[Any]] | None = None,
    *,
    slowly: Callable[[Case, str], bool] = lambda case, backend: backend == "triton" and case in TYPICAL,
) -> pytest.MarkDecorator:
    """Parametrises over cases and the backends that serve each; where told so, over what is given to each pair too.

    Of those of slow backends, it takes the ones that `slowly` lets through.
    """
    served = [(c, backend) for c in chosen for backend in c.backends if backend not in SLOW or slowly(c, backend)]
    if given is None:
        return pytest.mark.parametrize(("case", "backend"), [_parameters(*pair) for pair in served])
    more = [(*pair, value) for pair in served for value in dict.fromkeys(given(*pair))]
    return pytest.mark.parametrize(("case", "backend", "given"), [_parameters(*one) for one in more])


def missing(backend: str) -> str | None:
    """Why a backend cannot be tried here: the kernels can be had alone, and without a C++ compiler."""
    if backend == "compiled":
        return compiler_reason(torch.empty(0))
    return f"{backend} is not installed" if backend in ("numba", "triton") and not registry.installed(backend) else None


def _parameters(case: Case, backend: str, *given: Any) -> Any:
    reason = missing(backend)
    marks = [pytest.mark.skip(reason=reason)] if reason else []
    words = "-".join(" ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in given)
    name = "-".join([case.name, backend, *[words] * bool(given)])
    return pytest.param(case, backend, *given, id=name.replace(" ", "_"), marks=marks)


def leaves(tensors: Tensors) -> Tensors:
    """The tensors as they lie in memory, each with a gradient."""
    return {name: t.detach().requires_grad_() for name, t in tensors.items()}


def weights_of(outputs: Iterable[Tensor]) -> list[Tensor]:
    """Random weights of the sum over outputs whose gradient is taken: the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(0)
    kinds = [(y, torch.complex128 if y.is_complex() else torch.float64) for y in outputs]
    return [torch.randn(y.shape, generator=generator, dtype=kind).to(y.dtype) for y, kind in kinds]


def evaluate(
    call: Callable[[Tensors], Iterable[Tensor]], tensors: Tensors, weights: list[Tensor] | None = None
) -> tuple[list[Tensor], Tensors]:
    """What the call gives, and the gradient of every tensor."""
    free = leaves(tensors)
    outputs = list(call(free))
    given = weights_of(outputs) if weights is None else [w.to(y.dtype) for w, y in zip(weights, outputs, strict=True)]
    found = torch.autograd.grad(outputs, list(free.values()), given, allow_unused=True)
    gradients = {k: torch.zeros_like(t) if g is None else g for (k, t), g in zip(free.items(), found, strict=True)}
    for name, gradient in gradients.items():
        assert (gradient.shape, gradient.dtype) == (tensors[name].shape, tensors[name].dtype)
    return [y.detach() for y in outputs], gradients


def run(
    case: Case, tensors: Tensors, backend: str | None, weights: list[Tensor] | None = None, **flags: Any
) -> tuple[list[Tensor], Tensors]:
    """(y, *last) of one call, and the gradient of every tensor."""
    return evaluate(lambda t: case.call(t, backend=backend, **flags), tensors, weights)


def exactly(
    case: Case, tensors: Tensors, weights: list[Tensor] | None = None, **flags: Any
) -> tuple[list[Tensor], Tensors]:
    """What the definition gives for the same numbers in float64."""
    return run(case, {k: _high(t) for k, t in tensors.items()}, "reference", weights, **flags)


def error(got: Tensor, want: Tensor) -> float:
    """Root mean square of the difference over that of what is wanted; infinite where either is not finite."""
    difference = float(torch.linalg.vector_norm(_high(got) - _high(want)))
    if not math.isfinite(difference):
        return math.inf
    return difference / max(float(torch.linalg.vector_norm(_high(want))), 1e-300)


def _high(t: Tensor) -> Tensor:
    return t.detach().to(torch.complex128 if t.is_complex() else torch.float64)


def assert_near(got: Any, want: Any, tolerance: float) -> None:
    """(outputs, gradients) against the same: outputs within the tolerance, gradients within twice as much."""
    for i, (y, exact) in enumerate(zip(got[0], want[0], strict=True)):
        assert y.shape == exact.shape
        assert error(y, exact) <= tolerance, f"output {i} is off by {error(y, exact):.1e}"
    for name, gradient in got[1].items():
        off = error(gradient, want[1][name])
        assert off <= 2 * tolerance, f"gradient of {name} is off by {off:.1e}"


def assert_same(got: Any, want: Any) -> None:
    """(outputs, gradients) against the same, bit for bit."""
    for i, (y, exact) in enumerate(zip(got[0], want[0], strict=True)):
        assert torch.equal(y, exact), f"output {i} differs"
    for name, gradient in got[1].items():
        assert torch.equal(gradient, want[1][name]), f"gradient of {name} differs"
