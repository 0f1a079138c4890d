"""The one door through which other people's checkpoints enter.

Such a file is a pickle, which is a program. `read_foreign` never runs it: first torch's own restricted reader tries;
where that refuses, a reader of this file rebuilds tensors, plain containers and numbers, and turns every class it does
not know into an inert record. What a checkpoint has no business to ask for is refused by name.
"""

import argparse
import io
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra.core.errors import one_line
from recurra.core.rehearsal import rehearse

_MEMORY = 200 * 2**20
"""Bytes that reading a checkpoint may take besides four times its size."""


def read_foreign(path: str | Path) -> dict[str, Any]:
    """Contents of a checkpoint written by `torch.save`, as plain dicts, lists, numbers, text and CPU tensors.

    Nothing of the file is executed. An object of a class that is not plain becomes a dict of its attributes; one of
    OmegaConf becomes the dict, list or value it holds.

    Raises:
        ValueError: there is no such file, it is damaged, or it asks for something that no checkpoint needs.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    # A few bytes can claim gigabytes, or nest values so deeply that hashing them ends the process.
    size = path.stat().st_size
    reason = rehearse(lambda: _plainly(path), seconds=60 + size // 10**7, memory=_MEMORY + 4 * size)
    if not reason:
        try:
            return _plainly(path)
        except Exception as error:  # of any type, in a damaged file; where nothing could be rehearsed
            reason = one_line(error)
    raise ValueError(f"{path}: {reason}")


def _plainly(path: Path) -> dict[str, Any]:
    """What `read_foreign` returns, without the path in its errors."""
    try:
        plain = _Plain().convert(_read(path))
    except RecursionError as error:
        raise ValueError("nested too deeply for a checkpoint") from error
    except MemoryError:
        raise
    # A damaged or hostile file can make a reader fail in any way it likes.
    except Exception as error:
        said = isinstance(error, ValueError | RuntimeError | OSError) and str(error).strip()
        reason = said.splitlines()[0] if said else "damaged, or of another format"
        raise ValueError(f"not a readable torch checkpoint: {reason}") from error
    if not isinstance(plain, dict):
        raise ValueError(f"holds a {type(plain).__name__}; expected a dict of tensors")
    return plain


def _read(path: Path) -> Any:
    """Contents of a checkpoint by torch's restricted reader, else by ours."""
    if zipfile.is_zipfile(path):
        _check_archive(path)
    allowed: list[Any] = [argparse.Namespace, (_NumberType, "numpy.dtype")]
    allowed += [(_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols: the reader knows them or refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as refusal:
        if zipfile.is_zipfile(path):
            return _read_inertly(path)
        # The text of the refusal goes on for a paragraph; what was asked for stands after GLOBAL.
        asked = re.search(r"GLOBAL ([\w.]+)", str(refusal))
        about = f": asks for {asked[1]}" if asked else ""
        raise ValueError(f"not in torch's zip format, and not weights alone{about}; refused") from refusal


class _NumberType:
    """Stands for `numpy.dtype`: remembers which number type a scalar has."""

    def __init__(self, code: str = "", *_: Any) -> None:
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if isinstance(state, tuple) and len(state) > 1 and state[1] == ">" else "<"

    def __str__(self) -> str:
        return f"numpy {self.code}"


def _number(kind: Any, raw: Any = b"") -> Any:
    """Stands for numpy's rebuilder of scalars: the Python number."""
    code = kind.code.lstrip("<>|=") if isinstance(kind, _NumberType) else ""
    if not re.fullmatch(r"[biufc]\d{1,2}", code) or not isinstance(raw, bytes):
        raise ValueError(f"numpy scalar of type {code or kind!r} is not a number")
    return np.frombuffer(raw, np.dtype(kind.order + code), count=1)[0].item()


class _Record:
    """Stands for an object of an unknown class: keeps what it is given, does nothing."""

    _origin = ""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments: tuple[Any, ...] = arguments
        self.state: Any = named or None
        self.items: dict[Any, Any] = {}
        self.elements: list[Any] = []

    def __new__(cls, *_: Any, **__: Any) -> "_Record":
        record = object.__new__(cls)
        _Record.__init__(record)
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.elements.append(value)

    def extend(self, values: Iterable[Any]) -> None:
        self.elements.extend(values)

    add = append


class _Dict(dict[Any, Any]):
    """Stands for dicts of the standard library; what else they carry is dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Door:
    """A function a file may call; the file can change nothing about it, and each reader has its own."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)  # type: ignore[attr-defined]

    def __setstate__(self, state: Any) -> None:
        raise ValueError("sets attributes of a function; refused")

    def __setattr__(self, name: str, value: Any) -> None:
        raise ValueError("sets attributes of a function; refused")


_ELEMENT_TYPES = {
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8},
    **{"BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128},
}


class _View:
    """Stands for a tensor, or for the storage behind it, until the whole file is read."""

    __slots__ = ("_parts",)

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def __setstate__(self, state: Any) -> None:
        raise ValueError("sets attributes of a tensor; refused")

    def tensor(self) -> Tensor:
        """The tensor; as_strided refuses what lies outside the storage."""
        storage, offset, size, stride = self._parts[:4]
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without a storage")
        return torch.as_strided(storage.tensor(), tuple(size), tuple(stride), offset)


class _Storage(_View):
    """Stands for a storage: (loader, key, type, count)."""

    __slots__ = ()

    def tensor(self) -> Tensor:
        load, key, dtype, count = self._parts
        return load(key, dtype, count)  # type: ignore[no-any-return]


def _parameter(data: Any, *_: Any) -> _View:
    """Stands for torch's rebuilder of parameters."""
    if not isinstance(data, _View):
        raise ValueError("a parameter without a tensor")
    return data


def _instance(kind: Any, *_: Any) -> _Record:
    """Stands for `copyreg._reconstructor`."""
    if not (isinstance(kind, type) and issubclass(kind, _Record)):
        raise ValueError("an object of no class")
    return kind()


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _View,
    "torch._utils._rebuild_tensor_v2": _View,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": lambda *parts: ":".join(str(part) for part in parts),
    "collections.OrderedDict": lambda pairs=(): _Dict(pairs),
    "collections.defaultdict": lambda _=None, pairs=(): _Dict(pairs),
    "copyreg._reconstructor": _instance,
    "_codecs.encode": lambda text, _="": text.encode("latin1") if isinstance(text, str) else b"",
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
    "builtins.set": lambda values=(): list(values),
    "builtins.frozenset": lambda values=(): list(values),
}

# Of the standard library and of torch a checkpoint may mention these, as inert records; the rest is refused by name.
_HARMLESS = re.compile(
    r"(typing|datetime|enum|uuid|decimal|fractions|pathlib)\.\w+"
    r"|builtins\.(bool|bytes|complex|dict|float|int|long|list|object|str|tuple|unicode|slice|range|NoneType)"
    r"|argparse\.Namespace|types\.SimpleNamespace|collections\.(Counter|deque)|functools\.partial"
    r"|torch\.(nn|optim)\..+|torch\.Tensor|torch\.nn\.parameter\.Parameter"
)


_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class _InertUnpickler(pickle.Unpickler):
    """Rebuilds descriptions of tensors, and plain values; every other class is a record that does nothing."""

    def __init__(self, stream: io.BytesIO, load_storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        super().__init__(stream)
        self._load_storage = load_storage
        self._globals: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        origin = f"{_PYTHON_2.get(module, module)}.{name}"
        if origin not in self._globals:
            self._globals[origin] = self._stand_in(origin)
        return self._globals[origin]

    def _stand_in(self, origin: str) -> Any:
        package, _, name = origin.partition(".")
        if origin in _FUNCTIONS:
            return _Door(_FUNCTIONS[origin])
        if package == "torch" and name in _ELEMENT_TYPES:
            return _ELEMENT_TYPES[name]
        if package == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        if origin == "numpy.dtype":
            return type("_NumberType", (_NumberType,), {})
        standard = package in sys.stdlib_module_names or package in ("torch", "nt", "posix", "")
        if standard and not _HARMLESS.fullmatch(origin):
            raise ValueError(f"asks for {origin}, which no checkpoint needs; refused")
        return type("_Record", (_Record,), {"_origin": origin})

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise ValueError("refers to something that is not a storage; refused")
        _, dtype, key, _, count = pid
        if not (isinstance(dtype, torch.dtype) and re.fullmatch(r"\w+", str(key)) and isinstance(count, int)):
            raise ValueError(f"storage {key!r} has no known type; refused")
        return _Storage(self._load_storage, str(key), dtype, count)


def _check_archive(path: Path) -> None:
    """Refuse a zip file whose entries unpack to more than it holds."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed, which torch never does; refused")
        claimed, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
        if claimed > size:
            raise ValueError(f"its entries claim {claimed:,} bytes in a file of {size:,}; refused")


def _read_inertly(path: Path) -> Any:
    """Contents of a checkpoint in zip format that torch's own restricted reader refused."""
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip file without data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
            raise ValueError("written on a big-endian machine; not supported")
        described = archive.read(pickles[0])
        raw = {name.removeprefix(root + "data/"): archive.read(name) for name in archive.namelist()}
    storages: dict[str, Tensor] = {}

    def load_storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in raw or len(raw[key]) != count * dtype.itemsize:
            raise ValueError(f"storage {key} is missing or not of {count} {dtype}")
        if key not in storages:
            content = bytearray(raw[key])
            storages[key] = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0).byte()
        return storages[key].view(dtype)

    return _InertUnpickler(io.BytesIO(described), load_storage).load()


def _bounded(tensor: Tensor) -> Tensor:
    """The tensor, unless it is a view that repeats a few values into gigabytes."""
    if tensor.layout is torch.strided and not tensor.is_meta:
        size, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        if size > max(stored, 2**26):
            raise ValueError(f"a tensor of {size:,} bytes with {stored:,} stored; refused")
    return tensor


class _Plain:
    """Turns what a reader returned into plain values; what is shared stays shared, what is circular ends in None."""

    def __init__(self) -> None:
        # Keeps every source alive too, so that no address is used twice.
        self._done: dict[int, tuple[Any, Any]] = {}

    def convert(self, value: Any) -> Any:
        """The plain form of a value."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            return value
        if id(value) not in self._done:
            self._done[id(value)] = (value, None)
            self._done[id(value)] = (value, self._fresh(value))
        return self._done[id(value)][1]

    def _fresh(self, value: Any) -> Any:
        if isinstance(value, (Tensor, _View)):
            return _bounded(value.detach() if isinstance(value, Tensor) else value.tensor())
        if isinstance(value, dict):
            return {self._key(key): self.convert(item) for key, item in dict.items(value)}
        if isinstance(value, (list, set, frozenset)):
            return [self.convert(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self.convert(item) for item in value)
        if isinstance(value, argparse.Namespace):
            return self.convert(vars(value))
        if isinstance(value, _Record):
            return self._record(value)
        return getattr(value, "_origin", None) or str(value)

    def _key(self, key: Any) -> Hashable:
        plain = self.convert(key)
        return plain if isinstance(plain, Hashable) else str(plain)

    def _record(self, record: _Record) -> Any:
        """What an unknown object holds: OmegaConf's contents as such, else attributes, items, elements, arguments."""
        state = record.state
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state = {**(state[0] or {}), **state[1]}  # (attributes, slots)
        for content in ("_content", "_val"):
            if isinstance(state, dict) and content in state:
                return self.convert(state[content])
        for held in (state, record.items, record.elements, record.arguments):
            if held:
                return self.convert(held)
        return {}
