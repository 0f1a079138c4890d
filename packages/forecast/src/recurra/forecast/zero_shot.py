"""Forecasts of installed packages whose weights are trained already, as lines of the table of baselines.

None of them is a dependency; a name stands for one small adapter. Their weights, where a package does not carry them,
are what it downloads or finds in its cache.
"""

import importlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recurra.core.errors import UserError, one_line
from recurra.forecast.baselines import Baseline, Past, aligned, filled

Array = NDArray[np.float64]


class ZeroShot(Baseline):
    """The median forecast of an installed package, which needs no fit.

    Raises:
        UserError: the package is not installed, or its weights are not to be had.
    """

    package: ClassVar[str]
    install: ClassVar[str]

    def __init__(self, *, season: int = 1, window: int = 1, horizon: int = 1) -> None:
        super().__init__(season=season, window=window, horizon=horizon)
        try:
            module = importlib.import_module(self.package)
        except ImportError as error:
            raise UserError(
                f"baseline {self.package} needs the package {self.install}: pip install {self.install} "
                f"({one_line(error)})"
            ) from error
        try:
            self.run = self._load(module)
        except Exception as error:  # of whatever the package meets on its way to the weights
            raise UserError(f"baseline {self.package}: {self.install} cannot load: {one_line(error)}") from error

    @abstractmethod
    def _load(self, module: Any) -> Callable[[Array, int], Array]:
        """What forecasts rows (row, time) without gaps."""

    def forecast(self, past: Past, horizon: int, *, series: Sequence[int] | None = None) -> Array:
        """The next values; see `Baseline.forecast`."""
        rows = aligned(past)
        forecasts, first = np.full((len(rows), horizon), np.nan), np.isfinite(rows).argmax(1)
        seen = np.isfinite(rows).any(1)
        # Histories of one length go together; a shorter one is not made longer with what never was.
        for start in np.unique(first[seen]):
            group = np.flatnonzero(seen & (first == start))
            forecasts[group] = self.run(filled(rows[group, start:]), horizon)[:, :horizon]
        return forecasts


class Chronos(ZeroShot):
    """Chronos-Bolt small (Ansari et al. 2024), by the package chronos-forecasting."""

    package, install = "chronos", "chronos-forecasting"

    def _load(self, module: Any) -> Callable[[Array, int], Array]:
        import torch

        pipeline = module.BaseChronosPipeline.from_pretrained("amazon/chronos-bolt-small", device_map="cpu")

        def run(rows: Array, horizon: int) -> Array:
            quantiles, _ = pipeline.predict_quantiles(
                torch.from_numpy(rows).float(), prediction_length=horizon, quantile_levels=[0.5]
            )
            return np.asarray(quantiles[..., 0], np.float64)

        return run


class TiRex(ZeroShot):
    """TiRex (Auer et al. 2025), by the package tirex-ts."""

    package, install = "tirex", "tirex-ts"

    def _load(self, module: Any) -> Callable[[Array, int], Array]:
        import torch

        model = module.load_model("NX-AI/TiRex", device="cpu")

        def run(rows: Array, horizon: int) -> Array:
            quantiles, _ = model.forecast(context=torch.from_numpy(rows).float(), prediction_length=horizon)
            return np.asarray(quantiles[..., quantiles.shape[-1] // 2], np.float64)

        return run


class Fracast(ZeroShot):
    """Fracast-0, by the package fracast, which carries its weights."""

    package, install = "fracast", "fracast"

    def _load(self, module: Any) -> Callable[[Array, int], Array]:
        model = module.FracastModel.from_pretrained(device="cpu")

        def run(rows: Array, horizon: int) -> Array:
            quantiles = np.asarray(model.forecast(rows, horizon=horizon))  # .1 to .9
            return np.asarray(quantiles[..., quantiles.shape[-1] // 2], np.float64)

        return run


ZERO_SHOT: dict[str, type[Baseline]] = {"chronos": Chronos, "tirex": TiRex, "fracast": Fracast}
"""What `--baseline` takes besides those that are always run."""
