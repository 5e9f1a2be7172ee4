"""A run on demonstrations: supervised tuning, over the offline loop's page (cluster/dpo.py).

In: a checked config and its demonstrations. Out: the verbs of an offline run. Left out: the loss (learners), the order
of a step.
"""

from __future__ import annotations

import math

import numpy as np

from actors.data.batches import demonstration_batch
from actors.data.demonstrations import Demonstration
from cluster.experience.columns import StepColumns
from cluster.training.offline import OfflineJob, Part, Placed


class SupervisedJob(OfflineJob[Demonstration]):
    """Workers and verbs of one supervised run. Evaluated by the log-prob of held-out assistant tokens."""

    @property
    def evaluation_metric(self) -> str:
        return "logprob"

    def columns(self, step: int, rows: Placed[Demonstration], part: Part) -> StepColumns:
        return self.stored(step, demonstration_batch(rows))

    def evaluate(self, step: int) -> None:
        """Mean log-prob a token of each held-out conversation, and the perplexity of all their tokens."""
        if not self.heldout:
            return
        found = [self.row_logprobs(demonstration_batch(rows)) for rows in self.heldout_parts()]
        sums, tokens = np.concatenate(found).T
        self.note({"eval/perplexity": math.exp(min(-float(sums.sum() / max(tokens.sum(), 1.0)), 700.0))})
        self.settle(step, {"logprob": (sums / np.maximum(tokens, 1.0)).tolist()})
