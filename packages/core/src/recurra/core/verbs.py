"""What the command lines of all domains share; importing it imports neither torch nor anything else that is slow.

An application made by `new_app` turns a user's error into one line on standard error and exit status 1. Its verbs only
parse and print: what they do is a function of the domain.
"""

import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from recurra.core.device import PrecisionName
from recurra.core.errors import one_line

Out = Annotated[Path, typer.Option("-o", "--out", help="Folder that receives the results.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:INDEX.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="How many samples are computed at once.")]
Precision = Annotated[PrecisionName, typer.Option("--precision", help="Number format of the network.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]

_debugging = False


def _debug(value: bool) -> bool:
    global _debugging
    _debugging = value
    return value


Debug = Annotated[bool, typer.Option("--debug", callback=_debug, help="Show the traceback of an error.")]


class _Verbs(TyperGroup):
    """Group of verbs whose user errors are one line."""

    def invoke(self, ctx: Any) -> Any:
        caught: BaseException
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read our output has left. Nothing may be written at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (ValueError, OSError, KeyboardInterrupt) as error:
            caught, line = error, one_line(error)
        except RuntimeError as error:
            # torch.OutOfMemoryError, which cannot be named without importing torch
            if type(error).__name__ != "OutOfMemoryError":
                raise
            caught, line = (
                error,
                "not enough memory on the GPU; try a smaller --batch-size, --precision bf16 or --device cpu",
            )
        if _debugging:
            traceback.print_exception(caught)
        typer.echo(line, err=True)
        raise typer.Exit(1)


def new_app(name: str, package: str, about: str) -> typer.Typer:
    """An application for the verbs of one domain.

    Args:
        name: the command, e.g. "recurra-mri".
        package: the distribution whose version `--version` prints.
        about: first line of the help.
    """
    app = typer.Typer(
        name=name,
        cls=_Verbs,
        help=about,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def show_version(value: bool) -> bool:
        if value:
            from importlib.metadata import version

            typer.echo(f"{name} {version(package)}")
            raise typer.Exit
        return value

    # Also makes the application a group of verbs while it has only one.
    @app.callback(help=about)
    def _(
        _version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True)] = False,
    ) -> None: ...

    return app


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run an application as the program: its exit status is the process's."""
    if "--debug" not in (sys.argv if arguments is None else arguments):
        # Libraries warn their programmers, not this program's users.
        warnings.simplefilter("ignore")
    try:
        app(None if arguments is None else list(arguments))
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(1)
    sys.exit(0)


@contextmanager
def progress(
    total: int | None, what: str, *, unit: str = "slices", quiet: bool = False, transient: bool = False
) -> Iterator[Callable[..., None]]:
    """A function `advance(count=1, note="")` to call as work gets done.

    On a terminal there is a bar with the throughput and the latest note; elsewhere one plain line at the end. Both go
    to standard error.

    Args:
        total: how many units there are, if known.
        what: what is being done.
        unit: what is counted.
        quiet: show nothing.
        transient: remove the bar at the end.
    """
    done, started, latest = 0, time.perf_counter(), ""

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
            typer.echo(f"{what}: {done} {unit} in {elapsed:.1f} s ({rate()}){note}", err=True)
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
