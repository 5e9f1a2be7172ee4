"""Publishing with proof: the two faults that no error shows are planted, and both are caught before traffic.

Real parts in this process: vLLM's engine, the policy learner on a torch engine, the Publisher. Only Ray is left out:
the handles below hold the roles themselves where cluster/workers holds actors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.engines.interface import EngineSettings
from actors.rollouts.reception import PublishRefused
from actors.rollouts.worker import RolloutWorker
from actors.types import PolicyVersion, Prompt, SampleBatch, SamplingSettings
from cluster.errors import RunFailed
from cluster.training.parts.publish import Publisher
from learners.engines.models import load_policy
from learners.engines.settings import ModelSettings, OptimizerSettings
from learners.engines.torch_engine import TorchEngine
from learners.methods.method import Method, UpdateSettings
from learners.methods.presets import PRESETS
from learners.policy import PolicyLearner


class LocalPool:
    """The verbs of RolloutPool that a Publisher uses, on one worker in this process."""

    def __init__(self, worker: RolloutWorker) -> None:
        self.worker = worker

    def begin_publish(self, number: int) -> tuple[tuple[str, ...], bool]:
        self.worker.begin_publish(number)
        return ("here",), False

    def receive(self, bucket: Any) -> None:
        self.worker.receive(bucket)

    def watch_publish(self) -> None:
        """Its calls raise where they are made."""

    def finish_publish(self, version: PolicyVersion) -> None:
        self.worker.finish_publish(version)

    def lose_failed(self) -> list[str]:
        """Nor does it die."""
        return []

    def probe(self, batch: SampleBatch) -> dict[str, np.ndarray]:
        prompts = [batch.prompt_of(r).tolist() for r in range(len(batch))]
        responses = [batch.response_of(r).tolist() for r in range(len(batch))]
        return {"here": np.concatenate(self.worker.probe(prompts, responses))}

    def calibrated(self, probe: Any, judge: Any) -> None:
        """Nobody joins."""

    def admit(self, version: PolicyVersion, buckets: Any, probe: Any, judge: Any) -> None:
        self.worker.admit(version)


class LocalLearner:
    """The verbs of LearnerGroup that a Publisher uses, on one rank in this process."""

    def __init__(self, policy: PolicyLearner) -> None:
        self.policy = policy

    def weights(
        self, max_bytes: int, timeout_s: float, on_parcel: Any, parcels: bool, watch: Any
    ) -> tuple[list[Any], Any]:
        *buckets, summary = self.policy.weights(max_bytes)
        for bucket in buckets:
            on_parcel(bucket)
        return buckets, summary

    def policy_logprobs(self, chunks: list[SampleBatch], temperature: float) -> tuple[Any, ...]:
        return (self.policy.logprobs(SampleBatch.concat(chunks), temperature),)

    def wait(self, refs: tuple[Any, ...], what: str) -> list[Any]:
        return list(refs)


class Stage:
    """A learner and an engine on the same weights, and what moves them apart."""

    def __init__(self, model: Path) -> None:
        from actors.engines.vllm.engine import VllmEngine

        settings = EngineSettings(str(model), dtype="float32", max_model_len=64, kv_cache_bytes=1 << 27)
        self.worker = RolloutWorker(VllmEngine(settings))
        module = load_policy(ModelSettings(str(model), dtype="float32"))
        engine = TorchEngine(module, optimizer=OptimizerSettings(), dtype="float32", device=torch.device("cpu"))
        self.module = engine.module
        self.policy = PolicyLearner(engine, Method(PRESETS["grpo"]), UpdateSettings())
        self.pool = LocalPool(self.worker)
        self.publisher = Publisher(self.pool, LocalLearner(self.policy), bucket_bytes=1 << 18, timeout_s=60, factor=2.0)
        self.worker.adopt(PolicyVersion(0, "from disk"))
        self.publisher.adopt(PolicyVersion(0, "from disk"))
        prompts = [Prompt(i, (2, 20 + i, 30, 31), i) for i in range(8)]
        self.recorded, _ = self.worker.generate(prompts, SamplingSettings(max_tokens=12, seed=1), 0)
        self.publisher.calibrate(self.recorded)

    def learn(self, size: float = 0.05) -> None:
        """Move every weight of the learner, as a step with a large learning rate does."""
        generator = torch.Generator().manual_seed(self.publisher.version.number)
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)

    def serves(self, number: int) -> bool:
        return self.worker.version is not None and self.worker.version.number == number


@pytest.fixture(scope="module")
def stage(tiny_model: Path) -> Iterator[Stage]:
    made = Stage(tiny_model)
    yield made
    made.worker.close()


def test_a_published_version_is_admitted_with_the_mismatch_of_a_fresh_engine(stage: Stage) -> None:
    before = stage.publisher.version.number
    stage.learn()
    published = stage.publisher.publish(stage.recorded)
    assert published.version.number == before + 1 and stage.serves(before + 1)
    assert published.bytes == sum(p.numel() * 4 for p in stage.module.parameters())
    assert published.mismatch < 1e-4


def test_a_skipped_publish_is_caught_by_identity(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is handed the former version's buckets under the new version's name."""
    old = list(stage.policy.weights(1 << 18))[:-1]
    stage.learn()
    receive = stage.pool.receive
    monkeypatch.setattr(stage.pool, "receive", lambda bucket: receive(old[bucket.index]))
    with pytest.raises(PublishRefused, match="digest"):
        stage.publisher.publish(stage.recorded)
    assert stage.worker.version is None, "an engine between versions takes no traffic"
    monkeypatch.undo()
    stage.publisher.publish(stage.recorded)


def test_received_but_not_loaded_weights_are_caught_by_application(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every bucket arrives, its hash is right, and the engine goes on computing with the old weights."""
    engine = stage.worker._engine
    stage.learn()
    for verb in ("start_update", "finish_update"):
        monkeypatch.setattr(engine, verb, lambda: None)
    monkeypatch.setattr(engine, "load_bucket", lambda bucket: None)
    with pytest.raises(RunFailed, match="does not compute with it"):
        stage.publisher.publish(stage.recorded)
    assert stage.worker.version is None
    monkeypatch.undo()
    stage.publisher.publish(stage.recorded)


def test_a_stale_tied_head_is_caught_by_application(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's reload leaves a tied head's packed kernel on the old weights: nothing errors, log-probs are noise."""
    import actors.engines.vllm.port as vllm_port

    stage.learn()
    monkeypatch.setattr(vllm_port, "repack_tied_heads", lambda model: None)
    with pytest.raises(RunFailed, match="does not compute with it"):
        stage.publisher.publish(stage.recorded)
    assert stage.worker.version is None
    monkeypatch.undo()
    stage.publisher.publish(stage.recorded)
    assert stage.worker.version is not None
