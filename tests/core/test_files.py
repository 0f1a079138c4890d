"""Inputs that people give, and the names of their results."""

from pathlib import Path

import pytest

from recurra.core.errors import FileError
from recurra.core.files import find_inputs, result_names


def tree(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path, *inputs: str, **options: object) -> list[str]:
    paths = find_inputs([root / name for name in inputs], [".raw", ".h5"], **options)
    return [path.relative_to(root).as_posix() for path in paths]


def test_results_are_no_inputs(tmp_path: Path) -> None:
    """A second run over a folder that holds results of the first one finds the same inputs."""
    (tmp_path / "a.h5").write_bytes(b"raw")
    (tmp_path / "out").mkdir()
    result = tmp_path / "out" / "a.h5"
    result.write_bytes(b"\x89HDF" + bytes(1000) + b"recurra " + b"0" * 24 + b" " + b"f" * 24 + b"image")
    assert find_inputs(tmp_path, [".h5"]) == [tmp_path / "a.h5"]
    assert find_inputs([tmp_path, result], [".h5"]) == [tmp_path / "a.h5", result]  # asked for by name
    with pytest.raises(ValueError, match=r"no \.h5 file in this folder, but for 1 results of earlier runs"):
        find_inputs(tmp_path / "out", [".h5"])


def test_a_folder_stands_for_all_below_it(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "b.raw",
        "a/c.H5",
        "a/deep/er/d.h5",
        "a/e.txt",
        ".hidden/f.h5",
        "a/.g.h5",
        "a/h.part/i.h5",
        "x.h5/j.h5",
    )
    assert found(tmp_path, ".") == ["a/c.H5", "a/deep/er/d.h5", "b.raw", "x.h5/j.h5"]
    assert found(tmp_path, "a/deep", "b.raw", "a") == ["a/deep/er/d.h5", "b.raw", "a/c.H5"], "each once"
    assert found(tmp_path, ".", leave_out=[tmp_path / "a"]) == ["b.raw", "x.h5/j.h5"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    tree(tmp_path, "disk/a.h5", "scans/b.h5")
    (tmp_path / "scans" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "scans")
    (tmp_path / "scans" / "same.h5").symlink_to("b.h5")
    (tmp_path / "scans" / "z.h5").symlink_to("gone.h5")
    assert found(tmp_path, "scans") == ["scans/b.h5", "scans/more/a.h5", "scans/z.h5"]


def test_a_folder_that_cannot_serve_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/b.txt")
    with pytest.raises(FileError, match=r"a: no \.raw, \.h5 file in this folder$"):
        found(tmp_path, "a")

    def locked(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", locked)
    with pytest.raises(FileError, match=r"a: cannot be searched: Permission denied$"):
        found(tmp_path, "a")


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.h5", "x/b.h5"], ["a", "b"]),
        (["x/a.h5", "y/a.h5", "y/b.h5"], ["x/a", "y/a", "b"]),
        (["x/a.h5", "x/a.raw", "b.h5"], ["a.h5", "a.raw", "b"]),
        (["x/a.h5", "x/a.raw", "y/a.h5"], ["a.h5", "a.raw", "a"]),
        (["1/s/t/a.h5", "2/s/t/a.h5", "2/s/u/a.h5"], ["1/s/t/a", "2/s/t/a", "u/a"]),
        (["x/A.h5", "y/a.h5"], ["x/A", "y/a"]),
        (["x/a.h5.raw", "x/a.h5", "x/a.raw"], ["a.h5.raw", "a.h5", "a.raw"]),
    ],
)
def test_results_have_names_of_their_own(
    files: list[str], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in files]
    made = result_names(paths)
    assert len({name.casefold() for name in made.values()}) == len(files)
    assert list(made.values()) == names
    assert dict(reversed(result_names(paths[::-1]).items())) == made, "whatever the order"
    monkeypatch.chdir(tmp_path)
    assert list(result_names([Path(name) for name in files]).values()) == list(made.values())
