"""The definition, by torch's convolution."""

import torch.nn.functional as F
from torch import Tensor


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding: str) -> Tensor:
    """(batch, height, width, filter)."""
    mode = "replicate" if padding == "replicate" else "constant"
    image = F.conv2d(F.pad(x.movedim(-1, 1), (1, 1, 1, 1), mode=mode), weight.movedim(-1, 1), bias)
    return image.movedim(1, -1).contiguous()
