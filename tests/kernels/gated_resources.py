"""What the kernels of gated_scan need of a Hopper GPU, compiled ahead of time.

By hand, for the whole table of gated_scan/README.md (minutes):

    env -u TRITON_INTERPRET TRITON_DEFAULT_FP_FUSION=1 python tests/kernels/gated_resources.py

With --json: rows [cell, dtype, width, heads, batch, "forward" | "backward", save] on stdin, as the tests choose them.
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


def case(cell: str, dtype: str, width: int, heads: int, batch: int, direction: str, save: str) -> dict[str, Any]:
    """The launch that such a call makes, over tensors without memory."""
    from recurra.kernels.gated_scan import FORMS, _prepare, _shapes
    from recurra.kernels.gated_scan import triton as backend

    gates, kind = FORMS[cell].gates, getattr(torch, dtype)
    wx = torch.empty(batch, 1024, gates, heads, width, dtype=kind, device="meta")
    bias = wx.new_empty(FORMS[cell].biases, heads, width)
    options, inputs = _prepare(cell, wx, wx.new_empty(gates, heads, width, width), bias, save=save)
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
    numbers = [n for n, v in values.items() if type(v) is int and n.islower()]
    signature |= dict.fromkeys(numbers, "i32")
    return {
        "module": kernel.fn.__module__, "function": kernel.fn.__name__, "signature": signature,
        "constants": {n: v for n, v in values.items() if n not in signature},
        "num_warps": launch.warps, "layout": layout,
        "aligned": [n for n in numbers if n.startswith("wx_") and values[n] % 16 == 0],
    }  # fmt: skip


def table() -> list[list[Any]]:
    """Every cell at the widths of the README."""
    from recurra.kernels.gated_scan import FORMS

    rows: list[list[Any]] = []
    for cell in FORMS:
        for dtype, width, heads in (("bfloat16", 64, 12), ("bfloat16", 128, 6), ("float32", 64, 12)):
            rows += [[cell, dtype, width, heads, 16, "forward", "gates"]]
            rows += [[cell, dtype, width, heads, 16, "backward", save] for save in ("gates", "recompute")]
        if cell not in ("gru_before", "mgu"):
            for dtype, width in (("bfloat16", 768), ("float32", 256)):
                rows += [[cell, dtype, width, 1, 16, direction, "gates"] for direction in ("forward", "backward")]
    return rows


if __name__ == "__main__":
    if "--json" in sys.argv:
        chosen = [case(*row) for row in json.load(sys.stdin)]
        json.dump([compiled(c) | {"mode": c["layout"].mode} for c in chosen], sys.stdout)
    else:
        print("| cell | dtype | width | pass | programs a head | warps | registers | stack | shared KB | mma |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for row in [r for r in table() if len(sys.argv) == 1 or r[0] in sys.argv[1:]]:
            cell, dtype, width, _, _, direction, save = row
            chosen = case(*row)
            found = compiled(chosen)
            stage = "forward" if direction == "forward" else f"backward, {save}"
            numbers = [
                chosen["layout"].parts, chosen["num_warps"], found["registers"], found["stack"] + found["local"],
                found["shared"] // 1024, found["mma"] + found["wgmma"],
            ]  # fmt: skip
            print(f"| {cell} | {dtype} | {width} | {stage} | " + " | ".join(map(str, numbers)) + " |", flush=True)
