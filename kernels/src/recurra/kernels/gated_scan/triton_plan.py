"""How a gated scan is laid out on a GPU: which programs hold which weights."""

from typing import Any, NamedTuple

import torch

from recurra.kernels.registry import gpu_kernel_reason

# Bytes of shared memory that a program's weights may take, and that its tiles take besides.
WEIGHTS, STAGING = 160 * 1024, 24 * 1024
# Programs that are on the device at the same time, where it cannot be asked: the multiprocessors of an H100.
PROGRAMS = 132
# Rows of a program: those of a matrix instruction.
ROWS = 16
WIDEST = 2048
# Cells whose gate scales h before the candidate's product, or the product.
BEFORE, APART = ("gru_before", "mgu"), ("gru", "mgu_after")


class Plan(NamedTuple):
    """The layout of one pass.

    Attributes:
        mode: "held": a program holds all weights of a head, and its state in registers. "shared": `parts` programs hold
            those of `tile` units each, and wait for each other after every step. "given": no program holds any; a
            matrix product and a launch a step.
        rows: sequences of a program.
        tile: its units, a power of two; the rest is masked.
        old_tile: "held": units of the state, as `tile`; "shared": state units of one of the `chunks` products.
        chunks: products of a step that "shared" adds up.
        parts: programs of a head.
        warps: of a program.
    """

    mode: str
    rows: int
    tile: int
    old_tile: int
    chunks: int
    parts: int
    warps: int


def plan(options: Any, inputs: Any, *, back: bool = False) -> Plan:
    """The layout for these arguments, forward or back."""
    batch, _, _, heads, new = inputs.wx.shape
    programs, blocks = programs_of(inputs.wx.device), heads * -(-batch // ROWS)
    if _held(options, inputs) <= room(inputs.wx.device):
        tile, old_tile = power(new), power(inputs.r.shape[3])
        # Few programs: each has the multiprocessor to itself, and more warps shorten the product.
        warps = 8 if tile >= 64 and blocks <= programs else 4
        return Plan("held", ROWS, tile, old_tile, 1, 1, min(warps, tile // 8))
    return _shared(options, inputs, back, blocks) or Plan("given", ROWS, 64, 64, 1, -(-new // 64), 4)


def unserved(options: Any, inputs: Any) -> str | None:
    """Why these kernels cannot serve a call; None if they can."""
    reason = gpu_kernel_reason(inputs.wx)
    if reason is not None or _held(options, inputs) <= room(inputs.wx.device):
        return reason
    width = inputs.wx.shape[-1]
    if inputs.projection is not None:
        return f"heads of {width} units with a projection are more than a program holds"
    if options.cell in BEFORE and None in (_shared(options, inputs, back, 1) for back in (False, True)):
        return f"heads of {width} units of {options.cell} are more than all programs together hold"
    return f"heads of {width} units are more than {WIDEST}" if width > WIDEST else None


def programs_of(device: torch.device) -> int:
    """Programs that surely run at the same time: one a multiprocessor."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else PROGRAMS


def room(device: torch.device) -> int:
    """Bytes that a program's weights may take."""
    if device.type != "cuda":
        return WEIGHTS
    most = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", WEIGHTS + STAGING)
    return min(WEIGHTS, int(most) - STAGING)


def power(n: int) -> int:
    """The smallest power of two from n, at least the 16 of a matrix instruction."""
    return max(16, 1 << (n - 1).bit_length())


def slots_of(cell: str, gates: int, *, back: bool = False) -> int:
    """Tiles side by side of a product: what `slots` sets apart has one; forward, a candidate that waits has none."""
    count = gates + 1 if cell in APART else gates - 1 if cell in BEFORE and not back else gates
    return 1 << (count - 1).bit_length()


def _size(inputs: Any) -> int:
    # A float32 product is three of tf32: its factors are held in two parts.
    return {2: 2, 4: 8, 8: 8}[inputs.wx.element_size()]


def _held(options: Any, inputs: Any) -> int:
    apart = options.cell in BEFORE or inputs.projection is not None
    matrices = slots_of(options.cell, inputs.r.shape[0], back=True) + apart
    return int(matrices * power(inputs.wx.shape[-1]) * power(inputs.r.shape[3]) * _size(inputs))


def _shared(options: Any, inputs: Any, back: bool, blocks: int) -> Plan | None:
    if inputs.wx.dtype == torch.float64:
        return None
    _, _, gates, _, new = inputs.wx.shape
    programs, most = programs_of(inputs.wx.device), room(inputs.wx.device)
    size, chunk = _size(inputs), 128 if inputs.wx.element_size() == 2 else 64
    chunks = -(-new // chunk) * (gates if back else 1)
    # Forward the gates lie side by side, padded to a power of two; a candidate that waits for them lies apart.
    side = 1 if back else slots_of(options.cell, gates) + (options.cell in BEFORE)
    fitting = [
        Plan("shared", ROWS, tile, chunk, chunks, -(-new // tile), 8 if side * tile > 64 else 4)
        for tile in (16, 32, 64)
        if chunks * chunk * side * tile * size <= most and -(-new // tile) <= programs
    ]
    if not fitting:
        return None
    # As many programs as work at once: the shorter each one's product.
    together = [p for p in fitting if p.parts * blocks <= programs]
    return together[0] if together else fitting[-1]
