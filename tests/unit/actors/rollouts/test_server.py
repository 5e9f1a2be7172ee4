"""The rollout worker's thread over a scripted engine: what waits for what, who gets which error, where seconds go."""

from __future__ import annotations

import threading

import pytest

from actors.engines.interface import EngineFailed
from actors.rollouts.pace import Pace
from actors.rollouts.server import RolloutServer
from actors.rollouts.worker import RolloutWorker, WrongVersion
from actors.types import PolicyVersion, SamplingSettings
from tests.fixtures.scripted_engine import ScriptedEngine
from tests.unit.actors.rollouts.test_worker import PROMPTS, SCRIPT, TWO_EACH, ZERO, buckets_of

SOON_S = 10.0


class Gate:
    """Holds the engine before a decode step until it is let through."""

    def __init__(self, engine_steps_free: int = 0) -> None:
        self._free = engine_steps_free
        self._passes = threading.Semaphore(0)
        self.reached = threading.Semaphore(0)

    def __call__(self, step: int) -> None:
        if step > self._free:
            self.reached.release()
            assert self._passes.acquire(timeout=SOON_S)

    def open(self, steps: int = 1000) -> None:
        self._passes.release(steps)


@pytest.fixture
def served(request):
    """A server over an engine whose steps the test lets through."""
    gate = Gate()
    engine = ScriptedEngine(SCRIPT, on_step=gate)
    server = RolloutServer(lambda: RolloutWorker(engine))
    server.call(lambda worker: worker.adopt(ZERO)).result(SOON_S)
    yield server, engine, gate
    gate.open()
    server.close()


def publish(server: RolloutServer, number: int) -> PolicyVersion:
    buckets, version = buckets_of(float(number), number)
    calls = [server.call(lambda worker: worker.begin_publish(number))]
    calls += [server.call(lambda worker, b=bucket: worker.receive(b)) for bucket in buckets]
    calls += [server.call(lambda worker: worker.finish_publish(version))]
    calls += [server.call(lambda worker: worker.admit(version))]
    for call in calls:
        call.result(SOON_S)
    return version


def test_a_generation_may_come_while_another_is_under_way_and_each_ends_by_itself(served):
    server, engine, gate = served
    long = server.generate(PROMPTS[1:], TWO_EACH)
    assert gate.reached.acquire(timeout=SOON_S), "the first step is about to be taken"
    short = server.generate(PROMPTS[:1], TWO_EACH)
    gate.open(3)
    assert [s.token_ids.tolist() for s in short.result(SOON_S)[0]] == [[10, 11], [12]]
    assert [s.token_ids.tolist() for s in long.result(SOON_S)[0]] == [[13, 14, 15], [17, 18, 19]]
    assert engine.added_after_first_step == 2


def test_weights_change_between_two_steps_of_a_generation(served):
    server, _, gate = served
    open_one = server.generate(PROMPTS, TWO_EACH)
    assert gate.reached.acquire(timeout=SOON_S)
    buckets, version = buckets_of(1.0, 1)
    begun = server.call(lambda worker: worker.begin_publish(1))
    gate.open(1)
    begun.result(SOON_S)
    for bucket in buckets:
        server.call(lambda worker, b=bucket: worker.receive(b)).result(SOON_S)
    server.call(lambda worker: worker.finish_publish(version)).result(SOON_S)
    assert not open_one.done(), "nothing is decoded between versions"
    server.call(lambda worker: worker.admit(version)).result(SOON_S)
    gate.open()
    assert open_one.result(SOON_S)[0].sample(2).spans == ((0, 0), (1, 1))


def test_interrupting_ends_every_open_generation_where_it_stands(served):
    server, engine, gate = served
    futures = [server.generate([prompt], TWO_EACH) for prompt in PROMPTS]
    assert gate.reached.acquire(timeout=SOON_S)
    stopped = server.interrupt()
    gate.open(1)
    assert stopped.result(SOON_S) == 2
    assert [future.result(SOON_S)[1].unfinished for future in futures] == [1, 2]
    assert engine.running == [] and server.open == 0


def test_a_refused_call_is_its_callers_failure_alone(served):
    server, _, gate = served
    wrong = server.generate(PROMPTS, TWO_EACH, version_expected=9)
    right = server.generate(PROMPTS, TWO_EACH, version_expected=0)
    gate.open()
    with pytest.raises(WrongVersion, match="version 9 was asked for"):
        wrong.result(SOON_S)
    assert len(right.result(SOON_S)[0]) == 4
    with pytest.raises(ValueError, match="a bug"):
        server.call(lambda worker: (_ for _ in ()).throw(ValueError("a bug"))).result(SOON_S)


