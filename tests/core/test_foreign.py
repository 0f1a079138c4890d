import argparse
import io
import os
import pickle
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recurra.core.container import read_container
from recurra.core.foreign import read_foreign

MARK = "was-here"


def opcodes(path: Path, program: bytes) -> Path:
    """A torch zip whose pickle is this program."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
    return path


def same(ours: dict[str, Any], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[key], value) and ours[key].dtype == value.dtype for key, value in theirs.items()
    )


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return OrderedDict(
        a=torch.randn(3, 4).t(), b=torch.arange(5)[2:], c=torch.randn(2, dtype=torch.complex64), d=torch.tensor(True),
        e=torch.randn(3).to(torch.bfloat16), f=torch.zeros(0, 2), g=nn.Parameter(torch.ones(2)).data,
    )  # fmt: skip


@pytest.fixture
def omegaconf(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """Classes shaped and named like OmegaConf's, which a Lightning file holds; gone again when the file is read."""
    made: dict[str, type] = {}
    for module, name in (("dictconfig", "DictConfig"), ("nodes", "AnyNode"), ("base", "ContainerMetadata")):
        holder = types.ModuleType(f"omegaconf.{module}")
        made[name] = type(name, (), {"__module__": holder.__name__})
        setattr(holder, name, made[name])
        monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
        monkeypatch.setitem(sys.modules, holder.__name__, holder)
    return made


def lightning_file(path: Path, weights: dict[str, Tensor], made: dict[str, type]) -> Path:
    def new(name: str, **state: Any) -> Any:
        instance = made[name]()
        instance.__dict__.update(state)
        return instance

    config = new("DictConfig", _metadata=new("ContainerMetadata", ref_type=Any, object_type=dict), _parent=None)
    config._content = {"depth": new("AnyNode", _val=2, _parent=config), "flags": defaultdict(list, x=[1, 2])}
    torch.save({"epoch": 20, "hyper_parameters": {"cfg": config}, "state_dict": weights}, path)
    for module in [name for name in sys.modules if name.startswith("omegaconf")]:
        del sys.modules[module]
    return path


