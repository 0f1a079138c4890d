"""Run by tools/gpu: the tests marked gpu, the benchmarks of a GPU, a profile of what misses its goal.

Each step is done by workers (gpu_work.py) that take one item after the other and write down what became of it. A worker
that hangs or dies loses that item alone: another one goes on with the rest. What is known stands in OUT at any time:
report.txt, events.jsonl (a line an item and state), core.csv and kernels.csv as in docs/bench, profile.csv, log/.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_report import LOST_GPU, Event, write_report

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
# Workers of the tests: most of their time goes into compiling kernels, each on one core.
MOST = 14
# A worker that starts imports torch; one that dies again and again is not started again.
START, LIVES = 120.0, 20


@dataclass(frozen=True)
class Step:
    """What is done, by how many workers, when it must end as a part of all seconds, and the longest item's seconds."""

    name: str
    workers: int
    end: float
    patience: float


@dataclass
class Worker:
    """A process that works on a step; `seen` is when it last told something."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path
    seen: float
    events: list[Event] = field(default_factory=list)

    @property
    def item(self) -> str | None:
        """What it is working on."""
        return self.events[-1]["item"] if self.events and self.events[-1]["state"] == "begun" else None


def gpus() -> int:
    """How many the driver offers, asked without torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


class Run:
    """One call of this tool: its folder, and what its workers told so far."""

    def __init__(self, options: argparse.Namespace, claims: Path) -> None:
        self.options, self.claims, self.out = options, claims, options.out
        self.begun, self.events, self.read, self.started = time.monotonic(), list[Event](), 0, 0
        self.about: dict[str, Any] = {}
        (self.out / "log").mkdir(parents=True, exist_ok=True)
        (self.out / "events.jsonl").touch()

    def command(self, step: str, number: int) -> list[str]:
        given = ["--device", self.options.device, "--claims", str(self.claims), "--number", str(number)]
        given += ["--only", *self.options.only] if self.options.only else []
        return [sys.executable, str(TOOLS / "gpu_work.py"), step, str(self.out), *given]

    def environment(self) -> dict[str, str]:
        """Sources on the path; the kernels compiled, not interpreted, wherever there is a GPU."""
        kept = {name: v for name, v in os.environ.items() if name not in ("TRITON_INTERPRET", "RECURRA_BACKEND")}
        folders = [ROOT / "kernels/src", ROOT / "packages/core/src", ROOT / "packages/mri/src", ROOT / "tests/kernels"]
        before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        kept["PYTHONPATH"] = os.pathsep.join([*map(str, folders), *before])
        # Matrix products that are the same in every run; one thread a worker.
        kept |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        return kept | ({"TRITON_INTERPRET": "1"} if self.options.device == "cpu" else {})

    def look_around(self) -> str | None:
        """Fills `about` with the machine; a line why nothing can be done."""
        done = subprocess.run(
            self.command("about", 0), env=self.environment(), capture_output=True, text=True, timeout=START
        )
        if done.returncode:
            return f"torch cannot be asked about the GPU: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}"
        self.about = json.loads(done.stdout.splitlines()[-1])
        return None if self.about["works"] else f"torch {self.about['torch']} finds no GPU"

    def start(self, step: Step) -> Worker:
        self.started += 1
        log = self.out / "log" / f"{step.name}-{self.started}.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(
                self.command(step.name, self.started), env=self.environment(), stdout=file, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, cwd=ROOT, start_new_session=True,
            )  # fmt: skip
        return Worker(self.started, process, log, time.monotonic())

    def tell(self, step: str, item: str, state: str, message: str = "", worker: int = 0) -> None:
        """Writes an event in the name of a worker that cannot."""
        event = {"step": step, "item": item, "state": state, "message": message, "worker": worker}
        with (self.out / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def listen(self, workers: list[Worker]) -> None:
        """Takes in what was written since the last time, and writes the report anew if there is any."""
        with (self.out / "events.jsonl").open("rb") as file:
            file.seek(self.read)
            lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        self.read += sum(map(len, lines))
        by_number = {worker.number: worker for worker in workers}
        for event in map(json.loads, lines):
            self.events.append(event)
            if worker := by_number.get(event["worker"]):
                worker.events.append(event)
                worker.seen = time.monotonic()
        if lines:
            write_report(self.out, self.about, self.events, time.monotonic() - self.begun)

    def step(self, step: Step) -> None:
        """Keeps its workers working until nothing is left or the time is up."""
        end = self.begun + step.end * self.options.seconds
        workers, lives = [self.start(step) for _ in range(step.workers)], LIVES
        while workers and time.monotonic() < end:
            time.sleep(0.2)
            self.listen(workers)
            for worker in list(workers):
                lost = self.lost(step, worker)
                if lost is None:
                    continue
                workers.remove(worker)
                if lost and (worker.item or worker.events):
                    lives -= 1
                    workers += [self.start(step)] if lives > 0 else []
        for worker in workers:
            stop(worker)
            self.listen(workers)
            # What nobody came to is known from what was found.
            if worker.item or not worker.events:
                reached = f"was under way when the step's time was up; {tail(worker.log)}"
                self.tell(step.name, worker.item or step.name, "unfinished", reached, worker.number)
        self.listen([])

    def lost(self, step: Step, worker: Worker) -> bool | None:
        """None while a worker works, False when it has done its part, True when it hung or died, which is told."""
        status = worker.process.poll()
        if status is None:
            limit = step.patience if worker.item else START
            if time.monotonic() - worker.seen < limit:
                return None
            stop(worker)
            why = f"took more than {limit:.0f} s and was stopped"
        else:
            self.listen([worker])
            why = f"ended the process with status {status}" if worker.item else f"no work: status {status}"
        if status == 0:
            return False
        if status != LOST_GPU or worker.item:
            self.tell(step.name, worker.item or step.name, "failed", f"{why}; {tail(worker.log)}", worker.number)
        return True


def stop(worker: Worker) -> None:
    worker.process.kill()
    worker.process.wait()


def tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "it wrote: " + "\n".join(lines[-15:]) if lines else "it wrote nothing"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/gpu", description="Tests, measures and profiles what needs a GPU.")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the report and the tables, empty or new")
    parser.add_argument("--seconds", type=float, default=465, help="for all steps together; default 465")
    # For the test of this tool, which has no GPU: Triton's interpreter, few cases, at small sizes.
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--patience", type=float, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        parser.error(f"{options.out} is there and not an empty folder; give another one")
    return options


def main() -> int:
    options = arguments()
    if options.device == "cuda" and not gpus():
        print("gpu: no GPU here: the driver offers none", file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory() as claims:
        run = Run(options, Path(claims))
        if reason := run.look_around():
            print(f"gpu: no GPU here: {reason}", file=sys.stderr)
            return 3
        most = max(1, min(MOST, len(os.sched_getaffinity(0)) - 1))
        for step in (Step("tests", most, 0.62, 150), Step("bench", 1, 0.9, 75), Step("profile", 1, 1.0, 40)):
            print(f"{step.name} ...", flush=True)
            run.step(Step(step.name, step.workers, step.end, options.patience or step.patience))
        green = write_report(options.out, run.about, run.events, time.monotonic() - run.begun)
    print((options.out / "report.txt").read_text(encoding="utf-8"))
    return 0 if green else 1


if __name__ == "__main__":
    sys.exit(main())
