"""Scores methods beside each other: the same files, the same metrics; a table, CSV, JSON and a page to read.

`recurra.core.scores` keeps them file by file, so that a run can be shared by machines and gone on with.
"""

import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recurra.core.errors import FileError, Interrupted, UserError
from recurra.core.files import result_names, writing
from recurra.core.inference import failures, file_digest, shard_of, share
from recurra.core.processes import Work, outcomes
from recurra.core.scores import (
    MEANS,
    PICTURE,
    PICTURES,
    REPORT,
    TABLE,
    FileRecord,
    Run,
    Scores,
    check,
    clear,
    draw,
    picture_of,
    read_records,
    recorded,
    save,
    undraw,
)
from recurra.core.screen import print_table


@dataclass
class Table:
    """Mean metrics of each method over the files, and what became of the files.

    Attributes:
        title: what was scored, and how.
        columns: names of the columns: method, the metrics, seconds a unit.
        rows: one a method.
        files: how many files were given.
        failures: one line for each file that could not be scored.
        outputs: files written.
        notes: what a user should hear about files; a line each.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    files: int
    failures: list[str] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def show(self) -> None:
        """Print the table, the notes and the paths.

        Raises:
            UserError: files failed; its line names them all.
        """
        print_table(self.columns, self.rows, title=self.title)
        for note in self.notes:
            print(f"note: {note}")
        for path in self.outputs:
            print(path)
        if self.failures:
            raise failures(self.failures, self.files)


class Method:
    """A way to get results, with its own preparation and device, and the time it takes.

    Attributes:
        name: in the table.
        prepare: what is done to an input before it; methods that share it are prepared for once.
        device: where its input goes.
        seconds: spent in it, preparation apart.
    """

    def __init__(self, name: str, solve: Callable[..., Any], *, prepare: Any = None, device: Any = "cpu") -> None:
        self.name, self._solve, self.prepare, self.device = name, solve, prepare, device
        self.seconds = 0.0

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """What it makes of the inputs."""
        import torch

        moved = [value.to(self.device) if isinstance(value, torch.Tensor) else value for value in inputs]
        started = time.perf_counter()
        with torch.no_grad():
            result = self._solve(*moved, **options)
            if str(self.device).startswith("cuda"):
                torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - started
        return result


class FileScores:
    """Scores of files whose pieces arrive one by one; never holds more than one file.

        scores = FileScores(metrics)
        for file, target, prediction in pieces:
            scores.add(file, target, prediction)
        scores.finish()
        scores.rows["knee.h5"]["ssim"], scores.mean()["ssim"]

    The pieces of a file must follow one another, in any order within it.
    """

    def __init__(self, score: Callable[..., dict[str, float]], *, what: str = "pieces") -> None:
        """Scores with `score(targets, predictions)`, arrays of all pieces of a file; `what` they are, for errors."""
        self.score, self.what = score, what
        self.rows: dict[str, dict[str, float]] = {}
        self._file: str | None = None
        self._pieces: list[tuple[Any, Any]] = []

    def add(self, file: str, target: Any, prediction: Any) -> None:
        """Takes one piece; the previous file is scored and dropped when a new one begins."""
        if file != self._file:
            self.finish()
            if file in self.rows:
                raise ValueError(
                    f"{file}: its {self.what} do not follow one another; score the {self.what} of a file in one run"
                )
            self._file = file
        self._pieces.append((target, prediction))

    def finish(self) -> dict[str, float]:
        """Scores the file in hand; empty if there is none."""
        import numpy as np

        if self._file is None:
            return {}
        file, pieces, self._file, self._pieces = self._file, self._pieces, None, []
        targets, predictions = zip(*pieces, strict=True)
        try:
            self.rows[file] = self.score(np.stack(targets), np.stack(predictions))
        except ValueError as error:
            raise FileError(file, str(error)) from error
        return self.rows[file]

    def discard(self, file: str) -> None:
        """Forgets a file, scored or begun."""
        self.rows.pop(file, None)
        if file == self._file:
            self._file, self._pieces = None, []

    def mean(self) -> dict[str, float]:
        """Mean over the files scored so far; empty if there is none."""
        rows = list(self.rows.values())
        return {name: _mean([row[name] for row in rows]) for name in rows[0]} if rows else {}


@dataclass(frozen=True)
class _Digested:
    """Scores with the digest that the file had before it was scored."""

    prepare: Callable[[], Work[Scores]]

    def __call__(self) -> Work[tuple[Scores, str]]:
        work = self.prepare()

        def both(path: Path) -> tuple[Scores, str]:
            digest = file_digest(path)
            return work(path), digest

        return both


def score_files(files: Sequence[Path], prepare: Callable[[], Work[Scores]], run: Run) -> Table:
    """The table of all methods over the files; one that fails is listed and the others are scored.

    Args:
        files: all of the run, whatever the share.
        prepare: makes the scoring of a path, once in every process.
        run: see there.

    Raises:
        Interrupted: Ctrl-C; the text says what is kept.
    """
    check(run)
    if run.runs.overwrite and not run.runs.resume:
        clear(run)
    chosen, names = share(files, run.runs.shard), result_names(files)
    known = recorded(run)
    done: list[FileRecord] = []
    for index, path in chosen:
        old = known.get(str(path))
        if old and old.failure is None and path.is_file() and old.digest == file_digest(path):
            done.append(FileRecord(**{**asdict(old), "index": index, "name": names[path]}))
    left = [(index, path) for index, path in chosen if index not in {one.index for one in done}]
    try:
        work: Callable[[], Work[Any]] = prepare if run.out is None else _Digested(prepare)
        made = outcomes([path for _, path in left], work, workers=run.runs.workers, quiet=run.runs.quiet)
        for (index, path), outcome in zip(left, made, strict=True):
            one = FileRecord(index, str(path), "", names[path])
            if outcome.value is None:
                one.failure = str(outcome.error)
                undraw(run, one)
            else:
                scores, one.digest = outcome.value if run.out is not None else (outcome.value, "")
                one.count, one.seconds, one.metrics = scores.count, scores.seconds, scores.metrics
                one.units, one.notes = scores.units, scores.notes
                draw(run, one, scores.picture, [other for other in done if other.failure is None])
            done.append(one)
            save(run, done)
    except KeyboardInterrupt as stop:
        kept = f"{len(done)} of {len(chosen)} files are done" + (", go on with --resume" if run.out else "")
        raise Interrupted(f"interrupted; {kept}") from stop
    save(run, done)
    return _finish(run, sorted(done, key=lambda one: one.index), files)


def _finish(run: Run, done: Sequence[FileRecord], files: Sequence[Path]) -> Table:
    """The table of this share; once all shares are there, of all, with its files."""
    first, count = shard_of(run.runs.shard)
    if run.out is None:
        return _table(run, done, len(files))
    parts = [run.out / f"scores-{number}-of-{count}.json" for number in range(1, count + 1)]
    if not all(part.is_file() for part in parts):
        table = _table(run, done, len(done))
        table.title += f", share {first} of {count}"
        return table
    whole = sorted((one for part in parts for one in read_records(part, run.options)), key=lambda one: one.index)
    if len(whole) < len(files):  # another share is still at it
        return _table(run, done, len(done))
    if [Path(one.file).name for one in whole] != [path.name for path in files]:
        raise UserError(f"{run.out}: its shares are of different files; give all the same, and an --out of their own")
    table = _table(run, whole, len(files))
    table.outputs = _write(run, table, whole)
    for part in parts:
        part.unlink(missing_ok=True)
    return table


def _table(run: Run, done: Sequence[FileRecord], files: int) -> Table:
    scored = [one for one in done if one.failure is None]
    methods = list(scored[0].metrics) if scored else []
    names = tuple(scored[0].metrics[methods[-1]]) if scored else ()
    units = max(1, sum(one.count for one in scored))
    rows: list[tuple[object, ...]] = [
        (
            method,
            *(_mean([one.metrics[method][name] for one in scored]) for name in names),
            sum(one.seconds[method] for one in scored) / units,
        )
        for method in methods
    ]
    title = f"{run.what}: mean over {len(scored)} file{'s' if len(scored) != 1 else ''}"
    columns = ("method", *names, f"seconds_a_{run.unit}")
    failures = [one.failure for one in done if one.failure is not None]
    notes = [f"{one.file}: {note}" for one in done for note in one.notes]
    return Table(title, columns, rows, files, failures, notes=notes)


def _number(unit: object) -> str:
    """How a unit is called: by its number, or as the domain does."""
    return f"{unit:g}" if isinstance(unit, (int, float)) else str(unit)


def _mean(values: Sequence[float]) -> float:
    import numpy as np

    return float(np.mean(values))


def _write(run: Run, table: Table, done: Sequence[FileRecord]) -> list[Path]:
    """metrics.csv (rows of a file and method and of each unit), metrics.json (means and memory), picture and page."""
    assert run.out is not None
    written = [run.out / TABLE, run.out / MEANS]
    names = table.columns[1:-1]
    rows = [
        (one.file, method, *(metrics[name] for name in names))
        for one in done
        for method, metrics in one.metrics.items()
    ]
    # A row for the whole file, then one for each of its units.
    detailed = [
        (one.file, method, number, *(values.get(name, "") for name in names))
        for one in done
        for method, metrics in one.metrics.items()
        for number, values in [
            ("all", metrics),
            *((_number(unit[run.unit]), unit) for unit in one.units.get(method, ())),
        ]
    ]
    with writing(written[0]) as part, part.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("file", "method", run.unit, *names), *detailed])
    means = {str(row[0]): dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}
    content = {"scored": table.title, "mean": means, "failures": table.failures, "options": run.options}
    content["notes"] = table.notes
    with writing(written[1]) as part:
        text = json.dumps({**content, "files": [asdict(one) for one in done]}, indent=1)
        part.write_text(text, encoding="utf-8")
    _, count = shard_of(run.runs.shard)
    drawn = sorted(run.out.glob(f"comparison-*-of-{count}.png"), key=lambda path: int(path.stem.split("-")[1]))
    firsts = {int(path.stem.split("-")[1]): path for path in drawn}
    if firsts:  # of the share that scored the first file of all
        scored = next((one.index for one in done if one.failure is None), None)
        if scored is not None and (drawn_first := firsts.pop(scored % count + 1, None)):
            drawn_first.replace(run.out / PICTURE)
        for path in firsts.values():
            path.unlink(missing_ok=True)
    written += [path for path in (run.out / PICTURE,) if path.is_file()]
    if run.report is not None:
        pictures = [picture_of(run.out, one) for one in done if one.failure is None]
        written.append(_page(run, table, ("file", "method", *names), rows, pictures))
    return written


def _page(
    run: Run, table: Table, columns: Sequence[str], rows: Sequence[Sequence[object]], drawn: Sequence[Path]
) -> Path:
    """The page to read."""
    from recurra.core.report import Page, versions, write_report

    assert run.out is not None
    assert run.report is not None
    methods = [str(row[0]) for row in table.rows]
    page = Page(
        title=f"{methods[-1]} on {table.files} file{'s' if table.files != 1 else ''}" if methods else "no file scored",
        about=table.title,
        date=time.strftime("%Y-%m-%d %H:%M"),
        columns=table.columns,
        rows=table.rows,
        file_columns=columns,
        file_rows=rows,
        pictures=[
            (str(path.relative_to(run.out / PICTURES).with_suffix("")), path) for path in drawn if path.is_file()
        ],
        failures=table.failures,
        versions=versions(),
        **{key: value for key, value in run.report.items() if key != "main" or table.rows},
    )
    return write_report(run.out / REPORT, page)
