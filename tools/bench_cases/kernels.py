"""Operations of convolutional cells and images, each alone."""

from functools import partial
from typing import Any

import torch

from bench_cases.case import Case, Variants, inference


def pointwise(cell: str, backward: bool, small: bool, device: str) -> Variants:
    from recurra.kernels import conv_cell_pointwise
    from recurra.kernels.conv_cell_pointwise.reference import GATES

    size = 16 if small else 256
    gi, gh = (torch.randn(1, GATES[cell] * 64, size, size, device=device) for _ in range(2))
    h, u = torch.randn(1, 64, size, size, device=device), None
    if cell == "indrnn":
        gh, u = None, torch.randn(64, device=device)
    leaves = [t.requires_grad_(backward) for t in (gi, gh, h, u) if t is not None]
    d = torch.randn_like(h)

    def run(backend: str) -> Any:
        y = conv_cell_pointwise(cell, gi, gh, h, u=u, backend=backend)
        return torch.cat([g.flatten() for g in torch.autograd.grad(y, leaves, d)]) if backward else y

    fused = "triton" if device == "cuda" else "numba"
    return {name: lambda name=name: partial(run, name) for name in ("reference", fused)}


def winograd(channels: int, dilation: int, small: bool, device: str) -> Variants:
    from recurra.kernels import winograd_conv, winograd_weight
    from recurra.kernels.winograd.reference import direct

    height, width = (16, 16) if small else ((256, 256) if channels == 64 else (218, 170))
    x, kernel = torch.randn(1, height, width, channels), torch.randn(channels, channels, 3, 3) / channels**0.5
    bias, out = torch.randn(channels), torch.empty(1, height, width, channels)
    plain, packed, channels_last = x.movedim(-1, 1).contiguous(), winograd_weight(kernel), kernel.contiguous(
        memory_format=torch.channels_last
    )  # fmt: skip

    def nchw() -> Any:
        return direct(plain.movedim(1, -1), kernel, bias, dilation, "replicate", True)

    options = {"dilation": dilation, "relu": True, "out": out}
    return {
        "torch": lambda: inference(nchw),
        "torch channels-last": lambda: inference(lambda: direct(x, channels_last, bias, dilation, "replicate", True)),
        "winograd": lambda: inference(lambda: winograd_conv(x, packed, bias, **options)),
    }


def thin(small: bool, device: str) -> Variants:
    from recurra.kernels import thin_conv

    size = 16 if small else 256
    x, kernel = torch.randn(1, size, size, 64), torch.randn(2, 3, 3, 64)
    return {
        name: lambda name=name: inference(partial(thin_conv, x, kernel, None, backend=name))
        for name in ("reference", "numba")
    }


CASES = {
    **{
        f"{cell} gates": Case("kernels", partial(pointwise, cell, False), devices=("cpu", "cuda"))
        for cell in ("gru", "mgu", "indrnn")
    },
    **{
        f"{cell} gates, gradient": Case("kernels", partial(pointwise, cell, True), devices=("cpu", "cuda"))
        for cell in ("gru", "mgu", "indrnn")
    },
    **{
        f"3x3 convolution, {c} channels, dilation {d}": Case("kernels", partial(winograd, c, d))
        for c in (64, 128)
        for d in (1, 2)
    },
    "3x3 convolution, 64 channels to 2": Case("kernels", thin),
}
