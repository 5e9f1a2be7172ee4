"""A run's rollout workers as people and the autoscaler see them: how many there are, what they did, how many there will
be.

In: the pool, what is asked of the run, each step's load. Out: workers that come and go, events. Left out: the decision
(cluster/pool/autoscale.py), doing it (pool/).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from cluster.errors import UserError
from cluster.pool.autoscale import Autoscaler, AutoscaleSettings, StepLoad
from cluster.pool.members.member import MemberState
from cluster.pool.pool import RolloutPool
from cluster.pool.usage import PoolLoad, PoolUsage
from cluster.run.records.metrics import EventsWriter

GONE = (MemberState.RETIRED.value, MemberState.DEAD.value)


class Elastic:
    """settings: None where workers come and go only when someone asks."""

    def __init__(self, pool: RolloutPool, settings: AutoscaleSettings | None, events: EventsWriter) -> None:
        self._pool = pool
        self._events = events
        self._usage = PoolUsage()
        self._autoscaler = None if settings is None else Autoscaler(settings, time.monotonic)

    def load(self) -> PoolLoad:
        """What the workers did since the last call."""
        return self._usage.since_last(self._pool.pulses())

    def autoscale(self, step: int, load: PoolLoad, learner_s: float, step_s: float) -> None:
        """Add or let go workers as the step's load suggests, where the run scales by itself."""
        if self._autoscaler is None:
            return
        here = len(self._pool)
        decision = self._autoscaler.decide(StepLoad(here, load.seconds.generate, learner_s, step_s))
        if decision is None:
            return
        said = self._scale_as_far_as_it_goes(here, decision.workers)
        self._events.write("autoscale", f"{said}: {decision.reason}", step, rollout=len(self._pool))

    def _scale_as_far_as_it_goes(self, here: int, wanted: int) -> str:
        """Half of what was to come where the cluster has no room for all, and so on."""
        refused = ""
        while True:
            try:
                return self._pool.scale(wanted) + refused
            except UserError as error:  # fault boundary: the cluster has no room, the run goes on with what there is
                if wanted - here <= 1:
                    return str(error)
                refused = refused or f" ({wanted} were wanted: {error})"
            wanted = here + (wanted - here) // 2

    def verbs(self) -> Mapping[str, Callable[..., str]]:
        return {"scale": self.scale, "workers": self.workers}

    def workers(self) -> str:
        """The rollout workers that are there, each with its state and the version it serves."""
        here = [member for member in self._pool.members() if member[1] not in GONE]
        return ", ".join(
            f"{name} {state}" + ("" if version is None else f" at version {version}") for name, state, version in here
        )

    def scale(self, rollout: int) -> str:
        said = self._pool.scale(rollout)
        self._events.write("scale", f"asked for {rollout} rollout workers: {said}", rollout=rollout)
        return said
