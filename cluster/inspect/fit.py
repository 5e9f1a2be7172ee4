"""Whether a plan fits: memory, the engine's cache, disk. Each function returns the problems it finds.

In: a Config, the model's facts, a MemoryPlan, a Machine. Out: Problems that name what takes most and what to lower.
Left out: counting the bytes (memory.py), GPUs' number (cluster.config.placement).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cluster.config import Config, Problem
from cluster.inspect.machine import GIB, Machine, existing_parent
from cluster.inspect.memory import HOST_PARTS, MemoryPlan, checkpoint_bytes, gpu_bytes_needed, kv_bytes_per_token
from cluster.inspect.model import ModelFacts

ADVICE = {
    "activations": "lower learner.micro_batch_tokens or set model.gradient_checkpointing",
    "logits": "lower learner.micro_batch_tokens",
    "kv cache": "lower rollout.kv_cache_gb",
}
TAKES_TURNS = ("synchronous", "partial")
"""Schedules whose engines rest while the learner works."""


def memory_problems(config: Config, machine: Machine, memory: MemoryPlan, gpu_bytes: int) -> Iterator[Problem]:
    """Whether everything fits into this machine's memory, or each process into its GPU."""
    if machine.gpus:
        needed, has, what = gpu_bytes, min(machine.gpus), "a GPU needs about {} GB and the smallest here has {} GB"
        if memory.colocated:
            what = f"{what}, for learner and engine share it"
    else:
        needed, has, what = memory.total, machine.memory, "the plan needs about {} GB and this machine has {} GB"
    if needed > has:
        relief = _in_turns(config, memory, has) or _relief(config, memory, bool(machine.gpus))
        yield Problem("memory", f"{what.format(_gb(needed), _gb(has))}; {relief}")


def _in_turns(config: Config, memory: MemoryPlan, has: int) -> str | None:
    """Whether what is too much for a GPU that learner and engine share fits where its engine sleeps while the learner
    works, and how to say so."""
    if not memory.colocated or config.rollout.sleep_level or config.rollout.schedule.kind not in TAKES_TURNS:
        return None
    asleep = config.model_copy(update={"rollout": config.rollout.model_copy(update={"sleep_level": 1})})
    needed = gpu_bytes_needed(asleep, memory)
    if needed > has:
        return None
    turns = "set learner.gpus_per_rank to 0.5 and rollout.sleep_level to 1, so that they take turns"
    return f"{turns} on about {_gb(needed)} GB"


def _relief(config: Config, memory: MemoryPlan, on_gpu: bool) -> str:
    """What to change, by what takes most: of a machine, or of one process's GPU."""
    sizes = [
        (role.role, part, size if on_gpu else size * role.count)
        for role in memory.roles
        for part, size in role.parts.items()
        if not (on_gpu and part in HOST_PARTS) and not (on_gpu and role.role == "scorer")
    ]
    name, part, size = max(sizes, key=lambda entry: entry[2])
    shards = "raise learner.zero.stage and learner.ranks, or " if config.learner.zero.stage < 3 else ""
    if on_gpu and part == "optimiser":
        keys = "learner.zero and critic.zero" if config.critic is not None else "learner.zero"
        shards = f"move it to host memory ({keys}: {{stage: 1, offload_optimizer: cpu}}), {shards or 'or '}"
    fix = ADVICE.get(part, f"{shards}take a smaller model")
    return f"most of it is the {name}'s {part} ({_gb(size)} GB): {fix}"


def cache_problems(config: Config, facts: ModelFacts) -> Iterator[Problem]:
    """Whether an engine's cache on CPU holds one sequence of the whole window."""
    if not facts.layers:
        return
    per_token, window, given = kv_bytes_per_token(facts, config.model.dtype), config.model.max_length, config.rollout
    tokens = int(given.kv_cache_gb * GIB) // per_token
    if tokens < window:
        yield Problem(
            "rollout.kv_cache_gb",
            f"{given.kv_cache_gb:g} GB hold {tokens} tokens of this model, fewer than one sequence of model.max_length "
            f"({window}); give {window * per_token / GIB + 0.005:.2f} or more",
        )


def disk_problems(config: Config, facts: ModelFacts, critic: ModelFacts | None, run_dir: Path) -> Iterator[Problem]:
    """Whether the run directory can be written to and holds the checkpoints."""
    where = existing_parent(run_dir)
    if not os.access(where, os.W_OK):
        yield Problem("--run-dir", f"{where} cannot be written to; give another --run-dir")
        return
    needed, free = checkpoint_bytes(config, facts, critic), shutil.disk_usage(where).free
    if needed > free:
        yield Problem(
            "checkpoint",
            f"its files take up to {_gb(needed)} GB and {where} has {_gb(free)} GB free; lower checkpoint.keep_last "
            f"(now {config.checkpoint.keep_last}) or give another --run-dir",
        )


def _gb(size: int) -> str:
    return f"{size / GIB:.1f}"
