"""Where the pool's seconds went between two looks: shares of all workers' time, by what they did or waited for.

In: every worker's pulse, now and then. Out: metrics that add up to one but for what the calls themselves take. A worker
that joined in between counts from its start, one that left is forgotten. Left out: asking the workers (core.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from actors.rollout_server import RolloutSeconds
from cluster.pool.handle import WorkerPulse

KINDS = tuple(field.name for field in fields(RolloutSeconds))


class PoolUsage:
    """Remembers the last look."""

    def __init__(self) -> None:
        self._seen: dict[str, RolloutSeconds] = {}

    def since_last(self, pulses: Mapping[str, WorkerPulse]) -> RolloutSeconds:
        """Seconds of all workers together since the last look."""
        spent = RolloutSeconds()
        for name, pulse in pulses.items():
            before = self._seen.get(name, RolloutSeconds())
            for kind in KINDS:
                more = getattr(pulse.seconds, kind) - getattr(before, kind)
                setattr(spent, kind, getattr(spent, kind) + more)
        self._seen = {name: pulse.seconds for name, pulse in pulses.items()}
        return spent

    @staticmethod
    def shares(spent: RolloutSeconds, workers: int) -> dict[str, float]:
        """`rollout/workers`, and `time/rollout_<kind>_fraction` of the seconds that were counted."""
        total = sum(getattr(spent, kind) for kind in KINDS)
        shares = {f"time/rollout_{kind}_fraction": getattr(spent, kind) / total for kind in KINDS} if total else {}
        return {"rollout/workers": float(workers), **shares}
