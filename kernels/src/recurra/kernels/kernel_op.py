"""Differentiable operations out of kernels.

A kernel is a module with `forward` and `backward`. An eager call runs it in an autograd function; compilers and
exporters see a custom operation instead, opaque to them, that chooses its backend when it runs. Second and higher
derivatives go through the definition, whichever backend ran the forward pass, and so do torch.func's transforms.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from recurra.kernels.registry import Backend, Choice, Op, requested


class Kernel(Protocol):
    """What a backend's module offers."""

    def forward(self, options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
        """The outputs; where `saving`, after them what the backward pass wants, as the operation's `shapes` says."""

    def backward(
        self, options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """One gradient an input; None where it is not wanted."""


@dataclass(frozen=True)
class Definition:
    """An operation apart from its backends.

    Attributes:
        options: NamedTuple of str, bool and int: what is no tensor.
        inputs: NamedTuple of tensors, None where absent.
        prepare: (options, inputs) of a call with the public function's arguments, checked.
        formula: (options, inputs) -> outputs, in plain torch, differentiable as often as wished.
        shapes: (options, inputs, saving) -> uninitialised outputs, and after them whatever is saved.
        outputs: (options) -> number of outputs.
    """

    options: Any
    inputs: Any
    prepare: Callable[..., tuple[Any, Any]]
    formula: Callable[[Any, Any], Sequence[Tensor]]
    shapes: Callable[[Any, Any, bool], Sequence[Tensor]]
    outputs: Callable[[Any], int]


def kernel(module: str) -> Kernel:
    """The module of a backend, imported at first use: importing recurra.kernels imports neither numba nor triton."""
    loaded: Any = importlib.import_module(module)
    return loaded  # type: ignore[no-any-return]


def training(inputs: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass may follow a call with these inputs."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


class KernelOp(Op):
    """An operation whose backends are plain torch (`fn` given) or kernels (`fn` None, module `package.NAME`)."""

    def __init__(self, name: str, package: str, definition: Definition, backends: list[Backend]) -> None:
        super().__init__(name, backends)
        self.definition, self.package = definition, package
        self._forward, self._backward = self._custom_ops()

    def __call__(self, *args: Any, backend: str | None = None, **kwargs: Any) -> tuple[Tensor, ...]:
        """Outputs of the operation by the backend that `registry` chooses."""
        options, inputs = self.definition.prepare(*args, **kwargs)
        saving = training(inputs)
        if torch._C._are_functorch_transforms_active():
            return tuple(self.definition.formula(options, inputs))  # vmap, jvp and the like need plain operations
        if torch.compiler.is_compiling():
            # The tracer cannot read context variables: unless told here, the choice is made when the program runs.
            name = backend or (None if torch.compiler.is_dynamo_compiling() else requested()) or "auto"
            if name == "reference":
                return tuple(self.definition.formula(options, inputs))
            tensors = [t for t in inputs if t is not None]
            results = self._forward(_encode(options, inputs), tensors, name, saving)
            return tuple(results[: self.definition.outputs(options)])
        chosen = self.select(options, inputs, backend=backend)
        if chosen.fn is not None:
            return tuple(chosen(options, inputs))
        if saving:
            return tuple(_Eager.apply(self, chosen.name, options, *inputs))  # type: ignore[no-untyped-call]
        return tuple(self._kernel(chosen.name).forward(options, inputs, False))

    def explain(self, *args: Any, backend: str | None = None, **kwargs: Any) -> Choice:
        """As `Op.explain`, for the arguments of the public function."""
        return super().explain(*self.definition.prepare(*args, **kwargs), backend=backend)

    def _kernel(self, name: str) -> Kernel:
        return kernel(f"{self.package}.{name}")

    def _derivative(self, options: Any, inputs: Sequence[Tensor | None], gradients: Sequence[Tensor]) -> list[Any]:
        """Gradients of the inputs by the definition, themselves differentiable where grad mode is on."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # Aliases: a tensor given twice gets its two gradients apart.
            alias = [
                t if t is None or (not t.is_floating_point() and not t.is_complex()) else t.view_as(t) for t in inputs
            ]
            alias = [t.detach().requires_grad_() if _real(t) and not t.requires_grad else t for t in alias]  # type: ignore[union-attr]
            outputs = self.definition.formula(options, self.definition.inputs(*alias))
            leaves = [t for t in alias if _real(t)]
            found = iter(torch.autograd.grad(outputs, leaves, gradients, create_graph=again, allow_unused=True))  # type: ignore[arg-type]
        return [next(found) if _real(t) else None for t in alias]

    def _run(self, text: str, tensors: Sequence[Tensor], backend: str, saving: bool) -> list[Tensor]:
        options, inputs = self._decode(text, tensors)
        chosen = self.select(options, inputs) if backend == "auto" else self._named(backend, (options, inputs), {})
        if chosen.fn is None:
            results = list(self._kernel(chosen.name).forward(options, inputs, saving))
        else:
            results = list(chosen(options, inputs))
            results += list(self.definition.shapes(options, inputs, saving))[len(results) :]
        # Outputs of an operation may share memory neither with inputs nor with each other.
        seen = {t.data_ptr() for t in tensors}
        for i, result in enumerate(results):
            results[i] = result.clone() if result.data_ptr() in seen else result.contiguous()
            seen.add(result.data_ptr())
        return [*results, torch.tensor(list(self.backends).index(chosen.name), dtype=torch.uint8)]

    def _run_backward(
        self, text: str, tensors: Sequence[Tensor], results: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> list[Tensor]:
        options, inputs = self._decode(text, tensors)
        # The backend that ran the forward pass: only it knows what was saved.
        chosen = list(self.backends.values())[int(results[-1])]
        if chosen.fn is None:
            wanted = [_real(t) for t in inputs]
            found = self._kernel(chosen.name).backward(options, inputs, results[:-1], gradients, wanted)
        else:
            with torch.no_grad(), _recording():
                found = self._derivative(options, inputs, gradients)
        # Outputs of an operation may not be absent.
        pairs = [(t, g) for t, g in zip(inputs, found, strict=True) if t is not None]
        return [t.new_zeros(t.shape) if g is None else _own(g.to(t.dtype), gradients) for t, g in pairs]

    def _decode(self, text: str, tensors: Sequence[Tensor]) -> tuple[Any, Any]:
        options, present = _decoded(self.definition.options, text)
        rest = iter(tensors)
        return options, self.definition.inputs(*(next(rest) if there else None for there in present))

    def _custom_ops(self) -> tuple[Any, Any]:
        @torch.library.custom_op(f"recurra::{self.name}", mutates_args=())
        def forward(options: str, tensors: Sequence[Tensor], backend: str, saving: bool) -> list[Tensor]:
            return self._run(options, tensors, backend, saving)

        @forward.register_fake
        def _(options: str, tensors: Sequence[Tensor], backend: str, saving: bool) -> list[Tensor]:
            shapes = self.definition.shapes(*self._decode(options, tensors), saving)
            return [*shapes, torch.empty((), dtype=torch.uint8, device="cpu")]

        @torch.library.custom_op(f"recurra::{self.name}_backward", mutates_args=())
        def backward(
            options: str, tensors: Sequence[Tensor], results: Sequence[Tensor], gradients: Sequence[Tensor]
        ) -> list[Tensor]:
            return self._run_backward(options, tensors, results, gradients)

        @backward.register_fake
        def _(
            options: str, tensors: Sequence[Tensor], results: Sequence[Tensor], gradients: Sequence[Tensor]
        ) -> list[Tensor]:
            return [t.new_empty(t.shape) for t in tensors]

        def save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
            ctx.options, tensors, _, _ = inputs
            ctx.given = len(tensors)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*tensors, *output)

        def differentiate(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
            tensors, results = ctx.saved_tensors[: ctx.given], ctx.saved_tensors[ctx.given :]
            count = self.definition.outputs(_decoded(self.definition.options, ctx.options)[0])
            dense = _dense(gradients[:count], results)
            found = backward(ctx.options, list(tensors), list(results), dense)
            return None, [g if _real(t) else None for g, t in zip(found, tensors, strict=True)], None, None

        def save_again(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
            ctx.options, tensors, results, gradients = inputs
            ctx.given, ctx.results = len(tensors), len(results)
            ctx.save_for_backward(*tensors, *gradients)

        def differentiate_again(ctx: Any, second: list[Tensor]) -> tuple[Any, ...]:
            tensors, first = ctx.saved_tensors[: ctx.given], ctx.saved_tensors[ctx.given :]
            again = torch.is_grad_enabled()
            with torch.enable_grad():
                free = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_(_real(t)) for t in tensors]
                pulled = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in first]
                options, inputs = self._decode(ctx.options, free)
                found = [g for g, t in zip(self._derivative(options, inputs, pulled), inputs, strict=True) if _real(t)]
                leaves = [t for t in free if _real(t)] + pulled
                used = [
                    (g, d)
                    for g, d in zip(found, (d for d, t in zip(second, tensors, strict=True) if _real(t)), strict=True)
                    if g is not None and g.requires_grad
                ]
                grads = iter(
                    torch.autograd.grad(
                        [g for g, _ in used], leaves, [d for _, d in used], create_graph=again, allow_unused=True
                    )
                )
            return (
                None,
                [next(grads) if _real(t) else None for t in free],
                [None] * ctx.results,
                [next(grads) for _ in pulled],
            )

        forward.register_autograd(differentiate, setup_context=save)
        backward.register_autograd(differentiate_again, setup_context=save_again)
        return forward, backward


class _Eager(torch.autograd.Function):
    """A kernel with its backward pass, at a third of a custom operation's cost a call."""

    @staticmethod
    def forward(ctx: Any, op: KernelOp, backend: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        ctx.op, ctx.backend, ctx.options, ctx.given = op, backend, options, len(inputs)
        ctx.set_materialize_grads(False)
        results = op._kernel(backend).forward(options, op.definition.inputs(*inputs), True)
        ctx.save_for_backward(*inputs, *results)
        return tuple(results[: op.definition.outputs(options)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        op: KernelOp = ctx.op
        inputs, results = ctx.saved_tensors[: ctx.given], ctx.saved_tensors[ctx.given :]
        dense = _dense(gradients, results)
        if torch.is_grad_enabled():
            found: Sequence[Tensor | None] = op._derivative(ctx.options, inputs, dense)
        else:
            wanted = ctx.needs_input_grad[3:]
            arguments = ctx.options, op.definition.inputs(*inputs), results, dense, wanted
            found = op._kernel(ctx.backend).backward(*arguments)
        return None, None, None, *(None if g is None else g.to(t.dtype) for g, t in zip(found, inputs, strict=True))


def _recording() -> Any:
    # Inside a custom operation autograd is switched off below the reach of grad mode.
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for device in ("CPU", "CUDA", "Other"):
        exclude = exclude.remove(getattr(torch._C.DispatchKey, f"Autograd{device}"))
    return torch._C._ForceDispatchKeyGuard(include, exclude)


def _dense(gradients: Sequence[Tensor | None], results: Sequence[Tensor]) -> list[Tensor]:
    return [r.new_zeros(r.shape) if g is None else g for g, r in zip(gradients, results, strict=False)]


def _own(gradient: Tensor, others: Sequence[Tensor]) -> Tensor:
    shared = any(gradient.data_ptr() == other.data_ptr() for other in others)
    return gradient.clone() if shared else gradient.contiguous()


def _real(t: Tensor | None) -> bool:
    return t is not None and (t.is_floating_point() or t.is_complex())


def _encode(options: Sequence[Any], inputs: Sequence[Tensor | None]) -> str:
    present = "".join(["0" if t is None else "1" for t in inputs])
    return ",".join([str(value) for value in options] + [present])


@functools.cache
def _decoded(kind: Any, text: str) -> tuple[Any, tuple[bool, ...]]:
    *values, present = text.split(",")
    read: dict[Any, Callable[[str], Any]] = {bool: lambda v: v == "True", int: int, str: str}
    options = kind(*(read[t](v) for t, v in zip(kind.__annotations__.values(), values, strict=True)))
    return options, tuple(letter == "1" for letter in present)
