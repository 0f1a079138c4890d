"""
From a table to a forecast that one may believe
===============================================

Monthly CO2 above Mauna Loa and sea surface temperature off Peru: a model is trained on the first rows, forecasts a
year with intervals, and is held against the simple forecasts on rows that it has not seen."""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from recurra.forecast import backtest, fit
from recurra.forecast.data.sample import climate
from recurra.forecast.significance import coverage_band

# %%
# The table has a column a series; five months of CO2 are missing, and are filled by a rule that has a name. The model
# sees each window on a scale of its own (``data.scaler=window``), because CO2 is higher than it ever was in training.

table = climate()
options = ["data.fill=linear", "data.scaler=window", "train.epochs=30"]
model = fit(table, "arnet", options)
print(table.tail(3))

# %%
# A data frame of the next twelve months, in the units of the table:

ahead = model.forecast(table, 12, levels=[80, 95])
print(ahead.groupby("unique_id").head(2).to_string(float_format="%.2f"))

figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
for axis, (name, rows) in zip(axes, ahead.groupby("unique_id"), strict=True):
    axis.plot(table["date"][-60:], table[name][-60:], color="gray")
    axis.plot(rows["date"], rows["ARNet"], color="C1")
    for level, shade in ((95, 0.2), (80, 0.3)):
        axis.fill_between(rows["date"], rows[f"ARNet-lo-{level}"], rows[f"ARNet-hi-{level}"], color="C1", alpha=shade)
    axis.set_title(name)
plt.show()

# %%
# Is it worth anything? The same model forecasts from every month after those that it was trained and chosen on, each
# time as if that month were the present one. The rows that it must beat stand above it.

with tempfile.TemporaryDirectory() as folder:
    table.to_csv(Path(folder) / "climate.csv", index=False)
    result = backtest(model, Path(folder) / "climate.csv", Path(folder) / "backtest", quiet=True)
    rows = pd.read_csv(Path(folder) / "backtest" / "backtest.csv", parse_dates=["date", "cutoff"])

for method, scores in result.scores.items():
    print(f"{method:15} MAE {scores['mae']:6.3f}, over the seasonal naive's {scores['mase_ratio']:.2f}")

# %%
# Intervals promise a share, and the backtest shows what came of it. Shaded is where 99 of 100 right intervals would
# end, if the forecasts of neighbouring months were independent; they are not, and so the real scatter is larger. Here
# less lies inside than was promised, the less the further ahead: errors were smaller on the validation rows that the
# intervals were made from. The table of ``evaluate`` shows the same as ``coverage_80``. Intervals say how wrong the
# model has been, not how wrong it can be.

rows["step"] = rows.groupby(["unique_id", "cutoff"]).cumcount() + 1
figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
for level, color in ((80, "C0"), (95, "C3")):
    inside = (rows["y"] >= rows[f"ARNet-lo-{level}"]) & (rows["y"] <= rows[f"ARNet-hi-{level}"])
    share = inside[rows["y"].notna()].groupby(rows["step"]).mean()
    band = coverage_band(level, int(rows["y"].notna().sum() / share.size))
    axis.axhspan(*band, color=color, alpha=0.15)
    axis.plot(share.index, share, "o-", color=color, label=f"{level} % intervals")
axis.set_xticks(np.arange(1, 13))
axis.set_xlabel("months ahead")
axis.set_ylabel("share inside")
axis.set_ylim(0, 1)
axis.legend(loc="lower right")
plt.show()
