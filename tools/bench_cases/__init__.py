"""What tools/bench measures, one file a group of cases, and the goals that the figures are held against."""

from bench_cases import autoregression, backtest, chimera, engine, forecast, gated, kernels, memory, mri, scans
from bench_cases.case import Case, Run

# In the order of the tables.
CASES: dict[str, Case] = {
    **kernels.CASES,
    **mri.CASES,
    **gated.CASES,
    **scans.CASES,
    **memory.CASES,
    **engine.CASES,
    **forecast.CASES,
    **backtest.CASES,
    **autoregression.CASES,
    **chimera.CASES,
}

__all__ = ["CASES", "Case", "Run"]
