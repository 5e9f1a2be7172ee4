"""Who decodes far slower than the others, and how long it rests. Pure: the time is given.

In: every member's pace, look after look. Out: who is slow, against what. Decode steps are cut into stretches. A step
that reads n tokens takes a + b n seconds with a, b >= 0, so one that reads r times as many takes at most max(1, r)
times as long: what the others would take for a member's steps is no less than what is computed here, whoever has many
sequences, few, or a long prompt to read. Worked example: the others' steps of 8 tokens take 0.02 s; steps of 16 could
take them 0.04 s, so one that takes 0.4 s for them is 10 times slower. One that has just begun is not looked at, one
that decodes nothing makes no stretches, and where the others' last steps were as slow nobody is. Left out: what is done
about it (watch.py).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from statistics import median

from actors.rollouts.pace import Pace

STRETCH_S = 0.2
"""Of decoding, at least, make one stretch."""
EVIDENCE_S = 1.0
"""Of slow decoding, beyond what was not slow, are enough; of one stretch half of it counts: what passes is noise."""
LONE_STEP_S = 2.0
"""A step under way that has run for so long is looked at before it ends."""
WARM_STEPS = 3
"""The first steps of a member: kernels are chosen, caches filled."""
KEPT, RECENT_S = 8, 60.0
"""Stretches of a member that are remembered, and for how long."""
NEAREST, PEERS = 3, 16
"""Stretches of another member compared with, those of the most similar size; others that are asked, at most."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Decode steps in a row, seen from `began` to `ended`: `seconds` of decoding, step_s and tokens of each on average.
    most: tokens with those that a prompt half read may add."""

    began: float
    ended: float
    seconds: float
    step_s: float
    tokens: float
    most: float


@dataclass(frozen=True, slots=True)
class Slow:
    """step_s: what a decode step takes it; usual_s: what it would take the median of so many others, at most."""

    step_s: float
    usual_s: float
    others: int

    @property
    def factor(self) -> float:
        return self.step_s / self.usual_s

    def __str__(self) -> str:
        return (
            f"it decodes {self.factor:.1f} times slower than the others ({self.step_s:.3g} s a step, which would take "
            f"{self.usual_s:.3g} s: median of {self.others})"
        )


@dataclass(slots=True)
class _Record:
    """Of one member. base: where the next stretch begins, at `began`; None until it is warm. slow_s: seconds of slow
    stretches less those of the others, never below 0. lone: looks in a row that found its step under way too long."""

    warm: int
    pace: Pace
    base: Pace | None = None
    began: float = 0.0
    stretches: deque[Stretch] = field(default_factory=lambda: deque(maxlen=KEPT))
    slow_s: float = 0.0
    lone: int = 0

    def cut(self, pace: Pace, now: float) -> Stretch | None:
        """Take in the present pace; the stretch that it completes."""
        self.pace = pace
        if self.base is None:
            if pace.steps >= self.warm:
                self.base, self.began = pace, now
            return None
        steps, tokens = pace.steps - self.base.steps, pace.tokens - self.base.tokens
        seconds = pace.seconds - self.base.seconds
        if seconds < STRETCH_S or not steps or not tokens:
            return None
        stretch = Stretch(self.began, now, seconds, seconds / steps, tokens / steps, (tokens + pace.longest) / steps)
        self.stretches.append(stretch)
        self.base, self.began = pace, now
        return stretch

    def weigh(self, seconds: float, slow: bool) -> None:
        """A sum that noise now and then does not raise, nor throws back to nothing (Page 1954)."""
        self.slow_s = max(0.0, self.slow_s + (min(seconds, EVIDENCE_S / 2) if slow else -seconds))

    def would_take(self, tokens: float, since: float, now: float) -> float | None:
        """Seconds that a step of so many tokens would take this member, at most; None if nobody knows. No less than
        what its own took since then, whatever their size: then all were held up."""
        recent = [stretch for stretch in self.stretches if now - stretch.ended <= RECENT_S]
        if not recent:
            return None
        nearest = sorted(recent, key=lambda stretch: abs(math.log(stretch.tokens / tokens)))[:NEAREST]
        usual_s = median(stretch.step_s * max(1.0, tokens / stretch.tokens) for stretch in nearest)
        return max(usual_s, recent[-1].step_s if recent[-1].ended >= since else 0.0, self.pace.step_s)


class Stragglers:
    """factor: how many times slower than the others one must be."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._records: dict[str, _Record] = {}

    def look(self, name: str, pace: Pace, others: Iterable[str], now: float) -> Slow | None:
        """Remember a member's pace; how slow it is against these others, once that is certain."""
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = _Record(pace.steps + WARM_STEPS, pace)
        stretch = record.cut(pace, now)
        if stretch is not None:
            found = self._against(others, stretch.step_s, stretch.most, stretch.began, now)
            record.weigh(stretch.seconds, found is not None)
            record.lone = 0
            return found if record.slow_s >= EVIDENCE_S else None
        found = None
        if record.base is not None and pace.step_s >= LONE_STEP_S:
            tokens = max(1, pace.running + pace.unread)
            found = self._against(others, pace.step_s, tokens, now - pace.step_s, now)
        # Two looks, for after a standstill of all the first look is at one of them, before the others are heard.
        record.lone = record.lone + 1 if found else 0
        return found if record.lone > 1 else None

    def begin_anew(self, name: str) -> None:
        """What it did until now counts no more; it is as warm as it was."""
        record = self._records[name]
        self._records[name] = _Record(record.warm, record.pace)

    def forget(self, name: str) -> None:
        """It does not come back."""
        self._records.pop(name, None)

    def _against(self, others: Iterable[str], step_s: float, tokens: float, since: float, now: float) -> Slow | None:
        """None unless it is slow."""
        known = (record for name in others if (record := self._records.get(name)) is not None)
        usual = (usual_s for record in known if (usual_s := record.would_take(tokens, since, now)) is not None)
        # In a large pool the first few that have decoded lately speak for all.
        if not (asked := list(islice(usual, PEERS))):
            return None
        found = Slow(step_s, median(asked), len(asked))
        return found if found.factor > self._factor else None


class Rests:
    """How long one rests that was slow: twice as long each time, unless it kept up for long enough in between."""

    def __init__(self, first_s: float, longest_s: float = 600.0, calm_s: float = 300.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._calm_s = calm_s
        self._taken: dict[str, int] = {}
        self._back_at: dict[str, float] = {}

    def next_s(self, name: str, now: float) -> float:
        """Seconds that it is to rest from now."""
        calm = now - self._back_at.get(name, -math.inf) >= self._calm_s
        taken = 0 if calm else self._taken[name]
        self._taken[name] = taken + 1
        return min(self._first_s * 2**taken, self._longest_s)

    def back(self, name: str, now: float) -> None:
        """It serves again."""
        self._back_at[name] = now
