"""Laws of the units: weights of other libraries, streaming, padding, episodes, dropout, states, bad input."""

import copy
import re
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from recurra.core.nn import (
    FSMN,
    GRU,
    LSTM,
    MGU,
    PGN,
    S4D,
    SLSTM,
    SSM2D,
    ComplexFSMN,
    DiagGRU,
    DiagLSTM,
    DilatedFSMN,
    Elman,
    HiddenState,
    IndRNN,
    LinearRecurrence,
    from_flashrnn,
    to_flashrnn,
)
from recurra.core.testing import assert_close
from recurra.kernels import gated_scan

Make = Any

RECURRENT: dict[str, Make] = {
    "elman": lambda **more: Elman(4, 6, **more),
    "elman relu": lambda **more: Elman(4, 6, nonlinearity="relu", **more),
    "gru": lambda **more: GRU(4, 6, **more),
    "gru before": lambda **more: GRU(4, 6, reset="before", heads=2, **more),
    "gru heads": lambda **more: GRU(4, 6, heads=2, **more),
    "mgu": lambda **more: MGU(4, 6, **more),
    "mgu after": lambda **more: MGU(4, 6, reset="after", bias=False, **more),
    "lstm": lambda **more: LSTM(4, 6, **more),
    "lstm projection": lambda **more: LSTM(4, 6, heads=2, proj_size=4, **more),
    "slstm": lambda **more: SLSTM(4, 6, heads=3, **more),
    "indrnn": lambda **more: IndRNN(4, 6, **more),
    "indrnn norm": lambda **more: IndRNN(4, 6, batch_norm="after", nonlinearity="tanh", **more),
    "diag gru": lambda **more: DiagGRU(4, 6, heads=2, **more),
    "diag lstm": lambda **more: DiagLSTM(4, 6, heads=2, **more),
    "linear": lambda **more: LinearRecurrence(4, 6, **more),
    "linear input": lambda **more: LinearRecurrence(4, 6, decay="input", **more),
}
CAUSAL: dict[str, Make] = {
    **{name: lambda make=make: make(num_layers=2) for name, make in RECURRENT.items()},
    "s4d": lambda: S4D(4, 3),
    "s4d real": lambda: S4D(4, 3, init="real", discretisation="bilinear"),
    "fsmn": lambda: FSMN(4, 6, lorder=3),
    "fsmn one tap": lambda: FSMN(4, 6, lorder=1),
}


def sequences(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def made(make: Make, **more: Any) -> nn.Module:
    """The unit in float64, out of training."""
    torch.manual_seed(0)
    unit: nn.Module = make(**more).double().eval()
    return unit


def weights(unit: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in unit.named_parameters()}


# Weights of other libraries


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("kind", "ours", "more"),
    [
        (nn.GRU, GRU, {}),
        (nn.LSTM, LSTM, {}),
        (nn.LSTM, LSTM, {"proj_size": 3}),
        (nn.RNN, Elman, {"nonlinearity": "tanh"}),
        (nn.RNN, Elman, {"nonlinearity": "relu"}),
    ],
)
def test_torch_networks_there_and_back(kind: Any, ours: Any, more: Any, bidirectional: bool, bias: bool) -> None:
    torch.manual_seed(0)
    theirs = kind(4, 6, num_layers=2, bidirectional=bidirectional, bias=bias, batch_first=True, **more).double()
    unit = ours.from_torch(theirs)
    assert list(unit.state_dict()) == list(theirs.state_dict())
    x = sequences(3, 7, 4)
    y, state = unit(x)
    expected, last = theirs(x)
    assert_close(y, expected, atol=1e-12)
    for ours_last, their_last in zip(state, last if isinstance(last, tuple) else (last,), strict=True):
        assert_close(ours_last, their_last, atol=1e-12)
    back = unit.to_torch()
    assert type(back) is kind
    assert torch.equal(back(x)[0], expected)


def test_torch_networks_keep_dtype_mode_and_dropout() -> None:
    theirs = nn.GRU(4, 6, num_layers=2, dropout=0.25).half().eval()
    unit = GRU.from_torch(theirs)
    assert (unit.dropout, unit.training, unit.weight_hh_l0.dtype) == (0.25, False, torch.float16)
    assert unit.to_torch().dropout == 0.25


def test_only_dense_units_of_torchs_form_go_to_torch() -> None:
    with pytest.raises(ValueError, match="heads=2"):
        GRU(4, 6, heads=2).to_torch()
    with pytest.raises(ValueError, match="reset='before'"):
        GRU(4, 6, reset="before").to_torch()


