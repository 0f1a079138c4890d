"""y[t, o] = sum over m and k of weight[o, m, k] x[t + (k - left) dilation, g M + m]."""

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recurra.kernels.sequences import wide


def memory_conv(options: Any, inputs: Any) -> tuple[Tensor]:
    """y, as a sum of shifted inputs."""
    left, right, dilation = options
    kind, steps = inputs.buffers[0].dtype, inputs.buffers[0].shape[1]
    x = _masked(torch.cat([buffer.to(wide(kind)) for buffer in inputs.buffers], 2), inputs.lengths)
    if inputs.past is None:
        x = F.pad(x, (0, 0, left * dilation, right * dilation))
    else:
        x = F.pad(torch.cat([inputs.past.to(x.dtype), x], 1), (0, 0, 0, right * dilation))
    outputs, members, _ = inputs.weight.shape
    groups = x.shape[2] // members
    x = x.reshape(*x.shape[:2], groups, 1, members)
    weight = inputs.weight.to(x.dtype).reshape(groups, outputs // groups, members, -1)
    shifted = (x[:, k * dilation : k * dilation + steps] for k in range(left + 1 + right))
    y = reduce(torch.add, ((x_k * weight[..., k]).sum(4) for k, x_k in enumerate(shifted)))
    return (_masked(y.flatten(2), inputs.lengths).to(kind),)


def _masked(value: Tensor, lengths: Tensor | None) -> Tensor:
    # Chosen, not multiplied: the padding may hold NaN.
    if lengths is None:
        return value
    live = torch.arange(value.shape[1], device=value.device) < lengths[:, None]
    return torch.where(live[:, :, None], value, 0)
