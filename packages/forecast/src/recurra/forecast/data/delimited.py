"""CSV: separator, decimals and columns of numbers out of its first lines, and every line checked before any is read."""

import csv
import gzip
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recurra.core.errors import FileError
from recurra.core.inspection import Fact
from recurra.forecast.data.raw import Raw, refuse
from recurra.forecast.data.values import MISSING

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_HEAD = 1 << 16
_EXACT: dict[str, Any] = (
    {} if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}
)
"""The nearest double to every numeral, which later pandas reads without being told."""


def _opened(path: Path) -> Any:
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")


def read_csv(path: Path, text: Callable[[str], bool], separator: str | None, decimal: str | None) -> Raw:
    """The columns of a CSV, packed with gzip or not.

    Args:
        path: of the file.
        text: which columns are text, whatever they look like.
        separator: of its fields; by default found.
        decimal: "." or ","; by default found.

    Raises:
        FileError: what is wrong with which line.
    """
    with _opened(path) as stream:
        head = stream.read(_HEAD)
    refuse(path, head)
    whole = len(head) < _HEAD
    lines = _decoded(path, head if whole else head[: head.rfind(b"\n") + 1] or head)
    separator, said = _separator(path, lines, separator)
    records = [record for record in csv.reader(io.StringIO(lines, newline=""), delimiter=separator) if any(record)]
    names = _header(path, records, separator)
    if len(records) < 2:
        raise FileError(path, "has a header line and no rows")
    decimal, decimal_said = _decimal(path, records[1:], separator, decimal)
    check_lines(path, separator, len(names))
    plain = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*")
    words = {
        name: [record[at].replace(decimal, ".") for record in records[1:] if at < len(record)]
        for at, name in enumerate(names)
    }
    numeric = [
        name
        for name in names
        if not text(name) and all(cell.strip() in MISSING or plain.fullmatch(cell) for cell in words[name])
    ]
    frame = _frame(path, names, numeric, separator, decimal)
    empty = [
        name for name in names if name.startswith("unnamed ") and (frame[name].isna() | frame[name].isin(MISSING)).all()
    ]
    facts = [Fact("format", f"CSV, separated by {_SEPARATORS.get(separator, repr(separator))}", said), decimal_said]
    return Raw(frame.drop(columns=empty), _Lines(path, separator), str(path), facts, path, typeless=True)


