"""Signs in a run's numbers that something other than what is wanted is being learned, or that nothing is any more.

In: every step's metrics. Out: sentences, one when a sign begins and one when it is gone. Each compares the last WINDOW
steps with the first WINDOW: a policy that games its reward earns more while it leaves the reference far behind and its
responses grow or shrink; one that has collapsed is sure of every token; an engine that drifts from its learner samples
what the learner does not know. Example: rewards up by two standard deviations, KL 12 times what it was and more than
0.1 nats a token, responses twice as long: an alarm. They say look, they stop nothing. Left out: length bias of
asynchronous runs (length_bias.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

WINDOW = 10
KL_FLOOR, KL_GROWTH, LENGTH_CHANGE = 0.1, 5.0, 1.5
ENTROPY_LEFT = 0.1
MISMATCH_FLOOR, MISMATCH_GROWTH = 1e-3, 3.0


@dataclass(frozen=True, slots=True)
class Trend:
    """Means of one metric over the first and the last steps."""

    first: float
    last: float

    def grew(self, factor: float) -> bool:
        return self.last > factor * self.first


class Alarms:
    """Give it every step's row. before: rows of the run's steps until now, whose signs were told."""

    def __init__(self, before: Iterable[Mapping[str, float | None]] = ()) -> None:
        self._first: dict[str, list[float]] = {}
        self._last: dict[str, list[float]] = {}
        self._seen: dict[str, int] = {}
        self._on: set[str] = set()
        for row in before:
            for _ in self.hear(row):
                continue

    def hear(self, row: Mapping[str, float | None]) -> Iterator[tuple[str, str]]:
        """(sign, sentence) of every sign that began or ended with this row."""
        for name in WATCHED & row.keys():
            value = row[name]
            # A step that was skipped has numbers that are none: null in the file, not finite in the running job.
            if value is None or not math.isfinite(value):
                continue
            first, last = self._first.setdefault(name, []), self._last.setdefault(name, [])
            if len(first) < WINDOW:
                first.append(float(value))
            last.append(float(value))
            del last[:-WINDOW]
            self._seen[name] = self._seen.get(name, 0) + 1
        for sign, look in SIGNS.items():
            said = look(self._trend)
            if said is not None and sign not in self._on:
                self._on.add(sign)
                yield sign, said
            elif said is None and sign in self._on:
                self._on.discard(sign)
                yield sign, f"{sign}: no longer so"

    def _trend(self, name: str) -> Trend | None:
        """None until a step came after the first ones."""
        first, last = self._first.get(name, []), self._last.get(name, [])
        if self._seen.get(name, 0) <= WINDOW:
            return None
        return Trend(fmean(first), fmean(last))


Look = Callable[[Callable[[str], Trend | None]], str | None]


def _reward_hacking(of: Callable[[str], Trend | None]) -> str | None:
    reward, spread, kl, length = (of(n) for n in ("reward/mean", "reward/std", "kl/ref_k1", "response/length_mean"))
    if reward is None or spread is None or kl is None or length is None:
        return None
    gained = reward.last - reward.first > spread.first
    away = kl.last > KL_FLOOR and kl.grew(KL_GROWTH)
    odd = length.grew(LENGTH_CHANGE) or length.last * LENGTH_CHANGE < length.first
    if not (gained and away and odd):
        return None
    return (
        f"the reward rose from {reward.first:.3g} to {reward.last:.3g} while the KL to the reference rose from "
        f"{kl.first:.2g} to {kl.last:.2g} and responses went from {length.first:.0f} to {length.last:.0f} tokens: read "
        "some samples, the reward may be gamed; raise algorithm.kl.coef"
    )


def _entropy_collapse(of: Callable[[str], Trend | None]) -> str | None:
    entropy, spread = of("policy/entropy"), of("reward/std")
    if entropy is None or entropy.last >= ENTROPY_LEFT * entropy.first:
        return None
    alike = "" if spread is None else f" and rewards' spread from {spread.first:.2g} to {spread.last:.2g}"
    return (
        f"the policy's entropy fell from {entropy.first:.2g} to {entropy.last:.2g} nats a token{alike}: there is "
        "little left to learn from; lower learner.optimizer.lr or raise the temperature"
    )


def _mismatch_growth(of: Callable[[str], Trend | None]) -> str | None:
    mismatch = of("policy/mismatch")
    if mismatch is None or mismatch.last < MISMATCH_FLOOR or not mismatch.grew(MISMATCH_GROWTH):
        return None
    return (
        f"engine and learner differ by {mismatch.last:.2g} nats a token where they differed by {mismatch.first:.2g}: "
        "what is sampled is no longer what is trained; look at algorithm.correction and model.dtype"
    )


SIGNS: Mapping[str, Look] = {
    "reward hacking": _reward_hacking,
    "entropy collapse": _entropy_collapse,
    "mismatch growth": _mismatch_growth,
}
WATCHED = {"reward/mean", "reward/std", "kl/ref_k1", "response/length_mean", "policy/entropy", "policy/mismatch"}
"""None is a mean of exponentials, which one token could move past any floor."""
