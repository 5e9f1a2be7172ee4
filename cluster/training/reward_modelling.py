"""A run that trains a reward model, on preference pairs or on ratings, over the offline loop's page (cluster/dpo.py).

In: a checked config and its rows. Out: the verbs of an offline run; the export is a sequence-classification model that
`reward.models` takes. Left out: the losses (learners), the order of a step.
"""

from __future__ import annotations

import numpy as np

from actors.data.batches import judged_batch, pair_batch
from cluster.experience.columns import StepColumns
from cluster.run.records.evaluation import calibration_error, followed
from cluster.training.offline import OfflineJob, Part, Placed


class RewardModelJob(OfflineJob):
    """Workers and verbs of one reward model's run. Evaluated on held-out pairs by accuracy and calibration, on ratings
    by the squared error and the rank correlation."""

    @property
    def evaluation_metric(self) -> str:
        return "accuracy" if self._pairs else "negative_squared_error"

    @property
    def _pairs(self) -> bool:
        return self.config.row_kind == "pairs"

    def columns(self, step: int, rows: Placed, part: Part) -> StepColumns:
        """Pairs carry their margin on the chosen row, rated responses their rating."""
        if not self._pairs:
            return self.stored(step, judged_batch(rows), [row.label for row, _ in rows])
        return self.stored(step, pair_batch(rows), [side for row, _ in rows for side in (row.margin, 0.0)])

    def evaluate(self, step: int) -> None:
        if not self.heldout:
            return
        from scipy import special, stats  # half a second, which drivers of other runs need not take

        parts = [self.learner.row_scores(self.columns(step, rows, "heldout").batch) for rows in self.heldout_parts()]
        scores = np.concatenate(parts).astype(np.float64)
        if self._pairs:
            gaps = scores[0::2] - scores[1::2]
            self.note({"eval/calibration_error": calibration_error(special.expit(gaps))})
            self.settle(step, {"accuracy": followed(gaps), "margin": gaps.tolist()})
            return
        ratings = np.array([row.label for row in self.heldout.rows])
        if len(np.unique(ratings)) > 1 and len(np.unique(scores)) > 1:  # else there is no order to compare
            self.note({"eval/rank_correlation": float(stats.spearmanr(scores, ratings).statistic)})
        self.settle(step, {"negative_squared_error": (-((scores - ratings) ** 2)).tolist()})
