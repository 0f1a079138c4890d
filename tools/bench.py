"""Run by tools/bench: every case first has its results compared, then time and peak memory of its variants measured.

Time is process CPU time, the least of interleaved repeats in one process (other work on the machine disturbs it least);
wall time beside it. Memory is the growth of the resident set at its peak during the first full-size call, in a process
of its own that has run a small case before (imports, compilation). One thread unless OMP_NUM_THREADS says otherwise.
"""

import argparse
import csv
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """Variants of one computation; the first is what the others are compared with.

    `build(small, device)` gives {variant: function that makes the callable to be measured}. A tolerance of None means
    that results are not comparable tensors.
    """

    group: str
    build: Callable[[bool, str], dict[str, Callable[[], Run]]]
    tolerance: float | None = 1e-5
    repeats: int = 5


def reference(run: Run) -> Run:
    """The layer-by-layer definition: gate arithmetic by plain torch, as without our kernels."""
    from recurra.kernels import use_backend

    def plainly() -> Any:
        with use_backend("reference"):
            return run()

    return plainly


def inference(run: Run) -> Run:
    def quietly() -> Any:
        with torch.inference_mode():
            return run()

    return quietly


# --- kernels --------------------------------------------------------------------------------------


def pointwise(cell: str, backward: bool, small: bool, device: str) -> dict[str, Callable[[], Run]]:
    from recurra.kernels import conv_cell_pointwise
    from recurra.kernels.conv_cell_pointwise.reference import GATES

    size = 16 if small else 256
    gi, gh = (torch.randn(1, GATES[cell] * 64, size, size, device=device) for _ in range(2))
    h, u = torch.randn(1, 64, size, size, device=device), None
    if cell == "indrnn":
        gh, u = None, torch.randn(64, device=device)
    leaves = [t.requires_grad_(backward) for t in (gi, gh, h, u) if t is not None]
    d = torch.randn_like(h)

    def run(backend: str) -> Any:
        y = conv_cell_pointwise(cell, gi, gh, h, u=u, backend=backend)
        return torch.cat([g.flatten() for g in torch.autograd.grad(y, leaves, d)]) if backward else y

    fused = "triton" if device == "cuda" else "numba"
    return {name: lambda name=name: partial(run, name) for name in ("reference", fused)}


def winograd(channels: int, dilation: int, small: bool, device: str) -> dict[str, Callable[[], Run]]:
    from recurra.kernels import winograd_conv, winograd_weight
    from recurra.kernels.winograd.reference import direct

    height, width = (16, 16) if small else ((256, 256) if channels == 64 else (218, 170))
    x, kernel = torch.randn(1, height, width, channels), torch.randn(channels, channels, 3, 3) / channels**0.5
    bias, out = torch.randn(channels), torch.empty(1, height, width, channels)
    plain, packed, channels_last = x.movedim(-1, 1).contiguous(), winograd_weight(kernel), kernel.contiguous(
        memory_format=torch.channels_last
    )  # fmt: skip

    def nchw() -> Any:
        return direct(plain.movedim(1, -1), kernel, bias, dilation, "replicate", True)

    options = {"dilation": dilation, "relu": True, "out": out}
    return {
        "torch": lambda: inference(nchw),
        "torch channels-last": lambda: inference(lambda: direct(x, channels_last, bias, dilation, "replicate", True)),
        "winograd": lambda: inference(lambda: winograd_conv(x, packed, bias, **options)),
    }


def thin(small: bool, device: str) -> dict[str, Callable[[], Run]]:
    from recurra.kernels import thin_conv

    size = 16 if small else 256
    x, kernel = torch.randn(1, size, size, 64), torch.randn(2, 3, 3, 64)
    return {
        name: lambda name=name: inference(partial(thin_conv, x, kernel, None, backend=name))
        for name in ("reference", "numba")
    }


# --- models ---------------------------------------------------------------------------------------


