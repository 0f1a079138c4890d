"""Run by tools/bench: every case first has its results compared, then time and peak memory of its variants measured.

Time is process CPU time, the least of interleaved repeats in one process (other work on the machine disturbs it least);
wall time beside it. Memory is the growth of the resident set at its peak during the first full-size call, in a process
of its own that has run a small case before (imports, compilation). One thread unless OMP_NUM_THREADS says otherwise.
On a GPU wall time counts, memory is what torch's allocator gives out, and one process serves all cases.
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
from pathlib import Path
from typing import Any

import torch
from bench_cases import CASES, Case, Run, goals

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "docs" / "bench"
# Of a second, as written: the shortest calls take some ten microseconds.
DIGITS = 6
# What counts: a GPU works while the processor waits.
CLOCK = {"cpu": "cpu", "cuda": "wall"}


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def measure_memory(name: str, variant: str, device: str, small: bool = False) -> float:
    """Peak growth in MB of one call, packing of weights included."""
    case = CASES[name]
    make = case.build(small, device)[variant]
    if device == "cuda":
        return gpu_memory(make)
    # The small case has other names where they hold sizes: warm up by position.
    position = list(case.build(small, device)).index(variant)
    list(case.build(True, device).values())[position]()()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    make()()
    return (status("VmHWM") - before) / 1000


def gpu_memory(make: Callable[[], Run]) -> float:
    """As `measure_memory`, of what torch's allocator gave out."""
    # Compiles, and makes what libraries keep from the first call on.
    make()()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    make()()
    return float(torch.cuda.max_memory_allocated() - before) / 1e6


def measure_time(name: str, device: str, small: bool = False, quick: bool = False) -> dict[str, Any]:
    """Least CPU and wall seconds of each variant, interleaved; and how far results are from the first variant's."""
    case = CASES[name]
    runs = {variant: make() for variant, make in case.build(small, device).items()}
    # The first call of each, in which kernels are compiled.
    differences = compare(case, runs)
    calls = dict.fromkeys(runs, 1)
    # One call of a GPU is mostly the wait for it.
    least = case.least or (0.02 if device == "cuda" else 0.0)
    if least:
        calls = {variant: max(1, round(least / clocked(run, 1, case, device)[1])) for variant, run in runs.items()}
    best = {variant: [float("inf")] * 2 for variant in runs}
    for _ in range(min(case.repeats, 2) if quick else case.repeats):
        for variant, run in runs.items():
            spent = clocked(run, calls[variant], case, device)
            best[variant] = [min(pair) for pair in zip(best[variant], spent, strict=True)]
    return {variant: {"cpu": c, "wall": w, "difference": differences.get(variant)} for variant, (c, w) in best.items()}


def compare(case: Case, runs: dict[str, Run]) -> dict[str, float]:
    """Largest difference of each variant's tensors from the first variant's, relative to the greatest value of each."""
    first, differences = None, {}
    for variant, run in runs.items():
        result = run()
        if case.tolerance is None or variant in case.unlike:
            continue
        tensors = [t.detach().clone() for t in ([result] if isinstance(result, torch.Tensor) else result)]
        first = tensors if first is None else first
        pairs = zip(tensors, first, strict=True)
        differences[variant] = max(float((t - f).abs().max() / f.abs().max().clamp(min=1e-30)) for t, f in pairs)
    return differences


def clocked(run: Run, calls: int, case: Case, device: str) -> tuple[float, float]:
    """Processor and wall seconds of a call."""
    if case.own_clock:
        spent: tuple[float, float] = run()
        return spent
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        run()
    wait()
    return (time.process_time() - cpu) / calls, (time.perf_counter() - wall) / calls


def child(arguments: list[str], paths: Path | None = None) -> Any:
    """What this file prints in a process of its own, with the sources of another revision first if given."""
    environment = dict(os.environ)
    if paths is not None:
        # A domain that a revision has not got yet is that of this one.
        parts = [paths / "kernels/src", *sorted(paths.glob("packages/*/src"))]
        environment["PYTHONPATH"] = os.pathsep.join(map(str, parts))
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(arguments)} failed")
    return json.loads(done.stdout.splitlines()[-1])


def git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # a copy of the sources on a machine without git
        return ""


def revision() -> str:
    """The commit, with a + where files differ from it; RECURRA_REVISION where the sources are a copy."""
    commit = git("rev-parse", "--short", "HEAD")
    if not commit:
        return os.environ.get("RECURRA_REVISION", "unknown")
    return commit + ("+" if git("status", "--porcelain", "-uno") else "")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def machine(device: str) -> dict[str, str]:
    model_name = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    versions = {name: version(name) for name in ("torch", "numba", "triton")}
    return {
        "threads": str(torch.get_num_threads()),
        "processor": torch.cuda.get_device_name() if device == "cuda" else f"{model_name}, {os.cpu_count()} cores",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **versions,
        "revision": revision(),
        "date": datetime.date.today().isoformat(),
    }


