"""Element-wise, linear and two-dimensional scans against loops in Python; on a GPU against its memory's speed."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench_cases.case import Case, Run, Variants, inference


def measured(forward: Callable[[], Tensor | Sequence[Tensor]], leaves: Sequence[Tensor], backward: bool) -> Run:
    """Outputs without gradients, or gradients of all leaves against fixed random ones."""
    if not backward:
        return inference(forward)
    given: list[Tensor] = []

    def step() -> Any:
        y = forward()
        outputs = [y] if isinstance(y, Tensor) else list(y)
        if not given:
            same = torch.Generator(outputs[0].device).manual_seed(1)
            given.extend(torch.randn(one.shape, generator=same, device=one.device) for one in outputs)
        return torch.autograd.grad(outputs, leaves, given)

    return step


def indrnn(shape: tuple[int, int, int], backward: bool, small: bool, device: str) -> Variants:
    """ReLU IndRNN, input products given."""
    from recurra.kernels import elementwise_scan

    batch, steps, width = (2, 5, 8) if small else shape
    torch.manual_seed(0)
    wx = torch.randn(batch, steps, width, device=device).requires_grad_(backward)
    u = torch.rand(width, device=device).requires_grad_(backward)

    def loop() -> Tensor:
        h, states = wx.new_zeros(batch, width), []
        for x in wx.unbind(1):
            h = torch.relu(torch.addcmul(x, u, h))
            states.append(h)
        return torch.stack(states, 1)

    return {
        "python loop": lambda: measured(loop, [wx, u], backward),
        "recurra": lambda: measured(lambda: elementwise_scan("indrnn_relu", wx, u)[0], [wx, u], backward),
    }


def linear(shape: tuple[int, int, int], backward: bool, small: bool, device: str) -> Variants:
    """h_t = a_t h_(t-1) + b_t with a varying in time."""
    from recurra.kernels import linear_scan

    size = (2, 5, 8) if small else shape
    torch.manual_seed(0)
    a = (0.5 + 0.5 * torch.rand(size, device=device)).requires_grad_(backward)
    b = torch.randn(size, device=device).requires_grad_(backward)

    def loop() -> Tensor:
        h, states = b.new_zeros(size[0], size[2]), []
        for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
            h = torch.addcmul(b_t, a_t, h)
            states.append(h)
        return torch.stack(states, 1)

    return {
        "python loop": lambda: measured(loop, [a, b], backward),
        "recurra": lambda: measured(lambda: linear_scan(a, b)[0], [a, b], backward),
    }


def plane(shape: tuple[int, int, int, int], backward: bool, small: bool, device: str) -> Variants:
    """Both states of the two-dimensional recurrence, coefficients fixed, borders zero."""
    from recurra.kernels import ssm2d_scan

    batch, rows, steps, width = (1, 3, 4, 8) if small else shape
    torch.manual_seed(0)
    coefficients = [(torch.rand(width, device=device) * 0.5).requires_grad_(backward) for _ in range(4)]
    b1, b2 = (torch.randn(batch, rows, steps, width, device=device).requires_grad_(backward) for _ in range(2))
    leaves = [*coefficients, b1, b2]
    variants: dict[str, Any] = {
        "row loop": partial(row_loop, *leaves),
        "recurra": lambda: ssm2d_scan(*coefficients, b1, b2),
    }
    if device == "cpu":
        variants = {"python double loop": partial(double_loop, *leaves), **variants}
    return {name: lambda forward=forward: measured(forward, leaves, backward) for name, forward in variants.items()}


def copy(small: bool, device: str) -> Variants:
    """What memory can do: a copy of one block of it to another."""
    source = torch.zeros(COPIED // 4 if not small else 64, device=device)
    target = torch.empty_like(source)
    return {"torch": lambda: inference(lambda: target.copy_(source))}


def double_loop(a1: Tensor, a2: Tensor, a3: Tensor, a4: Tensor, b1: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """One cell at a time, as the equation is written."""
    _, _, steps, width = b1.shape
    zero = b1.new_zeros(b1.shape[0], width)
    above, all_h, all_g = [(zero, zero)] * steps, [], []
    for one, two in zip(b1.unbind(1), b2.unbind(1), strict=True):
        h, g, row = zero, zero, []
        for (h_above, g_above), x, y in zip(above, one.unbind(1), two.unbind(1), strict=True):
            h, g = a1 * h + a2 * g + x, a3 * h_above + a4 * g_above + y
            row.append((h, g))
        above = row
        all_h.append(torch.stack([h for h, _ in row], 1))
        all_g.append(torch.stack([g for _, g in row], 1))
    return torch.stack(all_h, 1), torch.stack(all_g, 1)


def row_loop(a1: Tensor, a2: Tensor, a3: Tensor, a4: Tensor, b1: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """One row at a time: g from the row above at once, h by doubling, in as many steps as log2 of the row."""
    steps = b1.shape[2]
    powers = [a1]
    while 2 ** len(powers) < steps:
        powers.append(powers[-1] * powers[-1])
    h = g = b1.new_zeros(b1.shape[0], *b1.shape[2:])
    all_h, all_g = [], []
    for one, two in zip(b1.unbind(1), b2.unbind(1), strict=True):
        g = a3 * h + a4 * g + two
        h = one + torch.nn.functional.pad(a2 * g[:, :-1], (0, 0, 1, 0))
        for level, power in enumerate(powers):
            before = torch.nn.functional.pad(h[:, : -(2**level)], (0, 0, 2**level, 0))
            h = torch.addcmul(h, power, before)
        all_h.append(h)
        all_g.append(g)
    return torch.stack(all_h, 1), torch.stack(all_g, 1)


def group(build: Any, shapes: Any, devices: str, backward: tuple[bool, ...] = (False, True)) -> dict[str, Case]:
    what = {False: "forward", True: "forward and backward"}
    return {
        f"{build.__name__} {what[b]}, {'x'.join(map(str, s))}": Case(
            "core", partial(build, s, b), 1e-3, devices=(devices,), least=0.05
        )
        for s in shapes
        for b in backward
    }


INDRNN = ((1, 1000, 64), (16, 1000, 512))
LINEAR = ((16, 1024, 128),)
PLANE = tuple((1, 21, steps, 16) for steps in (96, 336, 720))
# Past the GPU's cache, so that memory is what limits.
INDRNN_GPU, LINEAR_GPU, PLANE_GPU = (64, 1024, 512), (16, 4096, 1024), (64, 21, 720, 64)

# Bytes that are read, and as many that are written.
COPIED = 2**30
COPY = "copy of a GiB"

CASES = {
    COPY: Case("core", copy, 0.0, devices=("cuda",), least=0.05),
    **group(indrnn, INDRNN, "cpu"),
    **group(linear, LINEAR, "cpu"),
    **group(plane, PLANE, "cpu"),
    **group(indrnn, (INDRNN_GPU,), "cuda"),
    **group(linear, (LINEAR_GPU,), "cuda"),
    **group(plane, (PLANE_GPU,), "cuda"),
}
