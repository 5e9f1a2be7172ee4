"""Scorers and drivers that die: the run is the same run. Reward functions that misbehave have tests of their own
(tests/integration/test_reward_process.py)."""

from __future__ import annotations

import json
import random
import re
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.chaos.harness import (
    CHANGES,
    STEPS,
    Fault,
    assert_balanced,
    assert_borne,
    assert_same_run,
    assert_same_weights,
    driver_of,
    events_of,
    report,
    run_with,
)
from tests.integration.runs import left_behind, merged, recipe, rows, start, stop, train, wait_for_step

RANDOM_STEPS = 100


def test_a_scorer_that_dies_is_started_again_and_scores_again(
    undisturbed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    faults = [Fault("scorer killed while scoring", "scorer-0", "actors.rewards.scorer:Scorer.score", call=3)]
    ended = run_with(faults, recipe(tmp_path, tiny_model, **CHANGES), tmp_path / "run")
    assert_borne(ended, undisturbed, faults[0].id)
    assert [event["text"][:9] for event in ended.after(faults[0].id, "lost")] == ["scorer-0:"]
    report(ended, faults[0].id)


def test_a_scorer_that_hangs_is_ended_when_its_time_is_up(undisturbed: Path, tiny_model: Path, tmp_path: Path) -> None:
    changes = merged(CHANGES, {"rollout": {"timeout_s": 10, "stall_timeout_s": 8}})
    fault = Fault("scorer stopped while scoring", "scorer-0", "actors.rewards.scorer:Scorer.score", call=3, do="stop")
    ended = run_with([fault], recipe(tmp_path, tiny_model, **changes), tmp_path / "run")
    assert_borne(ended, undisturbed, fault.id)
    assert [event["text"][:9] for event in ended.after(fault.id, "lost")] == ["scorer-0:"]
    report(ended, fault.id)


@pytest.mark.chaos
def test_a_driver_that_hangs_writes_every_stack_and_is_started_again(
    undisturbed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    short = {
        "rollout": {"timeout_s": 10, "stall_timeout_s": 8},
        "learner": {"update_timeout_s": 30},
        "weights": {"timeout_s": 10},
        "ray": {"start_timeout_s": 60},
        "recovery": {"watchdog_s": 61},
    }
    fault = Fault(
        "driver hangs", "driver", "cluster.training.parts.scoring:Scoring.settle", call=4, do="sleep", seconds=1000
    )
    path = recipe(tmp_path, tiny_model, **merged(CHANGES, short))
    ended = run_with([fault], path, tmp_path / "run", timeout_s=290)
    assert ended.code == 0, ended.output
    (stuck,) = ended.after(fault.id, "stuck")
    assert re.search(r" s in score, [a-z ]+; stacks of", stuck["text"]) and stuck["silent"] == []
    written = {file.name.rpartition("-")[0]: "" for file in (ended.run_dir / "logs/stacks").iterdir()}
    for file in (ended.run_dir / "logs/stacks").iterdir():
        written[file.name.rpartition("-")[0]] += file.read_text()
    assert all(written[role] for role in ("driver", "learner-0", "rollout-0", "scorer-0"))
    # The fault is planted around `settle`, whose own frame is not yet there.
    assert re.search(r'policy_gradient.py", line \d+ in score\n', written["driver"]), "where it hangs"
    assert_same_weights(ended.run_dir, undisturbed, STEPS)
    report(ended, fault.id, detected="stuck", recovered="start")


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_twenty_kills_of_the_driver_at_random_moments_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """Each falls within two seconds of a life in which it trains."""
    # Twenty deaths within minutes would double the wait before a new life each time.
    recovery = {"driver_failures": 20, "backoff_s": 1e-6}
    many = merged(CHANGES, {"steps": RANDOM_STEPS, "checkpoint": {"every_steps": 1}, "recovery": recovery})
    (tmp_path / "calm").mkdir()
    train(recipe(tmp_path / "calm", tiny_model, **many), tmp_path / "calm" / "run")
    draw, log, run = random.Random(0), tmp_path / "run.log", tmp_path / "run"
    process = start("train", recipe(tmp_path, tiny_model, **many), "--run-dir", run, log=log)
    try:
        kills = 0
        while kills < 20 and (driver := wait_for_life(run, process)) is not None:
            time.sleep(draw.uniform(0.0, 2.0))
            driver.kill()
            driver.wait(10)
            kills += 1
        code = process.wait(250)
    finally:
        stop(process)
    assert kills == 20, "the run ended too early to be killed so often"
    assert code == 0, log.read_text()[-4000:]
    assert left_behind(log, timeout_s=30) == []
    assert_same_run(run, tmp_path / "calm" / "run", steps=RANDOM_STEPS)


@pytest.mark.chaos
def test_clocks_that_jump_change_nothing(undisturbed: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A day ahead, and more than a day back: no deadline is of the clock on the wall."""
    day = 86400.0
    faults = [
        Fault(
            "driver a day ahead",
            "driver",
            "cluster.training.parts.scoring:Scoring.settle",
            call=2,
            do="jump",
            seconds=day,
        ),
        Fault(
            "driver a day behind",
            "driver",
            "cluster.training.parts.scoring:Scoring.settle",
            call=4,
            do="jump",
            seconds=-2 * day,
        ),
        Fault(
            "worker ahead", "rollout-0", "actors.rollouts.worker:RolloutWorker.pump", call=20, do="jump", seconds=day
        ),
        Fault(
            "learner behind",
            "learner-0",
            "learners.engines.torch_engine:TorchEngine.step",
            call=2,
            do="jump",
            seconds=-day,
        ),
    ]
    ended = run_with(faults, recipe(tmp_path, tiny_model, **CHANGES), tmp_path / "run")
    assert ended.code == 0, ended.output
    lines = map(json.loads, (ended.run_dir / "events.jsonl").read_text().splitlines())
    assert [event for event in lines if event["kind"] in ("lost", "stuck", "recovered")] == []
    assert_same_run(ended.run_dir, undisturbed)


def test_a_run_that_stops_early_stops_there_though_its_driver_dies_at_the_end(tiny_model: Path, tmp_path: Path) -> None:
    """What it stops by is in its last commit."""
    changes = merged(CHANGES, {"evaluation": {"kl_bound": 1e-9}})
    fault = Fault("driver killed at its end", "driver", "cluster.run.report:write_report")
    ended = run_with([fault], recipe(tmp_path, tiny_model, **changes), tmp_path / "run")
    assert ended.code == 0, ended.output
    (end,) = events_of(ended.run_dir, 0.0, "end")[1:]
    assert "exceeds evaluation.kl_bound 1e-09" in end["text"]
    last = rows(ended.run_dir)[-1]["step"]
    assert 0 < last < STEPS and rows(ended.run_dir)[last]["kl/ref_k1"] > 0
    assert [path.name for path in (ended.run_dir / "policy").iterdir()] == [f"step-{last}"]
    assert_balanced(ended.run_dir, trained=4 * last)


def wait_for_life(run: Path, supervisor: subprocess.Popen[bytes]) -> psutil.Process | None:
    """The driver, once it trains; None when the run has ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if supervisor.poll() is not None:
            return None
        driver, events = driver_of(supervisor), run / "events.jsonl"
        lines = events.read_text().splitlines() if events.exists() else []
        begun = [event["time"] for event in map(json.loads, lines) if event["kind"] == "start"]
        if driver is not None and any(at > driver.create_time() for at in begun):
            return driver
        time.sleep(0.1)
    raise AssertionError("the run did not come back to training within 120 s")


def test_a_driver_that_is_killed_again_and_again_changes_nothing(
    undisturbed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """In the middle of a wave, between an update and its publish, while it commits, and after; and its recipe has
    become another experiment's."""
    faults = [
        Fault("driver killed in a step", "driver", "cluster.training.parts.scoring:Scoring.settle", call=4),
        Fault("driver killed at a publish", "driver", "cluster.run.ledger:Ledger.record_version", call=2),
        Fault("driver killed in a commit", "driver", "cluster.run.checkpoints.checkpoint:write_atomic", call=2),
    ]
    path, run = recipe(tmp_path, tiny_model, **CHANGES), tmp_path / "run"

    def edit_the_recipe(process: subprocess.Popen[bytes]) -> None:
        wait_for_step(process, run, 0)
        recipe(tmp_path, tiny_model, name="another", steps=2, seed=7)

    ended = run_with(faults, path, run, meanwhile=edit_the_recipe)
    assert_borne(ended, undisturbed, *(fault.id for fault in faults))
    for fault in faults:
        report(ended, fault.id, recovered="start")
