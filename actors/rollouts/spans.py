"""What a worker did from when to when, for the run's timeline, and for how long in all. Plain Python.

In: kinds with their begins and ends on some clock. Out: spans in unix seconds. Left out: writing them
(cluster/run/records/timeline.py).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

Span = tuple[str, float, float]
"""What a worker did, from when to when, in unix seconds."""
SAME_S = 0.05
"""A shorter gap between two spans of one kind is none."""
MOST_SPANS = 10_000


@dataclass(slots=True)
class RolloutSeconds:
    """Where a worker's time went since its start. generate: decode steps; sync: receiving, loading and proving weights;
    wait_weights: between versions with nothing to load; wait_prompts: serving a version with nothing to decode. engine:
    the part of `generate` inside the engine's own steps."""

    generate: float = 0.0
    sync: float = 0.0
    wait_weights: float = 0.0
    wait_prompts: float = 0.0
    engine: float = 0.0


class SpanLog:
    """Spans in order, neighbours of one kind as one. Added to by one thread, taken by another."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._to_unix = time.time() - clock()
        self._lock = threading.Lock()
        self._spans: deque[Span] = deque(maxlen=MOST_SPANS)

    def add(self, kind: str, begin: float, end: float) -> None:
        begin, end = begin + self._to_unix, end + self._to_unix
        with self._lock:
            if self._spans and self._spans[-1][0] == kind and begin - self._spans[-1][2] < SAME_S:
                begin = self._spans.pop()[1]
            self._spans.append((kind, begin, end))

    def take(self) -> tuple[Span, ...]:
        """Those since the last call."""
        with self._lock:
            taken = tuple(self._spans)
            self._spans.clear()
        return taken
