"""The rollout worker over a scripted engine: rows, versions, deadlines, and what a publish must prove."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from actors.engines.interface import Request
from actors.rollouts.generation import RolloutStats, token_versions
from actors.rollouts.reception import PublishRefused
from actors.rollouts.worker import RolloutStalled, RolloutWorker, WorkerState, WrongVersion
from actors.transports.buckets import make_buckets
from actors.types import FinishReason, PolicyVersion, Prompt, SamplingSettings, digest_buckets, sample_seed
from tests.fixtures.scripted_engine import ScriptedEngine

ZERO = PolicyVersion(0, "disk")
PROMPTS = [Prompt(id=70, token_ids=(1, 2, 3), group=7), Prompt(id=30, token_ids=(4, 5), group=3)]
SCRIPT = {"7/0": [10, 11], "7/1": [12], "3/0": [13, 14, 15, 16], "3/1": [17, 18, 19]}
TWO_EACH = SamplingSettings(max_tokens=3, samples_per_prompt=2, seed=5)


def serving_worker(engine: ScriptedEngine, **kwargs) -> RolloutWorker:
    worker = RolloutWorker(engine, **kwargs)
    worker.adopt(ZERO)
    return worker


def buckets_of(value: float, number: int):
    """Two buckets of 8 bytes and the version they make."""
    named = [("a", torch.full((2,), value)), ("b", torch.full((2,), value + 1))]
    buckets = list(make_buckets(named, max_bytes=8))
    return buckets, PolicyVersion(number, digest_buckets([b.digest() for b in buckets]))


def publish(worker: RolloutWorker, value: float, number: int) -> PolicyVersion:
    buckets, version = buckets_of(value, number)
    worker.begin_publish(number)
    for bucket in buckets:
        worker.receive(bucket)
    worker.finish_publish(version)
    worker.admit(version)
    return version


@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_come_in_prompt_order_then_sample_index_whatever_order_the_engine_answers_in(shuffle):
    batch, _ = serving_worker(ScriptedEngine(SCRIPT, shuffle=shuffle)).generate(PROMPTS, TWO_EACH, 0)
    assert [(s.group, s.sample_index, s.prompt_id, s.token_ids.tolist()) for s in batch] == [
        (7, 0, 70, [10, 11]),
        (7, 1, 70, [12]),
        (3, 0, 30, [13, 14, 15]),
        (3, 1, 30, [17, 18, 19]),
    ]
    assert [s.finish_reason.name for s in batch] == ["STOP", "STOP", "LENGTH", "STOP"]
    np.testing.assert_allclose(batch.logprobs[:3], [-0.10, -0.11, -0.12], atol=1e-7)
    assert batch.sample(2).prompt_tokens.tolist() == [4, 5]


def test_stats_add_up_to_the_hand_count():
    now = [100.0]

    def step(number: int) -> None:
        now[0] += 1.5

    worker = serving_worker(ScriptedEngine(SCRIPT, on_step=step), clock=lambda: now[0])
    _, stats = worker.generate(PROMPTS, TWO_EACH, 0)
    assert worker.engine_seconds == 4.5, "three steps of the engine"
    assert dataclasses.replace(stats, logprob_sum=0) == RolloutStats(
        seconds=4.5, samples=4, prompt_tokens=5, response_tokens=9, truncated=1, length_max=3, logprob_sum=0
    )
    assert stats.logprob_sum == pytest.approx(-(10 + 11 + 12 + 13 + 14 + 15 + 17 + 18 + 19) / 100)
    assert stats.length_mean == 2.25
    assert stats.logprob_mean == pytest.approx(-1.29 / 9)


def test_merged_stats_take_the_slowest_worker_and_add_the_rest():
    one = RolloutStats(2.0, 2, 5, 10, 1, 7, -3.0)
    two = RolloutStats(3.0, 1, 4, 5, 0, 5, -1.5)
    assert RolloutStats.merge([one, two]) == RolloutStats(3.0, 3, 9, 15, 1, 7, -4.5)


def test_all_requests_are_queued_before_the_first_step_each_with_its_own_seed():
    engine = ScriptedEngine(SCRIPT)
    serving_worker(engine).generate(PROMPTS, TWO_EACH, 0)
    assert engine.added_after_first_step == 0
    assert {i: r.seed for i, r in engine.requests.items()} == {
        "7/0": sample_seed(5, 7, 0),
        "7/1": sample_seed(5, 7, 1),
        "3/0": sample_seed(5, 3, 0),
        "3/1": sample_seed(5, 3, 1),
    }


def test_every_token_carries_the_version_it_was_decoded_at():
    engine = ScriptedEngine({"7/0": [1, 2, 3, 4], "3/0": [5, 6]})
    worker = serving_worker(engine)

    def publish_after_steps_two_and_three():
        if engine.steps in (2, 3):
            publish(worker, float(engine.steps), engine.steps * 10)

    batch, _ = worker.generate(PROMPTS, SamplingSettings(max_tokens=9), 0, publish_after_steps_two_and_three)
    assert [s.spans for s in batch] == [((0, 0), (2, 20), (3, 30)), ((0, 0),)]
    assert worker.version.number == 30


def test_generating_for_another_version_than_the_one_served_is_refused():
    worker = serving_worker(ScriptedEngine(SCRIPT))
    with pytest.raises(WrongVersion, match="version 1 was asked for, the worker serves 0"):
        worker.generate(PROMPTS, TWO_EACH, 1)


def test_two_prompts_of_one_group_are_refused():
    with pytest.raises(ValueError, match="same group"):
        serving_worker(ScriptedEngine(SCRIPT)).generate([PROMPTS[0], PROMPTS[0]], TWO_EACH, 0)


def test_no_token_within_the_deadline_names_the_waiting_requests_and_leaves_none_behind():
    now = [0.0]

    def silent_from_step_two(step: int) -> bool:
        now[0] += 4.0
        return step >= 2

    engine = ScriptedEngine(SCRIPT, on_step=silent_from_step_two)
    worker = serving_worker(engine, stall_timeout_s=10.0, clock=lambda: now[0])
    with pytest.raises(RolloutStalled, match=r"no token for 12 s .* 3 requests waiting: 7/0, 3/0, 3/1"):
        worker.generate(PROMPTS, TWO_EACH, 0)
    assert engine.steps == 4
    assert engine.running == []
    assert worker.tokens_made == 4


def test_a_slow_engine_that_makes_tokens_is_not_stalled():
    now = [0.0]

    def slow(step: int) -> None:
        now[0] += 9.0

    worker = serving_worker(ScriptedEngine(SCRIPT, on_step=slow), stall_timeout_s=10.0, clock=lambda: now[0])
    _, stats = worker.generate(PROMPTS, TWO_EACH, 0)
    assert stats.seconds == 27.0


def interrupted_after(steps: int, script=SCRIPT, settings=TWO_EACH):
    """What a worker gives back that is interrupted after so many decode steps."""
    worker = serving_worker(ScriptedEngine(script))
    generation = worker.submit(PROMPTS, settings)
    for _ in range(steps):
        worker.pump()
    assert worker.interrupt() == [generation]
    return worker.result(generation)


def test_an_interrupted_generation_gives_back_what_it_has_and_another_worker_carries_it_on():
    partial, stats = interrupted_after(2)
    assert [(s.token_ids.tolist(), s.finish_reason.name) for s in partial] == [
        ([10, 11], "STOP"),
        ([12], "STOP"),
        ([13, 14], "ABORT"),
        ([17, 18], "ABORT"),
    ]
    assert (stats.samples, stats.unfinished, stats.response_tokens, stats.truncated) == (4, 2, 3, 0)
    assert stats.partial_tokens == 4

    engine = ScriptedEngine(SCRIPT)
    worker = serving_worker(engine)
    publish(worker, 1.0, 6)
    generation = worker.submit(PROMPTS, TWO_EACH, 6, partial)
    assert set(engine.requests) == {"3/0", "3/1"}, "what is finished is not made again"
    carried = engine.requests["3/0"]
    assert (carried.prompt_tokens, carried.max_tokens, carried.made) == ((4, 5, 13, 14), 1, 2)
    assert carried.seed == sample_seed(5, 3, 0)
    assert worker.pump() == [generation]
    whole, stats = worker.result(generation)
    assert [s.token_ids.tolist() for s in whole] == [[10, 11], [12], [13, 14, 15], [17, 18, 19]]
    assert [s.spans for s in whole] == [((0, 0),), ((0, 0),), ((0, 0), (2, 6)), ((0, 0), (2, 6))]
    assert [s.finish_reason.name for s in whole] == ["STOP", "STOP", "LENGTH", "STOP"]
    np.testing.assert_allclose(whole.logprobs, -whole.token_ids / 100, atol=1e-7)
    assert (stats.unfinished, stats.carried_tokens, stats.response_tokens) == (0, 7, 9)
    assert (stats.version_sum, stats.oldest) == (2 * 6, 0)
    assert token_versions(whole).tolist() == [0, 0, 0, 0, 0, 6, 0, 0, 6]


def test_a_stop_string_may_span_the_hand_over_so_such_a_sample_begins_again():
    settings = dataclasses.replace(TWO_EACH, stop=("x",))
    partial, _ = interrupted_after(2, settings=settings)
    engine = ScriptedEngine(SCRIPT)
    worker = serving_worker(engine)
    generation = worker.submit(PROMPTS, settings, 0, partial)
    assert engine.requests["3/0"].made == 0
    while not generation.done:
        worker.pump()
    batch, stats = worker.result(generation)
    assert batch.sample(2).token_ids.tolist() == [13, 14, 15] and stats.carried_tokens == 3


def test_generations_share_the_engine_and_each_is_done_by_itself():
    engine = ScriptedEngine(SCRIPT)
    worker = serving_worker(engine)
    first = worker.submit(PROMPTS[:1], TWO_EACH)
    worker.pump()
    second = worker.submit(PROMPTS[1:], TWO_EACH)
    again = worker.submit(PROMPTS[:1], TWO_EACH)
    assert worker.pump() == [first], "two prompts of one group in two generations do not meet"
    assert worker.pump() == [again]
    assert worker.pump() == [second] and not worker.busy
    assert worker.result(second)[0].prompt_ids.tolist() == [30]


def test_one_generation_can_be_interrupted_beside_another():
    worker = serving_worker(ScriptedEngine(SCRIPT))
    first, second = (worker.submit([prompt], TWO_EACH) for prompt in PROMPTS)
    worker.pump()
    assert worker.interrupt([second]) == [second]
    assert worker.pump() == [first]
    assert worker.result(second)[1].unfinished == 2


def test_open_generations_wait_through_a_publish_and_go_on_under_the_new_version():
    worker = serving_worker(ScriptedEngine(SCRIPT))
    generation = worker.submit(PROMPTS, TWO_EACH)
    worker.pump()
    buckets, version = buckets_of(1.0, 1)
    worker.begin_publish(1)
    with pytest.raises(WrongVersion, match="the worker is receiving"):
        worker.pump()
    for bucket in buckets:
        worker.receive(bucket)
    worker.finish_publish(version)
    worker.admit(version)
    while not generation.done:
        worker.pump()
    assert worker.result(generation)[0].sample(2).spans == ((0, 0), (1, 1))


def test_what_comes_between_two_versions_waits_for_the_next_unless_it_wants_another():
    worker = serving_worker(ScriptedEngine(SCRIPT))
    buckets, version = buckets_of(1.0, 1)
    worker.begin_publish(1)
    with pytest.raises(WrongVersion, match="the worker is receiving"):
        worker.submit(PROMPTS, TWO_EACH, 0)
    generation = worker.submit(PROMPTS, TWO_EACH)
    for bucket in buckets:
        worker.receive(bucket)
    worker.finish_publish(version)
    worker.admit(version)
    while not generation.done:
        worker.pump()
    assert {s.spans for s in worker.result(generation)[0]} == {((0, 1),)}


def test_a_prompt_that_the_engine_refuses_leaves_no_request_of_its_call(monkeypatch):
    engine = ScriptedEngine(SCRIPT)
    worker = serving_worker(engine)
    add = engine.add_request

    def refuse_the_last(request):
        if request.id.startswith("3/1"):
            raise ValueError("no room")
        add(request)

    monkeypatch.setattr(engine, "add_request", refuse_the_last)
    with pytest.raises(ValueError, match="no room"):
        worker.submit(PROMPTS, TWO_EACH)
    assert engine.running == [] and not worker.busy


def test_an_engine_error_reaches_the_caller_and_leaves_no_request_behind():
    def fail_at_two(step: int) -> None:
        if step == 2:
            raise OSError("device lost")

    engine = ScriptedEngine(SCRIPT, on_step=fail_at_two)
    with pytest.raises(OSError, match="device lost"):
        serving_worker(engine).generate(PROMPTS, TWO_EACH, 0)
    assert engine.running == []


def test_a_whole_publish_in_any_bucket_order_serves_only_after_admit():
    engine = ScriptedEngine(SCRIPT)
    worker = serving_worker(engine)
    buckets, version = buckets_of(1.0, 1)
    worker.begin_publish(1)
    for bucket in reversed(buckets):
        worker.receive(bucket)
    worker.finish_publish(version)
    assert worker.version is None and engine.updates_finished == 1 and engine.loaded_names == ["b", "a"]
    with pytest.raises(WrongVersion, match="the worker is loaded"):
        worker.generate(PROMPTS, TWO_EACH, 1)
    np.testing.assert_allclose(worker.probe([[1]], [[50, 60]])[0], [-0.5, -0.6])
    worker.admit(version)
    assert worker.version == version
    worker.generate(PROMPTS, TWO_EACH, 1)


def _skip_first(buckets, version):
    return buckets[1:], version


def _skip_last(buckets, version):
    return buckets[:1], version


def _twice(buckets, version):
    return [buckets[0], buckets[0], buckets[1]], version


def _torn(buckets, version):
    return [dataclasses.replace(buckets[0], data=buckets[0].data[:-1]), buckets[1]], version


def _flipped_bit(buckets, version):
    data = buckets[0].data.copy()
    data[3] ^= 1
    return [dataclasses.replace(buckets[0], data=data), buckets[1]], version


def _other_number(buckets, version):
    return buckets, dataclasses.replace(version, number=2)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_skip_first, r"buckets 0 to 1, received were \[1\]"),
        (_skip_last, r"the last bucket of version 1 never came, only \[0\]"),
        (_twice, "bucket 0 of version 1 came twice"),
        (_torn, "bucket 0 of version 1 has 7 bytes, its shapes say 8"),
        (_flipped_bit, "version 1 has digest .* the buckets received have"),
        (_other_number, "the buckets are of version 1, not of version 2"),
    ],
)
def test_a_damaged_publish_is_refused_and_the_worker_stays_between_until_a_whole_one(damage, says):
    engine = ScriptedEngine(SCRIPT)
    worker = serving_worker(engine)
    buckets, version = damage(*buckets_of(1.0, 1))

    def attempt():
        worker.begin_publish(1)
        for bucket in buckets:
            worker.receive(bucket)
        worker.finish_publish(version)

    with pytest.raises(PublishRefused, match=says):
        attempt()
    assert worker.state is WorkerState.BETWEEN and engine.updates_finished == 0
    for refused in (lambda: worker.generate(PROMPTS, TWO_EACH, 0), lambda: worker.probe([[1]], [[2]])):
        with pytest.raises(WrongVersion, match="the worker is between"):
            refused()
    assert publish(worker, 1.0, 1) == worker.version
    worker.generate(PROMPTS, TWO_EACH, 1)


def test_a_bucket_that_does_not_load_leaves_the_worker_between_versions():
    engine = ScriptedEngine(SCRIPT, broken_buckets=[1])
    worker = serving_worker(engine)
    buckets, _ = buckets_of(1.0, 1)
    worker.begin_publish(1)
    worker.receive(buckets[0])
    with pytest.raises(ValueError, match="bucket 1 does not load"):
        worker.receive(buckets[1])
    assert worker.state is WorkerState.BETWEEN
    with pytest.raises(WrongVersion, match="this needs it receiving"):
        worker.receive(buckets[1])


def test_versions_only_grow_and_a_failed_number_may_be_repeated():
    worker = serving_worker(ScriptedEngine(SCRIPT))
    publish(worker, 1.0, 4)
    for number in (3, 4):
        with pytest.raises(PublishRefused, match=f"version {number} after version 4: versions only grow"):
            worker.begin_publish(number)
    assert worker.version.number == 4, "a refused number leaves the worker serving"
    worker.begin_publish(5)
    assert publish(worker, 2.0, 5).number == 5


def test_only_the_version_that_was_proved_can_be_admitted():
    worker = serving_worker(ScriptedEngine(SCRIPT))
    buckets, version = buckets_of(1.0, 1)
    worker.begin_publish(1)
    for bucket in buckets:
        worker.receive(bucket)
    worker.finish_publish(version)
    with pytest.raises(PublishRefused, match="cannot be admitted"):
        worker.admit(PolicyVersion(1, "another"))
    with pytest.raises(WrongVersion, match="this needs it empty"):
        worker.adopt(version)


def test_a_worker_that_joined_empty_serves_what_is_published_to_it():
    worker = RolloutWorker(ScriptedEngine(SCRIPT))
    with pytest.raises(WrongVersion, match="the worker is empty"):
        worker.generate(PROMPTS, TWO_EACH, 0)
    publish(worker, 1.0, 17)
    assert len(worker.generate(PROMPTS, TWO_EACH, 17)[0]) == 4


def test_a_request_says_what_the_sampling_settings_say():
    engine = ScriptedEngine(lambda request: [1])
    settings = SamplingSettings(temperature=0.7, top_p=0.9, top_k=4, max_tokens=6, min_tokens=2, stop=("x",), seed=1)
    batch, _ = serving_worker(engine).generate(PROMPTS[:1], settings, 0)
    assert engine.requests["7/0"] == Request("7/0/0", (1, 2, 3), 0.7, 6, sample_seed(1, 7, 0), 0.9, 4, 2, ("x",))
    assert batch.finish_reasons.tolist() == [FinishReason.STOP]


def test_a_worker_asleep_serves_nothing_until_the_next_publish():
    engine = ScriptedEngine(SCRIPT)
    worker = serving_worker(engine)
    worker.sleep()
    assert engine.slept == 1 and worker.version is None
    with pytest.raises(WrongVersion, match="it serves no version: publish one"):
        worker.submit(PROMPTS, TWO_EACH, 0)
    with pytest.raises(WrongVersion, match="the worker is between"):
        worker.sleep()
    publish(worker, 3.0, 1)
    assert len(worker.generate(PROMPTS, TWO_EACH, 1)[0]) == 4
