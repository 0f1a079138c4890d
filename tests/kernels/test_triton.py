"""The CUDA kernels where there is no GPU: in Triton's interpreter, and compiled for one ahead of time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiling ahead of time needs TRITON_INTERPRET unset", allow_module_level=True)

CASES = Path(__file__).with_name("interpreted_triton.py")
POINTERS = {
    "forward_kernel": ["gi", "gh", "h", "out"],
    "backward_kernel": ["d", "gi", "gh", "h", "dgi", "dgh", "dh"],
}


def test_kernels_in_the_interpreter():
    # A process of its own: triton reads the variable when it is imported.
    environment = os.environ | {"TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    assert re.search(r"\d+ passed", result.stdout)


@pytest.mark.parametrize("element", ["fp32", "bf16"])
@pytest.mark.parametrize("name", POINTERS)
def test_no_register_spills_on_hopper(name, element, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton import language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from recurra.kernels.conv_cell_pointwise import triton as kernels

    inspector = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    constants = ("CELL", "HIDDEN", "LAST", "WIDE", "BLOCK")
    signature = dict.fromkeys(POINTERS[name], f"*{element}")
    signature |= {"total": "i64", "inner": "i64", "period": "i64"} | dict.fromkeys(constants, "constexpr")
    for cell in range(5):
        values = dict(zip(constants, (cell, cell != 2, True, tl.float32, kernels.BLOCK), strict=True))
        source = ASTSource(getattr(kernels, name), signature, values)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernels.WARPS})
        binary = tmp_path / f"{cell}.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run([inspector, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
        found = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
        assert found["STACK"] == found["LOCAL"] == 0
        assert found["REG"] <= 168
        assert found["SHARED"] == 0


@pytest.mark.gpu
@pytest.mark.parametrize("cell", ["gru", "mgu", "indrnn"])
def test_on_a_gpu(cell):
    from recurra.kernels import conv_cell_pointwise

    gates = {"gru": 3, "mgu": 2, "indrnn": 1}[cell]
    x, h = torch.randn(2, gates * 16, 33, 31, device="cuda"), torch.randn(2, 16, 33, 31, device="cuda")
    gh, u = (None, torch.randn(16, device="cuda")) if cell == "indrnn" else (torch.randn_like(x), None)
    y = conv_cell_pointwise(cell, x, gh, h, u=u, backend="triton")
    exact = conv_cell_pointwise(cell, x, gh, h, u=u, backend="reference")
    torch.testing.assert_close(y, exact, atol=1e-5, rtol=1e-5)
