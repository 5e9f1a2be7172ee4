"""The stream of samples over a pool in this process: what is admitted when, what a step takes, what it waits for."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from actors.types import Prompt, SamplingSettings
from cluster.errors import RunFailed
from cluster.pool.admission import Admission
from cluster.pool.pool import samples_of
from cluster.run.ledger import Ledger
from cluster.training.parts.stream import Stream
from cluster.training.streaming import StreamingJob
from tests.unit.cluster.pool.test_pool import SOON_S, Bench, Gate, every_row, rows_of

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
    stream.admit(version=0, in_flight=0, flat=0, steps=100)
    assert order.admitted == [(0, 1), (0, 2), (0, 3), (0, 4)], "a batch for now and one that may be a version old"
    first = stream.take(0, 2)
    stream.admit(version=1, in_flight=2, flat=0, steps=100)
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
    stream.admit(version=0, in_flight=0, flat=0, steps=100)
    stream.take(0, 2)
    stream.admit(version=0, in_flight=2, flat=0, steps=100)
    assert len(order.admitted) == 2
    stream.admit(version=0, in_flight=2, flat=1, steps=100)
    assert len(order.admitted) == 3, "what the step took and will not train is replaced"


def test_nothing_is_admitted_that_the_run_has_no_step_left_for(bench):
    stream, order = stream_of(bench().pool, bound=3)
    stream.admit(version=0, in_flight=0, flat=0, steps=3)
    assert len(order.admitted) == 6, "the bound allows 8, three steps train 6"
    stream.admit(version=1, in_flight=4, flat=0, steps=3)
    assert len(order.admitted) == 6
    stream.admit(version=1, in_flight=4, flat=2, steps=3)
    assert len(order.admitted) == 8


def test_settling_waits_for_what_is_under_way_and_leaves_it_for_the_next_step(bench):
    gate = Gate()
    one = bench(gates={"rollout-0": gate})
    stream, _ = stream_of(one.pool, bound=1)
    stream.admit(version=0, in_flight=0, flat=0, steps=100)
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
    stream.admit(version=0, in_flight=0, flat=0, steps=100)
    with pytest.raises(RunFailed, match=r"no prompt's samples ended within 0\.05 s"):
        stream.take(0, 2)


@pytest.mark.parametrize("unscored", [{3}, {1, 2, 3}, set(range(12))], ids=["once", "three steps", "every step"])
def test_a_prompt_that_a_step_took_and_could_not_train_has_no_other_in_its_stead(bench, tmp_path, unscored):
    """With one more under way for each, more than the coming steps train in time would be, for the rest of the run."""
    steps, batch, bound = 12, 2, 1
    ledger = Ledger(tmp_path / "ledger.sqlite")

    def next_prompts(version: int, count: int) -> list[Prompt]:
        first = ledger.counts().admitted + 1
        ledger.admit(version, [(0, first + i, first + i) for i in range(count)])
        return [Prompt(id=first + i, token_ids=(1, 2), group=first + i) for i in range(count)]

    stream = Stream(
        bench().pool,
        Admission(batch, bound),
        SAMPLING,
        next_prompts=next_prompts,
        drop=ledger.dropped,
        recorded=1,
        timeout_s=SOON_S,
    )
    job = SimpleNamespace(ledger=ledger, _stream=stream, config=SimpleNamespace(steps=steps), state=None)
    for step in range(steps):
        job.state = SimpleNamespace(step=step)
        StreamingJob.run_ahead(job)
        assert ledger.counts().in_flight == min((bound + 1) * batch, (steps - step) * batch)
        groups = samples_of(stream.take(step, batch)).groups
        kept = groups[1:] if step in unscored else groups
        ledger.dropped([group for group in groups if group not in kept], "no score")
        ledger.trained(kept, step + 1)
    counts = ledger.counts()
    assert ledger.reasons() == {"no score": len(unscored)}, "none came too late"
    assert (counts.admitted, counts.in_flight) == (steps * batch, 0)
    ledger.close()
