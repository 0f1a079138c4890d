"""Which rows train, validate and test: the borders of every published protocol, and honest ones."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from recurra.core.checks import one_of
from recurra.core.errors import UserError
from recurra.core.inspection import Fact
from recurra.forecast.data.calendar import Frequency

Protocol = Literal["last", "fractions", "tslib", "tslib-ett-hour", "tslib-ett-minute", "tpgn", "regenn", "resnls"]
Part = Literal["train", "val", "test"]
_ETT = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
_ETT_HOURS = 30 * 24
_RESNLS = 0.9087
"""Share of the rows that ResNLS's published code trains on."""


@dataclass(frozen=True)
class Split:
    """Rows [start, stop) of each part; those of `val` and `test` begin `window` rows early, which no target lies in.

    Attributes:
        protocol: whose rule it is.
        train: rows to train on, and to fit scalers on.
        val: rows to choose an epoch by; empty if the protocol has none.
        test: rows to score.
        evidence: why these.
    """

    protocol: str
    train: tuple[int, int]
    val: tuple[int, int]
    test: tuple[int, int]
    evidence: str = field(default="", compare=False)

    def rows(self, part: Part) -> tuple[int, int]:
        """Of a part by its name."""
        found: tuple[int, int] = getattr(self, part)
        return found

    def windows(self, part: Part, window: int, horizon: int) -> int:
        """How many windows with their horizons lie in a part, one a row; 0 or less if it is too short."""
        start, stop = self.rows(part)
        return stop - start - window - horizon + 1

    def facts(self) -> list[Fact]:
        """In words."""
        said = (f"{part} [{self.rows(part)[0]}, {self.rows(part)[1]})" for part in get_args(Part))
        return [Fact("split", f"rows: {', '.join(said)}", f"protocol {self.protocol}: {self.evidence}")]


def split(
    protocol: str,
    length: int,
    *,
    window: int,
    horizon: int,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    origins: int | None = None,
    stride: int = 1,
) -> Split:
    """The rows of each part of series of this length.

    Args:
        protocol: "last": the last horizons test, as many before them validate, all before trains, and a target after a
            cutoff is in no part before it. "fractions": of the rows. "tslib": 70, 10 and 20 % (Time-Series-Library, any
            file but ETT; see `tslib_protocol`), "tslib-ett-hour" and "tslib-ett-minute": 12, 4 and 4 months of 30 days.
            "tpgn": 60, 20 and 20 %. "regenn": the last horizon tests, `stride` steps before it validate. "resnls": the
            first 90.87 % train, the rest tests, nothing validates.
        length: rows.
        window: rows that a model sees.
        horizon: rows that it forecasts.
        fractions: train, val and test, for the protocol of that name.
        origins: horizons that "last" tests; by default a tenth of the rows', from 1 to 20.
        stride: steps that "regenn" validates on.

    Raises:
        UserError: no such protocol, or a part would hold no window.
    """
    one_of_protocols(protocol)
    if protocol.startswith("tslib-ett"):
        month = _ETT_HOURS * (4 if protocol == "tslib-ett-minute" else 1)
        borders, rule = (12 * month, 16 * month, 20 * month), "12, 4 and 4 months of 30 days"
        if length < borders[2]:
            raise UserError(f"protocol {protocol}: needs {borders[2]} rows (20 months); got {length}")
    elif protocol == "last":
        count = origins or min(20, max(1, math.ceil(0.1 * length / horizon)))
        test = length - count * horizon
        borders, rule = (test - count * horizon, test, length), f"{count} horizons of {horizon} test, as many validate"
    elif protocol == "regenn":
        test = length - horizon
        borders, rule = (test - stride, test, length), f"the last {horizon} rows test, {stride} before validate"
    elif protocol == "resnls":
        train = math.ceil(_RESNLS * length)
        borders, rule = (train, train, length), f"the first ceil({_RESNLS} rows) train, nothing validates"
    else:
        shares = {"tslib": (0.7, 0.1, 0.2), "tpgn": (0.6, 0.2, 0.2)}.get(protocol, tuple(fractions))
        borders, rule = _by_shares(length, shares), "{:.4g}, {:.4g} and {:.4g} of the rows".format(*shares)
    return _made(protocol, borders, window, horizon, length, rule, stride)


def one_of_protocols(protocol: str) -> None:
    """Refuse an unknown protocol.

    Raises:
        UserError: naming those that there are.
    """
    try:
        one_of("protocol", protocol, Protocol)
    except ValueError as error:
        raise UserError(str(error)) from None


def _by_shares(length: int, shares: Sequence[float]) -> tuple[int, int, int]:
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6 or shares[0] <= 0:
        raise UserError(f"fractions must be three shares that sum to 1, train, val and test; got {tuple(shares)}")
    train, test = int(length * shares[0]), int(length * shares[2])
    return train, length - test, length


def _made(
    protocol: str, borders: tuple[int, int, int], window: int, horizon: int, length: int, rule: str, stride: int
) -> Split:
    train, val, test = borders
    early = tuple(max(0, border - window) for border in (train, val))
    made = Split(
        protocol, (0, max(0, train)), (early[0], val) if val > train else (train, train), (early[1], test), rule
    )
    lengths = {"train": horizon, "test": horizon, "val": min(stride, horizon) if protocol == "regenn" else horizon}
    for part in get_args(Part):
        start, stop = made.rows(part)
        needed = window + lengths[part]
        if part != "train" and (start == stop or stop == early[part == "test"] + window):  # the part is empty
            continue
        if stop - start < needed or (part != "train" and stop - early[part == "test"] < needed):
            raise UserError(
                f"protocol {protocol}: {part} would have {max(0, stop - start)} of the {length} rows and needs "
                f"{needed} for a window of {window} and a horizon of {lengths[part]}; give longer series, or shorten "
                "either"
            )
    return made


def tslib_protocol(columns: Sequence[str], frequency: Frequency, length: int, source: str = "") -> tuple[str, str]:
    """Which rule of the Time-Series-Library is for a table, and the evidence.

    The files ETTh1, ETTh2, ETTm1 and ETTm2 have a rule of their own; they are known by their columns, frequency and
    number of rows, or by their name.
    """
    named = re.search(r"ETT([hm])\d", source)
    step = {"h": "hour", "15min": "minute"}.get(frequency.alias)
    enough = length >= 20 * _ETT_HOURS * (4 if step == "minute" else 1)
    if sorted(columns) == sorted(_ETT) and step and enough:
        return f"tslib-ett-{step}", f"the columns of ETT, {frequency.alias}, {length} rows"
    if named and step == {"h": "hour", "m": "minute"}[named[1]] and enough:
        return f"tslib-ett-{step}", f"the file is called {named[0]} and its step is {frequency.alias}"
    return "tslib", "no file of ETT by columns, frequency and rows, nor by its name"


def column_order(protocol: str, columns: Sequence[str], target: str | None = None) -> list[str]:
    """The columns in the order in which a protocol's models have them: "tslib" and "tpgn" move the target last.

    Args:
        protocol: as for `split`.
        columns: of the file, in its order.
        target: by default OT, if there is one, else the last.

    Raises:
        UserError: there is no such column.
    """
    found = list(columns)
    if target is not None and target not in found:
        raise UserError(f"target {target!r} is no column; there are {', '.join(found)}")
    if protocol in ("tslib", "tpgn"):
        last = target or ("OT" if "OT" in found else found[-1])
        found = [name for name in found if name != last] + [last]
    return found
