"""Scorers and drivers that die: the run is the same run. Reward functions that misbehave have tests of their own
(tests/integration/test_reward_process.py)."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.harness import (
    CHANGES,
    STEPS,
    Fault,
    assert_balanced,
    assert_died,
    assert_same_numbers,
    assert_same_weights,
    report,
    run_with,
)
from tests.integration.runs import recipe


def test_a_scorer_that_dies_is_started_again_and_scores_again(
    undisturbed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    faults = [Fault("scorer killed while scoring", "scorer-0", "actors.rewards.scorer:Scorer.score", call=3)]
    ended = run_with(faults, recipe(tmp_path, tiny_model, **CHANGES), tmp_path / "run")
    assert ended.code == 0, ended.output
    assert_died(ended, faults[0].id)
    assert_balanced(ended.run_dir, trained=4 * STEPS)
    assert_same_numbers(ended.run_dir, undisturbed)
    assert_same_weights(ended.run_dir, undisturbed, STEPS)
    report(ended, faults[0].id)


def test_a_driver_that_is_killed_again_and_again_changes_nothing(
    undisturbed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """In the middle of a wave, between an update and its publish, while it commits, and after."""
    faults = [
        Fault("driver killed in a step", "driver", "cluster.scoring:Scoring.settle", call=4),
        Fault("driver killed at a publish", "driver", "cluster.run.ledger:Ledger.record_version", call=2),
        Fault("driver killed in a commit", "driver", "cluster.run.checkpoint:write_atomic", call=2),
    ]
    ended = run_with(faults, recipe(tmp_path, tiny_model, **CHANGES), tmp_path / "run")
    assert ended.code == 0, ended.output
    assert_died(ended, *(fault.id for fault in faults))
    assert_balanced(ended.run_dir, trained=4 * STEPS)
    assert_same_numbers(ended.run_dir, undisturbed)
    assert_same_weights(ended.run_dir, undisturbed, STEPS)
    for fault in faults:
        report(ended, fault.id, recovered="start")
