"""Kernels compiled for a GPU that is not there; where there is one, Triton's tests are tests of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from visits import visiting

from recurra.kernels.kernel_op import KernelOp

# What is said of a tensor of the CPU, not computed; and what would lay 2^32 values out on the GPU, test by test.
AT_HOME = {
    "test_bad_input.py": None,
    "test_laws_compilers.py": "compiled for CPU tensors",
    "test_laws_offsets.py": "too far",
}


@pytest.hookimpl(tryfirst=True)  # before -m gpu chooses
def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        return
    for item in items:
        # Modules that put their tensors there themselves; what is compiled ahead of time needs no GPU.
        if getattr(item.module, "DEVICE", "") == "cuda" and "ahead_of_time" not in item.fixturenames:
            item.add_marker("gpu")
        if getattr(item, "callspec", None) and item.callspec.params.get("backend") == "triton":
            reason = AT_HOME.get(item.path.name, "")
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
            elif reason is not None:
                item.add_marker("gpu")


@pytest.fixture(autouse=True)
def tensors_visit_the_gpu(request, monkeypatch):
    """Where there is a GPU, and so no interpreter, CPU tensors are computed there where a test asks for triton."""
    if torch.cuda.is_available() and request.path.name not in AT_HOME:
        monkeypatch.setattr(KernelOp, "_call", visiting(KernelOp._call, torch.device("cuda")))


@pytest.fixture(scope="session")
def ahead_of_time(tmp_path_factory):
    """The function cases -> what each kernel needs of a Hopper GPU; `ahead_of_time.py` says what is in either.

    Another script beside that one may stand in for it, with cases of its own.
    """
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_DEFAULT_FP_FUSION": "1", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}

    def run(cases, script="ahead_of_time.py"):
        command = [sys.executable, str(Path(__file__).with_name(script)), "--json"]
        result = subprocess.run(command, input=json.dumps(cases), env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="session", autouse=True)
def interpreter(straight_interpreter):
    """Most tests here run it."""
