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
from pathlib import Path
from typing import Any

import torch
from bench_cases import CASES, Case, Run, goals

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "docs" / "bench"
# Of a second, as written: the shortest calls take some ten microseconds.
DIGITS = 6


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
    differences = compare(case, runs)
    calls = dict.fromkeys(runs, 1)
    if case.least:
        calls = {variant: max(1, round(case.least / clocked(run, 1, case, device)[1])) for variant, run in runs.items()}
    best = {variant: [float("inf")] * 2 for variant in runs}
    for _ in range(case.repeats):
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
        sources = (paths / "kernels/src", paths / "packages/core/src", paths / "packages/mri/src")
        environment["PYTHONPATH"] = os.pathsep.join(map(str, sources))
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(arguments)} failed")
    return json.loads(done.stdout.splitlines()[-1])


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def machine(device: str) -> dict[str, str]:
    model_name = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numba", "triton")}
    return {
        "threads": str(torch.get_num_threads()),
        "processor": torch.cuda.get_device_name() if device == "cuda" else f"{model_name}, {os.cpu_count()} cores",
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
    about, failed = machine(device), []
    for name in names:
        case, timed = CASES[name], child(["--time", name, "--device", device])
        rows = []
        for variant, row in timed.items():
            memory = child(["--memory", name, "--variant", variant, "--device", device])
            # A GPU works while the processor waits.
            clock, base = ("wall" if device == "cuda" else "cpu"), next(iter(timed.values()))
            wrong = row["difference"] is not None and not row["difference"] <= case.tolerance
            failed += (
                [f"{name}: {variant} differs by {row['difference']:.1e} from {next(iter(timed))}"] if wrong else []
            )
            rows.append(
                {"case": name, "variant": variant, "device": device, "cpu_seconds": f"{row['cpu']:.{DIGITS}f}"}
                | {"wall_seconds": f"{row['wall']:.{DIGITS}f}", "speedup": f"{base[clock] / row[clock]:.2f}"}
                | {"peak_mb": f"{memory:.1f}"}
                | {"difference": "" if row["difference"] is None else f"{row['difference']:.1e}"}
                | {"repeats": case.repeats}
                | about
            )
            print(
                "{case:34} {variant:30} {seconds:>9} s {speedup:>6}x {peak_mb:>8} MB  {difference}".format(
                    **rows[-1], seconds=rows[-1][f"{clock}_seconds"]
                ),
                flush=True,
            )
        write(BENCH / f"{case.group}.csv", name, device, rows)
        goals.write()
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
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where; not every case runs on both")
    parser.add_argument("--goals", action="store_true", help="only write docs/speed.md anew from docs/bench/core.csv")
    parser.add_argument("--time", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.goals:
        goals.write()
        return
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
    names = [name for name in names if options.device in CASES[name].devices]
    if not names:
        raise SystemExit(f"bench: nothing is called {' or '.join(wanted)}; cases: {', '.join(CASES)}")
    if options.base:
        against_base(names, options.device, options.base)
    else:
        report(names, options.device)


if __name__ == "__main__":
    main()
