"""Checks of arguments: a wrong one is a ValueError that says what is expected and what was given."""

from collections.abc import Iterable
from typing import Any, get_args


def one_of(name: str, value: object, choices: Any) -> None:
    """Raise a ValueError unless the value is one of the choices.

    Args:
        name: of the argument.
        value: of the argument.
        choices: a Literal type, or the values themselves.
    """
    allowed: Iterable[object] = get_args(choices) or choices
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}; got {value!r}")


def whole_numbers(**counts: object) -> None:
    """Raise a ValueError unless every argument is a whole number from 1 on."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be a whole number from 1 on; got {count!r}")


def at_least_one(**sizes: int) -> None:
    """Raise a ValueError if an argument is less than 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")
