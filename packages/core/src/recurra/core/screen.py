"""What people see while work is done, and tables of what came of it."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process


@contextmanager
def progress(
    total: int | None, what: str, *, unit: str = "slices", quiet: bool = False, transient: bool = False
) -> Iterator[Callable[..., None]]:
    """A function `advance(count=1, note="")` to call as work gets done.

    On a terminal there is a bar with the throughput and the latest note; elsewhere one plain line at the end. Both go
    to standard error. Processes that share files say nothing: whoever started them does.

    Args:
        total: how many units there are, if known.
        what: what is being done.
        unit: what is counted.
        quiet: show nothing.
        transient: remove the bar at the end.
    """
    done, started, latest = 0, time.perf_counter(), ""
    quiet = quiet or parent_process() is not None

    def rate() -> str:
        return f"{done / max(time.perf_counter() - started, 1e-9):.3g} {unit}/s"

    def count(more: int = 1, note: str = "") -> None:
        nonlocal done, latest
        done, latest = done + more, note or latest

    if quiet or not sys.stderr.isatty():
        yield count
        if not quiet:
            note = f", {latest}" if latest else ""
            elapsed = time.perf_counter() - started
            print(f"{what}: {done} {unit} in {elapsed:.1f} s ({rate()}){note}", file=sys.stderr)
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=transient) as bar:
        task = bar.add_task(what, total=total, note="")

        def advance(more: int = 1, note: str = "") -> None:
            count(more, note)
            bar.update(task, advance=more, note=f"{rate()} {latest}".strip())

        yield advance


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print a table on standard output; numbers are aligned to the right, floats have five significant digits."""
    from rich.console import Console
    from rich.table import Table

    listed = [list(row) for row in rows]
    table = Table(title=title or None, title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(listed) and all(isinstance(row[index], (int, float)) for row in listed)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        table.add_row(*(f"{cell:.5g}" if isinstance(cell, float) else str(cell) for cell in row))
    # A pipe or a file has no width; a table is not to be broken for the want of one.
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)
