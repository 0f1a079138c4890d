"""Settings of the classical baselines beside each other, and beside a network: the table of docs/masks_and_metrics.md.

tools/sweep sample/val --mask equispaced_fraction
tools/sweep undersampled.h5 --holdout 0.1 --checkpoint rim-small
"""

import argparse
from functools import partial

from recurra.mri import Undersampling, evaluate
from recurra.mri.baselines import BASELINES, cg_sense, l1_wavelet
from recurra.mri.sensitivity import espirit_maps

SETTINGS = {
    **{
        f"cg_sense, λ {weight}": partial(cg_sense, regularization=weight) for weight in (0.002, 0.005, 0.01, 0.02, 0.04)
    },
    **{f"cg_sense, λ 0, {n} iterations": partial(cg_sense, regularization=0, iterations=n) for n in (8, 12, 20)},
    **{
        f"l1_wavelet, λ {weight}": partial(l1_wavelet, regularization=weight)
        for weight in (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)
    },
    **{f"l1_wavelet, {name}": partial(l1_wavelet, wavelet=name) for name in ("haar", "db4", "sym4")},
    "l1_wavelet, no cycle spinning": partial(l1_wavelet, cycle_spinning=False),
    **{f"l1_wavelet, {n} iterations": partial(l1_wavelet, iterations=n) for n in (50, 200)},
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", nargs="+", help="files or folders")
parser.add_argument("--mask", help="undersamples fully sampled files, by 4 with 8 %% of the columns in the centre")
parser.add_argument(
    "--holdout", type=float, default=0.0, help="share of the samples kept back, for files without image"
)
parser.add_argument("--crop", type=float, help="ESPIRiT's background threshold in place of 0.95; settings are left out")
parser.add_argument("--checkpoint", default="rim-small")
options = parser.parse_args()

if options.crop is None:
    BASELINES.update(SETTINGS)
else:
    espirit_maps.__kwdefaults__["crop"] = options.crop
undersampling = options.mask and Undersampling(options.mask, 4.0, 0.08)
methods = {"undersampling": undersampling, "holdout": options.holdout, "baselines": tuple(BASELINES)}
evaluate(options.checkpoint, options.data, quiet=True, **methods).show()
