"""What must be quick to start is, and imports no torch."""

import resource
import subprocess
import sys

import pytest

DOMAINS = ("forecast", "mri")
QUICK = [
    "recurra.core",
    "recurra.core.verbs",
    *(f"recurra.{name}{part}" for name in DOMAINS for part in ("", ".verbs")),
]


@pytest.mark.parametrize("module", QUICK)
def test_import_needs_no_torch(module: str) -> None:
    heavy = "{'torch', 'lightning', 'monai', 'matplotlib', 'h5py', 'numpy', 'pandas', 'scipy', 'statsmodels', 'typer'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_import_of_kernels_needs_nothing_but_torch() -> None:
    heavy = "{'recurra.core', 'lightning', 'numba', 'triton', 'jaxtyping'}"
    code = f"import sys, recurra.kernels; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "code",
    [
        "import tempfile, torch\n"
        "from recurra.core.checkpoint import Pretrained, read_container, read_foreign\n"
        "class Toy(Pretrained):\n"
        "    def __init__(self) -> None: super().__init__()\n"
        "folder = tempfile.mkdtemp()\n"
        "Toy().save_pretrained(folder); Toy.from_pretrained(folder)",
        "from recurra.mri import load_checkpoint\nload_checkpoint('rim-small').prepared()",
        "import tempfile\n"
        "from recurra.forecast import ARNet, load_checkpoint\n"
        "folder = tempfile.mkdtemp()\n"
        "ARNet(window=2).save_pretrained(folder); load_checkpoint(folder)",
    ],
    ids=["core", "mri", "forecast"],
)
def test_loading_a_checkpoint_needs_no_command_line_and_no_engine(code: str) -> None:
    heavy = "{'typer', 'click', 'rich', 'lightning', 'jsonargparse', 'monai', 'matplotlib', 'onnx', 'onnxruntime'}"
    code = f"{code}\nimport sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("module", ["recurra.kernels", "recurra.core", "recurra.forecast", "recurra.mri"])
def test_public_names_resolve(module: str) -> None:
    code = f"import {module} as m; assert m.__all__; [getattr(m, name) for name in m.__all__]"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize(
    ("domain", "arguments"),
    [
        *((domain, verb) for domain in DOMAINS for verb in ([], ["train"], ["evaluate"])),
        ("forecast", ["forecast"]),
        ("forecast", ["backtest"]),
        ("mri", ["reconstruct"]),
    ],
)
def test_help_is_quick(domain: str, arguments: list[str]) -> None:
    command = [sys.executable, "-m", f"recurra.{domain}", *arguments, "--help"]
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Time on the processor, and the best of several: other processes share the machine.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if seconds[-1] < 0.5:
            break
    assert "Usage" in done.stdout
    assert min(seconds) < 0.5, seconds
