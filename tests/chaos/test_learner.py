"""A learner that dies in each of its phases: the group is built again, and the run is the same run."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.harness import CHANGES, STEPS, Fault, assert_balanced, assert_borne, assert_died, report, run_with
from tests.integration.runs import merged, recipe, rows


def test_a_learner_that_dies_in_every_phase_changes_nothing(
    undisturbed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Before the first commit; in an update; while it gives its weights away; while it saves."""
    faults = [
        Fault("learner killed in a forward", "learner-0", "learners.policy:PolicyLearner.logprobs", call=2),
        Fault(
            "learner killed in a backward", "learner-0.1", "learners.engines.torch_engine:TorchEngine.backward", call=4
        ),
        Fault(
            "learner killed at a publish", "learner-0.2", "learners.policy:PolicyLearner.published_parameters", call=3
        ),
        Fault("learner killed while saving", "learner-0.3", "learners.policy:PolicyLearner.save"),
    ]
    ended = run_with(faults, recipe(tmp_path, tiny_model, **CHANGES), tmp_path / "run")
    assert_borne(ended, undisturbed, *(fault.id for fault in faults))
    for fault in faults:
        report(ended, fault.id)


def test_workers_of_the_asynchronous_schedule_go_on_while_the_learner_is_built_again(
    tiny_model: Path, tmp_path: Path
) -> None:
    """But for one that is lost while it gives its weights away: engines that hold a part of them make nothing."""
    schedule = {"kind": "asynchronous", "max_staleness": 2}
    changes = merged(CHANGES, {"deterministic": False, "rollout": {"schedule": schedule}})
    busy = Fault(
        "learner killed, workers go on", "learner-0", "learners.engines.torch_engine:TorchEngine.backward", call=10
    )
    giving = Fault("at a publish", "learner-0.1", "learners.policy:PolicyLearner.published_parameters", call=3)
    ended = run_with([busy, giving], recipe(tmp_path, tiny_model, **changes), tmp_path / "run")
    assert ended.code == 0, ended.output
    assert_died(ended, busy.id, giving.id)
    lost, recovered = (ended.after(busy.id, kind)[0]["time"] for kind in ("lost", "recovered"))
    (meanwhile,) = ended.after(busy.id, "meanwhile")
    assert lost < meanwhile["time"] < recovered
    # Two batches of four prompts, four samples each, of which none ends before the first token.
    assert int(meanwhile["text"].split()[0]) >= 2 * 4 * 4
    assert max(row.get("staleness/max", 0.0) for row in rows(ended.run_dir)) <= 2
    assert_balanced(ended.run_dir, trained=4 * STEPS, dropped=0)
    report(ended, busy.id)
