"""
From undersampled k-space to an image
=====================================

A generated slice is sampled four times too sparsely and reconstructed in three ways: as it is, by compressed sensing, and by the
recurrent network that comes with the package.
"""

import numpy as np
import torch

from recurra.mri import load_checkpoint
from recurra.mri.baselines import l1_wavelet, zero_filled
from recurra.mri.data.phantom import phantom_slice
from recurra.mri.figures import error_map_png
from recurra.mri.masks import MASKS
from recurra.mri.metrics import psnr, ssim

# %%
# The phantom brings its k-space, the sensitivities of eight coils and the image behind them. The seed is one that the network was
# not trained on.

kspace, maps, image = phantom_slice(160, 128, 8, seed=(2026, 1))
mask = MASKS["equispaced_fraction"]([4], [0.08])(shape=(160, 128), seed=7)
print(f"{mask.sampling.mean():.0%} of the columns are sampled")

# %%
# Every method takes k-space, sensitivities and mask with a leading batch axis.

sampled = torch.from_numpy(kspace * mask.sampling)[None]
sensitivity = torch.from_numpy(maps)[None]
where = torch.from_numpy(mask.sampling)[None, None]
