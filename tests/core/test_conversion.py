"""From an authors' file to a checkpoint folder, whatever the project."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recurra.core.checkpoint import Pretrained
from recurra.core.conversion import Found, Source, ask, convert, count, rename, some, tensors
from recurra.core.errors import FileError, UserError


class Toy(Pretrained):
    def __init__(self, width: int = 2, *, rate: float = 1.0, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        if rate <= 0:
            raise ValueError(f"rate must be positive; got {rate}")
        self.linear = nn.Linear(width, 1)
        self.rate = 1 / rate


def weights(width: int = 2) -> dict[str, Tensor]:
    return {"linear.weight": torch.full((1, width), 0.5), "linear.bias": torch.ones(1)}


def source(read: Any = None, **about: Any) -> dict[str, Source]:
    found = Found(Toy, {"width": 2}, weights(), {"steps": 3})
    return {"theirs": Source("https://example.org/toy", "nobody knows", read or (lambda path, given: found), **about)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "theirs.bin"
    path.write_bytes(b"weights")
    return path


def test_what_a_source_finds_becomes_a_checkpoint(file: Path, tmp_path: Path) -> None:
    out = convert(file, source(), "theirs", tmp_path / "out", ["rate=1e-3", "names=[a, b]"])
    model = Toy.from_pretrained(out)
    assert model.config == {"width": 2, "rate": 1e-3, "names": ("a", "b")}
    assert torch.equal(model.linear.weight, weights()["linear.weight"])
    digest = hashlib.sha256(b"weights").hexdigest()
    origin = {"source_project": "https://example.org/toy", "source_file": "theirs.bin", "source_sha256": digest}
    unknown = {"license_note": "not stated in the file; nobody knows", "steps": 3}
    assert model.metadata == origin | unknown
    known = source(licenses={digest: "mit"})
    assert Toy.from_pretrained(convert(file, known, "theirs", tmp_path / "known")).metadata["license"] == "mit"
    said = convert(file, known, "theirs", tmp_path / "said", ["license=cc0-1.0"])
    assert Toy.from_pretrained(said).metadata["license"] == "cc0-1.0"


def test_given_keys_reach_the_source(file: Path, tmp_path: Path) -> None:
    def read(path: Path, given: Mapping[str, Any]) -> Found:
        assert path == file
        return Found(Toy, {"width": given["theirs"]}, weights(3))

    known = source(read, keys=frozenset({"theirs"}))
    assert Toy.from_pretrained(convert(file, known, "theirs", tmp_path / "out", ["theirs=3"])).config["width"] == 3
    with pytest.raises(FileError, match=r"theirs.bin: theirs: Toy has no such option"):
        convert(file, source(read), "theirs", tmp_path / "more", ["theirs=3"])


def refused(file: Path, sources: dict[str, Source], *given: str, name: str = "theirs") -> str:
    with pytest.raises(UserError) as caught:
        convert(file, sources, name, file.parent / "out", given)
    assert not (file.parent / "out").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{file.parent}/", "")


def test_refusals(file: Path) -> None:
    assert refused(file, source(), name="ours") == "--from must be one of theirs; got 'ours'"
    assert refused(file, source(), "rate") == "'rate': expected key=value, for example license=mit"
    assert refused(file.with_name("no"), source()) == "no: no such file"
    assert refused(file, source(), "rat=1") == "theirs.bin: rat: Toy has no such option (did you mean rate?)"
    assert refused(file, source(), "rate=-1") == "theirs.bin: rate must be positive; got -1"
    assert refused(file, source(), "rate=x").startswith("theirs.bin: Toy does not accept its options: ")
    assert refused(file, source(), "width=3") == (
        "theirs.bin: linear.weight has shape (1, 2); expected (1, 3) with these options"
    )
    less = source(lambda path, given: Found(Toy, {}, {"linear.bias": torch.ones(1)}))
    assert refused(file, less) == "theirs.bin: lacks linear.weight for Toy with these options"
    more = source(lambda path, given: Found(Toy, {}, weights() | {"x": torch.ones(1)}))
    assert refused(file, more) == "theirs.bin: has too many weights: x for Toy with these options"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("model"), "not complete, or of another network: KeyError 'model'"),
        (AssertionError(), "not complete, or of another network: AssertionError AssertionError"),
        (ZeroDivisionError("division by zero"), "not complete, or of another network: ZeroDivisionError division by"),
        (ValueError("two\nlines"), "two lines"),
    ],
)
def test_whatever_reading_raises_is_the_files_error(file: Path, error: Exception, told: str) -> None:
    def read(path: Path, given: Mapping[str, Any]) -> Found:
        raise error

    assert refused(file, source(read)).startswith(f"theirs.bin: {told}")


def test_what_is_no_json_is_the_files_error(file: Path, tmp_path: Path) -> None:
    dated = Found(Toy, {}, weights(), {"when": Path("a"), "steps": (1, 2)})
    out = convert(file, source(lambda path, given: dated), "theirs", tmp_path / "dated")
    assert Toy.from_pretrained(out).metadata["when"] == "a"
    odd = source(lambda path, given: Found(Toy, {"names": (Path("a"),)}, weights()))
    assert refused(file, odd).startswith("theirs.bin: Toy does not accept its options: ")


def test_a_mistake_of_ours_is_not_the_files(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **named: Any) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(Toy, "save_pretrained", broken)
    with pytest.raises(KeyError, match="ours"):
        convert(file, source(), "theirs", tmp_path / "out")


def test_names_by_a_table() -> None:
    table = ((r"a\.(\d)", r"b.\1"), (r"loss.*", None))
    one, two = torch.ones(1), torch.ones(2)
    assert rename({"a.1": one, "loss.window": two, "a.2": two}, table) == {"b.1": one, "b.2": two}
    with pytest.raises(
        ValueError, match=r"^c: no such weight in the authors' network; is this another architecture\?$"
    ):
        rename({"a.1": one, "c": one}, table)


def test_helpers_of_sources() -> None:
    state = {"a": torch.ones(1)}
    assert tensors({"model": state}, "model", "no model") is state
    for content, had in (({"model": [1]}, "model"), ({}, "nothing"), ({"model": {"a": 1}}, "model")):
        with pytest.raises(ValueError, match=f"^no model, got {had}$"):
            tensors(content, "model", "no model")
    ask({"rate": "in hertz"}, {"rate": 8000})
    with pytest.raises(ValueError, match=r"^the file does not say rate \(in hertz\), b \(c\); give each as key=value$"):
        ask({"rate": "in hertz", "b": "c", "d": "e"}, {"d": 1})
    assert count(["a.0.x", "a.0.y", "a.3.x", "b.a.1.x"], r"a\.(\d+)\.") == 2
    assert some("abcde") == "a, b, c, d, ..."
