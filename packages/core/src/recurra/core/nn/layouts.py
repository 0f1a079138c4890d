"""Weights and arguments of torch.nn and FlashRNN for the gated units, and back."""

from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from recurra.core.checks import one_of

Function = Literal["elman", "gru", "lstm", "slstm"]

CELLS: dict[str, str] = {"elman": "elman_tanh", "gru": "gru", "lstm": "lstm", "slstm": "slstm"}
"""Names of `gated_scan` for FlashRNN's."""

Module = TypeVar("Module", bound=nn.Module)


def torch_arguments(module: nn.RNNBase) -> dict[str, Any]:
    """Arguments of one of our units for a recurrent network of torch.nn."""
    return {
        "input": module.input_size,
        "hidden": module.hidden_size,
        "num_layers": module.num_layers,
        "bidirectional": module.bidirectional,
        "dropout": module.dropout,
        "bias": module.bias,
    }


def copy_weights(source: nn.Module, target: Module) -> Module:
    """The target with the source's weights, dtype, device and mode."""
    weight = next(source.parameters())
    target.to(weight.device, weight.dtype).train(source.training)
    target.load_state_dict(source.state_dict())
    return target


def from_flashrnn(R: Tensor, b: Tensor | None, function: Function) -> tuple[Tensor, Tensor | None]:
    """Recurrent weights and bias of `gated_scan` from FlashRNN's; differentiable.

    All layouts agree but the GRU's: there Wx has the gates [r, z, n], R [n, r, z] and b [n_recurrent, r, z, n_input].

    Args:
        R: (gate, head, new, old).
        b: (bias, head, width).
        function: flashrnn()'s own name of the recurrence.
    """
    one_of("function", function, CELLS)
    if function != "gru":
        return R, b
    n, r, z = R.unbind()
    if b is None:
        return torch.stack([r, z, n]), None
    n_recurrent, b_r, b_z, n_input = b.unbind()
    return torch.stack([r, z, n]), torch.stack([b_r, b_z, n_input, n_recurrent])


def to_flashrnn(r: Tensor, bias: Tensor | None, function: Function) -> tuple[Tensor, Tensor | None]:
    """The inverse of `from_flashrnn`."""
    one_of("function", function, CELLS)
    if function != "gru":
        return r, bias
    r_r, r_z, r_n = r.unbind()
    if bias is None:
        return torch.stack([r_n, r_r, r_z]), None
    b_r, b_z, n_input, n_recurrent = bias.unbind()
    return torch.stack([r_n, r_r, r_z]), torch.stack([n_recurrent, b_r, b_z, n_input])
