"""Every wrong call of an operation over time is answered by one sentence: what was given, what is expected."""

import pytest
import torch

from recurra.kernels import elementwise_scan, gated_scan, linear_scan, memory_conv, registry, ssm2d_scan

BATCH, STEPS, HEADS, WIDTH = 3, 5, 2, 4
FUNCTIONS = (linear_scan, elementwise_scan, gated_scan, memory_conv, ssm2d_scan)


def f(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(*shape, dtype=dtype)


def linear(**changed):
    given = {"a": f(WIDTH), "b": f(BATCH, STEPS, WIDTH)} | changed
    return linear_scan(given.pop("a"), given.pop("b"), **given)


def elementwise(**changed):
    given = {"cell": "diag_lstm_cifg", "wx": f(BATCH, STEPS, 3, WIDTH), "params": f(5, WIDTH)} | changed
    return elementwise_scan(given.pop("cell"), given.pop("wx"), given.pop("params"), **given)


def gated(**changed):
    given = {"cell": "lstm", "wx": f(BATCH, STEPS, 4, HEADS, WIDTH), "r": f(4, HEADS, WIDTH, WIDTH)} | changed
    return gated_scan(given.pop("cell"), given.pop("wx"), given.pop("r"), **given)


def memory(**changed):
    given = {"x": f(BATCH, STEPS, WIDTH), "weight": f(WIDTH, 1, 3), "left": 2, "right": 0} | changed
    return memory_conv(given.pop("x"), given.pop("weight"), **given)


def ssm2d(**changed):
    given = {name: f(WIDTH) for name in ("a1", "a2", "a3", "a4")}
    given |= {name: f(BATCH, 6, STEPS, WIDTH) for name in ("b1", "b2")} | changed
    return ssm2d_scan(*[given.pop(name) for name in ("a1", "a2", "a3", "a4", "b1", "b2")], **given)


C, D, I = torch.complex64, torch.float64, torch.int64
h, heads = f(BATCH, WIDTH), f(BATCH, HEADS, WIDTH)

WRONG = [
    # rank and shape of the sequence
    (linear, {"b": f(5)}, "b has shape (5,); expected (batch, time, *width)"),
    (
        elementwise,
        {"wx": f(3, 5, 4)},
        "wx has shape (3, 5, 4); expected (batch, time, 3, width) for diag_lstm_cifg",
    ),
    (
        elementwise,
        {"cell": "indrnn_relu", "params": f(4)},
        "wx has shape (3, 5, 3, 4); expected (batch, time, width) for indrnn_relu",
    ),
    (gated, {"wx": f(3, 5, 4, 4)}, "wx has shape (3, 5, 4, 4); lstm expects (batch, time, 4 gates, heads, width)"),
    (
        gated,
        {"cell": "gru"},
        "wx has shape (3, 5, 4, 2, 4); gru expects (batch, time, 3 gates, heads, width)",
    ),
    (memory, {"x": f(5, 4)}, "x has shape (5, 4) of torch.float32; expected (batch, time, channel), real floating"),
    (memory, {"x": []}, "x has no buffers; expected (batch, time, channel), real floating"),
    (
        memory,
        {"x": [f(3, 5, 4), f(3, 6, 4)]},
        "buffer 1 of x has shape (3, 6, 4); expected (3, 5, 'channel') as buffer 0",
    ),
    (
        ssm2d,
        {"b1": f(3, 5, 4)},
        "b1 has shape (3, 5, 4) of torch.float32; expected (batch, row, column, width), real floating",
    ),
    (ssm2d, {"b2": f(3, 6, 5, 1)}, "b2 has shape (3, 6, 5, 1); expected (3, 6, 5, 4), that of b1"),
    # weights that do not fit it
    (linear, {"a": f(3)}, "a has shape (3,); expected one that broadcasts to b's (3, 5, 4)"),
    (elementwise, {"params": f(3, 4)}, "params has shape (3, 4); expected (5, 4) for diag_lstm_cifg"),
    (
        gated,
        {"r": f(4, 1, WIDTH, WIDTH)},
        "r has shape (4, 1, 4, 4); expected (4, 2, 4, 4): gates, heads, width and old width of wx",
    ),
    (gated, {"bias": f(4, 1, WIDTH)}, "bias has shape (4, 1, 4); lstm expects (4, 2, 4)"),
    (
        gated,
        {"projection": f(HEADS, 3, 5)},
        "projection has shape (2, 3, 5); expected (2, projected, 4)",
    ),
    (
        gated,
        {"projection": f(HEADS, 3, WIDTH)},
        "r has shape (4, 2, 4, 4); expected (4, 2, 4, 3): gates, heads, width and old width of wx",
    ),
    (
        memory,
        {"weight": f(4, 1, 4)},
        "weight has shape (4, 1, 4); expected (output, channels a group, 3): left+right+1 taps",
    ),
    (
        memory,
        {"weight": f(4, 3, 3)},
        "weight has shape (4, 3, 3); expected (output, channels a group, tap) where channels a group divides the 4 "
        "channels of x, and the number of groups the outputs",
    ),
    (ssm2d, {"a3": f(3)}, "a3 has shape (3,); expected what broadcasts to b1's (3, 6, 5, 4)"),
    # a state of another shape
    (linear, {"h0": f(3, 1)}, "h0 has shape (3, 1); expected (3, 4): batch and width of b"),
    (elementwise, {"state": (h,)}, "state has 1 tensors; expected (h, c,) for diag_lstm_cifg"),
    (elementwise, {"state": (h, h[:2])}, "state c has shape (2, 4); expected (3, 4)"),
    (gated, {"state": (heads,)}, "state of lstm is (h, c); got 1 tensors"),
    (
        gated,
        {"state": (heads, heads[:, :1])},
        "state c has shape (3, 1, 4); expected (3, 2, 4): batch, heads, width",
    ),
    (
        memory,
        {"past": f(3, 3, 4)},
        "past has shape (3, 3, 4); expected (3, 2, 4): batch, left * dilation, all channels of x",
    ),
    (ssm2d, {"left": (f(3, 6, 4),)}, "left has 1 entries; expected the pair (h, g)"),
    (ssm2d, {"top": (f(3, 5, 4), f(3, 6, 4))}, "g of top has shape (3, 6, 4); expected (3, 5, 4), by b1's shape"),
    # mixed dtypes
    (linear, {"h0": f(3, 4, dtype=D)}, "h0 is torch.float64 on cpu; expected torch.float32 on cpu"),
    (linear, {"a": f(4, dtype=torch.bfloat16)}, "a is torch.bfloat16 on cpu; expected torch.float32 on cpu"),
    (elementwise, {"params": f(5, 4, dtype=D)}, "params is torch.float64 on cpu; expected torch.float32 on cpu"),
    (elementwise, {"state": (h, h.double())}, "state c is torch.float64 on cpu; expected torch.float32 on cpu"),
    (
        gated,
        {"wx": f(3, 5, 4, 2, 4, dtype=torch.float16), "r": f(4, 2, 4, 4, dtype=torch.bfloat16)},
        "r is torch.bfloat16 on cpu; expected torch.float16 or torch.float32 on cpu",
    ),
    (gated, {"bias": f(4, 2, 4, dtype=D)}, "bias is torch.float64 on cpu; expected torch.float32 on cpu"),
    (gated, {"state": (heads.double(), heads)}, "state h is torch.float64 on cpu; expected torch.float32 on cpu"),
    (memory, {"weight": f(4, 1, 3, dtype=D)}, "weight is torch.float64 on cpu; expected torch.float32 on cpu"),
    (memory, {"past": f(3, 2, 4, dtype=D)}, "past is torch.float64 on cpu; expected torch.float32 on cpu"),
    (ssm2d, {"a2": f(4, dtype=D)}, "a2 is torch.float64 on cpu; expected torch.float32 on cpu"),
    (
        ssm2d,
        {"left": (f(3, 6, 4), f(3, 6, 4, dtype=D))},
        "g of left is torch.float64 on cpu; expected torch.float32 on cpu",
    ),
    # devices
    (linear, {"a": f(4).to("meta")}, "a is torch.float32 on meta; expected torch.float32 on cpu"),
    # integers, and complex numbers where there are none
    (linear, {"b": f(3, 5, 4, dtype=I)}, "b is torch.int64; expected a real or complex floating point dtype"),
    (
        elementwise,
        {"wx": f(3, 5, 3, 4, dtype=C)},
        "wx is torch.complex64; expected one of torch.float64, torch.float32, torch.bfloat16, torch.float16",
    ),
    (gated, {"wx": f(3, 5, 4, 2, 4, dtype=C)}, "wx is torch.complex64; expected a real floating point dtype"),
    (gated, {"r": f(4, 2, 4, 4, dtype=C)}, "r is torch.complex64 on cpu; expected torch.float32 on cpu"),
    (
        memory,
        {"x": f(3, 5, 4, dtype=C)},
        "x has shape (3, 5, 4) of torch.complex64; expected (batch, time, channel), real floating",
    ),
    (
        ssm2d,
        {"b1": f(3, 6, 5, 4, dtype=C)},
        "b1 has shape (3, 6, 5, 4) of torch.complex64; expected (batch, row, column, width), real floating",
    ),
    # options
    (
        elementwise,
        {"cell": "gru"},
        "cell must be one of indrnn_relu, indrnn_tanh, indrnn_linear, diag_gru, diag_lstm_cifg; got 'gru'",
    ),
    (
        gated,
        {"cell": "rnn"},
        "cell must be one of elman_tanh, elman_relu, gru, gru_before, mgu, mgu_after, lstm, slstm; got 'rnn'",
    ),
    (gated, {"save": "all"}, "save must be one of gates, recompute; got 'all'"),
    (
        gated,
        {"cell": "slstm", "projection": f(HEADS, 3, WIDTH)},
        "projection is for lstm; got it with slstm: leave it out",
    ),
    (memory, {"left": -1}, "left is -1; expected an integer from 0 on"),
    (memory, {"dilation": 0}, "dilation is 0; expected an integer from 1 on"),
]


def told(call, changed) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        call(**changed)
    return str(caught.value)


@pytest.mark.parametrize(("call", "changed", "message"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_one_sentence(call, changed, message):
    assert told(call, changed) == message


@pytest.mark.parametrize("call", [linear, elementwise, gated, memory])
@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1, 6, 2], "lengths go from 1 to 6; expected 0 to 5, the number of steps"),
        ([-1, 5, 2], "lengths go from -1 to 5; expected 0 to 5, the number of steps"),
        ([1, 2], "lengths has shape (2,) of torch.int64; expected (3,) of torch.int64"),
        ([1.0, 2.0, 3.0], "lengths has shape (3,) of torch.float32; expected (3,) of torch.int64"),
    ],
)
def test_lengths_that_do_not_fit(call, lengths, message):
    assert told(call, {"lengths": torch.tensor(lengths)}) == message


