"""The page of an evaluation: one HTML file that needs nothing else and asks nothing of a network."""

import base64
import hashlib
import json
import math
import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions, version
from importlib.resources import files
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recurra.core.files import writing

LARGEST = 1e100  # what is beyond has no place on an axis


@dataclass(frozen=True)
class Page:
    """What the page shows. All of it is plain data; text may hold anything, it is escaped.

    Attributes:
        title: the heading, e.g. "CIRIM and 2 baselines on 12 files".
        about: what was scored, and how.
        command: does it again, as typed into a shell.
        date: when it was done.
        columns: of the main table: the method, its metrics, the seconds a unit; "_" is shown as a space.
        rows: one a method: its name, the means, the time. None is something that was not measured.
        file_columns: of the table of all files: the file (or what else is scored one by one), the method, its metrics.
        file_rows: one a file and method.
        higher_is_better: the direction of metrics; where it is known the best is marked.
        main: the metric whose distribution over the files is drawn; by default the first.
        pictures: captions and PNG files, by path or as bytes.
        failures: one line for each file that could not be scored.
        checkpoint: what is known of it: architecture, parameters, digest of the weights, licence, training data.
        versions: of the software and the system.
    """

    title: str
    about: str
    command: str
    date: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    file_columns: Sequence[str] = ()
    file_rows: Sequence[Sequence[object]] = ()
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    main: str | None = None
    pictures: Sequence[tuple[str, bytes | Path]] = ()
    failures: Sequence[str] = ()
    checkpoint: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def write_report(path: Path, page: Page) -> Path:
    """The path, at which the page is now an HTML file; the same page gives the same bytes.

    Raises:
        ValueError: a row does not fit its columns, or a picture is no PNG.
        OSError: a picture cannot be read, or the page cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(digest=_digest, label=_label)
    template = environment.from_string(files("recurra.core").joinpath("report.html.j2").read_text(encoding="utf-8"))
    text = template.render(
        page=page,
        means=_table("rows", page.columns, page.rows, page.higher_is_better),
        every=_table("file_rows", page.file_columns, page.file_rows),
        spread=_spread(page),
        pictures=[_picture(caption, content) for caption, content in page.pictures],
    )
    with writing(path) as part:
        # A name from a file system may hold bytes that are no character.
        part.write_bytes(text.encode("utf-8", "backslashreplace"))
    return path


def versions() -> dict[str, str]:
    """Versions of this project's parts and of what computes, and the system."""
    ours = sorted(name for name in {one.name for one in distributions()} if name.startswith("recurra"))
    rest = {"Python": platform.python_version(), "system": platform.platform()}
    return {name: version(name) for name in (*ours, "torch", "numpy")} | rest


class _Cell(NamedTuple):
    """What a cell shows, what it is sorted by, and whether it is the best of its column."""

    text: str
    key: str | None = None
    best: bool = False


class _Column(NamedTuple):
    """A column of a table: of numbers or text, and, if one end is the better one, whether it is the upper."""

    name: str
    numeric: bool
    higher: bool | None
    cells: list[_Cell]


def _table(
    what: str, names: Sequence[str], rows: Sequence[Sequence[object]], directions: Mapping[str, bool] | None = None
) -> list[_Column]:
    """The columns of a table."""
    for row in rows:
        if len(row) != len(names):
            raise ValueError(f"{what}: a row has {len(row)} values; expected {len(names)}, one a column: {row}")
    known = directions or {}
    return [_column(name, [row[index] for row in rows], known.get(name)) for index, name in enumerate(names)]


def _column(name: str, values: Sequence[object], higher: bool | None) -> _Column:
    numbers = [_number(value) for value in values]
    if not any(x is not None for x in numbers):
        return _Column(name, False, None, [_Cell(_text(value)) for value in values])
    whole = all(isinstance(value, int | np.integer) for value, x in zip(values, numbers, strict=True) if x is not None)
    shown = iter(_digits([x for x in numbers if x is not None]))
    texts = [_text(value) if whole or x is None else next(shown) for value, x in zip(values, numbers, strict=True)]
    ranked = [x for x in numbers if x is not None and not math.isnan(x)]
    best = None
    if higher is not None and len(values) > 1 and ranked:
        best = max(ranked) if higher else min(ranked)
    # The key is what Number() of the page's script reads.
    cells = [
        _Cell(text, json.dumps(math.nan if x is None else x), x is not None and x == best)
        for text, x in zip(texts, numbers, strict=True)
    ]
    return _Column(name, True, higher, cells)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None


def _text(value: object) -> str:
    return "–" if value is None else str(value)


