"""A run that trains a reward model, on preference pairs or on ratings, over the offline loop's page (cluster/dpo.py).

In: a checked config and its rows. Out: the verbs of an offline run; the export is a sequence-classification model that
`reward.models` takes. Left out: the losses (learners), the order of a step.
"""

from __future__ import annotations

import numpy as np

from actors.data.batches import judged_batch, judged_of, pair_batch, pairs_of
from actors.data.judged import JudgedResponse
from actors.data.preferences import PreferencePair
from cluster.experience.columns import StepColumns
from cluster.run.records.evaluation import calibration_error, followed
from cluster.training.offline import OfflineJob, Part, Placed


class RewardModelJob(OfflineJob[PreferencePair | JudgedResponse]):
    """Workers and verbs of one reward model's run. Evaluated on held-out pairs by accuracy and calibration, on ratings
    by the squared error and the rank correlation."""

    @property
    def evaluation_metric(self) -> str:
        return "accuracy" if self._pairs else "negative_squared_error"

    @property
    def _pairs(self) -> bool:
        return self.config.row_kind == "pairs"

    def columns(self, step: int, rows: Placed[PreferencePair | JudgedResponse], part: Part) -> StepColumns:
        """Pairs carry their margin on the chosen row, rated responses their rating."""
        if not self._pairs:
            rated = judged_of(rows)
            return self.stored(step, judged_batch(rated), [row.label for row, _ in rated])
        pairs = pairs_of(rows)
        return self.stored(step, pair_batch(pairs), [side for row, _ in pairs for side in (row.margin, 0.0)])

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
        ratings = np.array([row.label for row, _ in judged_of([(row, row.id) for row in self.heldout.rows])])
        if len(np.unique(ratings)) > 1 and len(np.unique(scores)) > 1:  # else there is no order to compare
            self.note({"eval/rank_correlation": float(stats.spearmanr(scores, ratings).statistic)})
        self.settle(step, {"negative_squared_error": (-((scores - ratings) ** 2)).tolist()})
