"""What a worker did from when to when, for the run's timeline. Plain Python.

In: kinds with their begins and ends on some clock. Out: spans in unix seconds. Left out: writing them
(cluster/run/timeline.py).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

Span = tuple[str, float, float]
"""What a worker did, from when to when, in unix seconds."""
SAME_S = 0.05
"""A shorter gap between two spans of one kind is none."""
MOST_SPANS = 10_000


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
