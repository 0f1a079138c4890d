"""What tools/gpu found, in words."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

Event = dict[str, Any]
# What a worker exits with that told of its last item, after which the GPU answered nothing more.
LOST_GPU = 70
# Of each failure, so that a hundred of them can be read.
LINES = 25
ENDS = ("passed", "failed", "skipped", "unfinished")


def outcomes(events: list[Event]) -> dict[tuple[str, str], Event]:
    """The last state of every item by step and name; "not run" where it was found and nobody came to it."""
    found: dict[tuple[str, str], Event] = {}
    for event in events:
        if event["state"] == "found":
            for item in event["items"]:
                found.setdefault((event["step"], item), event | {"item": item, "state": "not run", "message": ""})
        elif event["state"] in ENDS:
            before = found.get((event["step"], event["item"]))
            # A worker that dies after its item failed does not make it better.
            if before is None or before["state"] != "failed":
                found[event["step"], event["item"]] = event
    return found


def write_report(out: Path, about: dict[str, Any], events: list[Event], seconds: float) -> bool:
    """Writes report.txt; whether everything that was found was done and is right."""
    found = outcomes(events)
    wrong = {key: e for key, e in found.items() if e["state"] in ("failed", "unfinished", "not run")}
    counts = {step: Counter(e["state"] for (s, _), e in found.items() if s == step) for step, _ in found}
    lines = ["GREEN" if found and not wrong else "NOT GREEN", f"{seconds:.0f} s", ""]
    lines += [f"{name}: {value}" for name, value in about.items() if name not in ("works", "absent")]
    lines += [f"skipped: {part} ({why})" for part, why in about.get("absent", {}).items()]
    lines += ["", *(f"{step}: {', '.join(f'{n} {state}' for state, n in c.items())}" for step, c in counts.items())]
    lines += [*table(out / "core.csv"), *table(out / "kernels.csv"), *goals(out), *profile(out)]
    for state in ("failed", "unfinished"):
        chosen = [e for e in wrong.values() if e["state"] == state]
        lines += ["", f"== {state}: {len(chosen)}"] if chosen else []
        lines += [f"- {e['step']}: {e['item']}: {first(e['message'])}" for e in chosen]
        for e in chosen:
            lines += ["", f"---- {e['item']}", *e["message"].splitlines()[-LINES:]]
    lines += named(found, "not run") + named(found, "skipped") + slowest(found)
    (out / "report.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return bool(found) and not wrong


def first(message: str) -> str:
    """The line that says it: pytest marks what was raised by an E."""
    lines = [line for line in message.splitlines() if line.strip()]
    return next((line[1:].strip() for line in lines if line.startswith("E  ")), lines[0] if lines else "")[:200]


def named(found: dict[tuple[str, str], Event], state: str) -> list[str]:
    chosen = [e for e in found.values() if e["state"] == state]
    if not chosen:
        return []
    return ["", f"== {state}: {len(chosen)}", *(f"- {e['item']} {first(e['message'])}".rstrip() for e in chosen)]


def slowest(found: dict[tuple[str, str], Event]) -> list[str]:
    timed = sorted((e for e in found.values() if "seconds" in e), key=lambda e: -e["seconds"])[:15]
    return ["", "== slowest", *(f"- {e['seconds']:.1f} s {e['item']}" for e in timed)] if timed else []


def table(path: Path) -> list[str]:
    """The rows of a table of benchmarks."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    words = "{case:48} {variant:32} {wall_seconds:>10} s {speedup:>7}x {peak_mb:>9} MB  {difference}"
    return ["", f"== {path.name}", *(words.format(**row) for row in rows)]


def goals(out: Path) -> list[str]:
    """What the goals say, as the worker that measured last wrote it down."""
    path = out / "goals.txt"
    return ["", "== goals", path.read_text(encoding="utf-8").rstrip()] if path.exists() else []


def profile(out: Path) -> list[str]:
    path = out / "profile.txt"
    return ["", "== profile", path.read_text(encoding="utf-8").rstrip()] if path.exists() else []
