"""The formats that core reads, with good files of them and the damage that each can have."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from mutants import Format
from torch import nn

from recurra.core.checkpoint import Pretrained
from recurra.core.container import read_container
from recurra.core.foreign import read_foreign
from recurra.core.recipe import construct, load_recipe


class Stack(Pretrained):
    """A model whose config decides how large it is."""

    def __init__(self, *, layers: int = 2, width: int = 4, names: tuple[str, ...] = ("a", "b")) -> None:
        super().__init__()
        self.stack = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.scale = nn.Parameter(torch.ones(width))


def _folder(path: Path) -> Path:
    """A checkpoint folder of which `path` stands for one file."""
    folder = path.with_name(f"{path.name}-folder")
    if not folder.is_dir():
        torch.manual_seed(0)
        Stack().save_pretrained(folder, metadata={"note": "of a test", "figures": [1.5, 2]})
    return folder


def _checkpoint(name: str) -> tuple[Callable[[Path], object], Callable[[Path], object]]:
    """How a file of a checkpoint is written and used, called `name` in its folder."""

    def write(path: Path) -> None:
        path.write_bytes((_folder(path) / name).read_bytes())

    def use(path: Path) -> None:
        folder = _folder(path)
        place = folder / name
        place.write_bytes(path.read_bytes())
        try:
            Stack.from_pretrained(folder)
        except ValueError as error:
            raise ValueError(str(error).replace(str(place), str(path)).replace(str(folder), str(path))) from error

    return write, use


def _config(**changes: Any) -> Callable[[Path], object]:
    def edit(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def _text(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """An edit of the header of a safetensors file."""

    def edit(path: Path) -> None:
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return edit


def _first(header: dict[str, Any], **changes: Any) -> None:
    header[next(name for name in header if name != "__metadata__")] |= changes


def _not_finite(path: Path) -> None:
    weights = safetensors.torch.load_file(path)
    weights["scale"][1] = float("nan")
    safetensors.torch.save_file(weights, path)


def _pickled(path: Path, **options: Any) -> None:
    state = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}
    torch.save({"state_dict": state, "epoch": 3, "args": {"lr": 1e-3, "names": ["a", "b"]}}, path, **options)


def _program(program: bytes) -> Callable[[Path], object]:
    """An edit that puts another pickle in the place of the one in a zip file."""

    def edit(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", program)
            archive.writestr("a/byteorder", "little")
            archive.writestr("a/version", "3\n")

    return edit


def _raw(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


_OTHER_READER = b"\x80\x02cfairseq\nConfig\n)\x810"  # an unknown class, which torch's own reader refuses

_PROGRAMS = {
    "a memo of gigabytes": b"\x80\x02]r" + struct.pack("<I", 0x0FFFFFF0) + b".",
    "a memo of gigabytes, other reader": _OTHER_READER + b"]r" + struct.pack("<I", 0x0FFFFFF0) + b".",
    "many bytes": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (3 << 30).to_bytes(5, "little") + b"\x85R.",
    "a key nested deeply": b"\x80\x02})" + b"\x85" * 900_000 + b"Ns.",
    "a key nested deeply, other reader": _OTHER_READER + b"})" + b"\x85" * 900_000 + b"Ns.",
    "lists nested deeply": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
    "a call": b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
    "a text that is not there": b"\x80\x02X\xff\xff\xff\x7fab.",
    "a frame that is not there": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
    "nothing": b"",
}


def _packed(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content + bytes(2**28 if "/data/" in name else 0))


def _container(path: Path, *, config: bytes = b"model: {name: Stack, width: 4}\n") -> None:
    weights = io.BytesIO()
    torch.save({"layer.weight": torch.ones(2, 3)}, weights)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in (("model_config.yaml", config), ("model_weights.ckpt", weights.getvalue())):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _entry(kind: bytes, size: int, name: str = "x") -> Callable[[Path], object]:
    """An edit that puts an entry of zeros first into a container."""

    def edit(path: Path) -> None:
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size = kind, size
            archive.addfile(entry, _Zeros(size))

    return edit


class _Zeros(io.RawIOBase):
    """So many zeros, none of them kept."""

    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, size: int = -1) -> bytes:
        count = min(self._left, 2**20 if size < 0 else size)
        self._left -= count
        return bytes(count)


def _laughs(depth: int = 9) -> str:
    lines = ["a0: &a0 [h, a, h, a, h, a, h, a]"]
    return "\n".join(lines + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, depth)]) + "\n"


_RECIPE = """# A recipe.
model: {name: Stack, layers: 2, width: 4, names: [a, b]}
train:
  epochs: 3
  lr: 1e-3
  when: 2020-01-02
