"""A run in progress, as every training loop needs it: workers, updates, evaluations' bookkeeping, commits.

In: an open run and its workers. Out: checkpoints, the decision to stop. Left out: clock and records (parts/logbook.py),
the loops (cluster/ppo.py, cluster/dpo.py), building the workers (parts/online_workers.py, offline.py), the process
around it (cluster/driver.py).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import RunFailed, UserError
from cluster.experience.columns import StepColumns
from cluster.run.checkpoints.commits import Commits
from cluster.run.checkpoints.policies import prune_policies
from cluster.run.checkpoints.state import DriverState
from cluster.run.records.evaluation import mean_interval
from cluster.run.records.metrics import eval_metrics
from cluster.training.parts.logbook import Logbook, Run
from cluster.workers import LearnerGroup
from learners.methods.method import UpdateResult


class Job(Logbook, ABC):
    """One run, whole: its records, its workers (`learner`, and what the kind adds) and what it works on."""

    def __init__(self, run: Run, learner: LearnerGroup) -> None:
        super().__init__(run)
        self.learner = learner
        self.commits = Commits(
            run.directory.checkpoints,
            run.events,
            run.console.event,
            run.config.learner.update_timeout_s,
            committed=self._committed,
        )

    # --- what each kind is ---

    @abstractmethod
    def begin(self, commit: Path | None) -> None:
        """Wait for the workers, and restore the last commit or start at step 0."""

    @abstractmethod
    def evaluate(self, step: int) -> None:
        """Measure the policy on what was held out; export it when it is the best so far."""

    @abstractmethod
    def export(self, step: int) -> Path:
        """The tuned policy as a Hugging Face directory; the path."""

    @abstractmethod
    def rebuild(self, commit: Path | None) -> None:
        """A new learner in the place of one that was lost, and everything back to `commit` (None: to step 0)."""

    def save_extra(self, stage: Path) -> None:
        """What a kind of job adds to its checkpoint."""

    def load_extra(self, checkpoint: Path) -> None:
        """The counterpart of `save_extra`."""

    def verbs(self) -> Mapping[str, Callable[..., str]]:
        """What may be asked of the run while it goes on, by name (cluster/run/control.py)."""
        return {}

    def steps(self) -> Iterator[int]:
        """The steps still to do, until one asks to stop. Each is timed; what it recorded is written at its end."""
        while self.state.step < self.config.steps and self.stop_reason is None:
            self.begin_row()
            self.heard("a new step")
            yield self.state.step + 1

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
        if asked.kl_bound is not None and state.kl_ref_k1 > asked.kl_bound:
            return f"kl/ref_k1 {state.kl_ref_k1:.3f} exceeds evaluation.kl_bound {asked.kl_bound:g}"
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

    def close(self) -> None:
        """End the workers, then what is open of the records."""
        self.learner.close()
        self.commits.drop()
        self.ledger.close()
