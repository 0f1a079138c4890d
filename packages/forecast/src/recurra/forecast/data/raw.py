"""What is found in a file before anything is known about its columns."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from recurra.core.errors import FileError
from recurra.core.inspection import Fact
from recurra.forecast.data.values import Where

_OTHERS = {
    b"\x89HDF": "an HDF5 file",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"(\xb5/\xfd": "a zstandard archive",
    b"ARROW1": "an Arrow file",
}
_PICKLE = re.compile(
    rb"\x80[\x02-\x05]|[(\]}]?[cil](?:pandas|numpy|builtins|__builtin__|copy_reg|copyreg|_codecs|__main__)|\(dp0|\(lp0"
)


@dataclass
class Raw:
    """Columns as they were found.

    Attributes:
        frame: of them; numbers as numbers, the rest as text or what the data frame had.
        where: names a row by its position.
        source: file or "data frame".
        facts: how it was read.
        path: of the file, or None.
        values: columns that the file says are the values.
        labels: of columns that are called otherwise here.
        typeless: numbers and text are told apart by their spelling alone.
    """

    frame: pd.DataFrame
    where: Where
    source: str
    facts: list[Fact] = field(default_factory=list)
    path: Path | None = None
    values: list[str] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)
    typeless: bool = False


def refuse(path: Path, head: bytes) -> None:
    """Refuse what is no table, by its first bytes.

    Raises:
        FileError: the file is empty, a pickle, or of another known kind.
    """
    if not head.strip():
        raise FileError(path, "is empty; expected a table with a header line")
    if _PICKLE.match(head):
        raise FileError(path, "is a pickle, which may run code when it is opened; save the table as CSV or Parquet")
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise FileError(path, f"is {what}; expected a table as CSV in UTF-8, Parquet or npz")
