"""A worker of tools/gpu: `gpu_work.py about|tests|bench|profile OUT`.

Several may work on a step: an item belongs to the one that claims it first, by a file that can be made once.
"""

import argparse
import gc
import hashlib
import importlib
import json
import os
import platform
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpu_report import LOST_GPU
from pluggy import HookimplMarker

ROOT = Path(__file__).resolve().parent.parent
pytest_hook = HookimplMarker("pytest")
PARTS = ("recurra.kernels", "recurra.core.nn", "recurra.core.checkpoint", "recurra.mri.models")


class Work:
    """One step's items, shared with the other workers through the folder of claims."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.step, self.out, self.device, self.only = options.step, options.out, options.device, options.only
        self.claims, self.number = options.claims, options.number

    def claim(self, item: str) -> bool:
        """Whether it is this worker's, and nobody's before."""
        name = hashlib.sha1(f"{self.step} {item}".encode()).hexdigest()
        try:
            (self.claims / name).open("x").close()
        except FileExistsError:
            return False
        return True

    def tell(self, item: str, state: str, message: str = "", **more: Any) -> None:
        """A line in events.jsonl, in one write: other workers append to it too."""
        event = {"step": self.step, "item": item, "state": state, "message": message[-6000:], "worker": self.number}
        line = json.dumps(event | more) + "\n"
        descriptor = os.open(self.out / "events.jsonl", os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def found(self, items: list[str]) -> None:
        """Tells once what there is to do."""
        if self.claim("what there is"):
            self.tell("", "found", items=items)

    def do(self, item: str, task: Callable[[], Any]) -> None:
        """Does an item, unless another worker has it; whatever it raises is its own failure."""
        if not self.claim(item):
            return
        self.tell(item, "begun")
        begun = time.monotonic()
        try:
            task()
            self.wait()
        except Exception:
            self.tell(item, "failed", traceback.format_exc(), seconds=time.monotonic() - begun)
            self.leave_if_lost()
        else:
            self.tell(item, "passed", seconds=time.monotonic() - begun)

    def wait(self) -> None:
        """Waits for the GPU, whose errors come to light with the next call otherwise."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def leave_if_lost(self) -> None:
        """Ends this process where a fault has made its GPU unusable: a new one can go on."""
        try:
            self.wait()
        except Exception as error:
            print(f"the GPU is lost to this process: {error}", flush=True)
            os._exit(LOST_GPU)


def about(work: Work) -> None:
    """Prints the machine and what is installed."""
    import torch

    works = work.device == "cpu" or torch.cuda.is_available()
    found: dict[str, Any] = {"works": works, "python": platform.python_version(), "torch": torch.__version__}
    import bench

    found |= {name: bench.version(name) for name in ("triton", "numba", "numpy", "pytest")}
    found |= {"revision": bench.revision(), "cores": len(os.sched_getaffinity(0))}
    if works and work.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found["card"] = f"{card.name}, {card.multi_processor_count} multiprocessors, {card.total_memory >> 30} GiB"
        found["cuda"] = f"{torch.version.cuda}, capability {card.major}.{card.minor}"
    found["absent"] = absent = {}
    for part in PARTS:
        try:
            importlib.import_module(part)
        except ImportError as error:
            absent[part] = str(error)
    print(json.dumps(found))


