"""Who did what from when to when: the run's timeline, and a Chrome trace of it.

In: spans of the driver and of every worker, a step at a time. Out: timeline.jsonl, one object a step; a trace that
chrome://tracing and Perfetto open. A few dozen spans a step: neighbours of one kind are one. Left out: sums of seconds
(metrics.py has them).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from actors.rollouts.spans import Span
from cluster.run.directory import RunDirectory, read_json_lines

DRIVER = "driver"


class Timeline:
    """Gathers a step's spans, and appends them to the run's file."""

    def __init__(self, run: RunDirectory) -> None:
        self._path = run.timeline_file
        self._spans: dict[str, list[Span]] = {}

    @contextmanager
    def span(self, what: str, who: str = DRIVER) -> Iterator[None]:
        """The block's time, as `who`'s."""
        began = time.time()
        yield
        self.add({who: [(what, began, time.time())]})

    def add(self, spans: Mapping[str, Sequence[Span]]) -> None:
        for who, some in spans.items():
            self._spans.setdefault(who, []).extend(some)

    def forget(self) -> None:
        """Drop what was gathered for a step that will not be written."""
        self._spans = {}

    def write(self, step: int) -> None:
        """The step's line: {"step", "spans": {who: [[what, begin, end], ...]}}, times to the millisecond."""
        spans = {
            who: [[what, round(begin, 3), round(end, 3)] for what, begin, end in some]
            for who, some in self._spans.items()
        }
        self._spans = {}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "spans": spans}) + "\n")


def read_timeline(run: RunDirectory) -> dict[str, list[Span]]:
    """Every span by who did it, in order; empty for a run without a timeline."""
    found: dict[str, list[Span]] = {}
    for row in read_json_lines(run.timeline_file):
        for who, spans in row["spans"].items():
            found.setdefault(who, []).extend((what, begin, end) for what, begin, end in spans)
    return found


def chrome_trace(spans: Mapping[str, Sequence[Span]], events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The trace event format: a process a run, a thread each for the driver and every worker, an instant an event."""
    order = sorted(spans, key=lambda who: (who != DRIVER, len(who), who))
    first = min((some[0][1] for some in spans.values() if some), default=0.0)
    rows: list[dict[str, Any]] = []
    for thread, who in enumerate(order):
        rows.append({"ph": "M", "name": "thread_name", "pid": 0, "tid": thread, "args": {"name": who}})
        for what, begin, end in spans[who]:
            times = {"ts": round((begin - first) * 1e6), "dur": round((end - begin) * 1e6)}
            rows.append({"ph": "X", "name": what, "cat": who, "pid": 0, "tid": thread, **times})
    for event in events:
        at = round((event["time"] - first) * 1e6)
        rows.append({"ph": "i", "name": event["text"], "cat": event["kind"], "pid": 0, "tid": 0, "ts": at, "s": "g"})
    return {"traceEvents": rows, "displayTimeUnit": "ms"}
