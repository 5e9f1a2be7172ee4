"""The stream of samples over a pool in this process: what is admitted when, what a step takes, what it waits for."""

from __future__ import annotations

import threading

import pytest

from actors.types import Prompt, SamplingSettings
from cluster.errors import RunFailed
from cluster.pool.admission import Admission
from cluster.pool.pool import samples_of
from cluster.stream import Stream
from tests.unit.test_pool import SOON_S, Bench, Gate, every_row, rows_of

SAMPLING = SamplingSettings(max_tokens=8, samples_per_prompt=2)


class Order:
    """Endless prompts, group 1 first; remembers when each was admitted."""

    def __init__(self) -> None:
        self.admitted: list[tuple[int, int]] = []

    def __call__(self, version: int, count: int) -> list[Prompt]:
        first = len(self.admitted) + 1
        self.admitted += [(version, first + i) for i in range(count)]
        return [Prompt(id=first + i, token_ids=(1, 2), group=first + i) for i in range(count)]


@pytest.fixture
def bench():
    made: list[Bench] = []

    def make(gates=None) -> Bench:
        made.append(Bench(1, gates=gates).adopt())
        return made[-1]

    yield make
    for one in made:
        for gate in one.gates.values():
            gate.open(10_000)
        one.pool.close()


def stream_of(pool, bound: int, dropped: list | None = None, timeout_s: float = SOON_S) -> tuple[Stream, Order]:
    order = Order()
    stream = Stream(
        pool,
        Admission(batch=2, max_staleness=bound),
        SAMPLING,
        next_prompts=order,
        drop=lambda groups, reason: (dropped if dropped is not None else []).append((list(groups), reason)),
        recorded=1,
        timeout_s=timeout_s,
    )
    return stream, order


def test_batches_are_the_oldest_samples_and_each_prompt_comes_once(bench):
    stream, order = stream_of(bench().pool, bound=1)
    stream.admit(version=0, admitted=0, dropped=0, steps=100)
    assert order.admitted == [(0, 1), (0, 2), (0, 3), (0, 4)], "a batch for now and one that may be a version old"
    first = stream.take(0, 2)
    stream.admit(version=1, admitted=4, dropped=0, steps=100)
    assert order.admitted[4:] == [(1, 5), (1, 6)]
    second, third = stream.take(1, 2), stream.take(2, 2)
    taken = [group for finished in (first, second, third) for group in samples_of(finished).groups]
    assert sorted(taken) == [1, 2, 3, 4, 5, 6] and set(taken[:4]) == {1, 2, 3, 4}
    prompts = [Prompt(id=g, token_ids=(1, 2), group=g) for g in sorted(taken)]
    assert sorted(row for finished in (first, second, third) for row in rows_of(samples_of(finished))) == every_row(
        prompts
    )
    assert all(len(finished.recorded) == 1 for finished in first) and stream.under_way == 0


def test_a_bound_of_none_admits_a_batch_at_a_time(bench):
    stream, order = stream_of(bench().pool, bound=0)
    stream.admit(version=0, admitted=0, dropped=0, steps=100)
    stream.take(0, 2)
    stream.admit(version=0, admitted=2, dropped=0, steps=100)
    assert len(order.admitted) == 2
    stream.admit(version=0, admitted=2, dropped=1, steps=100)
    assert len(order.admitted) == 3, "what was dropped is replaced"


def test_nothing_is_admitted_that_the_run_has_no_step_left_for(bench):
    stream, order = stream_of(bench().pool, bound=3)
    stream.admit(version=0, admitted=0, dropped=0, steps=3)
    assert len(order.admitted) == 6, "the bound allows 8, three steps train 6"
    stream.admit(version=1, admitted=6, dropped=0, steps=3)
    assert len(order.admitted) == 6
    stream.admit(version=1, admitted=6, dropped=2, steps=3)
    assert len(order.admitted) == 8


def test_settling_waits_for_what_is_under_way_and_leaves_it_for_the_next_step(bench):
    gate = Gate()
    one = bench(gates={"rollout-0": gate})
    stream, _ = stream_of(one.pool, bound=1)
    stream.admit(version=0, admitted=0, dropped=0, steps=100)
    settled = threading.Thread(target=stream.settle)
    settled.start()
    assert gate.reached.acquire(timeout=SOON_S)
    assert settled.is_alive() and stream.under_way == 4
    gate.open(100)
    settled.join(SOON_S)
    assert stream.under_way == 0 and len(stream.take(0, 2)) == 2


def test_a_step_waits_for_what_would_be_too_old_after_it(bench):
    """Version 1, bound 1: what was admitted at version 0 must be in this batch, though younger samples are ready."""
    gate = Gate()
    one = bench(gates={"rollout-0": gate})
    stream, _ = stream_of(one.pool, bound=1)
    stream.send(0, [Prompt(id=1, token_ids=(1, 2), group=1)])
    assert gate.reached.acquire(timeout=SOON_S)
    found: list = []
    for group in (8, 9):
        stream._backlog.admit(group, 1)
        stream._backlog.end(group)
    taker = threading.Thread(target=lambda: found.append(stream._choose(1, 2)))
    taker.start()
    taker.join(SOON_S)
    assert found == [None]
    gate.open(100)
    stream.settle()
    assert stream._choose(1, 2) == [1, 8]


def test_what_no_step_can_train_in_time_is_dropped_and_said(bench):
    dropped: list = []
    stream, _ = stream_of(bench().pool, bound=1, dropped=dropped)
    stream.send(0, [Prompt(id=g, token_ids=(1, 2), group=g) for g in (1, 2, 3)])
    stream.settle()
    stream.send(2, [Prompt(id=g, token_ids=(1, 2), group=g) for g in (4, 5)])
    stream.settle()
    assert sorted(f.ticket.groups[0] for f in stream.take(2, 2)) == [4, 5]
    assert dropped == [([1, 2, 3], "stale")]


def test_a_step_that_can_never_begin_says_what_to_raise(bench):
    stream, _ = stream_of(bench().pool, bound=1)
    stream.send(0, [Prompt(id=1, token_ids=(1, 2), group=1)])
    with pytest.raises(RunFailed, match="1 prompts are ready, the step needs 2 and no more may be admitted"):
        stream.take(0, 2)


def test_nothing_that_ends_in_time_is_a_failure_with_a_number(bench):
    gate = Gate()
    stream, _ = stream_of(bench(gates={"rollout-0": gate}).pool, bound=1, timeout_s=0.05)
    stream.admit(version=0, admitted=0, dropped=0, steps=100)
    with pytest.raises(RunFailed, match=r"no prompt's samples ended within 0\.05 s"):
        stream.take(0, 2)
