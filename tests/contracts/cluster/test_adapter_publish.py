"""An adapter in a live engine: with it the engine must be the one that was loaded with the merged weights.

Both engines, a tiny model in float32, adapters alone over the wire. Before the first publish the engine is the base.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.engines.interface import EngineBetweenVersions, Request
from actors.rollouts.worker import RolloutWorker
from actors.types import PolicyVersion, Prompt, SamplingSettings, digest_buckets
from tests.contracts.actors.test_vllm_weights import PROMPTS, add, finish, generate, make, mean_difference
from tests.fixtures.adapters import LORA, buckets_of, merge_by_hand, random_adapter
from tests.fixtures.engines import ENGINES, Pair, start_engine, update
from tests.fixtures.tiny_model import make_tiny_model

CLOSE = 1e-4
"""Nats: the merged weights are summed in another order."""


class Adapted:
    """A live engine with room for an adapter, two adapters, and for each an engine on the merged weights."""

    def __init__(self, kind: str, root) -> None:
        self.path = make_tiny_model(root / "base", seed=0)
        self.adapters = [random_adapter(self.path, seed) for seed in (0, 1)]
        self.buckets = [buckets_of(adapter) for adapter in self.adapters]
        self.zeros = buckets_of({name: torch.zeros_like(t) for name, t in self.adapters[0].items()})
        merged = [merge_by_hand(self.path, adapter, root / f"merged-{i}") for i, adapter in enumerate(self.adapters)]
        settings = Pair.settings(self.path)
        self.live = start_engine(kind, replace(settings, lora=LORA))
        self.base, *self.merged = (start_engine(kind, Pair.settings(path)) for path in (self.path, *merged))

    def close(self) -> None:
        for engine in (self.live, self.base, *self.merged):
            engine.close()


@pytest.fixture(scope="module", params=ENGINES)
def shared(request, tmp_path_factory):
    found = Adapted(request.param, tmp_path_factory.mktemp("adapted"))
    yield found
    found.close()


@pytest.fixture
def adapted(shared):
    yield shared
    shared.live.abort([f"r{i}" for i in range(16)])
    update(shared.live, shared.zeros)


def same(found, expected) -> None:
    assert {i: tokens for i, (tokens, _) in found.items()} == {i: tokens for i, (tokens, _) in expected.items()}
    for i, (_, logprobs) in expected.items():
        np.testing.assert_allclose(found[i][1], logprobs, atol=CLOSE)


def test_before_the_first_publish_the_engine_is_the_base(adapted):
    expected = generate(adapted.base)
    same(generate(adapted.live), expected)
    assert mean_difference(adapted.live, adapted.base, expected) < CLOSE


def test_with_an_adapter_the_engine_is_the_merged_model_and_with_the_next_one_the_next(adapted):
    base = generate(adapted.live)
    for buckets, merged in zip(adapted.buckets, adapted.merged, strict=True):
        update(adapted.live, buckets)
        expected = generate(merged)
        assert {i: t for i, (t, _) in expected.items()} != {i: t for i, (t, _) in base.items()}
        same(generate(adapted.live), expected)
        assert mean_difference(adapted.live, merged, expected) < CLOSE


def test_the_same_adapter_again_gives_the_same_bits(adapted):
    update(adapted.live, adapted.buckets[0])
    first = generate(adapted.live)
    update(adapted.live, adapted.buckets[1])
    update(adapted.live, adapted.buckets[0][::-1])
    assert generate(adapted.live) == first


def test_no_prefix_cached_under_an_old_adapter_is_used_under_a_new_one(adapted):
    update(adapted.live, adapted.buckets[0])
    generate(adapted.live)
    update(adapted.live, adapted.buckets[1])
    same(generate(adapted.live, count=2), generate(adapted.merged[1], count=2))


def test_running_requests_go_on_with_the_new_adapter(adapted):
    """Also over the first publish, for they ran on the base until then."""
    old = generate(adapted.live)
    add(adapted.live)
    begun = finish(adapted.live, steps=3)
    update(adapted.live, adapted.buckets[0])
    rest = finish(adapted.live)
    for i in old:
        assert begun[i][0] == old[i][0][:3] and len(begun[i][0] + rest[i][0]) == 8
        assert np.abs(np.array(rest[i][1]) - old[i][1][3:]).max() > 0.01


def test_requests_still_waiting_at_an_update_are_made_with_the_new_adapter_alone(adapted):
    """Four seats: of six requests the last two have no token yet when the adapter changes."""
    add(adapted.live, count=6)
    finish(adapted.live, steps=2)
    update(adapted.live, adapted.buckets[0])
    rest, expected = finish(adapted.live), generate(adapted.merged[0], count=6)
    same({i: rest[i] for i in ("r4", "r5")}, {i: expected[i] for i in ("r4", "r5")})


def test_an_update_of_other_or_of_too_few_tensors_is_refused_and_a_whole_one_repairs_it(adapted):
    some = next(iter(adapted.adapters[0]))
    whole = adapted.adapters[0]
    for damaged, reason in [
        ({**whole, "model.embed_tokens.weight": torch.zeros(3)}, "the adapter has no parameter model.embed_tokens"),
        ({**whole, some: torch.zeros(5, 7)}, r"is \(4, 128\) here, \(5, 7\) in the bucket"),
        ({n: t for n, t in whole.items() if n != some}, f"lacks 1 parameters, such as {some}"),
    ]:
        with pytest.raises(ValueError, match=reason):
            update(adapted.live, [make(damaged.keys(), damaged.values())])
        with pytest.raises(EngineBetweenVersions):
            adapted.live.step()
        with pytest.raises(EngineBetweenVersions):
            adapted.live.logprobs([PROMPTS[0]], [[5]])
    update(adapted.live, adapted.buckets[0])
    same(generate(adapted.live), generate(adapted.merged[0]))


def test_a_worker_publishes_an_adapter_as_it_publishes_a_model(adapted):
    worker = RolloutWorker(adapted.live)
    worker.adopt(PolicyVersion(0, "disk"))
    version = PolicyVersion(1, digest_buckets([b.digest() for b in adapted.buckets[0]]))
    worker.begin_publish(1)
    for bucket in adapted.buckets[0]:
        worker.receive(bucket)
    worker.finish_publish(version)
    worker.admit(version)
    prompts = [Prompt(id=i, token_ids=tokens, group=i) for i, tokens in enumerate(PROMPTS)]
    batch, _ = worker.generate(prompts, SamplingSettings(max_tokens=8, samples_per_prompt=2, seed=3), 1)
    assert {v for sample in batch for _, v in sample.spans} == {1}


def test_a_skipped_load_shows_in_the_logprobs_of_recorded_responses(adapted, monkeypatch):
    recorded = generate(adapted.merged[0])
    with monkeypatch.context() as patch:
        patch.setattr(adapted.live, "load_bucket", lambda bucket: None)
        patch.setattr(adapted.live, "finish_update", lambda: None)
        assert mean_difference(adapted.live, adapted.merged[0], recorded) > 0.1


def test_only_named_modules_are_adapted_where_targets_are_given(tmp_path):
    lora = replace(LORA, targets=("q_proj", "down_proj"), rank=8)
    path = make_tiny_model(tmp_path / "base", seed=0)
    adapter = random_adapter(path, 0, lora)
    assert len(adapter) == 2 * 2 * 2, "A and B of two modules in each of two layers"
    merged = merge_by_hand(path, adapter, tmp_path / "merged", lora)
    request = Request("r", PROMPTS[0], 1.0, 8, seed=5, ignore_eos=True)
    for kind in ENGINES:
        live, whole = (start_engine(kind, s) for s in (replace(Pair.settings(path), lora=lora), Pair.settings(merged)))
        update(live, buckets_of(adapter))
        for engine in (live, whole):
            engine.add_request(request)
        found, expected = finish(live), finish(whole)
        live.close()
        whole.close()
        same(found, expected)
