"""Damages every format that is read in every way known, some 900 files, and shows what becomes of the readers.

    python tests/hostile/campaign.py [core] [mri] [forecast] [--each 30]

The last four columns are faults: their sum is the exit status, and what they said is printed. Without words, all.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from mutants import BYTES, OUTCOMES, Format, Verdict, bad, damage, kinds, verdict

from recurra.core.screen import print_table


def formats(parts: list[str]) -> list[Format]:
    """The formats of these parts."""
    found: list[Format] = []
    if "core" in parts:
        from core_formats import CORE

        found += CORE
    if "mri" in parts:
        from mri_formats import MRI

        found += MRI
    if "forecast" in parts:
        from forecast_formats import FORECAST

        found += FORECAST
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", help="core, mri, forecast; all of them if none is given")
    parser.add_argument("--each", type=int, default=10, help="files of each kind of damage to bytes or words")
    given = parser.parse_args()
    rows, faults = [], []
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        for form in formats(given.parts or ["core", "mri", "forecast"]):
            path = Path(folder, form.name)
            form.write(path)
            good = path.read_bytes()
            results: dict[str, Verdict] = {}
            for kind in kinds(form):
                for seed in range(given.each if kind in BYTES or kind == "words" else 1):
                    damage(form, good, kind, seed, path)
                    results[f"{form.name}: {kind} {seed}"] = verdict(form, path)
            counts = Counter(one.outcome for one in results.values())
            rows.append((form.name, len(kinds(form)), len(results), *(counts[outcome] for outcome in OUTCOMES)))
            faults += bad(results)
    sums = [sum(row[column] for row in rows) for column in range(1, len(rows[0]))]
    print_table(("format", "kinds", "tried", *OUTCOMES), [*rows, ("all", *sums)])
    print("\n".join(faults))
    return min(len(faults), 100)


if __name__ == "__main__":
    sys.exit(main())
