"""Damaged files of every format that core reads: checkpoints, other people's, containers, recipes.

They end in a result or in one line; tests/hostile/campaign.py tries more of them.
"""

from core_formats import CORE
from hostile_checks import checks

good, test_a_good_file_is_read, test_known_damage_ends_well, test_random_damage_ends_well = checks(CORE)
