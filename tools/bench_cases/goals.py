"""The goals for speed, and the page docs/speed.md that holds them against docs/bench/core.csv."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from bench_cases import gated, scans

DOCS = Path(__file__).resolve().parents[2] / "docs"
# Bytes a second that an H200 copies: the measure where no copy was timed beside the cases.
COPY = 4.3e12


@dataclass(frozen=True)
class Measure:
    """A case that counts for a goal.

    Attributes:
        case: its name.
        goal: the ratio of the rival's time to ours; where `bytes` are given, the share of the copy's speed; 0 if none
            is set.
        rival: the variant it is compared with.
        bytes: what must pass through memory, where speed is measured in bytes a second.
        seconds: the goal is an absolute time instead.
        ours: our variant.
    """

    case: str
    goal: float = 0.0
    rival: str = ""
    bytes: int = 0
    seconds: float = 0.0
    ours: str = "recurra"


@dataclass(frozen=True)
class Goal:
    """One row of the table; `why` explains a miss, from a profile, and is shown only where one was measured."""

    what: str
    against: str
    measures: tuple[Measure, ...]
    device: str = "cpu"
    why: str = ""


def gated_goal(what: str, kind: str, text: str, shapes: tuple[tuple[int, int, int], ...], goal: float) -> Goal:
    rival = gated.TORCH[kind]
    return Goal(text, rival, tuple(Measure(gated.named(kind, what, s), goal, rival) for s in shapes))


def medium_training() -> Goal:
    rival = gated.TORCH["GRU"]
    return Goal(
        "GRU training step, B·H = 256 to 2048",
        rival,
        tuple(
            Measure(gated.named("GRU", "training", s), 1.7 if s[0] * s[2] == 2048 else 2.0, rival) for s in gated.MEDIUM
        ),
    )


def scan_goal(what: str, names: dict[str, float], rival: str, against: str, why: str = "") -> Goal:
    return Goal(what, against, tuple(Measure(name, goal, rival) for name, goal in names.items()), why=why)


def bandwidth(what: str, kind: str, shape: tuple[int, ...], forward: int, both: int) -> Goal:
    """70 % of the copy's speed; `forward` and `both` are float32 values moved for each value of one tensor."""
    size = "x".join(map(str, shape))
    values = 4 * math.prod(shape)
    measures = (
        Measure(f"{kind} forward, {size}", 0.7, bytes=forward * values),
        Measure(f"{kind} forward and backward, {size}", 0.7, bytes=both * values),
    )
    return Goal(what, "bytes at the speed of a copy", measures, "cuda")


PLANES = ["x".join(map(str, s)) for s in scans.PLANE]
DIRECTIONS = ("forward", "forward and backward")
GPU_LSTM = "lstm 12x64 heads, bfloat16, "

