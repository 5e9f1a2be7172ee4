"""The driver's twin in simulated time, against steps that can be worked out by hand."""

import numpy as np
import pytest

from cluster.pool.autoscale import AutoscaleSettings
from cluster.simulate.run import Scenario, simulate
from cluster.simulate.worker import SimulatedWorker, StepTime

SECOND = StepTime(base=1.0, each=0.0)
"""A decode step takes a second, however many sequences there are."""


def scenario(**changes) -> Scenario:
    """Two workers, batches of 4 prompts of one sample, 10 tokens each, 5 s of learning."""
    plain = {
        "workers": 2,
        "batch": 4,
        "samples": 1,
        "steps": 6,
        "step": SECOND,
        "lengths": lambda group: [10],
        "learn_s": lambda tokens: 5.0,
        "max_tokens": 10,
    }
    return Scenario(**plain | changes)


def test_a_worker_s_sequences_share_its_steps():
    worker = SimulatedWorker(StepTime(base=1.0, each=0.5))
    worker.add(0.0, 7, [2, 4])
    assert worker.next_end() == 2 * 2.0, "two run: a step takes 1 + 2 * 0.5"
    assert worker.advance(4.0) == [7] and worker.running == 1
    assert worker.next_end() == 4.0 + 2 * 1.5
    worker.stall(4.0, 10.0)
    assert worker.next_end() == 17.0
    assert worker.advance(17.0) == [7] and worker.next_end() is None
    assert (worker.tokens, worker.busy_s) == (6, 17.0)


def test_what_a_worker_had_is_taken_back_with_what_it_lacks():
    worker = SimulatedWorker(SECOND)
    worker.add(0.0, 1, [5, 3])
    assert worker.advance(2.0) == []
    assert worker.take_back() == {1: [1, 3]} and worker.running == 0 and worker.tokens == 4


def test_a_synchronous_step_is_generating_and_then_learning():
    found = simulate(scenario())
    assert found.step_s == [15.0] * 6 and found.seconds == 90.0
    assert found.learner_idle == pytest.approx(10 / 15)
    assert (found.samples, found.tokens, set(found.staleness)) == (24, 240, {0})
    assert found.decoding == 2 * 60.0, "two workers for ten seconds in each of six steps"


def test_a_publish_holds_the_workers_and_not_the_learner():
    found = simulate(scenario(publish_s=2.0, score_s=1.0))
    assert found.step_s == [16.0, *[18.0] * 5]


def test_what_the_driver_does_in_turns_the_learner_waits_for_though_workers_generate_ahead():
    """Batches are always ready: 1 s of scores, 5 of learning, 2 of publishing."""
    work = {"workers": 8, "publish_s": 2.0, "score_s": 1.0, "steps": 20}
    ahead = simulate(scenario(**work, max_staleness=2))
    assert set(ahead.step_s[3:]) == {8.0} and ahead.learner_idle == pytest.approx(1 - 20 * 5 / ahead.seconds)
    settled = simulate(scenario(**work, max_staleness=1, settle=True))
    assert settled.step_s[5] == 12.0, "ten of generating, of which six are scores and learning; a publish"


def test_one_step_off_a_step_is_the_longer_of_the_two():
    found = simulate(scenario(max_staleness=1, settle=True))
    assert found.step_s[0] == 15.0
    assert found.step_s[2:-1] == [10.0] * 3, "generating takes 10 s, learning 5"
    assert max(found.staleness) == 1
    slow = simulate(scenario(max_staleness=1, settle=True, learn_s=lambda tokens: 30.0))
    assert slow.step_s[1:] == [30.0] * 5 and slow.learner_idle == pytest.approx(10 / 190)


def test_long_sequences_hold_up_a_synchronous_learner_and_not_an_asynchronous_one():
    """One prompt in eight takes ten times as long; the learner needs 20 s for a batch of 16."""
    work = {"batch": 16, "steps": 30, "lengths": lambda g: [200 if g % 8 == 3 else 20], "learn_s": lambda t: 60.0}
    sync, ahead = simulate(scenario(**work)), simulate(scenario(**work, max_staleness=4))
    assert sync.step_s[5] == 260.0
    assert np.median(ahead.step_s) == 60.0 and ahead.learner_idle < 0.15
    assert max(ahead.staleness) <= 4 and ahead.samples == sync.samples == 30 * 16


def test_more_sequences_than_a_worker_runs_at_once_wait():
    found = simulate(scenario(workers=1, sequences=2))
    assert found.step_s[0] == 20.0 + 5.0


def test_workers_come_when_the_learner_waits_and_what_a_leaver_had_is_not_lost():
    scale = AutoscaleSettings(min=1, max=8, target_idle=0.1, cooldown_s=0.0)
    each = StepTime(base=0.0, each=0.25)
    work = {"workers": 1, "batch": 8, "steps": 40, "step": each, "max_staleness": 2, "start_s": 3.0}
    found = simulate(scenario(**work, autoscale=scale))
    # 8 sequences of 10 tokens at 0.25 s a token and sequence: 20 worker-seconds for 5 s of learning.
    assert found.workers[0] == 1 and set(found.workers[-10:]) == {4}
    assert np.mean(found.step_s[-10:]) <= 5.0 / 0.9 + 0.1
    over = simulate(scenario(**work | {"workers": 8}, autoscale=scale))
    assert set(over.workers[-10:]) == {4} and over.samples == 40 * 8


def test_the_driver_s_cost_of_a_sample_is_counted():
    assert 0.0 < simulate(scenario()).driver_s < 1.0


def test_nobody_is_let_go_for_joiners_that_are_not_there_yet():
    scale = AutoscaleSettings(min=1, max=4, target_idle=0.1, cooldown_s=0.0)
    # Work for four at first, then for one, before anybody has started.
    work = {"lengths": lambda group: [80 if group < 16 else 2], "max_tokens": 80, "step": StepTime(base=0.0, each=0.25)}
    found = simulate(scenario(workers=1, steps=20, max_staleness=2, start_s=1e6, autoscale=scale, **work))
    assert set(found.workers) == {1} and len(found.step_s) == 20 and found.seconds < 1e6
