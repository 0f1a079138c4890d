"""The stack of convolutions and gated units that regularises RecurrentVarNet and direct's RIM.

Yiasemis et al. 2022, arXiv:2111.09639; authors' code NKI-AI/direct, whose key names are kept. Not a cell but a small
network with a state a layer: every layer is a convolution followed by a GRU whose reset gate acts before the product,
and whose update gate takes the candidate where it is one (the opposite of `ConvGRUCell`). The authors' option of zero
padding gives layers of different sizes and is left out.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recurra.core.nn.conv_cells import same_padding


def _convolution(channels: int, features: int, kernel: int, dilation: int) -> nn.Sequential:
    """A convolution that keeps the size of an image, whose border pixels are repeated outwards."""
    return nn.Sequential(
        nn.ReplicationPad2d(dilation * (kernel - 1) // 2), nn.Conv2d(channels, features, kernel, dilation=dilation)
    )


def _gate(hidden: int, kernel: int, *, instance_norm: bool) -> nn.Sequential:
    """The convolution of a gate over [a, h]."""
    norm = [nn.InstanceNorm2d(2 * hidden)] if instance_norm else []
    return nn.Sequential(*norm, nn.Conv2d(2 * hidden, hidden, kernel, padding=same_padding(kernel)))


class Conv2dGRU(nn.Module):
    """Output and next state of `num_layers` convolutions, each followed by a gated unit. For layer i:

        a   = relu(C_i * x)
        u   = σ(U_i * [a, h_i])
        r   = σ(R_i * [a, h_i])
        c   = tanh(O_i * [a, r ⊙ h_i])
        h_i = (1 - u) ⊙ h_i + u ⊙ c
        x   = relu(h_i)

    and the output is C_L * x. The first convolution is 5x5, the one of index 1 is 3x3 with dilation 2 (the last, if
    there is only one layer), all others are 3x3.

    Args:
        in_channels: channels of the input.
        hidden_channels: channels of every layer and its state.
        out_channels: channels of the output; as many as the input's if None.
        num_layers: number of layers.
        gru_kernel_size: kernel of the gates.
        orthogonal_initialization: draw orthogonal gates with biases 0, and -1 for the reset gates.
        instance_norm: normalise the input of every gate.
        dense_connect: number of earlier a's that every convolution sees beside x.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int | None = None,
        *,
        num_layers: int = 2,
        gru_kernel_size: int = 1,
        orthogonal_initialization: bool = True,
        instance_norm: bool = False,
        dense_connect: int = 0,
    ) -> None:
        super().__init__()
        self.num_layers, self.hidden_channels = num_layers, hidden_channels
        self.dense_connect = int(dense_connect)
        self.instance_norm = instance_norm
        inputs = [in_channels] + [(1 + min(i, self.dense_connect)) * hidden_channels for i in range(1, num_layers + 1)]
        outputs = [hidden_channels] * num_layers + [in_channels if out_channels is None else out_channels]
        self.conv_blocks = nn.ModuleList(
            _convolution(inputs[i], outputs[i], 5 if i == 0 else 3, 2 if i == 1 else 1) for i in range(num_layers + 1)
        )

        def gates() -> nn.ModuleList:
            return nn.ModuleList(
                _gate(hidden_channels, gru_kernel_size, instance_norm=instance_norm) for _ in range(num_layers)
            )

        self.reset_gates, self.update_gates, self.out_gates = gates(), gates(), gates()
        if orthogonal_initialization:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw orthogonal gates; the reset gates start nearly closed."""
        position = 1 if self.instance_norm else 0
        for gates, bias in ((self.reset_gates, -1.0), (self.update_gates, 0.0), (self.out_gates, 0.0)):
            for gate in gates:
                nn.init.orthogonal_(gate.get_parameter(f"{position}.weight"))
                nn.init.constant_(gate.get_parameter(f"{position}.bias"), bias)

    def forward(
        self,
        x: Float[Tensor, "batch input height width"],
        state: Float[Tensor, "batch hidden height width layer"] | None = None,
    ) -> tuple[Float[Tensor, "batch output height width"], Float[Tensor, "batch hidden height width layer"]]:
        """Return the output and the next state; a state of None is one of zeros."""
        if state is None:
            batch, _, height, width = x.shape
            state = x.new_zeros(batch, self.hidden_channels, height, width, self.num_layers)
        states: list[Tensor] = []
        skipped: list[Tensor] = []
        for i, h in enumerate(state.unbind(-1)):
            x = a = torch.relu(self.conv_blocks[i](self._densely(x, skipped)))
            skipped.append(a)
            ah = torch.cat([a, h], dim=1)
            u = torch.sigmoid(self.update_gates[i](ah))
            r = torch.sigmoid(self.reset_gates[i](ah))
            c = torch.tanh(self.out_gates[i](torch.cat([a, r * h], dim=1)))
            h = (1 - u) * h + u * c
            states.append(h)
            x = torch.relu(h)
        return self.conv_blocks[-1](self._densely(x, skipped)), torch.stack(states, dim=-1)

    def _densely(self, x: Tensor, skipped: list[Tensor]) -> Tensor:
        """The input of a convolution: x, preceded by the latest a's if layers are densely connected."""
        if not self.dense_connect:
            return x
        return torch.cat([*skipped[-self.dense_connect :], x], dim=1)


class NormConv2dGRU(nn.Module):
    """`Conv2dGRU` (same arguments) between a normalisation and its inverse.

    Channels are taken in `norm_groups` groups (two: real and imaginary parts); each is shifted to mean 0, scaled to an
    unbiased standard deviation of 1, and put back at the end.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int | None = None,
        *,
        num_layers: int = 2,
        gru_kernel_size: int = 1,
        orthogonal_initialization: bool = True,
        instance_norm: bool = False,
        dense_connect: int = 0,
        norm_groups: int = 2,
    ) -> None:
        super().__init__()
        self.norm_groups = norm_groups
        self.convgru = Conv2dGRU(
            in_channels,
            hidden_channels,
            out_channels,
            num_layers=num_layers,
            gru_kernel_size=gru_kernel_size,
            orthogonal_initialization=orthogonal_initialization,
            instance_norm=instance_norm,
            dense_connect=dense_connect,
        )

    def forward(
        self,
        x: Float[Tensor, "batch input height width"],
        state: Float[Tensor, "batch hidden height width layer"] | None = None,
    ) -> tuple[Float[Tensor, "batch output height width"], Float[Tensor, "batch hidden height width layer"]]:
        """Return the output and the next state; a state of None is one of zeros."""
        groups = x.reshape(x.shape[0], self.norm_groups, -1)
        mean = groups.mean(-1, keepdim=True)
        # An image of zeros stays one; any other deviation is used as it is.
        std = groups.std(-1, keepdim=True).clamp_min(torch.finfo(groups.dtype).tiny)
        y, state = self.convgru(((groups - mean) / std).reshape(x.shape), state)
        return (y.reshape(*groups.shape[:2], -1) * std + mean).reshape(y.shape), state
