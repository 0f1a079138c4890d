"""Leaves out what Triton's interpreter does again and again to the same effect: half of its time.

It makes all of Triton's language its own for a kernel, and once more for every function that the kernel calls; it makes
its table of dtypes for every look-up, and a type and a shape for every value.
"""

import functools
import sys
from typing import Any

import pytest
from triton.runtime import interpreter

core = interpreter.tl.core


def straighten(patch: pytest.MonkeyPatch) -> None:
    """Puts what remembers in the place of what does not."""
    patch.setattr(interpreter, "_patch_lang", _patching_once(interpreter._patch_lang))
    patch.setattr(interpreter, "_get_np_dtype", _dtypes(interpreter._get_np_dtype))
    patch.setattr(core.block_type, "__init__", _block_types(core.block_type.__init__))
    patch.setattr(core.tensor, "__init__", _tensors(core.tensor.__init__))


@functools.cache
def _languages(function: Any) -> frozenset[str]:
    values = function.__globals__.values()
    return frozenset(v.__name__ for v in values if v is interpreter.tl or v is core)


def _patching_once(patch_language: Any) -> Any:
    done: set[str] = set()

    def once(function: Any) -> Any:
        if sys._getframe(1).f_code is not interpreter.InterpretedFunction.__call__.__code__:
            done.clear()  # a kernel, which puts everything back in the end
        elif _languages(function) <= done:
            return None
        done.update(_languages(function))
        return patch_language(function)

    return once


def _dtypes(find: Any) -> Any:
    found: dict[str, Any] = {}

    def dtype(kind: Any) -> Any:
        name = kind.scalar.name
        if name not in found:
            found[name] = find(kind)
        return found[name]

    return dtype


def _block_types(make: Any) -> Any:
    made: dict[tuple[Any, ...], dict[str, Any]] = {}

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *[getattr(n, "value", n) for n in shape])
        if key not in made:
            make(self, element_ty, shape)
            made[key] = vars(self).copy()
        vars(self).update(made[key], element_ty=element_ty)

    return block_type


def _tensors(make: Any) -> Any:
    # By the identity of the type's shape, which is kept beside it and so is that of no other.
    known: dict[int, tuple[Any, Any, Any]] = {}

    def tensor(self: Any, handle: Any, type: Any) -> None:
        shape = type.shape if type.is_block() else None
        if id(shape) not in known:
            make(self, handle, type)
            known[id(shape)] = shape, self.shape, self.numel
        _, self.shape, self.numel = known[id(shape)]
        self.handle, self.type, self.dtype = handle, type, type.scalar

    return tensor
