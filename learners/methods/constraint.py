"""A bound on a cost beside the reward: the Lagrangian of Safe RLHF (Dai et al. 2023). Torch-free.

In: scores and costs of a batch, [B] float64. Out: what the policy is trained on, and the next multiplier. One critic
learns the combined return, where the paper trains one for rewards and one for costs: advantages are linear in rewards,
so their sum is the same. Left out: where costs come from, and when the multiplier moves (the driver).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np


def constrained_scores(rewards_B: np.ndarray, costs_B: np.ndarray, multiplier: float) -> np.ndarray:
    """(R - lambda C) / (1 + lambda), [B]: NaN where either is (Dai et al. 2023, eq. 9; the divisor keeps the size of
    an update whatever lambda is)."""
    return (np.asarray(rewards_B, np.float64) - multiplier * np.asarray(costs_B, np.float64)) / (1.0 + multiplier)


@dataclass(frozen=True, slots=True)
class Multiplier:
    """lambda > 0, moved in its logarithm: ln lambda += lr * lambda * (mean cost - bound) (Dai et al. 2023, eq. 10).

    It grows while the cost is above the bound and shrinks below it; `maximum` holds it where no policy can comply.
    """

    value: float
    bound: float
    lr: float
    maximum: float = 100.0

    def update(self, mean_cost: float) -> Multiplier:
        """The multiplier after a batch whose mean cost this is. ValueError when that is not finite."""
        if not math.isfinite(mean_cost):
            raise ValueError(f"the mean cost of a batch is {mean_cost}; no multiplier follows from it")
        # Clamped before the exponential, so that a cost far off cannot overflow it; never quite 0, whence none returns.
        step = min(max(self.lr * self.value * (mean_cost - self.bound), -1.0), 1.0)
        return replace(self, value=min(max(self.value * math.exp(step), 1e-6), self.maximum))