def against_base(names: list[str], device: str, base: str) -> None:
    """Seconds of every variant here and at another revision, in alternate processes."""
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
                        pair[position] = min(pair[position], row[CLOCK[device]])
            for variant, (there, here) in best.items():
                print(f"{name:34} {variant:20} {base} {there:8.3f} s   here {here:8.3f} s   {there / here:5.2f}x")


def measure(
    name: str, device: str, about: dict[str, str], *, small: bool = False, quick: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a case for its table, and what its results say against them.

    On a CPU each measurement has a process of its own; on a GPU, whose memory is counted by torch, this one serves all.
    """
    case, apart = CASES[name], device == "cpu" and not small
    if apart:
        timed = child(["--time", name, "--device", device, *["--quick"] * quick])
    else:
        timed = measure_time(name, device, small, quick)
    clock, base = CLOCK[device], next(iter(timed.values()))
    rows, wrong = [], []
    for variant, row in timed.items():
        if apart:
            memory = child(["--memory", name, "--variant", variant, "--device", device])
        else:
            memory = measure_memory(name, variant, device, small)
        if row["difference"] is not None and not row["difference"] <= case.tolerance:
            wrong.append(f"{name}: {variant} differs by {row['difference']:.1e} from {next(iter(timed))}")
        rows.append(
            {"case": name, "variant": variant, "device": device, "cpu_seconds": f"{row['cpu']:.{DIGITS}f}"}
            | {"wall_seconds": f"{row['wall']:.{DIGITS}f}", "speedup": f"{base[clock] / row[clock]:.2f}"}
            | {"peak_mb": f"{memory:.1f}"}
            | {"difference": "" if row["difference"] is None else f"{row['difference']:.1e}"}
            | {"repeats": min(case.repeats, 2) if quick else case.repeats}
            | about
        )
    return rows, wrong


def in_words(row: dict[str, Any]) -> str:
    seconds = row[f"{CLOCK[row['device']]}_seconds"]
    return "{case:34} {variant:30} {seconds:>9} s {speedup:>6}x {peak_mb:>8} MB  {difference}".format(
        **row, seconds=seconds
    )


def report(names: list[str], device: str, quick: bool) -> None:
    """Prints every case and replaces its rows in docs/bench/GROUP.csv."""
    about, failed = machine(device), []
    for name in names:
        rows, wrong = measure(name, device, about, quick=quick)
        failed += wrong
        print(*map(in_words, rows), sep="\n", flush=True)
        write(BENCH / f"{CASES[name].group}.csv", name, device, rows)
        goals.write()
    if failed:
        raise SystemExit("bench: " + "; ".join(failed))


def merge(tables: list[Path]) -> None:
    """Puts rows measured on another machine into docs/bench in place of those of the same cases and device."""
    for table in tables:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for name, device in dict.fromkeys((row["case"], row["device"]) for row in rows):
            if name not in CASES:
                raise SystemExit(f"bench: {table} has a case {name!r} that is not among those of tools/bench_cases")
            mine = [row for row in rows if (row["case"], row["device"]) == (name, device)]
            write(BENCH / f"{CASES[name].group}.csv", name, device, mine)
    goals.write()


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
    parser.add_argument(
        "names", nargs="*", help="groups (kernels, mri, core, forecast) or parts of names of cases; default all"
    )
    parser.add_argument("--base", metavar="REV", help="compare with another revision instead of writing docs/bench")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where; not every case runs on both")
    parser.add_argument("--goals", action="store_true", help="only write docs/speed.md anew from docs/bench/core.csv")
    parser.add_argument("--quick", action="store_true", help="two repeats of every measurement")
    parser.add_argument(
        "--merge", metavar="TABLE", nargs="+", type=Path, help="only take over the rows of tables that tools/gpu wrote"
    )
    parser.add_argument("--time", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.goals:
        goals.write()
        return
    if options.merge:
        merge(options.merge)
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench: --device cuda needs a CUDA device, none found")
    if options.time:
        print(json.dumps(measure_time(options.time, options.device, quick=options.quick)))
        return
    if options.memory:
        print(json.dumps(measure_memory(options.memory, options.variant, options.device)))
        return
    wanted = options.names or ["kernels", "mri", "core", "forecast"]
    # A whole name means that case alone.
    names = [
        name
        for name, case in CASES.items()
        if any(part in (name, case.group) or (part not in CASES and part in name) for part in wanted)
    ]
    names = [name for name in names if options.device in CASES[name].devices]
    if not names:
        raise SystemExit(f"bench: nothing is called {' or '.join(wanted)}; cases: {', '.join(CASES)}")
    if options.base:
        against_base(names, options.device, options.base)
    else:
        report(names, options.device, options.quick)


if __name__ == "__main__":
    main()
