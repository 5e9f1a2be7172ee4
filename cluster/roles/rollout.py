"""A rollout worker: what runs inside its process. Knows nothing of Ray: `workers.py` wraps it in an actor.

In: prompts, weight buckets, versions. Out: columns and statistics. Left out: the engine (actors) and who calls when.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.engine import EngineSettings
from actors.types import PolicyVersion, Prompt, SampleBatch, SamplingSettings, WeightBucket


class RolloutRole:
    """A rollout worker: an engine and the policy version it holds."""

    def __init__(self, settings: EngineSettings, kind: str, stall_timeout_s: float) -> None:
        from actors.rollout import RolloutWorker

        self._settings = settings
        self.worker = RolloutWorker(_rollout_engine(settings, kind), stall_timeout_s=stall_timeout_s)

    def adopt(self, version: PolicyVersion) -> None:
        self.worker.adopt(version)

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, version: int, recorded: int
    ) -> tuple[SampleBatch, SampleBatch, Any]:
        """(samples, the first `recorded` of them for the probe, statistics)."""
        batch, stats = self.worker.generate(prompts, sampling, version)
        return batch, batch.take(range(min(recorded, len(batch)))), stats

    def begin_publish(self, number: int) -> None:
        self.worker.begin_publish(number)

    def receive(self, bucket: WeightBucket) -> None:
        self.worker.receive(bucket)

    def finish_publish(self, version: PolicyVersion) -> None:
        self.worker.finish_publish(version)

    def probe(self, batch: SampleBatch) -> np.ndarray:
        """The engine's log-probs of recorded samples, float32 on the batch's T axis."""
        prompts = [batch.prompt_of(row).tolist() for row in range(len(batch))]
        responses = [batch.response_of(row).tolist() for row in range(len(batch))]
        return np.concatenate(self.worker.probe(prompts, responses)).astype(np.float32)

    def admit(self, version: PolicyVersion) -> None:
        self.worker.admit(version)

    def close(self) -> None:
        self.worker.close()


def _rollout_engine(settings: EngineSettings, kind: str) -> Any:
    if kind == "torch":
        from actors.torch_engine import TorchEngine

        return TorchEngine(settings)
    from actors.vllm_engine import VllmEngine

    return VllmEngine(settings)