GOALS = [
    gated_goal("training", "GRU", "GRU training step, B·H ≤ 128, T = 1000", gated.SMALL, 10),
    medium_training(),
    gated_goal("inference", "GRU", "GRU inference, B·H = 256 to 2048", gated.MEDIUM, 1.3),
    gated_goal("training", "GRU", "GRU training step, larger", gated.LARGE, 0.95),
    gated_goal("inference", "GRU", "GRU inference, larger", gated.LARGE, 0.95),
    scan_goal(
        "IndRNN, forward and backward",
        {"indrnn forward and backward, 1x1000x64": 100, "indrnn forward and backward, 16x1000x512": 3},
        "python loop",
        "Python loop with `unbind`",
        "at 1x1000x64 the two kernels take 45 of 270 µs; the rest is calling them and autograd.",
    ),
    scan_goal(
        "linear scan, forward and backward",
        {"linear forward and backward, 16x1024x128": 8},
        "python loop",
        "Python loop with `unbind`",
        "66 MB pass through memory that no cache holds; where calls follow each other and memory is at hand, it takes "
        "3.5 ms, after other work that returned it to the system 6.",
    ),
    scan_goal(
        "2-D scan, V = 21, T = 96 to 720, N = 16",
        {f"plane {d}, {size}": 300 for d in DIRECTIONS for size in PLANES},
        "python double loop",
        "Python double loop",
        "forward at T = 96 the kernel takes 16 of 110 µs; the rest is the call: checks, choice, conversion to arrays.",
    ),
    scan_goal(
        "2-D scan, V = 21, T = 96 to 720, N = 16",
        {f"plane {d}, {size}": 5 for d in DIRECTIONS for size in PLANES},
        "row loop",
        "row loop with vectorised steps",
    ),
    scan_goal(
        "FSMN memory, 39 taps, 256 channels, 4000 frames",
        {"fsmn 39 taps forward, 1x4000x256": 10, "fsmn 39 taps forward and backward, 1x4000x256": 3},
        "torch.nn.functional.conv1d",
        "depth-wise `conv1d` in (B, C, L) with its transposes",
    ),
    Goal(
        "import of `recurra.kernels`",
        "0.15 s beyond torch",
        (Measure("import", seconds=0.15, ours="recurra.kernels after torch"),),
    ),
    Goal(
        "LSTM, B = 16, T = 1024, 12 heads of 64, bfloat16",
        "torch loop",
        tuple(Measure(GPU_LSTM + what, 100, "torch loop") for what in ("inference", "training")),
        "cuda",
    ),
    Goal(
        "the same",
        "0.7 ms forward, 2 ms with the backward pass",
        (Measure(GPU_LSTM + "inference", seconds=0.7e-3), Measure(GPU_LSTM + "training", seconds=2e-3)),
        "cuda",
    ),
    Goal(
        "the same",
        "`torch.nn.LSTM` of the same width",
        tuple(Measure(GPU_LSTM + what, rival="torch.nn.LSTM of the same width") for what in ("inference", "training")),
        "cuda",
    ),
    # Values read and written for each value of one tensor: forward wx, y; backward dy, y, dwx.
    bandwidth("IndRNN", "indrnn", scans.INDRNN_GPU, 2, 5),
    # Forward a, b, h; backward dh, a, h, da, db.
    bandwidth("linear scan", "linear", scans.LINEAR_GPU, 3, 8),
    # Forward b1, b2, h, g; backward dh, dg, h, g, db1, db2.
    bandwidth("2-D scan", "plane", scans.PLANE_GPU, 4, 10),
]


Rows = dict[tuple[str, str, str], dict[str, str]]


def measured(path: Path) -> Rows:
    """Rows of a table of benchmarks by (device, case, variant)."""
    with path.open(newline="") as file:
        return {(row["device"], row["case"], row["variant"]): row for row in csv.DictReader(file)}


@dataclass(frozen=True)
class Figure:
    """A measure as it came out: seconds of ours, and a factor, or a share of the copy's speed, or nothing more."""

    measure: Measure
    spent: float
    reached: float

    def __str__(self) -> str:
        if self.measure.seconds:
            return duration(self.spent)
        return f"{self.reached:.0%}" if self.measure.bytes else f"{self.reached:.3g}x"

    @property
    def part(self) -> float:
        """The figure divided by its goal: from 1 on the goal is met."""
        if self.measure.seconds:
            return self.measure.seconds / self.spent
        return self.reached / self.measure.goal if self.measure.goal else math.inf


def figures(goal: Goal, rows: Rows) -> list[Figure]:
    """Those of a goal's measures that were taken."""
    found, copy = [], copied(rows)
    for measure in goal.measures:
        clock = "wall_seconds" if goal.device == "cuda" or measure.seconds else "cpu_seconds"
        taken = [
            float(row[clock])
            for variant in (measure.ours, *([measure.rival] if measure.rival else []))
            if (row := rows.get((goal.device, measure.case, variant)))
        ]
        if len(taken) == 1 + bool(measure.rival):
            reached = measure.bytes / taken[0] / copy if measure.bytes else taken[-1] / taken[0]
            found.append(Figure(measure, taken[0], reached))
    return found


