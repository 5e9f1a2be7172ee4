"""How learner and engine divide the memory of a GPU that they share. Pure.

In: a Config, the policy's facts, a MemoryPlan, a GPU's bytes. Out: `Split`, what the engine is told to take. An engine
that measured by itself would count what the learner takes meanwhile as its own, so it is given its cache in bytes. What
is named by rollout.gpu_memory_utilization is the engine's; else it takes what the learner leaves, as far as its
sequences can fill it. Example: of 80 GB the learner takes 30 and 4 stay free, so the engine may have 46; with 5 of
weights and work space, and 128 sequences of 0.1 GB, it takes 5 + 12.8. Left out: counting bytes (memory.py), who shares
(cluster/config/placement.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config import Config
from cluster.inspect.machine import GIB
from cluster.inspect.memory import (
    GPU_CONTEXT,
    SLACK,
    WORK_SPACE,
    MemoryPlan,
    gpu_bytes_needed,
    learner_beside_engine,
    sequence_bytes,
)
from cluster.inspect.model import ModelFacts


@dataclass(frozen=True, slots=True)
class Split:
    """Bytes of one GPU: of all of it, what the learner keeps while the engine works, what the engine takes, and of that
    its cache."""

    gpu: int
    learner: int
    engine: int
    cache: int

    @property
    def utilization(self) -> float:
        """The engine's share of the GPU."""
        return self.engine / self.gpu

    def __str__(self) -> str:
        return (
            f"of a GPU's {self.gpu / GIB:.1f} GB the learner takes about {self.learner / GIB:.1f} and the engine "
            f"{self.engine / GIB:.1f}, of which its cache {self.cache / GIB:.1f}"
        )


def divide(config: Config, facts: ModelFacts, plan: MemoryPlan, gpu: int) -> Split | None:
    """Of a GPU with so many bytes; None where it does not hold both."""
    if gpu < gpu_bytes_needed(config, plan):
        return None
    engine, use = plan.role("rollout"), config.rollout.gpu_memory_utilization
    least = engine.parts.get("kv cache", 0)
    apart = engine.on_device - least + GPU_CONTEXT + WORK_SPACE
    learner = learner_beside_engine(config, plan)
    room = int((1 - SLACK) * gpu if use is None else use * gpu) - apart - (learner if use is None else 0)
    if use is None and facts.layers:
        room = min(room, config.rollout.max_num_seqs * sequence_bytes(config, facts))
    cache = max(room, least)  # rounding apart
    return Split(gpu, learner, apart + cache, cache)
