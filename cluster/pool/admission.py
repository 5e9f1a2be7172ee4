"""How many prompts may be admitted so that none of their samples is too old when it is trained.

In: counts. Out: a number of prompts, and which finished ones must be trained now. The capacity rule is AReaL's (Fu et
al. 2025, eq. 3): with a batch of B prompts, versions counted from the first, and a bound of S versions,

    admitted - dropped <= (version + S + 1) B.

Step k (from 0) trains B prompts at version k. A prompt admitted at version v is among the first (v + S + 1) B, so it
can be trained at step v + S or before: nothing is generated to be thrown away. That it is, the second rule sees to: a
step takes the oldest that have ended, and begins only if all others can still be in time. Worked example: B = 4, S = 1:
8 prompts are admitted at version 0; step 0 trains the first 4 that end; at version 1 4 more are admitted, and the step
waits for the other 4 of version 0, whoever else has ended. S = 0 is the synchronous loop.
"""

from __future__ import annotations

from collections import Counter
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

    def choose(
        self, *, version: int, finished: Mapping[int, int], open_: Mapping[int, int], count: int | None = None
    ) -> list[int] | None:
        """The groups of this step's batch, the oldest that have ended; None while there are too few, or while taking
        them would leave more old ones than the coming steps can train in time. finished, open_: the version that each
        group was admitted at, by group. count: how many the step still lacks, default the whole batch."""
        count = self.batch if count is None else count
        if len(finished) < count:
            return None
        order = sorted(finished, key=lambda group: (finished[group], group))
        chosen, left = order[:count], [finished[group] for group in order[count:]]
        older = 0
        for admitted, count in sorted(Counter([*left, *open_.values()]).items()):
            older += count
            # These must be trained in the steps after this one, up to `admitted + max_staleness`.
            if older > (admitted + self.max_staleness - version) * self.batch:
                return None
        return chosen