def copied(rows: Rows) -> float:
    """Bytes a second that the GPU of these rows copies, read and written both counted."""
    row = rows.get(("cuda", scans.COPY, "torch"))
    return 2 * scans.COPIED / float(row["wall_seconds"]) if row else COPY


def wanted(measure: Measure) -> str:
    if measure.seconds:
        return duration(measure.seconds)
    if not measure.goal:
        return "none set"
    return f"{measure.goal:.0%}" if measure.bytes else f"{measure.goal:g}x"


def duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def summary(goal: Goal, rows: Rows) -> str:
    """From the size worst in terms of the goal to the best; misses and absent sizes counted."""
    found = sorted(figures(goal, rows), key=lambda figure: (figure.part, figure.reached))
    if not found:
        return ""
    text = str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
    missed, absent = sum(figure.part < 1 for figure in found), len(goal.measures) - len(found)
    if any(figure.part < math.inf for figure in found):
        few = f"**missed** by {missed} of {len(found)}"
        text += ", " + ("met" if not missed else "**missed**" if missed == len(found) else few)
    return text + (f"; {absent} not measured" if absent else "")


def page(path: Path = DOCS / "bench" / "core.csv") -> str:
    """The text of docs/speed.md."""
    rows = measured(path)
    card = next((row["processor"] for (device, _, _), row in rows.items() if device == "cuda"), "GPU")
    lines = [HEAD, f"| what | against | goal | CPU, one thread | {card} |", "| --- | --- | --- | --- | --- |"]
    for goal in GOALS:
        goals = " and ".join(dict.fromkeys(wanted(m) for m in goal.measures))
        cells = (summary(goal, rows), "") if goal.device == "cpu" else ("", summary(goal, rows))
        lines.append("| " + " | ".join((goal.what, goal.against, goals, *cells)) + " |")
    missed = [g for g in GOALS if g.why and "missed" in summary(g, rows)]
    if missed:
        lines += ["", "## Misses", "", *(f"- {g.what}, against {g.against}: {g.why}" for g in missed)]
    lines += ["", "## Every size", "", *every(rows)]
    machines = {f"- {r['device']}: {r['processor']}, {r['instructions']}, torch {r['torch']}" for r in rows.values()}
    return "\n".join([*lines, "", "## Measured on", "", *sorted(machines), ""])


def every(rows: Rows) -> list[str]:
    """A table with one line a case and rival that was measured."""
    lines = []
    for goal in GOALS:
        for figure in figures(goal, rows):
            verdict = "" if figure.part == math.inf else "met" if figure.part >= 1 else "**missed**"
            against, ours = figure.measure.rival or goal.against, duration(figure.spent)
            cells = (figure.measure.case, against, ours, str(figure), wanted(figure.measure), verdict)
            lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return ["Nothing was measured yet."]
    return ["| case | against | ours | factor or share | goal | |", "| --- | --- | --- | --- | --- | --- |", *lines]


HEAD = """# Speed

Written by `tools/bench core`, which checks every result before it takes a time; `tools/bench --goals` writes the page
anew from `docs/bench/core.csv`. On a CPU the figures are processor seconds of one thread, the least of interleaved
repeats in one process; on a GPU wall seconds. A factor is the other's time divided by ours. Where several sizes stand
behind a row, the worst and the best are given; sizes are batch x time x width. A GPU's bytes a second are held against
those of a copy on the same GPU. An empty column was not measured: `tools/gpu OUT` on a machine with a GPU, and
`tools/bench --merge OUT/core.csv OUT/kernels.csv` where the repository is, fill it.
"""


def write() -> None:
    (DOCS / "speed.md").write_text(page(), encoding="utf-8")
