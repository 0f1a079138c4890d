"""Recurrent units as modules."""

from recurra.core.nn.conv2d_gru import Conv2dGRU, NormConv2dGRU
from recurra.core.nn.conv_cells import ConvGRUCell, ConvIndRNNCell, ConvMGUCell

__all__ = ["Conv2dGRU", "ConvGRUCell", "ConvIndRNNCell", "ConvMGUCell", "NormConv2dGRU"]
