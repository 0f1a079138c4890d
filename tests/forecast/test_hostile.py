"""Damaged files of every format that the forecasting domain reads: tables as CSV, Parquet and npz.

They end in a result or in one line; tests/hostile/campaign.py tries more of them.
"""

import pytest

pytest.importorskip("pyarrow")

from forecast_formats import FORECAST
from hostile_checks import checks

good, test_a_good_file_is_read, test_known_damage_ends_well, test_random_damage_ends_well = checks(FORECAST)
