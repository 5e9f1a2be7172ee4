"""Numbers and events of a run: one JSON object a step, TensorBoard beside it, W&B and MLflow where configured.

In: metrics by name (DESIGN's list) for a step; events as sentences. Out: metrics.jsonl, events.jsonl, trackers.
metrics.jsonl is the truth: written and synced first, always valid JSON (a number that is not finite is null). A
tracker whose server fails is reported once and left behind: watching never stops a run.
Left out: what the numbers mean, and cutting files back on resume (`RunDirectory.truncate_after`, called before).
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cluster.run.directory import RunDirectory, read_json_lines, write_atomic
from cluster.run.records.trackers import Tracker

Row = dict[str, float | None]
"""A step's metrics by name, with "step" and "time" (unix seconds). None: the number was not finite."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def eval_metrics(name: str, interval: Interval) -> dict[str, float]:
    """An evaluation's entries in a metrics row: `eval/<name>`, `_low` and `_high`."""
    return {f"eval/{name}": interval.mean, f"eval/{name}_low": interval.low, f"eval/{name}_high": interval.high}


class MetricsWriter:
    """Appends one row a step, in growing steps.

    trackers: see trackers.py. on_problem(tracker, error) hears once of each tracker that failed.
    """

    def __init__(
        self,
        run: RunDirectory,
        trackers: Mapping[str, Tracker] | None = None,
        on_problem: Callable[[str, Exception], None] = lambda name, error: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._trackers = dict(trackers or {})
        self._on_problem = on_problem
        self._clock = clock
        self._file = _open_for_append(run.metrics_file)
        rows = read_json_lines(run.metrics_file)
        self._last_step = int(rows[-1]["step"]) if rows else None

    def write(self, step: int, metrics: Mapping[str, float]) -> Row:
        """Record a step. ValueError if the step does not grow or a value is not a number."""
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(
                f"metrics of step {step} come after step {self._last_step}; write a step once, and on resume call "
                "RunDirectory.truncate_after first"
            )
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        row: Row = {"step": step, "time": round(self._clock(), 3), **numbers}
        _append(self._file, row)
        self._last_step = step
        finite = {name: value for name, value in numbers.items() if value is not None}
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(step, finite, float(row["time"] or 0.0))
            except Exception as error:  # fault boundary: another machine's failure is not the run's
                del self._trackers[name]
                self._on_problem(name, error)
        return row

    def close(self, *, failed: bool = False) -> None:
        self._file.close()
        for name, tracker in self._trackers.items():
            try:
                tracker.close(failed=failed)
            except Exception as error:  # fault boundary, as in `write`
                self._on_problem(name, error)
        self._trackers = {}


class EventsWriter:
    """Appends what happened: {"time", "step" or null, "kind", "text", ...}. kind is a word such as "checkpoint"."""

    def __init__(self, run: RunDirectory, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._path = run.events_file
        self._file = _open_for_append(self._path)
        self._lock = threading.Lock()  # the rollout pool's thread writes too

    def write(self, kind: str, text: str, step: int | None = None, **data: Any) -> None:
        taken = {"time", "step", "kind", "text"} & set(data)
        if taken:
            raise ValueError(f"an event's data cannot use the name {sorted(taken)[0]!r}")
        with self._lock:
            _append(self._file, {"time": round(self._clock(), 3), "step": step, "kind": kind, "text": text, **data})

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Nobody writes in the block: the file may be cut or replaced."""
        with self._lock:
            self._file.close()
            try:
                yield
            finally:
                self._file = _open_for_append(self._path)

    def close(self) -> None:
        self._file.close()


def read_metrics(file: Path) -> list[Row]:
    """Rows in order; a line torn by a crash is left out. Empty if the file does not exist."""
    return read_json_lines(file)


def read_events(file: Path) -> list[dict[str, Any]]:
    """Events in order; a line torn by a crash is left out. Empty if the file does not exist."""
    return read_json_lines(file)


def _number(name: str, value: object) -> float | None:
    """A plain number, None if not finite. Numpy scalars are numbers; anything else is the caller's mistake."""
    if isinstance(value, bool | int):
        return int(value)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"metric {name} must be a number, got {value!r}") from None
    return number if math.isfinite(number) else None


def _open_for_append(file: Path) -> TextIO:
    """Open at the end, after cutting off a last line that a crash tore: appending to it would spoil two rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        content = file.read_bytes()
        if not content.endswith(b"\n") and content:
            write_atomic(file, content[: content.rfind(b"\n") + 1])
    return file.open("a")


def _append(file: TextIO, row: Mapping[str, Any]) -> None:
    file.write(json.dumps(row, allow_nan=False) + "\n")
    file.flush()
    os.fsync(file.fileno())
