"""The rollout pool over workers in this process: who joins, who leaves, what moves, and what is refused.

Every engine is scripted: token t of sample i of group g is 100 g + 10 i + t, four tokens long, whoever makes it.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from actors.types import PolicyVersion, Prompt, SamplingSettings
from cluster.errors import RunFailed, UserError
from cluster.pool.members.recovery import RecoveryLimits
from cluster.pool.members.roster import Deadlines
from cluster.pool.pool import RolloutPool
from tests.fixtures.local_rollout import PLAIN, LocalRollout, local_start
from tests.fixtures.scripted_engine import ScriptedEngine
from tests.unit.actors.rollouts.test_server import Gate
from tests.unit.actors.rollouts.test_worker import buckets_of

SAMPLING = SamplingSettings(max_tokens=8, samples_per_prompt=2)
PROMPTS = [Prompt(id=g, token_ids=(1, 2), group=g) for g in range(1, 7)]
SOON_S = 20.0
LIMITS = RecoveryLimits(failures=5, attempts=3, silence_s=SOON_S, progress_s=SOON_S, backoff_s=0.02)


def script(request) -> list[int]:
    group, index, _ = request.id.split("/")
    return [100 * int(group) + 10 * int(index) + t for t in range(4)]


class Bench:
    """A pool, its workers by name, and what it told."""

    def __init__(self, count: int, gates: dict[str, Gate] | None = None, **changes) -> None:
        self.made: dict[str, LocalRollout] = {}
        self.told: list[str] = []
        self.gates = gates or {}
        self.prepare: Callable[[LocalRollout], None] = lambda worker: None

        def start(name: str) -> LocalRollout:
            worker = local_start(self._engine, self.made)(name)
            self.prepare(worker)
            return worker

        self.pool = RolloutPool(
            start,
            count,
            put=lambda value: value,
            sequences=64,
            deadlines=Deadlines(SOON_S, SOON_S, SOON_S),
            tell=lambda kind, text: self.told.append(text),
            **{"limits": LIMITS, **changes},
        )

    def _engine(self, name: str) -> ScriptedEngine:
        gate = self.gates.get(name)
        return ScriptedEngine(script, on_step=gate or (lambda step: None))

    def adopt(self) -> Bench:
        self.pool.adopt(PolicyVersion(0, "disk"))
        return self

    def publish(self, number: int) -> None:
        buckets, version = buckets_of(float(number), number)
        self.pool.begin_publish(number)
        for bucket in buckets:
            self.pool.receive(bucket)
        self.pool.finish_publish(version)
        self.pool.admit(version, buckets, None, lambda logprobs: None)

    def states(self) -> dict[str, tuple[str, int | None]]:
        return {name: (state, version) for name, state, version in self.pool.members()}

    def until(self, what: Callable[[], bool]) -> None:
        """Wait for something that another thread brings about."""
        ticks = threading.Event()
        for _ in range(int(SOON_S * 200)):
            if what():
                return
            ticks.wait(0.005)
        raise AssertionError(f"it never happened; {self.states()}, {self.told}")


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(count: int, **changes) -> Bench:
        made.append(Bench(count, **changes))
        return made[-1]

    yield make
    for one in made:
        for gate in one.gates.values():
            gate.open(10_000)
        one.pool.close()


def rows_of(samples) -> list[tuple[int, int, list[int]]]:
    return [(s.group, s.sample_index, s.token_ids.tolist()) for chunk in samples.chunks for s in chunk]


def every_row(prompts) -> list[tuple[int, int, list[int]]]:
    return sorted((p.group, i, [100 * p.group + 10 * i + t for t in range(4)]) for p in prompts for i in range(2))


def test_prompts_go_to_workers_by_index_and_come_back_as_one_chunk_each(bench):
    one = bench(2).adopt()
    samples = one.pool.generate(PROMPTS[:5], SAMPLING, 0, recorded=1)
    assert samples.groups == (1, 3, 5, 2, 4) and len(samples.chunks) == 2
    assert rows_of(samples) == [row for p in (1, 3, 5, 2, 4) for row in every_row([PROMPTS[p - 1]])]
    assert [len(worker.engine.requests) for worker in one.made.values()] == [6, 4]
    assert (len(samples.recorded), samples.samples_per_prompt) == (1, 2)


def test_fewer_prompts_than_workers_leave_some_idle(bench):
    one = bench(3).adopt()
    assert len(one.pool.generate(PROMPTS[:1], SAMPLING, 0).chunks) == 1


def test_a_joiner_takes_the_present_version_proves_it_and_then_work(bench):
    one = bench(1).adopt()
    one.publish(1)
    assert one.pool.scale(3) == "2 more workers on the way to 3"
    one.until(lambda: len(one.pool.members()) == 3 and {s for s, _ in one.states().values()} == {"healthy"})
    assert one.states() == {f"rollout-{i}": ("healthy", 1) for i in range(3)}
    assert one.made["rollout-2"].engine.loaded_names == ["a", "b"]
    samples = one.pool.generate(PROMPTS, SAMPLING, 1)
    assert sorted(rows_of(samples)) == every_row(PROMPTS) and len(samples.chunks) == 3


def test_a_joiner_that_starts_during_a_publish_takes_the_version_that_is_being_published(bench):
    one = bench(1).adopt()
    buckets, version = buckets_of(1.0, 1)
    one.pool.begin_publish(1)
    one.pool.scale(2)
    for bucket in buckets:
        one.pool.receive(bucket)
    one.pool.finish_publish(version)
    assert one.states()["rollout-1"] == ("joining", None)
    one.pool.admit(version, buckets, None, lambda logprobs: None)
    one.until(lambda: one.states()["rollout-1"] == ("healthy", 1))


def test_a_joiner_that_was_overtaken_goes_along_with_the_next_publish(bench):
    """Version 2 begins while it takes 1, and 3 as soon as 2 is settled: by itself it would never catch up."""
    one = bench(1).adopt()
    one.publish(1)
    taking, go_on = threading.Event(), threading.Event()

    def slow(worker: LocalRollout) -> None:
        load = worker.engine.finish_update

        def finish() -> None:
            if not taking.is_set():
                taking.set()
                go_on.wait(SOON_S)
                time.sleep(0.2)  # how long it waits for the next publish goes by how long this round took
            load()

        worker.engine.finish_update = finish

    one.prepare = slow
    one.pool.scale(2)
    assert taking.wait(SOON_S)
    buckets, version = buckets_of(2.0, 2)
    one.pool.begin_publish(2)
    go_on.set()
    one.until(lambda: "rollout-1" in one.pool._core.weights._overtaken)
    for bucket in buckets:
        one.pool.receive(bucket)
    one.pool.finish_publish(version)
    one.pool.admit(version, buckets, None, lambda logprobs: None)
    assert one.pool.begin_publish(3)[0] == ("rollout-0", "rollout-1")
    buckets, version = buckets_of(3.0, 3)
    for bucket in buckets:
        one.pool.receive(bucket)
    one.pool.finish_publish(version)
    one.pool.admit(version, buckets, None, lambda logprobs: None)
    one.until(lambda: one.states()["rollout-1"] == ("healthy", 3))


def test_a_joiner_that_computes_otherwise_takes_no_traffic(bench):
    one = bench(1).adopt()
    buckets, version = buckets_of(1.0, 1)
    recorded = one.pool.generate(PROMPTS[:1], SAMPLING, 0, recorded=1).recorded
    one.pool.begin_publish(1)
    for bucket in buckets:
        one.pool.receive(bucket)
    one.pool.finish_publish(version)
    seen: list[np.ndarray] = []

    def judge(logprobs: np.ndarray) -> str | None:
        seen.append(logprobs)
        return "computes with other weights"

    one.pool.admit(version, buckets, recorded, judge)
    one.pool.scale(2)
    one.until(lambda: one.states()["rollout-1"][0] == "dead")
    np.testing.assert_allclose(seen[0], -recorded.token_ids / 100, rtol=1e-6)
    assert one.told[-1] == "rollout-1 could not join: rollout-1 computes with other weights"
    assert len(one.pool) == 1 and one.made["rollout-1"].stopped
    assert sorted(rows_of(one.pool.generate(PROMPTS, SAMPLING, 1))) == every_row(PROMPTS)


def test_a_joiner_with_another_engine_or_tokenizer_takes_no_traffic(bench):
    one = bench(1).adopt()
    one.prepare = lambda worker: setattr(worker, "identity", replace(PLAIN, engine="scripted 2", tokenizer="other"))
    one.pool.scale(2)
    one.until(lambda: one.states()["rollout-1"][0] == "dead")
    assert one.told[-1] == (
        "rollout-1 could not join: rollout-1 has another engine (scripted 2, the others scripted 1), tokenizer (other, "
        "the others tok); mend its node's installation"
    )


def test_a_joiner_whose_weights_arrive_damaged_takes_no_traffic(bench):
    one = bench(1).adopt()
    buckets, _ = buckets_of(1.0, 1)
    one.publish(1)
    weights = one.pool._core.weights
    weights._current = replace(weights._current, buckets=(buckets[0],))
    one.pool.scale(2)
    one.until(lambda: one.states()["rollout-1"][0] == "dead")
    assert "PublishRefused: the last bucket of version 1 never came" in one.told[-1]


def test_a_leaver_hands_on_its_unfinished_sequences_with_the_tokens_already_made(bench):
    gate = Gate()
    one = bench(2, gates={"rollout-1": gate}).adopt()
    calls = one.made["rollout-1"].server._calls

    def offer(group: int):
        return one.pool.offer(one.pool.ticket([PROMPTS[group - 1]], SAMPLING, prefer=f"rollout-{(group + 1) % 2}"))

    ends = [offer(2)]
    assert gate.reached.acquire(timeout=SOON_S), "its first step, of group 2 alone"
    ends += [offer(group) for group in (1, 3, 4, 5, 6)]
    one.until(lambda: calls.qsize() == 2)
    gate.open(2)
    assert all(gate.reached.acquire(timeout=SOON_S) for _ in range(2)), "group 2 has two tokens, 4 and 6 have one"
    assert one.pool.scale(1) == "1 worker leaves, 1 stay"
    one.until(lambda: calls.qsize() == 1)
    gate.open(1)
    finished = one.pool.wait(ends)
    samples = sorted((s.group, s.sample_index, s.token_ids.tolist()) for f in finished for s in f.batch)
    assert samples == every_row(PROMPTS), "nothing is lost, nothing twice, nothing made otherwise"
    assert {f.ticket.groups: f.stats.carried_tokens for f in finished} == {
        **{(g,): 0 for g in (1, 3, 5)},
        **{(2,): 2 * 3, (4,): 2 * 2, (6,): 2 * 2},
    }
    assert {f.member for f in finished} == {"rollout-0"}
    assert one.made["rollout-0"].engine.requests["2/0"].prompt_tokens == (1, 2, 200, 201, 202)
    one.until(lambda: one.states()["rollout-1"][0] == "retired")
    assert one.made["rollout-1"].stopped and "rollout-1 left, 3 tickets handed on" in one.told


def test_a_leaver_that_dies_first_has_its_work_done_again_by_others(bench):
    gate = Gate()
    one = bench(2, gates={"rollout-1": gate}).adopt()
    ends = [one.pool.offer(one.pool.ticket(PROMPTS[:1], SAMPLING, prefer="rollout-1"))]
    assert gate.reached.acquire(timeout=SOON_S)
    ends += [one.pool.offer(one.pool.ticket([p], SAMPLING, prefer="rollout-1")) for p in PROMPTS[1:]]
    leaver = one.made["rollout-1"]
    one.until(lambda: leaver.server._calls.qsize() == 5)
    one.pool.scale(1)
    one.until(lambda: leaver.server._calls.qsize() == 6)
    leaver.lost = True
    gate.open(100)
    finished = one.pool.wait(ends)
    samples = sorted((s.group, s.sample_index, s.token_ids.tolist()) for f in finished for s in f.batch)
    assert samples == every_row(PROMPTS) and {f.member for f in finished} == {"rollout-0"}
    one.until(lambda: one.states()["rollout-1"][0] == "dead")
    assert one.told[-1] == ("rollout-1 was ended (draining rollout-1: the worker died (killed)), 6 tickets handed on")


def test_a_pool_that_is_held_stops_where_it_stands_and_goes_on_with_the_tokens_already_made(bench):
    gate = Gate(engine_steps_free=2)
    one = bench(1, gates={"rollout-0": gate}).adopt()
    end = one.pool.offer(one.pool.ticket(PROMPTS, SAMPLING))
    assert gate.reached.acquire(timeout=SOON_S)
    holding = threading.Thread(target=one.pool.hold)
    holding.start()
    one.until(lambda: one.made["rollout-0"].server._calls.qsize() == 1)
    gate.open(1)
    holding.join(SOON_S)
    assert not end.done() and one.made["rollout-0"].engine.running == []
    one.publish(1)
    late = one.pool.offer(one.pool.ticket([Prompt(id=9, token_ids=(1, 2), group=9)], SAMPLING))
    assert len(one.made["rollout-0"].engine.requests) == 12, "nothing is given out"
    gate.open(100)
    one.pool.go_on()
    found = end.result(SOON_S)
    assert sorted((s.group, s.sample_index, s.token_ids.tolist()) for s in found.batch) == every_row(PROMPTS)
    assert {s.spans for s in found.batch} == {((0, 0), (3, 1))} and found.stats.carried_tokens == 12 * 3
    assert len(late.result(SOON_S).batch) == 2


def reached_late(worker: LocalRollout) -> None:
    """Tickets are 0.1 s on their way to it, and its steps take 0.2 s."""
    generate = worker.generate

    async def late(ticket):
        await asyncio.sleep(0.1)
        return await generate(ticket)

    worker.generate = late
    worker.engine._on_step = lambda step: time.sleep(0.2)


def test_a_ticket_that_reaches_its_worker_after_the_call_that_was_to_interrupt_it_is_stopped_too(bench):
    one = bench(1)
    worker = one.made["rollout-0"]
    reached_late(worker)
    one.adopt()
    end = one.pool.offer(one.pool.ticket(PROMPTS, SAMPLING))
    one.pool.hold()
    assert not end.done() and worker.engine.requests, "it had begun, and was not waited for"
    one.pool.go_on()
    found = end.result(SOON_S)
    assert sorted((s.group, s.sample_index, s.token_ids.tolist()) for s in found.batch) == every_row(PROMPTS)


def test_a_ticket_that_reaches_a_leaver_after_it_was_interrupted_is_handed_on_too(bench):
    one = bench(2)
    leaver = one.made["rollout-1"]
    reached_late(leaver)
    one.adopt()
    end = one.pool.offer(one.pool.ticket(PROMPTS, SAMPLING, prefer="rollout-1"))
    assert one.pool.scale(1) == "1 worker leaves, 1 stay"
    finished = end.result(SOON_S)
    assert leaver.engine.requests and finished.member == "rollout-0", "it had begun, and did not end it"
    assert sorted((s.group, s.sample_index, s.token_ids.tolist()) for s in finished.batch) == every_row(PROMPTS)


def test_one_that_is_asked_to_leave_before_it_has_joined_just_ends(bench):
    one = bench(1).adopt()
    one.prepare = lambda worker: worker.may_start.clear()
    one.pool.scale(2)
    assert one.pool.scale(1) == "1 worker leaves, 1 stay"
    one.until(lambda: one.states()["rollout-1"][0] == "retired")
    assert one.states()["rollout-0"][0] == "healthy", "the one that has not joined goes first"


def test_names_are_never_given_twice(bench):
    one = bench(2).adopt()
    one.pool.scale(1)
    one.until(lambda: one.states()["rollout-1"][0] == "retired")
    one.pool.scale(2)
    one.until(lambda: one.states().get("rollout-2", ("", 0))[0] == "healthy")


def test_no_worker_at_all_and_more_than_fit_are_refused_with_the_reason(bench):
    one = bench(1, refuse=lambda more: f"{more} more workers do not fit" if more > 2 else None).adopt()
    with pytest.raises(UserError, match="a pool needs at least one worker, got 0"):
        one.pool.scale(0)
    with pytest.raises(UserError, match="3 more workers do not fit"):
        one.pool.scale(4)
    assert one.pool.scale(1) == "there are 1 already" and len(one.pool) == 1


def test_a_worker_that_dies_while_generating_is_replaced_and_its_work_made_again(bench):
    gate = Gate(engine_steps_free=1)
    one = bench(1, gates={"rollout-0": gate}).adopt()
    one.publish(1)
    end = one.pool.offer(one.pool.ticket(PROMPTS, SAMPLING, version=1))
    assert gate.reached.acquire(timeout=SOON_S)
    one.made["rollout-0"].lost = True
    gate.open(100)
    found = end.result(SOON_S)
    assert sorted((s.group, s.sample_index, s.token_ids.tolist()) for s in found.batch) == every_row(PROMPTS)
    assert found.member == "rollout-1" and found.ticket.tries == 1
    assert one.states() == {"rollout-0": ("dead", 1), "rollout-1": ("healthy", 1)}
    assert one.told[1] == "rollout-0 is lost: it died while generating (killed); 1 tickets begin again"
    assert one.made["rollout-0"].stopped


def test_a_spare_takes_the_place_of_one_that_died_and_another_is_kept_ready(bench):
    one = bench(1, limits=replace(LIMITS, spares=1)).adopt()
    one.until(lambda: any("rollout-1 is a spare" in text for text in one.told))
    assert one.states()["rollout-1"] == ("spare", None) and len(one.pool) == 1
    one.publish(1)
    assert one.made["rollout-1"].engine.loaded_names == [], "a spare holds no version"
    one.prepare = lambda worker: worker.may_start.clear()
    one.made["rollout-0"].lost = True
    assert sorted(rows_of(one.pool.generate(PROMPTS, SAMPLING, 1))) == every_row(PROMPTS)
    assert one.states()["rollout-1"] == ("healthy", 1)
    one.until(lambda: one.states().get("rollout-2") == ("spare", None))
    assert len(one.pool) == 1


def test_a_spare_joins_when_one_more_is_asked_for_and_one_that_dies_is_replaced(bench):
    one = bench(1, limits=replace(LIMITS, spares=1)).adopt()
    one.until(lambda: any("rollout-1 is a spare" in text for text in one.told))
    one.made["rollout-1"].lost = True
    one.until(lambda: any("rollout-2 is a spare" in text for text in one.told))
    assert "the spare rollout-1 is lost: asking rollout-1: the worker died (killed)" in one.told
    one.pool.scale(2)
    one.until(lambda: one.states()["rollout-2"] == ("healthy", 0))
    one.until(lambda: any("rollout-3 is a spare" in text for text in one.told))


def test_the_last_spare_that_the_budget_allows_is_told(bench):
    one = bench(1, limits=replace(LIMITS, spares=1, failures=0)).adopt()
    one.until(lambda: any("rollout-1 is a spare" in text for text in one.told))
    one.made["rollout-1"].lost = True
    one.until(lambda: one.told[-1] == "no more spares are started (recovery.worker_failures)")
    assert sorted(rows_of(one.pool.generate(PROMPTS, SAMPLING, 0))) == every_row(PROMPTS), "the run goes on"


def test_one_that_answers_nothing_is_ended_and_replaced(bench):
    one = bench(1, limits=replace(LIMITS, silence_s=0.2)).adopt()
    one.made["rollout-0"].frozen.set()
    one.until(lambda: one.states().get("rollout-1") == ("healthy", 0))
    assert one.told[1] == "rollout-0 is lost: it answered nothing for 0.2 s"
    assert sorted(rows_of(one.pool.generate(PROMPTS, SAMPLING, 0))) == every_row(PROMPTS)


def test_the_late_answer_of_one_that_was_given_up_counts_no_more(bench):
    gate = Gate(engine_steps_free=1)
    one = bench(1, gates={"rollout-0": gate}, limits=replace(LIMITS, silence_s=0.2)).adopt()
    end = one.pool.offer(one.pool.ticket(PROMPTS, SAMPLING))
    assert gate.reached.acquire(timeout=SOON_S)
    one.made["rollout-0"].frozen.set()
    found = end.result(SOON_S)
    assert found.member == "rollout-1", "while the other still holds the work"
    gate.open(100)
    assert sorted(rows_of(one.pool.generate(PROMPTS, SAMPLING, 0))) == every_row(PROMPTS)
    assert one.states()["rollout-0"][0] == "dead"


def test_one_that_makes_no_token_of_the_work_it_holds_is_ended_and_replaced(bench):
    gate = Gate(engine_steps_free=1)
    one = bench(1, gates={"rollout-0": gate}, limits=replace(LIMITS, progress_s=0.3)).adopt()
    end = one.pool.offer(one.pool.ticket(PROMPTS, SAMPLING))
    assert end.result(SOON_S).member == "rollout-1"
    assert re.fullmatch(r"rollout-0 is lost: it made no token for \d+ s with 1 tickets under way; 1 .*", one.told[1])
    gate.open(100)


def test_prompts_that_fail_on_every_worker_end_the_wait_with_the_reason(bench):
    one = bench(2).adopt()
    with pytest.raises(
        RunFailed, match=r"WrongVersion: version 7 was asked for, .* \(tried 3 times, recovery.attempts\)"
    ):
        one.pool.generate(PROMPTS, SAMPLING, 7)


def test_the_last_that_was_on_its_way_and_cannot_join_ends_the_wait_too(bench):
    """The budget is spent while a worker that was asked for still loads."""
    one = bench(1, limits=replace(LIMITS, failures=0)).adopt()
    one.prepare = lambda worker: worker.may_start.clear()
    one.pool.scale(2)
    one.until(lambda: "rollout-1" in one.made)
    one.made["rollout-0"].lost = True
    end = one.pool.offer(one.pool.ticket(PROMPTS, SAMPLING))
    one.until(lambda: one.told[-1].endswith("the run goes on with 1"))
    one.made["rollout-1"].lost = True
    one.pool._loop.call_soon_threadsafe(one.made["rollout-1"].may_start.set)
    with pytest.raises(RunFailed, match=r"more than recovery.worker_failures \(0\); the last: .*killed"):
        end.result(SOON_S)


def test_the_cluster_is_asked_for_as_many_as_there_are_to_be_whoever_fails_on_the_way(bench):
    asked: list[int] = []
    one = bench(2, limits=replace(LIMITS, failures=3, backoff_s=0.01), resized=asked.append).adopt()
    broken = [True, True]
    one.prepare = lambda worker: setattr(worker, "lost", bool(broken and broken.pop()))
    one.made["rollout-1"].lost = True
    one.until(lambda: one.states().get("rollout-4", ("", 0))[0] == "healthy")
    assert asked == [], "two replacements failed, and each had another in its place"
    one.prepare = lambda worker: setattr(worker, "lost", True)
    one.pool.scale(3)
    one.until(lambda: len(asked) == 2)
    assert asked == [3, 2], "the third was asked for and nobody comes in its stead"


def test_two_who_ask_at_once_are_both_heard_and_nobody_comes_twice(bench):
    one = bench(1).adopt()
    said: list[str] = []
    entered, may = threading.Event(), threading.Event()

    def slowly(more: int) -> None:
        entered.set()
        may.wait(SOON_S)

    one.pool._refuse = slowly
    both = [threading.Thread(target=lambda: said.append(one.pool.scale(3))) for _ in range(2)]
    both[0].start()
    assert entered.wait(SOON_S)
    both[1].start()
    may.set()
    for asker in both:
        asker.join(SOON_S)
    assert sorted(said) == ["2 more workers on the way to 3", "there are 3 already"] and len(one.pool) == 3


def test_more_lost_workers_than_the_budget_end_the_run_with_what_happened_last(bench):
    one = bench(1, limits=replace(LIMITS, failures=1)).adopt()
    one.prepare = lambda worker: setattr(worker, "lost", True)
    one.made["rollout-0"].lost = True
    end = one.pool.offer(one.pool.ticket(PROMPTS, SAMPLING))
    with pytest.raises(RunFailed, match=r"2 rollout workers were lost, more than recovery.worker_failures \(1\); the"):
        end.result(SOON_S)
    with pytest.raises(RunFailed, match="2 rollout workers were lost"):
        one.pool.generate(PROMPTS, SAMPLING, 0)


def test_prompts_are_divided_among_those_that_there_are_to_be(bench):
    """The order of the rows is that of two workers while one of them is being replaced."""
    one = bench(2).adopt()
    expected = rows_of(one.pool.generate(PROMPTS, SAMPLING, 0))
    one.prepare = lambda worker: worker.may_start.clear()
    one.made["rollout-0"].lost = True
    assert rows_of(one.pool.generate(PROMPTS, SAMPLING, 0)) == expected
    one.until(lambda: one.states().get("rollout-2", ("",))[0] == "joining")
    assert len(one.pool) == 2 and rows_of(one.pool.generate(PROMPTS, SAMPLING, 0)) == expected
    assert one.pool.scale(1) == "1 worker leaves, 1 stay"
    one.until(lambda: one.states()["rollout-2"][0] == "retired")


@pytest.mark.parametrize("step", ["begin_publish", "receive", "finish_publish", "probe", "admit"])
def test_a_worker_that_dies_at_a_publish_is_replaced_and_the_others_have_the_version(bench, step):
    one = bench(2).adopt()
    recorded = one.pool.generate(PROMPTS[:1], SAMPLING, 0, recorded=1).recorded
    buckets, version = buckets_of(1.0, 1)
    calls = [
        ("begin_publish", lambda: one.pool.begin_publish(1)),
        ("receive", lambda: [one.pool.receive(bucket) for bucket in buckets]),
        ("finish_publish", lambda: one.pool.finish_publish(version)),
        ("probe", lambda: one.pool.probe(recorded)),
        ("admit", lambda: one.pool.admit(version, buckets, None, lambda logprobs: None)),
    ]
    for name, call in calls:
        one.made["rollout-1"].lost |= name == step
        call()
    one.until(lambda: one.states().get("rollout-2") == ("healthy", 1))
    assert one.states()["rollout-0"] == ("healthy", 1) and one.states()["rollout-1"][0] == "dead"
    assert sorted(rows_of(one.pool.generate(PROMPTS, SAMPLING, 1))) == every_row(PROMPTS)


def test_a_pool_whose_only_worker_dies_at_a_publish_goes_on_with_another_at_that_version(bench):
    one = bench(1).adopt()
    buckets, version = buckets_of(1.0, 1)
    one.pool.begin_publish(1)
    one.made["rollout-0"].lost = True
    for bucket in buckets:
        one.pool.receive(bucket)
    one.pool.finish_publish(version)
    one.pool.admit(version, buckets, None, lambda logprobs: None)
    assert sorted(rows_of(one.pool.generate(PROMPTS, SAMPLING, 1))) == every_row(PROMPTS)
    assert one.states()["rollout-1"] == ("healthy", 1)


def test_an_engine_that_fails_in_a_live_worker_is_given_up_and_others_do_its_work(bench):
    one = bench(2)
    one.prepare = lambda worker: None
    one.adopt()

    def broken() -> None:
        raise OSError("device lost")

    one.made["rollout-0"].engine.step = broken
    found = one.pool.generate(PROMPTS, SAMPLING, 0)
    assert sorted(rows_of(found)) == every_row(PROMPTS)
    assert any("rollout-0 is lost: it died while generating (OSError: device lost)" in text for text in one.told)


def test_a_joiner_taken_along_that_fails_is_lost_without_the_others(bench):
    one = bench(1).adopt()
    one.publish(1)
    one.prepare = lambda worker: worker.may_start.clear()
    one.pool.scale(2)
    one.until(lambda: one.states().get("rollout-1", ("",))[0] == "joining")
    weights, member = one.pool._core.weights, one.pool._members.by_name["rollout-1"]

    def overtaken() -> None:
        weights._overtaken["rollout-1"] = (member, asyncio.get_running_loop().create_future())

    one.pool._soon(overtaken)
    assert one.pool.begin_publish(2)[0] == ("rollout-0", "rollout-1")
    one.made["rollout-1"].lost = True
    buckets, version = buckets_of(2.0, 2)
    for bucket in buckets:
        one.pool.receive(bucket)
    one.pool.finish_publish(version)
    one.pool.admit(version, buckets, None, lambda logprobs: None)
    assert one.states()["rollout-0"] == ("healthy", 2) and one.states()["rollout-1"][0] == "dead"
    one.prepare = lambda worker: None
    one.publish(3)
    assert sorted(rows_of(one.pool.generate(PROMPTS, SAMPLING, 3))) == every_row(PROMPTS)


def test_one_that_refuses_what_others_take_is_replaced_and_all_that_refuse_end_the_run(bench):
    one = bench(2).adopt()
    buckets, version = buckets_of(1.0, 1)
    one.pool.begin_publish(1)
    one.made["rollout-1"].engine._broken_buckets = [0]
    for bucket in buckets:
        one.pool.receive(bucket)
    one.pool.finish_publish(version)
    one.pool.admit(version, buckets, None, lambda logprobs: None)
    one.until(lambda: one.states().get("rollout-2") == ("healthy", 1))
    assert one.told[2].startswith("rollout-1 is lost: publishing version 1 (rollout-1): ")
    one.pool.begin_publish(2)
    with pytest.raises(RunFailed, match=r"publishing version 2 \(rollout-0\): PublishRefused: the last bucket"):
        one.pool.finish_publish(PolicyVersion(2, "x"))


def test_a_worker_that_cannot_start_fails_the_start_of_the_run(bench):
    one = bench(0)
    one.prepare = lambda worker: setattr(worker, "lost", True)
    one.pool._starting = one.pool._soon(lambda: one.pool._members.add(1))
    with pytest.raises(RunFailed, match=r"starting rollout-0: the worker died \(killed\)"):
        one.adopt()


def test_a_worker_that_fails_at_a_publish_is_named_with_its_reason_at_once(bench):
    """Before the sender's deadline, and not as one of those that merely wait beside it."""
    one = bench(2).adopt()
    buckets, _ = buckets_of(1.0, 1)
    one.pool.begin_publish(1)
    one.pool.watch_publish()
    one.pool.receive(buckets[0])
    one.pool.receive(buckets[0])

    def failed() -> bool:
        try:
            one.pool.watch_publish()
        except RunFailed as error:
            assert re.fullmatch(
                r"publishing: rollout-[01]: PublishRefused: bucket 0 of version 1 came twice", str(error)
            )
            return True
        return False

    one.until(failed)


def test_who_is_asked_to_leave_during_a_publish_comes_through_it_first(bench):
    """Others may wait for it in a broadcast. It is counted as gone from the moment it was asked."""
    one = bench(2).adopt()
    recorded = one.pool.generate(PROMPTS, SAMPLING, 0, 2).recorded
    buckets, version = buckets_of(1.0, 1)
    assert one.pool.begin_publish(1) == (("rollout-0", "rollout-1"), False)
    one.pool.receive(buckets[0])
    assert one.pool.scale(1) == "1 worker leaves, 1 stay"
    assert one.pool.scale(1) == "there are 1 already"
    one.pool.receive(buckets[1])
    one.pool.finish_publish(version)
    assert len(one.pool.probe(recorded)) == 2
    one.pool.watch_publish()
    one.pool.admit(version, buckets, None, lambda logprobs: None)
    one.until(lambda: one.states()["rollout-1"][0] == "retired")
    assert one.states()["rollout-0"] == ("healthy", 1)
    assert one.pool.scale(2) == "1 more worker on the way to 2"
    assert sorted(rows_of(one.pool.generate(PROMPTS, SAMPLING, 1))) == every_row(PROMPTS)
