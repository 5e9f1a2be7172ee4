"""A rollout worker as pure time: every running sequence gains a token in each decode step, and a step takes longer the
more of them there are.

In: sequences with their lengths, at simulated times. Out: when the next one ends, and which do. Continuous batching is
processor sharing, so only ends are events: between them the worker counts decode steps, `v`, which pass at
1 / step_s(running) a second. Left out: who gives it work (run.py), prefill beyond a constant a sequence.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a decode step of n running sequences: base + each * n. prefill: seconds of one sequence's prompt, in
    which the others stand still."""

    base: float
    each: float
    prefill: float = 0.0

    def __call__(self, running: int) -> float:
        return self.base + self.each * running


@dataclass(slots=True)
class SimulatedWorker:
    """at: simulated time up to which it is counted. decoded: decode steps so far. busy_s: seconds with a sequence
    running; stalled_s: of them and others, those without a step (prefill, publishes)."""

    step: StepTime
    at: float = 0.0
    decoded: float = 0.0
    busy_s: float = 0.0
    tokens: int = 0
    _running: list[tuple[float, int]] = field(default_factory=list)

    @property
    def running(self) -> int:
        return len(self._running)

    def add(self, now: float, ticket: int, lengths: list[int]) -> None:
        """Start a ticket's sequences; the worker has been advanced to `now`."""
        self.stall(now, self.step.prefill * len(lengths))
        for length in lengths:
            heapq.heappush(self._running, (self.decoded + length, ticket))
            self.tokens += length

    def stall(self, now: float, seconds: float) -> None:
        """No step for so long: `at` lies in the future until then."""
        self.at = max(self.at, now) + seconds
        if self._running:
            self.busy_s += seconds

    def advance(self, now: float) -> list[int]:
        """The tickets of the sequences that have ended by `now`, one entry a sequence."""
        if now > self.at:
            if self._running:
                self.decoded += (now - self.at) / self.step(len(self._running))
                self.busy_s += now - self.at
            self.at = now
        ended = []
        while self._running and self._running[0][0] <= self.decoded + 1e-9:
            ended.append(heapq.heappop(self._running)[1])
        return ended

    def next_end(self) -> float | None:
        """When the next sequence ends if nothing else happens; None while none runs."""
        if not self._running:
            return None
        return self.at + max(0.0, self._running[0][0] - self.decoded) * self.step(len(self._running))

    def take_back(self) -> dict[int, list[int]]:
        """Ticket -> the tokens that each of its unfinished sequences still lacks; the worker, advanced to `now`, is
        empty then."""
        left: dict[int, list[int]] = {}
        for end, ticket in self._running:
            left.setdefault(ticket, []).append(max(1, round(end - self.decoded)))
        self.tokens -= sum(sum(lengths) for lengths in left.values())
        self._running = []
        return left
