"""Errors that a user can mend, apart from those of a programmer; each is one line."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


class UserError(ValueError):
    """Something only the user can mend; its text is one line that says how."""


class FileError(UserError):
    """A file that does not serve; the line names it first.

    Args:
        path: the file.
        reason: what is wrong with it, given, expected and remedy; may name the file itself.
    """

    def __init__(self, path: str | Path, reason: str = "") -> None:
        super().__init__(path, reason)
        self.path, self.reason = Path(path), " ".join(str(reason).split())

    def __str__(self) -> str:
        """The line; what torch brings from a process that loads data is one text, which is all."""
        if not self.reason:
            return str(self.args[0])
        named = self.reason.startswith((f"{self.path}:", f"{self.path}/"))
        return self.reason if named else f"{self.path}: {self.reason}"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C after everything was put in order; its text says what was saved and how to go on."""


def one_line(error: BaseException) -> str:
    """The one line a user sees of an error."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return text or "interrupted"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {' '.join(error.strerror.split())}"
    return text or type(error).__name__


@contextmanager
def blaming(path: str | Path, *kinds: type[Exception]) -> Iterator[None]:
    """While inside, an error is the fault of this file: it becomes a `FileError`.

    Args:
        path: the file.
        kinds: which errors; by default all, for a reader, which a damaged or hostile file can make fail in any way.
            A `UserError` stays as it is: it knows better.
    """
    try:
        yield
    except UserError:
        raise
    except kinds or (Exception,) as error:  # noqa: B030 - a tuple either way
        raise FileError(path, one_line(error)) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown name: " (did you mean NAME?)", else " (known: ...)", else nothing."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    if close:
        return f" (did you mean {close[0]}?)"
    return f" (known: {', '.join(names)})" if names else ""
