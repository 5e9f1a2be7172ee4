"""How much of its time a run trains while its processes are killed at random: SmolLM2, GRPO, real everything.

In each window of so many seconds a role (rollout worker, learner, scorer, driver; never the supervisor) is killed at a
random moment, each role as often as the others. What counts are the steps of the history that counts, each as long as
the mean of those in which nobody was killed, and the evaluations, each as long as in a run that nobody disturbs: their
seconds over those from the first step's beginning to the end. A step that was repeated, waited for a worker, or
followed a driver's start is no longer for that. `make soak` runs this for a kill every 300 and every 60 s.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.tools.common import table

RECIPE = "deploy/recipes/grpo_demo.yaml"
ROLES = ("rollout", "learner", "scorer", "driver")
STEPS = int(os.environ.get("RAYLIGN_SOAK_STEPS", "40"))
EVERY_S = [float(text) for text in os.environ.get("RAYLIGN_SOAK_EVERY_S", "inf,60,300").split(",")]
CHANGES = (
    f"steps={STEPS}",
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
    killed: list[tuple[float, str]] = field(default_factory=list)
    """(when, in unix seconds, role) of each kill."""

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


def start(folder: Path) -> Run:
    command = [sys.executable, "-m", "cluster.cli", "train", RECIPE, *CHANGES]
    with folder.with_suffix(".log").open("wb") as log:
        return Run(folder, subprocess.Popen([*command, "--run-dir", str(folder)], stdout=log, stderr=log))


def moments(every_s: float, draw: random.Random) -> Iterator[tuple[float, str]]:
    """(seconds from the first kill's window, role) without end."""
    for first in itertools.count(step=len(ROLES)):
        for i, role in enumerate(draw.sample(ROLES, len(ROLES))):
            yield every_s * (first + i + draw.random()), role


def disturbed(folder: Path, every_s: float) -> Run:
    """A run to its end, with a kill in each window of so many seconds once it trains."""
    run = start(folder)
    while run.process.poll() is None and not any(row["step"] == 1 for row in run.records("metrics.jsonl")):
        time.sleep(0.5)
    began, draw = time.monotonic(), random.Random(0)
    kills = moments(every_s, draw) if every_s < float("inf") else iter(())
    at, role = next(kills, (float("inf"), ""))
    while run.process.poll() is None:
        time.sleep(0.2)
        if time.monotonic() - began > at and (victims := run.victims(role)):
            draw.choice(victims).kill()
            run.killed.append((time.time(), role))
            print(f"killed a {role} after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            at, role = next(kills)
    if run.process.returncode != 0:
        sys.exit(folder.with_suffix(".log").read_text()[-3000:])
    return run


@dataclass(frozen=True, slots=True)
class Outcome:
    """step_s: mean of the steps in which nobody was killed. wall_s: from the first step's beginning to the end of the
    last one's evaluation, which took evaluation_s. stall_s: for which a commit holds training up. score: right answers
    at the end, with their interval."""

    step_s: float
    wall_s: float
    stall_s: float
    evaluation_s: float
    score: str

    @classmethod
    def of(cls, run: Run) -> Outcome:
        rows = {row["step"]: row for row in run.records("metrics.jsonl") if row["step"] > 0}
        first, last = rows[1], rows[STEPS]
        calm = [
            row["time/step_s"]
            for row in rows.values()
            if not any(row["time"] - row["time/step_s"] < at < row["time"] for at, _ in run.killed)
        ]
        stalls = [event["stall_seconds"] for event in run.records("events.jsonl") if event["kind"] == "checkpoint"]
        return cls(
            step_s=statistics.mean(calm),
            wall_s=last["time"] - (first["time"] - first["time/step_s"]),
            stall_s=statistics.median(stalls),
            evaluation_s=last["time"] - rows[STEPS - 1]["time"] - last["time/step_s"],
            score="{:.3f} ({:.3f} to {:.3f})".format(*(last[f"eval/correct{end}"] for end in ("", "_low", "_high"))),
        )

    def lost_s(self, evaluation_s: float) -> float:
        """Seconds that were neither a step's nor the evaluation's."""
        return self.wall_s - STEPS * self.step_s - evaluation_s


def main() -> None:
    rows, evaluation_s = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for every_s in EVERY_S:
            run = disturbed(Path(folder) / f"every-{every_s:g}", every_s)
            found = Outcome.of(run)
            evaluation_s = evaluation_s or found.evaluation_s
            lost_s, kills = found.lost_s(evaluation_s), Counter(role for _, role in run.killed)
            told = ", ".join(f"{count} {role}" for role, count in sorted(kills.items())) or "none"
            rows.append([f"{every_s:g}", told, STEPS, found.step_s, found.wall_s, 1.0 - lost_s / found.wall_s])
            rows[-1] += [lost_s / kills.total() if kills else "", found.stall_s, found.score]
            print(rows[-1], file=sys.stderr, flush=True)
    table(
        "SmolLM2, GRPO, two cores: its processes killed at random",
        [
            "a kill every (s)",
            "killed",
            "steps",
            "step (s)",
            "wall (s)",
            "effective",
            "lost a kill (s)",
            "stall of a commit (s)",
            "right answers",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
