"""The definition: plain torch, differentiable to any order, any device, any dtype."""

import torch
from torch import Tensor

# Number of gate blocks in the channel axis of gi (and of gh, where the cell has one).
GATES = {"gru": 3, "mgu": 2, "indrnn": 1, "gru_before_reset": 1, "gru_before_update": 2}


def new_state(cell: str, gi: Tensor, gh: Tensor | None, h: Tensor, u: Tensor | None) -> Tensor:
    """h' of the cell; 16-bit inputs are computed in float32."""
    dtype = h.dtype
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    gi, h = gi.to(wide), h.to(wide)
    gh = None if gh is None else gh.to(wide)
    if cell == "gru":
        new = gru(gi, _given(gh), h)
    elif cell == "mgu":
        new = mgu(gi, _given(gh), h)
    elif cell == "indrnn":
        scale = _given(u).to(wide).reshape(-1, *[1] * (h.dim() - 2))
        new = torch.relu(gi + scale * h)
    elif cell == "gru_before_reset":
        new = torch.sigmoid(gi if gh is None else gi + gh) * h
    else:
        update, candidate = (gi if gh is None else gi + gh).chunk(2, dim=1)
        new = torch.lerp(h, torch.tanh(candidate), torch.sigmoid(update))
    return new.to(dtype)


def gru(gi: Tensor, gh: Tensor, h: Tensor) -> Tensor:
    """Reset after the product; z keeps the old state."""
    ir, iz, i_n = gi.chunk(3, dim=1)
    hr, hz, hn = gh.chunk(3, dim=1)
    r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
    n = torch.tanh(i_n + r * hn)
    return (1 - z) * n + z * h


def mgu(gi: Tensor, gh: Tensor, h: Tensor) -> Tensor:
    """One gate: f resets the candidate and keeps the old state."""
    i_f, ic = gi.chunk(2, dim=1)
    hf, hc = gh.chunk(2, dim=1)
    f = torch.sigmoid(i_f + hf)
    c = torch.tanh(ic + f * hc)
    return c + f * (h - c)


def _given(value: Tensor | None) -> Tensor:
    assert value is not None  # checked at the public entry
    return value
