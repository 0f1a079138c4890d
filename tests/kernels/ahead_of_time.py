"""Compiles Triton kernels for Hopper without a GPU, and tells what each needs of it.

Run in a process of its own, since triton reads TRITON_INTERPRET when it is imported: `conftest.py` has it as the
fixture `ahead_of_time`. By hand, for a table of one's own:

    env -u TRITON_INTERPRET TRITON_CACHE_DIR=/tmp/cache python tests/kernels/ahead_of_time.py < cases.json

stdin: a list of cases {"module", "function", "signature": {argument: "*bf16" | "i64" | ... | "constexpr"},
"constants": {argument: value}, "num_warps", "aligned": [arguments that are multiples of 16]}. A constant "tl.float32"
stands for that dtype. Pointers are taken as aligned, as torch's are.
stdout: for every case {"registers", "stack", "local", "shared" (bytes), "wgmma", "mma" (instructions)}.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def compiled(case: dict[str, Any]) -> dict[str, int]:
    """Registers, memory and matrix instructions of one kernel on sm_90."""
    import triton
    from triton import language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(case["module"]), case["function"])
    given = case["signature"] | dict.fromkeys(case["constants"], "constexpr")
    missing = [name for name in function.arg_names if name not in given]
    assert not missing, f"{case['function']} also takes {', '.join(missing)}"
    unknown = [name for name in given if name not in function.arg_names]
    assert not unknown, f"{case['function']} does not take {', '.join(unknown)}"
    signature = {name: given[name] for name in function.arg_names}
    constants = {
        name: getattr(tl, value[3:]) if isinstance(value, str) and value.startswith("tl.") else value
        for name, value in case["constants"].items()
    }
    aligned = [name for name, kind in signature.items() if kind.startswith("*")] + case.get("aligned", [])
    attributes = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(function, signature, constants, attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": case["num_warps"]})
    inspector = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([inspector, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    text = kernel.asm["ptx"]
    return {
        "registers": found["REG"], "stack": found["STACK"], "local": found["LOCAL"],
        # Asked for at launch, so not in the binary.
        "shared": kernel.metadata.shared,
        "wgmma": text.count("wgmma.mma_async"), "mma": text.count("mma.sync"),
    }  # fmt: skip


if __name__ == "__main__":
    json.dump([compiled(case) for case in json.load(sys.stdin)], sys.stdout)