def _decoded(path: Path, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _no_text(path, data[: error.start].count(b"\n") + 1, data[error.start]) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise FileError(path, f"line {line}: holds a zero byte; the file is damaged, or no text")
    return text


def _no_text(path: Path, line: int, byte: int) -> FileError:
    return FileError(path, f"line {line}: byte {byte:#04x} is no UTF-8; save the table in this encoding")


def _separator(path: Path, lines: str, given: str | None) -> tuple[str, str]:
    """The separator that gives every line of the head as many fields as the header, more than one."""
    if given:
        return given, "given"
    fits: dict[str, int] = {}
    for separator in _SEPARATORS:
        counts = [len(one) for one in csv.reader(io.StringIO(lines, newline=""), delimiter=separator) if any(one)]
        share = sum(count == counts[0] for count in counts) / len(counts)
        if counts[0] > 1 and share > 0.5:
            fits[separator] = counts[0]
    if not fits:
        raise FileError(
            path,
            f"line 1: no separator (comma, semicolon, tab, bar) in {lines.splitlines()[0][:60]!r}; expected a column "
            "of "
            "time and one of values",
        )
    best = [separator for separator in fits if fits[separator] == max(fits.values())]
    if len(best) > 1:
        raise FileError(
            path, f"lines may be separated by {' or '.join(_SEPARATORS[one] for one in best)}; pass --separator"
        )
    return best[0], f"{fits[best[0]]} fields in the header and in the lines after it"


def _header(path: Path, records: Sequence[Sequence[str]], separator: str) -> list[str]:
    from recurra.forecast.data.stamps import formats

    names = [name.strip() or f"unnamed {at}" for at, name in enumerate(records[0])]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise FileError(path, f"line 1: column {twice[0]!r} occurs twice; rename one")
    values = [re.fullmatch(r"[+-]?\d*[.,]?\d+(?:[eE][+-]?\d+)?", name) is not None for name in names]
    if all(values) or (any(formats(names[0])) and all(values[1:])):
        raise FileError(path, f"line 1: holds values ({', '.join(names[:3])}); expected the names of the columns")
    return names


def _decimal(path: Path, records: Sequence[Sequence[str]], separator: str, given: str | None) -> tuple[str, Fact]:
    """Point or comma; a comma that may stand before thousands as well is refused."""
    cells = [cell.strip() for record in records for cell in record]
    commas = [cell for cell in cells if re.fullmatch(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?", cell)]
    if given:
        return given, Fact("decimals", repr(given), "given")
    if separator == "," or not commas:
        _check_points(path, records, separator)
        return ".", Fact("decimals", "point", "no number has a comma")
    points = [cell for cell in cells if re.fullmatch(r"[+-]?\d*\.\d+", cell)]
    if points:
        raise FileError(
            path, f"numbers with a point ({points[0]}) and with a comma ({commas[0]}); pass --decimal , or --decimal ."
        )
    if all(re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", cell) for cell in commas):
        raise FileError(
            path,
            f"{commas[0]} may be a decimal comma or a separator of thousands; pass --decimal , or take the commas out",
        )
    return ",", Fact("decimals", "comma", f"{len(commas)} numbers of the first lines have one, as {commas[0]}")


def _check_points(path: Path, records: Sequence[Sequence[str]], separator: str) -> None:
    """Refuse points that may stand before thousands: 1.234 beside 987, where fields are not separated by commas."""
    for column in zip(*records, strict=False) if separator != "," else ():
        cells = [cell.strip() for cell in column]
        points = [cell for cell in cells if "." in cell]
        whole = [cell for cell in cells if re.fullmatch(r"[+-]?\d{1,3}", cell)]
        if points and whole and all(re.fullmatch(r"[+-]?[1-9]\d{0,2}\.\d{3}", cell) for cell in points):
            raise FileError(
                path,
                f"{points[0]}, beside {whole[0]}, may have a decimal point or a separator of thousands; pass "
                "--decimal . or "
                "take the points out",
            )


def check_lines(path: Path, separator: str, fields: int) -> None:
    """Refuse a CSV of which a line has more or fewer fields than the header: values would be lost or missing.

    Counts separators between line ends in pieces of the file; quoted ones do not count.

    Raises:
        FileError: naming the line.
    """
    line, seen, odd, blank = 0, 0, 0, True
    with _opened(path) as stream:
        while piece := stream.read(1 << 19):
            data = np.frombuffer(piece, np.uint8)
            quotes = data == ord('"')
            outside = np.ones(len(data), np.bool_)
            if odd or quotes.any():
                outside = (np.cumsum(quotes, dtype=np.int64) + odd) % 2 == 0
                odd = int(not outside[-1])
            ends = np.flatnonzero((data == 10) & outside)
            found = np.flatnonzero((data == ord(separator)) & outside)
            counts = np.diff(np.searchsorted(found, ends), prepend=0)
            inked = np.flatnonzero((data != 10) & (data != 13) & (data != 32) & (data != 9))
            ink = np.diff(np.searchsorted(inked, ends), prepend=0) > 0
            if len(ends):
                counts[0] += seen
                ink[0] |= not blank
                wrong = ink & (counts != fields - 1)
                if wrong.any():
                    _recheck(path, separator, fields, line + int(wrong.argmax()) + 1)
                    return
                seen, blank = 0, True
            tail = int(ends[-1]) + 1 if len(ends) else 0
            seen += int((found >= tail).sum())
            blank &= not (inked >= tail).any()
            line += len(ends)
    if not blank and seen != fields - 1:
        _recheck(path, separator, fields, line + 1)


def _recheck(path: Path, separator: str, fields: int, line: int) -> None:
    """Line by line, as quotes inside of fields lead the count astray."""
    with io.TextIOWrapper(_opened(path), "utf-8-sig", "strict", newline="") as stream:
        reader = csv.reader(stream, delimiter=separator)
        for record in reader:
            if record and any(record) and len(record) != fields:
                raise FileError(
                    path, f"line {reader.line_num}: has {len(record)} fields and the header {fields}; mend the line"
                )


class _Lines:
    """Names a row by its line in the file, which is looked for when it is asked for."""

    def __init__(self, path: Path, separator: str) -> None:
        self.path, self.separator = path, separator

    def __call__(self, row: int) -> str:
        with io.TextIOWrapper(_opened(self.path), "utf-8-sig", "replace", newline="") as stream:
            reader = csv.reader(stream, delimiter=self.separator)
            left = row + 1
            for record in reader:
                if not record or (not any(cell.strip() for cell in record[:1]) and len(record) == 1):
                    continue
                if left == 0:
                    return f"line {reader.line_num}"
                left -= 1
        return f"row {row}"


def _frame(path: Path, names: Sequence[str], numeric: Iterable[str], separator: str, decimal: str) -> pd.DataFrame:
    known = set(numeric)

    def parsed(numbers: set[str]) -> pd.DataFrame:
        with _opened(path) as stream:
            pieces = pd.read_csv(
                stream,
                sep=separator,
                decimal=decimal,
                header=0,
                names=list(names),
                index_col=False,
                dtype={name: np.float64 if name in numbers else str for name in names},
                keep_default_na=False,
                na_values={name: list(MISSING) for name in numbers},
                **_EXACT,
                encoding="utf-8-sig",
                chunksize=1 << 16,
            )
            return _joined(pieces, names)

    try:
        return parsed(known)
    except ValueError as error:
        if isinstance(error, pd.errors.ParserError | UnicodeDecodeError | pd.errors.EmptyDataError):
            raise _unreadable(path, error) from error
        # A cell further down is no number: as text, whoever uses the column names the cell.
        frame = parsed(set())
        for name in known:
            numbers = pd.to_numeric(frame[name].where(~frame[name].isin(MISSING)), errors="coerce")
            if decimal == "." and not (numbers.isna() & ~frame[name].isin(MISSING)).any():
                frame[name] = numbers.astype(np.float64)
            elif decimal != ".":
                frame[name] = frame[name].str.replace(decimal, ".", regex=False)
        return frame


def _joined(pieces: Iterable[pd.DataFrame], names: Sequence[str]) -> pd.DataFrame:
    """One frame, each of whose columns is memory of its own: what is used up can be given back."""
    parts: dict[str, list[Any]] = {name: [] for name in names}
    for piece in pieces:
        for name in names:
            column = piece[name]
            parts[name].append(column.to_numpy(copy=True) if column.dtype.kind == "f" else column)
    whole: dict[str, Any] = {}
    for name in names:
        own = parts.pop(name)
        whole[name] = np.concatenate(own) if isinstance(own[0], np.ndarray) else pd.concat(own, ignore_index=True)
        del own
    return pd.DataFrame(whole, copy=False)


def _unreadable(path: Path, error: Exception) -> FileError:
    if isinstance(error, UnicodeDecodeError):
        with _opened(path) as stream:
            for number, line in enumerate(stream, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as found:
                    return _no_text(path, number, line[found.start])
    return FileError(path, f"is no CSV that can be read: {error}")
