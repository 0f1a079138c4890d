"""
From undersampled k-space to an image
=====================================

A generated slice is sampled four times too sparsely and reconstructed as it is, by compressed sensing, and by the small
network that comes with the package.
"""

import matplotlib.pyplot as plt
import torch

from recurra.mri import load_checkpoint
from recurra.mri.baselines import l1_wavelet, zero_filled
from recurra.mri.data.phantom import phantom_slice
from recurra.mri.masks import MASKS
from recurra.mri.metrics import psnr, ssim
from recurra.mri.predict import preprocess_of

# %%
# A phantom brings its k-space, the sensitivities of its coils and the image behind them. Here only the k-space is used,
# as with a scanner; sensitivities are estimated from its centre.

kspace, _, _ = phantom_slice(192, 160, 8, seed=(2026, 1), noise=0.003)
print(kspace.shape, kspace.dtype)

# %%
# The steps before a network belong to the network: which Fourier convention, which sensitivities, which scale. They
# include the mask, here every fourth column, more densely in the centre.

model = load_checkpoint("rim-small")
mask = MASKS["equispaced_fraction"]([4], [0.08])
prepared = preprocess_of(model)(kspace, generator=mask, seed=7)
inputs = (prepared.kspace[None], prepared.sensitivity[None], prepared.mask[None])
print(f"{prepared.mask.float().mean():.0%} of the columns are sampled")

# %%
# Every method takes the same three tensors: k-space, sensitivities, mask.

with torch.inference_mode():
    images = {
        "zero-filled": zero_filled(*inputs, fft=model.fft),
        "compressed sensing": l1_wavelet(*inputs, fft=model.fft),
        type(model).__name__: model(*inputs),
    }

# %%
# The target is the root sum of squares of the fully sampled k-space.

target = prepared.target.numpy()[None]
figure, axes = plt.subplots(2, len(images), figsize=(9, 7), layout="constrained")
for (name, image), (above, below) in zip(images.items(), axes.T, strict=True):
    magnitude = image.abs().numpy()
    above.imshow(magnitude[0], cmap="gray", vmin=0, vmax=target.max())
    above.set_title(f"{name}\n{psnr(target, magnitude):.1f} dB, SSIM {ssim(target, magnitude):.3f}")
    below.imshow(abs(magnitude - target)[0], cmap="magma", vmin=0, vmax=0.1 * target.max())
    above.axis("off")
    below.axis("off")
plt.show()
