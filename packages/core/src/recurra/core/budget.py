"""How much a constructor may make while a checkpoint is loaded: no more than the file of its weights can fill."""

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

_FREE, _FACTOR, _TENSOR, _MODULES = 2**26, 8, 2**12, 20_000
"""Bytes whatever the file; times the file, for other precisions and what is made in between; what a tensor counts at
least, for the Python around it; modules, whether they have weights or not."""

_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.randperm}
_FACTORIES |= {torch.arange, torch.linspace, torch.logspace, torch.eye, torch.empty_strided, torch.tril_indices}


class Budget:
    """While inside, making more tensors or modules than belong to a file of weights is a ValueError.

    A config of a few bytes can ask for a model that no machine holds; this is found out before it is made.

    Args:
        weights: the file.
    """

    def __init__(self, weights: Path) -> None:
        self._size = weights.stat().st_size
        self._bytes, self._modules = _FREE + _FACTOR * self._size, _MODULES
        self._counting = _Counting(self)
        self._hook: Any = None

    def spend(self, size: int) -> None:
        """Take so many bytes."""
        self._bytes -= max(size, _TENSOR)
        if self._bytes < 0:
            raise ValueError(f"it asks for far more weights than there are ({self._size:,} bytes)")

    def _register(self, *_: Any) -> None:
        self._modules -= 1
        if self._modules < 0:
            raise ValueError(f"it asks for more than {_MODULES:,} modules")

    def __enter__(self) -> None:
        """Begin to count."""
        self._hook = register_module_module_registration_hook(self._register)
        self._counting.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Count no more."""
        self._counting.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._hook.remove()


class _Counting(TorchFunctionMode):
    """Counts the tensors that are made from nothing, before they are."""

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self._budget = budget

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            try:
                planned = func(*args, **kwargs | {"device": "meta"})  # which has a size and takes no memory
                size = planned.numel() * planned.element_size()
            except Exception:  # of any type; what cannot be made at all says so below
                size = 0
            self._budget.spend(size)
        return func(*args, **kwargs)