def scan(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A four-fold undersampled phantom of 12 coils, scaled as the models are trained."""
    from recurra.mri.data.phantom import phantom_slice

    kspace, maps, _ = phantom_slice(height, width, 12, (0, 0))
    mask = torch.zeros(1, 1, 1, width, dtype=torch.bool)
    mask[..., ::4] = True
    mask[..., width // 2 - width // 24 : width // 2 + width // 24] = True
    kspace, maps = (torch.as_tensor(a)[None].to(torch.complex64) for a in (kspace, maps))
    scale = torch.fft.ifft2(kspace, norm="ortho").abs().max()
    return torch.where(mask, kspace, 0) / scale, maps, mask


def scan_of(name: str, small: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return scan(32, 32) if small else scan(218, 170) if "varnet" in name or "direct" in name else scan(256, 256)


def network(name: str) -> torch.nn.Module:
    from recurra.mri.models import MODELS

    torch.manual_seed(0)
    if name == "recurrentvarnet":
        return MODELS["RecurrentVarNet"](steps=8, hidden=128, layers=4, refine="none").eval()
    if name == "direct rim":
        return MODELS["DirectRIM"]().eval()
    cell = name.split()[-1]
    return MODELS["CIRIM"](cell=cell, cascades=5 if name.startswith("cirim") else 1).eval()


def model(name: str, small: bool, device: str) -> dict[str, Callable[[], Run]]:
    data, plain = scan_of(name, small), network(name)
    variants = {
        "plain": lambda: inference(reference(lambda: plain(*data))),
        "fused gates": lambda: inference(lambda: plain(*data)),
        "prepared": lambda: partial(plain.prepared(), *data),
    }
    if "rim " not in name or "direct" in name:  # no cells, the gates are plain torch
        del variants["fused gates"]
    return variants


def cell_alone(kind: str, small: bool, device: str) -> dict[str, Callable[[], Run]]:
    from recurra.core.nn import ConvGRUCell, ConvIndRNNCell, ConvMGUCell
    from recurra.core.nn.prepared import Cell

    torch.manual_seed(0)
    plain = {"gru": ConvGRUCell, "mgu": ConvMGUCell, "indrnn": ConvIndRNNCell}[kind](64, 64)
    size = 16 if small else 256
    x, h = torch.randn(1, 64, size, size), torch.randn(1, 64, size, size)
    last_x, state = (t.movedim(1, -1).contiguous() for t in (x, h))
    start = state.clone()

    def prepared() -> Run:
        cell = Cell(plain)

        def run() -> torch.Tensor:
            # From the same state each time; a model would go on from the last.
            state.copy_(start)
            return cell(last_x, state).movedim(-1, 1)

        return inference(run)

    return {
        "plain": lambda: inference(reference(lambda: plain(x, h))),
        "fused gates": lambda: inference(lambda: plain(x, h)),
        "prepared": prepared,
    }


def training(name: str, small: bool, device: str) -> dict[str, Callable[[], Run]]:
    data, trained = scan(32, 32) if small else scan(128, 128), network(name).train()

    def step(checkpointing: bool) -> torch.Tensor:
        trained.checkpointing = checkpointing
        trained.zero_grad(set_to_none=True)
        loss = sum(weight * image.abs().mean() for weight, image in trained.estimates(*data))
        loss.backward()
        return torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None])

    return {
        "plain": lambda: reference(partial(step, False)),
        "fused gates": lambda: partial(step, False),
        "checkpointing": lambda: partial(step, True),
    }


def slices(few: int, many: int, small: bool, device: str) -> dict[str, Callable[[], Run]]:
    """Reconstruction of a file of few and of many slices: memory must not grow with them."""
    import h5py
    import numpy as np

    from recurra.mri.models import CIRIM
    from recurra.mri.predict import reconstruct

    folder = Path(tempfile.mkdtemp(prefix="recurra-bench"))
    kspace = scan(64, 64)[0][0].numpy()
    net = CIRIM(cascades=1, conv_filters=(8, 8, 2), recurrent_filters=(8, 8, 0), maps="rss").eval()

    def run(count: int) -> None:
        (result,) = reconstruct(
            net, [folder / f"{count}.h5"], folder / "out", overwrite=True, quiet=True, preview=False
        )
        if result.error:
            raise SystemExit(result.error)

    few, many = (1, 2) if small else (few, many)
    for count in (few, many):
        with h5py.File(folder / f"{count}.h5", "w") as file:
            stored = file.create_dataset("kspace", (count, *kspace.shape), np.complex64, chunks=(1, *kspace.shape))
            for index in range(count):
                stored[index] = kspace
    return {f"{few} slices": lambda: partial(run, few), f"{many} slices": lambda: partial(run, many)}


# --- core -----------------------------------------------------------------------------------------


def fit_overhead(small: bool, device: str) -> dict[str, Callable[[], Run]]:
    """Steps of a tiny model by a bare loop and by `fit`; the difference is what the engine costs."""
    from lightning import LightningDataModule
    from torch.utils.data import DataLoader, TensorDataset

    from recurra.core.checkpoint import Pretrained
    from recurra.core.training import Task, TrainSettings, fit

    class Line(Pretrained):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(20, 1)

    class Fitting(Task):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return torch.nn.functional.mse_loss(self.model.linear(batch[0]), batch[1])

    steps = 20 if small else 2000
    data = TensorDataset(torch.randn(32 * steps, 20), torch.randn(32 * steps, 1))

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(data, batch_size=32)

    def bare() -> None:
        net = Line()
        optimizer = torch.optim.Adam(net.parameters())
        for x, y in DataLoader(data, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(net.linear(x), y).backward()
            optimizer.step()

    def engine() -> None:
        with tempfile.TemporaryDirectory() as out:
            fit(Fitting(Line()), Data(), TrainSettings(epochs=1, batch_size=32), Path(out) / "run", quiet=True)

    return {f"bare loop, {steps} steps": lambda: bare, f"fit, {steps} steps": lambda: engine}


CASES: dict[str, Case] = {
    **{f"{cell} gates": Case("kernels", partial(pointwise, cell, False)) for cell in ("gru", "mgu", "indrnn")},
    **{f"{cell} gates, gradient": Case("kernels", partial(pointwise, cell, True)) for cell in ("gru", "mgu", "indrnn")},
    **{
        f"3x3 convolution, {c} channels, dilation {d}": Case("kernels", partial(winograd, c, d))
        for c in (64, 128)
        for d in (1, 2)
    },
    "3x3 convolution, 64 channels to 2": Case("kernels", thin),
    **{f"cell {kind} 64": Case("mri", partial(cell_alone, kind), repeats=9) for kind in ("gru", "mgu", "indrnn")},
    **{name: Case("mri", partial(model, name)) for name in ("rim indrnn", "rim mgu", "rim gru")},
    **{
        name: Case("mri", partial(model, name), repeats=3) for name in ("cirim indrnn", "recurrentvarnet", "direct rim")
    },
    **{f"train {name}": Case("mri", partial(training, name), 1e-3, 1) for name in ("cirim indrnn", "rim gru")},
    "reconstruct a file": Case("mri", partial(slices, 4, 200), None, 1),
    "fit": Case("core", fit_overhead, None, 3),
}


# --- measuring ------------------------------------------------------------------------------------


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure_memory(name: str, variant: str, device: str) -> float:
    """Peak growth in MB of one call, packing of weights included."""
    case = CASES[name]
    # The small case has other names where they hold sizes: warm up by position.
    position = list(case.build(False, device)).index(variant)
    list(case.build(True, device).values())[position]()()
    make = case.build(False, device)[variant]
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        make()()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    make()()
    return (status("VmHWM") - before) / 1000


def measure_time(name: str, device: str) -> dict[str, Any]:
    """Least CPU and wall seconds of each variant, interleaved; and how far results are from the first variant's."""
    case = CASES[name]
    runs = {variant: make() for variant, make in case.build(False, device).items()}
    first, difference = None, {}
    for variant, run in runs.items():
        result = run()
        if case.tolerance is not None:
            result = result.detach().clone()
            first = result if first is None else first
            difference[variant] = float((result - first).abs().max() / first.abs().max())
    best = {variant: [float("inf")] * 2 for variant in runs}
    for _ in range(case.repeats):
        for variant, run in runs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            best[variant] = [min(pair) for pair in zip(best[variant], spent, strict=True)]
    return {variant: {"cpu": c, "wall": w, "difference": difference.get(variant)} for variant, (c, w) in best.items()}


def child(arguments: list[str], paths: Path | None = None) -> Any:
    """What this file prints in a process of its own, with the sources of another revision first if given."""
    environment = dict(os.environ)
    if paths is not None:
        sources = (paths / "kernels/src", paths / "packages/core/src", paths / "packages/mri/src")
        environment["PYTHONPATH"] = os.pathsep.join(map(str, sources))
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(arguments)} failed")
    return json.loads(done.stdout.splitlines()[-1])


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def machine() -> dict[str, str]:
    model_name = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numba", "triton")}
    return {
        "threads": str(torch.get_num_threads()),
        "processor": f"{model_name}, {os.cpu_count()} cores",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **versions,
        "revision": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else ""),
        "date": datetime.date.today().isoformat(),
    }


