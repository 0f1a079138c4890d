"""What is known about a table of series, from what evidence, and what will be done with it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recurra.core.errors import UserError, blaming
from recurra.core.inspection import Fact
from recurra.forecast.data.panel import Panel
from recurra.forecast.data.tables import TableError, open_panel


def facts_of(path: Path, *, window: int | None = None, horizon: int | None = None, **options: Any) -> Iterator[Fact]:
    """The facts about a table, and how many windows fit into it.

    Args:
        path: of the table.
        window: rows that a model sees.
        horizon: rows that it forecasts.
        options: of `open_panel`.

    Raises:
        FileError: it cannot be read, or what it holds does not decide; what was found before comes first.
    """
    with blaming(path):
        try:
            panel = open_panel(path, **options)
        except TableError as error:
            yield from error.facts
            raise
        yield from panel.facts
        yield from what_is_done(panel, window, horizon)


def what_is_done(panel: Panel, window: int | None = None, horizon: int | None = None) -> Iterator[Fact]:
    """Season, calendar features, common span, and the windows that fit.

    Args:
        panel: the table.
        window: rows that a model sees; nothing is said of windows without it.
        horizon: rows that it forecasts; 1 by default.
    """
    frequency = panel.frequency
    yield Fact(
        "season", f"{frequency.season} steps of {frequency.alias}", "of the seasonal naive forecast and of scores"
    )
    yield Fact("calendar features", ", ".join(frequency.features) or "none", f"of steps of {frequency.alias}")
    for kind, names in (("past", panel.past), ("future", panel.future), ("static", tuple(panel.series[0].static))):
        if names:
            said = ", ".join(f"{name} (category)" if name in panel.categorical else name for name in names)
            yield Fact(f"{kind} covariates", said, "options; text is taken for categories")
    if len(panel.series) > 1:
        try:
            yield panel.common_span()[2]
        except UserError as error:
            yield Fact("common span", "none: no model can take the series side by side", str(error))
    if window is not None:
        needed = window + (horizon or 1)
        fits = [max(0, len(one) - needed + 1) for one in panel.series]
        short = [one for one, count in zip(panel.series, fits, strict=True) if not count]
        evidence = f"window {window} + horizon {horizon or 1} = {needed} rows"
        if short:
            evidence += f"; {len(short)} series are too short, first {short[0].id!r} with {len(short[0])}: --skip-short"
        yield Fact("windows that fit", f"{sum(fits)} in {len(fits) - len(short)} of {len(fits)} series", evidence)
