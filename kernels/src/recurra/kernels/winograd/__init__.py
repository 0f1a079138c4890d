"""3x3 convolution of channels-last images with a quarter of the multiplications; inference only."""

import functools
import importlib
from typing import Any, Literal

import torch
from torch import Tensor

from recurra.kernels.registry import Backend, Op, installed, measured_costs
from recurra.kernels.winograd import reference
from recurra.kernels.winograd.reference import TILE, winograd_weight

Padding = Literal["replicate", "zeros"]

__all__ = ["TILE", "winograd_conv", "winograd_weight"]


def winograd_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    dilation: int = 1,
    padding: Padding = "replicate",
    relu: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The convolution of `x` with a 3x3 kernel, stride 1, output as large as the input.

    Rounding differs from the direct sum: in float32 about 1.5e-6 of the largest output (README.md).

    Args:
        x: (batch, height, width, channel), contiguous.
        weight: (36, channel, filter) from `winograd_weight`.
        bias: (filter,) or None.
        dilation: distance of the taps.
        padding: border values repeat, or are zero; `dilation` wide on each side.
        relu: whether negative outputs become 0.
        out: (batch, height, width, filter), contiguous; allocated if None. Must not overlap `x`.
        backend: reference or numba; None for the rule of `recurra.kernels.registry`.

    Returns:
        `out`.

    Raises:
        ValueError: shapes do not fit, or the requested backend cannot serve.
    """
    if x.dim() != 4 or weight.dim() != 3 or weight.shape[:2] != (TILE * TILE, x.shape[-1]):
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit; expected (batch, height, width, channel) "
            f"and ({TILE * TILE}, channel, filter) from winograd_weight"
        )
    if padding not in ("replicate", "zeros"):
        raise ValueError(f"padding must be one of replicate, zeros; got {padding!r}")
    shape = (*x.shape[:3], weight.shape[2])
    out = x.new_empty(shape) if out is None else out
    if out.shape != shape or not out.is_contiguous() or not x.is_contiguous():
        raise ValueError(f"out has shape {tuple(out.shape)}; expected {shape}, contiguous as x must be")
    chosen = OP.select(x, weight, bias, backend=backend)
    with torch.no_grad():
        chosen(x, weight, bias, dilation, padding, relu, out)
    return out


def _numba(*args: Any) -> None:
    importlib.import_module(f"{__name__}.numba").conv(*args)


def _reference_supports(x: Tensor, weight: Tensor, bias: Tensor | None = None, **_: Any) -> str | None:
    return None


def _numba_supports(x: Tensor, weight: Tensor, bias: Tensor | None = None, **_: Any) -> str | None:
    if not installed("numba"):
        return "numba is not installed; pip install 'recurra-kernels[numba]'"
    if x.device.type != "cpu":
        return f"numba serves CPU tensors; these are on {x.device}"
    if x.dtype not in (torch.float32, torch.float64) or weight.dtype != x.dtype:
        return f"numba serves float32 or float64 throughout; got x {x.dtype}, weight {weight.dtype}"
    return None


def _cost(backend: str, x: Tensor, weight: Tensor, bias: Tensor | None = None, **_: Any) -> float:
    entry = measured_costs(__name__)[backend]
    channels, filters = weight.shape[1:]
    pixels = x.numel() / max(channels, 1)
    products = pixels * 2.25 * channels * filters
    return float(
        entry["call_us"]
        + (entry["ns_per_value"] * pixels * (channels + filters) + products * entry["ns_per_product"]) / 1000
    )


OP = Op(
    "winograd_conv",
    [
        Backend("reference", _reference_supports, functools.partial(_cost, "reference"), reference.conv),
        Backend("numba", _numba_supports, functools.partial(_cost, "numba"), _numba),
    ],
)
