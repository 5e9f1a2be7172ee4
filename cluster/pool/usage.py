"""Where the pool's seconds went between two looks: shares of all workers' time, by what they did or waited for, and the
tokens that they made in it.

In: every worker's pulse, now and then. Out: metrics; the shares add up to one but for what the calls themselves take. A
worker that joined in between counts from its start, one that was away from where it stood. Left out: asking the workers
(core.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from actors.rollouts.spans import RolloutSeconds
from cluster.pool.members.handle import WorkerPulse

KINDS = tuple(field.name for field in fields(RolloutSeconds))
SHARES = ("generate", "sync", "wait_weights", "wait_prompts")
"""Kinds that a worker's time divides into; `engine` is a part of `generate`."""


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """What all workers together did since the last look."""

    seconds: RolloutSeconds
    tokens: int
    workers: int

    def metrics(self) -> dict[str, float]:
        """`rollout/workers`, `time/rollout_<kind>_fraction`, and what the pool makes while it decodes: tokens/s in all,
        and counted by the engines' own steps alone. What was not measured, because nobody decoded, is left out."""
        found = {"rollout/workers": float(self.workers)}
        total = sum(getattr(self.seconds, kind) for kind in SHARES)
        if total:
            found |= {f"time/rollout_{kind}_fraction": getattr(self.seconds, kind) / total for kind in SHARES}
        if self.tokens and self.seconds.engine:
            found["throughput/tokens_per_s"] = self.tokens * self.workers / self.seconds.generate
            found["throughput/engine_tokens_per_s"] = self.tokens * self.workers / self.seconds.engine
        return found


class PoolUsage:
    """Remembers the last look at each worker: a name is never given twice, and one that rests comes back."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[RolloutSeconds, int]] = {}

    def since_last(self, pulses: Mapping[str, WorkerPulse]) -> PoolLoad:
        spent, tokens = RolloutSeconds(), 0
        for name, pulse in pulses.items():
            before, made = self._seen.get(name, (RolloutSeconds(), 0))
            tokens += pulse.tokens_made - made
            for kind in KINDS:
                more = getattr(pulse.seconds, kind) - getattr(before, kind)
                setattr(spent, kind, getattr(spent, kind) + more)
        self._seen |= {name: (pulse.seconds, pulse.tokens_made) for name, pulse in pulses.items()}
        return PoolLoad(spent, tokens, len(pulses))
