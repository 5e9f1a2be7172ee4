"""How many prompts may be admitted so that none of their samples is too old when it is trained.

In: counts. Out: a number of prompts, and which finished ones must be trained now. The capacity rule is AReaL's (Fu et
al. 2025, eq. 3): with a batch of B prompts, versions counted from the first, and a bound of S versions,

    admitted - dropped <= (version + S + 1) B.

Step k (from 0) trains B prompts at version k. A prompt admitted at version v is among the first (v + S + 1) B, so it
can be trained at step v + S or before: nothing is generated to be thrown away. That it is, the second rule sees to: at
version k, what was admitted at version k - S is due. Worked example: B = 4, S = 1: 8 prompts are admitted at version
0; step 0 trains the first 4 that end; at version 1 4 more are admitted, and the other 4 of version 0 are due, whoever
else has ended. S = 0 is the synchronous loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Admission:
    """batch: prompts a step trains on. max_staleness: versions between a prompt's admission and its training."""

    batch: int
    max_staleness: int

    def room(self, *, version: int, admitted: int, dropped: int) -> int:
        """Prompts that may be admitted now. version: steps done. admitted, dropped: since the first step."""
        return max(0, (version + self.max_staleness + 1) * self.batch - (admitted - dropped))

    def choose(self, *, version: int, finished: Mapping[int, int], open_: Mapping[int, int]) -> list[int] | None:
        """The groups of this step's batch: what is due, then what was admitted first; None while something due is not
        finished or too few are. finished, open_: the version that each group was admitted at, by group."""
        last = version - self.max_staleness
        if len(finished) < self.batch or any(admitted <= last for admitted in open_.values()):
            return None
        return sorted(finished, key=lambda group: (finished[group], group))[: self.batch]
