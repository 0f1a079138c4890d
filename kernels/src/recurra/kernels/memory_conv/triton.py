"""CUDA backend: one lane an output channel, eight steps and taps of it in registers; README.md."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from recurra.kernels.memory_conv.layout import BUFFERS, mirror
from recurra.kernels.sequences import wide

# Steps of a program, taps under way at a time, and outputs, 32 a warp.
ROWS, TAPS, LANES = 8, 8, 128
# Groups of ROWS steps whose weight gradients one program sums.
GROUPS = 32


@triton.jit
def _lane(  # type: ignore[no-untyped-def]
    c, batch, steps, x0, x1, x2, x3, x4, x5, x6, x7, n0, n1, n2, n3, n4, n5, n6, n7, BUFFERS: tl.constexpr
):  # fmt: skip
    # Where each lane's channel of the concatenation begins, and how far apart its steps are.
    xs, widths = (x0, x1, x2, x3, x4, x5, x6, x7), (n0, n1, n2, n3, n4, n5, n6, n7)
    pointer, stride, first = x0 + batch * steps * n0 + c, n0 + tl.zeros_like(c), n0
    for i in tl.static_range(1, BUFFERS):
        inside = c >= first
        pointer = tl.where(inside, xs[i] + batch * steps * widths[i] + (c - first), pointer)
        stride = tl.where(inside, widths[i], stride)
        first += widths[i]
    return pointer, stride


@triton.jit
def _part(part, steps, dilation, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    # A dilated window is as many undilated ones as its dilation: batch row and first step of ROWS steps of one.
    parts = tl.cdiv(tl.cdiv(steps, dilation), ROWS) * dilation
    place = part % parts
    return part // parts, tl.cast(place % dilation + place // dilation * ROWS * dilation, tl.int32)


@triton.jit
def _length(lengths, batch, steps, RAGGED: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.cast(steps, tl.int32)
    if RAGGED:
        n = tl.load(lengths + batch).to(tl.int32)
    return n


@triton.jit
def _zeros(COUNT: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    values = ()  # type: Any
    for _ in tl.static_range(COUNT):
        values = values + (tl.zeros((LANES,), WIDE),)
    return values


@triton.jit
def _column(pointer, step, mask, COUNT: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    values = ()  # type: Any
    for i in tl.static_range(COUNT):
        values = values + (tl.load(pointer + i * step, mask=mask, other=0.0).to(WIDE),)
    return values


@triton.jit
def _steps(  # type: ignore[no-untyped-def]
    pointer, stride, past, c, t, dilation, length, before, channels, there,
    COUNT: tl.constexpr, PAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # x at steps t, t + dilation, ...; `past` points to the batch row's step 0, whose steps lie before it.
    values = ()  # type: Any
    pointer, step = pointer + tl.cast(t, tl.int64) * stride, tl.cast(dilation, tl.int64) * stride
    for i in tl.static_range(COUNT):
        at = t + i * dilation
        x = tl.load(pointer + i * step, mask=there & (at >= 0) & (at < length), other=0.0).to(WIDE)
        if PAST:
            old = past + tl.cast(at, tl.int64) * channels + c
            x += tl.load(old, mask=there & (at >= -before) & (at < 0), other=0.0).to(WIDE)
        values = values + (x,)
    return values


@triton.jit
def _products(sums, x, w, ROWS: tl.constexpr, TAPS: tl.constexpr):  # type: ignore[no-untyped-def]
    # sums[r] + sum over k of x[r + k] w[k].
    values = ()  # type: Any
    for r in tl.static_range(ROWS):
        s = sums[r]
        for k in tl.static_range(TAPS):
            s += x[r + k] * w[k]
        values = values + (s,)
    return values


@triton.jit
def _chunk(  # type: ignore[no-untyped-def]
    sums, pointer, stride, past, c, weight, outputs, t, dilation, length, before, channels, there,
    COUNT: tl.constexpr, PAST: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    # The sums and COUNT taps more, from step t and from `weight` on.
    w = _column(weight, outputs, there, COUNT, WIDE)
    x = _steps(pointer, stride, past, c, t, dilation, length, before, channels, there, COUNT + ROWS - 1, PAST, WIDE)
    return _products(sums, x, w, ROWS, COUNT)


@triton.jit
def window_kernel(  # type: ignore[no-untyped-def]
    x0, x1, x2, x3, x4, x5, x6, x7, n0, n1, n2, n3, n4, n5, n6, n7, past, weight, lengths, y,
    steps, y_steps, shift, dilation, before, channels, first, y_width, outputs, members, share,
    BUFFERS: tl.constexpr, PAST: tl.constexpr, RAGGED: tl.constexpr, CUT: tl.constexpr, WINDOW: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, TAPS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """ROWS steps of LANES outputs, the first of y being output `first`; weight (member, tap, output)."""
    batch, start = _part(tl.cast(tl.program_id(0), tl.int64), y_steps, dilation, ROWS)
    lane = tl.cast(tl.program_id(1), tl.int64) * LANES + tl.arange(0, LANES)
    there, o, start = lane < y_width, first + lane, start + tl.zeros((LANES,), tl.int32)
    length = _length(lengths, batch, steps, RAGGED)
    sums = _zeros(ROWS, LANES, WIDE)
    WHOLE: tl.constexpr = WINDOW // TAPS * TAPS
    for member in range(members):
        c = o // share * members + member
        pointer, stride = _lane(
            c, batch, steps, x0, x1, x2, x3, x4, x5, x6, x7, n0, n1, n2, n3, n4, n5, n6, n7, BUFFERS
        )  # fmt: skip
        origin, taps = past + (batch + 1) * before * channels, weight + member * WINDOW * outputs + o
        for k in range(0, WHOLE, TAPS):
            sums = _chunk(
                sums, pointer, stride, origin, c, taps + k * outputs, outputs, start - shift + k * dilation, dilation,
                length, before, channels, there, TAPS, PAST, WIDE, ROWS,
            )  # fmt: skip
        if WHOLE < WINDOW:
            # No more taps than there are: one too many, though of weight 0, would let infinity in.
            sums = _chunk(
                sums, pointer, stride, origin, c, taps + WHOLE * outputs, outputs, start - shift + WHOLE * dilation,
                dilation, length, before, channels, there, WINDOW - WHOLE, PAST, WIDE, ROWS,
            )  # fmt: skip
    limit = length if CUT else tl.cast(y_steps, tl.int32)
    for r in tl.static_range(ROWS):
        t = start + r * dilation
        value = tl.where(t < limit, sums[r], 0.0).to(y.dtype.element_ty)
        tl.store(y + (batch * y_steps + tl.cast(t, tl.int64)) * y_width + lane, value, mask=there & (t < y_steps))


@triton.jit
def weight_kernel(  # type: ignore[no-untyped-def]
    x0, x1, x2, x3, x4, x5, x6, x7, n0, n1, n2, n3, n4, n5, n6, n7, past, dy, lengths, partial,
    batches, steps, shift, dilation, before, channels, outputs, members, share,
    BUFFERS: tl.constexpr, PAST: tl.constexpr, RAGGED: tl.constexpr, WINDOW: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, TAPS: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """The weight's gradient from GROUPS times ROWS steps for TAPS taps; partial (program, member, tap, output)."""
    lane = tl.cast(tl.program_id(1), tl.int64) * LANES + tl.arange(0, LANES)
    there, chunks = lane < outputs, tl.cdiv(WINDOW, TAPS)
    member, k = tl.program_id(2) // chunks, tl.program_id(2) % chunks * TAPS
    c = lane // share * members + member
    parts = batches * dilation * tl.cdiv(tl.cdiv(steps, dilation), ROWS)
    sums = _zeros(TAPS, LANES, WIDE)
    first = tl.cast(tl.program_id(0), tl.int64) * GROUPS
    for part in range(first, tl.minimum(first + GROUPS, parts)):
        batch, start = _part(tl.cast(part, tl.int64), steps, dilation, ROWS)
        start += tl.zeros((LANES,), tl.int32)
        pointer, stride = _lane(
            c, batch, steps, x0, x1, x2, x3, x4, x5, x6, x7, n0, n1, n2, n3, n4, n5, n6, n7, BUFFERS
        )  # fmt: skip
        length = _length(lengths, batch, steps, RAGGED)
        origin, d_origin = past + (batch + 1) * before * channels, dy + batch * steps * outputs + lane
        d = _steps(d_origin, outputs, past, c, start, dilation, length, before, channels, there, ROWS, False, WIDE)
        t = start + k * dilation - shift
        x = _steps(
            pointer, stride, origin, c, t, dilation, length, before, channels, there, TAPS + ROWS - 1, PAST, WIDE
        )  # fmt: skip
        sums = _products(sums, x, d, TAPS, ROWS)
    to = partial + ((tl.cast(tl.program_id(0), tl.int64) * members + member) * WINDOW + k) * outputs + lane
    for j in tl.static_range(TAPS):
        tl.store(to + j * outputs, sums[j], mask=there & (k + j < WINDOW + tl.zeros_like(lane)))