def _digits(numbers: Sequence[float]) -> list[str]:
    """The numbers of a column as text: with common decimals, unless these would hide most digits of many."""
    sizes = sorted(abs(x) for x in numbers if math.isfinite(x) and x)
    style = ".3g"
    if sizes and 1e-4 <= sizes[-1] < 1e7 and sizes[len(sizes) // 4] >= sizes[-1] / 100:
        style = f".{max(0, 3 - math.floor(math.log10(sizes[-1])))}f"
    return [_digit(x, style) for x in numbers]


def _digit(x: float, style: str) -> str:
    if math.isnan(x):
        return "NaN"
    text = format(x, style)
    return text if float(text) or not x else format(x, ".1g")  # a small number is not none


class _Strip(NamedTuple):
    """The values of one method: places in percent of the width, and what cannot be drawn."""

    method: str
    dots: list[tuple[float, float, str]]
    quartiles: list[float]
    median: str
    missing: int


class _Spread(NamedTuple):
    """The distribution of a metric over the files, a strip a method, above an axis with its ticks."""

    metric: str
    higher: bool | None
    strips: list[_Strip]
    ticks: list[tuple[float, str]]


def _spread(page: Page) -> _Spread | None:
    """How the main metric is distributed, if there are two files to speak of."""
    metrics = page.file_columns[2:]
    if page.main is not None and page.main not in metrics:
        raise ValueError(f"main must be a metric of file_columns, {', '.join(metrics)}; got {page.main!r}")
    if not metrics:
        return None
    metric = page.main or metrics[0]
    column = page.file_columns.index(metric)
    groups: dict[str, list[tuple[str, float]]] = {}
    for row in page.file_rows:
        value = _number(row[column])
        groups.setdefault(str(row[1]), []).append((str(row[0]), math.nan if value is None else value))
    drawn = [(file, x) for group in groups.values() for file, x in group if abs(x) < LARGEST]
    if len({file for file, _ in drawn}) < 2:
        return None
    low, high = _range([x for _, x in drawn])
    ticks = [(_place(x, low, high), text) for x, text in _ticks(low, high)]
    strips = [_strip(method, group, low, high) for method, group in groups.items()]
    return _Spread(metric, page.higher_is_better.get(metric), strips, ticks)


def _strip(method: str, group: Sequence[tuple[str, float]], low: float, high: float) -> _Strip:
    drawn = [(file, x) for file, x in group if abs(x) < LARGEST]
    texts = _digits([x for _, x in drawn])
    dots = [
        # Multiples of the golden ratio spread dots that would lie upon each other, the same way every time.
        (_place(x, low, high), round(18 * (index * 0.618034 % 1) - 9, 1), f"{file}: {text}")
        for index, ((file, x), text) in enumerate(zip(drawn, texts, strict=True))
    ]
    if not drawn:
        return _Strip(method, [], [], "", len(group))
    quartiles = np.quantile([x for _, x in drawn], [0.25, 0.5, 0.75]).tolist()
    median = _digits(quartiles)[1]
    return _Strip(method, dots, [_place(x, low, high) for x in quartiles], median, len(group) - len(drawn))


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis for the values, which are apart even where these are equal."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low < 1e-9 * size or size < 1 / LARGEST:
        size = size if size >= 1 / LARGEST else 1.0
        low, high = low - 0.05 * size, high + 0.05 * size
    return low, high


def _place(x: float, low: float, high: float) -> float:
    """Percent of the width, with room at both ends for a number."""
    return round(6 + 88 * (x - low) / (high - low), 2)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Two to six round numbers between, as numbers and as text."""
    wanted = (high - low) / 5
    power = math.floor(math.log10(wanted))
    step = next(digit * 10.0**power for digit in (1, 2, 5, 10, 20) if digit * 10.0**power >= wanted)
    numbers = [count * step for count in range(math.ceil(low / step), math.floor(high / step) + 1)]
    style = f".{max(0, -math.floor(math.log10(step)))}f"
    if not -5 < power < 6:  # as many digits as tell the numbers apart
        style = f".{math.floor(math.log10(max(abs(low), abs(high)))) - power + 1}g"
    return [(x, format(x, style)) for x in numbers]


class _Picture(NamedTuple):
    """A picture inside the page."""

    caption: str
    address: str
    width: int
    height: int


def _picture(caption: str, content: bytes | Path) -> _Picture:
    data = content.read_bytes() if isinstance(content, Path) else content
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or len(data) < 24:
        raise ValueError(f"{content if isinstance(content, Path) else f'picture {caption!r}'}: expected a PNG file")
    return _Picture(
        caption, f"data:image/png;base64,{base64.b64encode(data).decode()}", *struct.unpack(">2I", data[16:24])
    )


def _digest(text: str) -> str:
    """By which the page's rules admit its own script and style, and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _label(name: str) -> str:
    return name.replace("_", " ")
