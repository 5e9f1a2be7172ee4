"""Rules of `rollout`: what its engines can do, and what a GPU that they share with a learner allows.

In: a Config of a method that makes its own samples. Out: Problems. Left out: sampling (sampling.py), schedules
(schedule.py), the transport of weights (cluster/config/transport.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config.placement import told_share
from cluster.config.problem import Problem, got
from cluster.config.schema import Config


def rollout_problems(config: Config) -> Iterator[Problem]:
    rollout, share = config.rollout, told_share(config)
    if rollout.engine == "torch" and rollout.tensor_parallel > 1:
        yield Problem(
            "rollout.tensor_parallel",
            f"the torch engine runs on one device, got {rollout.tensor_parallel}; use vllm or 1",
        )
    if rollout.sleep_level:
        yield from _sleep(config)
    elif share is not None and (taken := rollout.gpu_memory_utilization or 0.0) > 1 - share:
        yield Problem(
            "rollout.gpu_memory_utilization",
            f"a worker that shares its GPU with a learner rank (learner.gpus_per_rank {share:g}) may take at most "
            f"{1 - share:g} of its memory, got {taken:g}",
        )


def _sleep(config: Config) -> Iterator[Problem]:
    level, kind, path = config.rollout.sleep_level, config.rollout.schedule.kind, "rollout.sleep_level"
    if kind in ("one_step_off", "asynchronous"):
        yield Problem(path, f"engines of the {kind} schedule work while the learner does; use synchronous or partial")
    if told_share(config) is None:
        yield Problem(
            path,
            "makes room for a learner on the engine's GPU; set learner.gpus_per_rank below 1 or remove it, got "
            f"gpus_per_rank {got(config.learner.gpus_per_rank)}",
        )
    if level == 2 and config.model.lora is not None:
        yield Problem(path, "2 forgets the base model, and only its adapter is published; use 1")
