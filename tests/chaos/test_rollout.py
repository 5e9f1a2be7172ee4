"""Rollout workers that die or hang in each of their phases, or slow down: others take their work, and the run is the
same run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.chaos.harness import (
    CHANGES,
    STEPS,
    Fault,
    assert_balanced,
    assert_borne,
    assert_died,
    assert_same_run,
    events_of,
    report,
    run_with,
    wait_for_strike,
)
from tests.integration.runs import marked, merged, recipe

BUCKETS, BUCKET_MB = 4, 0.3


def test_workers_that_die_or_hang_in_every_phase_change_nothing(
    undisturbed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Each strikes the worker that replaced the one before."""
    faults = [
        Fault("worker killed while generating", "rollout-0", "actors.rollouts.worker:RolloutWorker.pump", call=30),
        Fault(
            "worker killed while receiving weights", "rollout-1", "actors.rollouts.worker:RolloutWorker.receive", call=3
        ),
        Fault("worker killed while proving weights", "rollout-2", "actors.rollouts.worker:RolloutWorker.probe", call=2),
        Fault(
            "worker stopped while generating",
            "rollout-3",
            "actors.rollouts.worker:RolloutWorker.pump",
            call=20,
            do="stop",
        ),
    ]
    ended = run_with(faults, recipe(tmp_path, tiny_model, **CHANGES), tmp_path / "run")
    assert_borne(ended, undisturbed, *(fault.id for fault in faults))
    for fault in faults:
        report(ended, fault.id, recovered="worker")


@pytest.mark.chaos
def test_workers_that_die_at_each_bucket_of_a_version_and_an_idle_one_change_nothing(
    undisturbed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """A version of four buckets; then one that waits for prompts."""
    receive = "actors.rollouts.worker:RolloutWorker.receive"
    faults = [Fault(f"worker killed at bucket {n + 1}", f"rollout-{n}", receive, call=n + 1) for n in range(BUCKETS)]
    # While the driver waits the worker is idle: then the test itself kills it.
    wait = Fault(
        "worker killed while idle",
        "driver",
        "cluster.training.parts.scoring:Scoring.settle",
        call=6,
        do="sleep",
        seconds=4.0,
    )
    path = recipe(tmp_path, tiny_model, **merged(CHANGES, {"weights": {"bucket_mb": BUCKET_MB}}))

    def kill_the_idle(process: subprocess.Popen[bytes]) -> None:
        wait_for_strike(tmp_path / "run", wait.id)
        (idle,) = [p for p in marked(str(tmp_path / "run.log")) if p.cmdline()[0].startswith("ray::RolloutRole")]
        idle.kill()

    ended = run_with([*faults, wait], path, tmp_path / "run", meanwhile=kill_the_idle)
    assert ended.code == 0, ended.output
    assert_died(ended, *(fault.id for fault in faults))
    told = [event["text"].partition(":")[0] for event in events_of(tmp_path / "run", 0.0, "lost", "worker")]
    failed = [text for text in told if text.endswith(("is lost", "could not join"))]
    joiners = [f"rollout-{n} could not join" for n in range(1, BUCKETS)]
    assert failed == ["rollout-0 is lost", *joiners, f"rollout-{BUCKETS} is lost"]
    assert_same_run(ended.run_dir, undisturbed)
    report(ended, faults[0].id, recovered="worker")
    report(ended, wait.id, recovered="worker")


@pytest.mark.chaos
def test_a_spare_takes_the_place_of_a_worker_that_died(undisturbed: Path, tiny_model: Path, tmp_path: Path) -> None:
    changes = merged(CHANGES, {"recovery": {"spares": 1}})
    fault = Fault("worker killed, a spare ready", "rollout-0", "actors.rollouts.worker:RolloutWorker.admit", call=4)
    pause = Fault(
        "until it is", "driver", "cluster.training.parts.scoring:Scoring.settle", call=3, do="sleep", seconds=25.0
    )
    ended = run_with([fault, pause], recipe(tmp_path, tiny_model, **changes), tmp_path / "run")
    assert ended.code == 0, ended.output
    assert_died(ended, fault.id)
    joined = [event["text"] for event in ended.after(fault.id, "worker") if "joined" in event["text"]]
    assert joined[0].startswith("rollout-1 joined at version 4 (engine 0.0 s")
    assert_same_run(ended.run_dir, undisturbed)
    report(ended, fault.id, recovered="worker")


@pytest.mark.chaos
def test_a_worker_that_decodes_ten_times_slower_holds_nothing_up(tiny_model: Path, tmp_path: Path) -> None:
    """All three at one pace, as on GPUs of their own: 0.02 s a decode step, and 0.2 s in one of them from its tenth."""
    changes = merged(
        CHANGES,
        {
            "deterministic": False,
            "recovery": {"silence_s": 20.0},
            "rollout": {"workers": 3, "prompts_per_step": 6, "sampling": {"max_tokens": 96, "min_tokens": 96}},
        },
    )
    pump = "actors.rollouts.worker:RolloutWorker.pump"
    slow = Fault("worker ten times slower", "rollout-1", pump, call=10, do="slow", seconds=0.2)
    paced = [Fault(f"pace of worker {n}", f"rollout-{n}", pump, do="slow", seconds=0.02) for n in range(3)]
    ended = run_with([slow, *paced], recipe(tmp_path, tiny_model, **changes), tmp_path / "run")
    assert ended.code == 0, ended.output
    suspected = ended.after(slow.id, "suspect")
    assert {event["text"].split()[0] for event in suspected} == {"rollout-1"}
    assert ended.after(slow.id, "lost") == []
    assert_balanced(ended.run_dir, trained=6 * STEPS, dropped=0)
    report(ended, slow.id, detected="suspect", recovered="worker")
