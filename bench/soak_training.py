"""How much of its time a run trains while its processes are killed at random: SmolLM2, GRPO, real everything.

A random role (rollout worker, learner, scorer, driver; never the supervisor) is killed at random moments, on average
every so many seconds. What counts are the steps of the history that counts, each as long as the median step: their
seconds over those from the first step's beginning to the last's end. A step that was repeated, waited for a worker, or
followed a driver's start is no longer for that. Ends with the kills by role and what the run says of itself.
`make soak` runs this for a kill every 300 and every 60 s.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.common import table

RECIPE = "deploy/recipes/grpo_demo.yaml"
ROLES = ("rollout", "learner", "scorer", "driver")
CHANGES = (
    "evaluation.every_steps=0",
    "checkpoint.every_steps=2",
    "checkpoint.asynchronous=true",
    "checkpoint.keep_best=false",
    "recovery.driver_failures=1000",
    "recovery.learner_failures=1000",
    "recovery.worker_failures=1000",
    "recovery.scorer_failures=1000",
    "recovery.backoff_s=0.5",
    "recovery.spares=1",
)
"""Of the recipe. A spare takes a lost worker's place at once; two steps are repeated at most."""


@dataclass
class Run:
    """One that is under way."""

    folder: Path
    process: subprocess.Popen[bytes]
    killed: Counter[str] = field(default_factory=Counter)

    def records(self, name: str) -> list[dict[str, Any]]:
        file = self.folder / name
        return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []

    def victims(self, role: str) -> list[psutil.Process]:
        """Its processes of that role."""
        if role == "driver":
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if "train" in child.cmdline()]
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                mine = environment.get("RAYLIGN_STACKS", "").startswith(str(self.folder))
                if (
                    mine
                    and environment.get("RAYLIGN_ROLE", "").startswith(role)
                    and process.cmdline()[0].startswith("ray::")
                ):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, IndexError):  # ended while we looked, or not ours
                continue
        return found


def start(folder: Path, steps: int) -> Run:
    command = [sys.executable, "-m", "cluster.cli", "train", RECIPE, f"steps={steps}", *CHANGES]
    with folder.with_suffix(".log").open("wb") as log:
        return Run(folder, subprocess.Popen([*command, "--run-dir", str(folder)], stdout=log, stderr=log))


def disturbed(folder: Path, steps: int, every_s: float, seed: int) -> Run:
    """A run to its end, with kills on average every so many seconds once it trains."""
    run, draw = start(folder, steps), random.Random(seed)

    def pause() -> float:
        return draw.expovariate(1.0 / every_s) if every_s < float("inf") else every_s

    while run.process.poll() is None and not any(row["step"] == 1 for row in run.records("metrics.jsonl")):
        time.sleep(0.5)
    next_at = time.monotonic() + pause()
    while run.process.poll() is None:
        time.sleep(0.2)
        if time.monotonic() < next_at:
            continue
        role = draw.choice(ROLES)
        if victims := run.victims(role):
            draw.choice(victims).kill()
            run.killed[role] += 1
            print(f"killed a {role}", file=sys.stderr, flush=True)
            next_at = time.monotonic() + pause()
    if run.process.returncode != 0:
        sys.exit(folder.with_suffix(".log").read_text()[-3000:])
    return run


def effective(run: Run) -> dict[str, float]:
    rows = [row for row in run.records("metrics.jsonl") if row["step"] > 0]
    step_s = statistics.median(row["time/step_s"] for row in rows)
    wall_s = rows[-1]["time"] - (rows[0]["time"] - rows[0]["time/step_s"])
    stalls = [event["stall_seconds"] for event in run.records("events.jsonl") if event["kind"] == "checkpoint"]
    final = next(row for row in reversed(rows) if "eval/correct" in row)
    return {
        "steps": len(rows),
        "kills": run.killed.total(),
        "median step (s)": step_s,
        "wall (s)": wall_s,
        "stall (s)": statistics.median(stalls),
        "effective": len(rows) * step_s / wall_s,
        "right answers at the end": final["eval/correct"],
        "low": final["eval/correct_low"],
        "high": final["eval/correct_high"],
    }


def main() -> None:
    steps = int(os.environ.get("RAYLIGN_SOAK_STEPS", "60"))
    pauses = [float(text) for text in os.environ.get("RAYLIGN_SOAK_EVERY_S", "300,60").split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for pause in [*pauses, float("inf")]:
            run = disturbed(Path(folder) / f"every-{pause:g}", steps, pause, seed=0)
            found = effective(run)
            kills = ", ".join(f"{count} {role}" for role, count in sorted(run.killed.items())) or "none"
            score = f"{found['right answers at the end']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
            rows.append([f"{pause:g}", kills, found["steps"], found["median step (s)"], found["wall (s)"]])
            rows[-1] += [found["effective"], found["stall (s)"], score]
            print(rows[-1], file=sys.stderr, flush=True)
    table(
        "SmolLM2, GRPO, two cores: random kills of its processes",
        [
            "a kill every (s)",
            "killed",
            "steps",
            "median step (s)",
            "wall (s)",
            "effective",
            "stall of a commit (s)",
            "right answers",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
