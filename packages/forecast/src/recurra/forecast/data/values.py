"""Columns of any type as numbers: the same numbers, or one line that names the first cell that is none."""

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recurra.core.errors import UserError

Array = NDArray[np.float64]
Where = Callable[[int], str]
"""How a message calls a row, by its position."""
MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "-nan", "-NaN", "null", "NULL", "None", "none", "<NA>", "#N/A", "NaT")
"""What a cell of a column of numbers may say for a missing value."""
_NUMERAL = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_THOUSANDS = r"[+-]?\d{1,3}(?:[,.'\u00a0 ]\d{3})+(?:[.,]\d+)?"


def to_numbers(column: "pd.Series[Any]", where: Where) -> Array:
    """The column as float64, NaN where a value is missing.

    Args:
        column: numbers of any type: bool, whole, floating, nullable, decimal, objects, categories, numerals as text.
        where: names a row.

    Raises:
        UserError: a cell is no number, or infinite; its line names row, column and value.
    """
    name, dtype = column.name, column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        column = column.astype(dtype.categories.dtype if dtype.categories.dtype.kind == "O" else object)
        column = column.infer_objects()
    if pd.api.types.is_complex_dtype(column.dtype) or column.dtype.kind in "mM":
        raise UserError(f"column {name!r} holds {column.dtype}; expected real numbers")
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "fiub":
        values = column.to_numpy(np.float64, copy=False)
    elif pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
        values = column.to_numpy(np.float64, na_value=np.nan)
    else:
        values = _from_objects(column, where)
    if np.isinf(values).any():
        row = int(np.flatnonzero(np.isinf(values))[0])
        raise UserError(f"{where(row)}: column {name!r} is infinite; a number or an empty cell is expected")
    return np.asarray(values, np.float64)


def _from_objects(column: "pd.Series[Any]", where: Where) -> Array:
    """Of objects, one by one where they are no text."""
    cells = column.astype(object).to_numpy()
    missing = pd.isna(cells)
    text = np.fromiter((isinstance(cell, str) for cell in cells), np.bool_, len(cells))
    values = np.full(len(cells), np.nan)
    for row in np.flatnonzero(~missing & ~text):
        values[row] = _number(cells[row], column.name, where, int(row))
    rows = np.flatnonzero(text)
    if len(rows):
        words = pd.Series(cells[rows], dtype=str).str.strip()
        blank = words.isin(MISSING).to_numpy(np.bool_)
        truth = words.str.lower().isin(("true", "false")).to_numpy(np.bool_)
        plain = words.str.fullmatch(_NUMERAL).to_numpy(np.bool_)
        bad = ~(blank | plain | truth)
        if bad.any():
            raise not_a_number(str(cells[rows[bad.argmax()]]), column.name, where(int(rows[bad.argmax()])))
        values[rows[plain]] = words[plain].astype(np.float64).to_numpy()
        values[rows[truth]] = (words[truth].str.lower() == "true").to_numpy(np.float64)
    return values


def _number(cell: object, name: object, where: Where, row: int) -> float:
    try:
        if isinstance(cell, Decimal | Fraction | Real | np.number | np.bool_) and not isinstance(cell, complex):
            return float(cell)
    except (ValueError, OverflowError, TypeError):
        pass
    raise not_a_number(repr(cell), name, where(row))


def not_a_number(cell: str, name: object, where: str) -> UserError:
    """The line about a cell that is no number."""
    import re

    shown = cell if len(cell) <= 40 else cell[:37] + "..."
    if re.fullmatch(_THOUSANDS, cell.strip()):
        hint = "separators of thousands are not read, take them out"
    elif re.fullmatch(r"[+-]?\d+,\d+", cell.strip()):
        hint = "a decimal comma? Pass --decimal ,"
    elif cell.strip().lower().lstrip("+-") in ("inf", "infinity"):
        return UserError(f"{where}: column {name!r} is infinite; a number or an empty cell is expected")
    else:
        hint = "mend it or empty it; columns to leave out are left out by --targets"
    return UserError(f"{where}: column {name!r} holds {shown!r}, which is no number; {hint}")
