"""The U-Net of fastMRI, and the networks that learn coil sensitivities with it.

U-Net: Ronneberger et al. 2015, arXiv:1505.04597, as in facebookresearch/fastMRI, whose key names are kept.
Sensitivities: Sriram et al. 2020 (E2E-VarNet), arXiv:2004.06688, from the centre of k-space; Yiasemis et al. 2022,
arXiv:2111.09639, refining given ones.
"""

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from recurra.mri.operators import (
    FFTConvention,
    atommic_rss_complex,
    divide_nonzero,
    from_channels,
    ifft,
    rss,
    to_channels,
)


class ConvBlock(nn.Module):
    """Twice: 3x3 convolution, instance normalisation, leaky ReLU, dropout."""

    def __init__(self, channels: int, features: int, dropout: float) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for c in (channels, features):
            modules += [nn.Conv2d(c, features, 3, padding=1, bias=False), nn.InstanceNorm2d(features)]
            modules += [nn.LeakyReLU(0.2), nn.Dropout2d(dropout)]
        self.layers = nn.Sequential(*modules)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch feature height width"]:
        """Return features of the same size."""
        y: Tensor = self.layers(x)
        return y


class UpBlock(nn.Module):
    """2x2 transposed convolution, instance normalisation, leaky ReLU."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(channels, features, 2, stride=2, bias=False),
            nn.InstanceNorm2d(features),
            nn.LeakyReLU(0.2),
        )

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch feature rows columns"]:
        """Return features of twice the size."""
        y: Tensor = self.layers(x)
        return y


class Unet(nn.Module):
    """U-Net of fastMRI.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        filters: channels of the first level; they double with every pooling.
        pools: number of poolings, each of which halves the image.
        dropout: probability that a channel is dropped in training.
    """

    def __init__(
        self, in_channels: int, out_channels: int, filters: int = 32, pools: int = 4, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if min(filters, pools) < 1:
            raise ValueError(f"a U-Net needs at least 1 filter and 1 pooling; got {filters} and {pools}")
        self.pools = pools
        levels = [filters * 2**i for i in range(pools + 1)]
        inputs = [in_channels, *levels[:-2]]
        self.down_sample_layers = nn.ModuleList(
            ConvBlock(c, f, dropout) for c, f in zip(inputs, levels[:-1], strict=True)
        )
        self.conv = ConvBlock(levels[-2], levels[-1], dropout)
        upwards = levels[-2::-1]
        self.up_transpose_conv = nn.ModuleList(UpBlock(2 * f, f) for f in upwards)
        blocks: list[nn.Module] = [ConvBlock(2 * f, f, dropout) for f in upwards]
        blocks[-1] = nn.Sequential(blocks[-1], nn.Conv2d(filters, out_channels, 1))
        self.up_conv = nn.ModuleList(blocks)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch output height width"]:
        """Return an image of the same size.

        Raises:
            ValueError: the image is too small to be halved so often.
        """
        height, width = x.shape[-2:]
        if min(height, width) < 2**self.pools or (height >> self.pools) * (width >> self.pools) < 2:
            raise ValueError(f"an image of {height} x {width} is too small for a U-Net of {self.pools} poolings")
        skips = []
        for down in self.down_sample_layers:
            x = down(x)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.conv(x)
        for up, block in zip(self.up_transpose_conv, self.up_conv, strict=True):
            skip = skips.pop()
            x = up(x)
            # Pooling an odd size loses a row or column.
            lost = skip.shape[-1] - x.shape[-1], skip.shape[-2] - x.shape[-2]
            if any(lost):
                x = F.pad(x, (0, lost[0], 0, lost[1]), mode="reflect")
            x = block(torch.cat([x, skip], dim=1))
        return x


class NormUnet(nn.Module):
    """U-Net on complex images, whose real and imaginary parts are normalised before and restored after.

    Args:
        filters: channels of the first level.
        pools: number of poolings.
        channels: complex channels of input and output.
        dropout: probability that a channel is dropped in training.
        padding: sizes are filled up with zeros to a multiple of `padding` + 1, which is a power of two; 0: not at all.
        normalize: whether to normalise.
    """

    def __init__(
        self,
        filters: int = 8,
        pools: int = 4,
        *,
        channels: int = 1,
        dropout: float = 0.0,
        padding: int = 15,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.unet = Unet(2 * channels, 2 * channels, filters, pools, dropout=dropout)
        self.padding, self.normalize = padding, normalize

    def forward(
        self, x: Complex[Tensor, "batch channel height width"]
    ) -> Complex[Tensor, "batch channel height width"]:
        """Return images of the same size."""
        parts = to_channels(x)  # (batch, 2, channel, height, width)
        if self.normalize:
            mean = parts.mean((2, 3, 4), keepdim=True)
            # An image of zeros stays one; any other deviation is used as it is.
            std = parts.std((2, 3, 4), keepdim=True).clamp_min(torch.finfo(parts.dtype).tiny)
            parts = (parts - mean) / std
        y = self._padded_unet(parts.flatten(1, 2)).reshape(parts.shape)
        return from_channels(y * std + mean if self.normalize else y)

    def _padded_unet(self, x: Tensor) -> Tensor:
        """The U-Net's output, cut back to the size of the input."""
        height, width = x.shape[-2:]
        missing = [((n - 1) | self.padding) + 1 - n if self.padding else 0 for n in (width, height)]
        left, top = missing[0] // 2, missing[1] // 2
        y: Tensor = self.unet(F.pad(x, (left, missing[0] - left, top, missing[1] - top)))
        return y[..., top : top + height, left : left + width]


