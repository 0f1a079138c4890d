"""Files and data frames as columns, with the place of every row for messages; nothing of a file is executed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recurra.core.errors import FileError, UserError, blaming
from recurra.core.files import check_file, extra
from recurra.core.inspection import Fact
from recurra.forecast.data.delimited import read_csv
from recurra.forecast.data.raw import Raw, refuse

SUFFIXES = (".csv", ".tsv", ".txt", ".gz", ".parquet", ".npz")
_HEAD = 1 << 16


def read(source: Any, *, text: Callable[[str], bool], separator: str | None = None, decimal: str | None = None) -> Raw:
    """The columns of a table.

    Args:
        source: path of a CSV, Parquet or npz file, told by its content; a data frame of pandas, or one that has
            `to_pandas`.
        text: which columns a CSV is to give as text, whatever they look like.
        separator: of a CSV; by default found.
        decimal: "." or ","; by default found.

    Raises:
        FileError: the file is none of these, or damaged.
        UserError: the source is none of these.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        check_file(path, "a table: CSV, Parquet or npz")
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        refuse(path, head)
        if head.startswith(b"PAR1"):
            return _parquet(path)
        if head.startswith(b"PK"):
            return _npz(path)
        with blaming(path):
            return read_csv(path, text, separator, decimal)
    frame = source if isinstance(source, pd.DataFrame | pd.Series) else _to_pandas(source)
    made = _plain(frame)
    labels = {str(label): label for label in getattr(frame, "columns", ()) if not isinstance(label, str)}
    return Raw(made, lambda row: f"row {row}", "data frame", labels=labels)


def _to_pandas(source: Any) -> pd.DataFrame:
    if isinstance(source, Mapping):
        return pd.DataFrame(source)
    if not hasattr(source, "to_pandas"):
        raise UserError(f"expected a path or a data frame; got {type(source).__name__}")
    frame: pd.DataFrame = source.to_pandas()
    return frame


def _plain(frame: "pd.DataFrame | pd.Series[Any]") -> pd.DataFrame:
    """Columns by text names, an index of dates or with a name as a column."""
    made = frame.to_frame() if isinstance(frame, pd.Series) else frame
    if isinstance(made.columns, pd.MultiIndex):
        raise UserError("data frame: columns have several levels; flatten them to one name each")
    dates = isinstance(made.index, pd.DatetimeIndex | pd.PeriodIndex)
    if dates or isinstance(made.index, pd.MultiIndex) or made.index.name is not None:
        names = [str(name or f"index {at}") for at, name in enumerate(made.index.names)]
        if dates and made.index.name is None:
            names = ["ds" if "ds" not in made.columns else "index"]
        made = made.rename_axis(index=names).reset_index()
    made = made.rename(columns=str)
    twice = made.columns[made.columns.duplicated()]
    if len(twice):
        raise UserError(f"data frame: column {twice[0]!r} occurs twice; rename one")
    if not len(made):
        raise UserError("data frame: has no rows")
    return made.reset_index(drop=True)


def _parquet(path: Path) -> Raw:
    extra("pyarrow", "reading Parquet", "recurra-forecast[parquet]")
    with blaming(path):
        frame = _plain(pd.read_parquet(path, engine="pyarrow"))
    return Raw(frame, lambda row: f"row {row}", str(path), [Fact("format", "Parquet", "content of the file")], path)


# --- npz -------------------------------------------------------------------------------------------------------------

_TIMES = ("dates", "ds", "date", "time", "times", "stamps", "timestamps")
_VARIABLES = ("variables", "columns", "features", "names")


def _npz(path: Path) -> Raw:
    """One array of numbers (time), (series, time) or (series, time, variable), beside arrays that name its axes."""
    with blaming(path), np.load(path, allow_pickle=False) as archive:
        arrays = {name: np.asarray(archive[name]) for name in archive.files}
    numbers = {name: a for name, a in arrays.items() if a.dtype.kind in "fiub" and name not in _TIMES and a.ndim <= 3}
    largest = [name for name, a in numbers.items() if a.size == max(one.size for one in numbers.values())]
    held = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
    if len(largest) != 1 or not numbers[largest[0]].size or not numbers[largest[0]].ndim:
        raise FileError(
            path, f"expected one array of numbers (series, time, variable); the file holds {held or 'nothing'}"
        )
    data = numbers[largest[0]]
    data = data[None, :, None] if data.ndim == 1 else data[..., None] if data.ndim == 2 else data
    axes = {name: array for name, array in arrays.items() if name != largest[0] and array.ndim == 1}
    times = next((axes.pop(name) for name in _TIMES if name in axes), np.arange(data.shape[1]))
    variables = next((axes.pop(name) for name in _VARIABLES if name in axes), None)
    if variables is None:
        variables = np.array(["y"] if data.shape[2] == 1 else [f"y{at}" for at in range(data.shape[2])])
    ids = next((array for array in axes.values() if array.dtype.kind in "iuUS"), np.arange(data.shape[0]))
    if (len(ids), len(times), len(variables)) != data.shape:
        raise FileError(path, f"the axes of {largest[0]} {data.shape} do not fit their names; the file holds {held}")
    columns: dict[str, Any] = {"unique_id": np.repeat(ids, data.shape[1]), "ds": np.tile(times, data.shape[0])}
    columns |= {str(name): data[:, :, at].reshape(-1) for at, name in enumerate(variables)}
    said = Fact("format", f"npz: {held}", f"{largest[0]} is (series, time, variable); dates, ids and variables by name")
    where = lambda row: f"series {ids[row // data.shape[1]]!s}, time {times[row % data.shape[1]]!s}"  # noqa: E731
    return Raw(pd.DataFrame(columns), where, str(path), [said], path, [str(name) for name in variables])
