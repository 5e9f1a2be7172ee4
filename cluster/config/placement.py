"""Who gets which processors: a pure plan from a config and what the machine or cluster has.

In: a Config, counts of CPUs and GPUs. Out: `Placement`: one line per role, and whether it fits. Left out: Ray (workers
apply the plan), memory (cluster/commands/check.py).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cluster.config.schema import Config

# Fresh pages cost more than the arithmetic on them: glibc keeps and reuses what it freed (an update of SmolLM2 on two
# cores takes 3.9 s instead of 5.8 s). And a thread pool that spins while it waits starves the pools of the other
# roles: after 10,000 turns (tens of microseconds) it sleeps (loading an engine beside a learner takes 16 s instead of
# 46 s on two cores).
PROCESS_ENV = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1099511627776",
    "MALLOC_TOP_PAD_": "67108864",
    "GOMP_SPINCOUNT": "10000",
}


SCRATCH = "RAYLIGN_SCRATCH"
"""In the driver's environment: where its workers put temporary files, for some libraries leave theirs behind."""
PASSED_ON = ("RAYLIGN_STACKS", "RAYLIGN_LEASE")
"""What the driver's environment tells its workers, on whichever node."""


@dataclass(frozen=True, slots=True)
class RolePlan:
    """count processes, each with `cpus` logical CPUs, `gpus` and `threads` compute threads; spares: more of them that
    are kept ready."""

    role: str
    count: int
    cpus: float
    gpus: float
    threads: int
    spares: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    roles: tuple[RolePlan, ...]
    device: str
    """cpu or cuda."""

    @property
    def gpus(self) -> float:
        return sum((r.count + r.spares) * r.gpus for r in self.roles)

    @property
    def cpus(self) -> float:
        return sum((r.count + r.spares) * r.cpus for r in self.roles)

    def role(self, name: str) -> RolePlan:
        return next(r for r in self.roles if r.role == name)


def plan(config: Config, cpus: int, gpus: float) -> Placement:
    """The placement on so many CPUs and GPUs. Rollout workers and learners take turns in a synchronous step, so on CPU
    each role's processes divide all cores among themselves; where they work at once each role has half of them."""
    on_gpu = gpus > 0
    online = config.algorithm.online
    at_once = online and config.rollout.schedule.kind in ("one_step_off", "asynchronous") and not on_gpu
    cores = max(1, cpus // 2) if at_once else cpus
    share = config.learner.gpus_per_rank
    roles = [
        RolePlan(
            "learner",
            config.learner.ranks,
            cpus=1,
            gpus=share if on_gpu else 0,
            threads=config.learner.threads or max(1, cores // config.learner.ranks),
        )
    ]
    if online:
        tensor_parallel = config.rollout.tensor_parallel
        # A learner that takes part of a GPU leaves the rest of it to a rollout worker.
        per_worker = 1.0 - share if 0 < share < 1 and tensor_parallel == 1 else float(tensor_parallel)
        workers = config.rollout.workers
        threads = config.rollout.threads or max(1, cores // workers)
        roles.append(RolePlan("rollout", workers, 1, per_worker if on_gpu else 0, threads, config.recovery.spares))
        roles.append(RolePlan("scorer", config.reward.processes, 1, 0, 1))
    return Placement(tuple(roles), "cuda" if on_gpu else "cpu")


def process_environment(role: RolePlan, name: str) -> dict[str, str]:
    """What a worker's process starts with."""
    threads = str(role.threads)
    own = {"OMP_NUM_THREADS": threads, "RAYLIGN_ROLE": name, "TOKENIZERS_PARALLELISM": "false", **PROCESS_ENV}
    if SCRATCH in os.environ:
        own["TMPDIR"] = os.environ[SCRATCH]
    return own | {key: os.environ[key] for key in PASSED_ON if key in os.environ}


def logical_cpus(config: Config) -> int:
    """Enough for every role: on one machine they take turns, so logical CPUs are no measure of load."""
    if config.ray.num_cpus is not None:
        return config.ray.num_cpus
    return max(os.cpu_count() or 1, int(plan(config, os.cpu_count() or 1, 0).cpus) + 1)


def shortage(placement: Placement, gpus: float) -> str | None:
    """Why the plan does not fit, in a sentence with the fix; None if it does."""
    if placement.device == "cuda" and placement.gpus > gpus:
        parts = ", ".join(f"{r.count + r.spares} x {r.role} at {r.gpus:g}" for r in placement.roles if r.gpus)
        return (
            f"the plan needs {placement.gpus:g} GPUs ({parts}) and there are {gpus:g}; lower learner.ranks or "
            "rollout.workers, or set learner.gpus_per_rank below 1 to share"
        )
    return None
