"""Names of a package that are imported when first used, so that a command's `--help` does not wait for torch."""

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    The names are those imported under `if TYPE_CHECKING:` in its `__init__.py`, which type checkers and people read:

        if TYPE_CHECKING:
            from recurra.mri.verbs import train as train

        __getattr__, __dir__, __all__ = lazy(__name__)

    Args:
        package: its `__name__`.
    """
    source = Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8")
    home = {
        alias.name: str(statement.module)
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    names = sorted([*home, *(["__version__"] if package.count(".") == 1 else [])])

    @cache
    def find(name: str) -> Any:
        if name == "__version__" and name in names:
            from importlib.metadata import version

            return version(package.replace(".", "-"))
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home[name]), name)

    return find, lambda: names, names
