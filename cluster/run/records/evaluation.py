"""What an evaluation found: means with intervals, and whether one policy beats another on the same prompts.

In: scores of held-out prompts. Out: `Interval`s. Statistics are scipy's: Wilson's interval for scores that are all 0
or 1 (Wilson 1927), the t interval otherwise, and for a difference on the same prompts the paired t interval. Left
out: generating and scoring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cluster.errors import RunFailed
from cluster.run.records.metrics import Interval

LEVEL = 0.95


def mean_interval(scores: Sequence[float]) -> Interval:
    """Mean with its 95 % interval. NaN scores (no score) are left out; RunFailed when none is left."""
    from scipy import stats

    known = [float(s) for s in scores if not math.isnan(s)]
    if not known:
        raise RunFailed("no held-out prompt has a score; see the reward's errors in events.jsonl")
    mean = math.fsum(known) / len(known)
    if all(s in (0.0, 1.0) for s in known):
        bounds = stats.binomtest(int(sum(known)), len(known)).proportion_ci(LEVEL, method="wilson")
        return Interval(mean, float(bounds.low), float(bounds.high))
    return _t_interval(known)


def difference_interval(after: Sequence[float], before: Sequence[float]) -> Interval | None:
    """Mean of after - before over the same prompts, with the paired 95 % interval; pairs lacking a score are out. None
    when none is left."""
    gains = [float(a) - float(b) for a, b in zip(after, before, strict=True)]
    known = [gain for gain in gains if not math.isnan(gain)]
    return _t_interval(known) if known else None


def _t_interval(values: list[float]) -> Interval:
    from scipy import stats

    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, mean, mean)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * spread
    return Interval(mean, mean - half, mean + half)


def followed(margins: Sequence[float]) -> list[float]:
    """1 where a preference is followed (margin above 0), 0 where it is not, 0.5 where nothing is preferred: a policy
    that still is its reference, or a reward model whose head is zero, follows half of them."""
    return [0.5 if margin == 0 else float(margin > 0) for margin in margins]


def calibration_error(probabilities: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error of a judge of pairs (Guo et al. 2017), in [0, 0.5]: probabilities that the better
    response wins. Pairs are binned by the confidence of their verdict, max(p, 1 - p), and each bin's mean confidence
    compared with its share of right verdicts."""
    p = np.asarray(probabilities, np.float64)
    confidence = np.maximum(p, 1.0 - p)
    right = np.where(p == 0.5, 0.5, p > 0.5)
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = [abs(confidence[place == b].mean() - right[place == b].mean()) * (place == b).mean() for b in set(place)]
    return float(math.fsum(gaps))