def test_plain_state_dict(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save({"model": weights, "when": "2022", "rate": 1e-3, "shape": torch.Size([2, 3])}, tmp_path / "m.pt")
    read = read_foreign(tmp_path / "m.pt")
    assert same(read["model"], weights)
    assert read["when"] == "2022"
    assert read["rate"] == 1e-3
    assert read["shape"] == (2, 3)
    assert type(read["model"]) is dict


def test_legacy_format(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    assert same(read_foreign(tmp_path / "m.pt"), weights)


def test_namespace_and_numpy_scalars(tmp_path: Path) -> None:
    content = {"args": argparse.Namespace(lr=0.1, sub=argparse.Namespace(n=3)), "best": np.float64(0.25)}
    torch.save({**content, "step": np.int32(-7)}, tmp_path / "m.pt")
    assert read_foreign(tmp_path / "m.pt") == {"args": {"lr": 0.1, "sub": {"n": 3}}, "best": 0.25, "step": -7}


def test_lightning_file_with_omegaconf(tmp_path: Path, weights: dict[str, Tensor], omegaconf: dict[str, type]) -> None:
    path = lightning_file(tmp_path / "m.ckpt", weights, omegaconf)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    read = read_foreign(path)
    assert same(read["state_dict"], weights)
    assert read["epoch"] == 20
    assert read["hyper_parameters"] == {"cfg": {"depth": 2, "flags": {"x": [1, 2]}}}


def test_both_readers_agree_on_shared_storages(tmp_path: Path, omegaconf: dict[str, type]) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    weights = {"whole": whole, "row": whole[1], "column": whole[:, 2], "parameter": nn.Parameter(whole.clone())}
    torch.save(weights, tmp_path / "plain.pt")
    read = read_foreign(lightning_file(tmp_path / "m.ckpt", weights, omegaconf))["state_dict"]
    assert same(read, read_foreign(tmp_path / "plain.pt"))
    assert same(read, {key: value.detach() for key, value in weights.items()})
    assert read["row"].untyped_storage().data_ptr() == read["whole"].untyped_storage().data_ptr()


class Reduces:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class Builds:
    """Does something when its state is set."""

    def __setstate__(self, state: Any) -> None:
        Path(MARK).touch()

    def __getstate__(self) -> Any:
        return {"x": 1}


class Appends(list[int]):
    """Does something when it is filled."""

    def extend(self, values: Any) -> None:
        Path(MARK).touch()

    def append(self, value: int) -> None:
        Path(MARK).touch()


COMMAND = f"touch {MARK}"
REFUSED = {
    "reduce": Reduces(os.system, COMMAND),
    "nested": {"a": [({"b": Reduces(os.system, COMMAND)},)]},
    "eval": Reduces(eval, f"open({MARK!r}, 'w').close()"),
    "getattr": Reduces(getattr, (), "__class__"),
    "import": Reduces(__import__, "antigravity"),
    "torch function": Reduces(torch.save, torch.zeros(1), MARK),
    "torch load": Reduces(torch.load, MARK),
    "torch hub": Reduces(torch.hub.load, "x", "y"),
    "file": Reduces(open, MARK, "w"),
    "unpickle": Reduces(pickle.loads, pickle.dumps(Reduces(os.system, COMMAND))),
}


@pytest.fixture
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder in which nothing may appear but what the test writes."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not Path(MARK).exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_calls_are_refused_by_name(untouched: Path, name: str, zipped: bool) -> None:
    path = untouched / "evil.ckpt"
    torch.save({"state_dict": {}, "x": REFUSED[name]}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil\.ckpt: .*asks for [\w.]+.*refused") as caught:
        read_foreign(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [Builds, Appends])
def test_unknown_classes_are_inert(untouched: Path, kind: type) -> None:
    instance = kind()
    if isinstance(instance, list):
        list.extend(instance, [1, 2])
    torch.save({"x": instance, "w": torch.ones(2)}, untouched / "evil.ckpt")
    Path(MARK).unlink(missing_ok=True)
    read = read_foreign(untouched / "evil.ckpt")
    assert read["x"] == ([1, 2] if kind is Appends else {"x": 1})
    assert torch.equal(read["w"], torch.ones(2))


def test_the_fixtures_would_act(untouched: Path) -> None:
    pickle.loads(pickle.dumps(REFUSED["reduce"]))
    assert Path(MARK).exists()
    Path(MARK).unlink()
    pickle.loads(pickle.dumps(Builds()))
    assert Path(MARK).exists()
    Path(MARK).unlink()


PROGRAMS = {
    # A function under another name, through the memo: the name is looked up where it is defined all the same.
    "memo": b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01cposix\nsystem\nq\x02h\x02"
    b"X\x0e\x00\x00\x00touch was-here\x85Rq\x03u.",
    "INST": b"(S'touch was-here'\niposix\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\nX\x0e\x00\x00\x00touch was-hereo.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\nX\x0e\x00\x00\x00touch was-here\x85\x81.",
    "dotted": b"\x80\x04\x8c\x05torch\x8c\x12serialization.load\x93\x8c\x01x\x85R.",
    "dotted os": b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c\x0etouch was-here\x85R.",
    "python 2": b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.",
    # BUILD on what is no instance: a rebuilder's defaults, a class, an element type, a dict.
    "function's attributes": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__dict__K\x01sb.",
    "function's slots": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x09\x00\x00\x00_functionK\x01s\x86b.",
    "class's attributes": b"\x80\x02comegaconf\nX\n}X\x08\x00\x00\x00__init__K\x01sb.",
    "type's attributes": b"\x80\x02ctorch\nFloatStorage\n}X\x01\x00\x00\x00xK\x01sb.",
    "extension": b"\x80\x02\x82\x01.",
    "text id": b"Pstorage\n.",
    "no id": b"\x80\x02K\x01Q.",
    "call of a record": b"\x80\x02comegaconf\nX\n)R)R.",
    "truncated": b"\x80\x02}q\x00(X\x01\x00\x00\x00a",
    "no dict": b"\x80\x02]comegaconf\nX\na.",
    "deep": b"\x80\x02}X\x01\x00\x00\x00ocomegaconf\nX\nsX\x01\x00\x00\x00a" + b"]" * 5000 + b"a" * 4999 + b"s.",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_tricks_end_in_one_line(untouched: Path, name: str) -> None:
    path = opcodes(untouched / "evil.ckpt", PROGRAMS[name])
    with pytest.raises(ValueError, match=r"evil\.ckpt: ") as caught:
        read_foreign(path)
    assert "\n" not in str(caught.value)


def test_one_file_does_not_change_what_the_next_may_do(untouched: Path, omegaconf: dict[str, type]) -> None:
    for name in ("function's attributes", "function's slots", "class's attributes"):
        with pytest.raises(ValueError, match="evil"):
            read_foreign(opcodes(untouched / "evil.ckpt", PROGRAMS[name]))
    weights = {"w": torch.ones(2)}
    assert same(read_foreign(lightning_file(untouched / "m.ckpt", weights, omegaconf))["state_dict"], weights)


def test_circular_and_shared_objects(untouched: Path) -> None:
    # {"x": X(), "l": l} with l = [l], and doubled forty times over: converted once each, not 2^40 times.
    doubled = b"]K\x01a" + b"q\x000]h\x00ah\x00a" * 40
    program = (
        b"\x80\x02}X\x01\x00\x00\x00xcomegaconf\nX\n)RsX\x01\x00\x00\x00l]q\x01h\x01asX\x01\x00\x00\x00d"
        + doubled
        + b"s."
    )
    read = read_foreign(opcodes(untouched / "m.ckpt", program))
    assert read["l"] == [None]
    assert read["d"][0] is read["d"][1]


def test_tensor_outside_its_storage_is_refused(tmp_path: Path, omegaconf: dict[str, type]) -> None:
    path = lightning_file(tmp_path / "m.ckpt", {"w": torch.zeros(3, 7)}, omegaconf)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for before, after in ((b"K\x03K\x07\x86", b"K\x03K\x09\x86"), (b"K\x15tq", b"K\x16tq")):
        with zipfile.ZipFile(tmp_path / "evil.ckpt", "w") as archive:
            for name, content in files.items():
                assert name != "m/data.pkl" or before in content
                archive.writestr(name, content.replace(before, after, 1))
        with pytest.raises(ValueError, match=r"evil\.ckpt: .*storage"):
            read_foreign(tmp_path / "evil.ckpt")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/constants.pkl", b"\x80\x02}.")
        archive.writestr("m/data.pkl", b"\x80\x02}.")
    with pytest.raises(ValueError, match=r"m\.pt: "):
        read_foreign(tmp_path / "m.pt")


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a checkpoint", b"PK\x03\x04broken"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.pt: ") as caught:
        read_foreign(tmp_path / "m.pt")
    assert "\n" not in str(caught.value)


def test_truncated_and_missing_files_are_named(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, tmp_path / "m.pt")
    (tmp_path / "m.pt").write_bytes((tmp_path / "m.pt").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"m\.pt: not a readable torch checkpoint"):
        read_foreign(tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"none\.pt: no such file"):
        read_foreign(tmp_path / "none.pt")


# --- containers


def container(path: Path, members: list[tuple[str, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_container(tmp_path: Path, weights: dict[str, Tensor], mode: str, prefix: str) -> None:
    members = [(f"{prefix}model_config.yaml", b"depth: 2\n"), (f"{prefix}model_weights.ckpt", saved(weights))]
    config, state = read_container(container(tmp_path / "m.mridc", members, mode))
    assert config == {"depth": 2}
    assert same(state, weights)


def test_container_of_another_project(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    members = [("run/best.pth", saved({"state_dict": weights})), ("run/._options.yml", b"\0"), ("README.md", b"")]
    path = container(tmp_path / "m.tar", [*members, ("run/options.yml", b"depth: 2\n")])
    config, state = read_container(path)
    assert config == {"depth": 2}
    assert same(state, weights)


CONFIG, WEIGHTS = ("model_config.yaml", b"a: 1"), ("model_weights.ckpt", saved({"w": torch.ones(1)}))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([CONFIG, WEIGHTS, ("../x", b"")], r"'\.\./x' lies outside"),
        ([CONFIG, WEIGHTS, ("a/../../x", b"")], "lies outside"),
        ([("/etc/x", b""), CONFIG, WEIGHTS], "'/etc/x' lies outside"),
        ([("C:\\x", b""), CONFIG, WEIGHTS], "lies outside"),
        ([CONFIG, WEIGHTS, CONFIG], "twice"),
        ([CONFIG, WEIGHTS, ("big", b"x" * 5000)], "'big' brings the contents over 4000 bytes"),
        ([CONFIG], "no .ckpt or .pt or .pth file inside"),
        ([WEIGHTS], "no .yaml or .yml file inside"),
        ([CONFIG, WEIGHTS, ("more/b.yml", b"")], "holds 'model_config.yaml' and 'more/b.yml'; expected one of them"),
        ([CONFIG, WEIGHTS, ("last.pt", b"")], "holds 'model_weights.ckpt' and 'last.pt'; expected one of them"),
        ([("model_config.yaml", b"- 1"), WEIGHTS], "expected a mapping, got list"),
        ([("model_config.yaml", b"!!python/object/apply:os.system [touch was-here]"), WEIGHTS], "model_config.yaml: "),
        (
            [CONFIG, ("model_weights.ckpt", saved({"x": REFUSED["reduce"]}))],
            r"weights\.ckpt: .*asks for posix\.system",
        ),
        ([CONFIG, ("model_weights.ckpt", saved({"w": 1}))], "expected a dict of tensors"),
    ],
)
def test_bad_container_is_refused(untouched: Path, members: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(ValueError, match=r"m\.mridc: .*" + message) as caught:
        read_container(container(untouched / "m.mridc", members), limit=4000)
    assert "\n" not in str(caught.value)
    assert "/recurra-" not in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "m.mridc", "w") as archive:
        info = tarfile.TarInfo("model_config.yaml")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(ValueError, match="link or a device"):
        read_container(tmp_path / "m.mridc")


def test_truncated_container_is_named(tmp_path: Path) -> None:
    path = container(tmp_path / "m.mridc", [CONFIG, WEIGHTS])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"m\.mridc: damaged"):
        read_container(path)
    with pytest.raises(ValueError, match="none: no such file"):
        read_container(tmp_path / "none")
