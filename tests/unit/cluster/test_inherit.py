"""Workers that an earlier driver left: the pool goes on with them, on the version that is published next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from actors.types import PolicyVersion
from cluster.driver import living_serve
from tests.fixtures.configs import DPO, GRPO, config
from tests.fixtures.local_rollout import LocalRollout
from tests.fixtures.scripted_engine import ScriptedEngine
from tests.unit.cluster.pool.test_pool import LIMITS, PROMPTS, SAMPLING, Bench, every_row, rows_of, script


@pytest.fixture
def left() -> Iterator[dict[str, LocalRollout]]:
    """Two workers at version 7, the second with a version 8 that it never came to admit."""
    found = {name: LocalRollout(name, ScriptedEngine(script)) for name in ("rollout-1", "rollout-4")}
    for worker in found.values():
        worker.server.call(lambda w: w.adopt(PolicyVersion(7, "before"))).result(10)
    found["rollout-4"].server.call(lambda w: w.begin_publish(8)).result(10)
    yield found
    for worker in found.values():
        worker.server.close()


@pytest.fixture
def bench() -> Iterator[list[Bench]]:
    made: list[Bench] = []
    yield made
    for one in made:
        one.pool.close()


def test_the_living_take_the_next_version_and_work_without_another_start(left, bench):
    bench.append(one := Bench(2, inherited=left))
    one.pool.take_over()
    assert one.states() == {"rollout-1": ("healthy", None), "rollout-4": ("healthy", None)}
    one.publish(9)
    assert one.states() == {"rollout-1": ("healthy", 9), "rollout-4": ("healthy", 9)} and one.made == {}
    assert sorted(rows_of(one.pool.generate(PROMPTS, SAMPLING, 9))) == every_row(PROMPTS)
    assert one.told == ["rollout-1 goes on", "rollout-4 goes on"]


def test_those_that_lack_are_started_under_new_names_and_pull_that_version(left, bench):
    bench.append(one := Bench(3, inherited=left))
    one.pool.take_over()
    one.publish(9)
    one.until(lambda: one.states().get("rollout-5") == ("healthy", 9))
    assert len(one.pool) == 3


def test_one_that_does_not_answer_is_ended_and_replaced(left, bench):
    left["rollout-1"].may_start.clear()
    bench.append(one := Bench(2, inherited=left, limits=replace(LIMITS, silence_s=0.1)))
    one.pool.take_over()
    one.publish(9)
    one.until(lambda: one.states().get("rollout-5") == ("healthy", 9))
    assert one.states()["rollout-1"] == ("dead", None) and left["rollout-1"].stopped
    assert one.told[:2] == [
        "rollout-4 goes on",
        "rollout-1 could not join: starting rollout-1: no answer within 0.1 s",
    ]


def test_more_than_the_recipe_says_were_scaled_to_and_stay_but_for_spares(left, bench):
    bench.append(one := Bench(1, inherited=left))
    one.pool.take_over()
    assert len(one.pool) == 2
    more = {name: LocalRollout(name, ScriptedEngine(script)) for name in ("rollout-0", "rollout-3")}
    bench.append(two := Bench(1, inherited=more, limits=replace(LIMITS, spares=1)))
    two.pool.take_over()
    two.until(lambda: two.states()["rollout-3"] == ("spare", None) and len(two.told) == 2)
    assert len(two.pool) == 1 and two.made == {}, "the spare is kept, no other is started"


def test_without_any_that_lives_those_that_are_started_join_after_the_publish(bench):
    bench.append(one := Bench(1))
    one.pool.take_over()
    one.publish(3)
    one.until(lambda: one.states() == {"rollout-0": ("healthy", 3)})


def test_runs_that_need_weights_of_a_known_version_start_afresh():
    assert living_serve(config(GRPO)) and living_serve(config(GRPO, "weights.transport=collective"))
    assert not living_serve(config(GRPO, "weights.transport=sparse_delta")) and not living_serve(config(DPO))
