"""Workers that decode far slower than the others: who rests, where its tickets go, and how it comes back.

Scripted workers in this process, as in test_pool.py. How fast each decodes is what its pulse says: half a second of it
a look, in steps of 1/40 s (fast) or 1/4 s (slow), so that a slow one is found at its fifth look.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actors.rollouts.pace import Pace
from actors.transports.buckets import make_bucket
from actors.transports.sparse_delta import DeltaBucket, DeltaReceiver, DeltaSender
from actors.types import PolicyVersion, digest_buckets
from tests.fixtures.local_rollout import LocalRollout
from tests.unit.actors.rollouts.test_server import Gate
from tests.unit.actors.rollouts.test_worker import buckets_of
from tests.unit.cluster.pool.test_pool import LIMITS, PROMPTS, SAMPLING, SOON_S, Bench, every_row, rows_of

FAST, SLOW = 1 / 40, 1 / 4
RESTING = replace(LIMITS, rest_s=200.0)
"""They rest until the test calls them back."""


class Paced:
    """Says at each look that half a second of decoding has passed."""

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s
        self.looks = 0
        self._pace = Pace(running=4)

    def __call__(self) -> Pace:
        self.looks += 1
        before, steps = self._pace, round(0.5 / self.step_s)
        tokens = before.tokens + 4 * steps
        self._pace = replace(before, steps=before.steps + steps, seconds=before.seconds + 0.5, tokens=tokens)
        return self._pace


class Slowed(Bench):
    """A pool in which some are said to be slow."""

    def pace(self, **steps_s: float) -> None:
        """From now on: rollout_2=SLOW, say; the others are fast."""
        for name, worker in self.made.items():
            worker.paced = Paced(steps_s.get(name.replace("-", "_"), FAST))

    def looked_at(self, name: str, times: int) -> None:
        """Returns when its pulse was asked for so many times more."""
        paced = self.made[name].paced
        until = paced.looks + times
        self.until(lambda: paced.looks >= until)

    def suspected(self, name: str) -> str:
        """Wait for it; what was told."""
        self.until(lambda: any(text.startswith(f"{name} is suspected") for text in self.told))
        return next(text for text in reversed(self.told) if text.startswith(f"{name} is suspected"))

    def rested(self, name: str) -> None:
        """End its rest, and wait until it serves."""
        watch = self.pool._members._watch
        self.pool._soon(lambda: watch._called_back[name].set())
        self.until(lambda: self.states()[name][0] == "healthy")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Slowed]]:
    monkeypatch.setattr("cluster.pool.members.watch.SOONEST_S", 0.01)
    monkeypatch.setattr("cluster.pool.members.watch.LOOKS_A_S", 1000)
    made: list[Slowed] = []

    def make(count: int, **changes: Any) -> Slowed:
        made.append(Slowed(count, **{"limits": RESTING, **changes}))
        return made[-1].adopt()

    yield make
    for one in made:
        for gate in one.gates.values():
            gate.open(10_000)
        one.pool.close()


def test_a_slow_ones_tickets_end_elsewhere_with_their_tokens_and_it_comes_back_at_the_version_published_meanwhile(
    bench,
):
    gate = Gate(engine_steps_free=2)
    one = bench(3, gates={"rollout-2": gate})
    recorded = one.pool.generate(PROMPTS[:1], SAMPLING, 0, recorded=1).recorded
    ends = [one.pool.offer(one.pool.ticket([p], SAMPLING, prefer="rollout-2")) for p in PROMPTS[:2]]
    assert gate.reached.acquire(timeout=SOON_S), "two tokens of each sample are made"
    one.pace(rollout_2=SLOW)
    assert one.suspected("rollout-2") == (
        "rollout-2 is suspected: it decodes 10.0 times slower than the others (0.25 s a step, which would take 0.025 "
        "s: median of 2); 2 tickets go to others, it rests for 200 s"
    )
    gate.open(1)
    finished = one.pool.wait(ends)
    assert sorted((s.group, s.sample_index, s.token_ids.tolist()) for f in finished for s in f.batch) == every_row(
        PROMPTS[:2]
    ), "nothing is lost, nothing twice, nothing made otherwise"
    assert {f.member for f in finished} <= {"rollout-0", "rollout-1"} and {f.ticket.tries for f in finished} == {0}
    assert sum(f.stats.carried_tokens for f in finished) >= 2 * 3
    assert one.states()["rollout-2"] == ("suspect", 0) and len(one.pool) == 3

    seen: list[np.ndarray] = []
    buckets, version = buckets_of(1.0, 1)
    assert one.pool.begin_publish(1)[0] == ("rollout-0", "rollout-1"), "a publish passes it by"
    for bucket in buckets:
        one.pool.receive(bucket)
    one.pool.finish_publish(version)
    one.pool.admit(version, buckets, recorded, lambda logprobs: seen.append(logprobs))
    one.pace()
    one.rested("rollout-2")
    assert one.states()["rollout-2"] == ("healthy", 1) and one.made["rollout-2"].engine.loaded_names == ["a", "b"]
    np.testing.assert_allclose(seen[0], -recorded.token_ids / 100, rtol=1e-6)
    assert re.fullmatch(r"rollout-2 is back at version 1 \(weights and proof \d+\.\d\d s\)", one.told[-1])
    gate.open(1000)
    samples = one.pool.generate(PROMPTS, SAMPLING, 1)
    assert sorted(rows_of(samples)) == every_row(PROMPTS) and len(samples.chunks) == 3
    assert len(one.made["rollout-2"].engine.requests) == 4 + 4, "it has work again"


def test_one_that_still_holds_the_present_version_proves_it_again_and_loads_nothing(bench):
    one = bench(2)
    recorded = one.pool.generate(PROMPTS[:1], SAMPLING, 0, recorded=1).recorded
    buckets, version = buckets_of(1.0, 1)
    one.pool.begin_publish(1)
    for bucket in buckets:
        one.pool.receive(bucket)
    one.pool.finish_publish(version)
    seen: list[np.ndarray] = []
    one.pool.admit(version, buckets, recorded, lambda logprobs: seen.append(logprobs))
    one.pace(rollout_1=SLOW)
    one.suspected("rollout-1")
    one.pace()
    one.rested("rollout-1")
    assert len(seen) == 1 and one.made["rollout-1"].engine.updates_finished == 1
    assert sorted(rows_of(one.pool.generate(PROMPTS, SAMPLING, 1))) == every_row(PROMPTS)


def test_one_that_computes_otherwise_after_its_rest_is_lost_and_replaced(bench):
    one = bench(2)
    recorded = one.pool.generate(PROMPTS[:1], SAMPLING, 0, recorded=1).recorded
    one.pace(rollout_1=SLOW)
    one.suspected("rollout-1")
    one.pool.calibrated(recorded, lambda logprobs: "computes with other weights" if one.told else None)
    one.pool._soon(lambda: one.pool._members._watch._called_back["rollout-1"].set())
    one.until(lambda: one.states()["rollout-1"][0] == "dead")
    assert "rollout-1 is lost: rollout-1 computes with other weights" in one.told
    one.until(lambda: "rollout-2" in one.states())


def test_where_the_weights_come_as_changes_one_that_missed_some_takes_whole_buckets(bench):
    """Version 2 is a change of one word, which the suspect misses; version 3 is another, of what it then holds."""
    one = bench(2, takes_along=False)
    for worker in one.made.values():
        worker.server._worker._receiver = DeltaReceiver()
    sender, weights = DeltaSender(), torch.zeros(64)

    def publish(number: int) -> type:
        weights[number] = number
        bucket = make_bucket(0, True, [("a", weights.clone())])
        version = PolicyVersion(number, digest_buckets([bucket.digest()]))
        parcel = sender.pack(bucket, [("a", weights)])
        one.pool.begin_publish(number)
        one.pool.receive(parcel)
        one.pool.finish_publish(version)
        one.pool.admit(version, [bucket], None, lambda logprobs: None)
        return type(parcel)

    publish(1)
    one.pace(rollout_1=SLOW)
    one.suspected("rollout-1")
    assert publish(2) is DeltaBucket and one.states() == {"rollout-0": ("healthy", 2), "rollout-1": ("suspect", 1)}
    one.pace()
    one.rested("rollout-1")
    assert publish(3) is DeltaBucket and one.states() == {f"rollout-{i}": ("healthy", 3) for i in range(2)}


def test_the_last_that_serves_is_never_suspected_nor_is_one_alone(bench):
    one = bench(2)
    one.pace(rollout_1=SLOW)
    one.suspected("rollout-1")
    one.made["rollout-0"].paced = Paced(SLOW)
    one.looked_at("rollout-0", 12)
    assert one.states()["rollout-0"][0] == "healthy"
    alone = bench(1)
    alone.pace(rollout_0=SLOW)
    alone.looked_at("rollout-0", 12)
    assert alone.states() == {"rollout-0": ("healthy", 0)}


def test_when_nobody_else_is_left_one_that_rests_is_called_back_at_once(bench):
    one = bench(2)
    one.pace(rollout_1=SLOW)
    one.suspected("rollout-1")
    one.prepare = lambda worker: worker.may_start.clear()
    one.made["rollout-0"].lost = True
    found = one.pool.offer(one.pool.ticket(PROMPTS, SAMPLING)).result(SOON_S)
    assert sorted((s.group, s.sample_index, s.token_ids.tolist()) for s in found.batch) == every_row(PROMPTS)
    assert one.states()["rollout-1"] == ("healthy", 0)
    one.until(lambda: one.states().get("rollout-2", ("",))[0] == "joining")
    assert any(text.startswith("rollout-1 is back at version 0") for text in one.told)
    assert one.pool.scale(1) == "1 worker leaves, 1 stay"
    one.until(lambda: one.states()["rollout-2"][0] == "retired")


def test_one_that_dies_in_its_rest_is_lost_and_replaced(bench):
    one = bench(2)
    one.pace(rollout_1=SLOW)
    one.suspected("rollout-1")
    one.made["rollout-1"].lost = True
    one.until(lambda: one.states().get("rollout-2") == ("healthy", 0))
    assert "rollout-1 is lost: it died (killed)" in one.told and one.states()["rollout-1"][0] == "dead"


def test_one_that_does_not_give_its_work_back_is_lost_and_others_begin_it_again(bench):
    gate = Gate(engine_steps_free=1)
    one = bench(2, gates={"rollout-1": gate}, limits=replace(RESTING, silence_s=0.3))
    end = one.pool.offer(one.pool.ticket(PROMPTS, SAMPLING, prefer="rollout-1"))
    assert gate.reached.acquire(timeout=SOON_S)
    one.pace(rollout_1=SLOW)
    found = end.result(SOON_S)
    assert found.member != "rollout-1" and (found.stats.carried_tokens, found.ticket.tries) == (0, 1)
    assert "rollout-1 is lost: taking back the work of rollout-1: no answer within 0.3 s" in one.told
    gate.open(100)


def test_while_one_rests_prompts_are_divided_among_the_others(bench):
    one = bench(3)
    one.pace(rollout_0=SLOW)
    one.suspected("rollout-0")
    samples = one.pool.generate(PROMPTS, SAMPLING, 0)
    assert len(samples.chunks) == 2 and sorted(rows_of(samples)) == every_row(PROMPTS)
    assert [len(worker.engine.requests) for worker in one.made.values()] == [0, 6, 6]


def test_one_that_is_slow_again_rests_twice_as_long(bench):
    one = bench(2)
    one.pace(rollout_1=SLOW)
    assert one.suspected("rollout-1").endswith("it rests for 200 s")
    one.rested("rollout-1")
    one.until(lambda: one.suspected("rollout-1").endswith("it rests for 400 s"))


def test_a_smaller_pool_is_one_without_those_that_rest(bench):
    one = bench(3)
    one.pace(rollout_0=SLOW)
    one.suspected("rollout-0")
    assert one.pool.scale(2) == "1 worker leaves, 2 stay"
    one.until(lambda: one.states()["rollout-0"][0] == "retired")
    assert [one.states()[f"rollout-{i}"][0] for i in (1, 2)] == ["healthy", "healthy"]


def test_a_pool_that_is_held_has_nobody_who_decodes_a_suspect_included(bench):
    gate = Gate(engine_steps_free=1)
    one = bench(2, gates={"rollout-1": gate})
    end = one.pool.offer(one.pool.ticket(PROMPTS, SAMPLING, prefer="rollout-1"))
    assert gate.reached.acquire(timeout=SOON_S)
    one.pace(rollout_1=SLOW)
    one.suspected("rollout-1")
    holding = threading.Thread(target=one.pool.hold)
    holding.start()
    one.until(lambda: one.made["rollout-1"].server._calls.qsize() >= 2)
    assert holding.is_alive(), "it waits for the step under way"
    gate.open(1)
    holding.join(SOON_S)
    assert not end.done() and one.made["rollout-1"].engine.running == []
    one.pool.go_on()
    assert end.result(SOON_S).stats.carried_tokens == 12 * 2


def test_who_is_of_a_publish_comes_through_it_before_it_may_be_suspected(bench):
    one = bench(2)
    buckets, version = buckets_of(1.0, 1)
    one.pool.begin_publish(1)
    one.pace(rollout_1=SLOW)
    one.looked_at("rollout-1", 12)
    assert one.states()["rollout-1"][0] == "healthy"
    for bucket in buckets:
        one.pool.receive(bucket)
    one.pool.finish_publish(version)
    one.pool.admit(version, buckets, None, lambda logprobs: None)
    one.suspected("rollout-1")
    assert one.states()["rollout-1"] == ("suspect", 1)


def test_where_no_factor_is_given_nobody_is_suspected(bench, monkeypatch):
    monkeypatch.setattr("cluster.pool.members.watch.WATCH_EVERY_S", 0.01)
    one = bench(2, limits=replace(RESTING, slow_factor=None))
    one.pace(rollout_1=SLOW)
    one.looked_at("rollout-1", 12)
    assert {state for state, _ in one.states().values()} == {"healthy"}


def test_a_pulse_tells_the_truth_where_nothing_else_was_planted(bench):
    one = bench(1)
    one.pool.generate(PROMPTS, SAMPLING, 0)
    pace = one.pool.pulses()["rollout-0"].pace
    # Twelve samples of four tokens, in four steps; prompts of two tokens, read once for each sample.
    assert (pace.steps, pace.tokens, pace.running, pace.unread) == (4, 12 * 4 + 12 * 2, 0, 0)
    assert isinstance(one.made["rollout-0"], LocalRollout) and pace.seconds > 0
