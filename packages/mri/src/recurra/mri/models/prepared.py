"""Reconstruction models in the form for inference: the same images, sooner and in less memory.

What differs from the plain form, none of it an approximation:

* layers are those of `recurra.core.nn.prepared`, packed once;
* data terms are F⁻¹ m F z minus a constant that is computed once. Shifts of the Fourier transforms cancel in F⁻¹ m F,
  but for one of the mask, and so does the transform along every axis along which the mask is constant;
* RecurrentVarNet keeps its coil images instead of their k-space;
* estimates are not collected, states are written over.

They are registered with `recurra.core.prepared`, where the models find them; whatever has no prepared form is
reconstructed by the plain one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from recurra.core.nn.conv2d_gru import Conv2dGRU, NormConv2dGRU
from recurra.core.nn.prepared import Cell, Convolution, Stack, unsupported
from recurra.core.prepared import Form, register
from recurra.mri.models.prepared_operators import DataGradient, MaskedFourier
from recurra.mri.models.reconstructor import Reconstructor
from recurra.mri.models.recurrentvarnet import RecurrentInit, RecurrentVarNet
from recurra.mri.models.rim import CIRIM
from recurra.mri.models.rim_block import ConvNonlinear, RecurrentLayer, RIMBlock
from recurra.mri.models.rim_direct import DirectRIM
from recurra.mri.operators import fft, rss, sense_expand, sense_reduce


class _Block:
    """The network of a `RIMBlock`, run for all its steps."""

    def __init__(self, block: RIMBlock) -> None:
        self.plain, self.steps = block, block.steps
        self.layers: list[tuple[Convolution | None, Cell | None]] = []
        for layer in block.layers:
            convs, cell = (layer.convs, Cell(layer.rnn)) if isinstance(layer, RecurrentLayer) else (layer, None)  # type: ignore[arg-type]
            self.layers.append((_convolution(convs) if isinstance(convs, ConvNonlinear) else None, cell))
        final = block.final_layer[0]
        assert isinstance(final, ConvNonlinear)
        self.final = _convolution(final)

    def zeros(self, like: Tensor) -> list[Tensor]:
        """States of zeros for images like this one."""
        return [like.real.new_zeros(*like.shape, cell.hidden) for _, cell in self.layers if cell is not None]

    def __call__(self, image: Tensor, states: list[Tensor], gradient: DataGradient) -> Tensor:
        """The last estimate from the first; both it and the states are written over."""
        inputs = image.real.new_empty(*image.shape, 4)
        scratch: dict[int, Tensor] = {}
        for _ in range(self.steps):
            inputs[..., :2] = torch.view_as_real(image)
            inputs[..., 2:] = torch.view_as_real(gradient(image))
            features, left = inputs, iter(states)
            for conv, cell in self.layers:
                if conv is not None:
                    features = self._convolved(conv, features, scratch)
                if cell is not None:
                    features = cell(features, next(left))
            image += torch.view_as_complex(self.final(features))
        return image

    @staticmethod
    def _convolved(conv: Convolution, features: Tensor, scratch: dict[int, Tensor]) -> Tensor:
        if conv.kind != "winograd":
            return conv(features)
        out = scratch.get(conv.filters)
        if out is None or out is features:
            out = scratch[conv.filters] = features.new_empty(*features.shape[:3], conv.filters)
        return conv(features, out=out)


class _CIRIM:
    """All cascades; no estimate but the last is kept."""

    def __init__(self, model: CIRIM) -> None:
        self.model = model
        self.blocks = [_Block(block) for block in model.cascades if isinstance(block, RIMBlock)]

    def __call__(
        self,
        kspace: Tensor,
        maps: Tensor,
        mask: Tensor,
        *,
        image: Tensor | None = None,
        sigma: float | Tensor = 1.0,
    ) -> Tensor:
        """The last estimate of the last cascade."""
        model, current, states = self.model, kspace, None
        fourier = MaskedFourier(mask, model.fft, model.fft_dim)
        gradient = DataGradient(fourier, kspace, maps, 1 / max(float(sigma), 1.0))
        for block in self.blocks:
            start = block.plain.combine_coils(current, maps) if image is None else image
            start = start.expand(kspace.shape[0], *start.shape[1:]).clone(memory_format=torch.contiguous_format)
            if states is None:
                states = block.zeros(start)
            elif model.semantics == "paper":
                for state in states:
                    state.zero_()
            last = image = block(start, states, gradient)
            if model.explicit:
                measured = kspace - torch.where(mask, current - kspace, 0) * block.plain.dc_weight
                current = measured - fft(sense_expand(last, maps), model.fft, model.fft_dim)
                image = None
            elif not (model.keep_prediction or model.semantics == "atommic"):
                current, image = last.unsqueeze(1), None
        return self.blocks[-1].plain.combine_coils(current, maps, model.combine) if model.explicit else last


class _Network:
    """`Conv2dGRU` or `NormConv2dGRU` on maps."""

    def __init__(self, network: nn.Module) -> None:
        self.groups = network.norm_groups if isinstance(network, NormConv2dGRU) else 0
        stack = network.convgru if isinstance(network, NormConv2dGRU) else network
        assert isinstance(stack, Conv2dGRU)
        self.stack = Stack(stack)

    def __call__(self, x: Tensor, state: list[Tensor]) -> Tensor:
        """The output; the state is written over."""
        if not self.groups:
            return self.stack(x, state)
        groups = x.movedim(-1, 1).reshape(x.shape[0], self.groups, -1)
        mean = groups.mean(-1, keepdim=True)
        std = groups.std(-1, keepdim=True).clamp_min(torch.finfo(groups.dtype).tiny)
        normal = ((groups - mean) / std).view(x.shape[0], x.shape[-1], *x.shape[1:3])
        y = self.stack(normal.movedim(1, -1).contiguous(), state).movedim(-1, 1)
        return (y.reshape(*groups.shape[:2], -1) * std + mean).reshape(y.shape).movedim(1, -1).contiguous()


class _Initializer:
    """`RecurrentInit` on maps: one state map a layer."""

    def __init__(self, plain: RecurrentInit) -> None:
        self.multiscale = plain.multiscale
        self.convs = [self._packed(block[1]) for block in plain.conv_blocks]  # type: ignore[index]
        self.outputs = [self._packed(block[0]) for block in plain.out_blocks]  # type: ignore[index]

    @staticmethod
    def _packed(conv: nn.Conv2d) -> Convolution:
        return Convolution(conv.weight, conv.bias, dilation=conv.dilation[0], relu=True)

    def __call__(self, image: Tensor) -> list[Tensor]:
        """The states made from a complex image."""
        x, features = torch.view_as_real(image).contiguous(), []
        for conv in self.convs:
            x = conv(x)
            features.append(x)
        seen = torch.cat(features[-self.multiscale :], dim=-1)
        return [conv(seen) for conv in self.outputs]


class _DirectRIM:
    """All steps; no estimate but the last is kept."""

    def __init__(self, model: DirectRIM) -> None:
        self.model = model
        self.networks = [_Network(cell) for cell in model.cell_list]
        self.initializer = None if model.initializer is None else _Initializer(model.initializer)

    def __call__(
        self,
        kspace: Tensor,
        maps: Tensor,
        mask: Tensor,
        *,
        image: Tensor | None = None,
        initial_kspace: Tensor | None = None,
        likelihood_scale: float | Tensor | None = None,
    ) -> Tensor:
        """The last estimate."""
        model = self.model
        x = model._first_image(kspace, maps, initial_kspace) if image is None else image
        x = x.clone(memory_format=torch.contiguous_format)
        scale = model.likelihood_scale if likelihood_scale is None else likelihood_scale
        gradient = DataGradient(MaskedFourier(mask, model.fft, model.fft_dim), kspace, maps, scale)
        inputs = x.real.new_empty(*x.shape, 4)
        state = self.networks[0].stack.zeros(inputs) if self.initializer is None else self.initializer(x)
        for step in range(model.length):
            inputs[..., :2] = torch.view_as_real(x)
            inputs[..., 2:] = torch.view_as_real(gradient(x))
            delta = torch.view_as_complex(self.networks[step % len(self.networks)](inputs, state))
            x = x.add_(delta) if model.skip else delta
        return x


class _RecurrentVarNet:
    """All blocks, on coil images z = F⁻¹ k:  z' = z - α (F⁻¹ m F z - F⁻¹ m y) + S w."""

    def __init__(self, model: RecurrentVarNet) -> None:
        self.model = model
        self.networks = [_Network(block.regularizer) for block in model.block_list]  # type: ignore[arg-type]
        self.rates = [float(block.learning_rate) for block in model.block_list]  # type: ignore[arg-type]
        self.initializer = None if model.initializer is None else _Initializer(model.initializer)

    def __call__(
        self,
        kspace: Tensor,
        maps: Tensor,
        mask: Tensor,
        *,
        image: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """The root sum of squares of the last coil images."""
        model = self.model
        coils = model.to_image(kspace)
        combined = sense_reduce(coils, maps)
        inputs = torch.view_as_real(combined).contiguous()
        state = self._first_state(kspace, combined, image, inputs)
        fourier = MaskedFourier(mask, model.fft, model.fft_dim)
        measured = model.to_image(torch.where(mask, kspace, 0))
        for step in range(model.steps):
            index = step % len(self.networks)
            w = torch.view_as_complex(self.networks[index](inputs, state))
            fourier.correct(coils, measured, self.rates[index])
            for z, s, x in zip(coils, maps, w, strict=True):
                z.addcmul_(s, x)
            inputs = torch.view_as_real(sense_reduce(coils, maps)).contiguous()
        if padding is not None:
            coils = model.to_image(torch.where(padding, 0, model.to_kspace(coils)))
        return rss(coils)

    def _first_state(self, kspace: Tensor, combined: Tensor, image: Tensor | None, inputs: Tensor) -> list[Tensor]:
        model = self.model
        if self.initializer is None:
            return self.networks[0].stack.zeros(inputs)
        if model.start == "zero_filled":
            return self.initializer(kspace.sum(1))
        if model.start == "input_image":
            if image is None:
                raise ValueError("initializer 'input_image' needs an image; pass image=")
            combined = image
        return self.initializer(model.to_kspace(combined))


def _convolution(layer: ConvNonlinear) -> Convolution:
    conv = layer.conv_layer
    return Convolution(conv.weight, conv.bias, dilation=conv.dilation[0], relu=layer.nonlinear == "relu")


def _obstacle(model: Reconstructor) -> str | None:
    if model.dim != 2:
        return f"it has {model.dim} spatial axes, the prepared form has 2"
    for module in model.modules():
        reason = None
        if isinstance(module, Conv2dGRU):
            reason = unsupported(module)
        elif isinstance(module, RecurrentLayer):
            reason = unsupported(module.rnn)
        elif isinstance(module, ConvNonlinear) and module.nonlinear == "leakyrelu":
            reason = "leaky ReLU"
        if reason is not None:
            return reason
    return None


def _checked(network: Callable[..., Any], model: Reconstructor) -> Form:
    """The prepared network of a model behind the checks, and the maps, of the model."""
    run = network(model)

    def form(kspace: Tensor, sensitivity: Tensor, mask: Tensor, **options: Any) -> Tensor:
        model.check(kspace, sensitivity, mask, **options)
        image: Tensor = run(kspace, model.refine_maps(kspace, sensitivity, mask).expand_as(kspace), mask, **options)
        return image

    return form


for _kind, _network in ((CIRIM, _CIRIM), (DirectRIM, _DirectRIM), (RecurrentVarNet, _RecurrentVarNet)):
    register(_kind, partial(_checked, _network), _obstacle)
