"""A run's clock and records, as every kind of job keeps them.

In: an open run (`Run`), what happens in a step. Out: metrics rows, the timeline, events that people see at once, the
ledger and the driver's own state. Left out: decisions (cluster/training/job.py), workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.config.schema import Config
from cluster.run.checkpoints.state import DriverState
from cluster.run.directory import RunDirectory, read_json_lines
from cluster.run.ledger import Ledger
from cluster.run.records.alarms import Alarms
from cluster.run.records.console import Console
from cluster.run.records.metrics import EventsWriter, MetricsWriter
from cluster.run.records.shares import calls_of, step_times
from cluster.run.records.timeline import Timeline


@dataclass(slots=True)
class Run:
    """What is open of a run before it has workers. metrics: another one after the records were cut back."""

    config: Config
    directory: RunDirectory
    metrics: MetricsWriter
    events: EventsWriter
    console: Console
    model_path: Path


class Logbook:
    """Clock and records of one run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config = run.config
        self.directory = run.directory
        self.events = run.events
        self.console = run.console
        self.model_path = run.model_path
        self.ledger = Ledger(run.directory.ledger_file)
        self.timeline = Timeline(run.directory)
        self.state = DriverState()
        self.heard: Callable[[str], None] = lambda what: None
        """Who watches that the run moves."""
        self.step_seconds = self.learner_seconds = 0.0
        """Of the last step that was finished."""
        self._alarms = Alarms(read_json_lines(run.directory.metrics_file))
        self._doing = ""
        self._phases: dict[str, float] = {}
        self._row: dict[str, float] = {}
        self._step_began = 0.0

    def begin_row(self) -> None:
        """Forget what was noted since the last row."""
        self._phases, self._row, self._step_began = {}, {}, time.monotonic()
        self.timeline.forget()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of the block under `time/<name>_s`."""
        self.doing(name)
        began = time.monotonic()
        with self.timeline.span(name):
            yield
        self.heard(f"the end of {name}")
        self._phases[name] = self._phases.get(name, 0.0) + time.monotonic() - began

    def doing(self, what: str) -> None:
        """Tell who looks on, and who watches that the run moves, what it does now."""
        self._doing = what
        self.console.phase(what)
        self.heard(what)

    def waiting(self, what: str) -> None:
        """Tell who watches that the run moves of one wait of what it does now."""
        self.heard(f"{self._doing}, {what}")

    def role(self, role: str, phase: str, seconds: float) -> None:
        """Seconds a role was busy: the report's `role/<role>/<phase>_s`."""
        self._row[f"role/{role}/{phase}_s"] = self._row.get(f"role/{role}/{phase}_s", 0.0) + seconds

    def note(self, metrics: Mapping[str, float]) -> None:
        """Metrics of the running step."""
        self._row.update(metrics)

    def finish_step(self, step: int) -> None:
        """Close the step's row. Evaluation and checkpoints come after: their seconds are not the step's."""
        step_s = time.monotonic() - self._step_began
        calls = calls_of(self._row)
        self._row |= step_times(self._phases, calls, step_s)
        self.step_seconds, self.learner_seconds = step_s, sum(calls.get("learner", {}).values())
        self.state.step = step

    def write_row(self, step: int) -> None:
        self.timeline.write(step)
        self.console.step(self.run.metrics.write(step, {name: float(value) for name, value in self._row.items()}))
        for sign, text in self._alarms.hear(self._row):
            self.tell("alarm", text, step, sign=sign)

    def tell(self, kind: str, text: str, step: int, **facts: object) -> None:
        """An event that people are to see at once."""
        self.events.write(kind, text, step, **facts)
        self.console.event(text)

    def cut_back(self, metrics: MetricsWriter) -> None:
        """The records were cut back to a commit, and go on in these."""
        self.run.metrics = metrics
        self._alarms = Alarms(read_json_lines(self.directory.metrics_file))
