"""Scans over time in log2(time) passes: in pass k every step's map is composed with that of 2^k steps before."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def linear(a: Sequence[Sequence[Tensor]], b: Sequence[Tensor]) -> list[Tensor]:
    """All states of s_t = A_t s_(t-1) + b_t from s = 0, with A_t a small matrix for each unit.

    Args:
        a: rows of matrices, each entry (batch, time, width).
        b: entries of vectors, each (batch, time, width).
    """
    maps, values = [list(row) for row in a], list(b)
    reach, states = 1, range(len(values))
    while reach < values[0].shape[1]:
        late = [[entry[:, reach:] for entry in row] for row in maps]
        before = [value[:, :-reach] for value in values]
        moved = [total(product(late[i][j], before[j]) for j in states) for i in states]
        composed = [
            [total(product(late[i][k], maps[k][j][:, :-reach]) for k in states) for j in states] for i in states
        ]
        values = [torch.cat([v[:, :reach], v[:, reach:] + m], 1) for v, m in zip(values, moved, strict=True)]
        maps = [[torch.cat([maps[i][j][:, :reach], composed[i][j]], 1) for j in states] for i in states]
        reach *= 2
    return values


def rectified(a: Tensor, b: Tensor) -> Tensor:
    """All states of h_t = max(a_t h_(t-1) + b_t, 0) from h = 0, each (batch, time, width).

    The maps h -> clip(a h + b, low, high) are closed under composition, whatever the signs; README.md has the algebra.
    """
    low, high = torch.zeros_like(b), torch.full_like(b, torch.inf)
    reach = 1
    while reach < b.shape[1]:
        a2, b2, low2, high2 = (value[:, reach:] for value in (a, b, low, high))
        a1, b1, low1, high1 = (value[:, :-reach] for value in (a, b, low, high))
        one, other = product(a2, low1) + b2, product(a2, high1) + b2
        low = torch.cat([low[:, :reach], torch.minimum(one, other).maximum(low2).minimum(high2)], 1)
        high = torch.cat([high[:, :reach], torch.maximum(one, other).maximum(low2).minimum(high2)], 1)
        a = torch.cat([a[:, :reach], product(a2, a1)], 1)
        b = torch.cat([b[:, :reach], product(a2, b1) + b2], 1)
        reach *= 2
    return b.maximum(low).minimum(high)


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product a b, 0 where either is 0: the other may be infinite, as a bound or as an overflown product."""
    return torch.where((a == 0) | (b == 0), 0, a * b)


def total(terms: Iterable[Tensor]) -> Tensor:
    """Their sum; there is at least one."""
    first, *rest = terms
    for term in rest:
        first = first + term
    return first
