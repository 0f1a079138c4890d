"""Which backend serves a call of every operation over time, and how `explain` says why."""

import re
from types import SimpleNamespace

import pytest
import torch
from law_cases import CASES, TOLERANCE, TYPICAL, assert_near, exactly, run, weights_of

from recurra.kernels import explain, registry, use_backend

ABSENT = {name: f"{name} is not installed; pip install 'recurra-kernels[{name}]'" for name in ("numba", "triton")}
of_every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
of_every_operation = pytest.mark.parametrize("case", TYPICAL, ids=lambda case: case.function.__name__)


@pytest.fixture(autouse=True)
def nothing_requested(monkeypatch):
    monkeypatch.delenv(registry.VARIABLE, raising=False)


def explained(case, tensors, **more):
    positional, named = case.arguments(tensors)
    return explain(case.function, *positional, **named, **more)


def taken(case, tensors, monkeypatch):
    """Name of the backend that a call takes."""
    names = []
    with monkeypatch.context() as patch:
        select = type(case.op).select

        def noted(*arguments, **named):
            names.append(select(*arguments, **named).name)
            return case.op.backends[names[-1]]

        patch.setattr(type(case.op), "select", noted)
        case.call(tensors)
    return names[0]


@of_every_case
@pytest.mark.parametrize("sizes", [(1, 2, 3), (2, 70, 33)], ids=str)
def test_a_call_takes_what_explain_says_and_is_right(case, sizes, monkeypatch):
    tensors = case.tensors(*sizes, torch.float32)
    choice = explained(case, tensors)
    assert choice.backend == taken(case, tensors, monkeypatch)
    assert choice.backend != "triton", "the interpreter is no way to compute"
    got = run(case, tensors, None)
    assert_near(got, exactly(case, tensors, weights_of(got[0])), TOLERANCE[torch.float32])


@of_every_case
def test_there_is_a_sentence_for_every_backend(case):
    choice = explained(case, case.tensors(2, 3, 4, torch.float32))
    head, *others = str(choice).splitlines()
    assert re.fullmatch(rf"{case.op.name}: {choice.backend} \(automatic, expected \d+ us\)", head)
    assert set(choice.rejected) == set(case.op.backends) - {choice.backend}
    assert others == [f"  not {name}: {why}" for name, why in choice.rejected.items()]
    for name, why in choice.rejected.items():
        slower = re.fullmatch(rf"expected (\d+) us against (\d+) us of {choice.backend}", why)
        if slower:
            assert int(slower[1]) >= int(slower[2])
        else:
            assert why == case.op.backends[name].supports(*case.prepared(case.tensors(2, 3, 4, torch.float32)))


@of_every_operation
def test_without_the_extras_the_definition_or_plain_torch_serves(case, monkeypatch):
    monkeypatch.setattr(registry, "installed", lambda module: False)
    choice = explained(case, case.tensors(2, 3, 4, torch.float32))
    assert choice.backend not in ("numba", "triton")
    assert {name: choice.rejected[name] for name in ABSENT if name in case.op.backends} == {
        name: why for name, why in ABSENT.items() if name in case.op.backends
    }


@of_every_operation
def test_on_a_gpu_triton_serves(case, monkeypatch):
    monkeypatch.setattr(registry, "installed", lambda module: True)
    hopper = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: hopper)
    options, inputs = case.prepared(case.tensors(2, 100, 4, torch.float32))
    # No device is needed to ask: what is asked is where the tensors say they are.
    inputs = case.op.definition.inputs(*(None if t is None else _Claiming(t) for t in inputs))
    reasons = {name: backend.supports(options, inputs) for name, backend in case.op.backends.items()}
    assert reasons["triton"] is None
    assert reasons["numba"] == "numba serves CPU tensors; these are on cuda:0"
    costs = {name: case.op.backends[name].cost(options, inputs) for name, why in reasons.items() if why is None}
    assert min(costs, key=costs.__getitem__) == "triton"


class _Claiming:
    """A tensor that says it is on a GPU."""

    def __init__(self, tensor):
        self.tensor = tensor

    @property
    def device(self):
        return torch.device("cuda:0")

    def __getattr__(self, name):
        return getattr(self.tensor, name)


@of_every_operation
def test_argument_beats_context_beats_environment(case, monkeypatch):
    if not registry.installed("numba"):
        pytest.skip("numba is not installed")
    tensors = case.tensors(2, 3, 4, torch.float32)
    monkeypatch.setenv(registry.VARIABLE, "reference")
    assert taken(case, tensors, monkeypatch) == "reference"
    assert explained(case, tensors).reason == "environment variable RECURRA_BACKEND"
    with use_backend("numba"):
        assert taken(case, tensors, monkeypatch) == "numba"
        assert explained(case, tensors).reason == "use_backend"
        assert explained(case, tensors).rejected["reference"] == "numba was requested by use_backend"
        assert explained(case, tensors, backend="reference").reason == "argument"
        with use_backend("reference"):
            assert taken(case, tensors, monkeypatch) == "reference"
    assert taken(case, tensors, monkeypatch) == "reference"


@of_every_operation
def test_a_request_for_what_only_others_have_concerns_them(case, monkeypatch):
    tensors = case.tensors(2, 3, 4, torch.float32)
    chosen = taken(case, tensors, monkeypatch)
    everywhere = {name for op in registry._operations.values() for name in op.backends}
    strange = sorted(everywhere - set(case.op.backends))
    assert strange
    for name in strange:
        with use_backend(name):
            assert taken(case, tensors, monkeypatch) == chosen
            assert explained(case, tensors).reason.startswith("automatic")
        monkeypatch.setenv(registry.VARIABLE, name)
        assert taken(case, tensors, monkeypatch) == chosen
        with pytest.raises(ValueError, match=rf"^backend of {case.op.name} must be one of .*; got '{name}'$"):
            case.call(tensors, backend=name)


@of_every_operation
def test_a_request_for_what_nobody_has_is_refused(case, monkeypatch):
    tensors = case.tensors(2, 3, 4, torch.float32)
    monkeypatch.setenv(registry.VARIABLE, "none such")
    with pytest.raises(ValueError, match=rf"^backend of {case.op.name} must be one of .*; got 'none such'$"):
        case.call(tensors)
    choice = explained(case, tensors)
    assert choice.backend is None
    assert choice.reason == "environment variable RECURRA_BACKEND asks for 'none such', which does not exist"