class SensitivityRefinement(nn.Module):
    """Coil sensitivities, each sent through one U-Net, then divided by their root sum of squares.

    A single coil is left as it is.
    """

    def __init__(self, filters: int = 8, pools: int = 4, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.unet = Unet(2, 2, filters, pools, dropout=dropout)

    def forward(
        self, sensitivity: Complex[Tensor, "batch coil height width"]
    ) -> Complex[Tensor, "batch coil height width"]:
        """Return the refined sensitivities."""
        if sensitivity.shape[1] == 1:
            return sensitivity
        raw = self.raw(sensitivity)
        return divide_nonzero(raw, rss(raw))

    def raw(
        self, sensitivity: Complex[Tensor, "batch coil height width"]
    ) -> Complex[Tensor, "batch coil height width"]:
        """Return what the U-Net makes of every coil, before the division."""
        coils: Tensor = self.unet(to_channels(sensitivity.flatten(0, 1)))
        return from_channels(coils).reshape(sensitivity.shape)


class LearnedSensitivity(nn.Module):
    """Coil sensitivities from the fully sampled centre of k-space: coil images, a U-Net, division by their norm.

    Args:
        filters: channels of the U-Net's first level.
        pools: its number of poolings.
        compat_rss: divide by √(Σ|z|) as ATOMMIC does, whose published networks were trained so; else by √(Σ|z|²).
    """

    def __init__(self, filters: int = 8, pools: int = 4, *, compat_rss: bool = False) -> None:
        super().__init__()
        self.norm_unet = NormUnet(filters, pools)
        self.compat_rss = compat_rss

    def forward(
        self,
        kspace: Complex[Tensor, "batch coil height width"],
        mask: Bool[Tensor, "#batch 1 *mask"],
        convention: FFTConvention,
    ) -> Complex[Tensor, "batch coil height width"]:
        """Return the sensitivities."""
        center = torch.where(sampled_center(mask), kspace, 0)
        coils = ifft(center, convention).flatten(0, 1).unsqueeze(1)
        maps = self.norm_unet(coils).reshape(kspace.shape)
        return divide_nonzero(maps, atommic_rss_complex(maps) if self.compat_rss else rss(maps))


def sampled_center(mask: Bool[Tensor, "batch 1 height width"]) -> Bool[Tensor, "batch 1 height width"]:
    """The largest centred run of sampled columns; for a mask that varies along rows too, of rows as well."""
    rows, columns = mask.shape[2:]
    center = _central_run(mask[:, 0, rows // 2])[:, None, None, :]
    if rows > 1:
        center = center & _central_run(mask[:, 0, :, columns // 2])[:, None, :, None]
    return center


def _central_run(line: Bool[Tensor, "batch size"]) -> Bool[Tensor, "batch size"]:
    """True over the longest run of True that is symmetric about the middle; at least the middle itself."""
    size = line.shape[1]
    missing = ~line
    left = (missing[:, : size // 2].flip(1).cumsum(1) == 0).sum(1)
    right = (missing[:, size // 2 :].cumsum(1) == 0).sum(1)
    count = (2 * torch.minimum(left, right)).clamp_min(1)
    start = (size - count + 1) // 2
    index = torch.arange(size, device=line.device)
    return (index >= start[:, None]) & (index < (start + count)[:, None])
