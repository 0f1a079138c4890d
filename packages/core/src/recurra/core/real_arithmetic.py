"""A traced program without complex numbers: every complex tensor as two real ones.

For formats that have none, such as ONNX. Fourier transforms stay, between a view as complex and one as real, which is
how exporters know them.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

aten: Any = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Pair:
    """Real and imaginary part of what was one complex tensor."""

    re: Tensor
    im: Tensor


class RealArithmetic(nn.Module):
    """A graph of aten operations, such as `torch.export` makes, run with `Pair`s for its complex values.

    Inputs and outputs are real.
    """

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__()
        self.program = program

    def forward(self, *inputs: Tensor) -> Any:
        """What the program returns.

        Raises:
            ValueError: the program has an operation on complex values that has no real form here.
        """
        interpreter = _Interpreter(self.program)
        interpreter.extra_traceback = False
        return interpreter.run(*inputs)


class _Interpreter(fx.Interpreter):
    """Runs a graph, with a rule from the tables below wherever a value is complex."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operation."""
        if target is operator.getitem or not (_has_pair([*args, *kwargs.values()]) or target in MAKERS):
            if _is_complex_dtype(kwargs.get("dtype")):
                kwargs = {**kwargs, "dtype": kwargs["dtype"].to_real()}
                made = super().call_function(target, args, kwargs)
                return Pair(made, torch.zeros_like(made))
            return super().call_function(target, args, kwargs)
        if target in RULES:
            return RULES[target](*args, **kwargs)
        if target in LINEAR:
            return _apart(target, args, kwargs)
        raise ValueError(f"{target} on complex values has no real form")


def _has_pair(values: Any) -> bool:
    return any(isinstance(v, Pair) or (isinstance(v, list | tuple) and _has_pair(v)) for v in values)


def _is_complex_dtype(dtype: Any) -> bool:
    return isinstance(dtype, torch.dtype) and dtype.is_complex


def _apart(target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pair:
    """An operation that does to real and imaginary parts what it does to the whole."""

    def part(values: Any, name: str) -> Any:
        if isinstance(values, Pair):
            return getattr(values, name)
        return [part(v, name) for v in values] if isinstance(values, list | tuple) else values

    return Pair(*(target(*part(args, name), **kwargs) for name in ("re", "im")))


def _pair(value: Any) -> Pair:
    """A value as a pair, whatever it was."""
    if isinstance(value, Pair):
        return value
    if isinstance(value, Tensor):
        return Pair(value, torch.zeros_like(value))
    parts = complex(value)
    # Single numbers do not decide the precision of a result, but their own may not be lost.
    return Pair(*(torch.tensor(part, dtype=torch.float64) for part in (parts.real, parts.imag)))


def _add(a: Any, b: Any, sign: int) -> Pair:
    a, b = _pair(a), _pair(b)
    return Pair(a.re + b.re, a.im + b.im) if sign > 0 else Pair(a.re - b.re, a.im - b.im)


def _multiply(a: Any, b: Any) -> Pair:
    a, b = (_pair(x) if isinstance(x, complex) else x for x in (a, b))
    if not isinstance(a, Pair):
        a, b = b, a
    if not isinstance(b, Pair):
        return Pair(a.re * b, a.im * b)
    return Pair(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re)


def _divide(a: Any, b: Any) -> Pair:
    a = _pair(a)
    if not isinstance(b, Pair):
        return Pair(a.re / b, a.im / b)
    square = b.re.square() + b.im.square()
    numerator = _multiply(a, Pair(b.re, -b.im))
    return Pair(numerator.re / square, numerator.im / square)


def _where(condition: Tensor, a: Any, b: Any) -> Pair:
    a, b = _pair(a), _pair(b)
    return Pair(torch.where(condition, a.re, b.re), torch.where(condition, a.im, b.im))


def _norm(z: Pair, ord: int | float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    if ord != 2 or dtype is not None:
        raise ValueError(f"a vector norm of order {ord} of complex values has no real form")
    square = z.re.square() + z.im.square()
    return (square.sum() if dim is None else square.sum(dim, keepdim)).sqrt()


def _fourier(z: Any, dim: list[int], normalization: int, forward: bool) -> Pair:
    z = _pair(z)
    # ONNX Runtime's transform is off by 2e-4 in float32 for sizes such as 640 x 372; float64 costs it a quarter more.
    parts = z.re.double(), z.im.double()
    found = torch.view_as_real(aten._fft_c2c(torch.complex(*parts), dim, normalization, forward)).to(z.re.dtype)
    return Pair(found[..., 0], found[..., 1])


def _fourier_of_real(x: Tensor, dim: list[int], normalization: int, onesided: bool) -> Pair:
    if onesided:
        raise ValueError("half a Fourier transform has no real form")
    return _fourier(x, dim, normalization, True)


def _view_as_complex(x: Tensor) -> Pair:
    return Pair(x[..., 0], x[..., 1])


# Operations that make complex values of real ones.
MAKERS = {aten.view_as_complex.default, aten.complex.default, aten._fft_r2c.default}

RULES: dict[Any, Callable[..., Any]] = {
    aten.view_as_complex.default: _view_as_complex,
    aten.complex.default: Pair,
    aten.view_as_real.default: lambda z: torch.stack([z.re, z.im], dim=-1),
    aten.real.default: lambda z: z.re,
    aten.imag.default: lambda z: z.im,
    aten._conj.default: lambda z: Pair(z.re, -z.im),
    aten._conj_physical.default: lambda z: Pair(z.re, -z.im),
    aten.abs.default: lambda z: (z.re.square() + z.im.square()).sqrt(),
    aten.add.Tensor: lambda a, b: _add(a, b, 1),
    aten.sub.Tensor: lambda a, b: _add(a, b, -1),
    aten.mul.Tensor: _multiply,
    aten.div.Tensor: _divide,
    aten.where.self: _where,
    aten.linalg_vector_norm.default: _norm,
    aten._fft_c2c.default: _fourier,
    aten._fft_r2c.default: _fourier_of_real,
}

LINEAR = {
    aten.alias.default,
    aten.cat.default,
    aten.clone.default,
    aten.expand.default,
    aten.index_select.default,
    aten.neg.default,
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.squeeze.dims,
    aten.sum.dim_IntList,
    aten.unsqueeze.default,
    aten.view.default,
}
