"""Choice of a backend: order, reasons in words, and what importing costs."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from recurra.kernels import Backend, Op, conv_cell_pointwise, explain, registry, use_backend


@pytest.fixture
def op() -> Iterator[Op]:
    def backend(name: str, cost: float, limit: int) -> Backend:
        return Backend(
            name, lambda x: None if x < limit else f"{name} ends at {limit}", lambda x: cost, lambda x: (name, x)
        )

    yield Op("test_choice", [backend("slow", 9, 100), backend("fast", 1, 10), backend("middle", 5, 50)])
    del registry._operations["test_choice"]


def test_automatic_choice_takes_the_cheapest_that_can_serve(op):
    assert [op.select(x).name for x in (1, 20, 60)] == ["fast", "middle", "slow"]


def test_argument_beats_context_beats_environment(op, monkeypatch):
    monkeypatch.setenv("RECURRA_BACKEND", "slow")
    assert op.select(1).name == "slow"
    with use_backend("middle"):
        assert op.select(1).name == "middle"
        assert op.select(1, backend="fast").name == "fast"
        with use_backend("slow"):
            assert op.select(1).name == "slow"
        assert op.select(1).name == "middle"
    assert op.select(1).name == "slow"


def test_a_request_concerns_operations_that_have_the_backend(op):
    with use_backend("numba"):
        assert op.select(1).name == "fast"
    with pytest.raises(ValueError, match=r"got 'numba'$"):
        op.select(1, backend="numba")


def test_context_is_local_to_the_thread(op):
    seen = []
    with use_backend("slow"):
        thread = threading.Thread(target=lambda: seen.append(op.select(1).name))
        thread.start()
        thread.join()
    assert seen == ["fast"]


def test_requested_backend_that_cannot_serve_raises_with_the_reason(op):
    with pytest.raises(ValueError, match=r"^backend 'fast' cannot serve test_choice: fast ends at 10$"):
        op.select(20, backend="fast")
    with pytest.raises(ValueError, match=r"^backend of test_choice must be one of slow, fast, middle; got 'cuda'$"):
        op.select(1, backend="cuda")
    with pytest.raises(ValueError, match=r"^no backend of test_choice can serve this call: slow: slow ends at 100"):
        op.select(200)


def test_unknown_backend_is_refused_where_it_is_named():
    with pytest.raises(ValueError, match=r"^backend must be one of .*reference.*; got 'gpu'$"), use_backend("gpu"):
        pass


def test_explain_gives_the_choice_and_every_reason(op, monkeypatch):
    choice = op.explain(20)
    assert (choice.backend, choice.rejected) == (
        "middle",
        {"slow": "expected 9 us against 5 us of middle", "fast": "fast ends at 10"},
    )
    assert str(choice).splitlines()[0] == "test_choice: middle (automatic, expected 5 us)"
    with use_backend("fast"):
        refused = op.explain(20)
        assert refused.backend is None
        assert refused.rejected["fast"] == "fast ends at 10"
        assert refused.rejected["slow"] == "fast was requested by use_backend"
    monkeypatch.setenv("RECURRA_BACKEND", "none such")
    assert op.explain(1).reason == "environment variable RECURRA_BACKEND asks for 'none such', which does not exist"
    assert op.explain(200, backend="slow").backend is None


def test_explain_takes_a_function_a_name_or_an_op(op):
    x = torch.zeros(1, 2, 3, 3)
    u = torch.zeros(2)
    named = explain("conv_cell_pointwise", "indrnn", x, None, x, u=u)
    assert named == explain(conv_cell_pointwise, "indrnn", x, None, x, u=u)
    assert explain(op, 1).backend == "fast"
    assert named.backend is not None
    with pytest.raises(ValueError, match=r"^operation must be one of .*; got 'lstm'$"):
        explain("lstm")


def test_names_are_taken_once():
    with pytest.raises(ValueError, match=r"'conv_cell_pointwise' is registered twice"):
        Op("conv_cell_pointwise", [])


def test_missing_optional_dependencies_are_no_error(monkeypatch):
    monkeypatch.setattr(registry, "installed", lambda module: False)
    x, h = torch.randn(1, 6, 4, 4), torch.randn(1, 2, 4, 4)
    choice = explain("conv_cell_pointwise", "gru", x, x, h)
    assert choice.backend == "reference"
    assert choice.rejected["numba"] == "numba is not installed; pip install 'recurra-kernels[numba]'"
    assert conv_cell_pointwise("gru", x, x, h).shape == h.shape
    with pytest.raises(
        ValueError, match=r"^backend 'triton' cannot serve conv_cell_pointwise: triton is not installed"
    ):
        conv_cell_pointwise("gru", x, x, h, backend="triton")


def test_costs_are_data_for_every_backend_and_cell():
    for package in ("conv_cell_pointwise", "thin_conv", "winograd"):
        table = registry.measured_costs(f"recurra.kernels.{package}")
        assert {"how", "reference", "numba"} <= set(table)


def test_importing_needs_torch_alone_and_no_compiler():
    # How long it takes is measured by `tools/bench import`.
    code = """
import torch, sys
before = set(sys.modules)
import recurra.kernels
loaded = {".".join(name.split(".")[:2]) for name in set(sys.modules) - before}
print(sorted(loaded & {"torch._dynamo", "torch._inductor", "numba", "llvmlite", "triton", "recurra.core"}))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
