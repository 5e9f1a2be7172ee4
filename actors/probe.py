"""How far an engine's log-probs are from the learner's on the same recorded tokens. Plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Share(Protocol):
    """A rank's part of a column: `values` of the tokens at `slots`."""

    slots: np.ndarray
    values: np.ndarray


def mean_mismatch(engine: np.ndarray, learner: Sequence[Share]) -> float:
    """Mean |engine - learner| in nats over the recorded tokens; infinite when either is not finite anywhere."""
    whole = np.full(len(engine), np.nan, np.float64)
    for share in learner:
        whole[share.slots] = share.values
    gap = np.abs(engine.astype(np.float64) - whole)
    return float(gap.mean()) if len(gap) and np.isfinite(gap).all() else float("inf")