tiny: {model.width: 2}
"""


def _use_recipe(path: Path) -> None:
    recipe = load_recipe(path, package="recurra.core")
    options = {key: value for key, value in recipe.section("model").items() if key != "name"}
    options = {key: min(value, 8) if isinstance(value, int) else value for key, value in options.items()}
    construct(Stack, options, recipe.where("model"))


_WORDS = ("[" * 3000, "{a: " * 200, "!!timestamp x", "!!python/name:os.system ", "&a [*a]", "? [a]\n: b\n", "1e999")
_WORDS += (".nan", "\n", "2020-99-99", "\0", "\x85", "<<: *a", "9" * 5000)
_JSON = ("[" * 3000, '{"a":' * 500, "NaN", "-Infinity", "1e999", "9" * 6000, '"', "\0", "\\ud800", '"layers": 1, ')

CORE = (
    Format(
        "config.json",
        *_checkpoint("config.json"),
        {
            "far too many layers": _config(layers=3_000_000),
            "far too wide": _config(width=200_000),
            "wider than any number": _config(width=10**30),
            "a list for a number": _config(layers=[1, 2]),
            "a key twice": _text('"layers": 2', '"layers": 2, "layers": 3'),
            "NaN": _text('"layers": 2', '"layers": NaN'),
            "nested": _text('"layers": 2', '"layers": ' + "[" * 100_000 + "]" * 100_000),
            "a large metadata": _config(metadata={"a": "x" * 2**23}),
        },
        _JSON,
    ),
    Format(
        "model.safetensors",
        *_checkpoint("model.safetensors"),
        {
            "absurd shape": _header(lambda header: _first(header, shape=[2**40, 2**40])),
            "negative shape": _header(lambda header: _first(header, shape=[-1, 4])),
            "unknown type": _header(lambda header: _first(header, dtype="F7")),
            "offsets outside": _header(lambda header: _first(header, data_offsets=[0, 2**50])),
            "nested header": _header(lambda header: header.update(__metadata__={"a": "b" * 2**20})),
            "a header that is not there": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
            "NaN in a weight": _not_finite,
        },
    ),
    Format(
        "zip.pt",
        _pickled,
        read_foreign,
        {name: _program(text) for name, text in _PROGRAMS.items()} | {"compressed": _packed},
    ),
    Format(
        "legacy.pt",
        lambda path: _pickled(path, _use_new_zipfile_serialization=False),
        read_foreign,
        {name: _raw(text) for name, text in _PROGRAMS.items()}
        | {"a plain pickle": lambda path: path.write_bytes(pickle.dumps({"a": [1, 2]}))},
    ),
    Format(
        "tar.mridc",
        _container,
        read_container,
        {
            "a large config": _entry(tarfile.REGTYPE, 2**29, "model_config.yaml"),
            "a long name": _entry(tarfile.GNUTYPE_LONGNAME, 2**29),
            "a long comment": _entry(tarfile.XHDTYPE, 2**29),
            "a global comment": _entry(tarfile.XGLTYPE, 2**29),
            "a device": _entry(tarfile.CHRTYPE, 0, "model_config.yaml"),
            "laughs": lambda path: _container(path, config=_laughs().encode()),
            "nested": lambda path: _container(path, config=b"a: " + b"[" * 100_000),
            "no text": lambda path: _container(path, config=b"a: \xff"),
        },
    ),
    Format(
        "recipe.yaml",
        lambda path: path.write_text(_RECIPE),
        _use_recipe,
        {
            "laughs": lambda path: path.write_text(_laughs() + "model: {name: Stack, names: *a8}\n"),
            "laughs of merging": lambda path: path.write_text(_merges()),
            "nested": lambda path: path.write_text("model: {names: " + "[" * 50_000 + "]" * 50_000 + "}"),
            "large": lambda path: path.write_text("# " + "x" * 2**24),
            "no text": lambda path: path.write_bytes(b"model: {name: \xff}"),
            "empty": lambda path: path.write_bytes(b""),
        },
        _WORDS,
    ),
)


def _merges() -> str:
    lines = ["b0: &b0 {x: 1, y: 2}"] + [f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 8)}]}}" for n in range(1, 9)]
    return "\n".join(lines) + "\nmodel: {<<: *b8, name: Stack}\n"
