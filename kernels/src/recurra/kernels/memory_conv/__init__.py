"""Weighted window over time of every channel or group of channels: the memory block of FSMN networks."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from recurra.kernels.definition import Definition
from recurra.kernels.kernel_op import KernelOp, training
from recurra.kernels.memory_conv import reference
from recurra.kernels.memory_conv.layout import BUFFERS, Inputs
from recurra.kernels.registry import Backend, cpu_kernel_reason, gpu_kernel_reason, measured_costs
from recurra.kernels.sequences import FLOATS, check_dtype, check_sequence


class Options(NamedTuple):
    """What is no tensor: taps before and after the present one, and the steps from one tap to the next."""

    left: int
    right: int
    dilation: int


def memory_conv(
    x: Tensor | Sequence[Tensor],
    weight: Tensor,
    *,
    left: int,
    right: int,
    dilation: int = 1,
    lengths: Tensor | None = None,
    past: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """A finite memory over time, with x_t = 0 outside the sequence:

        y[t, o] = sum over m and k of weight[o, m, k] x[t + (k - left) dilation, g M + m]

    where group g of `weight.shape[0] / groups` outputs reads M = `weight.shape[1]` channels (Zhang et al. 2015,
    arXiv:1512.08301). One channel a group is the memory of FSMN, causal with `right` = 0.

    Args:
        x: (batch, time, channel), or a sequence of such buffers that stands for their concatenation along the channels,
            which the kernels never form.
        weight: (output, channels a group, tap) with left + 1 + right taps.
        left: taps before the present step.
        right: taps after it.
        dilation: steps from one tap to the next.
        lengths: (batch,) int64 in 0..time, in any order: x counts as 0 past a sequence's end and y is 0 there.
        past: (batch, left * dilation, channel), the steps before x; zero if absent. With `right` = 0, the last
            left * dilation steps of [past, x] are the past of the steps that follow.
        backend: reference, numba or triton; None for the rule of `recurra.kernels.registry`.

    Returns:
        y (batch, time, output) in the dtype of x.

    Raises:
        ValueError: shapes or dtypes do not fit, or the requested backend cannot serve.
    """
    (y,) = OP(x, weight, left=left, right=right, dilation=dilation, lengths=lengths, past=past, backend=backend)
    return y


def _prepare(
    x: Tensor | Sequence[Tensor],
    weight: Tensor,
    *,
    left: int,
    right: int,
    dilation: int = 1,
    lengths: Tensor | None = None,
    past: Tensor | None = None,
) -> tuple[Options, Inputs]:
    buffers = (x,) if isinstance(x, Tensor) else tuple(x)
    if not buffers or buffers[0].dim() != 3 or buffers[0].dtype not in FLOATS:
        given = f"shape {tuple(buffers[0].shape)} of {buffers[0].dtype}" if buffers else "no buffers"
        raise ValueError(f"x has {given}; expected (batch, time, channel), real floating")
    lead = buffers[0]
    for i, buffer in enumerate(buffers[1:], 1):
        if buffer.dim() != 3 or buffer.shape[:2] != lead.shape[:2]:
            raise ValueError(
                f"buffer {i} of x has shape {tuple(buffer.shape)}; expected {(*lead.shape[:2], 'channel')} as buffer 0"
            )
        check_dtype(f"buffer {i} of x", buffer, lead)
    _check_window(left, right, dilation)
    channels = sum(buffer.shape[2] for buffer in buffers)
    _check_weight(weight, channels, left + right + 1)
    check_dtype("weight", weight, lead)
    check_sequence(lead.shape[0], lead.shape[1], lengths, None, lead.device)
    if past is not None:
        expected = (lead.shape[0], left * dilation, channels)
        if past.shape != expected:
            raise ValueError(
                f"past has shape {tuple(past.shape)}; expected {expected}: batch, left * dilation, all channels of x"
            )
        check_dtype("past", past, lead)
    return Options(left, right, dilation), Inputs(weight, lengths, past, *buffers)


def _check_window(left: int, right: int, dilation: int) -> None:
    for name, value, least in (("left", left, 0), ("right", right, 0), ("dilation", dilation, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; expected an integer from {least} on")


def _check_weight(weight: Tensor, channels: int, taps: int) -> None:
    if weight.dim() != 3 or weight.shape[2] != taps:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; expected (output, channels a group, {taps}): left+right+1 taps"
        )
    outputs, members, _ = weight.shape
    if not channels or not members or channels % members or outputs % (channels // members):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; expected (output, channels a group, tap) where channels a group "
            f"divides the {channels} channels of x, and the number of groups the outputs"
        )


def _shapes(options: Options, inputs: Inputs, saving: bool) -> list[Tensor]:
    lead = inputs.buffers[0]
    return [lead.new_empty((lead.shape[0], lead.shape[1], inputs.weight.shape[0]))]


def _cost(name: str, options: Options, inputs: Inputs) -> float:
    lead, weight = inputs.buffers[0], inputs.weight
    entry = measured_costs(__name__)[name]["cpu" if lead.device.type == "cpu" else "cuda"]
    entry = entry["training" if training(inputs) else "inference"]
    products = lead.shape[0] * lead.shape[1] * weight.numel()
    return float(entry["call_us"] + entry["tap_us"] * weight.shape[2] + entry["ns_per_product"] * products / 1000)


def _numba_supports(options: Options, inputs: Inputs) -> str | None:
    return cpu_kernel_reason(inputs.buffers[0])


def _triton_supports(options: Options, inputs: Inputs) -> str | None:
    if len(inputs.buffers) > BUFFERS:
        return f"triton serves up to {BUFFERS} buffers; got {len(inputs.buffers)}, concatenate some"
    return gpu_kernel_reason(inputs.buffers[0])


OP = KernelOp(
    "memory_conv",
    __name__,
    Definition(Options, Inputs, _prepare, reference.memory_conv, _shapes, lambda options: 1),
    [
        Backend("reference", lambda o, i: None, lambda o, i: _cost("reference", o, i), reference.memory_conv),
        Backend("numba", _numba_supports, lambda o, i: _cost("numba", o, i)),
        Backend("triton", _triton_supports, lambda o, i: _cost("triton", o, i)),
    ],
)
