"""The command line of a domain, read from its verbs: typed functions whose signature and docstring are the Python API.

Importing this imports neither torch nor typer. A user's error is one line on standard error and exit status 1.

    Seed = Annotated[int, Option("Another seed, other phantoms.", min=0)]

    def sample(out: Out, *, seed: Seed = 0, overwrite: Overwrite = False) -> list[Path]: ...

    def main() -> None:
        run(app("recurra.mri", "Recurrent MRI reconstruction.", [train, sample]))

Parameters before the star are arguments of the command, unless they have flags; those after it are options. What they
mean stands in an `Option`, where several verbs share it, or else in the docstring.
"""

import dataclasses
import inspect
import math
import os
import re
import shlex
import sys
import traceback
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, Union, get_args, get_origin

from recurra.core.device import PrecisionName
from recurra.core.errors import UserError, one_line
from recurra.core.screen import print_table

if TYPE_CHECKING:
    import typer


@dataclasses.dataclass(frozen=True)
class Option:
    """What the command line makes of a parameter; metadata of an `Annotated` type.

    Attributes:
        help: what it means; by default what the docstring says.
        flags: its names if not --NAME; also makes an option of a parameter before the star.
        kind: its type on the command line, where the function takes more.
        metavar: how the help calls an argument.
        listed: a sequence that is written with commas; "none" is the empty one.
        min: least value.
        max: greatest value; of a whole number without one 2**32 - 1.
    """

    help: str = ""
    flags: tuple[str, ...] = ()
    kind: Any = None
    metavar: str | None = None
    listed: bool = False
    min: int | float | None = None
    max: int | float | None = None


Inputs = Annotated[Sequence[str | Path] | str | Path, Option("Files, or folders of them.", kind=list[Path])]
Out = Annotated[str | Path, Option("Folder that receives the results.", ("-o", "--out"), Path)]
Device = Annotated[str, Option("auto, cpu, cuda or cuda:INDEX.")]
BatchSize = Annotated[int, Option("How many samples are computed at once.", min=1, max=2**16)]
Precision = Annotated[PrecisionName, Option("Number format of the network.")]
Workers = Annotated[int, Option("Processes that share the files; results are those of one.", min=1, max=1024)]
Shard = Annotated[str | None, Option("I/N: take every N-th file from the I-th on, one share of several machines'.")]
Resume = Annotated[bool, Option("Keep results that are whole and of the same input, do the others.")]
Overwrite = Annotated[bool, Option("Replace what is there already.")]
Quiet = Annotated[bool, Option("No progress.", ("-q", "--quiet"))]
RecipeName = Annotated[str | Path, Option("A shipped recipe's name or a YAML file.", kind=str)]
Overrides = Annotated[Sequence[str], Option(metavar="[KEY=VALUE]...", kind=list[str])]
RunFolder = Annotated[str | Path | None, Option("Run folder. Default: runs/RECIPE.", ("-o", "--out"), Path)]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that a verb returns."""

    columns: Sequence[str]
    rows: Iterable[Sequence[object]]
    title: str = ""

    def show(self) -> None:
        """Print it."""
        print_table(self.columns, self.rows, title=self.title)


_debugging = False
_Verb = TypeVar("_Verb", bound=Callable[..., Any])


def verb(function: _Verb) -> _Verb:
    """The function; its docstring has the meanings that stand in `Option`s, its signature is without them."""
    text, explained = inspect.getdoc(function) or "", _explained(function)
    lines = []
    signature, plain = inspect.signature(function), []
    for parameter in signature.parameters.values():
        annotation, option = _parts(parameter.annotation)
        plain.append(parameter.replace(annotation=_plain(parameter.annotation)))
        if dataclasses.is_dataclass(annotation):
            option = Option(f"See `{typing.cast(type, annotation).__name__}`.")
        if option.help and parameter.name not in explained:
            first = option.help[:1] if option.help[1:2] in "/" + option.help[1:2].upper() else option.help[:1].lower()
            lines.append(f"    {parameter.name}: {first}{option.help[1:]}")
    if lines:
        head, found, rest = text.partition("\nArgs:\n")
        if not found:
            head, found, rest = text.partition("\nRaises:\n")
            rest = found + rest
        function.__doc__ = "\n".join([head.rstrip("\n"), "", "Args:", *lines, rest])
    function.__annotated__ = signature  # type: ignore[attr-defined]
    function.__signature__ = signature.replace(parameters=plain)  # type: ignore[attr-defined]
    return function


def _plain(annotation: Any) -> Any:
    """The type that people and documents are shown."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return kind.__forward_arg__ if isinstance(kind, typing.ForwardRef) else kind


def _signature(verb: Callable[..., Any]) -> inspect.Signature:
    """The signature with its options."""
    found: inspect.Signature = getattr(verb, "__annotated__", None) or inspect.signature(verb)
    return found