@pytest.mark.parametrize("call", [linear, elementwise, gated])
def test_borders_that_do_not_fit(call):
    message = "reset has shape (3, 4) of torch.bool; expected (3, 5) of torch.bool"
    assert told(call, {"reset": torch.zeros(3, 4, dtype=torch.bool)}) == message
    message = "reset has shape (3, 5) of torch.float32; expected (3, 5) of torch.bool"
    assert told(call, {"reset": torch.zeros(3, 5)}) == message


@pytest.mark.parametrize("call", [linear, elementwise, gated])
def test_lengths_and_borders_elsewhere(call):
    lengths, reset = torch.ones(3, dtype=torch.int64), torch.zeros(3, 5, dtype=torch.bool)
    assert told(call, {"lengths": lengths.to("meta")}) == "lengths is on meta; expected it on cpu, with the sequence"
    assert told(call, {"reset": reset.to("meta")}) == "reset is on meta; expected it on cpu, with the sequence"


def test_complex_numbers_of_16_bit(recwarn):
    half = torch.ones(3, 5, 4, dtype=torch.complex32)
    assert told(linear, {"b": half}) == "b is torch.complex32; expected a real or complex floating point dtype"


CALLS = dict(zip(FUNCTIONS, (linear, elementwise, gated, memory, ssm2d), strict=True))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_backend_there_is_not(function):
    op = registry._operations[function.__name__]
    message = f"backend of {op.name} must be one of {', '.join(op.backends)}; got 'cuda'"
    assert told(CALLS[function], {"backend": "cuda"}) == message


def having(*names):
    """Functions and those of the backends that they have; which those are is asserted in test_laws.py."""
    return [(f, name) for f in FUNCTIONS for name in names if name in registry._operations[f.__name__].backends]


@pytest.mark.parametrize(("function", "missing"), having("numba", "triton"))
def test_a_backend_whose_extra_is_not_installed(function, missing, monkeypatch):
    monkeypatch.setattr(registry, "installed", lambda module: module != missing)
    message = f"backend '{missing}' cannot serve {function.__name__}: {missing} is not installed; "
    assert told(CALLS[function], {"backend": missing}) == message + f"pip install 'recurra-kernels[{missing}]'"
    CALLS[function]()


@pytest.mark.parametrize(("function", "backend"), having("triton"))
def test_a_backend_asked_for_where_it_cannot_serve(function, backend, monkeypatch):
    monkeypatch.setattr(registry, "installed", lambda module: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = "triton serves CUDA tensors; these are on cpu (TRITON_INTERPRET=1 runs its interpreter, slowly)"
    assert told(CALLS[function], {"backend": backend}) == f"backend 'triton' cannot serve {function.__name__}: {reason}"
