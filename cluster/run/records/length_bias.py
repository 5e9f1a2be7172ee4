"""Is what a run trains on shorter than what it samples? Asynchronous runs drift there: short responses end first, and
what comes too late is dropped.

In: mean response lengths of prompts that were trained, and of prompts that were dropped as too old. Out: how far apart,
and whether to raise an alarm. Worked example: 400 trained prompts of 90 tokens on average, 100 dropped ones of 190: the
trained are 18 % shorter than all 500, and no such split comes about by chance. Left out: where lengths come from
(cluster/run/ledger.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 20
"""Prompts on each side below which nothing is said."""
ALARM_SHARE, ALARM_P = 0.05, 1e-3


@dataclass(frozen=True, slots=True)
class LengthBias:
    """trained, ended: mean tokens of a response, of trained prompts and of all that ended. p: that a prompt's length
    has nothing to do with whether it was trained (Mann-Whitney U)."""

    trained: float
    ended: float
    p: float

    @property
    def share(self) -> float:
        """By how much trained responses are longer (above 0) or shorter than all."""
        return self.trained / self.ended - 1.0 if self.ended else 0.0

    @property
    def alarm(self) -> bool:
        return abs(self.share) > ALARM_SHARE and self.p < ALARM_P

    def __str__(self) -> str:
        longer = "longer" if self.share > 0 else "shorter"
        return (
            f"trained responses are {abs(self.share):.0%} {longer} than all that were made ({self.trained:.0f} tokens "
            f"on average against {self.ended:.0f}, p {self.p:.0e})"
        )


def length_bias(trained: Sequence[float], left: Sequence[float]) -> LengthBias | None:
    """None where one side has too few prompts to tell. left: of prompts that were made and dropped. Those that only
    wait for their step are on neither side: in a run that drops none they are the long ones, and are trained too."""
    if min(len(trained), len(left)) < FEWEST:
        return None
    from scipy.stats import mannwhitneyu

    p = float(mannwhitneyu(trained, left).pvalue)
    return LengthBias(float(np.mean(trained)), float(np.mean([*trained, *left])), p)
