"""Which response tokens count: the policy's own. What a tool or environment wrote between them is context.

In: samples. Out: the one mask on their T axis that every sum, count, mean and loss of every method takes, for the
policy's numbers and the reference's alike, and a column's sums over rows. Left out: rows without a score and overlong
ones (learners/experience.py takes those out too), masked arithmetic on tensors (learners/methods/aggregation.py).
"""

from __future__ import annotations

import numpy as np

from actors.types import ENVIRONMENT_TURN, Sample, SampleBatch


def response_mask(samples: SampleBatch | Sample) -> np.ndarray:
    """bool [T]: tokens that the policy wrote (METHODS' m, but for padding). Numbers elsewhere may be anything."""
    return np.asarray(samples.turns) != ENVIRONMENT_TURN


def row_sums(column: np.ndarray, batch: SampleBatch) -> np.ndarray:
    """float64 [B, 2]: sums of a column [T] over each row's own tokens (not the environment's), and their number."""
    mask = response_mask(batch)
    rows = np.repeat(np.arange(len(batch)), batch.lengths)
    sums = np.bincount(rows, np.where(mask, np.asarray(column, np.float64), 0.0), len(batch))
    return np.stack([sums, np.bincount(rows, mask, len(batch))], axis=1)
