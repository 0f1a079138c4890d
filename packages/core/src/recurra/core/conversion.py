"""Authors' checkpoint files -> checkpoint folders of ours; nothing in a file is executed.

A domain has a `Source` for each project whose files it converts. What a source's function raises about a file, whatever
a damaged or hostile one makes it raise, becomes one line that names the file.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recurra.core.checkpoint import Pretrained, tuples
from recurra.core.errors import FileError, UserError, nearest, one_line
from recurra.core.files import open_output
from recurra.core.recipe import parse_overrides

Renames = tuple[tuple[str, str | None], ...]  # pattern -> replacement, or None for what is left behind


@dataclass
class Found:
    """A model of ours before it is built.

    Attributes:
        kind: its class.
        arguments: of its constructor.
        weights: all of them, under our names.
        about: what is known of their origin.
    """

    kind: type[Pretrained]
    arguments: dict[str, Any]
    weights: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A project whose files can be converted.

    Attributes:
        project: its address.
        license: what is known of the licence of its published files, as the end of a sentence.
        read: (file, what was given as key=value) -> what it holds.
        keys: the authors' names of arguments that may be given where a file lacks them.
        licenses: licences of published files, by sha256.
    """

    project: str
    license: str
    read: Callable[[Path, Mapping[str, Any]], Found]
    keys: frozenset[str] = frozenset()
    licenses: Mapping[str, str] = field(default_factory=dict)


def convert(
    path: str | Path,
    sources: Mapping[str, Source],
    source: str,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    example: str = "license=mit",
    overwrite: bool = False,
) -> Path:
    """Converts an authors' checkpoint into a checkpoint folder.

    Args:
        path: the file.
        sources: of the domain.
        source: which of them wrote the file.
        out: the folder to write.
        overrides: `key=value`, read as in a recipe: arguments of our class, of the authors' class where the file lacks
            them, or `license=`.
        example: one of them, for errors.
        overwrite: an existing folder may be replaced.

    Returns:
        `out`.

    Raises:
        UserError: an option does not serve, or the file is damaged, malicious or another network's, or does not say
            enough.
    """
    path, out = Path(path), Path(out)
    if source not in sources:
        raise UserError(f"--from must be one of {', '.join(sources)}; got {source!r}")
    given: dict[str, Any] = tuples(parse_overrides(overrides, f"{{!r}}: expected key=value, for example {example}"))
    open_output(out, overwrite)
    if not path.is_file():
        raise FileError(path, "no such file")
    license = given.pop("license", None)
    origin = sources[source]
    with _reading(path):
        found = origin.read(path, given)
        model = _build(found, given, origin.keys)
        about = json.loads(json.dumps(found.about, default=str))  # a file's dates and the like are no JSON
    model.save_pretrained(out, metadata=_provenance(path, origin, license) | about)
    return out


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """While inside, every error is the file's."""
    try:
        yield
    except ValueError as error:
        raise FileError(path, one_line(error)) from error
    except Exception as error:
        reason = f"not complete, or of another network: {type(error).__name__} {one_line(error)}"
        raise FileError(path, reason) from error


def _build(found: Found, given: Mapping[str, Any], authors: Iterable[str]) -> Pretrained:
    """The model, filled; every weight must be there and fit."""
    name, known = found.kind.__name__, inspect.signature(found.kind).parameters
    for key in given:
        if key not in known and key not in authors:
            raise ValueError(f"{key}: {name} has no such option{nearest(key, known)}")
    try:
        model = found.kind(**found.arguments | {key: value for key, value in given.items() if key in known})
        json.dumps(model.config)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{name} does not accept its options: {str(error).splitlines()[0]}") from error
    state = model.state_dict()
    for title, keys in (
        ("lacks", state.keys() - found.weights.keys()),
        ("has too many weights:", found.weights.keys() - state.keys()),
    ):
        if keys:
            raise ValueError(f"{title} {some(sorted(keys))} for {name} with these options")
    for key, value in found.weights.items():
        if value.shape != state[key].shape:
            expected = tuple(state[key].shape)
            raise ValueError(f"{key} has shape {tuple(value.shape)}; expected {expected} with these options")
        if wrong := int((~torch.isfinite(value)).sum()):
            raise ValueError(f"{key} has {wrong} of {value.numel()} values that are NaN or infinite")
    model.load_state_dict(found.weights)
    return model


def _provenance(path: Path, origin: Source, license: object) -> dict[str, Any]:
    """Where the weights come from, and under which licence."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    known = license or origin.licenses.get(digest)
    return {
        "source_project": origin.project,
        "source_file": path.name,
        "source_sha256": digest,
        **({"license": str(known)} if known else {"license_note": f"not stated in the file; {origin.license}"}),
    }


# --- for the functions of the sources


def rename(state: Mapping[str, Tensor], table: Renames) -> dict[str, Tensor]:
    """Weights under our names.

    Raises:
        ValueError: a name matches no pattern of the table.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        matches = ((re.fullmatch(pattern, key), replacement) for pattern, replacement in table)
        match, replacement = next(((match, to) for match, to in matches if match), (None, None))
        if match is None:
            raise ValueError(f"{key}: no such weight in the authors' network; is this another architecture?")
        if replacement is not None:
            renamed[match.expand(replacement)] = value
    return renamed


def tensors(content: Mapping[str, Any], key: str, complaint: str) -> dict[str, Tensor]:
    """The weights that a checkpoint file holds under a key.

    Raises:
        ValueError: there are none; the text is the complaint and what there is.
    """
    state = content.get(key)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{complaint}, got {some(content)}")
    return state


def ask(hints: Mapping[str, str], given: Mapping[str, Any]) -> None:
    """Refuse to guess what only a person knows.

    Args:
        hints: what has to be given, each with what to say of it.
        given: what was given.

    Raises:
        ValueError: something was not given.
    """
    missing = [f"{key} ({hint})" for key, hint in hints.items() if key not in given]
    if missing:
        raise ValueError(f"the file does not say {', '.join(missing)}; give each as key=value")


def count(state: Iterable[str], pattern: str) -> int:
    """How many different numbers the pattern's group takes at the start of a name."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def some(names: Iterable[object]) -> str:
    """The first of some names, for a message."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "") if listed else "nothing"
