"""A run in progress, as every training loop needs it: clocks, records, commits, evaluations' bookkeeping.

In: a config, an open run directory. Out: metrics rows, events, samples, checkpoints. Left out: the loops
(cluster/ppo.py, cluster/dpo.py), building the workers (online.py, cluster/dpo.py), the process around it
(cluster/driver.py).
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.config.schema import Config
from cluster.errors import RunFailed, UserError
from cluster.experience.columns import StepColumns
from cluster.run.checkpoints.commits import Commits
from cluster.run.checkpoints.policies import prune_policies
from cluster.run.checkpoints.state import DriverState
from cluster.run.directory import RunDirectory, read_json_lines
from cluster.run.ledger import Ledger
from cluster.run.records.alarms import Alarms
from cluster.run.records.console import Console
from cluster.run.records.evaluation import mean_interval
from cluster.run.records.metrics import EventsWriter, MetricsWriter, eval_metrics
from cluster.run.records.shares import calls_of, step_times
from cluster.run.records.timeline import Timeline
from cluster.workers import LearnerGroup
from learners.methods.method import UpdateResult


class Job:
    """State and records of one run."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        metrics: MetricsWriter,
        events: EventsWriter,
        console: Console,
        model_path: Path,
    ) -> None:
        self.config = config
        self.directory = directory
        self.metrics = metrics
        self.events = events
        self.console = console
        self.model_path = model_path
        self.ledger = Ledger(directory.ledger_file)
        self.commits = Commits(
            directory.checkpoints,
            events,
            console.event,
            config.learner.update_timeout_s,
            committed=self._committed,
        )
        self.timeline = Timeline(directory)
        self._alarms = Alarms(read_json_lines(directory.metrics_file))
        self.heard: Callable[[str], None] = lambda what: None
        """Who watches that the run moves."""
        self._doing = ""
        self.state = DriverState()
        self.learner: LearnerGroup | None = None
        self._phases: dict[str, float] = {}
        self._row: dict[str, float] = {}
        self._step_began = 0.0
        self.step_seconds = self.learner_seconds = 0.0
        """Of the last step that was finished."""

    # --- a step's clock ---

    def steps(self) -> Iterator[int]:
        """The steps still to do, until one asks to stop. Each is timed; what it recorded is written at its end."""
        while self.state.step < self.config.steps and self.stop_reason is None:
            self.begin_row()
            self.heard("a new step")
            yield self.state.step + 1

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
        self.console.step(self.metrics.write(step, {name: float(value) for name, value in self._row.items()}))
        for sign, text in self._alarms.hear(self._row):
            self.tell("alarm", text, step, sign=sign)

    def tell(self, kind: str, text: str, step: int, **facts: object) -> None:
        """An event that people are to see at once."""
        self.events.write(kind, text, step, **facts)
        self.console.event(text)

    # --- updates ---

    def check_update(
        self, step: int, columns: StepColumns, result: UpdateResult, critic: UpdateResult | None = None
    ) -> None:
        """Count steps in which the model, or its critic, was not updated because nothing was finite; stop after too
        many in a row, the batch saved."""
        of = {" optimiser steps": result, " optimiser steps of the critic": critic}
        updates = {what: update for what, update in of.items() if update is not None}
        skipped = [f"{update.skipped}{what}" for what, update in updates.items() if update.skipped]
        look = f"raylign replay {self.directory} {step}"
        if skipped:
            self.learner.dump(columns, str(self.directory.skipped_batch(step)))
            text = f"{' and '.join(skipped)} skipped: loss or gradient not finite; look with: {look}"
            self.events.write("nonfinite", text, step)
        applied = all(update.applied for update in updates.values())
        self.state.nonfinite_in_a_row = 0 if applied else self.state.nonfinite_in_a_row + 1
        limit = self.config.learner.max_nonfinite_steps
        if self.state.nonfinite_in_a_row >= limit:
            raise RunFailed(
                f"loss or gradient was not finite in {limit} steps in a row; look at the last batch with: {look}; "
                "start a new run with a lower learning rate, or resume with a higher learner.max_nonfinite_steps"
            )

    # --- evaluations ---

    def note_evaluation(self, step: int, scores: Mapping[str, Sequence[float]]) -> bool:
        """Record an evaluation's scores; True when it is the best so far. A part that failed on all is not known, and
        ends nothing unless it is what decides."""
        for name, values in scores.items():
            if name == self.evaluation_metric or not all(math.isnan(value) for value in values):
                self.note(eval_metrics(name, mean_interval(values)))
        self.state.scores = {name: [float(v) for v in values] for name, values in scores.items()}
        if step == 0:
            self.state.baseline = dict(self.state.scores)
        value = mean_interval(scores[self.evaluation_metric]).mean
        if self.state.best_value is not None and value <= self.state.best_value:
            self.state.evaluations_since_best += 1
            return False
        self.state.best_value, self.state.best_step, self.state.evaluations_since_best = value, step, 0
        return True

    @property
    def stop_reason(self) -> str | None:
        """Why the run ends before its last step. It follows from what a commit holds, so that a driver started anew
        after the last one stops there too, and a resume with other bounds goes on."""
        asked, state = self.config.evaluation, self.state
        if asked.patience is not None and state.evaluations_since_best >= asked.patience:
            return f"no better evaluation in {asked.patience}"
        if asked.kl_bound is not None and state.kl_ref > asked.kl_bound:
            return f"kl/ref {state.kl_ref:.3f} exceeds evaluation.kl_bound {asked.kl_bound:g}"
        return None

    def evaluation_due(self) -> bool:
        """At every n-th step, and at the last."""
        every = self.config.evaluation.every_steps
        return self._last_step() or (every > 0 and self.state.step % every == 0)

    def commit_due(self) -> bool:
        return self._last_step() or self.state.step % self.config.checkpoint.every_steps == 0

    def _last_step(self) -> bool:
        return self.state.step >= self.config.steps or self.stop_reason is not None

    def evaluation_table(self) -> dict[str, str]:
        """The evaluation metric before and now, as text."""
        name = self.evaluation_metric
        rows = {}
        for when, scores in (("before", self.state.baseline), ("after", self.state.scores)):
            if name in scores:
                found = mean_interval(scores[name])
                rows[f"{name}, {when}"] = f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"
        return rows

    def export_facts(self, step: int, digest: str) -> dict[str, Any]:
        """What an exported policy says of itself."""
        return {
            "run": self.config.name,
            "model": self.config.model.path,
            "method": self.config.algorithm.name,
            "step": step,
            "digest": digest,
            "evaluation": self.evaluation_table(),
        }

    @property
    def evaluation_metric(self) -> str:
        return self.config.evaluation.metric

    # --- commits ---

    def commit(self) -> None:
        """The checkpoint of the step just done."""
        self.doing("checkpoint")
        stage = ""

        def fill(path: Path) -> None:
            nonlocal stage
            stage = str(path)
            self.learner.save(stage)
            self.ledger.backup(path / "ledger.sqlite")
            self.state.save(path)
            self.save_extra(path)

        best = {self.state.best_step} if self.config.checkpoint.keep_best and self.state.best_step else set()
        keep = (self.config.checkpoint.keep_last, best)
        self.commits.begin(self.state.step, fill, lambda: self.learner.saved(stage), keep)
        if self._last_step():
            self.commits.wait(last=True)

    def _committed(self) -> None:
        self.directory.push(running=True)
        prune_policies(self.directory)

    def restore(self, commit: Path) -> None:
        """Go back to a verified commit. UserError when it is of other data."""
        expected = self.state.source
        self.state = DriverState.load(commit)
        if self.state.source != expected:
            raise UserError(
                f"{commit} was trained on other data; restore data.* to what it was or start a new run directory"
            )
        self.ledger.restore(commit / "ledger.sqlite")
        self.load_extra(commit)
        self.learner.load(str(commit))

    def cut_back(self, metrics: MetricsWriter) -> None:
        """The records were cut back to a commit, and go on in these."""
        self.metrics = metrics
        self._alarms = Alarms(read_json_lines(self.directory.metrics_file))

    @abstractmethod
    def rebuild(self, commit: Path | None) -> None:
        """A new learner in the place of one that was lost, and everything back to `commit` (None: to step 0)."""

    def forget_progress(self) -> None:
        """As before the first step, where there is no commit to go back to."""
        before = self.state
        self.state = DriverState(
            source=before.source,
            multiplier=self.first_multiplier,
            fresh_mismatch=before.fresh_mismatch,
            fresh_doubt=before.fresh_doubt,
        )
        self.ledger.clear()

    @property
    def first_multiplier(self) -> float:
        safety = self.config.reward.safety
        return DriverState().multiplier if safety is None else safety.multiplier

    def save_extra(self, stage: Path) -> None:
        """What a kind of job adds to its checkpoint."""

    def load_extra(self, checkpoint: Path) -> None:
        """The counterpart of `save_extra`."""

    def verbs(self) -> Mapping[str, Callable[..., str]]:
        """What may be asked of the run while it goes on, by name (cluster/run/control.py)."""
        return {}

    def close(self) -> None:
        self.commits.drop()
        self.ledger.close()
