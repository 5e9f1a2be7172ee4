"""What all jobs of a cluster need of its nodes, summed: the arithmetic of the node broker.

In: each job's bundles, renewed while it lives. Out: all of them together. An autoscaler keeps one request, the last:
jobs that asked it themselves would forget each other's. A job that does not renew its request is forgotten after the
lease, so that its nodes are given back. Left out: the autoscaler (broker.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from cluster.config.placement import Placement

Bundle = Mapping[str, float]
LEASE_S = 120.0


def bundles_of(placement: Placement, rollouts: int) -> list[dict[str, float]]:
    """What a run takes with so many rollout workers: one bundle a process."""
    found: list[dict[str, float]] = []
    for role in placement.roles:
        count = rollouts if role.role == "rollout" else role.count
        bundle = {kind: float(each) for kind, each in (("CPU", role.cpus), ("GPU", role.gpus)) if each}
        found += [bundle] * count if bundle else []
    return found


class Demand:
    """Requests by job, each with the time of its last renewal."""

    def __init__(self, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._jobs: dict[str, tuple[float, tuple[Bundle, ...]]] = {}

    def want(self, job: str, bundles: Sequence[Bundle]) -> None:
        """The job's whole request, in place of its last one; an empty one ends it."""
        if bundles:
            self._jobs[job] = (self._clock(), tuple(bundles))
        else:
            self._jobs.pop(job, None)

    def total(self) -> list[dict[str, float]]:
        """Of all jobs whose lease runs, in a fixed order."""
        now = self._clock()
        self._jobs = {job: each for job, each in self._jobs.items() if now - each[0] <= self._lease_s}
        return [dict(bundle) for job in sorted(self._jobs) for bundle in self._jobs[job][1]]
