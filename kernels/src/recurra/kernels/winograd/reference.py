"""The definition in plain torch: F(4x4, 3x3) with the points 0, ±5/8, ±3/2, ∞ (README.md)."""

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 6  # input rows and columns of a tile
STEP = 4  # output rows and columns of a tile

_A, _B = 5 / 8, 3 / 2
_A2, _B2 = _A * _A, _B * _B

INPUT = (
    (_A2 * _B2, 0, -_A2 - _B2, 0, 1, 0),
    (0, -_A * _B2, -_B2, _A, 1, 0),
    (0, _A * _B2, -_B2, -_A, 1, 0),
    (0, -_B * _A2, -_A2, _B, 1, 0),
    (0, _B * _A2, -_A2, -_B, 1, 0),
    (0, _A2 * _B2, 0, -_A2 - _B2, 0, 1),
)
OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, _A, -_A, _B, -_B, 0),
    (0, _A2, _A2, _B2, _B2, 0),
    (0, _A**3, -(_A**3), _B**3, -(_B**3), 1),
)


def winograd_weight(weight: Tensor) -> Tensor:
    """The transformed kernel (36, channel, filter), computed in float64, of a kernel (filter, channel, 3, 3)."""
    if weight.shape[2:] != (3, 3):
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected (filter, channel, 3, 3)")
    a, b = 1 / (2 * _A2 * (_A2 - _B2)), 1 / (2 * _B2 * (_B2 - _A2))
    rows = [[1 / (_A2 * _B2), 0, 0]]
    rows += [[s, s * p, s * p * p] for s, p in ((a, _A), (a, -_A), (b, _B), (b, -_B))]
    kernel = torch.tensor([*rows, [0, 0, 1]], dtype=torch.float64, device=weight.device)
    wide = torch.einsum("ia,fcab,jb->ijcf", kernel, weight.detach().double(), kernel)
    return wide.flatten(0, 1).to(weight.dtype).contiguous()


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: str, relu: bool, out: Tensor) -> None:
    """Writes the convolution into `out`; dilation d is d² interleaved images."""
    height, width = x.shape[1:3]
    images = x.movedim(-1, 1)
    for top in range(min(dilation, height)):
        for left in range(min(dilation, width)):
            phase = out[:, top::dilation, left::dilation]
            tiles = _tiles(images, top, left, dilation, padding, phase.shape[1], phase.shape[2])
            phase.copy_(_assemble(tiles, weight, phase.shape[1], phase.shape[2]))
    if bias is not None:
        out += bias
    if relu:
        out.relu_()


def _tiles(images: Tensor, top: int, left: int, dilation: int, padding: str, rows: int, columns: int) -> Tensor:
    # (batch, channel, tile row, tile column, 6, 6): one more row and column of the same phase on each side
    down, across = -(-rows // STEP), -(-columns // STEP)
    y = top + dilation * (torch.arange(STEP * down + 2, device=images.device) - 1)
    x = left + dilation * (torch.arange(STEP * across + 2, device=images.device) - 1)
    height, width = images.shape[-2:]
    taken = images[..., y.clamp(0, height - 1), :][..., x.clamp(0, width - 1)]
    if padding == "zeros":
        inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
        taken = torch.where(inside, taken, 0)
    return taken.unfold(2, TILE, STEP).unfold(3, TILE, STEP)


def _assemble(tiles: Tensor, weight: Tensor, rows: int, columns: int) -> Tensor:
    batch, channels, down, across = tiles.shape[:4]
    to_input, to_output = tiles.new_tensor(INPUT), tiles.new_tensor(OUTPUT)
    spread = torch.einsum("ia,bcyxad,jd->ijbyxc", to_input, tiles, to_input)
    product = spread.reshape(TILE * TILE, batch * down * across, channels) @ weight
    product = product.view(TILE, TILE, batch, down, across, weight.shape[2])
    image = torch.einsum("pi,ijbyxf,qj->bypxqf", to_output, product, to_output)
    return image.reshape(batch, STEP * down, STEP * across, weight.shape[2])[:, :rows, :columns]


def direct(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: str, relu: bool) -> Tensor:
    """The same by torch's convolution, for tests: `weight` is (filter, channel, 3, 3)."""
    mode = "replicate" if padding == "replicate" else "constant"
    image = F.conv2d(F.pad(x.movedim(-1, 1), [dilation] * 4, mode=mode), weight, bias, dilation=dilation)
    return (torch.relu(image) if relu else image).movedim(1, -1)
