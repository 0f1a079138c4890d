"""Tables of series, their time axes and windows."""

from recurra.forecast.data.panel import Panel, Series
from recurra.forecast.data.tables import open_panel

__all__ = ["Panel", "Series", "open_panel"]
