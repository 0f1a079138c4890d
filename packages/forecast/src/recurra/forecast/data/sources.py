"""Data that a recipe can name: a table of the user's, or an embedded one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from recurra.core.errors import UserError
from recurra.forecast.data.panel import Panel
from recurra.forecast.data.sample import autoregression, sample_panel
from recurra.forecast.data.splits import one_of_protocols
from recurra.forecast.data.tables import open_panel

ScalerKind = Literal["standard", "minmax", "maximum", "none", "window"]

SampleName = Literal["sunspots", "co2", "elnino", "climate", "shops", "outbreaks", "prices", "autoregression"]


class Source(ABC):
    """Series and how they are cut into training, validation and test.

    Args:
        split: rule of the parts: see `recurra.forecast.data.splits.split`; "tslib" takes ETT's months for ETT's files.
        fractions: train, val and test, for split "fractions".
        origins: horizons that split "last" tests.
        scaler: of what the model sees: "standard", "minmax" and "maximum" of each series' training rows, "window" the
            mean and standard deviation of each window, "none".
        stride: rows from one training window to the next.
        calibration: the most windows of the validation rows that residuals for intervals are kept of; 0 for none.
        skip_short: leave out series that are too short, instead of refusing the table.
    """

    def __init__(
        self,
        *,
        split: str = "fractions",
        fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
        origins: int | None = None,
        scaler: ScalerKind = "standard",
        stride: int = 1,
        calibration: int = 500,
        skip_short: bool = False,
    ) -> None:
        one_of_protocols(split)
        if stride < 1 or calibration < 0:
            raise ValueError(f"stride must be at least 1 and calibration at least 0; got {stride}, {calibration}")
        self.split, self.fractions, self.origins = split, fractions, origins
        self.scaler, self.stride, self.calibration, self.skip_short = scaler, stride, calibration, skip_short
        self.options: dict[str, Any] = {}

    @abstractmethod
    def open(self) -> Panel:
        """The series."""


class Table(Source):
    """A table in a file, or a data frame.

    Args:
        csv: path of a CSV, Parquet or npz file.
        id: column of ids; a table without one has a column a series.
        time: column of stamps.
        targets: columns of values; by default all that are numbers.
        freq: of the steps, in pandas' words; by default from the stamps.
        date_format: of stamps with two readings.
        zone: that stamps without one are in.
        fill: policy for missing values, of all columns or by column.
        past: columns known up to the origin.
        future: columns known ahead.
        static: columns with one value a series.
        categorical: those of them that are categories.
        separator: of a CSV.
        decimal: of a CSV.
        frame: the data frame, from Python; it takes the place of a file.
        options: those of `Source`.
    """

    def __init__(
        self,
        *,
        csv: str | None = None,
        id: str | None = None,
        time: str | None = None,
        targets: tuple[str, ...] | None = None,
        freq: str | None = None,
        date_format: str | None = None,
        zone: str | None = None,
        fill: str = "none",
        past: tuple[str, ...] = (),
        future: tuple[str, ...] = (),
        static: tuple[str, ...] = (),
        categorical: tuple[str, ...] = (),
        separator: str | None = None,
        decimal: str | None = None,
        frame: Any = None,
        split: str = "fractions",
        fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
        origins: int | None = None,
        scaler: ScalerKind = "standard",
        stride: int = 1,
        calibration: int = 500,
        skip_short: bool = False,
    ) -> None:
        super().__init__(
            split=split,
            fractions=fractions,
            origins=origins,
            scaler=scaler,
            stride=stride,
            calibration=calibration,
            skip_short=skip_short,
        )
        if csv is None and frame is None:
            raise UserError("data.csv: no table; give the path of a CSV or Parquet file, e.g. data.csv=sales.csv")
        self.source = Path(str(csv)).expanduser() if frame is None else frame
        given = {
            "id": id,
            "time": time,
            "targets": targets,
            "freq": freq,
            "date_format": date_format,
            "zone": zone,
            "fill": fill,
            "past": past,
            "future": future,
            "static": static,
            "categorical": categorical,
            "separator": separator,
            "decimal": decimal,
        }
        self.options = {key: value for key, value in given.items() if value not in (None, (), "none")}

    def open(self) -> Panel:
        """The table's series."""
        return open_panel(self.source, **self.options)


class Sample(Source):
    """Series that come with the package.

    Args:
        series: "sunspots", "co2", "elnino", "climate" (the two, monthly); and generated "shops" (with covariates),
            "outbreaks" (three variables a country), "prices" and "autoregression".
        coefficients: of the generated one, lag 1 first.
        length: its rows.
        count: its series.
        noise: standard deviation of its errors.
        seed: of the generator.
        targets: columns of values; by default all that are numbers.
        fill: policy for missing values, of all columns or by column.
        past: columns known up to the origin.
        future: columns known ahead.
        static: columns with one value a series.
        categorical: those of them that are categories.
        frame: a data frame, or a table's path, from Python; it takes the place of all that.
        options: those of `Source`.
    """

    def __init__(
        self,
        *,
        series: SampleName = "sunspots",
        coefficients: tuple[float, ...] = (0.2, 0.3, -0.5),
        length: int = 1000,
        count: int = 1,
        noise: float = 1.0,
        seed: int = 0,
        targets: tuple[str, ...] | None = None,
        fill: str = "none",
        past: tuple[str, ...] = (),
        future: tuple[str, ...] = (),
        static: tuple[str, ...] = (),
        categorical: tuple[str, ...] = (),
        frame: Any = None,
        split: str = "fractions",
        fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
        origins: int | None = None,
        scaler: ScalerKind = "standard",
        stride: int = 1,
        calibration: int = 500,
        skip_short: bool = False,
    ) -> None:
        super().__init__(
            split=split,
            fractions=fractions,
            origins=origins,
            scaler=scaler,
            stride=stride,
            calibration=calibration,
            skip_short=skip_short,
        )
        self.series, self.frame = series, frame
        self.generated = {"coefficients": coefficients, "length": length, "series": count, "noise": noise, "seed": seed}
        given = {
            "targets": targets,
            "fill": fill,
            "past": past,
            "future": future,
            "static": static,
            "categorical": categorical,
        }
        self.options = {key: value for key, value in given.items() if value not in (None, (), "none")}

    def open(self) -> Panel:
        """The embedded series."""
        if self.frame is not None:
            return open_panel(self.frame, **self.options)
        if self.series != "autoregression":
            return sample_panel(self.series, **self.options)
        panel = open_panel(autoregression(**self.generated), **self.options)  # type: ignore[arg-type]
        panel.source = "sample autoregression"
        return panel


DATA: Mapping[str, Callable[..., Source]] = {"Table": Table, "Sample": Sample}
