"""Partial Fourier: k-space that was measured on one side of its centre only, completed in the image.

An image whose phase φ is smooth is real but for that phase, and the k-space of a real image is conjugate symmetric: the
side that was not measured follows from the other one. The phase comes from the symmetric centre that was measured.
What is completed is a complex image, by whatever method it was reconstructed, so this works after SENSE and after a
network as well; its k-space outside of what was measured is not used. The completion is no better than its assumption:
where the phase is not smooth, and where noise outweighs what was not measured, zero filling has the smaller error.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from recurra.core.checks import one_of, whole_numbers
from recurra.mri.operators import fft, ifft

PartialFourier = Literal["zero", "homodyne", "pocs"]

MIN_CENTER = 4
"""Fewest lines that must have been measured about the centre, to know the phase from."""


def complete(
    image: Complex[Tensor, "*batch height width"],
    *,
    rows: range | None = None,
    columns: range | None = None,
    method: PartialFourier = "pocs",
    iterations: int = 20,
) -> Complex[Tensor, "*batch height width"]:
    """The image of completed k-space; the image itself where no line lacks its mirror line.

    `homodyne` (Noll, Nishimura & Macovski 1991): measured samples without a measured mirror count twice, those about
    the centre once, with a linear ramp between; of the image, only what has the phase φ is kept. The ramp is the outer
    half of the symmetric centre: across all of it, what the phase does not explain costs more; as a step, edges ring.

    `pocs` (Haacke, Lindskog & Lin 1991): the image is given the phase φ, its k-space the measured samples, by turns. It
    ends with the latter: the measured samples are those of the image.

    Args:
        image: before any crop, of the centred transform: the middle of the image in the middle of the array.
        rows: which rows of the centred k-space were measured, from their first to their last (asymmetric echo); None
            for all of them.
        columns: the same of the columns (partial phase encoding).
        method: how; `zero` leaves what was not measured zero.
        iterations: of `pocs`. A fixed number, so that no image depends on its neighbours in the batch; a phantom with
            smooth phase changes by at most 0.03 % in the last of 20.

    Raises:
        ValueError: fewer than 4 lines about the centre were measured, so less than half of k-space, or the range does
            not fit.
    """
    one_of("partial Fourier method", method, PartialFourier)
    whole_numbers(iterations=iterations)
    lines = [_lines(rows, image.shape[-2], "rows"), _lines(columns, image.shape[-1], "columns")]
    measured, window, ramp = (torch.outer(*both).to(image.real) for both in zip(*lines, strict=True))
    if not (measured > _mirrored(measured)).any():
        return image
    kspace = fft(image) * measured
    if method == "zero":
        return ifft(kspace)
    coarse = ifft(kspace * window)
    phase = torch.where(coarse == 0, 1, coarse.sgn())
    if method == "homodyne":
        # On both axes a sample may be missing together with its mirror: then it stays zero.
        weight = 2 * ramp / (ramp + _mirrored(ramp)).clamp_min(torch.finfo(ramp.dtype).tiny)
        return (ifft(kspace * weight) * phase.conj()).real * phase
    result = ifft(kspace)
    for _ in range(iterations):
        result = ifft(torch.where(measured > 0, kspace, fft(result.abs() * phase)))
    return result


def _lines(sampled: range | None, size: int, axis: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of each line of an axis: whether it was measured, its weight in the phase, and in the image."""
    if sampled is None or sampled == range(size):
        return (torch.ones(size, dtype=torch.float64),) * 3
    if sampled.step != 1 or not 0 <= sampled.start < sampled.stop <= size:
        raise ValueError(f"{axis} measured must be a range within 0 to {size}; got {sampled}")
    frequency = torch.arange(size, dtype=torch.float64) - size // 2
    first, last = sampled.start - size // 2, sampled.stop - 1 - size // 2
    measured = (frequency >= first) & (frequency <= last)
    edge = min(-first, last)  # the last line whose mirror was measured too
    if 2 * edge + 1 < MIN_CENTER:
        raise ValueError(
            f"{axis} {sampled.start} to {sampled.stop - 1} of {size} were measured, {max(2 * edge + 1, 0)} of them "
            f"about the centre; completing k-space needs at least {MIN_CENTER} there. Use zero filling"
        )
    distance = frequency.abs() / (edge + 1)
    # A Hann window: its image has no ringing that would turn the phase at edges.
    window = torch.where(distance < 1, 0.5 + 0.5 * torch.cos(torch.pi * distance), 0)
    ramp = 1 + frequency.sign() * np.sign(last + first) * (2 * distance - 1).clamp(0, 1)
    return measured.double(), window, ramp * measured


def _mirrored(lines: Tensor) -> Tensor:
    """The values of the opposite frequencies (height, width); the highest of an even size is its own."""
    even = tuple(1 - size % 2 for size in lines.shape)
    return lines.flip((0, 1)).roll(even, (0, 1))