def app(package: str, about: str, verbs: Iterable[Callable[..., Any]]) -> "typer.Typer":
    """An application with a command for each verb.

    Args:
        package: e.g. "recurra.mri"; the command is called recurra-mri, as the distribution.
        about: first line of the help.
        verbs: functions; what they return is printed. Where the package ships recipes, there is a verb for them too.
    """
    import typer

    name = package.replace(".", "-")
    made = typer.Typer(
        name=name,
        cls=_group(),
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

            typer.echo(f"{name} {version(name)}")
            raise typer.Exit
        return value

    # Also makes the application a group of verbs while it has only one.
    @made.callback(help=about)
    def _(
        _version: Annotated[
            bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
        ] = False,
    ) -> None: ...

    def recipes(name: str | None = None) -> str | Table:
        """List the shipped recipes, or print one to copy and edit.

        Args:
            name: print this recipe's YAML.
        """
        from recurra.core.recipe import list_recipes, recipe_text

        return recipe_text(name, package) if name else Table(("recipe", "what"), list_recipes(package).items())

    shipped = [recipes] if files(package).joinpath("recipes").is_dir() else []
    for verb in (*verbs, *shipped):
        made.command(name=verb.__name__, help=_summary(verb))(_command(verb))
    return made


def run(application: "typer.Typer", arguments: Sequence[str] | None = None) -> NoReturn:
    """Run an application as the program: its exit status is the process's."""
    if "--debug" not in (sys.argv if arguments is None else arguments):
        # Libraries warn their programmers, not this program's users.
        warnings.simplefilter("ignore")
    try:
        application(None if arguments is None else list(arguments))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _group() -> Any:
    """The class of a group of verbs whose user errors are one line."""
    import typer
    from typer.core import TyperGroup

    class Verbs(TyperGroup):
        def invoke(self, ctx: Any) -> Any:
            caught: BaseException
            words = [*ctx._protected_args, *ctx.args]
            try:
                _check_words(words)
                return super().invoke(ctx)
            except typer.BadParameter as error:
                line = _absurd(error.param.opts[-1] if error.param else "", error.message, words)
                if not line:  # a usage error, which the library shows
                    raise
                caught = error
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
                line = "not enough memory on the GPU; try a smaller --batch-size, --precision bf16 or --device cpu"
                caught = error
            if _debugging:
                traceback.print_exception(caught)
            typer.echo(line, err=True)
            raise typer.Exit(1)

    return Verbs


# --- from a function to a command


def _command(verb: Callable[..., Any]) -> Callable[..., None]:
    """The function that typer makes a command of: it has the verb's parameters as the command line knows them."""
    known = _signature(verb).parameters
    explained = _explained(verb)
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    most: dict[str, Any] = {}
    for parameter in known.values():
        annotation, option = _parts(parameter.annotation, explained.get(parameter.name, ""))
        most[parameter.name] = option.max
        if dataclasses.is_dataclass(annotation):
            groups[parameter.name] = typing.cast(type, annotation)
            parameters += _fields(groups[parameter.name])
        else:
            positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and not option.flags
            parameters.append(_parameter(parameter.name, annotation, option, parameter.default, positional))
    if "quiet" not in known:
        parameters.append(_parameter("quiet", *_parts(Quiet), False, False))
    parameters.append(_parameter("debug", bool, Option("Show the traceback of an error."), False, False))

    def command(**given: Any) -> None:
        global _debugging
        _debugging = given.pop("debug")
        for name, value in given.items():
            _check_number(name, value, most.get(name))
        for name, group in groups.items():
            given[name] = _grouped(group, given)
        for name, parameter in known.items():
            if _parts(parameter.annotation)[1].listed and isinstance(given[name], str):
                given[name] = () if given[name] == "none" else tuple(part.strip() for part in given[name].split(","))
        given = {name: () if given[name] is None and name == "overrides" else given[name] for name in known}
        _print(verb(**given), title=str(next(iter(given.values()))))

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _check_words(words: Sequence[str]) -> None:
    """Refuse a word that is empty: as a path it would be the folder that one is in."""
    for before, word in zip(("", *words), words, strict=False):
        name, equals, value = word.partition("=")
        if not word or (word.startswith("--") and equals and not value):
            raise UserError(f"{name or (before if before[:1] == '-' else 'an argument')} is empty; expected a value")


def _check_number(name: str, value: object, most: int | float | None) -> None:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{flag} must be a finite number; got {value}")
    if isinstance(value, int) and abs(value) > (limit := 2**32 - 1 if most is None else most):
        raise UserError(f"{flag} must be at most {limit}; got {str(value)[:40]}")


def _parts(annotation: Any, explained: str = "") -> tuple[Any, Option]:
    """Type and option of an annotation, without the None of an optional parameter."""
    option = Option()
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        # The last one: it may say more than that of the type it was made of.
        option = next((one for one in reversed(metadata) if isinstance(one, Option)), option)
    if get_origin(annotation) in (Union, UnionType):
        rest = [one for one in get_args(annotation) if one is not NoneType]
        if len(rest) == 1:
            return _parts(rest[0], explained) if option == Option() else (rest[0], option)
    return annotation, option if option.help else dataclasses.replace(option, help=explained)


def _parameter(name: str, annotation: Any, option: Option, default: Any, positional: bool) -> inspect.Parameter:
    """A parameter as typer reads it."""
    import typer

    kind, required = option.kind or annotation, default is inspect.Parameter.empty
    about: dict[str, Any] = {"help": option.help}
    if option.metavar:
        about["metavar"] = option.metavar
    if option.listed:
        kind, default = str, ",".join(default) or "none"
    if option.min is not None or option.max is not None:
        # The greatest whole number is left to `_check_number`, whose answer is one line.
        about |= {"min": option.min, "max": option.max if kind is float else None}
    if not required and (default is None or default == ()):
        kind, default = kind | None, None
    flags = option.flags
    if not flags and kind is bool:
        word = name.replace("_", "-")
        flags = (f"--{word}/--no-{word}",) if default else (f"--{word}",)
    made = typer.Argument(**about) if positional else typer.Option(*flags or (f"--{name.replace('_', '-')}",), **about)
    default = inspect.Parameter.empty if required else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, made])


