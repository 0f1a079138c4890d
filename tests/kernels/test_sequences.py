import re

import pytest
import torch

from recurra.kernels import pack_padded, pad_packed


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_sequences_laid_end_to_end_become_a_padded_batch(dtype):
    x = torch.randn(1, 9, 2)
    padded, lengths = pad_packed(x, torch.tensor([0, 3, 3, 8, 9, 9], dtype=dtype))
    assert lengths.tolist() == [3, 0, 5, 1, 0]
    assert lengths.dtype == torch.int64
    assert padded.shape == (5, 5, 2)
    starts = (0, 3, 3, 8, 9)
    for row, start, length in zip(padded, starts, lengths, strict=True):
        assert torch.equal(row[:length], x[0, start : start + length])
        assert row[length:].eq(0).all()
    assert torch.equal(pack_padded(padded, lengths), x)
    assert torch.equal(pack_padded(padded, lengths, 9), x)
    wider, _ = pad_packed(x, torch.tensor([0, 3, 3, 8, 9, 9]), 7)
    assert torch.equal(wider[:, :5], padded)
    assert wider[:, 5:].eq(0).all()


def test_gradients_of_padding_and_packing():
    x = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    borders = torch.tensor([0, 2, 2, 5])
    assert torch.autograd.gradcheck(lambda x: pad_packed(x, borders)[0], x)
    padded, lengths = pad_packed(x.detach(), borders)
    # What the padding holds goes nowhere, and its gradient is 0.
    padded = torch.where(padded == 0, torch.nan, padded).requires_grad_()
    pack_padded(padded, lengths).sum().backward()
    assert padded.grad is not None
    assert torch.equal(padded.grad, padded.detach().isfinite().double())


@pytest.mark.parametrize("borders", [[0], [0, 0], [0, 0, 0]])
def test_no_steps(borders):
    padded, lengths = pad_packed(torch.zeros(1, 0, 2), torch.tensor(borders))
    assert padded.shape == (len(borders) - 1, 0, 2)
    assert pack_padded(padded, lengths).shape == (1, 0, 2)


@pytest.mark.parametrize(
    ("shape", "borders", "message"),
    [
        ((2, 9), [0, 9], "x has shape (2, 9); expected (1, total, *width) with cu_seqlens"),
        ((1, 9), [[0, 9]], "cu_seqlens has shape (1, 2) of torch.int64; expected (sequences + 1,) of torch.int64"),
        ((1, 9), [0.0, 9.0], "cu_seqlens has shape (2,) of torch.float32; expected (sequences + 1,) of torch.int64"),
        ((1, 9), [0, 4], "cu_seqlens goes from 0 to 4; expected it to rise from 0 to 9"),
        ((1, 9), [1, 9], "cu_seqlens goes from 1 to 9; expected it to rise from 0 to 9"),
        ((1, 9), [0, 5, 4, 9], "cu_seqlens goes from 0 to 9; expected it to rise from 0 to 9"),
    ],
)
def test_borders_that_do_not_fit(shape, borders, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        pad_packed(torch.zeros(shape), torch.tensor(borders))


def test_a_longest_sequence_that_does_not_fit():
    with pytest.raises(ValueError, match="max_length is 4; expected at least 5, the longest sequence"):
        pad_packed(torch.zeros(1, 9), torch.tensor([0, 4, 9]), 4)
    with pytest.raises(ValueError, match="lengths go from 2 to 6; expected 0 to 5"):
        pack_padded(torch.zeros(2, 5), torch.tensor([2, 6]))
