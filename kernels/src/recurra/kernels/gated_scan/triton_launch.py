"""Arguments of the kernels of a gated scan."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from recurra.kernels.gated_scan import FORMS
from recurra.kernels.gated_scan.triton_plan import Plan, programs_of, slots_of

_KINDS = {
    torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16
}  # fmt: skip


class Launch(NamedTuple):
    """A kernel with its arguments."""

    kernel: Any
    grid: tuple[int, int]
    arguments: dict[str, Any]
    warps: int
    cooperative: bool

    def run(self) -> None:
        """Puts it on the device's queue."""
        options = {"num_warps": self.warps, "launch_cooperative_grid": self.cooperative}
        self.kernel[self.grid](**self.arguments, **options)


def launches(kernel: Any, plan: Plan, arguments: dict[str, Any]) -> Iterator[Launch]:
    """One launch, or several where programs that wait for each other could not all be on the device at once."""
    blocks = arguments["heads"] * -(-arguments["batch"] // plan.rows)
    if not blocks:
        return
    together = max(1, programs_of(arguments["wx"].device) // plan.parts) if plan.mode == "shared" else blocks
    for skipped in range(0, blocks, together):
        grid = plan.parts, min(together, blocks - skipped)
        yield Launch(kernel, grid, arguments | {"skipped": skipped}, plan.warps, plan.mode == "shared")


def shared_arguments(options: Any, inputs: Any, plan: Plan) -> dict[str, Any]:
    """What both kernels take."""
    form, wx = FORMS[options.cell], inputs.wx if inputs.wx.stride(-1) == 1 else inputs.wx.contiguous()
    batch, steps, _, heads, new = wx.shape
    r = inputs.r.to(wx.dtype).contiguous()
    states = padded([t.contiguous() for t in (inputs.h, inputs.c, inputs.n, inputs.m) if t is not None])
    kind = _KINDS[wx.dtype]
    # The interpreter multiplies bfloat16 as the integers it stores them in.
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and wx.dtype == torch.bfloat16
    return {
        "wx": wx, "r": r, "bias": r if inputs.bias is None else inputs.bias.contiguous(),
        "projection": r if inputs.projection is None else inputs.projection.to(wx.dtype).contiguous(),
        **dict(zip(("h0", "c0", "n0", "m0"), states, strict=True)),
        # Pointers that are not read still need a tensor.
        "lengths": r if inputs.lengths is None else inputs.lengths.contiguous(),
        "reset": r if inputs.reset is None else inputs.reset.contiguous(),
        "product": wx, "arrivals": torch.zeros(heads * -(-batch // plan.rows), dtype=torch.int32, device=wx.device),
        "batch": batch, "steps": steps, "heads": heads, "first": 0, "count": steps,
        "wx_b": wx.stride(0), "wx_t": wx.stride(1), "wx_g": wx.stride(2), "wx_n": wx.stride(3),
        "CELL": options.cell, "GATES": form.gates, "BIASES": form.biases, "STATES": len(form.states),
        "SAVED": form.saved, "NEW": new, "OLD": r.shape[3], "ROWS": plan.rows, "TILE": plan.tile,
        "OLD_TILE": plan.old_tile, "MODE": plan.mode, "CHUNKS": plan.chunks, "BIAS": inputs.bias is not None,
        "LENGTHS": inputs.lengths is not None, "RESET": inputs.reset is not None, "REVERSE": options.reverse,
        "PROJECTED": inputs.projection is not None, "SLOTS": slots_of(options.cell, form.gates),
        "WIDE": tl.float64 if wx.dtype == torch.float64 else tl.float32,
        "FACTOR": tl.float32 if interpreted else kind,
        "PRECISION": "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32",
    }  # fmt: skip


def forward_arguments(options: Any, inputs: Any, plan: Plan, results: list[Tensor], saving: bool) -> dict[str, Any]:
    """All that `forward_kernel` takes."""
    form = FORMS[options.cell]
    y, *last = results[: 1 + len(form.states)]
    gates, states = kept(options, results, saving)
    return shared_arguments(options, inputs, plan) | {
        "y": y, **dict(zip(("h1", "c1", "n1", "m1"), padded(last), strict=True)),
        # A copy is aligned, a state among others need not be.
        "start": inputs.h.to(y.dtype).clone(memory_format=torch.contiguous_format),
        # h times a gate, on its way between programs.
        "held": torch.empty_like(y[:, 0] if y.shape[1] else inputs.h, dtype=y.dtype),
        "gates": y if gates is None else gates, "states": y if states is None else states,
        "GATES_KEPT": gates is not None, "STATES_KEPT": states is not None,
    }  # fmt: skip


def backward_arguments(
    options: Any, inputs: Any, plan: Plan, results: list[Tensor], dy: Tensor, carried: list[Tensor],
    extra: list[Tensor], found: dict[str, Tensor],
) -> dict[str, Any]:  # fmt: skip
    """All that `backward_kernel` takes; `found` are its outputs dwx, side and held."""
    y, (gates, states) = results[0], kept(options, results, True)
    arguments = shared_arguments(options, inputs, plan) | found
    return arguments | {
        "dy": dy, "y": y, "gates": y if gates is None else gates, "states": y if states is None else states,
        **dict(zip(("dh", "dc", "dn", "dm"), padded(carried), strict=True)),
        **dict(zip(("eh", "ec", "en", "em"), padded(extra), strict=True)),
        "RECOMPUTE": gates is None, "SLOTS": slots_of(options.cell, arguments["GATES"], back=True),
    }  # fmt: skip


def kept(options: Any, results: list[Tensor], saving: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gates and states among the results, None where they are not kept."""
    form = FORMS[options.cell]
    rest = list(results[1 + len(form.states) :]) if saving else []
    gates = rest.pop(0) if saving and options.save == "gates" and form.saved else None
    return gates, rest.pop(0) if rest else None


def padded(states: list[Tensor]) -> list[Tensor]:
    """Four tensors, the first in place of those that a cell does not have."""
    return (states + states[:1] * 4)[:4]
