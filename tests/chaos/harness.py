"""Runs with faults planted in them, and what became of each fault.

In: a recipe and faults: where, in which role, what (tests/chaos/inject). Out: the ended run, when each fault struck,
when the run noticed and when it had recovered; assertions that the victim died, that every prompt was trained once and
that the weights are those of a run in which nothing died. Left out: the faults themselves.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.numpy import load_file

from tests.integration.runs import learned, left_behind, rows, start, stop

STEPS = 6
CHANGES: dict[str, Any] = {
    "steps": STEPS,
    "rollout": {"engine": "torch"},
    "learner": {"backend": "torch"},
    "recovery": {"silence_s": 4.0, "backoff_s": 0.5},
    "checkpoint": {"every_steps": 2, "asynchronous": True},
}
"""Of the recipe of tests/integration/runs.py: six deterministic steps, a commit every second one."""
SHARED_MEMORY, TEMPORARY = "/dev/shm", ("raylign-", "vllm_", "pymp-", "torch_")
INJECT = Path(__file__).parent / "inject"
ROUNDING = 1e-6
"""Nats a token."""
TABLE = "RAYLIGN_CHAOS_TABLE"
"""In the environment: a file that takes a line for each fault that was borne."""


@dataclass(frozen=True, slots=True)
class Fault:
    """role: of the process, as Raylign names it (`rollout-0`, `learner-1`, `driver`). at: `module:Class.method`. call:
    which call of it. do: kill, stop, exit, sleep (seconds), slow (seconds, at every call from then on), raise, nospace
    (no space left on the device), full (SQLite's word for it), nan (its first argument, a tensor, is not a number),
    jump (the process's clock is set ahead by `seconds`)."""

    id: str
    role: str
    at: str
    call: int = 1
    do: str = "kill"
    seconds: float = 0.0


@dataclass(slots=True)
class Ended:
    """A run that came to its end, well or not."""

    code: int
    output: str
    run_dir: Path
    strikes: dict[str, dict[str, Any]]

    def after(self, fault: str, *kinds: str) -> list[dict[str, Any]]:
        """Events of these kinds since the fault struck."""
        return events_of(self.run_dir, self.strikes[fault]["time"], *kinds)


def run_with(
    faults: Sequence[Fault],
    recipe: Path,
    run_dir: Path,
    *arguments: object,
    timeout_s: float = 280,
    meanwhile: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
    **environment: str,
) -> Ended:
    """Train with these faults planted. Fails the test when one of them did not strike, or anything is left behind.
    meanwhile: what the test itself does to the run."""
    folder = run_dir.with_suffix(".faults")
    folder.mkdir(parents=True)
    log = run_dir.with_suffix(".log")
    planted = [{name: getattr(fault, name) for name in Fault.__slots__} for fault in faults]
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(INJECT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "RAYLIGN_FAULTS": json.dumps(planted),
        "RAYLIGN_FAULTS_DIR": str(folder),
    }
    before = scratch()
    process = start("train", recipe, "--run-dir", run_dir, *arguments, log=log, **environment)
    try:
        meanwhile(process)
        code = process.wait(timeout_s)
    finally:
        stop(process)
    strikes = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    ended = Ended(code, log.read_text(), run_dir, strikes)
    assert not (missed := {fault.id for fault in faults} - strikes.keys()), f"did not strike: {missed}\n{ended.output}"
    assert left_behind(log, timeout_s=30) == []
    half = [str(path) for path in run_dir.rglob("*") if path.name.endswith(".tmp")]
    assert not (left := [*sorted(scratch() - before), *half]), f"files that were to be gone: {left}"
    return ended


def driver_of(supervisor: subprocess.Popen[bytes]) -> psutil.Process | None:
    """The driver that it runs, if there is one just now: its other child keeps the cluster."""
    for child in psutil.Process(supervisor.pid).children():
        try:
            if "train" in child.cmdline():
                return child
        except psutil.NoSuchProcess:  # it ended while we looked
            continue
    return None


def scratch() -> set[str]:
    """Shared memory, and temporary files of the kinds that a run makes."""
    made = {path.name for path in Path(tempfile.gettempdir()).iterdir() if path.name.startswith(TEMPORARY)}
    return made | {f"shared memory {name}" for name in os.listdir(SHARED_MEMORY)}


def wait_for_strike(run_dir: Path, fault: str, timeout_s: float = 120) -> None:
    """Until a planted fault has struck."""
    file, deadline = run_dir.with_suffix(".faults") / f"{fault}.json", time.monotonic() + timeout_s
    while not file.exists():
        assert time.monotonic() < deadline, f"{fault} did not strike within {timeout_s} s"
        time.sleep(0.05)


def assert_died(ended: Ended, *faults: str) -> None:
    for fault in faults:
        pid = ended.strikes[fault]["pid"]
        assert not psutil.pid_exists(pid), f"{fault}: process {pid} is still there"


def assert_balanced(run_dir: Path, trained: int, dropped: int | None = None) -> None:
    """Every prompt that was admitted was trained once or dropped, and so many were trained, and dropped if it is said
    how many."""
    with sqlite3.connect(run_dir / "ledger.sqlite") as db:
        counts = dict(db.execute("SELECT state, count(*) FROM prompts GROUP BY state").fetchall())
        distinct = db.execute("SELECT count(DISTINCT position) FROM prompts WHERE state = 'trained'").fetchone()[0]
    assert counts.get("trained") == distinct == trained, counts
    assert sum(counts.values()) == counts["trained"] + counts.get("dropped", 0), f"in flight at the end: {counts}"
    assert dropped in (None, counts.get("dropped", 0)), counts


def assert_same_numbers(run_dir: Path, undisturbed: Path, rounded: Sequence[str] = ()) -> None:
    """Of every step, but for what measures the machine and who was there. rounded: these only to float32's rounding."""
    present = ("sync/mismatch", "rollout/workers")
    found, expected = (
        [{name: row[name] for name in row if name not in present} for row in learned(rows(path))]
        for path in (run_dir, undisturbed)
    )
    for name in rounded:
        there, here = ([row.pop(name, None) for row in steps] for steps in (expected, found))
        assert here == pytest.approx(there, abs=ROUNDING)
    assert found == expected


def assert_same_weights(run_dir: Path, undisturbed: Path, step: int) -> None:
    file = f"policy/step-{step}/model.safetensors"
    found, expected = load_file(run_dir / file), load_file(undisturbed / file)
    assert found.keys() == expected.keys()
    differ = [name for name in expected if found[name].tobytes() != expected[name].tobytes()]
    assert not differ, f"{len(differ)} of {len(expected)} tensors differ, such as {differ[0]}"


def assert_same_run(run_dir: Path, undisturbed: Path, steps: int = STEPS, rounded: Sequence[str] = ()) -> None:
    """Every prompt counts once, and numbers and weights are those of the run in which nothing died."""
    assert_balanced(run_dir, trained=4 * steps)
    assert_same_numbers(run_dir, undisturbed, rounded)
    assert_same_weights(run_dir, undisturbed, steps)


def assert_borne(ended: Ended, undisturbed: Path, *died: str) -> None:
    """The run came to its end as if nothing had been, and these faults' victims are gone."""
    assert ended.code == 0, ended.output
    assert_died(ended, *died)
    assert_same_run(ended.run_dir, undisturbed)


def events_of(run_dir: Path, since: float, *kinds: str) -> list[dict[str, Any]]:
    """Events of these kinds since then (unix seconds)."""
    file = run_dir / "events.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [event for event in map(json.loads, lines) if event["time"] >= since - 0.1 and event["kind"] in kinds]


def report(ended: Ended, fault: str, detected: str = "lost", recovered: str = "recovered") -> None:
    """A line of the table for a planted fault."""
    table_row(fault, ended.strikes[fault]["time"], ended.after(fault, detected), ended.after(fault, recovered))


def table_row(fault: str, struck: float, noticed: Sequence[dict[str, Any]], mended: Sequence[dict[str, Any]]) -> None:
    """A line of the table: the fault, seconds until it was noticed, and until the run was whole again."""
    row = [fault, *(f"{events[0]['time'] - struck:.1f}" if events else "" for events in (noticed, mended))]
    print(" | ".join(row))
    if path := os.environ.get(TABLE):
        new = not Path(path).exists()
        with Path(path).open("a") as file:
            if new:
                file.write("| fault | noticed after (s) | whole again after (s) |\n| --- | --- | --- |\n")
            file.write("| " + " | ".join(row) + " |\n")
