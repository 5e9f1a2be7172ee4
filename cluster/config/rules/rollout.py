"""Rules of `rollout`: what its engines can do, and what a GPU that they share with a learner allows.

In: a Config of a method that makes its own samples. Out: Problems. Left out: sampling (sampling.py), schedules
(schedule.py), the transport of weights (cluster/config/transport.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config.problem import Problem
from cluster.config.schema import Config


def rollout_problems(config: Config) -> Iterator[Problem]:
    rollout, share = config.rollout, config.learner.gpus_per_rank
    if rollout.engine == "torch" and rollout.tensor_parallel > 1:
        yield Problem(
            "rollout.tensor_parallel",
            f"the torch engine runs on one device, got {rollout.tensor_parallel}; use vllm or 1",
        )
    if rollout.sleep_level:
        yield from _sleep(config)
    elif 0 < share < 1 and rollout.gpu_memory_utilization > 1 - share:
        yield Problem(
            "rollout.gpu_memory_utilization",
            f"a worker that shares its GPU with a learner rank (learner.gpus_per_rank {share:g}) may take at most "
            f"{1 - share:g} of its memory, got {rollout.gpu_memory_utilization:g}",
        )


def _sleep(config: Config) -> Iterator[Problem]:
    level, kind, path = config.rollout.sleep_level, config.rollout.schedule.kind, "rollout.sleep_level"
    if kind in ("one_step_off", "asynchronous"):
        yield Problem(path, f"engines of the {kind} schedule work while the learner does; use synchronous or partial")
    if not 0 < config.learner.gpus_per_rank < 1:
        yield Problem(
            path,
            "makes room for a learner on the engine's GPU; set learner.gpus_per_rank below 1 or remove it, got "
            f"gpus_per_rank {config.learner.gpus_per_rank:g}",
        )
    if level == 2 and config.model.lora is not None:
        yield Problem(path, "2 forgets the base model, and only its adapter is published; use 1")
