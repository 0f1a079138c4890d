"""A kernel operation as compilers and exporters see it: two custom operations that they do not look into."""

import contextlib
import functools
import importlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from recurra.kernels.definition import Definition, Kernel, alias, differentiable
from recurra.kernels.registry import Backend, Op


class OpaqueOp(Op):
    """An operation whose backends are plain torch (`fn` given) or kernels (`fn` None, module `package.NAME`).

    `forward_op` and `backward_op` are the custom operations `recurra::NAME` and `recurra::NAME_backward`, both
    differentiable. The first returns outputs, what is saved, and which backend ran: only that one knows what it saved.
    """

    def __init__(self, name: str, package: str, definition: Definition, backends: list[Backend]) -> None:
        super().__init__(name, backends)
        self.definition, self.package = definition, package
        self.forward_op, self.backward_op = self._registered()

    def kernel(self, name: str) -> Kernel:
        """The module of a backend, imported at first use: numba and triton are needed by none but their own."""
        loaded: Any = importlib.import_module(f"{self.package}.{name}")
        return loaded  # type: ignore[no-any-return]

    def _registered(self) -> tuple[Any, Any]:
        @torch.library.custom_op(f"recurra::{self.name}", mutates_args=())
        def forward(options: str, tensors: Sequence[Tensor], backend: str, saving: bool) -> list[Tensor]:
            return self._run(options, tensors, backend, saving)

        @torch.library.custom_op(f"recurra::{self.name}_backward", mutates_args=())
        def backward(
            options: str, tensors: Sequence[Tensor], results: Sequence[Tensor], gradients: Sequence[Tensor]
        ) -> list[Tensor]:
            return self._run_backward(options, tensors, results, gradients)

        @forward.register_fake
        def _(options: str, tensors: Sequence[Tensor], backend: str, saving: bool) -> list[Tensor]:
            shapes = self.definition.shapes(*self._decode(options, tensors), saving)
            return [*shapes, torch.empty((), dtype=torch.uint8, device="cpu")]

        @backward.register_fake
        def _(
            options: str, tensors: Sequence[Tensor], results: Sequence[Tensor], gradients: Sequence[Tensor]
        ) -> list[Tensor]:
            return [t.new_empty(t.shape) for t in tensors]

        forward.register_autograd(self._gradient, setup_context=_save)
        backward.register_autograd(self._second_gradient, setup_context=_save_backward)
        return forward, backward

    def _decode(self, text: str, tensors: Sequence[Tensor]) -> tuple[Any, Any]:
        """Options and inputs of an encoded call."""
        options, present = _decoded(self.definition.options, text)
        rest = iter(tensors)
        return options, self.definition.inputs(*(next(rest) if there else None for there in present))

    def _run(self, text: str, tensors: Sequence[Tensor], backend: str, saving: bool) -> list[Tensor]:
        options, inputs = self._decode(text, tensors)
        chosen = self.select(options, inputs, backend=None if backend == "auto" else backend)
        with without_autocast(inputs):
            if chosen.fn is None:
                results = list(self.kernel(chosen.name).forward(options, inputs, saving))
            else:
                # Laid out as the tracer was told.
                results = list(self.definition.shapes(options, inputs, saving))
                outputs = chosen(options, inputs)
                for result, value in zip(results, outputs, strict=False):
                    result.copy_(value)
                for unused in results[len(outputs) :]:
                    unused.zero_()
        # Outputs of an operation may share memory neither with its inputs nor with each other.
        seen = {t.data_ptr() for t in tensors}
        for i, result in enumerate(results):
            results[i] = result.clone() if result.data_ptr() in seen else result
            seen.add(result.data_ptr())
        return [*results, torch.tensor(list(self.backends).index(chosen.name), dtype=torch.uint8)]

    def _run_backward(
        self, text: str, tensors: Sequence[Tensor], results: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> list[Tensor]:
        options, inputs = self._decode(text, tensors)
        chosen = list(self.backends.values())[int(results[-1])]
        if chosen.fn is None:
            wanted = [differentiable(t) for t in inputs]
            found = self.kernel(chosen.name).backward(options, inputs, results[:-1], gradients, wanted)
        else:
            with torch.no_grad(), _autograd():
                found = self.definition.derivative(options, inputs, gradients)
        # Outputs of an operation may neither be absent nor share memory with an input.
        pairs = [(t, g) for t, g in zip(inputs, found, strict=True) if t is not None]
        held = {t.data_ptr() for t in (*tensors, *gradients)}
        return [t.new_zeros(t.shape) if g is None else _own(g.to(t.dtype), held) for t, g in pairs]

    def _gradient(self, ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
        saved = list(ctx.saved_tensors)  # once: each access unpacks anew, which recomputed activations refuse
        tensors, results = saved[: ctx.given], saved[ctx.given :]
        count = self.definition.outputs(_decoded(self.definition.options, ctx.text)[0])
        found = self.backward_op(ctx.text, tensors, results, dense(gradients[:count], results))
        return None, [g if differentiable(t) else None for g, t in zip(found, tensors, strict=True)], None, None

    def _second_gradient(self, ctx: Any, second: list[Tensor]) -> tuple[Any, ...]:
        # Of the gradients as functions of inputs and output gradients alone, through the definition.
        saved, again = ctx.saved_tensors, torch.is_grad_enabled()
        tensors, gradients = saved[: ctx.given], saved[ctx.given :]
        with torch.enable_grad():
            free = [alias(t) if differentiable(t) else t for t in tensors]
            pulled = [alias(t) for t in gradients]
            options, inputs = self._decode(ctx.text, free)
            first = self.definition.derivative(options, inputs, pulled)
            present = [g for g, t in zip(first, inputs, strict=True) if t is not None]
            used = [(g, d) for g, d in zip(present, second, strict=True) if g is not None and g.requires_grad]
            leaves = [t for t in free if differentiable(t)] + pulled
            outputs, weights = [g for g, _ in used], [d for _, d in used]
            found = iter(torch.autograd.grad(outputs, leaves, weights, create_graph=again, allow_unused=True))
        of_tensors = [next(found) if differentiable(t) else None for t in free]
        return None, of_tensors, [None] * ctx.results, list(found)


def encode(options: Sequence[Any], inputs: Sequence[Tensor | None]) -> str:
    """Options, and which inputs are there, as a custom operation can take them."""
    present = "".join(["0" if t is None else "1" for t in inputs])
    # A tracer that leaves an integer open is made to settle it: an option is no size.
    texts = [str(value) if isinstance(value, (str, bool)) else str(operator.index(value)) for value in options]
    return ",".join([*texts, present])


@functools.cache
def _decoded(kind: Any, text: str) -> tuple[Any, tuple[bool, ...]]:
    *values, present = text.split(",")
    read: dict[Any, Callable[[str], Any]] = {bool: lambda v: v == "True", int: int, str: str}
    options = kind(*(read[t](v) for t, v in zip(kind.__annotations__.values(), values, strict=True)))
    return options, tuple(letter == "1" for letter in present)


def without_autocast(inputs: Sequence[Tensor | None]) -> Any:
    """Switches autocast off: 16 bit may come in, but states and arithmetic are carried in 32."""
    device = next(t.device.type for t in inputs if t is not None)
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


def dense(gradients: Sequence[Tensor | None], results: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the first results, zero where there is none."""
    return [r.new_zeros(r.shape) if g is None else g for g, r in zip(gradients, results, strict=False)]


def _own(gradient: Tensor, held: set[int]) -> Tensor:
    mine = gradient.clone(memory_format=torch.contiguous_format) if gradient.data_ptr() in held else gradient
    held.add(mine.data_ptr())
    return mine.contiguous()


def _autograd() -> Any:
    # Inside a custom operation autograd is switched off below the reach of grad mode.
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for device in ("CPU", "CUDA", "Other"):
        exclude = exclude.remove(getattr(torch._C.DispatchKey, f"Autograd{device}"))
    return torch._C._ForceDispatchKeyGuard(include, exclude)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.text, tensors, _, _ = inputs
    ctx.given = len(tensors)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.text, tensors, results, gradients = inputs
    ctx.given, ctx.results = len(tensors), len(results)
    ctx.save_for_backward(*tensors, *gradients)
