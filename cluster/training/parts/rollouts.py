"""The rollout pool of a run: from its config and placement to workers on Ray.

In: a checked config, a placement, the model. Out: a RolloutPool that can be scaled as far as the cluster goes. Where
engines share the learner's GPUs each is told what it may take, and the learner is to be loaded before they start. Left
out: the pool itself (pool/), the actors (cluster/workers/rollout.py).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from actors.models.pretrained import resolve_model
from cluster.config import Config, resolve
from cluster.config.placement import Placement, RolePlan
from cluster.config.transport import choose_transport
from cluster.errors import UserError
from cluster.inspect.machine import GIB, visible_gpus
from cluster.inspect.memory import gpu_bytes_needed, plan_memory
from cluster.inspect.model import ModelFacts, facts_by_config, read_model_config
from cluster.inspect.split import Split, divide
from cluster.pool.members.roster import Deadlines
from cluster.pool.pool import RolloutPool
from cluster.roles.rollout import RolloutSpec
from cluster.workers import NodeRequests, free_resources, living_rollout, on_every_node, put, start_rollout
from cluster.workers.demand import bundles_of

NODE_ANSWERS_S = 60.0
RESERVE = 1 << 30
"""Memory that is left alone when workers are added on this machine."""


def start_pool(
    config: Config, placement: Placement, model: Path, tell: Callable[[str, str], None] = lambda kind, text: None
) -> RolloutPool:
    """Ask Ray for the workers; nothing waits. tell: hears of workers that come, leave and fail."""
    rollout, role = config.rollout, placement.role("rollout")
    if placement.device == "cpu" and config.ray.address == "local":
        # Roles take turns on one machine's cores, so logical CPUs are no measure of load: its memory is.
        role = replace(role, cpus=0)
    engine = resolve.engine_settings(config, str(model))
    if placement.colocated and (split := split_of(config, placement, model)) is not None:
        tell("placement", str(split))
        engine = replace(engine, gpu_memory_utilization=split.utilization, gpu_cache_bytes=split.cache)
    spec = RolloutSpec(
        engine=engine,
        kind=rollout.engine,
        device=placement.device,
        transport=choose_transport(config, placement.device)[0],
        stall_timeout_s=rollout.stall_timeout_s,
        weights_timeout_s=config.weights.timeout_s,
    )
    room: dict[str, Any] = {"refuse": lambda more: shortage_of(more, role, worker_bytes(config, placement, model))}
    if spec.transport == "cuda_ipc":
        room = {"refuse": lambda more: "weights come through the learner's own GPU, which has room for one worker"}
    elif placement.shared is not None:
        why = f"{placement.shared}; one more finds no GPU that holds no engine"
        room = {"refuse": lambda more: None if len(pool) + more <= role.count else why}
    elif config.ray.on_demand:
        room = {"resized": node_requests(config.name, placement, tell)}
    pool: RolloutPool = RolloutPool(
        start_rollout(role, spec),
        role.count,
        put=put,
        sequences=rollout.max_num_seqs,
        deadlines=Deadlines(config.ray.start_timeout_s, rollout.timeout_s, config.weights.timeout_s),
        limits=resolve.recovery_limits(config),
        tell=tell,
        takes_along=spec.transport != "sparse_delta",
        inherited=living_rollout(role),
        **room,
    )
    return pool


def node_requests(
    name: str, placement: Placement, tell: Callable[[str, str], None] = lambda kind, text: None
) -> Callable[[int], None]:
    """What tells the cluster's autoscaler how many rollout workers the run is to have; 0 ends the request."""
    nodes = NodeRequests(f"{name}-{uuid.uuid4().hex[:8]}", tell=lambda text: tell("nodes", text))
    role = placement.role("rollout")
    nodes.want(bundles_of(placement, role.count + role.spares))

    def resized(count: int) -> None:
        if count:
            nodes.want(bundles_of(placement, count + role.spares))
        else:
            nodes.close()

    return resized


def split_of(config: Config, placement: Placement, model: Path) -> Split | None:
    """How each GPU that learner and engine share is divided; None where nothing tells how large it is and the config
    says what the engine takes. UserError where it does not hold both."""
    gpu, facts = least_gpu(config.ray.address), _facts(model)
    if gpu is None:
        if config.rollout.gpu_memory_utilization is not None:
            return None
        raise UserError(
            "no node tells the memory of its GPUs (nvidia-smi), so a GPU that learner and engine share cannot be "
            "divided; set rollout.gpu_memory_utilization"
        )
    critic = None
    if config.critic is not None:
        critic = facts if config.critic.path is None else _facts(resolve_model(config.critic.path))
    memory = plan_memory(config, facts, critic, [], placement)
    split = divide(config, facts, memory, gpu)
    if split is None:
        needed = gpu_bytes_needed(config, memory)
        raise UserError(
            f"a GPU that learner and engine share needs about {needed / GIB:.1f} GB and the smallest has "
            f"{gpu / GIB:.1f} GB; `raylign check` says what to lower"
        )
    return split


def least_gpu(address: str) -> int | None:
    """Bytes of the smallest GPU that the run may get; None where no node tells."""
    if address == "local":
        return min(visible_gpus(os.environ), default=None)
    # Ray hides the GPUs from whoever asked for none.
    answers = on_every_node(visible_gpus, {}, timeout_s=NODE_ANSWERS_S)
    return min((size for answer in answers for size in answer.value or ()), default=None)


def _facts(model: Path) -> ModelFacts:
    return facts_by_config(read_model_config(str(model)))


def worker_bytes(config: Config, placement: Placement, model: Path) -> int:
    """Host memory that one more worker takes, as the memory plan has it."""
    return plan_memory(config, _facts(model), None, [], placement).role("rollout").bytes


def shortage_of(more: int, role: RolePlan, host_bytes: int) -> str | None:
    """Why the cluster cannot take so many more workers; None if it can."""
    for kind, each in (("GPU", role.gpus), ("CPU", role.cpus)):
        free = free_resources().get(kind, 0.0) if each else 0.0
        if more * each > free:
            return f"{more} more workers take {more * each:g} {kind}s, {free:g} are free; ask for fewer or add nodes"
    if role.gpus or role.cpus:
        return None
    free = psutil.virtual_memory().available - RESERVE
    if more * host_bytes > free:
        return (
            f"{more} more workers take about {more * host_bytes / GIB:.1f} GB of memory and "
            f"{max(free, 0) / GIB:.1f} are free on this machine; ask for fewer"
        )
    return None
