"""A run on demonstrations: supervised tuning, over the offline loop's page (dpo.py).

In: a checked config and its demonstrations. Out: the verbs of an offline run. Left out: the loss (learners), the order
of a step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from actors.data.demonstrations import Demonstration
from actors.types import FinishReason, Sample, SampleBatch
from cluster.columns import StepColumns
from cluster.offline import OfflineJob


class SupervisedJob(OfflineJob):
    """Workers and verbs of one supervised run. Evaluated by the log-prob of held-out assistant tokens."""

    @property
    def rows_per_step(self) -> int:
        return self.config.algorithm.sft.rows_per_step

    @property
    def evaluation_metric(self) -> str:
        return "logprob"

    def columns(self, step: int, taken: Sequence[tuple[int, int]]) -> StepColumns:
        return self.scored(step, demonstration_batch([(self.train[row], position) for row, position in taken]))

    def evaluate(self, step: int) -> None:
        """Mean log-prob a token of each held-out conversation, and the perplexity of all their tokens."""
        if not self.heldout:
            return
        self.console.phase("evaluating")
        found = [self._row_logprobs(step, begin) for begin in range(0, len(self.heldout), self.rows_per_step)]
        sums, tokens = np.concatenate(found).T
        self.note({"eval/perplexity": math.exp(min(-float(sums.sum() / max(tokens.sum(), 1.0)), 700.0))})
        best = self.note_evaluation(step, {"logprob": (sums / np.maximum(tokens, 1.0)).tolist()})
        if best and step > 0 and self.config.checkpoint.export:
            self.export(step)

    def _row_logprobs(self, step: int, begin: int) -> np.ndarray:
        rows = range(begin, min(begin + self.rows_per_step, len(self.heldout)))
        columns = self.scored(step, demonstration_batch([(self.heldout[row], row) for row in rows]))
        old = self.learner.policy_logprobs(columns.batch)
        return self.learner.row_logprobs(dataclasses.replace(columns, old=old))


def demonstration_batch(rows: Sequence[tuple[Demonstration, int]]) -> SampleBatch:
    """Demonstrations as samples: group = position; turns -1 where a token is not the assistant's."""
    return SampleBatch.from_samples(
        [
            Sample(
                group=position,
                prompt_id=row.id,
                sample_index=0,
                prompt_tokens=np.array(row.prompt_tokens, np.int32),
                token_ids=np.array(row.token_ids, np.int32),
                logprobs=np.zeros(len(row.token_ids), np.float32),
                turns=np.where(np.array(row.trained, bool), 0, -1).astype(np.int16),
                spans=((0, 0),),
                finish_reason=FinishReason.STOP,
            )
            for row, position in rows
        ]
    )
