"""Recurrent forecasting: TPGN, Chimera, AR-Net, ReGENN and ResNLS, from tables to forecasts with intervals."""

from typing import TYPE_CHECKING

from recurra.core.lazy import lazy

if TYPE_CHECKING:
    from recurra.forecast.data import open_panel as open_panel
    from recurra.forecast.inference import load_checkpoint as load_checkpoint
    from recurra.forecast.models import TPGN as TPGN
    from recurra.forecast.models import ARNet as ARNet
    from recurra.forecast.models import AutoRegression as AutoRegression
    from recurra.forecast.models import Chimera as Chimera
    from recurra.forecast.models import Forecaster as Forecaster
    from recurra.forecast.models import LinearMap as LinearMap
    from recurra.forecast.models import ReGENN as ReGENN
    from recurra.forecast.models import ResNLS as ResNLS
    from recurra.forecast.verbs import backtest as backtest
    from recurra.forecast.verbs import convert as convert
    from recurra.forecast.verbs import evaluate as evaluate
    from recurra.forecast.verbs import explain as explain
    from recurra.forecast.verbs import export as export
    from recurra.forecast.verbs import fit as fit
    from recurra.forecast.verbs import forecast as forecast
    from recurra.forecast.verbs import info as info
    from recurra.forecast.verbs import inspect as inspect
    from recurra.forecast.verbs import sample as sample
    from recurra.forecast.verbs import train as train

__getattr__, __dir__, __all__ = lazy(__name__)
