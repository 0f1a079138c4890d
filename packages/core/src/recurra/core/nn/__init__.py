"""Recurrent units as modules."""

from recurra.core.nn.conv2d_gru import Conv2dGRU, NormConv2dGRU
from recurra.core.nn.conv_cells import ConvGRUCell, ConvIndRNNCell, ConvMGUCell
from recurra.core.nn.elementwise import DiagGRU, DiagLSTM, IndRNN
from recurra.core.nn.fsmn import FSMN, ComplexFSMN, DilatedDenseMemory, DilatedFSMN
from recurra.core.nn.gated import GRU, LSTM, MGU, SLSTM, Elman
from recurra.core.nn.layouts import from_flashrnn, to_flashrnn
from recurra.core.nn.linear_recurrence import S4D, LinearRecurrence
from recurra.core.nn.pgn import PGN
from recurra.core.nn.ssm2d import SSM2D
from recurra.core.nn.states import (
    CellState,
    ComplexWindowState,
    ExponentialState,
    GridState,
    HiddenState,
    WindowState,
)

__all__ = [
    "FSMN",
    "GRU",
    "LSTM",
    "MGU",
    "PGN",
    "S4D",
    "SLSTM",
    "SSM2D",
    "CellState",
    "ComplexFSMN",
    "ComplexWindowState",
    "Conv2dGRU",
    "ConvGRUCell",
    "ConvIndRNNCell",
    "ConvMGUCell",
    "DiagGRU",
    "DiagLSTM",
    "DilatedDenseMemory",
    "DilatedFSMN",
    "Elman",
    "ExponentialState",
    "GridState",
    "HiddenState",
    "IndRNN",
    "LinearRecurrence",
    "NormConv2dGRU",
    "WindowState",
    "from_flashrnn",
    "to_flashrnn",
]
