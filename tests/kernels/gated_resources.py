"""What the kernels of gated_scan need of a Hopper GPU, compiled ahead of time.

By hand, for the whole table of gated_scan/README.md (minutes):

    env -u TRITON_INTERPRET TRITON_DEFAULT_FP_FUSION=1 python tests/kernels/gated_resources.py [CELL ...]

With --json: rows [cell, dtype, width, heads, batch, "forward" | "backward", save] on stdin, as the tests choose them;
an eighth value true adds lengths, episodes and the other direction, a ninth a projection of that width.
"""

import json
import sys
from typing import Any

import torch
from ahead_of_time import compiled

KINDS = {
    torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64",
    torch.int32: "i32", torch.bool: "i1",
}  # fmt: skip


def case(
    cell: str, dtype: str, width: int, heads: int, batch: int, direction: str, save: str,
    ragged: bool = False, projected: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The launch that such a call makes, over tensors without memory."""
    from recurra.kernels.gated_scan import FORMS, _prepare, _shapes
    from recurra.kernels.gated_scan import triton as backend

    gates, kind = FORMS[cell].gates, getattr(torch, dtype)
    wx = torch.empty(batch, 1024, gates, heads, width, dtype=kind, device="meta")
    bias = wx.new_empty(FORMS[cell].biases, heads, width)
    projection = None if projected is None else wx.new_empty(heads, projected, width)
    r = wx.new_empty(gates, heads, width, projected or width)
    flags = {}
    if ragged:
        flags["lengths"] = torch.empty(batch, dtype=torch.int64, device="meta")
        flags["reset"] = torch.empty(batch, 1024, dtype=torch.bool, device="meta")
    options, inputs = _prepare(cell, wx, r, bias, projection=projection, reverse=ragged, save=save, **flags)
    back = direction == "backward"
    layout, results = backend.plan(options, inputs, back=back), _shapes(options, inputs, True)
    if back:
        states = [t for t in (inputs.h, inputs.c, inputs.n, inputs.m) if t is not None]
        found = backend.outputs(options, inputs)
        arguments = backend.backward_arguments(options, inputs, layout, results, results[0], states, states, found)
        arguments["product"] = arguments["product"].float()
        kernel = backend.backward_kernel
    else:
        arguments = backend.forward_arguments(options, inputs, layout, results, True)
        kernel = backend.forward_kernel
    launch = next(iter(backend.launches(kernel, layout, arguments)))
    values = launch.arguments
    signature = {n: f"*{KINDS[v.dtype]}" for n, v in values.items() if isinstance(v, torch.Tensor)}
    # Of the numbers that are compiled for, 1 is a constant.
    fixed = ("batch", "steps", "skipped", "first", "count")
    numbers = [n for n, v in values.items() if type(v) is int and n.islower() and (v != 1 or n in fixed)]
    signature |= dict.fromkeys(numbers, "i32")
    return {
        "module": kernel.fn.__module__, "function": kernel.fn.__name__, "signature": signature,
        "constants": {n: v for n, v in values.items() if n not in signature},
        "num_warps": launch.warps, "layout": layout,
        "aligned": [n for n in numbers if n.startswith("wx_") and values[n] % 16 == 0],
    }  # fmt: skip


COLUMNS = [("bfloat16", 64, 12), ("bfloat16", 128, 6), ("float32", 64, 12), ("bfloat16", 768, 1)]
PASSES = [("forward", "gates"), ("backward", "gates"), ("backward", "recompute")]


def entry(cell: str, dtype: str, width: int, heads: int) -> str:
    """Programs a head if several; for every pass registers, bytes of the stack if any, KB of shared memory."""
    words, parts = [], []
    for direction, save in PASSES:
        chosen = case(cell, dtype, width, heads, 16, direction, save)
        if chosen["layout"].mode == "given":
            return "a launch a step"
        found = compiled(chosen)
        stack = found["stack"] + found["local"]
        words.append(f"{found['registers']}{f'+{stack}' * bool(stack)}/{found['shared'] // 1024}")
        parts.append(chosen["layout"].parts)
        assert found["mma"] + found["wgmma"], "no matrix instruction"
    return f"{'' if max(parts) == 1 else f'{parts[0]}, {parts[1]}: '}{' '.join(words)}"


if __name__ == "__main__":
    if "--json" in sys.argv:
        cases = [case(*row) for row in json.load(sys.stdin)]
        json.dump([compiled(c) | {"mode": c["layout"].mode} for c in cases], sys.stdout)
    else:
        from recurra.kernels.gated_scan import FORMS

        print("| cell | " + " | ".join(f"{heads} x {width}, {dtype}" for dtype, width, heads in COLUMNS) + " |")
        print("|---" * (1 + len(COLUMNS)) + "|")
        for name in sys.argv[1:] or FORMS:
            print(f"| {name} | " + " | ".join(entry(name, *column) for column in COLUMNS) + " |", flush=True)
