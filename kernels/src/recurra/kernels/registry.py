"""Choice of a backend for an operation.

An operation owns a list of backends. One call is served by the backend named in the argument, else by the innermost
`use_backend`, else by the environment variable RECURRA_BACKEND (where the operation has such a backend), else by the
cheapest of those that can serve.
"""

import functools
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import resources
from typing import Any

VARIABLE = "RECURRA_BACKEND"

_requested: ContextVar[str | None] = ContextVar("recurra_backend", default=None)
_operations: dict[str, "Op"] = {}


@dataclass(frozen=True)
class Backend:
    """One way to compute an operation.

    Attributes:
        name: what a caller asks for.
        supports: None if it can serve these arguments, else the reason in words.
        cost: expected microseconds for these arguments; the automatic choice takes the smallest.
        fn: the computation in plain torch; None for a kernel with a backward pass of its own (`kernel_op`).
    """

    name: str
    supports: Callable[..., str | None]
    cost: Callable[..., float]
    fn: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        """The computation in plain torch."""
        assert self.fn is not None
        return self.fn(*args)


@dataclass(frozen=True)
class Choice:
    """What `explain` answers: the chosen backend (None if nothing serves), why, and why not each other."""

    op: str
    backend: str | None
    reason: str
    rejected: dict[str, str]

    def __str__(self) -> str:
        """One line for the choice and one for each rejected backend."""
        head = f"{self.op}: {self.backend or 'nothing'} ({self.reason})"
        return "\n".join([head, *(f"  not {name}: {why}" for name, why in self.rejected.items())])


class Op:
    """An operation: a name and its backends, found by `explain` under that name."""

    def __init__(self, name: str, backends: list[Backend]) -> None:
        """Registers the operation; a name can be taken once."""
        if name in _operations:
            raise ValueError(f"operation {name!r} is registered twice; give the new one another name")
        self.name = name
        self.backends = {backend.name: backend for backend in backends}
        _operations[name] = self

    def __repr__(self) -> str:
        """Name and backends."""
        return f"Op({self.name!r}, {list(self.backends)})"

    def select(self, *args: Any, backend: str | None = None, **kwargs: Any) -> Backend:
        """The backend that serves these arguments; raises ValueError if the requested one cannot."""
        name = backend or self._requested()
        if name is not None:
            return self._named(name, args, kwargs)
        able = [b for b in self.backends.values() if b.supports(*args, **kwargs) is None]
        if not able:
            raise ValueError(f"no backend of {self.name} can serve this call: {self._reasons(args, kwargs)}")
        return min(able, key=lambda b: b.cost(*args, **kwargs))

    def explain(self, *args: Any, backend: str | None = None, **kwargs: Any) -> Choice:
        """The choice for these arguments and the reason for every backend not taken; never raises for want of one."""
        name, source = backend, "argument"
        if name is None and (name := self._requested()) is not None:
            source = "use_backend" if _requested.get() else f"environment variable {VARIABLE}"
        reasons = {b.name: b.supports(*args, **kwargs) for b in self.backends.values()}
        if name is not None:
            refused = {b: why or f"{name} was requested by {source}" for b, why in reasons.items() if b != name}
            if name not in self.backends:
                return Choice(self.name, None, f"{source} asks for {name!r}, which does not exist", refused)
            why_not = reasons[name]
            if why_not is not None:
                return Choice(self.name, None, f"{source} asks for it", {name: why_not, **refused})
            return Choice(self.name, name, source, refused)
        costs = {b: self.backends[b].cost(*args, **kwargs) for b, why in reasons.items() if why is None}
        if not costs:
            return Choice(self.name, None, "no backend can serve", {b: why or "" for b, why in reasons.items()})
        best = min(costs, key=lambda b: costs[b])
        slower = {b: f"expected {c:.0f} us against {costs[best]:.0f} us of {best}" for b, c in costs.items()}
        rejected = {b: why or slower[b] for b, why in reasons.items() if b != best}
        return Choice(self.name, best, f"automatic, expected {costs[best]:.0f} us", rejected)

    def _requested(self) -> str | None:
        # A request for a backend that only other operations have does not concern this one.
        name = requested()
        return None if name not in self.backends and name in _known() else name

    def _named(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Backend:
        if name not in self.backends:
            raise ValueError(f"backend of {self.name} must be one of {', '.join(self.backends)}; got {name!r}")
        reason = self.backends[name].supports(*args, **kwargs)
        if reason is not None:
            raise ValueError(f"backend {name!r} cannot serve {self.name}: {reason}")
        return self.backends[name]

    def _reasons(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return "; ".join(f"{b.name}: {b.supports(*args, **kwargs)}" for b in self.backends.values())


def requested() -> str | None:
    """The backend asked for by `use_backend` or the environment, None for the automatic choice."""
    return _requested.get() or os.environ.get(VARIABLE) or None


def _known() -> list[str]:
    return sorted({backend for op in _operations.values() for backend in op.backends})


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Requests a backend for every operation called inside; nests, and is local to the thread or task."""
    if name not in _known():
        raise ValueError(f"backend must be one of {', '.join(_known())}; got {name!r}")
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def explain(op: str | Callable[..., Any] | Op, *args: Any, **kwargs: Any) -> Choice:
    """The backend that a call of `op` with these arguments would take, and why not the others.

    Args:
        op: an operation, its name or its function.
        *args: arguments of the call.
        **kwargs: keyword arguments of the call, `backend` among them.
    """
    name = op if isinstance(op, str) else getattr(op, "name", None) or getattr(op, "__name__", "")
    if name not in _operations:
        raise ValueError(f"operation must be one of {', '.join(_operations)}; got {name!r}")
    return _operations[name].explain(*args, **kwargs)


@functools.cache
def installed(module: str) -> bool:
    """Whether an optional dependency can be imported; imports nothing."""
    return importlib.util.find_spec(module) is not None


@functools.cache
def measured_costs(package: str) -> dict[str, Any]:
    """The table `costs.json` beside an operation: thresholds are measurements, so they are data."""
    table: dict[str, Any] = json.loads(resources.files(package).joinpath("costs.json").read_text())
    return table


def cpu_kernel_reason(lead: Any) -> str | None:
    """Why numba cannot serve a tensor like this; None if it can."""
    if not installed("numba"):
        return "numba is not installed; pip install 'recurra-kernels[numba]'"
    if lead.device.type != "cpu":
        return f"numba serves CPU tensors; these are on {lead.device}"
    return None


def gpu_kernel_reason(lead: Any) -> str | None:
    """Why triton cannot serve a tensor like this; None if it can."""
    if not installed("triton"):
        return "triton is not installed; pip install 'recurra-kernels[triton]'"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if lead.device.type != "cuda" and not (lead.device.type == "cpu" and interpreted):
        return (
            f"triton serves CUDA tensors; these are on {lead.device} (TRITON_INTERPRET=1 runs its interpreter, slowly)"
        )
    return None
