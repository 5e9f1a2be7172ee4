"""When a run ends before its last step, and what becomes of what it could not send."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cluster.driver import _send
from cluster.errors import LearnerLost, RunFailed
from cluster.job import Job
from cluster.run.state import DriverState
from tests.fixtures.configs import PPO, config

PATIENT = ("data.heldout=8", "evaluation.every_steps=2", "evaluation.patience=3")


@pytest.mark.parametrize(
    ("overrides", "state", "reason"),
    [
        ([], {"evaluations_since_best": 9, "kl_ref": 9.0}, None),
        ([*PATIENT], {"evaluations_since_best": 2}, None),
        (
            [*PATIENT],
            {"evaluations_since_best": 3},
            "no better evaluation in 3",
        ),
        (["evaluation.kl_bound=0.5"], {"kl_ref": 0.5}, None),
        (["evaluation.kl_bound=0.5"], {"kl_ref": 0.75}, "kl/ref 0.750 exceeds evaluation.kl_bound 0.5"),
    ],
)
def test_a_run_stops_by_what_its_commit_says_and_its_present_bounds(tmp_path, overrides, state, reason):
    DriverState(step=4, **state).save(tmp_path)
    job = SimpleNamespace(config=config(PPO, *overrides), state=DriverState.load(tmp_path))
    assert Job.stop_reason.fget(job) == reason


class Unreachable:
    url, root = "s3://bucket/run", "here"

    def __str__(self) -> str:
        return self.url

    def push(self) -> None:
        raise OSError("no route")


LACKS = "s3://bucket/run could not be reached (no route); what it lacks stands in here; once it can, resume with: again"


def test_what_cannot_be_sent_at_the_end_is_said_with_the_way_on():
    with pytest.raises(RunFailed) as caught:
        _send(Unreachable(), "again")
    assert str(caught.value) == LACKS


def test_why_a_run_failed_is_said_before_what_could_not_be_sent():
    with pytest.raises(RunFailed) as caught:
        try:
            raise RunFailed("the pool is empty")
        finally:
            _send(Unreachable(), "again")
    assert str(caught.value) == f"the pool is empty\n{LACKS}"


def test_a_driver_that_is_started_again_leaves_sending_to_the_next():
    with pytest.raises(LearnerLost, match="rank 1"):
        try:
            raise LearnerLost("rank 1 died")
        finally:
            _send(Unreachable(), "again")