class _Sources(NamedTuple):
    """Buffers, as the kernels take them."""

    buffers: list[Tensor]
    past: Tensor | None
    lengths: Tensor | None

    @property
    def steps(self) -> int:
        return self.buffers[0].shape[1]

    @property
    def channels(self) -> int:
        return sum(x.shape[2] for x in self.buffers)

    def arguments(self) -> list[Any]:
        """Pointers and widths; those that are absent are never read."""
        missing = BUFFERS - len(self.buffers)
        return [*self.buffers, *self.buffers[:1] * missing, *(x.shape[2] for x in self.buffers), *[0] * missing]

    def constants(self, lanes: int) -> dict[str, Any]:
        """What the kernels are compiled for."""
        kind = tl.float64 if self.buffers[0].dtype == torch.float64 else tl.float32
        given = {"BUFFERS": len(self.buffers), "PAST": self.past is not None, "RAGGED": self.lengths is not None}
        block = min(LANES, max(32, triton.next_power_of_2(lanes)))
        sizes = {"ROWS": ROWS, "TAPS": TAPS, "LANES": block, "num_warps": block // 32}
        return given | {"WIDE": kind} | sizes


def _sources(buffers: Sequence[Tensor], past: Tensor | None, lengths: Tensor | None) -> _Sources:
    whole = [x.detach().contiguous() for x in buffers]
    return _Sources(
        whole,
        None if past is None else past.detach().contiguous(),
        None if lengths is None else lengths.contiguous(),
    )


def _parts(batch: int, steps: int, dilation: int) -> int:
    return batch * dilation * -(-steps // (dilation * ROWS))


def _window(x: _Sources, weight: Tensor, y: Tensor, first: int, shift: int, dilation: int, *, cut: bool = True) -> None:
    # Fills y, whose channels are outputs first, first + 1, ... of weight (output, member, tap).
    outputs, members, taps = weight.shape
    if not y.numel():
        return
    past, lengths = x.buffers[0] if x.past is None else x.past, x.buffers[0] if x.lengths is None else x.lengths
    before = 0 if x.past is None else x.past.shape[1]
    constants = x.constants(y.shape[2])
    window_kernel[_parts(y.shape[0], y.shape[1], dilation), triton.cdiv(y.shape[2], constants["LANES"])](
        *x.arguments(), past, weight.permute(1, 2, 0).contiguous(), lengths, y,
        x.steps, y.shape[1], shift, dilation, before, x.channels, first, y.shape[2], outputs, members,
        outputs * members // x.channels, CUT=cut, WINDOW=taps, **constants,
    )  # fmt: skip


def forward(options: Any, inputs: Any, saving: bool) -> Sequence[Tensor]:
    """y."""
    x = _sources(inputs.buffers, inputs.past, inputs.lengths)
    lead = x.buffers[0]
    y = lead.new_empty((*lead.shape[:2], inputs.weight.shape[0]))
    _window(x, inputs.weight.detach(), y, 0, options.left * options.dilation, options.dilation)
    return [y]


def backward(
    options: Any, inputs: Any, results: Sequence[Tensor], gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Gradients of weight, past and buffers: dx is the mirrored window over dy, groups and members exchanged."""
    left, right, dilation = options
    dy, x = _sources(gradients, None, inputs.lengths), _sources(inputs.buffers, inputs.past, inputs.lengths)
    mirrored = mirror(inputs.weight.detach(), x.channels)
    kind, first = wide(x.buffers[0].dtype), 0
    d_buffers: list[Tensor | None] = []
    for buffer, want in zip(x.buffers, wanted[3:], strict=True):
        d_buffers.append(torch.empty_like(buffer) if want else None)
        if want:
            _window(dy, mirrored, d_buffers[-1], first, right * dilation, dilation)  # type: ignore[arg-type]
        first += buffer.shape[2]
    d_past = None
    if wanted[2]:
        assert x.past is not None
        d_past = torch.empty_like(x.past, dtype=kind)
        _window(dy, mirrored, d_past, 0, (left + right) * dilation, dilation, cut=False)
    d_weight = _weight_gradient(x, dy.buffers[0], inputs.weight.shape, options, kind) if wanted[0] else None
    return [d_weight, None, d_past, *d_buffers]


def _weight_gradient(x: _Sources, dy: Tensor, shape: torch.Size, options: Any, kind: torch.dtype) -> Tensor:
    outputs, members, taps = shape
    if not dy.numel():
        return dy.new_zeros(shape, dtype=kind)
    constants = x.constants(outputs)
    programs = triton.cdiv(_parts(dy.shape[0], dy.shape[1], options.dilation), GROUPS)
    partial = dy.new_empty((programs, members, taps, outputs), dtype=kind)
    past, lengths = x.buffers[0] if x.past is None else x.past, x.buffers[0] if x.lengths is None else x.lengths
    weight_kernel[programs, triton.cdiv(outputs, constants["LANES"]), members * triton.cdiv(taps, TAPS)](
        *x.arguments(), past, dy, lengths, partial,
        dy.shape[0], x.steps, options.left * options.dilation, options.dilation,
        0 if x.past is None else x.past.shape[1], x.channels, outputs, members, outputs * members // x.channels,
        WINDOW=taps, GROUPS=GROUPS, **constants,
    )  # fmt: skip
    return partial.sum(0).permute(2, 0, 1)
