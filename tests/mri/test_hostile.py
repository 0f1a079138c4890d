"""Damaged files of every format that the MRI domain reads: k-space and coil maps.

They end in a result or in one line; tests/hostile/campaign.py tries more of them.
"""

from hostile_checks import checks
from mri_formats import MRI

good, test_a_good_file_is_read, test_known_damage_ends_well, test_random_damage_ends_well = checks(MRI)
