"""How many rollout workers there should be, for the learner to wait as little as it was asked to. Pure: a clock is
passed in, nothing is started here.

In: what each step looked like. Out: a number of workers and the reason in a sentence. With n workers that decode for
G worker-seconds a step and a learner that is busy for L, a step takes max(G / n, L) where they overlap and G / n + L
where they take turns; the rest of it the learner waits. The aim is the fewest workers with which it waits for at most
`target_idle` of the step, and no worker that costs more than the waiting it ends: among those counts the cheapest step,
(1 + cost n) times its seconds. Worked example: they overlap, 2 workers decode for 9.5 s each while the learner is busy
for 4: G = 19; at target_idle 0.1 a step may take 4 / 0.9 = 4.4 s, so 5 workers. It grows at once, to at most double; it
shrinks one by one, and only after a window of steps in which fewer would have done, for a worker that comes back costs
its start. Left out: doing it (the driver scales the pool), asking the cluster for nodes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW = 5
"""Steps that a decision to shrink looks back on."""


@dataclass(frozen=True, slots=True)
class AutoscaleSettings:
    """min, max: workers. target_idle: the share of a step that the learner may wait. cost: a worker's price where the
    learner group's is 1. cooldown_s: no decision so soon after another, whose workers are still starting. overlap:
    whether workers generate while the learner learns."""

    min: int
    max: int
    target_idle: float
    cost: float = 0.0
    cooldown_s: float = 30.0
    overlap: bool = True


@dataclass(frozen=True, slots=True)
class StepLoad:
    """A step in numbers. workers: that there are, or are on their way: what a decision adds to. generate_s: seconds of
    decoding, of all together. learner_s: seconds in which the learner was busy. step_s: wall time."""

    workers: int
    generate_s: float
    learner_s: float
    step_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    workers: int
    reason: str


class Autoscaler:
    """Remembers a window of steps and when it last decided."""

    def __init__(self, settings: AutoscaleSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._needs: deque[int] = deque(maxlen=WINDOW)
        self._decided_at = -math.inf

    def decide(self, load: StepLoad) -> Decision | None:
        """What to change after this step; None to leave it."""
        need = self.need(load)
        self._needs.append(need)
        if self._clock() - self._decided_at < self._settings.cooldown_s:
            return None
        if need > load.workers:
            idle = max(0.0, 1.0 - load.learner_s / load.step_s)
            return self._decided(
                min(need, max(2 * load.workers, self._settings.min)),
                f"the learner waited for {idle:.0%} of the step, the target is {self._settings.target_idle:.0%}: "
                f"{load.generate_s:.1f} worker-seconds of decoding for {load.learner_s:.1f} s of learning",
            )
        most = max(self._needs)
        if len(self._needs) == WINDOW and most < load.workers:
            enough = f"{most} {'worker' if most == 1 else 'workers'} would have done"
            return self._decided(load.workers - 1, f"{enough} in each of the last {WINDOW} steps")
        return None

    def need(self, load: StepLoad) -> int:
        """The workers that a step like this wants."""
        s, busy = self._settings, max(load.learner_s, 1e-9)
        share = (1.0 - s.target_idle) if s.overlap else (1.0 - s.target_idle) / max(s.target_idle, 1e-9)
        enough = math.ceil(min(load.generate_s * share / busy, s.max) - 1e-9)
        counts = range(s.min, max(min(enough, s.max), s.min) + 1)

        def price(workers: int) -> float:
            alone = load.generate_s / workers
            return (1.0 + s.cost * workers) * (max(alone, busy) if s.overlap else alone + busy)

        return counts[-1] if s.cost == 0 else min(counts, key=price)

    def _decided(self, workers: int, reason: str) -> Decision:
        self._decided_at = self._clock()
        self._needs.clear()
        return Decision(workers, reason)
