"""Layers in the form for inference: the same numbers as the modules they are made from, sooner and in less memory.

Feature maps are (batch, height, width, channel) here, contiguous, so that a 1x1 convolution is one matrix product and
gate arithmetic walks through memory once. States are updated in place. Float32 on the CPU; no gradients.
"""

import threading
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from recurra.core.nn.conv2d_gru import Conv2dGRU
from recurra.core.nn.conv_cells import ConvGRUCell, ConvIndRNNCell, ConvMGUCell
from recurra.kernels import conv_cell_update, thin_conv, winograd_conv, winograd_weight
from recurra.kernels.registry import installed

Kind = Literal["matrix", "winograd", "thin", "taps", "direct"]

# Values of the matrices that a chunk of pixels is worked on with, 1.5 MB: they stay near the second-level cache.
CHUNK = 3 << 17
# Below this many channels the transforms of Winograd's convolution cost more than the products they save.
WINOGRAD_CHANNELS = 16


def unsupported(module: nn.Module) -> str | None:
    """Why a cell or stack has no prepared form, or None if it has one."""
    parameters = list(module.parameters())
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in parameters):
        return "parameters are not float32 on the CPU"
    if isinstance(module, Conv2dGRU):
        if module.instance_norm:
            return "instance normalisation between the gates"
        if any(gate[-1].weight.shape[-1] != 1 for gate in module.update_gates):  # type: ignore[index]
            return "gates larger than 1x1"
        return None
    if isinstance(module, ConvGRUCell | ConvMGUCell | ConvIndRNNCell):
        return None if module.ih.weight.dim() == 4 else "not two-dimensional"
    return f"{type(module).__name__} is not known here"


class Convolution:
    """A convolution that keeps the size of an image, with an optional ReLU.

    By shape it is a matrix product (1x1), Winograd's algorithm (3x3), dot products or a matrix product followed by a
    sum of shifted results (few filters), or torch's own convolution.
    """

    def __init__(
        self,
        weight: Float[Tensor, "filter channel kernel kernel"],
        bias: Float[Tensor, "filter"] | None,
        *,
        dilation: int = 1,
        padding: Literal["replicate", "zeros"] = "replicate",
        relu: bool = False,
    ) -> None:
        """Packs the weights; later changes of the given tensors have no effect."""
        weight = weight.detach()
        self.bias = None if bias is None else bias.detach().clone()
        self.filters, self.channels, self.kernel = weight.shape[0], weight.shape[1], weight.shape[-1]
        self.dilation, self.padding, self.relu = dilation, padding, relu
        self.kind: Kind = self._kind()
        if self.kind == "matrix":
            self.weight = weight.flatten(1).t().contiguous()
        elif self.kind == "winograd":
            self.weight = winograd_weight(weight)
        elif self.kind == "thin":
            self.weight = weight.movedim(1, -1).contiguous()
        elif self.kind == "taps":
            self.weight = weight.permute(1, 2, 3, 0).flatten(1).contiguous()
        else:
            self.weight = weight.clone(memory_format=torch.channels_last)

    def _kind(self) -> Kind:
        if self.kernel == 1:
            return "matrix"
        if self.filters * 8 <= self.channels:
            return "thin" if (self.kernel, self.dilation) == (3, 1) and installed("numba") else "taps"
        if self.kernel == 3 and min(self.channels, self.filters) >= WINOGRAD_CHANNELS and installed("numba"):
            return "winograd"
        return "direct"

    def __call__(
        self,
        x: Float[Tensor, "batch height width channel"],
        out: Float[Tensor, "batch height width filter"] | None = None,
    ) -> Float[Tensor, "batch height width filter"]:
        """The feature map, in `out` where that is of use."""
        if self.kind == "winograd":
            options = {"dilation": self.dilation, "padding": self.padding, "relu": self.relu}
            return winograd_conv(x, self.weight, self.bias, out=out, **options)  # type: ignore[arg-type]
        if self.kind == "matrix":
            y = _product(x, self.weight, self.bias, out)
        elif self.kind == "thin":
            y = thin_conv(x, self.weight, self.bias, padding=self.padding)
        elif self.kind == "taps":
            y = self._sum_of_taps(x)
        else:
            image = F.conv2d(self._padded(x.movedim(-1, 1)), self.weight, self.bias, dilation=self.dilation)
            y = image.movedim(1, -1).contiguous()
        return y.relu_() if self.relu else y

    def _padded(self, image: Tensor) -> Tensor:
        width = self.dilation * (self.kernel - 1) // 2
        return F.pad(image, (width,) * 4, mode="replicate" if self.padding == "replicate" else "constant")

    def _sum_of_taps(self, x: Tensor) -> Tensor:
        # Padding commutes with a product a pixel, and after the product the map is much thinner.
        taps = self._padded(_product(x, self.weight, None, None).movedim(-1, 1)).movedim(1, -1)
        height, width = x.shape[1:3]
        y = x.new_zeros(*x.shape[:3], self.filters) if self.bias is None else self.bias.repeat(*x.shape[:3], 1)
        for tap in range(self.kernel**2):
            top, left = (self.dilation * place for place in divmod(tap, self.kernel))
            channels = slice(tap * self.filters, (tap + 1) * self.filters)
            y += taps[:, top : top + height, left : left + width, channels]
        return y


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    out = x.new_empty(*x.shape[:-1], weight.shape[1]) if out is None else out
    rows, result = x.view(-1, x.shape[-1]), out.view(-1, weight.shape[1])
    step = _rows(weight.shape[1])
    for start in range(0, len(rows), step):
        part = result[start : start + step]
        torch.mm(rows[start : start + step], weight, out=part)
        if bias is not None:
            part += bias
    return out


