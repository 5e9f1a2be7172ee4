"""A run on stored rows: a learner group and what a step does. No rollouts, no engine.

In: a checked config and its rows. Out: the verbs that `cluster/dpo.py` reads as one page. Left out: what a step's
columns and an evaluation are (preferences.py, supervised.py, reward_modelling.py), the order of a step
(cluster/dpo.py), records and commits (job.py).
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from actors.data.order import PromptOrder
from actors.data.stored import StoredRow, StoredRows
from actors.types import SampleBatch, ScoreBatch
from cluster.config import resolve
from cluster.config.placement import Placement
from cluster.experience.columns import Ref, StepColumns
from cluster.inputs.stored import StoredInputs
from cluster.roles.learner_models import LearnerSpec
from cluster.training.job import Job
from cluster.training.parts.logbook import Run
from cluster.workers import LearnerGroup, put

Row = TypeVar("Row", bound=StoredRow)
Placed = Sequence[tuple[Row, int]]
"""Rows with their positions in the run's order."""
Part = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class OfflineWorkers:
    """The learner group, asked of Ray; built: what its ranks answer once they stand."""

    learner: LearnerGroup
    built: list[Ref]

    def close(self) -> None:
        self.learner.close()


def start_offline_workers(run: Run, placement: Placement) -> OfflineWorkers:
    """Ask Ray for the learner group. It loads while the driver reads the data; only rank 0's address is waited for."""
    config = run.config
    spec = LearnerSpec(
        trains=resolve.training(config),
        policy=resolve.policy_settings(config, str(run.model_path), config.steps),
        critic=None,
        reference_path=None,
        device=placement.device,
        timeout_s=config.learner.update_timeout_s,
        saves_later=resolve.saves_later(config, placement.device),
    )
    with ExitStack() as undo:
        learner = LearnerGroup(placement.role("learner"), spec, config.learner.update_timeout_s)
        undo.callback(learner.close)
        workers = OfflineWorkers(learner, learner.build(config.ray.start_timeout_s))
        undo.pop_all()
    return workers


class OfflineJob(Job, Generic[Row]):
    """Workers and verbs of one run on stored rows."""

    def __init__(self, run: Run, workers: OfflineWorkers, inputs: StoredInputs) -> None:
        super().__init__(run, workers.learner)
        config = run.config
        self.learner.heard = self.waiting
        self._built = workers.built
        self.train: StoredRows[Row] = inputs.train
        self.heldout: StoredRows[Row] | None = inputs.heldout
        self.order = PromptOrder(len(self.train), config.seed, config.data.shuffle)
        self.state.source = self.train.fingerprint()

    def begin(self, commit: Path | None) -> None:
        self.console.phase("loading models")
        self.learner.wait_built(self._built, self.config.ray.start_timeout_s)
        self.prepare()  # the weights are the initial ones here, on a resume too
        if commit is not None:
            self.restore(commit)
        else:
            self.ledger.clear()

    def rebuild(self, commit: Path | None) -> None:
        self.learner.start_again(self.config.ray.start_timeout_s)
        if commit is not None:
            self.restore(commit)
        else:
            self.forget_progress()

    def prepare(self) -> None:
        """What is measured once, under the initial weights."""

    @abstractmethod
    def columns(self, step: int, rows: Placed[Row], part: Part) -> StepColumns:
        """The columns of rows of a part of the data."""

    def take(self, step: int) -> StepColumns:
        """The next rows of the order, admitted in the ledger, as the columns of a step."""
        count = self.config.rows_per_step
        taken = self.order.take(self.state.position, count)
        self.ledger.admit(step, [(self.order.epoch(position), row, position) for row, position in taken])
        self.state.position += count
        self._taken = [position for _, position in taken]
        return self.columns(step, [(self.train[row], position) for row, position in taken], "train")

    def update(self, columns: StepColumns) -> None:
        result = self.learner.update_policy(columns)
        self.role("learner", "update_policy", result.seconds)
        self.note(result.metrics)
        self.check_update(columns.step, columns, result)
        self.ledger.trained(self._taken, columns.step)

    def heldout_parts(self) -> Iterator[Placed[Row]]:
        """The held-out rows, a step's worth at a time, after announcing it."""
        self.doing("evaluating")
        size = self.config.rows_per_step
        rows: tuple[Row, ...] = () if self.heldout is None else self.heldout.rows
        for begin in range(0, len(rows), size):
            self.heard("evaluating")
            yield [(row, row.id) for row in rows[begin : begin + size]]

    def settle(self, step: int, scores: dict[str, list[float]]) -> None:
        """Note an evaluation; the best policy so far is exported."""
        if self.note_evaluation(step, scores) and step > 0 and self.config.checkpoint.export:
            self.export(step)

    def export(self, step: int) -> Path:
        target = self.directory.policy(step)
        weights = self.config.weights
        _, summary = self.learner.weights(int(weights.bucket_mb * (1 << 20)), weights.timeout_s, lambda bucket: None)
        self.learner.export(str(target), str(self.model_path), self.export_facts(step, summary.digest))
        self.events.write("export", f"wrote {target.name}", step)
        return target

    def stored(self, step: int, batch: SampleBatch, labels: Sequence[float] | None = None) -> StepColumns:
        """The batch's columns; labels: what stands for scores, one a row (default 0)."""
        values = np.zeros(len(batch)) if labels is None else np.array(labels, np.float64)
        scores = put(ScoreBatch(values=values, parts={}))
        return StepColumns(step=step, kl_coef=0.0, batch=(put(batch),), scores=(scores,))

    def with_logprobs(self, columns: StepColumns) -> StepColumns:
        """The columns with the policy's present log-probs as `old`."""
        return dataclasses.replace(columns, old=self.learner.policy_logprobs(columns.batch))

    def row_logprobs(self, batch: SampleBatch) -> Any:
        """float64 [B, 2]: each row's summed log-prob under the present policy, and its trained tokens."""
        return self.learner.row_logprobs(self.with_logprobs(self.stored(0, batch)))
