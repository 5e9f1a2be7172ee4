"""Workers that come and go while a run learns: real Ray, real actors, the command line's own requests."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UserError
from cluster.service.control import scale_run
from tests.integration.rewards import SLOW
from tests.integration.runs import REPO, command, left_behind, merged, recipe, rows, start, stop, wait_for_step

AHEAD: dict[str, Any] = {
    "deterministic": False,
    "steps": 60,
    "algorithm": {"name": "dr_grpo"},
    "data": {"heldout": 0},
    "rollout": {"engine": "torch", "prompts_per_step": 8, "schedule": {"kind": "asynchronous", "max_staleness": 2}},
    "learner": {"backend": "torch"},
    "checkpoint": {"every_steps": 100, "export": False},
}


def events(run: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (run / "events.jsonl").read_text().splitlines()]


def wait_for_event(process: subprocess.Popen[bytes], run: Path, text: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not any(text in line for line in events(run)):
        assert process.poll() is None, "the run ended before: " + "\n".join(events(run))
        assert time.monotonic() < deadline, f"no event {text!r}: " + "\n".join(events(run))
        time.sleep(0.1)


def fates(run: Path) -> list[tuple[str, int, int]]:
    """(state, prompts, different positions) as the ledger has them."""
    with closing(sqlite3.connect(run / "ledger.sqlite")) as ledger:
        query = "SELECT state, count(*), count(DISTINCT position) FROM prompts GROUP BY state"
        return ledger.execute(query).fetchall()


def test_workers_join_and_leave_while_a_run_learns_and_no_prompt_is_lost_or_trained_twice(
    tiny_model: Path, tmp_path: Path
) -> None:
    run, log, slow = tmp_path / "run", tmp_path / "run.log", tmp_path / "slow"
    slow.touch()
    paced = {"reward": {"functions": {"digits": {"function": "tests/integration/rewards.py:paced_digit_share"}}}}
    # By broadcast, whose group must follow the pool: every publish here needs all its members.
    path = recipe(tmp_path, tiny_model, **AHEAD, **paced, weights={"transport": "collective", "timeout_s": 60})
    process = start("train", path, "--run-dir", run, log=log, **{SLOW: str(slow)})
    try:
        wait_for_step(process, run, 2)
        said = subprocess.run(
            command("scale", run, "--rollout", 3), cwd=REPO, capture_output=True, text=True, timeout=60, check=True
        )
        assert said.stdout == "2 more workers on the way to 3\n"
        wait_for_event(process, run, "rollout-1 joined")
        wait_for_event(process, run, "rollout-2 joined")
        wait_for_step(process, run, len(rows(run)) + 3)
        shown = subprocess.run(command("status", run), cwd=REPO, capture_output=True, text=True, timeout=60, check=True)
        assert re.search(
            r"workers: rollout-0 healthy at version \d+, rollout-1 healthy at version \d+, rollout-2 healthy at",
            shown.stdout,
        )
        assert scale_run(str(run), 1) == "2 workers leave, 1 stay"
        wait_for_event(process, run, "rollout-1 left")
        wait_for_event(process, run, "rollout-2 left")
        with pytest.raises(UserError, match="a pool needs at least one worker, got 0"):
            scale_run(str(run), 0)
        with pytest.raises(UserError, match=r"\d+ more workers take about .* GB of memory and .* are free"):
            scale_run(str(run), 5000)
        slow.unlink()
        assert process.wait(240) == 0, log.read_text()[-3000:]
    finally:
        stop(process)
    found = rows(run)[1:]
    assert len(found) == AHEAD["steps"]
    workers = [row["rollout/workers"] for row in found]
    assert workers[0] == 1 and max(workers) == 3 and workers[-1] == 1
    assert fates(run) == [("trained", 60 * 8, 60 * 8)]
    assert max(row["staleness/max"] for row in found) <= 2
    kinds = ("generate", "sync", "wait_weights", "wait_prompts")
    shares = [[row[f"time/rollout_{kind}_fraction"] for kind in kinds] for row in found]
    assert all(abs(sum(share) - 1.0) < 1e-6 for share in shares)
    assert found[-1]["reward/mean"] > found[0]["reward/mean"] + 0.3, "it learned meanwhile"
    assert Counter(e.split()[-1] for e in events(run) if e.startswith("asked for")) == {"3": 1, "stay": 1}
    assert left_behind(log) == []


def test_a_killed_run_that_was_ahead_resumes_and_trains_every_prompt_once(tiny_model: Path, tmp_path: Path) -> None:
    """What was under way at the commit is generated again, not lost and not admitted twice. Decoding takes several
    times as long as learning here, so the run asks for a second worker by itself."""
    run, log = tmp_path / "run", tmp_path / "run.log"
    ahead = merged(
        AHEAD,
        {
            "steps": 12,
            "checkpoint": {"every_steps": 4},
            "weights": {"transport": "sparse_delta"},
            "rollout": {
                "sampling": {"max_tokens": 40},
                "autoscale": {"min": 1, "max": 2, "target_idle": 0.02, "cooldown_s": 0.1},
            },
        },
    )
    path = recipe(tmp_path, tiny_model, **ahead)
    process = start("train", path, "--run-dir", run, log=log)
    try:
        wait_for_step(process, run, 6)
        process.kill()
        process.wait(10)
    finally:
        stop(process)
    assert left_behind(log) == []
    again = start("train", path, "--run-dir", run, "--resume", log=log)
    try:
        assert again.wait(200) == 0, log.read_text()[-3000:]
    finally:
        stop(again)
    assert [row["step"] for row in rows(run)] == list(range(13))
    asked = [event for event in map(json.loads, (run / "events.jsonl").open()) if event["kind"] == "autoscale"]
    assert asked[0]["rollout"] == 2 and re.fullmatch(
        r"1 more worker on the way to 2: the learner waited for \d+% of the step, the target is 2%: .* of learning",
        asked[0]["text"],
    )
    assert fates(run) == [("trained", 12 * 8, 12 * 8)]