def _fields(group: type) -> list[inspect.Parameter]:
    """Options for the fields of a dataclass; that none was given shows only where they have no default of their own."""
    explained, made = _explained(group), []
    for field in dataclasses.fields(group):
        annotation, option = _parts(field.type, explained.get(field.name, ""))
        if isinstance(field.default, (int, float)):
            option = dataclasses.replace(option, help=f"{option.help} [default: {field.default}]")
        made.append(_parameter(field.name, annotation, option, None, False))
    return made


def _absurd(flag: str, message: str, words: Sequence[str]) -> str:
    """The line of an option whose value is a number that nothing can use, such as 1e26; nothing for other mistakes."""
    given = next((words[place + 1] for place, word in enumerate(words[:-1]) if word == flag), None)
    given = given or next((word.partition("=")[2] for word in words if word.startswith(f"{flag}=")), "")
    try:
        number = float(given)
    except ValueError:
        return ""
    if math.isfinite(number) and abs(number) < 2**31:
        return ""
    must = re.sub(r", unable to parse .*", "", message.removeprefix("Value error, ").rstrip("."))
    return f"{flag} {must.replace('Input should be', 'must be')}; got {given}"


def _grouped(group: type, given: dict[str, Any]) -> Any:
    """The dataclass of the options given, or None; the others mean nothing without the first."""
    first, *others = dataclasses.fields(group)
    values = {field.name: given.pop(field.name) for field in (first, *others)}
    values = {name: value for name, value in values.items() if value is not None}
    if first.name not in values:
        if values:
            word = next(iter(values)).replace("_", "-")
            raise UserError(f"--{word} says how --{first.name} is drawn; give --{first.name} too, or neither")
        return None
    return group(**values)


def _summary(thing: Any) -> str:
    """What a docstring says before its sections."""
    return re.split(r"\n\n?(?:Args|Attributes|Returns|Raises):\n", inspect.getdoc(thing) or "")[0]


def _explained(thing: Any) -> dict[str, str]:
    """Name and meaning of each parameter in the docstring, as a sentence."""
    found = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", inspect.getdoc(thing) or "", re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", found[1] if found else "", re.MULTILINE)
    texts = {name: " ".join(text.split()) for name, text in entries}
    return {name: text[0].upper() + text[1:] for name, text in texts.items()}


def _print(value: Any, title: str) -> None:
    """What a verb returned: it shows itself, or is a table of facts about its first argument, text, paths."""
    if hasattr(value, "show"):
        value.show()
    elif isinstance(value, Mapping):
        print_table(("field", "value"), value.items(), title=title)
    elif isinstance(value, str):
        print(value, end="" if value.endswith("\n") else "\n")
    elif isinstance(value, Path):
        print(f"checkpoint {value}" if (value / "config.json").is_file() else value)
    elif value is not None:
        for one in value:
            print(one)


def spelled(package: str, verb: Callable[..., Any], given: Mapping[str, Any]) -> str:
    """The command line that calls a verb with these arguments; those that are the default are left out."""
    words: list[str] = []
    for name, parameter in _signature(verb).parameters.items():
        _, option = _parts(parameter.annotation)
        value = given[name]
        if value == parameter.default or name in ("quiet", "shard", "resume", "overwrite"):
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                if getattr(value, field.name) != field.default:
                    words += [f"--{field.name.replace('_', '-')}", str(getattr(value, field.name))]
            continue
        flag = option.flags[-1] if option.flags else f"--{name.replace('_', '-')}"
        if option.listed:
            value = ",".join(value) or "none"
        listed = list(value) if isinstance(value, (list, tuple)) else [value]
        texts = [str(one) if isinstance(one, (str, int, float, Path)) else type(one).__name__ for one in listed]
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and not option.flags:
            words += texts
        elif isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-"))
        else:
            words += [flag, *texts]
    return shlex.join([package.replace(".", "-"), verb.__name__, *words])
