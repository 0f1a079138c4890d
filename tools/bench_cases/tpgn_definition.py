"""TPGN layer by layer, as its equations stand: every map a grouped convolution, every tensor laid out for the next."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def definition(model: nn.Module, past: Tensor, marks: Tensor) -> Tensor:
    """The forecast of a `recurra.forecast.models.TPGN`, with its weights, for windows of whole periods."""
    network, unit = model.TPGN, model.TPGN.LNN_dim
    channels, hidden, rows, columns = unit.channels, unit.hidden, unit.rows, model.period
    batch, features = past.shape[0], unit.input
    x = past
    if model.norm:
        x = x - x.mean(1, keepdim=True).detach()
        scale = torch.sqrt(x.var(1, keepdim=True, correction=0) + 1e-5)
        x = x / scale
    of_steps = marks[:, : model.window].view(batch, rows, columns, 1, features - 1).repeat(1, 1, 1, channels, 1)
    z = torch.cat([x.view(batch, rows, columns, channels, 1), of_steps], -1)
    # (batch and column, channel and feature, row)
    along = z.permute(0, 2, 3, 4, 1).reshape(batch * columns, channels * features, rows)
    history = F.conv1d(F.pad(along, (unit.window, 0))[..., :-1], *weights(unit.hidden_MLP), groups=channels)
    both = torch.cat([part.view(batch * columns, channels, -1, rows) for part in (along, history)], 2)
    gates = F.conv1d(both.flatten(1, 2), *weights(unit.gate), groups=channels)
    s, t = gates.view(batch * columns, channels, 2 * hidden, rows).chunk(2, 2)
    share = torch.sigmoid(s)
    h = share * history.view(batch * columns, channels, hidden, rows) + (1 - share) * torch.tanh(t)
    parts = [F.conv1d(h.flatten(1, 2), *weights(unit.fc), groups=channels).view(batch, columns, channels, hidden)]
    if network.short:
        of_rows = z.permute(0, 1, 3, 4, 2).reshape(batch * rows, channels * features, columns)
        of_rows = F.conv1d(of_rows, *weights(network.s_t_p_e.fc_row), groups=channels)
        of_rows = of_rows.view(batch, rows, channels * hidden).transpose(1, 2)
        short = F.conv1d(of_rows, *weights(network.s_t_p_e.fc_col), groups=channels)
        parts.insert(0, short.view(batch, 1, channels, hidden).repeat(1, columns, 1, 1))
    read = torch.cat(parts, -1).permute(0, 2, 3, 1).reshape(batch, -1, columns)
    y = F.conv1d(read, *weights(network.fc), groups=channels).view(batch, channels, -1, columns)
    y = y.permute(0, 2, 3, 1).reshape(batch, -1, channels)[:, : model.horizon]
    return y * scale + past.mean(1, keepdim=True).detach() if model.norm else y


def weights(convolution: nn.Conv1d) -> tuple[Tensor, Tensor | None]:
    return convolution.weight, convolution.bias
