"""Recurrent operations over interchangeable backends; importing this compiles nothing and needs torch alone."""

from recurra.kernels.conv_cell_pointwise import conv_cell_pointwise, conv_cell_update
from recurra.kernels.elementwise_scan import elementwise_scan
from recurra.kernels.elementwise_scan.newton import newton_scan
from recurra.kernels.gated_layer import gated_layer
from recurra.kernels.gated_scan import gated_scan
from recurra.kernels.linear_scan import linear_scan
from recurra.kernels.memory_conv import memory_conv
from recurra.kernels.registry import Backend, Choice, Op, explain, use_backend
from recurra.kernels.sequences import pack_padded, pad_packed
from recurra.kernels.ssm2d_scan import ssm2d_scan
from recurra.kernels.thin_conv import thin_conv
from recurra.kernels.winograd import winograd_conv, winograd_weight

__all__ = [
    "Backend",
    "Choice",
    "Op",
    "conv_cell_pointwise",
    "conv_cell_update",
    "elementwise_scan",
    "explain",
    "gated_layer",
    "gated_scan",
    "linear_scan",
    "memory_conv",
    "newton_scan",
    "pack_padded",
    "pad_packed",
    "ssm2d_scan",
    "thin_conv",
    "use_backend",
    "winograd_conv",
    "winograd_weight",
]
