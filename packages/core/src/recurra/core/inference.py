"""Loads checkpoints and works through many files: one that fails is reported, the others are done.

A verb over files gives `each_file` a function that prepares the work: it is called once in each process that shares the
files, and what it returns takes one path.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files as package_files
from pathlib import Path
from typing import TypeVar

from recurra.core.checkpoint import Pretrained
from recurra.core.errors import Interrupted, UserError, nearest
from recurra.core.files import check_file
from recurra.core.processes import Work, outcomes

_Model = TypeVar("_Model", bound=Pretrained)


def load(kind: type[_Model], checkpoint: str | Path | _Model, *, package: str) -> _Model:
    """The model of a checkpoint folder, of a shipped checkpoint's name, or of a hub name (owner/name).

    Args:
        kind: what it must be.
        checkpoint: a model is returned as it is.
        package: ships checkpoints in its folder `samples`.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or it holds something else.
    """
    if isinstance(checkpoint, kind):
        return checkpoint
    if "/" not in str(checkpoint) and not Path(str(checkpoint)).exists():
        samples = package_files(package) / "samples"
        shipped = {one.name: one for one in samples.iterdir() if one.is_dir()} if samples.is_dir() else {}
        if str(checkpoint) not in shipped:
            hint = nearest(str(checkpoint), shipped)
            raise UserError(f"{checkpoint}: no such checkpoint folder, and none of this name is shipped{hint}")
        checkpoint = str(shipped[str(checkpoint)])
    return kind.from_pretrained(str(checkpoint))


def describe(model: Pretrained, **facts: str) -> dict[str, str]:
    """What a checkpoint holds, for people: field and value.

    Args:
        model: loaded from it.
        facts: what the domain adds, such as units.
    """
    count = sum(parameter.numel() for parameter in model.parameters())
    found = {"architecture": type(model).__name__, "parameters": f"{count:,}", **model.config, **facts}
    return {name: str(value) for name, value in (found | model.metadata).items()}


# --- what a result was made from


@dataclass(frozen=True)
class Origin:
    """The input and the options that a result was made from, as digests; its text is kept within the result.

    Attributes:
        input: of the input's bytes.
        options: of the model, of this software, and of all options that change the numbers.
    """

    input: str
    options: str

    @classmethod
    def of(cls, path: Path, model: Pretrained, options: Mapping[str, object]) -> "Origin":
        """Of a result that the model makes of a file with these options."""
        return cls(file_digest(path), options_digest(model, options))

    @classmethod
    def read(cls, text: object) -> "Origin | None":
        """From the text in a result; None if it is none."""
        match = re.fullmatch(r"recurra ([0-9a-f]{24}) ([0-9a-f]{24})", str(text).strip())
        return cls(match[1], match[2]) if match else None

    def __str__(self) -> str:
        """At most 80 characters, which every format has room for."""
        return f"recurra {self.input} {self.options}"


def file_digest(path: Path) -> str:
    """Digest of a file's name, which seeds what is drawn for it, and of its bytes."""
    check_file(path)
    digest = hashlib.sha256(path.name.encode("utf-8", "surrogateescape"))
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:24]


def _version() -> str:
    """Of this software: another one may compute otherwise."""
    try:
        return version("recurra-core")
    except PackageNotFoundError:  # sources on the path
        return ""


