"""What a checkpoint knows of the tables it is for: columns, time axis, scaling, splits. It lives in its metadata."""

from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recurra.core.errors import UserError
from recurra.forecast.data.calendar import Frequency
from recurra.forecast.data.covariates import Encoder
from recurra.forecast.data.panel import Panel
from recurra.forecast.data.scaler import Scaler
from recurra.forecast.models.forecaster import Forecaster

KEY = "data"


@dataclass
class Context:
    """What stands in the metadata of a forecaster under "data"; all of it JSON.

    Attributes:
        frequency: pandas' alias, or a number of steps.
        season: steps.
        ids: of the series it was trained on, in their order.
        names: of the columns for id and time.
        variables: names of the columns that are forecast.
        wide: the table had a column a series.
        options: how tables are opened: those of `open_panel` that were given.
        scaler: of the values.
        encoder: of the covariates, or None.
        split: the options of the split.
        trained_until: last stamp of the training rows.
        calibrated: what the residuals were made from.
        source: name of the training data.
    """

    frequency: str
    season: int
    ids: list[Any]
    names: tuple[str, str]
    variables: tuple[str, ...]
    wide: bool
    options: dict[str, Any]
    scaler: dict[str, Any]
    encoder: dict[str, Any] | None = None
    split: dict[str, Any] = field(default_factory=dict)
    trained_until: str = ""
    calibrated: str = ""
    source: str = ""

    @classmethod
    def of(cls, model: Forecaster) -> "Context":
        """That of a model.

        Raises:
            UserError: it has none, as a model that was just built or converted without one.
        """
        stored = model.metadata.get(KEY)
        if not isinstance(stored, dict):
            raise UserError(
                f"{type(model).__name__}: knows no columns, time axis or scaling; train it, or give its data with "
                "--data where it is converted"
            )
        names = {one.name for one in fields(cls)}
        if set(stored) - names or {"frequency", "season", "ids", "names", "variables", "scaler"} - set(stored):
            raise UserError(f"{type(model).__name__}: what the checkpoint says of its data is not of this version")
        id_name, time_name = stored["names"]
        exact = {"names": (str(id_name), str(time_name)), "variables": tuple(stored["variables"])}
        return cls(**{"wide": False, "options": {}, **stored, **exact})

    def store(self, model: Forecaster) -> None:
        """Put it into the model's metadata."""
        content = asdict(self)
        content["names"], content["variables"] = list(self.names), list(self.variables)
        model.metadata[KEY] = content

    @property
    def by_window(self) -> bool:
        """Whether each window is scaled by its own mean and standard deviation."""
        return bool(self.scaler.get("kind") == "window")

    def scaling(
        self, panel: Panel, until: Mapping[Hashable, int] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Center and scale (series, variable) of a table's series: those of training; of new series, of their own rows.

        Args:
            panel: the table.
            until: rows of each series that are known; by default all.
        """
        kind, shift, scale = self.scaler["kind"], self.scaler["shift"], self.scaler["scale"]
        found = []
        for series, at in zip(panel.series, self.places(panel), strict=True):
            if 0 <= at < len(shift):
                found.append((np.asarray(shift[at], np.float64), np.asarray(scale[at], np.float64)))
            else:
                rows = len(series) if until is None else until[series.id]
                own = Scaler.fit(kind, series.seen(0, rows))
                found.append((own.shift, own.scale))
        center, width = zip(*found, strict=True)
        return np.stack(center), np.stack(width)

    def unknown(self, panel: Panel) -> list[Hashable]:
        """Ids of a table that the training did not have."""
        return [series.id for series, at in zip(panel.series, self.places(panel), strict=True) if at < 0]

    def places(self, panel: Panel) -> list[int]:
        """Of each series of a table, its place among those of the training; -1 of one that the training did not have.

        7, 7.0 and "7" are the same where the table has but one of them: files and frames keep ids in other types.
        """
        known = {one: at for at, one in enumerate(self.ids)}
        text = {str(one): at for at, one in enumerate(self.ids)}
        given = [plain_id(series.id) for series in panel.series]
        exact = {known[one] for one in given if one in known}
        places = []
        for one in given:
            at = known.get(one, text.get(str(one), -1))
            places.append(at if one in known or at not in exact else -1)
        return places

    def opened_encoder(self) -> Encoder | None:
        """The encoder of the covariates, if there are any."""
        return Encoder.from_json(self.encoder) if self.encoder else None

    def past_columns(self) -> list[int]:
        """Columns of the encoded covariates that are not known ahead."""
        encoder = self.opened_encoder()
        if encoder is None:
            return []
        return [
            at
            for at, column in enumerate(encoder.columns)
            if any(column == name or column.startswith(f"{name}=") for name in encoder.past)
        ]

    def check(self, panel: Panel, model: Forecaster) -> None:
        """Refuse a table that is not of the kind that the model was trained on.

        Raises:
            UserError: its frequency, columns or series are others.
        """
        name = type(model).__name__
        if panel.frequency.alias != self.frequency:
            raise UserError(
                f"{panel.source}: has steps of {panel.frequency.alias}; {name} was trained on steps of {self.frequency}"
            )
        if tuple(panel.variables) != self.variables:
            raise UserError(
                f"{panel.source}: has the variables {', '.join(panel.variables)}; {name} was trained on "
                f"{', '.join(self.variables)}"
            )
        if model.layout == "series":
            return
        places = self.places(panel)
        lacking = [one for at, one in enumerate(self.ids) if at not in places]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise UserError(f"{panel.source}: lacks the series {lacking[0]!r}{more} that {name} was trained on")
        extra = self.unknown(panel)
        if extra and model.layout == "variates":
            raise UserError(
                f"{panel.source}: has the series {extra[0]!r}, which {name} was not trained on; it knows "
                f"{', '.join(map(str, self.ids[:8]))}{' ...' if len(self.ids) > 8 else ''}"
            )

    def ordered(self, panel: Panel, model: Forecaster) -> Panel:
        """The table with its series in the order that the weights know, those they do not know after them."""
        if model.layout == "series":
            return panel
        places = self.places(panel)
        order = sorted(range(len(places)), key=lambda at: (places[at] < 0, places[at]))
        if order == list(range(len(order))):
            return panel
        new = {at: place for place, at in enumerate(order)}
        return replace(
            panel,
            series=[panel.series[at] for at in order],
            order=[new[at] for at in panel.order or range(len(order))],
            ids=None if panel.ids is None else panel.id_column(order),
            table=None,
        )


def plain_id(one: Hashable) -> int | str:
    """An id as JSON has it: a whole number, as a float may be one, or a text."""
    if isinstance(one, float | np.floating) and float(one).is_integer():
        return int(one)
    whole = isinstance(one, int | np.integer) and not isinstance(one, bool | np.bool_)
    return int(one) if whole else str(one)  # type: ignore[call-overload]


def frequency_of(context: Context) -> Frequency:
    """The steps of the time axis."""
    return Frequency.of(context.frequency)


def stamp_text(stamp: object) -> str:
    """A stamp for people and JSON."""
    return stamp.isoformat(sep=" ") if isinstance(stamp, pd.Timestamp) else str(stamp)
