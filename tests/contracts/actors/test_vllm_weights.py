"""New weights in a live engine: after an update it must be the engine that was loaded with them, bit for bit.

Both engines, tied and untied heads, tiny models in float32. The last tests plant the two faults that no error shows (a
stale packed head, an update that loads nothing) and check that log-probs of recorded responses give them away.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actors.engines.interface import EngineBetweenVersions, Request
from actors.rollouts.reception import PublishRefused
from actors.rollouts.worker import RolloutWorker, WorkerState
from actors.transports.buckets import make_buckets
from actors.types import PolicyVersion, Prompt, SamplingSettings, WeightBucket, digest_buckets
from tests.fixtures.engines import BUCKET_BYTES, ENGINES, Pair, start_engine, update
from tests.fixtures.tiny_model import make_tiny_model

PROMPTS = [(2, *range(10, 10 + n)) for n in (40, 41, 5)]
"""Two share a prefix longer than a block of the cache, so a stale one would be hit."""

KINDS = [(kind, tied) for kind in ENGINES for tied in (True, False)]


@pytest.fixture(scope="module", params=KINDS, ids=[f"{kind}-{'tied' if tied else 'untied'}" for kind, tied in KINDS])
def shared(request, tmp_path_factory):
    pair = Pair(*request.param, tmp_path_factory.mktemp("pair"))
    yield pair
    pair.live.close()
    pair.fresh.close()


@pytest.fixture
def pair(shared):
    yield shared
    shared.back()


def add(engine, count: int = 3, max_tokens: int = 8) -> None:
    for i in range(count):
        engine.add_request(Request(f"r{i}", PROMPTS[i % 3], 1.0, max_tokens, seed=50 + i, ignore_eos=True))


def finish(engine, steps: int | None = None) -> dict[str, tuple[list[int], list[float]]]:
    """Step until nothing comes any more, or `steps` times."""
    made: dict[str, tuple[list[int], list[float]]] = {}
    taken = 0
    while taken != steps:
        outputs = engine.step()
        if not outputs:
            break
        for output in outputs:
            tokens, logprobs = made.setdefault(output.request_id, ([], []))
            tokens += output.token_ids
            logprobs += output.logprobs
        taken += 1
    return made


def generate(engine, **kwargs) -> dict[str, tuple[list[int], list[float]]]:
    add(engine, **kwargs)
    return finish(engine)


def mean_difference(engine, other, recorded) -> float:
    """Mean |log-prob difference| of two engines on recorded responses: what the probe of a publish measures."""
    responses = [recorded[f"r{i}"][0] for i in range(3)]
    a, b = (e.logprobs(PROMPTS, responses) for e in (engine, other))
    return float(np.abs(np.concatenate(a) - np.concatenate(b)).mean())


def test_an_updated_engine_is_the_freshly_loaded_one_bit_for_bit(pair):
    expected = generate(pair.fresh)
    assert generate(pair.live) != expected
    update(pair.live, pair.buckets[1])
    assert generate(pair.live) == expected
    assert mean_difference(pair.live, pair.fresh, expected) == 0.0


def test_buckets_load_in_any_order_and_are_not_kept_after_the_update(pair):
    expected = generate(pair.fresh)
    pair.live.start_update()
    passing = [replace(bucket, data=bucket.data.copy()) for bucket in reversed(pair.buckets[1])]
    for bucket in passing:
        pair.live.load_bucket(bucket)
    pair.live.finish_update()
    for bucket in passing:
        bucket.data[:] = 0xFF
    assert generate(pair.live) == expected


def test_a_bfloat16_bucket_reaches_a_float32_engine_with_its_values(pair):
    state = {n: t.bfloat16() for n, t in load_file(pair.paths[1] / "model.safetensors").items()}
    update(pair.live, list(make_buckets(state.items(), BUCKET_BYTES)))
    rounded = pair.live.logprobs([PROMPTS[0]], [[5, 6, 7]])[0]
    update(pair.live, list(make_buckets(((n, t.float()) for n, t in state.items()), BUCKET_BYTES)))
    np.testing.assert_array_equal(pair.live.logprobs([PROMPTS[0]], [[5, 6, 7]])[0], rounded)


def test_no_prefix_cached_under_old_weights_is_used_under_new_ones(pair):
    generate(pair.live)
    update(pair.live, pair.buckets[1])
    expected = generate(pair.fresh, count=2)
    assert generate(pair.live, count=2) == expected


def test_a_request_that_comes_between_two_versions_is_made_by_the_new_one_alone(pair):
    expected = generate(pair.fresh)
    pair.live.start_update()
    add(pair.live)
    for bucket in pair.buckets[1]:
        pair.live.load_bucket(bucket)
    pair.live.finish_update()
    assert finish(pair.live) == expected


def test_running_requests_go_on_over_an_update_of_the_same_weights_as_if_there_was_none(pair):
    expected = generate(pair.live)
    add(pair.live)
    begun = finish(pair.live, steps=3)
    update(pair.live, pair.buckets[0])
    rest = finish(pair.live)
    for i, (tokens, logprobs) in expected.items():
        assert begun[i][0] + rest[i][0] == tokens
        np.testing.assert_allclose(begun[i][1] + rest[i][1], logprobs, atol=1e-5)


def test_running_requests_go_on_over_an_update_with_the_new_weights(pair):
    old = generate(pair.live)
    add(pair.live)
    begun = finish(pair.live, steps=3)
    update(pair.live, pair.buckets[1])
    rest = finish(pair.live)
    for i in old:
        assert begun[i][0] == old[i][0][:3] and len(begun[i][0] + rest[i][0]) == 8
        assert rest[i][1] != old[i][1][3:]


def test_requests_still_waiting_at_an_update_are_made_by_the_new_weights_alone(pair):
    """Four seats: of six requests the last two have no token yet when the weights change."""
    expected = generate(pair.fresh, count=6)
    add(pair.live, count=6)
    begun = finish(pair.live, steps=2)
    assert set(begun) == {"r0", "r1", "r2", "r3"}
    update(pair.live, pair.buckets[1])
    rest = finish(pair.live)
    for i in ("r4", "r5"):
        assert rest[i][0] == expected[i][0]
        np.testing.assert_allclose(rest[i][1], expected[i][1], atol=1e-4)


def test_an_engine_between_versions_neither_decodes_nor_scores(pair):
    add(pair.live, count=1)
    pair.live.start_update()
    pair.live.load_bucket(pair.buckets[1][0])
    with pytest.raises(EngineBetweenVersions):
        pair.live.step()
    with pytest.raises(EngineBetweenVersions):
        pair.live.logprobs([PROMPTS[0]], [[5]])


def _unknown_name(buckets):
    return [make(["model.layers.9.nothing.weight"], [torch.zeros(3)])]


def _wrong_shape(buckets):
    return [make(["model.layers.1.self_attn.q_proj.weight"], [torch.zeros(7, 5)])]


def make(names, tensors) -> WeightBucket:
    return next(make_buckets(zip(names, tensors, strict=True), 1 << 30))


@pytest.mark.parametrize("damage", [_unknown_name, _wrong_shape])
def test_a_failed_update_blocks_the_engine_until_a_whole_one_repairs_it(pair, damage):
    expected = generate(pair.fresh)
    pair.live.start_update()
    for bucket in pair.buckets[1][: len(pair.buckets[1]) // 2]:
        pair.live.load_bucket(bucket)
    with pytest.raises((ValueError, KeyError, AssertionError, RuntimeError)):
        for bucket in damage(pair.buckets[1]):
            pair.live.load_bucket(bucket)
    with pytest.raises(EngineBetweenVersions):
        pair.live.step()
    update(pair.live, pair.buckets[1])
    assert generate(pair.live) == expected


def test_an_update_that_lacks_a_parameter_is_refused_by_name(pair):
    state = load_file(pair.paths[1] / "model.safetensors")
    del state["model.norm.weight"]
    with pytest.raises(ValueError, match=r"lacks 1 parameters, such as model\.norm\.weight"):
        update(pair.live, list(make_buckets(state.items(), BUCKET_BYTES)))
    with pytest.raises(EngineBetweenVersions):
        pair.live.step()


def test_loading_outside_an_update_is_refused(pair):
    with pytest.raises(RuntimeError, match="call start_update first"):
        pair.live.load_bucket(pair.buckets[1][0])
    with pytest.raises(RuntimeError, match="call start_update first"):
        pair.live.finish_update()


def test_a_worker_stamps_each_token_with_its_version_and_serves_what_was_published(pair):
    worker = RolloutWorker(pair.live)
    worker.adopt(PolicyVersion(0, "disk"))
    prompts = [Prompt(id=i, token_ids=tokens, group=i) for i, tokens in enumerate(PROMPTS)]
    sampling = SamplingSettings(max_tokens=8, samples_per_prompt=2, seed=3, min_tokens=7)
    version = PolicyVersion(1, digest_buckets([b.digest() for b in pair.buckets[1]]))

    def publish_once():
        if worker.tokens_made >= 18 and worker.version.number == 0:
            worker.begin_publish(1)
            for bucket in pair.buckets[1]:
                worker.receive(bucket)
            worker.finish_publish(version)
            worker.admit(version)

    batch, stats = worker.generate(prompts, sampling, 0, publish_once)
    assert stats.samples == 6 and {len(s.token_ids) for s in batch} == {8}
    assert [v for _, v in batch.sample(0).spans] == [0, 1]
    fresh = RolloutWorker(pair.fresh)
    fresh.adopt(version)
    expected, _ = fresh.generate(prompts, sampling, 1)
    found, _ = worker.generate(prompts, sampling, 1)
    np.testing.assert_array_equal(found.token_ids, expected.token_ids)
    np.testing.assert_array_equal(found.logprobs, expected.logprobs)


def test_a_publish_whose_digest_differs_never_reaches_decoding(pair):
    worker = RolloutWorker(pair.live)
    worker.adopt(PolicyVersion(0, "disk"))
    worker.begin_publish(1)
    for bucket in pair.buckets[0]:
        worker.receive(bucket)
    with pytest.raises(PublishRefused, match="digest"):
        worker.finish_publish(PolicyVersion(1, digest_buckets([b.digest() for b in pair.buckets[1]])))
    assert worker.state is WorkerState.BETWEEN
    with pytest.raises(EngineBetweenVersions):
        pair.live.step()


def test_a_stale_output_head_shows_in_the_logprobs_of_recorded_responses(pair, monkeypatch):
    """The trap of vLLM on CPU: a tied head keeps its old packed weights. Untied heads and the twin have none."""
    from actors.engines.vllm import engine as vllm_engine
    from actors.engines.vllm import port as vllm_port

    recorded = generate(pair.fresh)
    monkeypatch.setattr(vllm_port, "repack_tied_heads", lambda model: None)
    update(pair.live, pair.buckets[1])
    stale = isinstance(pair.live, vllm_engine.VllmEngine) and pair.tied
    difference = mean_difference(pair.live, pair.fresh, recorded)
    assert difference > 0.3 if stale else difference == 0.0


def test_a_skipped_load_shows_in_the_logprobs_of_recorded_responses(pair, monkeypatch):
    """Someone's update that received everything and loaded nothing."""
    recorded = generate(pair.fresh)
    monkeypatch.setattr(pair.live, "load_bucket", lambda bucket: None)
    monkeypatch.setattr(pair.live, "finish_update", lambda: None)
    assert mean_difference(pair.live, pair.fresh, recorded) > 0.3


def test_two_tensor_parallel_workers_take_the_same_buckets_as_one(tmp_path):
    """The engine's own processes load their shards by the same path, and leave with it."""
    old, new = (make_tiny_model(tmp_path / f"{seed}", seed=seed) for seed in (0, 1))
    buckets = list(make_buckets(load_file(new / "model.safetensors").items(), BUCKET_BYTES))
    split = start_engine("vllm", replace(Pair.settings(old), tensor_parallel=2))
    workers = multiprocessing.active_children()
    update(split, buckets)
    found, scored = generate(split), split.logprobs(PROMPTS[:1], [[5, 6, 7]])[0]
    split.close()
    whole = start_engine("vllm", Pair.settings(new))
    expected = generate(whole)
    np.testing.assert_allclose(scored, whole.logprobs(PROMPTS[:1], [[5, 6, 7]])[0], atol=1e-4)
    whole.close()
    for verb in (whole.step, whole.pressure, whole.start_update):
        with pytest.raises(RuntimeError, match="the engine is closed: make another"):
            verb()
    assert {i: tokens for i, (tokens, _) in found.items()} == {i: tokens for i, (tokens, _) in expected.items()}
    assert len(workers) == 2 and not any(worker.is_alive() for worker in workers)