class Reporter:
    """The part of pytest's loop that shares tests among workers and tells what becomes of each."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported; one that needs what is not installed is left out by name."""
        if report.failed and self.work.claim(report.nodeid):
            text = str(report.longrepr)
            absent = re.search(r"ModuleNotFoundError: No module named '([^']*)'", text)
            missing = absent and not absent[1].startswith("recurra")
            self.work.tell(report.nodeid, "skipped" if missing else "failed", absent[0] if missing else text)

    @pytest_hook(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """One of every function first, then their second: what is cut off by the time is a bit of each."""
        turns: Counter[Any] = Counter()
        order = []
        for item in items:
            # Written for large sizes on a GPU alone, then what holds in the interpreter too.
            later = not any(mark.name == "gpu" for mark in getattr(item.obj, "pytestmark", ()))
            order.append((later, turns[item.nodeid.split("[")[0]], len(order)))
            turns[item.nodeid.split("[")[0]] += 1
        items[:] = [items[place] for *_, place in sorted(order)]
        self.work.found([item.nodeid for item in items])

    @pytest_hook(tryfirst=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> bool:
        """Runs a test that no other worker has, and takes down all its fixtures: the next one is not known."""
        from _pytest.runner import runtestprotocol

        if not self.work.claim(item.nodeid):
            return True
        self.work.tell(item.nodeid, "begun")
        reports = runtestprotocol(item, log=False, nextitem=None)
        seconds, worst = sum(r.duration for r in reports), max(reports, key=lambda r: (r.failed, r.skipped))
        why = str(worst.longrepr[2] if worst.skipped and isinstance(worst.longrepr, tuple) else worst.longrepr or "")
        self.work.tell(item.nodeid, worst.outcome, why, seconds=seconds)
        if worst.failed:
            self.work.leave_if_lost()
        return True

    @pytest_hook(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        """A fault of the GPU belongs to the test that made it."""
        yield
        self.work.wait()


def tests(work: Work) -> int:
    """The tests marked gpu, by pytest without the project's settings, some of which name plugins that may be absent."""
    import pytest

    files = [p for p in sorted((ROOT / "tests").glob("*/test_*.py")) if p.parent.name not in ("readme", "install")]
    files = [p for p in files if p.parent.name == "kernels" or "mark.gpu" in p.read_text(encoding="utf-8")]
    chosen = [name for name in work.only if ".py" in name] or list(map(str, files))
    root = Path(chosen[0]).parent if work.only else ROOT
    given = ["-c", os.devnull, f"--rootdir={root}", "-omarkers=gpu\nparity\nnetwork", "-m", "gpu", "-q"]
    given += ["--import-mode=importlib", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    status = pytest.main([*given, *chosen], plugins=[Reporter(work)])
    # What failed was told; anything but that means that pytest itself could not work.
    return 0 if status in (0, 1, 5) else int(status)


def bench(work: Work) -> None:
    """The cases of tools/bench that run on this device, into tables like those of docs/bench."""
    import bench
    from bench_cases import CASES, goals

    small, about = work.device == "cpu", bench.machine(work.device)
    names = [name for name in work.only if ".py" not in name] or [n for n, c in CASES.items() if "cuda" in c.devices]

    def task(name: str) -> None:
        rows, wrong = bench.measure(name, work.device, about, small=small)
        bench.write(work.out / f"{CASES[name].group}.csv", name, work.device, rows)
        if (work.out / "core.csv").exists():
            text = goals.every(goals.measured(work.out / "core.csv"))
            (work.out / "goals.txt").write_text("\n".join(text), encoding="utf-8")
        if wrong:
            raise AssertionError("; ".join(wrong))

    work.found(names)
    for name in names:
        work.do(name, lambda name=name: task(name))


def misses(work: Work) -> dict[tuple[str, str], int]:
    """(case, variant) of what is short of its goal, or slower than what it replaces: bytes that it must move."""
    from bench_cases import goals

    found: dict[tuple[str, str], int] = {}
    for table in ("core.csv", "kernels.csv"):
        rows = goals.measured(work.out / table) if (work.out / table).exists() else {}
        for goal in goals.GOALS:
            for figure in goals.figures(goal, rows):
                if figure.part < 1 and goal.device == "cuda":
                    found[figure.measure.case, figure.measure.ours] = figure.measure.bytes
        for (_, case, variant), row in rows.items():
            if variant in ("recurra", "triton") and float(row["speedup"]) < 1:
                found.setdefault((case, variant), 0)
    return found


def profile(work: Work) -> None:
    """Where the time of each miss goes: by kernel, with what each needs of a processor, and the bytes it moves."""
    from bench_cases import goals

    chosen = misses(work)
    work.found([f"{case}: {variant}" for case, variant in chosen])
    rows = goals.measured(work.out / "core.csv") if (work.out / "core.csv").exists() else {}

    def task(case: str, variant: str, size: int) -> None:
        lines = profiled(case, variant, work.device, size, goals.copied(rows))
        with (work.out / "profile.txt").open("a", encoding="utf-8") as file:
            file.write("\n".join([*lines, "", ""]))

    for (case, variant), size in chosen.items():
        work.do(f"{case}: {variant}", lambda one=(case, variant, size): task(*one))


CALLS = 5


def profiled(case: str, variant: str, device: str, size: int, copy: float) -> list[str]:
    """Lines of a profile of some calls after the first."""
    import torch
    from bench_cases import CASES
    from torch.profiler import ProfilerActivity

    gpu = device == "cuda"
    run = CASES[case].build(not gpu, device)[variant]()
    wait = torch.cuda.synchronize if gpu else lambda: None
    for _ in range(3):
        run()
    wait()
    begun = time.perf_counter()
    for _ in range(CALLS):
        run()
    called = time.perf_counter()
    wait()
    wall, call = (time.perf_counter() - begun) / CALLS, (called - begun) / CALLS
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as trace:
        for _ in range(CALLS):
            run()
        wait()
    spent = "self_device_time_total" if gpu else "self_cpu_time_total"
    events = sorted((e for e in trace.key_averages() if getattr(e, spent) > 0), key=lambda e: -getattr(e, spent))
    busy = sum(getattr(e, spent) for e in events) / CALLS / 1e6
    lines = [f"{case}: {variant}: {wall * 1e6:.0f} us a call, {call * 1e6:.0f} of them until it is given to the GPU"]
    lines += [f"  {len(events)} kernels, {sum(e.count for e in events) / CALLS:g} launches, busy {busy * 1e6:.0f} us"]
    if size and busy:
        shares = (
            f"{size / busy / copy:.0%} while busy, {size / wall / copy:.0%} in all, of a copy's {copy / 1e12:.2f} TB/s"
        )
        lines += [f"  {size / 1e6:.0f} MB: {shares}"]
    for e in events[:8]:
        lines += [f"  {getattr(e, spent) / CALLS:9.1f} us {e.count / CALLS:6g} x {e.key[:70]}{needs(e.key)}"]
    return lines


def needs(name: str) -> str:
    """What compiled kernels of this name that have run need of a processor, as triton counted it."""
    found = set()
    for kernel in gc.get_objects():
        if type(kernel).__name__ == "CompiledKernel" and getattr(kernel, "name", None) == name:
            found.add((getattr(kernel, "n_regs", 0), getattr(kernel, "n_spills", 0), kernel.metadata.shared))
    return "".join(f"; {regs} registers, {spills} spilled, {shared} B shared" for regs, spills, shared in sorted(found))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=["about", "tests", "bench", "profile"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--claims", type=Path)
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[])
    work = Work(parser.parse_args())
    if work.step == "about":
        about(work)
    elif work.step == "tests":
        return tests(work)
    elif work.step == "bench":
        bench(work)
    else:
        profile(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
