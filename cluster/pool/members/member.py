"""A worker's place in the pool: its state, and which states may follow.

SPARE -> JOINING, when its place is needed: its engine runs, on weights of no version. JOINING -> HEALTHY, only by a
passed probe of the current weights. HEALTHY -> DRAINING (asked to leave) -> RETIRED.
HEALTHY -> SUSPECT (it decodes far slower than the others, and rests) -> HEALTHY, by such a probe again. DEAD and
RETIRED are ends. Left out: who decides (roster.py, watch.py).
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field

from actors.rollouts.spans import Span
from cluster.pool.members.handle import RolloutHandle
from cluster.pool.members.ticket import Ticket


class MemberState(enum.Enum):
    SPARE = "spare"
    JOINING = "joining"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DRAINING = "draining"
    DEAD = "dead"
    RETIRED = "retired"


S = MemberState
FOLLOWS: dict[MemberState, frozenset[MemberState]] = {
    S.SPARE: frozenset({S.JOINING, S.DEAD}),
    S.JOINING: frozenset({S.SPARE, S.HEALTHY, S.DRAINING, S.DEAD}),
    S.HEALTHY: frozenset({S.SUSPECT, S.DRAINING, S.DEAD}),
    S.SUSPECT: frozenset({S.HEALTHY, S.DRAINING, S.DEAD}),
    S.DRAINING: frozenset({S.RETIRED, S.DEAD}),
    S.DEAD: frozenset(),
    S.RETIRED: frozenset(),
}
ENDS = frozenset({S.DEAD, S.RETIRED})


@dataclass(slots=True, eq=False)
class Member:
    """name: unique in the run, `rollout-3`; never given twice. version: the last admitted. leaving: asked to go, as
    soon as no publish needs it. work: tickets it has. spans: what it did, not yet fetched. lost: set when it is given
    up, whatever it still does. inherited: of an earlier driver, on whatever weights. asked_at, engine_at: when it was
    asked for, and when its engine ran, on the clock of time.monotonic."""

    name: str
    handle: RolloutHandle
    state: MemberState = MemberState.JOINING
    version: int | None = None
    leaving: bool = False
    work: dict[int, Ticket] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    inherited: bool = False
    asked_at: float = 0.0
    engine_at: float | None = None

    def move(self, state: MemberState) -> None:
        """ValueError for a state that does not follow the present one: a bug, never weather."""
        if state not in FOLLOWS[self.state]:
            raise ValueError(f"{self.name} is {self.state.value} and cannot become {state.value}")
        self.state = state

    @property
    def gone(self) -> bool:
        return self.state in ENDS
