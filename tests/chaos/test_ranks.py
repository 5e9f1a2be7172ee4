"""One rank of two that dies or hangs: the group is built again as a whole, whoever was to blame. Or that does not come
back: the run goes on without it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.harness import CHANGES, Fault, assert_balanced, assert_borne, report, run_with
from tests.integration.runs import merged, recipe, rows, train

TWO_RANKS: dict[str, Any] = {
    "learner": {"backend": "deepspeed", "ranks": 2, "threads": 1, "zero": {"stage": 2}, "update_timeout_s": 30},
    "rollout": {"stall_timeout_s": 60},
}


@pytest.fixture(scope="module")
def undisturbed_ranks(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed-ranks")
    train(recipe(folder, tiny_model, **merged(CHANGES, TWO_RANKS)), folder / "run")
    return folder / "run"


@pytest.mark.chaos
def test_a_rank_that_dies_or_hangs_in_a_collective_changes_nothing(
    undisturbed_ranks: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """A stopped rank is noticed when the update's deadline has passed: no sooner is it known from a slow one."""
    engine = "learners.engines.deepspeed_engine:DeepSpeedEngine"
    faults = [
        Fault("rank killed in a backward", "learner-1", f"{engine}.backward", call=2),
        Fault("rank killed in a collective", "learner-0.1", f"{engine}._agree", call=2),
        Fault("rank killed while saving", "learner-1.2", f"{engine}.save"),
        Fault("rank stopped in a collective", "learner-1.3", f"{engine}._agree", call=1, do="stop"),
    ]
    path = recipe(tmp_path, tiny_model, **merged(CHANGES, TWO_RANKS))
    ended = run_with(faults, path, tmp_path / "run", timeout_s=290)
    assert_borne(ended, undisturbed_ranks, *(fault.id for fault in faults))
    for fault in faults:
        report(ended, fault.id)


@pytest.mark.chaos
def test_a_run_of_two_ranks_goes_on_with_one(tiny_model: Path, tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        tiny_model,
        steps=2,
        algorithm={"name": "ppo"},
        critic={"zero": {"stage": 3}, "optimizer": {"lr": 1e-3, "head_lr": 1e-3}},
        rollout={"engine": "torch"},
        learner={"ranks": 2, "threads": 1, "zero": {"stage": 2}},
    )
    run_dir = tmp_path / "run"
    train(path, run_dir)
    began = rows(run_dir)
    train(path, run_dir, "--resume", "steps=4", "learner.ranks=1", "critic.zero.stage=1")
    found = rows(run_dir)
    assert [row["step"] for row in found] == [0, 1, 2, 3, 4]
    assert found[: len(began)] == began
    assert_balanced(run_dir, trained=16)
    # Two steps have moved the policy away from its reference: one that began anew would be back at 0.
    assert found[1]["kl/ref"] < 1e-9 < 1e-4 < found[2]["kl/ref"] < 2 * found[3]["kl/ref"]
    assert all(row["sync/mismatch"] < 1e-4 and math.isfinite(row["value/loss"]) for row in found[3:])
    for model, stage in (("policy", 2), ("critic", 1)):
        state = json.loads((run_dir / "checkpoints" / "step-4" / model / "state.json").read_text())
        assert (state["shares"], state["steps"]) == (1, 4)
        assert (state["facts"]["world_size"], state["facts"]["zero_stage"]) == (1, stage)
