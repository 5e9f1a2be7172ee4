"""An online run on pairs of its own samples: the best against the worst of each prompt's.

In: an OnlineJob's workers and a preference loss. Out: the verbs that `cluster/online_dpo.py` reads as one page. The
ranking is the reward path of every online method: functions, models, judges, costs. Left out: the order of a step
(cluster/online_dpo.py), pools and publishing (online.py).
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from actors.types import ScoreBatch
from cluster.experience.batch import StepBatch, best_and_worst, flat_groups
from cluster.experience.columns import StepColumns
from cluster.training.online import OnlineJob
from cluster.workers import put


class OnlinePairsJob(OnlineJob):
    """Workers and verbs of one online DPO run."""

    def batch(self) -> StepBatch:
        """An empty batch of a step's prompts; one wave fills it."""
        return StepBatch(self.config.rollout.prompts_per_step, 1, self.scoring.fetch)

    def pair(self, step: int, batch: StepBatch) -> StepColumns | None:
        """The pairs' columns with the reference's log-probs; None when every group is a tie. Ties are counted and
        dropped (METHODS: online DPO)."""
        self.make_room()
        samples = batch.samples
        values = self.scoring.fetch(batch.scores).values
        batch.flat |= flat_groups(values, samples)
        self.note_rollout(*batch.rollout_stats)
        self.scoring.settle(step, batch)
        self._rows = best_and_worst(values, samples, batch.flat)
        self.note({"preference/ties": float(len(batch.flat)), "preference/pairs": float(len(self._rows) // 2)})
        if not self._rows:
            return None
        picked = self.learner.pick(self._rows, samples.chunks)
        began = time.monotonic()
        reference = self.learner.reference_logprobs([picked])
        self.learner.wait(reference, "computing reference")
        self.role("learner", "reference", time.monotonic() - began)
        scores = put(ScoreBatch(np.array(values[self._rows]), {}))
        return StepColumns(step=step, kl_coef=0.0, batch=(picked,), scores=(scores,), reference=reference)

    def update(self, columns: StepColumns | None) -> None:
        """One step on the pairs; a step of ties alone learns nothing."""
        self.details = ()
        if columns is None:
            return
        result = self.learner.update_policy(columns, self.rows_to_show(len(self._rows)))
        self.role("learner", "update_policy", result.seconds)
        self.note(result.metrics)
        self.check_update(columns.step, columns, result)
        self.ledger.trained(self.scoring.kept, columns.step)
        # A pair's row in its own batch is another one in the step's, which the scores go by.
        self.details = tuple(replace(detail, row=self._rows[detail.row]) for detail in result.details)