def _rows(columns: int) -> int:
    return max(64, CHUNK // columns) * torch.get_num_threads()


class _Buffers(threading.local):
    """Scratch matrices that are made once in every thread that reconstructs."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, rows: int, columns: int) -> Tensor:
        kept = self._kept.get(name)
        if kept is None or kept.numel() < rows * columns:
            kept = self._kept[name] = torch.empty(rows * columns)
        return kept[: rows * columns].view(rows, columns)


class Cell:
    """A convolutional recurrent cell: one product for all gates of the input, one for those of the state."""

    def __init__(self, cell: ConvGRUCell | ConvMGUCell | ConvIndRNNCell) -> None:
        """Packs the weights of a cell for which `unsupported` has no objection."""
        self.hidden = cell.hidden
        self.bias = None if cell.ih.bias is None else cell.ih.bias.detach().clone()
        dilation = cell.ih.dilation[0]
        self.u: Tensor | None = None
        self.hh: Convolution | None = None
        self.ih = Convolution(cell.ih.weight, None, dilation=dilation, padding="zeros")
        if isinstance(cell, ConvIndRNNCell):
            self.name: Literal["gru", "mgu", "indrnn"] = "indrnn"
            self.u = cell.hh.detach().flatten().clone()
        else:
            self.name = "gru" if isinstance(cell, ConvGRUCell) else "mgu"
            self.hh = Convolution(cell.hh.weight, None, dilation=dilation, padding="zeros")
        self._buffers = _Buffers()

    def __call__(
        self, x: Float[Tensor, "batch height width channel"], h: Float[Tensor, "batch height width hidden"]
    ) -> Float[Tensor, "batch height width hidden"]:
        """The next state, written over `h`."""
        rows, states = x.view(-1, x.shape[-1]), h.view(-1, self.hidden)
        if self.ih.kind != "matrix":
            gi = self.ih(x).view(len(rows), -1)
            gh = None if self.hh is None else self.hh(h).view(len(rows), -1)
            conv_cell_update(self.name, gi, gh, states, u=self.u, bias=self.bias, out=states)
            return h
        step = _rows(self.ih.filters + (0 if self.hh is None else self.hh.filters))
        for start in range(0, len(rows), step):
            self._chunk(rows[start : start + step], states[start : start + step])
        return h

    def _chunk(self, x: Tensor, h: Tensor) -> None:
        gi = torch.mm(x, self.ih.weight, out=self._buffers("input", len(x), self.ih.filters))
        gh = None
        if self.hh is not None:
            gh = torch.mm(h, self.hh.weight, out=self._buffers("hidden", len(x), self.hh.filters))
        conv_cell_update(self.name, gi, gh, h, u=self.u, bias=self.bias, out=h)


class Stack:
    """`Conv2dGRU`: the products of the gates are split into W [a, h] = W_a a + W_h h, nothing is concatenated."""

    def __init__(self, stack: Conv2dGRU) -> None:
        """Packs the weights of a stack for which `unsupported` has no objection."""
        self.layers, self.hidden, self.dense = stack.num_layers, stack.hidden_channels, stack.dense_connect
        self.convs: list[Convolution] = []
        for index, block in enumerate(stack.conv_blocks):
            conv: nn.Conv2d = block[1]  # type: ignore[index]
            relu = index < self.layers
            self.convs.append(Convolution(conv.weight, conv.bias, dilation=conv.dilation[0], relu=relu))
        self.gates = [
            _Gates(*parts) for parts in zip(stack.reset_gates, stack.update_gates, stack.out_gates, strict=True)
        ]
        self._buffers = _Buffers()

    def zeros(self, like: Tensor) -> list[Tensor]:
        """A state of zeros, one map a layer."""
        return [like.new_zeros(*like.shape[:3], self.hidden) for _ in range(self.layers)]

    def __call__(
        self, x: Float[Tensor, "batch height width channel"], state: list[Float[Tensor, "batch height width hidden"]]
    ) -> Float[Tensor, "batch height width output"]:
        """The output; the maps of `state` are written over."""
        skipped: list[Tensor] = []
        for conv, gates, h in zip(self.convs, self.gates, state, strict=False):
            a = conv(self._densely(x, skipped))
            # With dense connections a is still needed; else its memory takes relu(h').
            x = torch.empty_like(a) if self.dense else a
            skipped = [*skipped, a][-self.dense :] if self.dense else []
            self._layer(gates, a.view(-1, self.hidden), h.view(-1, self.hidden), x.view(-1, self.hidden))
        return self.convs[-1](self._densely(x, skipped))

    def _densely(self, x: Tensor, skipped: list[Tensor]) -> Tensor:
        return torch.cat([*skipped, x], dim=-1) if skipped else x

    def _layer(self, gates: "_Gates", a: Tensor, h: Tensor, x: Tensor) -> None:
        step = _rows(7 * self.hidden)
        for start in range(0, len(a), step):
            rows = slice(start, start + step)
            gates(a[rows], h[rows], x[rows], self._buffers)


class _Gates:
    """Reset, update and candidate of one layer over a chunk of pixels."""

    def __init__(self, reset: nn.Module, update: nn.Module, candidate: nn.Module) -> None:
        convs: list[nn.Conv2d] = [gate[-1] for gate in (reset, update, candidate)]  # type: ignore[index]
        hidden = convs[0].weight.shape[0]
        r, u, c = (conv.weight.detach().flatten(1).t() for conv in convs)
        self.of_a = torch.cat([r[:hidden], u[:hidden], c[:hidden]], dim=1)
        self.of_h = torch.cat([r[hidden:], u[hidden:]], dim=1)
        self.of_reset = c[hidden:].contiguous()
        r_bias, u_bias, c_bias = (self._bias(conv) for conv in convs)
        self.reset_bias, self.update_bias = r_bias, torch.cat([u_bias, c_bias])
        self.hidden = hidden

    @staticmethod
    def _bias(conv: nn.Conv2d) -> Tensor:
        return torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()

    def __call__(self, a: Tensor, h: Tensor, x: Tensor, buffers: _Buffers) -> None:
        """Writes h' over `h` and relu(h') into `x`, which may be `a`."""
        n, c = len(a), self.hidden
        gi = torch.mm(a, self.of_a, out=buffers("input", n, 3 * c))  # blocks: reset, update, candidate
        gh = buffers("hidden", n, 3 * c)
        torch.mm(h, self.of_h, out=gh[:, : 2 * c])
        reset = buffers("reset", n, c)
        conv_cell_update("gru_before_reset", gi, gh, h, bias=self.reset_bias, out=reset)
        torch.mm(reset, self.of_reset, out=gh[:, 2 * c :])
        conv_cell_update("gru_before_update", gi, gh, h, bias=self.update_bias, block=1, out=h)
        torch.clamp_min(h, 0, out=x)
