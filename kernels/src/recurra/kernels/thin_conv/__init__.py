"""3x3 convolution of channels-last images to a few filters, such as the two of a complex image; inference only."""

import functools
import importlib
from typing import Any, Literal

import torch
from torch import Tensor

from recurra.kernels.registry import Backend, Op, installed, measured_costs
from recurra.kernels.thin_conv import reference

__all__ = ["thin_conv"]


def thin_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    padding: Literal["replicate", "zeros"] = "replicate",
    backend: str | None = None,
) -> Tensor:
    """The convolution of `x` with a 3x3 kernel, stride 1, output as large as the input.

    Args:
        x: (batch, height, width, channel), contiguous.
        weight: (filter, 3, 3, channel), contiguous; channels last, unlike torch's.
        bias: (filter,) or None.
        padding: border values repeat, or are zero.
        backend: reference or numba; None for the rule of `recurra.kernels.registry`.

    Returns:
        (batch, height, width, filter).

    Raises:
        ValueError: shapes do not fit, or the requested backend cannot serve.
    """
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[1:] != (3, 3, x.shape[-1]):
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit; expected (batch, height, width, channel) "
            "and (filter, 3, 3, channel)"
        )
    if padding not in ("replicate", "zeros"):
        raise ValueError(f"padding must be one of replicate, zeros; got {padding!r}")
    chosen = OP.select(x, weight, bias, backend=backend)
    with torch.no_grad():
        y: Tensor = chosen(x.contiguous(), weight.contiguous(), bias, padding)
    return y


def _numba(*args: Any) -> Any:
    return importlib.import_module(f"{__name__}.numba").conv(*args)


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
    return float(entry["call_us"] + entry["ns_per_product"] * 9 * x.numel() * weight.shape[0] / 1000)


OP = Op(
    "thin_conv",
    [
        Backend("reference", _reference_supports, functools.partial(_cost, "reference"), reference.conv),
        Backend("numba", _numba_supports, functools.partial(_cost, "numba"), _numba),
    ],
)
