"""What a run of an evaluation keeps of each file, so that machines can share it and it can be gone on with."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recurra.core.checkpoint import CONFIG
from recurra.core.errors import UserError
from recurra.core.files import check_folder, open_output, writing
from recurra.core.inference import Runs, shard_of

TABLE, MEANS, PICTURE, PICTURES, REPORT = "metrics.csv", "metrics.json", "comparison.png", "pictures", "report.html"
_PICTURES_OF_A_REPORT = 12


@dataclass
class Scores:
    """The scores of one file.

    Attributes:
        metrics: of each method, by its name.
        seconds: each method took in all.
        count: units in the file.
        picture: what the domain's `draw` makes a picture of, if there is anything.
        units: of each method, the metrics of each unit: its number under the unit's name, and the metrics it has.
        notes: what a user should hear about the file; a line each.
    """

    metrics: dict[str, dict[str, float]]
    seconds: dict[str, float]
    count: int
    picture: Any = None
    units: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Run:
    """Where the scores of a run go, and how they were made.

    Attributes:
        out: folder, or None for none.
        what: what was scored, the beginning of the title.
        unit: what is counted: "slice" gives the column seconds_a_slice.
        options: digest of all that changes the numbers.
        draw: makes a PNG of a `Scores.picture`.
        runs: how the files are gone through.
        report: facts for the page to read; None for no page.
    """

    out: Path | None
    what: str
    unit: str
    options: str = ""
    draw: Callable[[Path, Any], object] | None = None
    runs: Runs = field(default_factory=Runs)
    report: Mapping[str, Any] | None = None


@dataclass
class FileRecord:
    """One line of a run's memory: what became of a file; its name is that of its picture, and no other file's."""

    index: int
    file: str
    digest: str
    name: str = ""
    failure: str | None = None
    count: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    units: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def check(run: Run) -> None:
    """Refuse a run before anything is opened or computed.

    Raises:
        UserError: its share is none, or its folder holds something else.
    """
    _, count = shard_of(run.runs.shard)
    if run.out is None:
        if count > 1 or run.runs.resume:
            raise UserError("--shard and --resume need --out, where the scores of each share are kept")
        return
    check_folder(run.out)
    if count > 1 and run.runs.overwrite:
        raise UserError(f"--overwrite would remove what other shares left in {run.out}; choose another --out")
    if (run.out / CONFIG).exists():
        raise UserError(f"{run.out}: is a checkpoint, whose metrics are those of its training; choose another --out")
    if run.runs.resume and any((run.out / name).is_file() for name in (MEANS, part_of(run).name)):
        return
    mine = part_of(run)
    others = {path for path in run.out.glob("*") if path != mine} if run.out.is_dir() else set()
    shared = count > 1 and all(_of_shares(path, count) for path in others) and not mine.exists()
    if not shared:
        open_output(run.out, run.runs.overwrite)


def part_of(run: Run) -> Path:
    """Where the scores of this share are until all shares are there."""
    assert run.out is not None
    first, count = shard_of(run.runs.shard)
    return run.out / f"scores-{first}-of-{count}.json"


def clear(run: Run) -> None:
    """Remove what an earlier run left, and nothing else: nothing of it may stand beside what is new."""
    if run.out is None:
        return
    states = [run.out / MEANS, *run.out.glob("scores-*-of-*.json")]
    for state in [path for path in states if path.is_file()]:
        with suppress(ValueError, KeyError, TypeError):
            for one in json.loads(state.read_text(encoding="utf-8"))["files"]:
                undraw(run, FileRecord(**one))
        state.unlink()
    for name in (TABLE, PICTURE, REPORT):
        (run.out / name).unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or somebody else's pictures are in it
        (run.out / PICTURES).rmdir()


def undraw(run: Run, one: FileRecord) -> None:
    """Remove the picture that an earlier run made of a file."""
    if run.out is not None:
        picture = picture_of(run.out, one)
        picture.unlink(missing_ok=True)
        for folder in picture.parents:
            if folder == run.out / PICTURES or run.out / PICTURES not in folder.parents:
                break
            with suppress(OSError):  # there is none, or other pictures are in it
                folder.rmdir()


def picture_of(out: Path, one: FileRecord) -> Path:
    """Where the picture of a file is, if one is drawn for the page."""
    return out / PICTURES / f"{one.name or Path(one.file).stem}.png"


def _of_shares(path: Path, count: int) -> bool:
    """Whether a file belongs to a run of so many shares."""
    return path.name == PICTURES or path.stem.endswith(f"-of-{count}")


def save(run: Run, done: Sequence[FileRecord]) -> None:
    """Write what is known so far of this share."""
    if run.out is not None:
        ordered = [asdict(one) for one in sorted(done, key=lambda one: one.index)]
        with writing(part_of(run)) as part:
            part.write_text(json.dumps({"options": run.options, "files": ordered}, indent=1), encoding="utf-8")


def recorded(run: Run) -> dict[str, FileRecord]:
    """What an earlier run left of each file.

    Raises:
        UserError: it was made with other options, or cannot be read.
    """
    if run.out is None or not run.runs.resume:
        return {}
    found: dict[str, FileRecord] = {}
    for path in (run.out / MEANS, part_of(run)):
        if path.is_file():
            found |= {one.file: one for one in read_records(path, run.options)}
    return found


def read_records(path: Path, options: str) -> list[FileRecord]:
    """What a run wrote of each file.

    Raises:
        UserError: it was made with other options, or cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = [FileRecord(**one) for one in content["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be gone on with; score anew with --overwrite") from error
    if content["options"] != options:
        raise UserError(
            f"{path}: was made by another checkpoint or with other options; give the same, choose another --out, "
            "or score anew with --overwrite"
        )
    return found


def draw(run: Run, one: FileRecord, picture: Any, before: Sequence[FileRecord]) -> None:
    """The picture of the first file that was scored, and for a page those of the first files."""
    if run.out is None or run.draw is None or picture is None:
        return
    run.out.mkdir(parents=True, exist_ok=True)
    first, count = shard_of(run.runs.shard)
    if not any(other.index < one.index for other in before):
        name = PICTURE if count == 1 else PICTURE.replace(".", f"-{first}-of-{count}.")
        run.draw(run.out / name, picture)
    if run.report is not None and one.index < _PICTURES_OF_A_REPORT:
        path = picture_of(run.out, one)
        path.parent.mkdir(parents=True, exist_ok=True)
        run.draw(path, picture)
