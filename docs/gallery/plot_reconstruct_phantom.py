"""
From undersampled k-space to an image
=====================================

Generated slices are sampled four times too sparsely and reconstructed as they are, by compressed sensing, and by the
small network that comes with the package.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from recurra.mri import load_checkpoint
from recurra.mri.baselines import l1_wavelet, zero_filled
from recurra.mri.data.phantom import phantom_slice
from recurra.mri.inference import Reconstruction
from recurra.mri.masks import MASKS
from recurra.mri.metrics import psnr, ssim

# %%
# The steps before a network belong to the network: which Fourier convention, which sensitivities, which scale. They
# include the mask, here every fourth column, more densely in the centre.

model = load_checkpoint("rim-small")
preprocess = Reconstruction(model).steps
mask = MASKS["equispaced_fraction"]([4], [0.08])
methods = {
    "zero-filled": zero_filled,
    "compressed sensing": l1_wavelet,
    "rim-small": lambda *inputs, fft: model(*inputs),
}

# %%
# A phantom brings its k-space, with noise, the sensitivities of its coils, and the image without noise. The
# reconstructions see the k-space alone, as with a scanner; sensitivities are estimated from its centre. Every method
# takes the same three tensors: k-space, sensitivities, mask.

scores = {name: [] for name in methods}
for seed in range(4):
    kspace, _, truth = phantom_slice(192, 160, 8, seed=(2026, 1, seed), noise=0.005)
    prepared = preprocess(kspace, generator=mask, seed=seed)
    inputs = (prepared.kspace[None], prepared.sensitivity[None], prepared.mask[None])
    target = abs(truth)[None]
    with torch.inference_mode():
        images = {name: method(*inputs, fft=model.fft) * prepared.scale for name, method in methods.items()}
    images = {name: image.abs().numpy() for name, image in images.items()}
    for name, image in images.items():
        scores[name].append((psnr(target, image), ssim(target, image)))

# %%
# The means over all slices, and the last of them with its errors:

for name, pairs in scores.items():
    print("{}: {:.1f} dB, SSIM {:.3f}".format(name, *np.mean(pairs, axis=0)))

figure, axes = plt.subplots(2, len(images), figsize=(9, 7.5), layout="constrained")
for (name, image), (above, below) in zip(images.items(), axes.T, strict=True):
    above.imshow(image[0], cmap="gray", vmin=0, vmax=target.max())
    above.set_title("{}\n{:.1f} dB, SSIM {:.3f}".format(name, *scores[name][-1]))
    below.imshow(abs(image - target)[0], cmap="magma", vmin=0, vmax=0.1 * target.max())
    above.axis("off")
    below.axis("off")
plt.show()
