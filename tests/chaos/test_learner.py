"""A learner that dies in each of its phases: the group is built again, and the run is the same run."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.harness import CHANGES, Fault, assert_borne, report, run_with
from tests.integration.runs import recipe


def test_a_learner_that_dies_in_every_phase_changes_nothing(
    undisturbed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Before the first commit; in an update; while it gives its weights away; while it saves."""
    faults = [
        Fault("learner killed in a forward", "learner-0", "learners.policy:PolicyLearner.logprobs", call=2),
        Fault("learner killed in a backward", "learner-0.1", "learners.torch_engine:TorchEngine.backward", call=4),
        Fault(
            "learner killed at a publish", "learner-0.2", "learners.policy:PolicyLearner.published_parameters", call=3
        ),
        Fault("learner killed while saving", "learner-0.3", "learners.policy:PolicyLearner.save"),
    ]
    ended = run_with(faults, recipe(tmp_path, tiny_model, **CHANGES), tmp_path / "run")
    assert_borne(ended, undisturbed, *(fault.id for fault in faults))
    for fault in faults:
        report(ended, fault.id)
