"""The window of an FSMN over time against torch's depth-wise convolution."""

from functools import partial

import torch
from torch import Tensor

from bench_cases.case import Case, Variants
from bench_cases.scans import measured


def fsmn(shape: tuple[int, int, int], taps: int, backward: bool, small: bool, device: str) -> Variants:
    """One weight a channel and tap, (batch, time, channel) in and out, as the layers around it have it."""
    from recurra.kernels import memory_conv

    batch, steps, channels = (1, 50, 8) if small else shape
    side = taps // 2
    torch.manual_seed(0)
    x = torch.randn(batch, steps, channels, device=device).requires_grad_(backward)
    weight = torch.randn(channels, 1, taps, device=device).requires_grad_(backward)

    def convolution() -> Tensor:
        y = torch.nn.functional.conv1d(x.transpose(1, 2), weight, padding=side, groups=channels)
        return y.transpose(1, 2)

    return {
        "torch.nn.functional.conv1d": lambda: measured(convolution, [x, weight], backward),
        "recurra": lambda: measured(lambda: memory_conv(x, weight, left=side, right=side), [x, weight], backward),
    }


CASES = {
    f"fsmn 39 taps {what}, 1x4000x256": Case("core", partial(fsmn, (1, 4000, 256), 39, b), 1e-3, least=0.05)
    for b, what in ((False, "forward"), (True, "forward and backward"))
}