@pytest.mark.parametrize(("make", "gates"), [("elman", 1), ("gru", 3), ("lstm", 4), ("slstm", 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_flashrnn_weights(make: str, gates: int, bias: bool) -> None:
    kinds: dict[str, Any] = {"elman": Elman, "gru": GRU, "lstm": LSTM, "slstm": SLSTM}
    function: Any = make
    # An identity for the input makes x the Wx of FlashRNN, whose gates are in torch's order for all functions.
    unit = made(lambda: kinds[make](gates * 6, 6, heads=2, bias=bias))
    with torch.no_grad():
        unit.weight_ih_l0.copy_(torch.eye(gates * 6))
    R = sequences(gates, 2, 3, 3)
    b = sequences(4 if make == "gru" else gates, 2, 3) if bias else None
    unit.load_flashrnn(R, b, function)
    wx = sequences(2, 5, gates, 2, 3)
    r, folded = from_flashrnn(R, b, function)
    expected, _ = gated_scan("elman_tanh" if make == "elman" else function, wx, r, folded)
    assert_close(unit(wx.flatten(2))[0], expected.flatten(2), atol=1e-12)
    again, b_again = to_flashrnn(r, folded, function)
    assert torch.equal(again, R)
    assert b is None or (b_again is not None and torch.equal(b_again, b))


def test_flashrnn_gru_gates_are_in_its_own_orders() -> None:
    n, r, z = torch.arange(3.0).view(3, 1, 1, 1)
    R, bias = from_flashrnn(torch.stack([n, r, z]), torch.arange(4.0).view(4, 1, 1), "gru")
    assert R.flatten().tolist() == [1, 2, 0]
    assert bias is not None
    assert bias.flatten().tolist() == [1, 2, 3, 0]  # [n_recurrent, r, z, n_input] -> [r, z, n_input, n_recurrent]


def test_flashrnn_weights_of_another_form_are_refused() -> None:
    unit, R, b = LSTM(4, 6, heads=2), torch.zeros(4, 2, 3, 3), torch.zeros(4, 2, 3)
    with pytest.raises(ValueError, match="function must be the recurrence of a LSTM, lstm; got 'slstm'"):
        unit.load_flashrnn(R, b, "slstm")
    with pytest.raises(ValueError, match=r"R has shape .*; expected \(4, 2, 3, 3\)"):
        unit.load_flashrnn(R[:, :1], b, "lstm")
    with pytest.raises(ValueError, match="bias=True"):
        unit.load_flashrnn(R, None, "lstm")
    with pytest.raises(ValueError, match="_l1 is none of _l0"):
        unit.load_flashrnn(R, b, "lstm", layer=1)


@pytest.mark.parametrize("kind", [DiagGRU, DiagLSTM])
def test_pararnn_names_and_shapes(kind: Any) -> None:
    unit = kind(6, 8, heads=2)
    shapes = {"A": (3, 8), "B": (2, 3, 3, 4), "b": (3, 8)} | ({"C": (2, 8)} if kind is DiagLSTM else {})
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    unit.load_state_dict(state)
    assert {name: tuple(value.shape) for name, value in unit.state_dict().items()} == {
        f"{name}_l0": shape for name, shape in shapes.items()
    }
    assert all(torch.equal(unit.state_dict()[f"{name}_l0"], value) for name, value in state.items())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        unit.load_state_dict({**state, "D": torch.zeros(1)})


def test_indrnn_recurrent_part_alone_loads_the_authors_names() -> None:
    unit = IndRNN(None, 5)
    unit.load_state_dict({"weight_hh": torch.linspace(-1, 1, 5)})
    x = sequences(2, 7, 5, dtype=torch.float32)
    h = torch.zeros(2, 5)
    for t in range(7):
        h = torch.relu(x[:, t] + torch.linspace(-1, 1, 5) * h)
    assert_close(unit(x)[0][:, -1], h, atol=1e-6)


@pytest.mark.parametrize("make", RECURRENT.values(), ids=RECURRENT)
def test_weights_survive_saving(make: Make, tmp_path: Any) -> None:
    unit, other = make(num_layers=2, bidirectional=True).eval(), make(num_layers=2, bidirectional=True).eval()
    torch.save(unit.state_dict(), tmp_path / "unit.pt")
    other.load_state_dict(torch.load(tmp_path / "unit.pt"))
    x = sequences(2, 5, 4, dtype=torch.float32)
    assert torch.equal(unit(x)[0], other(x)[0])
    assert torch.equal(copy.deepcopy(unit)(x)[0], other(x)[0])


# Streaming, padding, episodes


@pytest.mark.parametrize("make", CAUSAL.values(), ids=CAUSAL)
def test_streaming_gives_the_same_numbers(make: Make) -> None:
    unit, x = made(make), sequences(2, 9, 4)
    with torch.no_grad():
        whole, end = unit(x)
        state, parts = None, []
        for one in x.unbind(1):
            y, state = unit.step(one, state)
            parts.append(y)
        assert_close(torch.stack(parts, 1), whole, atol=1e-12)
        for split in (0, 1, 2, 8, 9):
            y1, middle = unit(x[:, :split])
            y2, last = unit(x[:, split:], middle)
            assert_close(torch.cat([y1, y2], 1), whole, atol=1e-12)
            for found in (last, state):
                for ours, expected in zip(found, end, strict=True):
                    assert_close(ours, expected, atol=1e-12)


@pytest.mark.parametrize("make", RECURRENT.values(), ids=RECURRENT)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_padding_changes_nothing(make: Make, bidirectional: bool) -> None:
    unit = made(make, num_layers=2, bidirectional=bidirectional)
    lengths = torch.tensor([3, 0, 7, 5])
    x = sequences(4, 7, 4)
    for i, length in enumerate(lengths):
        x[i, length:] = torch.nan
    y, state = unit(x, lengths=lengths)
    assert y.isfinite().all()
    for i, length in enumerate(lengths):
        alone, last = unit(x[i : i + 1, :length])
        assert_close(y[i : i + 1, :length], alone, atol=1e-12)
        assert y[i, length:].eq(0).all()
        for ours, expected in zip(state, last, strict=True):
            assert_close(ours[:, i : i + 1], expected, atol=1e-12)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unit.parameters())


@pytest.mark.parametrize(("kind", "ours"), [(nn.GRU, GRU), (nn.LSTM, LSTM), (nn.RNN, Elman)])
def test_lengths_are_torchs_packed_sequences(kind: Any, ours: Any) -> None:
    torch.manual_seed(0)
    theirs = kind(4, 6, num_layers=2, bidirectional=True, batch_first=True).double()
    unit = ours.from_torch(theirs)
    x, lengths = sequences(4, 7, 4), torch.tensor([3, 1, 7, 5])
    packed, last = theirs(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    expected, _ = pad_packed_sequence(packed, batch_first=True, total_length=7)
    y, state = unit(x, lengths=lengths)
    assert_close(y, expected, atol=1e-12)
    for ours_last, their_last in zip(state, last if isinstance(last, tuple) else (last,), strict=True):
        assert_close(ours_last, their_last, atol=1e-12)


@pytest.mark.parametrize("make", CAUSAL.values(), ids=CAUSAL)
def test_sequences_end_to_end_are_padded_ones(make: Make) -> None:
    unit = made(make)
    borders = torch.tensor([0, 3, 3, 8])
    x = sequences(1, 8, 4).requires_grad_()
    y, state = unit(x, cu_seqlens=borders)
    assert y.shape[:2] == (1, 8)
    for i, (start, stop) in enumerate(pairwise(borders.tolist())):
        alone, last = unit(x[:, start:stop])
        assert_close(y[:, start:stop], alone, atol=1e-12)
        for ours, expected in zip(state, last, strict=True):
            assert_close(ours[:, i : i + 1], expected, atol=1e-12)
    with pytest.raises(ValueError, match="lengths and cu_seqlens"):
        unit(x, lengths=torch.tensor([8]), cu_seqlens=borders)


def test_gradients_reach_sequences_laid_end_to_end() -> None:
    unit = made(RECURRENT["gru"])
    x = sequences(1, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: unit(x, cu_seqlens=torch.tensor([0, 2, 5]))[0], x)


@pytest.mark.parametrize("make", RECURRENT.values(), ids=RECURRENT)
def test_reset_begins_an_episode(make: Make) -> None:
    unit, x = made(make), sequences(2, 8, 4)
    reset = torch.zeros(2, 8, dtype=torch.bool)
    reset[:, 5] = True
    _, state = unit(x)
    y, last = unit(x, state, reset=reset)
    first, _ = unit(x[:, :5], state)
    second, expected = unit(x[:, 5:], state)
    assert_close(y, torch.cat([first, second], 1), atol=1e-12)
    for ours, theirs in zip(last, expected, strict=True):
        assert_close(ours, theirs, atol=1e-12)
    packed, _ = unit(x.reshape(1, 16, 4), state, reset=reset.reshape(1, 16), cu_seqlens=torch.tensor([0, 8, 16]))
    assert_close(packed.reshape(y.shape), y, atol=1e-12)


@pytest.mark.parametrize("make", CAUSAL.values(), ids=CAUSAL)
@pytest.mark.parametrize(("batch", "steps"), [(0, 3), (2, 0), (2, 1), (0, 0)])
def test_empty_sequences(make: Make, batch: int, steps: int) -> None:
    unit = made(make)
    _, before = unit(sequences(batch, 2, 4))
    y, state = unit(sequences(batch, steps, 4), before)
    assert y.shape[:2] == (batch, steps)
    if steps == 0:
        for ours, expected in zip(state, before, strict=True):
            assert_close(ours, expected)


@pytest.mark.parametrize("make", RECURRENT.values(), ids=RECURRENT)
def test_second_direction_reads_the_sequence_backwards(make: Make) -> None:
    unit = made(make, bidirectional=True)
    forwards = made(make)
    own = unit.state_dict()
    taken = {}
    for name in forwards.state_dict():
        source = own[name.replace("_l0", "_l0_reverse")] if "norm" not in name else own[name]
        taken[name] = source[6:] if "norm" in name and source.dim() else source
    forwards.load_state_dict(taken)
    x = sequences(2, 7, 4)
    y, state = unit(x)
    expected, last = forwards(x.flip(1))
    assert_close(y[..., y.shape[2] // 2 :], expected.flip(1), atol=1e-12)
    for ours, theirs in zip(state, last, strict=True):
        assert_close(ours[1:], theirs, atol=1e-12)


@pytest.mark.parametrize("make", CAUSAL.values(), ids=CAUSAL)
@pytest.mark.parametrize("autocast", [True, False])
def test_sixteen_bit_units_stream(make: Make, autocast: bool) -> None:
    torch.manual_seed(0)
    unit, x = make().eval(), sequences(2, 6, 4, dtype=torch.float32)
    expected, _ = unit(x)
    if not autocast:
        unit, x = unit.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        whole, end = unit(x)
        first, state = unit(x[:, :2])
        second, last = unit(x[:, 2:], state)
    assert_close(whole, expected, atol=0.05, rtol=0.05)
    # The carried state is not rounded to 16 bit.
    assert_close(torch.cat([first, second], 1), whole, atol=0.02, rtol=0.02)
    for ours, theirs in zip(last, end, strict=True):
        assert ours.dtype == theirs.dtype
        assert_close(ours, theirs, atol=0.02, rtol=0.02)
    whole.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unit.parameters())


def test_sixteen_bit_units_keep_their_state_in_float32() -> None:
    for unit in (GRU(4, 6), IndRNN(4, 6), LinearRecurrence(4, 6)):
        y, state = unit.bfloat16()(sequences(2, 5, 4, dtype=torch.bfloat16))
        assert (y.dtype, state.h.dtype) == (torch.bfloat16, torch.float32)


# Dropout, normalisation, initial weights


@pytest.mark.parametrize("kind", [IndRNN, GRU])
def test_dropout_between_layers(kind: Any) -> None:
    torch.manual_seed(0)
    unit = kind(4, 50, num_layers=2, dropout=0.5)
    seen: list[Tensor] = []
    run = unit.run_layer

    def spy(x: Tensor, *args: Any, **options: Any) -> Any:
        seen.append(x)
        y, last = run(x, *args, **options)
        return y.detach() * 0 + 1, last

    unit.run_layer = spy
    unit(torch.randn(3, 20, 4))
    mask = seen[1]
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    assert 0.3 < mask.eq(0).float().mean() < 0.7
    same = bool((mask == mask[:, :1]).all())
    assert same == (kind is IndRNN)
    assert not torch.equal(mask[0], mask[1])
    unit.eval()
    seen.clear()
    unit(torch.randn(3, 20, 4))
    assert seen[1].eq(1).all()


def test_indrnn_weights_start_and_stay_within_bounds() -> None:
    torch.manual_seed(0)
    unit = IndRNN(4, 200, num_layers=2, steps=100, mag=2.0, long_memory=True)
    bound = 2 ** (1 / 100)
    first, last = unit.weight_hh_l0, unit.weight_hh_l1
    assert first.min() < 0.05 < 0.95 < first.max() <= bound
    assert 1 / bound <= last.min() < last.max() <= bound
    with torch.no_grad():
        first[0], first[1] = 3, -3
    x = torch.randn(2, 3, 4)
    unit.eval()(x)
    assert first[0] == 3
    y1, _ = unit.train()(x)
    y2, _ = unit(x)
    assert_close(first[:2], torch.tensor([bound, -bound]), rtol=1e-6)
    (y1.sum() + y2.sum()).backward()  # clamping between two calls spoils no graph
    assert unit.weight_ih_l0.abs().max() <= (6 / (1 + 64) / 4) ** 0.5
    assert unit.bias_l0.eq(0).all()
    assert IndRNN(4, 200).weight_hh_l0.max() <= 1
    decayed, others = unit.parameter_groups(1e-4)
    assert decayed["params"] == [unit.weight_ih_l0, unit.weight_ih_l1]
    assert (len(others["params"]), others["weight_decay"]) == (4, 0.0)


@pytest.mark.parametrize("where", ["after", "before"])
def test_batch_norm_leaves_padding_out(where: Any) -> None:
    torch.manual_seed(0)
    padded, packed = (IndRNN(4, 6, batch_norm=where, num_layers=2).double() for _ in range(2))
    packed.load_state_dict(padded.state_dict())
    lengths = torch.tensor([5, 2, 0])
    x = sequences(3, 5, 4)
    x[1, 2:] = x[2] = torch.nan
    ours = {"norm": padded.get_submodule("norm_l0"), "other": packed.get_submodule("norm_l0")}
    # The norm of valid steps alone, by torch's own module.
    h = sequences(3, 5, 6)
    valid = torch.arange(5) < lengths[:, None]
    expected = nn.BatchNorm1d(6).double()
    want = expected(h[valid])
    found = ours["norm"](h, lengths)
    assert_close(found[valid], want, atol=1e-12)
    assert found[~valid].eq(0).all()
    assert_close(ours["norm"].running_mean, expected.running_mean, atol=1e-12)
    assert_close(ours["norm"].running_var, expected.running_var, atol=1e-12)
    y, _ = padded(x, lengths=lengths)
    assert y.isfinite().all()
    assert y[~valid].eq(0).all()
    whole, _ = packed(x[:1])
    padded.load_state_dict(packed.state_dict())
    assert_close(padded.eval()(x[:1])[0], packed.eval()(x[:1], lengths=torch.tensor([5]))[0], atol=1e-12)
    assert whole.shape == (1, 5, 6)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    lstm = LSTM(4, 100, forget_bias=1.0)
    assert (lstm.bias_ih_l0 + lstm.bias_hh_l0)[100:200].eq(1).all()
    assert lstm.weight_hh_l0.abs().max() <= 0.1 < 1.01 * lstm.weight_hh_l0.abs().max()
    slstm = SLSTM(4, 100, heads=4)
    assert 0.19 < slstm.weight_hh_l0.abs().max() <= 0.2
    forget = slstm.bias_l0.view(4, 4, 25)
    assert_close(forget[1], torch.linspace(3, 6, 25).expand(4, 25), atol=1e-6)
    assert forget[[0, 2, 3]].eq(0).all()
    gru = DiagGRU(40, 1000, heads=4)
    assert_close(gru.A_l0.std(), 2 / 5000**0.5, rtol=0.1)
    assert_close(gru.b_l0[0], -torch.linspace(0, 1, 1000))
    assert gru.b_l0[1:].eq(0).all()
    assert 0.99 < gru.B_l0.abs().max() / (6 / (10 + 1000)) ** 0.5 <= 1
    assert 0.99 < DiagLSTM(40, 1000, heads=4).B_l0.abs().max() / (6 / (10 + 250)) ** 0.5 <= 1
    s4d = S4D(100, 3)
    assert_close(-s4d.log_decay.exp(), torch.full((100, 3), -0.5))
    assert_close(s4d.frequency[0], torch.pi * torch.arange(3), atol=1e-6)
    assert 1e-3 <= s4d.log_dt.exp().min() < 2e-3 < 5e-2 < s4d.log_dt.exp().max() <= 1e-1
    assert_close(-S4D(2, 3, init="real").log_decay.exp()[0], torch.tensor([-1.0, -2, -3]), atol=1e-6)


# States


def test_states_move_between_batches_devices_and_graphs() -> None:
    unit = LSTM(4, 6, num_layers=2)
    _, state = unit(torch.randn(5, 3, 4))
    assert state._fields == ("h", "c")
    assert state.h.requires_grad
    assert not state.detach().c.requires_grad
    assert type(state.detach()) is type(state)
    assert state.to(torch.float64).h.dtype == torch.float64
    assert state.to("meta").h.device.type == "meta"
    for batch in (3, slice(3, 4), [3], torch.tensor([3]), torch.arange(5) == 3):
        assert torch.equal(state.select(batch).h, state.h[:, 3:4])
    index = torch.tensor([4, 4, 0])
    assert torch.equal(state.reorder(index).c, state.c[:, [4, 4, 0]])
    with pytest.raises(ValueError, match=r"index has shape \(1, 1\)"):
        state.reorder(torch.zeros(1, 1, dtype=torch.int64))
    mapped = torch.utils._pytree.tree_map(lambda t: t * 2, state)
    assert type(mapped) is type(state)
    assert torch.equal(mapped.h, state.h * 2)


DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu), *[pytest.param("cpu")] * (not torch.cuda.is_available())]


def with_gradients(unit: nn.Module, x: Tensor) -> list[Tensor]:
    """y, and the gradients of its sum in all parameters."""
    y = unit(x)[0]
    return [y.detach(), *torch.autograd.grad(y.sum(), list(unit.parameters()))]


@pytest.mark.parametrize("make", CAUSAL.values(), ids=CAUSAL)
@pytest.mark.parametrize("device", DEVICES)
def test_on_a_gpu_as_on_the_cpu(make: Make, device: str) -> None:
    exact, x = made(make), sequences(3, 70, 4)
    # In float32, and not in the shorter numbers that cuDNN takes for it.
    unit = copy.deepcopy(exact).to(device, torch.float32)
    with torch.backends.cudnn.flags(allow_tf32=False):
        found = with_gradients(unit, x.to(device, torch.float32))
    needed = with_gradients(exact, x)
    for name, ours, expected in zip(("y", *dict(exact.named_parameters())), found, needed, strict=True):
        assert ours.device.type == device
        # Float32, 70 steps: sums of some hundred terms.
        limit = 1e-5 * float(expected.abs().max().clamp_min(1))
        assert_close(ours.cpu().double(), expected, atol=limit, name=name)


# Memories, grids, state spaces


def test_fsmn_that_reads_ahead_has_no_state() -> None:
    unit = FSMN(4, 6, lorder=3, memory="bidirectional")
    x = torch.randn(2, 5, 4)
    assert unit(x)[1] is None
    with pytest.raises(ValueError, match="step needs memory='causal'"):
        unit.step(x[:, 0])
    with pytest.raises(ValueError, match="state needs memory='causal'"):
        unit(x, FSMN(4, 6, lorder=3)(x)[1])
    with pytest.raises(ValueError, match="DilatedFSMN does"):
        DilatedFSMN(4, 6).step(x[:, 0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: FSMN(4, 6, lorder=3),
        lambda: FSMN(4, 6, lorder=3, memory="bidirectional"),
        lambda: FSMN(4, 6, lorder=3, memory="dual"),
        lambda: DilatedFSMN(4, 6, lorder=3, depth=3),
    ],
)
def test_memories_keep_shapes_and_see_no_padding(make: Make) -> None:
    unit = made(make)
    for shape in ((1, 1, 4), (1, 5, 4), (3, 1, 4), (0, 5, 4)):
        assert unit(sequences(*shape))[0].shape == shape
    x, lengths = sequences(3, 7, 4), torch.tensor([7, 0, 4])
    x[1], x[2, 4:] = torch.nan, torch.nan
    y, state = unit(x, lengths=lengths)
    alone, last = unit(x[2:, :4])
    assert_close(y[2:, :4], alone, atol=1e-12)
    assert y[1].eq(0).all()
    assert y[2, 4:].eq(0).all()
    assert_close(
        unit(torch.cat([x[0], x[2, :4]])[None], cu_seqlens=torch.tensor([0, 7, 11]))[0][:, 7:], alone, atol=1e-12
    )
    if state is not None:
        assert_close(state.past[:, 2:], last.past, atol=1e-12)
        assert state.past[:, 1].eq(0).all()
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unit.parameters())


def test_memories_reach_as_far_as_they_say() -> None:
    for memory, lags in (("causal", (-2, 0)), ("bidirectional", (-2, 2)), ("dual", (-4, 4))):
        unit = made(lambda memory=memory: FSMN(4, 6, lorder=3, memory=memory))
        x = sequences(1, 15, 4).requires_grad_()
        unit(x)[0][0, 7].sum().backward()
        assert x.grad is not None
        reach = x.grad[0].abs().sum(1).nonzero().flatten() - 7
        assert (int(reach.min()), int(reach.max())) == lags


@pytest.mark.parametrize("split", [0, 1, 2, 5, 9])
def test_complex_fsmn_streams(split: int) -> None:
    unit, x = made(lambda: ComplexFSMN(4, 6, lorder=3)), sequences(2, 9, 4, 2)
    whole, end = unit(x)
    first, state = unit(x[:, :split])
    second, last = unit(x[:, split:], state)
    assert_close(torch.cat([first, second], 1), whole, atol=1e-12)
    y, swapped = unit.step(x[[1, 0], 0], unit(x[:, :0])[1].reorder(torch.tensor([1, 0])))
    assert_close(y, whole[[1, 0], 0], atol=1e-12)
    for ours, expected in zip(last, end, strict=True):
        assert_close(ours, expected, atol=1e-12)
    assert swapped.real1.shape == (2, 2, 2, 4)
    padded = torch.where(torch.arange(9)[:, None, None] < 4, x, torch.nan)
    y, last = unit(padded, lengths=torch.tensor([4, 4]))
    assert_close(y[:, :4], whole[:, :4], atol=1e-12)
    assert_close(last.imag2, unit(x[:, :4])[1].imag2, atol=1e-12)
    packed, _ = unit(x[:1, :7], cu_seqlens=torch.tensor([0, 4, 7]))
    assert_close(packed[:, :4], whole[:1, :4], atol=1e-12)


@pytest.mark.parametrize("selective", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_grids_stream_by_columns_and_see_no_padding(selective: bool, bidirectional: bool) -> None:
    unit = made(lambda: SSM2D(4, 3, selective=selective, bidirectional=bidirectional))
    x = sequences(2, 5, 6, 4)
    whole, end = unit(x)
    state, parts = None, []
    for column in x.unbind(2):
        y, state = unit.step(column, state)
        parts.append(y)
    assert_close(torch.stack(parts, 2), whole, atol=1e-12)
    first, middle = unit(x[:, :, :4])
    second, last = unit(x[:, :, 4:], middle)
    assert_close(torch.cat([first, second], 2), whole, atol=1e-12)
    for found in (state, last):
        for ours, expected in zip(found, end, strict=True):
            assert_close(ours, expected, atol=1e-12)
    x[1, :, 4:] = torch.nan
    y, last = unit(x, lengths=torch.tensor([6, 4]))
    assert_close(y[1, :, :4], whole[1, :, :4], atol=1e-12)
    assert y[1, :, 4:].eq(0).all()
    assert_close(last.h[:, 1], middle.h[:, 1], atol=1e-12)
    y, last = unit(x, middle, lengths=torch.tensor([6, 0]))
    assert_close(last.g[:, 1], middle.g[:, 1], atol=1e-12)


@pytest.mark.parametrize("selective", [True, False])
def test_grid_by_its_definition(selective: bool) -> None:
    unit, x = made(lambda: SSM2D(4, 3, selective=selective)), sequences(1, 3, 5, 4)
    a = [t.detach().expand(1, 3, 5, 3) for t in unit.coefficients(x)]
    assert (a[0].abs() + a[1].abs()).max() <= 1 + 1e-12
    assert (a[2].abs() + a[3].abs()).max() <= 1 + 1e-12
    b1, b2 = (x @ unit.B.T).detach().chunk(2, -1)
    h, g = (torch.zeros(4, 6, 3, dtype=torch.float64) for _ in range(2))
    for v in range(3):
        for t in range(5):
            a1, a2, a3, a4 = (c[0, v, t] for c in a)
            h[v + 1, t + 1] = a1 * h[v + 1, t] + a2 * g[v + 1, t] + b1[0, v, t]
            g[v + 1, t + 1] = a3 * h[v, t + 1] + a4 * g[v, t + 1] + b2[0, v, t]
    expected = torch.cat([h[1:, 1:], g[1:, 1:]], -1) @ unit.C.T + unit.D * x[0]
    assert_close(unit(x)[0][0], expected, atol=1e-12)


@pytest.mark.parametrize("init", ["lin", "real"])
@pytest.mark.parametrize("discretisation", ["zoh", "bilinear"])
def test_state_space_is_a_convolution(init: Any, discretisation: Any) -> None:
    unit, x = made(lambda: S4D(4, 3, init=init, discretisation=discretisation)), sequences(2, 12, 4)
    y, _ = unit(x)
    kernel = torch.fft.rfft(unit.kernel(12), 24, dim=0)
    convolved = torch.fft.irfft(kernel * torch.fft.rfft(x, 24, dim=1), 24, dim=1)[:, :12]
    assert_close(y, convolved + unit.D * x, atol=1e-12)
    # In continuous time a short step is Euler's.
    with torch.no_grad():
        unit.log_dt.fill_(-14.0)
    a, b = unit.discrete()
    decay = -unit.log_decay.exp()
    dt = torch.exp(torch.tensor(-14.0, dtype=torch.float64))
    poles = torch.complex(decay, unit.frequency) if init == "lin" else decay
    assert_close((a - 1) / dt, poles, atol=1e-4)
    assert_close(b / dt, torch.ones_like(b), atol=1e-4)


def test_pgn_rows_stream_and_are_strictly_past() -> None:
    unit = made(lambda: PGN(3, 5, rows=6, window=2, channels=2))
    x = sequences(2, 6, 4, 2, 3).requires_grad_()
    h, end = unit.states(x)
    state, parts = None, []
    for row in x.unbind(1):
        one, state = unit.step(row, state)
        parts.append(one)
    assert_close(torch.stack(parts, 1), h, atol=1e-12)
    first, middle = unit.states(x[:, :1])
    second, last = unit.states(x[:, 1:], None, middle)
    assert_close(torch.cat([first, second], 1), h, atol=1e-12)
    assert_close(last.past, end.past)
    assert unit.states(x[:, :0], None, middle)[0].shape == (2, 0, 4, 2, 5)
    h[0, 4].sum().backward()
    assert x.grad is not None
    assert x.grad[0].abs().sum((1, 2, 3)).gt(0).tolist() == [False, False, True, True, True, False]
    assert unit(x[..., :1], x[..., 1:]).shape == (2, 4, 2, 5)


# Compilers


COMPILED = """
import torch
from recurra.core.nn import FSMN, GRU, IndRNN, LSTM, S4D

more = {"num_layers": 2, "bidirectional": True}
units = [GRU(4, 6, **more), LSTM(4, 6, heads=2, proj_size=4), IndRNN(4, 6, batch_norm="after", steps=9, **more)]
for unit in [*units, FSMN(4, 6), S4D(4, 3)]:
    torch._dynamo.reset()
    x, lengths = torch.randn(3, 5, 4), torch.tensor([5, 0, 3])
    compiled = torch.compile(unit, fullgraph=True, backend="aot_eager")
    expected, last = unit.eval()(x, lengths=lengths)
    y, state = compiled(x, lengths=lengths)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(tuple(state), tuple(last))
    assert type(state) is type(last)
    compiled.train()(x)[0].sum().backward()
    assert all(p.grad is not None for p in unit.parameters())
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    exported = torch.export.export(unit.eval(), (x,), dynamic_shapes={"x": dynamic}).module()
    x = torch.randn(2, 7, 4)
    torch.testing.assert_close(exported(x)[0], unit(x)[0])
    torch.testing.assert_close(torch.vmap(lambda x: unit(x)[0])(x[None]), unit(x)[0][None])
"""


def test_units_compile_as_one_graph_and_export() -> None:
    # Apart from the tests' own checks of shapes, whose decorators no tracer can follow.
    subprocess.run([sys.executable, "-W", "error", "-c", COMPILED], check=True)


# Bad input


@pytest.mark.parametrize(
    ("make", "x", "message"),
    [
        (lambda: GRU(4, 6), (2, 3, 5), "x has shape (2, 3, 5); expected input = 4, the width the unit was made for"),
        (lambda: FSMN(4, 6), (2, 3, 5), "x has shape (2, 3, 5); expected input = 4, the width the unit was made for"),
        (lambda: S4D(4, 6), (2, 3, 5), "x has shape (2, 3, 5); expected input = 4, the width the unit was made for"),
        (lambda: SSM2D(4, 6), (2, 3, 3, 5), "x has shape (2, 3, 3, 5); expected input = 4"),
        (lambda: ComplexFSMN(4, 6), (2, 3, 5, 2), "x has shape (2, 3, 5); expected input = 4"),
        (lambda: PGN(4, 6, rows=2, window=1), (2, 3, 3, 1, 5), "x has shape (2, 3, 3, 1, 5); expected feature = 4"),
        (lambda: PGN(4, 6, rows=2, window=1), (2, 3, 3, 1, 4), "x has 3 rows; expected 2"),
        (lambda: PGN(4, 6, rows=3, window=1), (2, 3, 3, 2, 4), "x has 2 channels; expected 1"),
    ],
)
def test_input_of_another_shape(make: Make, x: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        make()(torch.zeros(x))
    assert "\n" not in str(caught.value)


def test_input_of_another_rank() -> None:
    # With the type checks of the tests on, the annotation refuses it first.
    from recurra.core.nn.recurrent import check_input

    with pytest.raises(ValueError, match=r"^x has shape \(2, 3\); expected \(batch, time, input\)$"):
        check_input(torch.zeros(2, 3), "batch time input", 3)
    with pytest.raises((ValueError, TypeError)):
        GRU(4, 6)(torch.zeros(3, 4))


def test_state_of_another_form() -> None:
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"^state is shapes \[\(1, 3, 6\)\]; expected HiddenState\(h\) of shapes"):
        GRU(4, 6)(x, HiddenState(torch.zeros(1, 3, 6)))
    with pytest.raises(ValueError, match=r"expected CellState\(h, c\) of shapes \[\(1, 2, 3\), \(1, 2, 6\)\]"):
        LSTM(4, 6, proj_size=3)(x, HiddenState(torch.zeros(1, 2, 6)))
    with pytest.raises(ValueError, match="bidirectional: call forward"):
        GRU(4, 6, bidirectional=True).step(x[:, 0])
    with pytest.raises(ValueError, match="lengths go from 1 to 4; expected 0 to 3"):
        GRU(4, 6)(x, lengths=torch.tensor([1, 4]))
    with pytest.raises(ValueError, match="expected it to rise from 0 to 3"):
        GRU(4, 6)(x[:1], cu_seqlens=torch.tensor([0, 2]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GRU(4, 6, heads=4), "heads must divide hidden 6; got 4"),
        (lambda: GRU(4, 0), "hidden must be at least 1; got 0"),
        (lambda: GRU(4, 6, dropout=1.5), "dropout must be from 0 to 1; got 1.5"),
        (lambda: GRU(4, 6, num_layers=0), "num_layers must be at least 1; got 0"),
        (lambda: LSTM(4, 6, proj_size=6), "proj_size must be 0, or below hidden 6 and divided by heads; got 6"),
        (lambda: LSTM(4, 6, bias=False, forget_bias=1.0), "forget_bias needs bias=True"),
        (lambda: DiagGRU(5, 6, heads=2), "heads must divide input 5 and hidden 6; got 2"),
        (lambda: IndRNN(4, 6, long_memory=True), "long_memory needs steps"),
        (lambda: IndRNN(4, 6, steps=0), "steps and mag must be at least 1; got 0 and 5.0"),
        (lambda: FSMN(6, 4, memory="dual"), "input must be divided by 4 where memory is dual; got 6"),
        (lambda: FSMN(4, 4, lorder=0), "lorder must be at least 1; got 0"),
        (lambda: DilatedFSMN(4, 4, depth=0), "lorder and depth must be at least 1; got 20 and 0"),
        (lambda: S4D(4, 4, dt_min=0.0), "dt_min and dt_max must be positive and in order; got 0.0 and 0.1"),
        (lambda: SSM2D(4, 0), "hidden must be at least 1; got 0"),
        (lambda: PGN(4, 4, rows=1, window=0), "window must be at least 1; got 0"),
    ],
)
def test_sizes_that_make_no_unit(make: Make, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        make()


def test_choices_that_do_not_exist() -> None:
    unknown: Any = "other"
    for make in (
        lambda: GRU(4, 6, reset=unknown),
        lambda: MGU(4, 6, reset=unknown),
        lambda: Elman(4, 6, nonlinearity=unknown),
        lambda: IndRNN(4, 6, nonlinearity=unknown),
        lambda: IndRNN(4, 6, batch_norm=unknown),
        lambda: LinearRecurrence(4, 6, decay=unknown),
        lambda: S4D(4, 6, init=unknown),
        lambda: FSMN(4, 6, memory=unknown),
    ):
        with pytest.raises((ValueError, TypeError)):
            make()
