import copy
import errno
import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from recurra.core import __version__
from recurra.core.checkpoint import Pretrained
from recurra.core.errors import FileError
from recurra.core.files import aside


class Shape(Pretrained, ABC):
    """Abstract class of a domain."""

    @abstractmethod
    def area(self) -> float: ...


class Square(Shape):
    """A square | with | bars."""

    def __init__(
        self,
        side: int,
        *,
        sizes: tuple[int, ...] = (3, 4),
        kind: Literal["a", "b"] = "a",
        rate: float = 0.5,
        pairs: tuple[tuple[int, int], ...] = ((1, 2),),
        note: str | None = None,
    ) -> None:
        super().__init__()
        self.encode = nn.Linear(side, sizes[0])
        self.decode = nn.Linear(side, sizes[0])
        self.decode.weight = self.encode.weight
        self.register_buffer("scale", torch.tensor([rate, 2.0]))
        self.register_buffer("count", torch.tensor(3))
        self.side = side

    def area(self) -> float:
        return float(self.side**2)

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x) + self.decode(x) * self.get_buffer("scale")[0]


class Circle(Shape):
    def __init__(self, *, radius: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2))

    def area(self) -> float:
        return 3.0


class Melody(Pretrained):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of a Square."""
    Square(5, sizes=(2,), kind="b").save_pretrained(tmp_path / "square")
    return tmp_path / "square"


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    kept = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def test_round_trip(tmp_path: Path) -> None:
    model = Square(5, sizes=(2, 7), note="hé").eval()
    model.get_buffer("scale").fill_(0.25)
    model.get_buffer("count").fill_(9)
    model.save_pretrained(tmp_path / "a", metadata={"license": "Apache-2.0", "training data": ["x|y"], "psnr": 31.5})
    loaded = Square.from_pretrained(tmp_path / "a")
    assert loaded.config == model.config == {
        "side": 5, "sizes": (2, 7), "kind": "a", "rate": 0.5, "pairs": ((1, 2),), "note": "hé",
    }  # fmt: skip
    assert not loaded.training
    assert loaded.metadata == {"license": "Apache-2.0", "training data": ["x|y"], "psnr": 31.5}
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    x = torch.randn(3, 5)
    assert torch.equal(model(x), loaded(x))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_config_json_names_class_and_version(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "Square"
    assert config["recurra_version"] == __version__
    assert config["sizes"] == [2]


def test_card_says_what_it_is(tmp_path: Path) -> None:
    Square(5).save_pretrained(tmp_path, metadata={"license": "CC-BY-4.0", "data": "knees | brains"})
    card = (tmp_path / "README.md").read_text()
    for words in (
        "license: ",
        "# Square",
        "21 parameters",
        "| sizes | [3, 4] |",
        "knees \\| brains",
        "from_pretrained",
    ):
        assert words in card


def test_ties_survive(folder: Path) -> None:
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert ("encode.weight" in stored) + ("decode.weight" in stored) == 1
    loaded = Square.from_pretrained(folder)
    assert loaded.decode.weight is loaded.encode.weight


def test_lists_become_tuples(folder: Path) -> None:
    assert Square(5, sizes=[2]).config["sizes"] == (2,)  # type: ignore[arg-type]
    assert Square.from_pretrained(folder).config["sizes"] == (2,)


def test_copy_keeps_config() -> None:
    model = Square(5, sizes=(2,))
    assert copy.deepcopy(model).config == model.config


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_of_the_weights_survives(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Square(5).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = Square.from_pretrained(tmp_path)
    assert loaded.encode.bias.dtype == dtype
    assert loaded.decode.weight is loaded.encode.weight
    assert torch.equal(loaded.encode.weight, model.encode.weight)


def test_loading_draws_no_random_number(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    Square.from_pretrained(folder)
    assert torch.equal(torch.rand(1), expected)


def test_abstract_class_returns_the_class_the_folder_names(folder: Path) -> None:
    assert type(Shape.from_pretrained(folder)) is Square
    assert type(Pretrained.from_pretrained(str(folder))) is Square


def test_other_class_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"square holds a Square, which is no Circle; load it with Square.from_pretr"):
        Circle.from_pretrained(folder)
    Melody().save_pretrained(tmp_path / "melody")
    with pytest.raises(ValueError, match="melody holds a Melody, which is no Shape"):
        Shape.from_pretrained(tmp_path / "melody")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": ...}, r"config\.json: no 'architecture'; this is not a Recurra checkpoint"),
        ({"architecture": 3}, "no 'architecture'"),
        (
            {"architecture": "Sqare"},
            r"json: architecture: no Shape is called 'Sqare' \(did you mean Square\?\)",
        ),
        ({"architecture": "os.system"}, r"architecture: no Shape is called 'os\.system'"),
        ({"size": 3}, r"config\.json: size: Square has no such option \(did you mean sizes\?\)"),
        ({"zzz": 3}, r"zzz: Square has no such option \(known: kind, note"),
        ({"side": ...}, r"config\.json: side: Square needs this option"),
        ({"side": "wide"}, r"config\.json: Square does not accept it: "),
        ({"metadata": 3}, r"config\.json: metadata: expected an object"),
        ({"side": 6}, r"model\.safetensors: encode.weight has shape \(2, 5\); Square expects \(2, 6\)"),
    ],
)
def test_bad_config_is_refused_in_one_line(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        Shape.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_missing_parts_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing: no such checkpoint folder"):
        Square.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match="nothing: no such checkpoint folder"):
        Square.from_pretrained(str(tmp_path / "nothing"))
    (folder / "file").touch()
    with pytest.raises(ValueError, match="expected a checkpoint folder"):
        Square.from_pretrained(folder / "file")
    (folder / "model.safetensors").rename(folder / "w")
    with pytest.raises(ValueError, match=r"square: no model\.safetensors"):
        Square.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"square: no config\.json"):
        Square.from_pretrained(folder)


def test_broken_json_is_named(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        Square.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 4, 60, -3])
def test_truncated_weights_are_named(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or truncated"):
        Square.from_pretrained(folder)


def test_tensors_must_be_exactly_those_of_the_model(folder: Path) -> None:
    path = folder / "model.safetensors"
    stored = safetensors.torch.load_file(path)
    lacking = {key: value for key, value in stored.items() if key != "scale"}
    for tensors, message in (
        (lacking, "lacks scale"),
        ({**stored, "more": torch.ones(1)}, "has more too many"),
        ({**lacking, "more": torch.ones(1)}, "lacks scale; has more too many"),
        ({**stored, "scale": torch.ones(2, dtype=torch.int64)}, r"scale has type torch.int64; .* torch.float32"),
    ):
        safetensors.torch.save_file(tensors, path)
        with pytest.raises(ValueError, match=message):
            Square.from_pretrained(folder)


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Square: note: a checkpoint stores numbers"):
        Square(5, note=object()).save_pretrained(tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Square: metadata: a checkpoint stores numbers"):
        Square(5).save_pretrained(tmp_path / "a", metadata={"x": torch.ones(1)})
    with torch.device("meta"):
        model = Square(5)
    with pytest.raises(ValueError, match="is on the meta device"):
        model.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_full_disk_leaves_the_old_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(folder)

    for error, message in (
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on disk /"),
        (safetensors.SafetensorError("I/O error: No space left on device (os error 28)"), "no space left on disk /"),
        (OSError(errno.EIO, "Input/output error"), "square: cannot write the checkpoint: .*Input/output error"),
    ):

        def full(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(OSError, match=message):
            Square(5, sizes=(2,)).save_pretrained(folder)
        assert snapshot(folder) == before


@pytest.mark.parametrize("survives", [0, 1, 2])
def test_kill_between_renames_never_pairs_config_and_foreign_weights(
    folder: Path, survives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = os.replace, []

    def dying(source: Path, target: Path) -> None:
        if len(calls) == survives:
            raise KeyboardInterrupt
        calls.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        Square(5, sizes=(2,), rate=0.75).save_pretrained(folder)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"no config\.json"):
        Square.from_pretrained(folder)
    Square(5).save_pretrained(folder)
    assert Square.from_pretrained(folder).config == Square(5).config


def test_debris_of_a_killed_save_does_not_matter(folder: Path) -> None:
    child = os.fork()
    if child == 0:
        part = aside(folder / ".saving")
        part.mkdir()
        (part / "model.safetensors").write_bytes(b"half")
        os._exit(1)
    os.waitpid(child, 0)
    assert list(folder.glob(".saving*"))
    Square(5).save_pretrained(folder)
    assert not list(folder.glob(".saving*"))


def test_other_files_of_the_folder_stay(folder: Path) -> None:
    (folder / "metrics.csv").write_text("1")
    Square(5).save_pretrained(folder)
    assert (folder / "metrics.csv").read_text() == "1"


def test_hub_name_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    Square(5).save_pretrained(tmp_path / "cache")

    def download(name: str, *, allow_patterns: list[str], revision: str = "main") -> str:
        if revision == "gone":
            raise OSError("no network\nmore")
        assert name == "owner/name"
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert Square.from_pretrained("owner/name").config["side"] == 5
    with pytest.raises(ValueError, match="owner/name: no such checkpoint folder, nor found on the hub: no network"):
        Square.from_pretrained("owner/name", revision="gone")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"side": 3, "side": 5', "not JSON: side is there twice"),
        ('"side": NaN', "not JSON: NaN is no finite number"),
        ('"side": 1e999', "not JSON: 1e999 is no finite number"),
        ('"side": ' + "[" * 60 + "]" * 60, "not JSON: nested more than 50 deep"),
        ('"side": ' + "[" * 10**5 + "]" * 10**5, "not JSON that a checkpoint has: nested too deeply"),
        ('"side": 100000000', "Square does not accept it: it asks for far more weights than there are"),
    ],
)
def test_a_config_that_no_model_has_is_one_line(text: str, said: str, folder: Path) -> None:
    path = folder / "config.json"
    content = path.read_text()
    assert '"side": 5' in content
    path.write_text(content.replace('"side": 5', text, 1))
    with pytest.raises(FileError) as caught:
        Square.from_pretrained(folder)
    assert str(caught.value).startswith(f"{path}: {said}")


def test_weights_that_are_no_numbers_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name].view(-1)[:2] = torch.tensor([torch.nan, torch.inf])
    safetensors.torch.save_file(weights, path)
    with pytest.raises(ValueError, match=rf"model\.safetensors: {name} has 2 of \d+ values that are NaN or infinite"):
        Square.from_pretrained(folder)
