"""h_t = a_t h_(t-1) + b_t."""

from typing import Any

import torch
from torch import Tensor

from recurra.kernels.sequences import loop, wide


def linear_scan(options: Any, inputs: Any) -> tuple[Tensor, Tensor]:
    """h and the last state, by a loop over time."""
    a, b, h0, lengths, reset = inputs
    carried = wide(b.dtype)
    states, (last,) = loop(
        lambda h, a_t, b_t: (a_t * h + b_t,),
        (a.to(carried), b.to(carried)),
        (h0.to(carried),),
        lengths=lengths,
        reset=reset,
        reverse=options.reverse,
    )
    h = torch.stack([h for (h,) in states], 1) if states else b.new_zeros(b.shape)
    return h.to(b.dtype), last