def options_digest(model: Pretrained, options: Mapping[str, object]) -> str:
    """Digest of weights, configuration and options."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(-1).numpy().tobytes())
    what = [type(model).__name__, model.config, options, _version()]
    text = json.dumps(what, sort_keys=True, default=str)
    digest.update(text.encode())
    return digest.hexdigest()[:24]


def kept(outputs: Mapping[Path, str | None], expected: int, origin: Origin, extras: Sequence[Path] = ()) -> bool:
    """Whether an earlier run left the whole result of the same input and options.

    Args:
        outputs: those that are there, with the text that each says it was made from: None for one of ours that is
            damaged, "" for somebody else's.
        expected: how many there should be.
        origin: what they should be made from.
        extras: files beside them that say nothing.

    Raises:
        UserError: one is somebody else's, or was made with other options; it would be lost.
    """
    for output, text in outputs.items():
        before = Origin.read(text)
        if text is not None and (before is None or before.options != origin.options):
            raise UserError(
                f"{output}: was made by another checkpoint or with other options; "
                "give the same, choose another --out, or pass --overwrite"
            )
    whole = len(outputs) == expected and all(extra.exists() for extra in extras)
    return whole and all(text == str(origin) for text in outputs.values())


# --- many files


@dataclass
class Result:
    """What became of one input file: its outputs, or the error in one line and what raised it.

    Attributes:
        file: the input.
        outputs: the files written, or kept.
        count: how many units it had.
        unit: what is counted.
        seconds: how long it took; 0 for a result that was kept.
        error: why there is no result, or not the whole.
        cause: what raised it.
        notes: what a user should hear about the input or its result; a line each.
    """

    file: Path
    outputs: list[Path] = field(default_factory=list)
    count: int = 0
    unit: str = "slices"
    seconds: float = 0.0
    error: str | None = None
    cause: Exception | None = None
    notes: list[str] = field(default_factory=list)


class Results(list[Result]):
    """Results in the order of the inputs."""

    def show(self) -> None:
        """Print a line a file.

        Raises:
            UserError: files failed; its line names them all.
        """
        for result in self:
            if result.error is None:
                time_taken = f"{result.seconds:.1f} s" if result.seconds else "kept"
                print(f"{result.outputs[0]}: {result.count} {result.unit}, {time_taken}")
            for note in result.notes:
                print(f"  note: {result.file.name}: {note}")
        failed = [result for result in self if result.error is not None]
        if failed:
            raise failures([str(result.error) for result in failed], len(self)) from failed[0].cause


def failures(lines: Sequence[str], files: int) -> UserError:
    """The error of a run over so many files in which some failed."""
    line = "; ".join(lines)
    return UserError(line if files == 1 else f"{len(lines)} of {files} files failed: {line}")


def share(files: Sequence[Path], shard: str | None) -> list[tuple[int, Path]]:
    """Number and path of the files of one share, "I/N", or of all.

    Raises:
        UserError: the share is none.
    """
    numbered = list(enumerate(files))
    if shard is None:
        return numbered
    first, count = shard_of(shard)
    return numbered[first - 1 :: count]


def shard_of(shard: str | None) -> tuple[int, int]:
    """I and N of "I/N"; 1 and 1 of None.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard or "1/1")
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"shard must be I/N with I from 1 to N, such as 2/4; got {shard!r}")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Runs:
    """How a verb goes through its files: the options that all such verbs have.

    Attributes:
        workers: processes; the results are those of one.
        shard: "I/N", the share of the files that is done here.
        resume: keep what is whole and of the same input.
        overwrite: replace what is there.
        quiet: show no progress.
    """

    workers: int = 1
    shard: str | None = None
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UserError: what is there is to be kept and to be replaced.
        """
        if self.resume and self.overwrite:
            raise UserError("--resume keeps what is there and --overwrite replaces it; give one of them")


def each_file(
    files: Sequence[Path],
    prepare: Callable[[], Work[Result]],
    out: Path,
    runs: Runs,
    *,
    kept: Callable[[Path], Result | None] = lambda path: None,
    kind: type[Result] = Result,
) -> Results:
    """The results of the files, in their order; one that fails is reported in its result and the others are done.

    Args:
        files: the inputs.
        prepare: makes the work, once in every process: a function of a path.
        out: where results go, for messages.
        runs: how; with `resume`, files whose result is `kept` are not done again.
        kept: the result that an earlier run left of a file, or None.
        kind: of the results of files that fail.

    Raises:
        UserError: the share is none, or a process died.
        Interrupted: Ctrl-C; its text says how many files are done.
    """
    chosen = [path for _, path in share(files, runs.shard)]
    results: dict[Path, Result] = {}
    for path in chosen if runs.resume else ():
        with suppress(OSError):  # an input that cannot be read is for the loop to report
            if (result := kept(path)) is not None:
                results[path] = result
    left = [path for path in chosen if path not in results]
    if not left:
        return Results(results[path] for path in chosen)
    try:
        for outcome in outcomes(left, prepare, workers=runs.workers, quiet=runs.quiet):
            result = outcome.value or kind(outcome.file, error=str(outcome.error), cause=outcome.error)
            result.seconds = outcome.seconds
            results[outcome.file] = result
    except KeyboardInterrupt as error:
        done = sum(result.error is None for result in results.values())
        current = next((path for path in left if path not in results), left[-1])
        raise Interrupted(
            f"interrupted in {current}; {done} of {len(chosen)} files are done, in {out}; give the others again"
        ) from error
    return Results(results[path] for path in chosen)
