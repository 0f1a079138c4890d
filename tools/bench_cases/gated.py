"""Gated units against torch's own modules; on a GPU the head-wise LSTM that FlashRNN is published with."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench_cases.case import Case, Run, Variants, inference

# (batch, time, width) by batch * width, where the recurrent product goes from hidden to dominant.
SMALL = ((1, 1000, 64), (1, 1000, 128), (2, 1000, 64))
MEDIUM = ((1, 1000, 256), (1, 1000, 512), (16, 100, 64), (16, 1000, 64), (16, 100, 128), (16, 1000, 128))
LARGE = ((64, 100, 64), (16, 100, 256), (16, 1000, 256), (64, 100, 128), (16, 100, 512), (64, 100, 256), (64, 100, 512))
LSTM = ((1, 1000, 64), (1, 1000, 256), (16, 100, 128), (16, 1000, 128))

TORCH = {"GRU": "torch.nn.GRU", "LSTM": "torch.nn.LSTM"}


def named(kind: str, what: str, shape: tuple[int, int, int]) -> str:
    return f"{kind.lower()} {what}, " + "x".join(map(str, shape))


def gated(kind: str, shape: tuple[int, int, int], backward: bool, small: bool, device: str) -> Variants:
    """One layer with as many inputs as units: outputs, or gradients of the input and of every parameter."""
    from recurra.core import nn

    batch, steps, width = (1, 3, 8) if small else shape
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(width, width, batch_first=True).to(device)
    ours = getattr(nn, kind).from_torch(theirs)
    x = torch.randn(batch, steps, width, device=device, requires_grad=backward)
    d = torch.randn(batch, steps, width, device=device)

    def forward(module: torch.nn.Module) -> Tensor:
        y: Tensor = module(x)[0]
        return y

    def step(module: torch.nn.Module) -> Any:
        return torch.autograd.grad(forward(module), [x, *module.parameters()], d)

    def made(module: torch.nn.Module) -> Run:
        return partial(step, module) if backward else inference(partial(forward, module))

    return {TORCH[kind]: lambda: made(theirs), "recurra": lambda: made(ours)}


def heads(backward: bool, small: bool, device: str) -> Variants:
    """The LSTM of FlashRNN's figures: batch 16, 1024 steps, 12 heads of 64 units, bfloat16, input products given."""
    from recurra.kernels import gated_scan

    batch, steps, count, size = (2, 8, 2, 16) if small else (16, 1024, 12, 64)
    torch.manual_seed(0)
    wx = torch.randn(batch, steps, 4, count, size, device=device, dtype=torch.bfloat16)
    r = (torch.randn(4, count, size, size, device=device) / size**0.5).to(torch.bfloat16)
    bias = torch.randn(4, count, size, device=device, dtype=torch.bfloat16)
    leaves = [t.requires_grad_(backward) for t in (wx, r, bias)]
    d = torch.randn(batch, steps, count, size, device=device, dtype=torch.bfloat16)
    whole = torch.nn.LSTM(count * size, count * size, batch_first=True).to(device, torch.bfloat16)
    x = torch.randn(batch, steps, count * size, device=device, dtype=torch.bfloat16, requires_grad=backward)

    def cudnn() -> Any:
        y = whole(x)[0]
        return torch.autograd.grad(y, [x, *whole.parameters()], d.flatten(2)) if backward else y

    def differentiated(forward: Any) -> Any:
        y = forward()
        return torch.autograd.grad(y, leaves, d) if backward else y

    def run(forward: Any) -> Run:
        call = partial(differentiated, forward)
        return call if backward else inference(call)

    def definition() -> Tensor:
        return gated_scan("lstm", wx, r, bias, backend="reference")[0]

    return {
        "recurra, reference": lambda: run(definition),
        "recurra": lambda: run(lambda: gated_scan("lstm", wx, r, bias)[0]),
        "torch loop": lambda: run(partial(lstm_loop, wx, r, bias)),
        "torch.nn.LSTM of the same width": lambda: cudnn if backward else inference(cudnn),
    }


def lstm_loop(wx: Tensor, r: Tensor, bias: Tensor) -> Tensor:
    """All heads and gates of a step in one batched product, everything in the inputs' dtype."""
    batch, _, gates, count, size = wx.shape
    products = r.permute(1, 3, 0, 2).reshape(count, size, gates * size)
    h = wx.new_zeros(count, batch, size)
    c, states = h, []
    for given in (wx + bias).permute(1, 3, 0, 2, 4).flatten(3).unbind(0):
        i, f, g, o = torch.baddbmm(given, h, products).chunk(gates, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append(h)
    return torch.stack(states).permute(2, 0, 1, 3)


def layers(kind: str, what: str, shapes: tuple[tuple[int, int, int], ...]) -> dict[str, Case]:
    build = {"training": True, "inference": False}[what]
    return {named(kind, what, s): Case("core", partial(gated, kind, s, build), 1e-3, least=0.05) for s in shapes}


# bfloat16 keeps 8 bits: the loop rounds its state at each of 1024 steps, ours only its output.
LOOSE = 0.1

CASES = {
    **layers("GRU", "training", SMALL + MEDIUM + LARGE),
    **layers("GRU", "inference", SMALL + MEDIUM + LARGE),
    **layers("LSTM", "training", LSTM),
    **layers("LSTM", "inference", LSTM),
    **{
        f"lstm 12x64 heads, bfloat16, {what}": Case(
            "core",
            partial(heads, what == "training"),
            LOOSE,
            devices=("cuda",),
            least=0.02,
            unlike=("torch.nn.LSTM of the same width",),
        )
        for what in ("inference", "training")
    },
}
