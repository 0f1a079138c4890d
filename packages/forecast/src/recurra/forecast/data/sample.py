"""Embedded data: series that come with statsmodels, and generated autoregressive processes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from recurra.core.checks import at_least_one
from recurra.core.errors import UserError, nearest
from recurra.forecast.data.panel import Panel
from recurra.forecast.data.tables import open_panel


def sunspots() -> pd.DataFrame:
    """Yearly sunspot numbers, 1700-2008: columns `year` (whole numbers) and `sunspots`."""
    from statsmodels.datasets import sunspots as held

    frame = held.load_pandas().data
    return pd.DataFrame({"year": frame["YEAR"].astype(np.int64), "sunspots": frame["SUNACTIVITY"].astype(np.float64)})


def co2() -> pd.DataFrame:
    """Weekly CO2 above Mauna Loa in ppm, 1958-2001, with 59 weeks missing: columns `date` (Saturdays) and `co2`."""
    from statsmodels.datasets import co2 as held

    frame = held.load_pandas().data
    return pd.DataFrame({"date": frame.index.to_numpy(), "co2": frame["co2"].to_numpy(np.float64)})


def elnino() -> pd.DataFrame:
    """Monthly sea surface temperature off Peru in degrees C, 1950-2010: columns `date` (first days) and `sst`."""
    from statsmodels.datasets import elnino as held

    frame = held.load_pandas().data
    years = frame["YEAR"].astype(np.int64)
    dates = pd.date_range(f"{years.iloc[0]}-01-01", periods=12 * len(frame), freq="MS", unit="us")
    return pd.DataFrame({"date": dates, "sst": frame.drop(columns="YEAR").to_numpy(np.float64).reshape(-1)})


def climate() -> pd.DataFrame:
    """Months that CO2 and El Nino share, a column each: `date`, `co2` (mean of the weeks), `sst`."""
    weekly = co2().set_index("date")["co2"]
    monthly = weekly.resample("MS").mean()
    both = elnino().set_index("date").join(monthly, how="inner")
    return both.rename_axis("date").reset_index()[["date", "co2", "sst"]]


def autoregression(
    coefficients: Sequence[float] = (0.5, -0.3, 0.2),
    length: int = 1000,
    *,
    series: int = 1,
    noise: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Processes y_t = sum_k a_k y_{t-k} + e_t, long: `unique_id`, `ds` (hours) and `y`.

    Args:
        coefficients: a_1, a_2, ...
        length: rows a series, after as many rows again that are thrown away, at least 100.
        series: how many.
        noise: standard deviation of e.
        seed: of the noise.
    """
    from scipy.signal import lfilter

    at_least_one(length=length, series=series)
    before = max(100, 10 * len(coefficients))
    drawn = np.random.default_rng(seed).normal(0.0, noise, (series, before + length))
    values = lfilter([1.0], [1.0, *(-np.asarray(coefficients, np.float64))], drawn, axis=1)[:, before:]
    stamps = pd.date_range("2020-01-01", periods=length, freq="h", unit="us")
    return pd.DataFrame(
        {
            "unique_id": np.repeat([f"ar{at}" for at in range(series)], length),
            "ds": np.tile(stamps.to_numpy(), series),
            "y": values.reshape(-1),
        }
    )


