"""How many rollout workers a run may lose, and how long it waits before each is replaced. Pure: the time is given.

In: failures, each with its time. Out: seconds until the replacement, or that the budget is spent. Failures that lie
further apart than `calm_s` do not add up to a longer wait, but all of them count. Example: backoff 1, failures at 0, 5
and 7 wait 1, 2 and 4 seconds, one at 900 waits 1 again. Left out: telling that a worker failed (roster.py).
"""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_S = 60.0


@dataclass(frozen=True, slots=True)
class RecoveryLimits:
    """failures: workers that may be lost in a run. attempts: workers that the same prompts may fail on. silence_s: how
    long a worker may answer nothing. progress_s: how long it may hold work without making a token. backoff_s: before
    the first replacement. spares: workers that are kept ready to take the place of one. slow_factor: how many times
    slower than the others one is that rests for `rest_s` the first time; None where nobody is."""

    failures: int = 20
    attempts: int = 3
    silence_s: float = 30.0
    progress_s: float = 120.0
    backoff_s: float = 1.0
    spares: int = 0
    slow_factor: float | None = 5.0
    rest_s: float = 30.0


class FailureBudget:
    """Of one kind of worker in one run."""

    def __init__(self, limit: int, backoff_s: float, calm_s: float = 300.0) -> None:
        self._limit = limit
        self._backoff_s = backoff_s
        self._calm_s = calm_s
        self._recent: list[float] = []
        self.spent = 0

    def failed(self, now: float, alone: bool = False) -> float | None:
        """Seconds to wait before trying again; None if that was one failure too many. alone: of something that worked
        until now, which is no reason to wait longer than the first time."""
        self.spent += 1
        if self.spent > self._limit:
            return None
        if alone:
            return min(self._backoff_s, LONGEST_S)
        self._recent = [at for at in self._recent if now - at < self._calm_s] + [now]
        return min(self._backoff_s * 2 ** (len(self._recent) - 1), LONGEST_S)

    def succeeded(self) -> None:
        """What was tried again works: the next failure is a first one."""
        self._recent.clear()


class Progress:
    """Whether one worker gets on: it holds nothing, or makes tokens, or may not make any for now."""

    def __init__(self, deadline_s: float, now: float) -> None:
        self._deadline_s = deadline_s
        self._tokens = -1
        self._since = now

    def stuck_for(self, tokens_made: int, idle: bool, now: float) -> float | None:
        """Seconds without a token, once they are too many. idle: nothing is asked of it at the moment."""
        if idle or tokens_made != self._tokens:
            self._tokens, self._since = tokens_made, now
        waited = now - self._since
        return waited if waited > self._deadline_s else None
