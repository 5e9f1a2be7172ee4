"""How far an engine's log-probs are from the learner's on recorded tokens, and how far they may be. Plain numpy.

Rounding moves logits, and a token's log-prob by about that times 1 - p: a policy that is sure of its tokens shows
little of it, one in doubt much. So a bound that was measured on some tokens is carried to others by their doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from actors.response_mask import response_mask
from actors.types import SampleBatch

PROBE_DOUBT, PROBE_TOKENS = 32.0, 1024
"""The sum of 1 - p over the recorded tokens that a mean needs, and their number at which it is given up. With 8, as 60
tokens of a tuned policy have, the mean swings by a factor of 2.4 between its 5th and 95th percentile; with 32 by 1.4
(SmolLM2 in bfloat16)."""


class Share(Protocol):
    """A rank's part of a column: `values` of the tokens at `slots`."""

    @property
    def slots(self) -> np.ndarray: ...

    @property
    def values(self) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Over the recorded tokens. mean: |engine - learner| in nats, infinite when either is not finite anywhere. doubt:
    mean of 1 - p by the learner."""

    mean: float
    doubt: float

    def bound(self, factor: float, doubt: float, rounding: float) -> float:
        """The largest mean that is still explained by rounding, this being a freshly loaded engine's, for tokens of
        such doubt: `factor` times its own, or times its own carried to their doubt if that is more."""
        return max(factor * self.mean * max(1.0, doubt / max(self.doubt, 1e-9)), rounding)


def mismatch(engine: np.ndarray, learner: Sequence[Share]) -> Mismatch:
    """engine: float32 [T]; learner: every rank's share of the same tokens."""
    whole = np.full(len(engine), np.nan, np.float64)
    for share in learner:
        whole[share.slots] = share.values
    gap = np.abs(engine.astype(np.float64) - whole)
    if not len(gap) or not np.isfinite(gap).all():
        return Mismatch(float("inf"), 0.0)
    return Mismatch(float(gap.mean()), float((1.0 - np.exp(whole)).mean()))


def worth_recording(batch: SampleBatch, least: int) -> list[int]:
    """The first rows of a batch: `least` of them, and more until their tokens were doubtful enough."""
    doubt = np.where(response_mask(batch), 1.0 - np.exp(batch.logprobs.astype(np.float64)), 0.0)
    doubts = np.concatenate([[0.0], np.cumsum(doubt)])[batch.offsets[1:]]
    enough = 1 + min(np.searchsorted(doubts, PROBE_DOUBT), np.searchsorted(batch.offsets[1:], PROBE_TOKENS))
    return list(range(min(len(batch), max(least, int(enough)))))


def last_logprobs(tokens: Sequence[int], rows: Sequence[Any], count: int) -> np.ndarray:
    """Log-probs of the last `count` tokens themselves, float32; rows: by place, token -> an object with `logprob`."""
    if not count:
        return np.zeros(0, np.float32)
    pairs = zip(tokens[-count:], rows[-count:], strict=True)
    return np.array([row[token].logprob for token, row in pairs], np.float32)
