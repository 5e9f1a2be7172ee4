"""How many prompts may be admitted so that none of their samples is too old when it is trained.

In: counts. Out: a number of prompts, and which finished ones must be trained now. The capacity rule is AReaL's (Fu et
al. 2025, eq. 3): with a batch of B prompts, versions counted from the first, and a bound of S versions,

    admitted - dropped <= (version + S + 1) B,

dropped being those that no step took. A step has used B places, whether it could train all that it took or not: with
another in the place of one whose reward failed, (S + 1) B + 1 would be under way from then on, more than the coming
steps can train in time.

Step k (from 0) trains B prompts at version k. A prompt admitted at version v is among the first (v + S + 1) B, so it
can be trained at step v + S or before: nothing is generated to be thrown away. That it is, the second rule sees to: a
step takes the oldest that have ended, and begins only if all others can still be in time. Worked example: B = 4, S = 1:
8 prompts are admitted at version 0; step 0 trains the first 4 that end; at version 1 4 more are admitted, and the step
waits for the other 4 of version 0, whoever else has ended. S = 0 is the synchronous loop.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Admission:
    """batch: prompts a step trains on. max_staleness: versions between a prompt's admission and its training. ahead:
    prompts beyond a step's batch that may be under way, where that is to be fewer than the bound allows."""

    batch: int
    max_staleness: int
    ahead: int | None = None

    def room(self, *, version: int, admitted: int, dropped: int) -> int:
        """Prompts that may be admitted now. version: steps done. admitted, dropped: since the first step,
        the dropped by none that took them."""
        ahead = self.max_staleness * self.batch if self.ahead is None else self.ahead
        return max(0, (version + 1) * self.batch + min(ahead, self.max_staleness * self.batch) - (admitted - dropped))


class Backlog:
    """The prompts, by group, that are under way or have ended, each with the version that it was admitted at. What a
    call costs depends on the bound and the batch, not on how many prompts there are."""

    def __init__(self, rule: Admission) -> None:
        self.rule = rule
        self._open: dict[int, int] = {}
        self._open_at: Counter[int] = Counter()
        self._ended: dict[int, set[int]] = {}
        self.ended = 0

    @property
    def open(self) -> int:
        return len(self._open)

    def admit(self, group: int, version: int) -> None:
        self._open[group] = version
        self._open_at[version] += 1

    def end(self, group: int) -> None:
        """All its samples are whole."""
        version = self._close(group)
        self._ended.setdefault(version, set()).add(group)
        self.ended += 1

    def drop(self, group: int) -> None:
        """It is under way no longer and will not be trained."""
        self._close(group)

    def _close(self, group: int) -> int:
        version = self._open.pop(group)
        self._open_at[version] -= 1
        if not self._open_at[version]:  # else every version of a long run would be looked at in each call
            del self._open_at[version]
        return version

    def take(self, version: int, count: int) -> list[int] | None:
        """The oldest `count` that have ended, removed; None while there are too few, or while taking them would leave
        more old ones than the coming steps can train in time."""
        if self.ended < count:
            return None
        plan, lacking, older = {}, count, 0
        for admitted in sorted({*self._ended, *self._open_at}):
            here = len(self._ended.get(admitted, ()))
            plan[admitted] = min(here, lacking)
            lacking -= plan[admitted]
            older += here - plan[admitted] + self._open_at[admitted]
            # These must be trained in the steps after this one, up to `admitted + max_staleness`.
            if older > max(0, admitted + self.rule.max_staleness - version) * self.rule.batch:
                return None
        return self._remove(plan)

    def take_late(self, version: int) -> list[int]:
        """Those that have ended and are too old for the step at `version`, removed."""
        late = [v for v in self._ended if version - v > self.rule.max_staleness]
        return self._remove({v: len(self._ended[v]) for v in late})

    def take_oldest(self, count: int) -> list[int]:
        """The oldest that have ended, whatever that leaves behind."""
        plan = {}
        for admitted in sorted(self._ended):
            plan[admitted] = min(len(self._ended[admitted]), count)
            count -= plan[admitted]
        return self._remove(plan)

    def _remove(self, plan: dict[int, int]) -> list[int]:
        chosen: list[int] = []
        for admitted in sorted(plan):
            mine = sorted(self._ended.get(admitted, ()))[: plan[admitted]]
            if mine:
                self._ended[admitted].difference_update(mine)
                if not self._ended[admitted]:
                    del self._ended[admitted]
            chosen += mine
        self.ended -= len(chosen)
        return chosen
