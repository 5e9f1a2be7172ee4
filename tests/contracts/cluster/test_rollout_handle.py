"""What the pool counts on in a rollout worker, asked of a Ray actor and of its twin in this process, both over the
plain engine: one contract, two implementations."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from actors.engines.interface import EngineSettings
from actors.engines.torch_engine import TorchEngine
from actors.transports.buckets import make_buckets
from actors.types import FinishReason, PolicyVersion, Prompt, SampleBatch, SamplingSettings, digest_buckets
from cluster.config.placement import RolePlan
from cluster.life.connection import Cluster
from cluster.pool.members.handle import RolloutHandle, WorkerError, WorkerLost
from cluster.pool.members.ticket import Ticket
from cluster.roles.rollout import RolloutSpec
from cluster.workers import get, put, start_rollout
from tests.fixtures.local_rollout import LocalRollout
from tests.fixtures.tiny_model import make_tiny_model

ROLE = RolePlan("rollout", 1, cpus=0, gpus=0, threads=1)
PROMPTS = [Prompt(id=i, token_ids=(2, 20 + i, 31), group=i) for i in range(3)]
LONG = SamplingSettings(samples_per_prompt=2, max_tokens=120, min_tokens=120, seed=1)
SHORT = SamplingSettings(samples_per_prompt=2, max_tokens=6, seed=1)


class Bench:
    """A handle on weights from disk, an event loop that is always the same, and how to read references."""

    def __init__(self, kind: str, model: Path, other: Path) -> None:
        self.kind = kind
        self.loop = asyncio.new_event_loop()
        self.settings = EngineSettings(str(model), dtype="float32", max_model_len=160)
        self.buckets = {
            number: list(make_buckets(load_file(path / "model.safetensors").items(), 200_000))
            for number, path in ((1, other), (2, model))
        }
        self.handle: RolloutHandle = self._start()
        self.identity = self.run(self.handle.start())
        self.run(self.handle.adopt(PolicyVersion(0, "disk")))

    def _start(self) -> RolloutHandle:
        if self.kind == "ray":
            return start_rollout(ROLE, RolloutSpec(self.settings, "torch", "cpu", "object_store", 60.0, 60.0))("worker")

        async def make() -> LocalRollout:
            return LocalRollout("worker", TorchEngine(self.settings))

        return self.run(make())

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(call, 60))

    def put(self, value: Any) -> Any:
        return put(value) if self.kind == "ray" else value

    def get(self, reference: Any) -> Any:
        return get(reference, 60.0, "reading") if self.kind == "ray" else reference

    def ticket(self, sampling: SamplingSettings, **fields: Any) -> Ticket:
        return Ticket(1, self.put(PROMPTS), tuple(p.group for p in PROMPTS), sampling, **fields)

    def generate(self, ticket: Ticket) -> tuple[SampleBatch, SampleBatch, Any]:
        batch, recorded, stats = self.run(self.handle.generate(ticket))
        return self.get(batch), self.get(recorded), stats

    async def publish(self, number: int, digest: str | None = None) -> PolicyVersion:
        """Every call made before any is awaited."""
        buckets, handle = self.buckets[number], self.handle
        version = PolicyVersion(number, digest or digest_buckets([bucket.digest() for bucket in buckets]))
        calls = [handle.begin_publish(number), *(handle.receive(self.put(bucket)) for bucket in buckets)]
        calls += [handle.finish_publish(version), handle.admit(version)]
        await asyncio.gather(*map(asyncio.ensure_future, calls))
        return version


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("handle")
    return make_tiny_model(root / "a", seed=0), make_tiny_model(root / "b", seed=1)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with Cluster("local", 2):
        yield


@pytest.fixture(scope="module", params=["ray", "local"])
def bench(request: pytest.FixtureRequest, models: tuple[Path, Path], ray_here: None) -> Iterator[Bench]:
    """One worker for all cases, which come in the order of this file; the last of them ends it."""
    made = Bench(request.param, *models)
    yield made
    made.loop.close()


def test_it_says_what_it_is(bench: Bench) -> None:
    found = bench.identity
    assert bench.kind == "local" or (found.dtype == "float32" and found.engine.startswith("torch "))
    assert found.tokenizer and found.model


def test_a_ticket_comes_back_whole_with_some_recorded_and_what_it_took(bench: Bench) -> None:
    batch, recorded, stats = bench.generate(bench.ticket(SHORT, version=0, recorded=2))
    assert [(s.group, s.sample_index) for s in batch] == [(g, i) for g in range(3) for i in range(2)]
    assert 2 <= len(recorded) <= len(batch)
    assert stats.samples == 6 and stats.response_tokens == len(batch.logprobs) and not stats.unfinished
    again, _, _ = bench.generate(bench.ticket(SHORT, version=0))
    assert all(np.array_equal(a.token_ids, b.token_ids) for a, b in zip(batch, again, strict=True))


def test_a_ticket_for_another_version_is_refused(bench: Bench) -> None:
    with pytest.raises(WorkerError, match="version 7 was asked for, the worker serves 0"):
        bench.run(bench.handle.generate(bench.ticket(SHORT, version=7)))


def test_an_interrupted_ticket_comes_back_with_what_it_has_and_goes_on_elsewhere(bench: Bench) -> None:
    async def stopped() -> Any:
        call = asyncio.ensure_future(bench.handle.generate(bench.ticket(LONG)))
        made = (await bench.handle.pulse()).tokens_made
        while (await bench.handle.pulse()).tokens_made < made + 60:
            await asyncio.sleep(0.01)
        assert (await bench.handle.pulse()).open == 1
        assert await bench.handle.interrupt() == 1
        return await call

    batch, _, stats = bench.run(stopped())
    partial = bench.get(batch)
    assert {sample.finish_reason for sample in partial} == {FinishReason.ABORT} and stats.unfinished
    carried = bench.ticket(LONG).handed_on(batch, stats.response_tokens + stats.partial_tokens)
    whole, _, _ = bench.generate(carried)
    straight, _, _ = bench.generate(bench.ticket(LONG))
    for begun, ended, once in zip(partial, whole, straight, strict=True):
        assert 0 < len(begun.token_ids) < len(ended.token_ids) == 120
        np.testing.assert_array_equal(ended.token_ids, once.token_ids)


def test_calls_about_weights_take_effect_in_the_order_in_which_they_were_made(bench: Bench) -> None:
    before = bench.run(bench.handle.probe(bench.put(recorded_of(bench))))
    for number in (1, 2):
        assert bench.run(bench.publish(number)).number == number
    after = bench.run(bench.handle.probe(bench.put(recorded_of(bench))))
    np.testing.assert_allclose(after, before, atol=1e-5)  # version 2 is what it began with
    assert set(recorded_of(bench).spans[:, 2]) == {2}


def recorded_of(bench: Bench) -> SampleBatch:
    return bench.generate(bench.ticket(SHORT, recorded=4))[1]


def test_weights_that_are_not_the_version_are_refused_and_serve_nothing(bench: Bench) -> None:
    bench.buckets[3] = bench.buckets[1]
    with pytest.raises(WorkerError, match="PublishRefused: version 3 has digest"):
        bench.run(bench.publish(3, digest="f" * 64))
    with pytest.raises(WorkerError, match="it serves no version"):
        bench.run(bench.handle.generate(bench.ticket(SHORT, version=3)))
    bench.run(bench.publish(3))
    assert set(recorded_of(bench).spans[:, 2]) == {3}


def test_a_pulse_tells_where_the_seconds_went(bench: Bench) -> None:
    pulse = bench.run(bench.handle.pulse())
    assert pulse.open == 0 and pulse.tokens_made > 0
    assert pulse.seconds.generate >= pulse.seconds.engine > 0 and pulse.seconds.sync > 0
    assert {what for what, _, _ in pulse.spans} >= {"generate", "sync"}
    assert pulse.pace.steps > 0 and pulse.pace.seconds == pulse.seconds.generate and pulse.pace.step_s == 0.0
    assert pulse.pace.tokens > pulse.tokens_made, "prompts were read too"
    assert bench.run(bench.handle.pulse()).spans == (), "told once"


def test_one_that_was_stopped_is_lost_to_every_call(bench: Bench) -> None:
    bench.run(bench.handle.stop())
    with pytest.raises(WorkerLost):
        bench.run(bench.handle.pulse())
    with pytest.raises(WorkerLost):
        bench.run(bench.handle.generate(bench.ticket(SHORT)))
