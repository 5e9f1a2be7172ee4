"""Who gets which processors: a pure plan from a config and what the machine or cluster has.

In: a Config, counts of CPUs and GPUs. Out: `Placement`: one line per role, and whether it fits. With fewer GPUs than
the roles want a learner rank and an engine share one. Left out: Ray (workers apply the plan), how the memory of a
shared GPU is divided (cluster/inspect/split.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

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


MORE, LESS = 0.6, 0.4
"""Shares of a GPU that a rank and an engine are on. Ray keeps them apart by these, the memory is divided elsewhere."""


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
    """shared: what shares the GPUs, and why, where the plan decided so by itself. unshared: what to change, where there
    are too few GPUs and those cannot be shared."""

    roles: tuple[RolePlan, ...]
    device: str
    """cpu or cuda."""
    shared: str | None = None
    unshared: str | None = None

    @property
    def gpus(self) -> float:
        """Whole GPUs' worth of what the roles take; where the plan let them share, so many GPUs."""
        if self.shared is not None:
            return max(r.count + r.spares for r in self.roles if r.gpus)
        return sum((r.count + r.spares) * r.gpus for r in self.roles)

    @property
    def colocated(self) -> bool:
        """Whether a learner rank and an engine are on one GPU."""
        return self.device == "cuda" and any(r.role == "rollout" and 0 < r.gpus < 1 for r in self.roles)

    @property
    def cpus(self) -> float:
        return sum((r.count + r.spares) * r.cpus for r in self.roles)

    def role(self, name: str) -> RolePlan:
        return next(r for r in self.roles if r.role == name)


def plan(config: Config, cpus: int, gpus: float, *, training: bool = True) -> Placement:
    """The placement on so many CPUs and GPUs. Rollout workers and learners take turns in a synchronous step, so on CPU
    each role's processes divide all cores among themselves; where they work at once each role has half of them.
    training: False for engines alone, as many as there are GPUs for."""
    on_gpu = gpus > 0
    online = config.algorithm.online
    at_once = online and config.rollout.schedule.kind in ("one_step_off", "asynchronous") and not on_gpu
    cores = max(1, cpus // 2) if at_once else cpus
    share = told_share(config) if training else None
    roles = []
    if training:
        per_rank = 1.0 if config.learner.gpus_per_rank is None else config.learner.gpus_per_rank
        threads = config.learner.threads or max(1, cores // config.learner.ranks)
        roles.append(RolePlan("learner", config.learner.ranks, 1, per_rank if on_gpu else 0, threads))
    if online:
        tensor_parallel, workers = config.rollout.tensor_parallel, config.rollout.workers
        if on_gpu and not training:
            workers = int(max(1, min(workers, gpus // tensor_parallel)))
        # A learner that takes part of a GPU leaves the rest of it to a rollout worker.
        per_worker = 1.0 - share if share is not None and tensor_parallel == 1 else float(tensor_parallel)
        threads = config.rollout.threads or max(1, cores // workers)
        spares = config.recovery.spares if training else 0
        roles.append(RolePlan("rollout", workers, 1, per_worker if on_gpu else 0, threads, spares))
        roles.append(RolePlan("scorer", config.reward.processes, 1, 0, 1))
    wanted = Placement(tuple(roles), "cuda" if on_gpu else "cpu")
    if training and on_gpu and wanted.gpus > gpus and config.learner.gpus_per_rank is None:
        return _shared(config, wanted, int(gpus))
    return wanted


def told_share(config: Config) -> float | None:
    """What a learner rank takes of a GPU that it is told to share with a rollout worker; None without being told."""
    share = config.learner.gpus_per_rank
    return share if share is not None and 0 < share < 1 else None


def _shared(config: Config, wanted: Placement, gpus: int) -> Placement:
    """The same roles on fewer GPUs. NCCL takes a GPU for each rank, and two engines on one would each take the memory
    that is meant for one, so a GPU holds at most one of either. Ray puts a share where the least room that is enough is
    left: who may not meet its like takes more than a half."""
    ranks = config.learner.ranks
    engines = sum(r.count + r.spares for r in wanted.roles if r.role == "rollout")
    if lacking := list(_before_sharing(config, min(ranks, gpus), gpus)):
        each = "one learner rank and one engine" if engines else "one learner rank"
        return replace(wanted, unshared=f"a GPU holds {each}: set {', '.join(lacking)}")
    rank, engine = (MORE, LESS) if engines <= ranks else (LESS, MORE)
    shares = {"learner": rank, "rollout": engine}
    roles = tuple(replace(r, gpus=shares.get(r.role, r.gpus)) for r in wanted.roles)
    used = max(ranks, engines)
    who = f"{_number(ranks, 'learner rank')} and {_number(engines, 'engine')}"
    why = f"each on a GPU of its own they would take {wanted.gpus:g}, and there {_are(gpus)}"
    idle = f"; {gpus - used} stay idle" if used < gpus else ""
    return Placement(roles, wanted.device, shared=f"{who} share {_number(used, 'GPU')}: {why}{idle}")


def _before_sharing(config: Config, ranks: int, gpus: int) -> Iterator[str]:
    """What to change before so many ranks and the engines can share so many GPUs."""
    if config.learner.ranks > ranks:
        yield f"learner.ranks to {ranks}"
    if not config.algorithm.online:
        return
    # Beside several ranks no engine may take more than a half, and two that take less could meet on one GPU.
    workers, spares, most = config.rollout.workers, config.recovery.spares, gpus if ranks == 1 else ranks
    if config.rollout.tensor_parallel > 1:
        yield "rollout.tensor_parallel to 1"
    engines = workers + spares
    if workers > most:
        yield f"rollout.workers to {most}"
    elif config.ray.address != "local" and min(ranks, engines) > 1 and max(ranks, engines) < gpus:
        # Over several nodes Ray chooses the node first, and there two engines could meet on a GPU that stays idle.
        yield f"rollout.workers to {max(1, gpus - ranks - spares)}"
    if spares and engines > most:
        yield f"recovery.spares to {max(0, most - workers)}"
    if config.weights.transport == "collective":
        yield "weights.transport to object_store"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _are(count: float) -> str:
    return f"is {count:g}" if count == 1 else f"are {count:g}"


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
        fix = placement.unshared or "lower learner.ranks or rollout.workers, or remove learner.gpus_per_rank to share"
        if not any(r.role == "learner" for r in placement.roles):  # engines alone are no more than the GPUs hold
            fix = "lower rollout.tensor_parallel"
        return f"the plan needs {placement.gpus:g} GPUs ({parts}) and there {_are(gpus)}; {fix}"
    return None
