"""One recurrent layer: what the input adds to the gates, and the gated cell over time."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from recurra.kernels.gated_layer import native
from recurra.kernels.gated_layer.reference import Inputs, Options, scan
from recurra.kernels.gated_scan import FORMS, Cell
from recurra.kernels.gated_scan import OP as SCAN
from recurra.kernels.kernel_op import training
from recurra.kernels.registry import Backend, Choice, Op, installed, measured_costs, requested

TERMS = "call_us", "step_us", "ns_per_value", "ns_per_product", "ns_per_weight"


def terms(batch: int, steps: int, values: int, width: int, old: int) -> tuple[float, ...]:
    """What each of TERMS is multiplied with: `values` are those of wx at a step, the others widths of x and h.

    The last is what reading the recurrent weights at every step costs, however few sequences share it.
    """
    thousands = steps * values / 1000
    return 1, steps, batch * thousands, batch * thousands * (width + old), thousands * old


def gated_layer(
    cell: Cell,
    x: Tensor,
    weight: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    state: Sequence[Tensor] | None = None,
    *,
    projection: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    save: Literal["gates", "recompute"] = "gates",
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`gated_scan` of wx = weight @ x, by the scan or by torch's own layer, whichever is measured to be faster.

    Args:
        cell: as in `gated_scan`.
        x: (batch, time, input).
        weight: (gate, head, width, input), torch.nn's `weight_ih` in gates and heads.
        r: (gate, head, width, old), as in `gated_scan`: torch.nn's `weight_hh` with one head.
        bias: (gate, head, width), for gru (4, head, width), as in `gated_scan`: the sum of torch.nn's two biases, which
            stay apart for gru's candidate.
        state: as in `gated_scan`.
        projection: (head, projected, width), lstm only: torch.nn's `weight_hr` with one head.
        lengths: (batch,) int64 in 0..time.
        reset: (batch, time) bool.
        reverse: from each sequence's last step to its first.
        save: what `gated_scan` keeps for the backward pass; "recompute" is for it alone.
        backend: "torch", "scan" or one of `gated_scan`'s for the scan by that; None for the rule of
            `recurra.kernels.registry`. Compilers and torch.func see the scan.

    Returns:
        y (batch, time, head, width) and the last state, as in `gated_scan`.

    Raises:
        ValueError: shapes or dtypes do not fit, or the requested backend cannot serve.
    """
    options, inputs = _prepare(
        cell,
        x,
        weight,
        r,
        bias,
        state,
        projection=projection,
        lengths=lengths,
        reset=reset,
        reverse=reverse,
        save=save,
        scan=backend if backend in SCAN.backends else None,
    )
    if backend in SCAN.backends:
        return scan(options, inputs)
    if (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()) and backend != "torch":
        return scan(options, inputs)
    found: tuple[Tensor, tuple[Tensor, ...]] = OP.select(options, inputs, backend=backend)(options, inputs)
    return found


def _prepare(
    cell: Cell,
    x: Tensor,
    weight: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    state: Sequence[Tensor] | None = None,
    *,
    projection: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    save: Literal["gates", "recompute"] = "gates",
    scan: str | None = None,
) -> tuple[Options, Inputs]:
    if cell not in FORMS:
        raise ValueError(f"cell must be one of {', '.join(FORMS)}; got {cell!r}")
    if x.dim() != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (batch, time, input)")
    gates = FORMS[cell].gates
    if weight.dim() != 4 or weight.shape[0] != gates or weight.shape[3] != x.shape[2]:
        expected = f"({gates} gates, heads, width, {x.shape[2]} inputs)"
        raise ValueError(f"weight has shape {tuple(weight.shape)}; {cell} of this x expects {expected}")
    given = None if state is None else tuple(state)
    # The scan checks what it is given; torch's layers would not say what does not fit.
    like = x.new_zeros(1).expand(*x.shape[:2], *weight.shape[:3])
    SCAN.definition.prepare(
        cell, like, r, bias, given, projection=projection, lengths=lengths, reset=reset, reverse=reverse, save=save
    )
    return Options(cell, reverse, save, scan), Inputs(x, weight, r, bias, projection, given, lengths, reset)


def _scan_supports(options: Options, inputs: Inputs) -> str | None:
    return None


def _torch_supports(options: Options, inputs: Inputs) -> str | None:
    wish = requested()
    if wish in SCAN.backends:
        return f"{wish} is a backend of the scan"
    return native.reason(options, inputs)


def _cost(name: str, options: Options, inputs: Inputs) -> float:
    batch, steps, width = inputs.x.shape
    cpu = inputs.x.device.type == "cpu"
    name = "scan without numba" if name == "scan" and cpu and not installed("numba") else name
    table = measured_costs(__name__)[name]["cpu" if cpu else "cuda"]
    tensors = [*inputs[:5], *(inputs.state or ())]
    kind = "16 bit" if inputs.x.element_size() == 2 else "32 bit"
    entry = table[options.cell if options.cell in native.KINDS else "lstm"][kind]
    entry = entry["training" if training(tensors) else "inference"]
    sizes = terms(batch, steps, inputs.weight[..., 0].numel(), width, inputs.r.shape[3])
    return float(sum(entry[term] * size for term, size in zip(TERMS, sizes, strict=True)))


class GatedLayer(Op):
    """The operation, whose arguments are those of the public function."""

    def explain(self, *args: Any, backend: str | None = None, **kwargs: Any) -> Choice:
        """As `Op.explain`, for the arguments of `gated_layer`."""
        return super().explain(*_prepare(*args, **kwargs), backend=backend)


OP = GatedLayer(
    "gated_layer",
    [
        Backend("scan", _scan_supports, lambda o, i: _cost("scan", o, i), scan),
        Backend("torch", _torch_supports, lambda o, i: _cost("torch", o, i), native.layer),
    ],
)
