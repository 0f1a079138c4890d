"""torch's own layers: oneDNN's LSTM and ATen's loops on a CPU, cuDNN on a GPU.

None of them can be differentiated twice, so that is left to the scan.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recurra.kernels.gated_layer.reference import scan
from recurra.kernels.kernel_op import training
from recurra.kernels.sequences import wide

KINDS = {"elman_tanh": "rnn_tanh", "elman_relu": "rnn_relu", "gru": "gru", "lstm": "lstm"}


def reason(options: Any, inputs: Any) -> str | None:
    """Why torch has no layer for this; None if it has."""
    x, tensors = inputs.x, [t for t in inputs[:5] if t is not None]
    if options.cell not in KINDS:
        return f"torch has no {options.cell}"
    if inputs.weight.shape[1] != 1:
        return f"torch's layers are dense; these have {inputs.weight.shape[1]} heads"
    if inputs.reset is not None:
        return "torch's layers know no reset"
    if inputs.lengths is not None:
        return "torch packs sequences of several lengths, which leaves its fused layers"
    if options.save != "gates":
        return "torch's layers keep their gates"
    if x.numel() == 0 or inputs.weight.numel() == 0:
        return "torch's layers take no empty sequences"
    if any(t.dtype != x.dtype for t in tensors) or (x.device.type == "cpu" and x.dtype == torch.float16):
        return f"torch's layers take one dtype, on a CPU not float16; got {', '.join(str(t.dtype) for t in tensors)}"
    if inputs.state is not None and any(s.dtype != x.dtype for s in inputs.state):
        return f"torch would round the carried state to {x.dtype}"
    if torch.is_autocast_enabled(x.device.type):
        return "under autocast the scan gives product and states a dtype each"
    return None


def layer(options: Any, inputs: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """y and the last state, by torch."""
    state = inputs.state or ()
    if training([*inputs[:5], *state]):
        y, *last = _Native.apply(options, type(inputs), *inputs[:5], *state)  # type: ignore[no-untyped-call]
    else:
        y, *last = _run(options, inputs[:5], state)
    return y, tuple(last)


def _run(options: Any, tensors: Sequence[Any], state: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """y (batch, time, 1, width) and the last state (batch, 1, width)."""
    x, weight, r, bias, projection = tensors
    gates, _, width, old = r.shape
    parameters = [weight.flatten(0, 2), r.flatten(0, 2)]
    if bias is not None:
        inside = torch.zeros_like(bias[:gates])
        if options.cell == "gru":
            inside = torch.cat([inside[:2], bias[3:]])
        parameters += [bias[:gates].flatten(), inside.flatten()]
    parameters += [] if projection is None else [projection[0]]
    widths = (old, width) if options.cell == "lstm" else (old,)
    begin = [s.transpose(0, 1).to(x.dtype) for s in state] or [x.new_zeros(1, x.shape[0], w) for w in widths]
    # Layers, dropout, training, bidirectional, batch first.
    how = bias is not None, 1, 0.0, training([x, *parameters, *begin]), False, True
    if x.is_cuda:  # cuDNN takes one buffer, and warns where it has to make it itself
        flat = torch.split(torch.cat([p.flatten() for p in parameters]), [p.numel() for p in parameters])
        parameters = [f.view_as(p) for f, p in zip(flat, parameters, strict=True)]
    run = getattr(torch.ops.aten, KINDS[options.cell]).input
    y, *last = run(
        x.flip(1) if options.reverse else x,
        [b.contiguous() for b in begin] if options.cell == "lstm" else begin[0].contiguous(),
        [p.contiguous() for p in parameters],
        *how,
    )
    y = y.flip(1) if options.reverse else y
    return y.unsqueeze(2), *(s.transpose(0, 1).to(wide(x.dtype)) for s in last)


class _Native(torch.autograd.Function):
    """torch's layer with its own backward pass, but the scan's where that is to be differentiated again."""

    @staticmethod
    def forward(ctx: Any, options: Any, kind: Any, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.options, ctx.kind, ctx.wanted = options, kind, [t is not None and t.requires_grad for t in tensors]
        ctx.set_materialize_grads(False)
        with torch.enable_grad():
            ctx.alias = [
                None if t is None else t.detach().requires_grad_(w) for t, w in zip(tensors, ctx.wanted, strict=True)
            ]
            ctx.results = _run(options, ctx.alias[:5], tuple(ctx.alias[5:]))
        ctx.save_for_backward(*tensors)
        return tuple(result.detach() for result in ctx.results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors  # also where unused: it refuses inputs that were changed in place
        again = torch.is_grad_enabled()
        alias, results = ctx.alias, ctx.results
        if again:
            alias = [t if t is None else t.view_as(t) for t in tensors]
            y, last = scan(ctx.options, ctx.kind(*alias[:5], tuple(alias[5:]) or None, None, None))
            results = y, *last
        leaves = [t for t, w in zip(alias, ctx.wanted, strict=True) if w]
        used = [(r, g) for r, g in zip(results, gradients, strict=True) if g is not None]
        outputs, pulled = [r for r, _ in used], [g for _, g in used]
        how = {"create_graph": again, "retain_graph": True, "allow_unused": True}
        found = iter(torch.autograd.grad(outputs, leaves, pulled, **how))
        return None, None, *(next(found) if w else None for w in ctx.wanted)
