"""Containers of other people's checkpoints: a tar of a configuration and of weights; nothing climbs out of it."""

import re
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from recurra.core.foreign import read_foreign

# What the two members of a container that matter are known by.
_CONFIG, _WEIGHTS = (".yaml", ".yml"), (".ckpt", ".pt", ".pth")


def read_container(path: str | Path, *, limit: int = 8 << 30) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and state dict of a tar container, gzipped or not, that holds one YAML file and one torch checkpoint.

    Args:
        path: the container.
        limit: largest sum of the members' sizes in bytes that is unpacked.

    Raises:
        ValueError: there is no such file, it is damaged, one of the two is missing or has a second beside it, or a
            member is absolute, has a "..", is a link or a device, too large, or there twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with tempfile.TemporaryDirectory(prefix="recurra-") as folder:
        try:
            with tarfile.open(path, "r:*") as archive:
                inside = _unpack(archive, path, Path(folder), limit)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{path}: damaged, or no tar container: {error}") from error
        for suffixes in (_CONFIG, _WEIGHTS):
            if suffixes not in inside:
                raise ValueError(f"{path}: no {' or '.join(suffixes)} file inside")
        try:
            config = yaml.safe_load(Path(folder, inside[_CONFIG]).read_text(encoding="utf-8"))
            weights = read_foreign(Path(folder, inside[_WEIGHTS]))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: {inside[_CONFIG]}: {' '.join(str(error).split())}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {str(error).replace(f'{folder}/', '')}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: {inside[_CONFIG]}: expected a mapping, got {type(config).__name__}")
    state = weights.get("state_dict", weights)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: {inside[_WEIGHTS]}: expected a dict of tensors")
    return config, state


def _unpack(archive: tarfile.TarFile, path: Path, folder: Path, limit: int) -> dict[tuple[str, ...], str]:
    """Names by suffixes of the two members that matter, unpacked; every member has been looked at."""
    seen: set[str] = set()
    inside: dict[tuple[str, ...], str] = {}
    total = 0
    for member in archive:
        name = member.name.removeprefix("./")
        total += member.size
        if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
            raise ValueError(f"{path}: member {member.name!r} lies outside the container; refused")
        if not (member.isreg() or member.isdir()):
            raise ValueError(f"{path}: member {member.name!r} is a link or a device; refused")
        if total > limit:
            raise ValueError(f"{path}: member {member.name!r} brings the contents over {limit} bytes; refused")
        if name in seen:
            raise ValueError(f"{path}: member {member.name!r} occurs twice; refused")
        seen.add(name)
        for suffixes in (_CONFIG, _WEIGHTS):
            # Hidden files are the companions that macOS packs along.
            if member.isreg() and name.endswith(suffixes) and not Path(name).name.startswith("."):
                if suffixes in inside:
                    raise ValueError(f"{path}: holds {inside[suffixes]!r} and {name!r}; expected one of them; refused")
                inside[suffixes] = name
                archive.extract(member, folder, filter="data")
    return inside