def shops(length: int = 730, *, ahead: int = 28, series: int = 4, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Daily sales that prices, days of promotion and regions move; and the covariates of the days after.

    Returns:
        `unique_id`, `ds`, `y`, `visitors` (known afterwards), `price`, `offer` (known ahead; `offer` is a category),
        `region` (of a shop, a category); and the same without `y` and `visitors` for `ahead` days more.
    """
    draw = np.random.default_rng(seed)
    stamps = pd.date_range("2022-01-01", periods=length + ahead, freq="D", unit="us")
    week = 1 + 0.3 * np.sin(2 * np.pi * stamps.day_of_week.to_numpy() / 7)
    frames = []
    for at in range(series):
        price = np.round(4 + draw.normal(0, 0.1, len(stamps)).cumsum() / 5, 2)
        offer = draw.choice(["none", "coupon", "poster"], len(stamps), p=[0.8, 0.1, 0.1])
        lift = np.where(offer == "none", 1.0, np.where(offer == "coupon", 1.4, 1.2))
        sales = np.maximum(0, (20 + 10 * at) * week * lift - 3 * (price - 4) + draw.normal(0, 2, len(stamps)))
        visitors = np.round(4 * sales + draw.normal(0, 5, len(stamps)))
        frames.append(
            pd.DataFrame(
                {
                    "unique_id": f"shop{at}",
                    "ds": stamps,
                    "y": np.round(sales),
                    "visitors": visitors,
                    "price": price,
                    "offer": offer,
                    "region": ("north", "south")[at % 2],
                }
            )
        )
    known = pd.concat([frame.iloc[:length] for frame in frames], ignore_index=True)
    later = pd.concat([frame.iloc[length:] for frame in frames], ignore_index=True)
    return known, later.drop(columns=["y", "visitors", "region"])


def outbreaks(length: int = 90, *, countries: int = 12, seed: int = 0) -> pd.DataFrame:
    """Daily totals of epidemics: `unique_id`, `ds`, `confirmed`, `deaths`, `recovered`, none ever falling."""
    draw = np.random.default_rng(seed)
    stamps = pd.date_range("2020-01-22", periods=length, freq="D", unit="us")
    days, frames = np.arange(length), []
    for at in range(countries):
        wave = 1 / (1 + np.exp(-(days - draw.uniform(20, 70)) / draw.uniform(4, 10)))
        confirmed = draw.poisson(np.diff(wave, prepend=0.0) * draw.uniform(1e3, 1e5)).cumsum()
        deaths, recovered = (0.02 * np.roll(confirmed, 7)).astype(int), (0.8 * np.roll(confirmed, 14)).astype(int)
        deaths[:7], recovered[:14] = 0, 0
        frames.append(
            pd.DataFrame(
                {
                    "unique_id": f"country{at:02d}",
                    "ds": stamps,
                    "confirmed": confirmed,
                    "deaths": deaths,
                    "recovered": recovered,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def prices(length: int = 600, *, seed: int = 0) -> pd.DataFrame:
    """Prices of trading days that wander: `date`, `open`, `close`."""
    draw = np.random.default_rng(seed)
    close = 3000 * np.exp(draw.normal(0, 0.01, length).cumsum())
    open_ = np.concatenate([[3000.0], close[:-1]]) * np.exp(draw.normal(0, 0.003, length))
    stamps = pd.date_range("2020-01-01", periods=length, freq="B", unit="us")
    return pd.DataFrame({"date": stamps, "open": open_.round(3), "close": close.round(3)})


SAMPLES: dict[str, Callable[[], pd.DataFrame]] = {
    "sunspots": sunspots,
    "co2": co2,
    "elnino": elnino,
    "climate": climate,
    "autoregression": autoregression,
    "shops": lambda: shops()[0],
    "outbreaks": outbreaks,
    "prices": prices,
}


def sample_panel(name: str, **options: object) -> Panel:
    """An embedded table, opened.

    Args:
        name: one of SAMPLES.
        options: of `open_panel`.

    Raises:
        UserError: there is no such table.
    """
    if name not in SAMPLES:
        raise UserError(f"no sample is called {name!r}{nearest(name, SAMPLES)}")
    panel = open_panel(SAMPLES[name](), **options)  # type: ignore[arg-type]
    panel.source = f"sample {name}"
    return panel


def write_samples(out: Path) -> list[Path]:
    """Write the embedded tables in the forms that are read; the paths of the files.

    A CSV a sample: a column a series (`climate.csv`, `co2.csv`, `sunspots.csv`), long with covariates (`shops.csv`, and
    `shops_future.csv` for the days after), and, if pyarrow is installed, `autoregression.parquet`.
    """
    known, later = shops()
    frames = {"climate": climate(), "co2": co2(), "sunspots": sunspots(), "shops": known, "shops_future": later}
    frames |= {"outbreaks": outbreaks(), "prices": prices()}
    written = []
    for name, frame in frames.items():
        written.append(out / f"{name}.csv")
        frame.to_csv(written[-1], index=False)
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        written.append(out / "autoregression.csv")
        autoregression(series=2).to_csv(written[-1], index=False)
    else:
        written.append(out / "autoregression.parquet")
        autoregression(series=2).to_parquet(written[-1], index=False)
    return written