def against_base(names: list[str], device: str, base: str) -> None:
    """CPU seconds of every variant here and at another revision, in alternate processes."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", base], cwd=ROOT, capture_output=True)
        if archive.returncode:
            raise SystemExit(f"bench: {base} is no revision of this repository")
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        for name in names:
            best: dict[str, list[float]] = {}
            for _ in range(2):
                for position, paths in enumerate((Path(folder), None)):
                    for variant, row in child(["--time", name, "--device", device], paths).items():
                        pair = best.setdefault(variant, [float("inf")] * 2)
                        pair[position] = min(pair[position], row["cpu"])
            for variant, (there, here) in best.items():
                print(f"{name:34} {variant:20} {base} {there:8.3f} s   here {here:8.3f} s   {there / here:5.2f}x")


def report(names: list[str], device: str) -> None:
    """Prints every case and replaces its rows in docs/bench/GROUP.csv."""
    about, failed = machine(), []
    for name in names:
        case, timed = CASES[name], child(["--time", name, "--device", device])
        rows = []
        for variant, row in timed.items():
            memory = child(["--memory", name, "--variant", variant, "--device", device])
            base = next(iter(timed.values()))
            wrong = case.tolerance is not None and not row["difference"] <= case.tolerance
            failed += (
                [f"{name}: {variant} differs by {row['difference']:.1e} from {next(iter(timed))}"] if wrong else []
            )
            rows.append(
                {"case": name, "variant": variant, "device": device, "cpu_seconds": f"{row['cpu']:.4f}"}
                | {"wall_seconds": f"{row['wall']:.4f}", "speedup": f"{base['cpu'] / row['cpu']:.2f}"}
                | {"peak_mb": f"{memory:.1f}"}
                | {"difference": "" if row["difference"] is None else f"{row['difference']:.1e}"}
                | {"repeats": case.repeats}
                | about
            )
            print(
                "{case:34} {variant:22} {cpu_seconds:>9} s {speedup:>5}x {peak_mb:>8} MB  {difference}".format(
                    **rows[-1]
                ),
                flush=True,
            )
        write(ROOT / "docs" / "bench" / f"{case.group}.csv", name, device, rows)
    if failed:
        raise SystemExit("bench: " + "; ".join(failed))


def write(path: Path, name: str, device: str, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if (row["case"], row["device"]) != (name, device)]
    order = list(CASES)
    rows = sorted([*kept, *rows], key=lambda row: order.index(row["case"]) if row["case"] in order else len(order))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="groups (kernels, mri, core) or parts of names of cases; default all")
    parser.add_argument("--base", metavar="REV", help="compare with another revision instead of writing docs/bench")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="cuda serves the gates alone")
    parser.add_argument("--time", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench: --device cuda needs a CUDA device, none found")
    if options.time:
        print(json.dumps(measure_time(options.time, options.device)))
        return
    if options.memory:
        print(json.dumps(measure_memory(options.memory, options.variant, options.device)))
        return
    wanted = options.names or ["kernels", "mri", "core"]
    # A whole name means that case alone.
    names = [
        name
        for name, case in CASES.items()
        if any(part in (name, case.group) or (part not in CASES and part in name) for part in wanted)
    ]
    names = [name for name in names if options.device == "cpu" or "gates" in name]
    if not names:
        raise SystemExit(f"bench: nothing is called {' or '.join(wanted)}; cases: {', '.join(CASES)}")
    if options.base:
        against_base(names, options.device, options.base)
    else:
        report(names, options.device)


if __name__ == "__main__":
    main()