def test_a_failing_step_fails_the_generations_it_was_to_advance_and_the_thread_goes_on():
    def fail_at_two(step: int) -> None:
        if step == 2:
            raise OSError("device lost")

    server = RolloutServer(lambda: RolloutWorker(ScriptedEngine(SCRIPT, on_step=fail_at_two)))
    server.call(lambda worker: worker.adopt(ZERO)).result(SOON_S)
    failed = server.generate(PROMPTS, TWO_EACH)
    with pytest.raises(EngineFailed, match="OSError: device lost"):
        failed.result(SOON_S)
    assert len(server.generate(PROMPTS, TWO_EACH).result(SOON_S)[0]) == 4
    server.close()


def test_an_engine_that_does_not_start_says_so_to_who_wanted_it():
    def make():
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        RolloutServer(make)


def test_who_stops_waiting_ends_nothing(served):
    server, _, gate = served
    given_up = server.generate(PROMPTS, TWO_EACH)
    assert not given_up.cancel()
    gate.open()
    assert len(given_up.result(SOON_S)[0]) == 4
    assert len(server.generate(PROMPTS, TWO_EACH).result(SOON_S)[0]) == 4


def test_a_generation_with_nothing_left_to_make_ends_at_once(served):
    server, engine, gate = served
    gate.open()
    whole, _ = server.generate(PROMPTS, TWO_EACH).result(SOON_S)
    added = len(engine.running), engine.steps
    again, stats = server.generate(PROMPTS, TWO_EACH, carried=whole).result(SOON_S)
    assert again.token_ids.tolist() == whole.token_ids.tolist() and stats.carried_tokens == 9
    assert (len(engine.running), engine.steps) == added


def test_a_pace_counts_steps_what_they_read_and_how_long_the_one_under_way_has_run():
    """Prompts of 3 and 2 tokens, two samples each: 10 prompt tokens. The samples make 2, 1, 3 and 3 tokens in three
    steps; each step takes two seconds of a clock that the engine moves."""
    now, gate = [0.0], Gate()

    def step(number: int) -> None:
        gate(number)
        now[0] += 2.0

    server = RolloutServer(lambda: RolloutWorker(ScriptedEngine(SCRIPT, on_step=step)), clock=lambda: now[0])
    server.call(lambda worker: worker.adopt(ZERO)).result(SOON_S)
    end = server.generate(PROMPTS, TWO_EACH)
    assert gate.reached.acquire(timeout=SOON_S)
    now[0] += 7.0
    assert server.pace == Pace(steps=0, seconds=0.0, tokens=0, running=0, unread=10, longest=3, step_s=7.0)
    gate.open(1)
    assert gate.reached.acquire(timeout=SOON_S)
    assert server.pace == Pace(steps=1, seconds=9.0, tokens=10 + 4, running=3, unread=0, longest=0, step_s=0.0)
    gate.open(2)
    end.result(SOON_S)
    server.interrupt().result(SOON_S)
    assert server.pace == Pace(steps=3, seconds=13.0, tokens=10 + 9, running=0)
    assert gate.reached.acquire(timeout=SOON_S), "the third step's"
    begun = server.generate(PROMPTS, TWO_EACH)
    assert gate.reached.acquire(timeout=SOON_S) and server.pace.unread == 10
    stopped = server.interrupt()
    gate.open(1)
    assert stopped.result(SOON_S) == 1 and begun.result(SOON_S)[1].unfinished == 3
    assert server.call(lambda worker: worker.pace(0.0)).result(SOON_S).unread == 0
    server.close()


def test_seconds_are_told_apart_by_what_was_waited_for():
    """A clock that moves by one second whenever it is read: each part is what was measured, and all parts add up."""
    lock, now = threading.Lock(), [0.0]

    def clock() -> float:
        with lock:
            now[0] += 1.0
            return now[0]

    engine = ScriptedEngine({"7/0": [1, 2, 3], "3/0": [4]})
    server = RolloutServer(lambda: RolloutWorker(engine), clock=clock)
    server.call(lambda worker: worker.adopt(ZERO)).result(SOON_S)
    server.generate(PROMPTS, SamplingSettings(max_tokens=9)).result(SOON_S)
    publish(server, 1)
    server.close()
    seconds = server.seconds
    assert seconds.generate == 3.0, "three decode steps"
    assert seconds.sync >= 5.0, "begin, two buckets, finish, admit"
    assert seconds.wait_prompts >= 2.0, "before the generation and after it"
    assert seconds.wait_weights >= 1.0, "before the first version"
    assert engine.closed
