"""A recurrent layer by its definition: one product, then the scan."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from recurra.kernels.gated_scan import gated_scan


class Options(NamedTuple):
    """What is no tensor; `scan` names the backend of `gated_scan`, if one is asked for."""

    cell: Any
    reverse: bool
    save: Any
    scan: str | None


class Inputs(NamedTuple):
    """Tensors as the backends take them; state holds what the caller gave, None for zeros."""

    x: Tensor
    weight: Tensor
    r: Tensor
    bias: Tensor | None
    projection: Tensor | None
    state: tuple[Tensor, ...] | None
    lengths: Tensor | None
    reset: Tensor | None


def scan(options: Options, inputs: Inputs) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Projection of the input as one product, then `gated_scan`."""
    wx = torch.nn.functional.linear(inputs.x, inputs.weight.flatten(0, 2))
    return gated_scan(
        options.cell,
        wx.view(*wx.shape[:2], *inputs.weight.shape[:3]),
        inputs.r,
        inputs.bias,
        inputs.state,
        projection=inputs.projection,
        lengths=inputs.lengths,
        reset=inputs.reset,
        reverse=options.reverse,
        save=options.save,
        backend=options.scan,
    )
