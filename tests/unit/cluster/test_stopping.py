"""When a run ends before its last step, what skipped steps do, and what becomes of what could not be sent."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from cluster.driver import _send
from cluster.errors import LearnerLost, RunFailed
from cluster.run.checkpoints.state import DriverState
from cluster.training.job import Job
from cluster.training.policy_gradient import PolicyGradientJob
from learners.methods.method import UpdateResult
from tests.fixtures.configs import PPO, config

PATIENT = ("data.heldout=8", "evaluation.every_steps=2", "evaluation.patience=3")


@pytest.mark.parametrize(
    ("overrides", "state", "reason"),
    [
        ([], {"evaluations_since_best": 9, "kl_ref_k1": 9.0}, None),
        ([*PATIENT], {"evaluations_since_best": 2}, None),
        (
            [*PATIENT],
            {"evaluations_since_best": 3},
            "no better evaluation in 3",
        ),
        (["evaluation.kl_bound=0.5"], {"kl_ref_k1": 0.5}, None),
        (["evaluation.kl_bound=0.5"], {"kl_ref_k1": 0.75}, "kl/ref_k1 0.750 exceeds evaluation.kl_bound 0.5"),
    ],
)
def test_a_run_stops_by_what_its_commit_says_and_its_present_bounds(tmp_path, overrides, state, reason):
    DriverState(step=4, **state).save(tmp_path)
    job = SimpleNamespace(config=config(PPO, *overrides), state=DriverState.load(tmp_path))
    assert Job.stop_reason.fget(job) == reason


def test_a_checkpoint_of_before_ends_no_run_by_the_exponential_mean_that_it_holds(tmp_path):
    saved = {"step": 4, "position": 16, "kl_coef": 0.1, "kl_ref": 6.85, "evaluations_since_best": 1}
    (tmp_path / "driver.json").write_text(json.dumps(saved))
    state = DriverState.load(tmp_path)
    assert (state.step, state.position, state.kl_coef, state.evaluations_since_best) == (4, 16, 0.1, 1)
    job = SimpleNamespace(config=config(PPO, "evaluation.kl_bound=0.5"), state=state)
    assert Job.stop_reason.fget(job) is None
    (tmp_path / "driver.json").write_text(json.dumps({**saved, "nobody_wrote": 1}))
    with pytest.raises(TypeError, match="nobody_wrote"):
        DriverState.load(tmp_path)


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


def update(skipped: int, of: int = 2, **metrics: float) -> UpdateResult:
    return UpdateResult(metrics, applied=skipped < of, skipped=skipped, seconds=1.0)


class Stepping:
    """What `Job.check_update` and `_next_kl` touch."""

    def __init__(self, *overrides: str) -> None:
        self.config = config(PPO, *overrides)
        self.state = DriverState(kl_coef=0.1)
        self.told: list[str] = []
        self.noted: dict[str, float] = {}
        self.dumped: list[str] = []
        self.note = self.noted.update
        self.events = SimpleNamespace(write=lambda kind, text, step: self.told.append(text))
        self.learner = SimpleNamespace(dump=lambda columns, path: self.dumped.append(path))
        self.directory = SimpleNamespace(skipped_batch=lambda step: f"batch-{step}")

    def __call__(self, step: int, policy: UpdateResult, critic: UpdateResult | None = None) -> None:
        Job.check_update(self, step, None, policy, critic)


def test_a_critic_that_learns_nothing_is_told_saved_and_stopped_like_a_policy():
    job = Stepping("learner.max_nonfinite_steps=2")
    job(1, update(0), update(0))
    job(2, update(1), update(2))
    assert job.state.nonfinite_in_a_row == 1 and job.dumped == ["batch-2"]
    assert job.told[0].startswith("1 optimiser steps and 2 optimiser steps of the critic skipped: loss or gradient not")
    job(3, update(0), update(1))
    assert job.state.nonfinite_in_a_row == 0, "one of two was applied"
    job(4, update(0), update(2))
    with pytest.raises(RunFailed, match=r"not finite in 2 steps in a row; .* resume with a higher learner.max_nonfini"):
        job(5, update(0), update(2))
    assert job.told[-1].startswith("2 optimiser steps of the critic skipped") and len(job.dumped) == 4


def test_a_step_without_a_finite_kl_moves_no_coefficient():
    job = Stepping("algorithm.kl={target: 6.0, horizon: 100}")
    PolicyGradientJob._next_kl(job, update(2, **{"kl/ref_k1": math.nan, "kl/ref_sequence": math.nan}), 10)
    assert (job.state.kl_coef, job.state.kl_ref_k1) == (0.1, 0.0) and job.noted == {"kl/coef": 0.1}
    PolicyGradientJob._next_kl(job, update(0, **{"kl/ref_k1": 0.5, "kl/ref_sequence": 12.0}), 10)
    assert (job.state.kl_coef, job.state.kl_ref_k1) == (pytest.approx(0.1 * 1.02), 0.5)


def test_a_k3_that_one_token_moved_ends_nothing_and_steers_nothing():
    """As a demo run had it in three steps on end: 0.44, 6.85, 0.38."""
    job = Stepping("algorithm.kl={target: 6.0, horizon: 100}", "evaluation.kl_bound=1.0")
    for k3 in (0.44, 6.85, 0.38):
        measured = {"kl/ref": k3, "policy/approx_kl": k3, "policy/ratio": 1.0 + k3}
        PolicyGradientJob._next_kl(job, update(0, **measured, **{"kl/ref_k1": 0.3, "kl/ref_sequence": 6.0}), 10)
        assert Job.stop_reason.fget(job) is None and job.state.kl_coef == 0.1
    PolicyGradientJob._next_kl(job, update(0, **{"kl/ref": 0.3, "kl/ref_k1": 1.25, "kl/ref_sequence": 6.0}), 10)
    assert Job.stop_reason.fget(job) == "kl/ref_k1 1.250 exceeds evaluation.kl_bound 1"


@pytest.mark.parametrize(("metric", "ends"), [("reward", False), ("correct", True)])
def test_a_part_that_failed_on_all_heldout_prompts_ends_a_run_only_if_it_decides(metric, ends):
    job = Stepping()
    job.evaluation_metric = metric
    scores = {"reward": [1.0, math.nan], "correct": [math.nan, math.nan]}
    if ends:
        with pytest.raises(RunFailed, match="no held-out prompt has a score"):
            Job.note_evaluation(job, 2, scores)
    else:
        assert Job.note_evaluation(job, 2, scores) and job.state.best_value == 1.0
        assert not any("correct" in name for name in job.noted)
