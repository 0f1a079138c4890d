"""h_t = a_t h_(t-1) + b_t."""

from typing import Any

from torch import Tensor

from recurra.kernels.sequences import loop, stacked, wide


def linear_scan(options: Any, inputs: Any) -> tuple[Tensor, Tensor]:
    """h and the last state, by a loop over time."""
    a, b, h0, lengths, reset = inputs
    carried = wide(b.dtype)
    states, (last,) = loop(
        lambda h, a_t, b_t: (_product(a_t, h) + b_t,),
        (a.to(carried), b.to(carried)),
        (h0.to(carried),),
        lengths=lengths,
        reset=reset,
        reverse=options.reverse,
    )
    return stacked([h for (h,) in states], b, b.shape).to(b.dtype), last


def _product(a: Tensor, h: Tensor) -> Tensor:
    # Torch rounds complex products otherwise in strided memory, as where a sequence is split.
    return a.contiguous() * h.contiguous() if h.is_complex() else a * h
